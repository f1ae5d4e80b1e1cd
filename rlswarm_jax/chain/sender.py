"""Sends what the outbox holds: one sender per account, with nonces of its own.

What an endpoint says in words decides only when to try again. What is so is decided by two things: which nonces the
chain has used, and which of our transactions has a receipt. Hence the one rule that keeps a wish from being done
twice: it gets another nonce only when, `confirmations` blocks deep, its nonce is used and nothing that was signed with
it succeeded.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlswarm_jax.chain import eth
from rlswarm_jax.chain.errors import InsufficientFunds, Refused
from rlswarm_jax.chain.library import web3
from rlswarm_jax.chain.outbox import Outbox, Transaction, Wish
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.chain.signing import Price, ask_price, sign
from rlswarm_jax.identity import Identity

if TYPE_CHECKING:
    from web3.types import BlockData, TxReceipt

log = logging.getLogger("rlswarm_jax.chain")
_FAR = 1024  # nonces, blocks: more than are in flight, and more than a reorganisation takes back


class Sender:
    """Holds no state that matters: that is in the outbox and on the chain. Not for two threads at once."""

    def __init__(
        self,
        w3: web3.Web3,
        outbox: Outbox,
        identity: Identity,
        account: str,
        chain_id: int,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._w3, self._outbox, self._identity = w3, outbox, identity
        self._account, self._chain_id, self._settings, self._clock = account, chain_id, settings, clock
        self._count = 0  # transactions of the account on the chain, as of `settle`
        self._known_price: tuple[str, Price] | None = None  # as of a head
        self._held = False  # whether the last try to offer more was too dear
        self._tried: dict[str, tuple[str, float]] = {}  # transaction -> head and second of its last try

    def settle(self, head: "BlockData") -> None:
        """Finds out what became of everything in flight, and sends again what is in no block.

        Raises EndpointDown, MalformedAnswer; what was found out until then is on file.
        """
        self._count = self._w3.eth.get_transaction_count(self._account)
        self._outbox.reopen(self._count)
        in_flight = self._outbox.in_flight()
        for wish in in_flight:
            assert wish.nonce is not None
            if wish.nonce >= self._count + _FAR:
                self._outbox.release(wish, "its nonce was an invention of the endpoint's", failed=False)
                continue
            if wish.nonce >= self._count:
                if wish.state == "mined":
                    self._outbox.unmined(wish)
                self._offer(wish, head)
                continue
            if wish.block is not None and 0 <= head["number"] - wish.block < self._settings.confirmations:
                continue
            self._look(wish, wish.nonce, head)
        live = {one.hash for wish in in_flight for one in self._outbox.transactions(wish)}
        self._tried = {key: value for key, value in self._tried.items() if key in live}

    def has_room(self) -> bool:
        """Whether another transaction may be signed now."""
        return len(self._outbox.nonces(self._count)) < self._settings.in_flight

    def submit(self, wish: Wish, target: str, calldata: bytes, head: "BlockData", gas: int | None = None) -> None:
        """Signs a transaction for a waiting wish, writes it down, sends it; unless `gas` is given, tries it first.

        After `settle`.

        Raises Reverted if it would fail now (nothing is signed), InsufficientFunds, EndpointDown, MalformedAnswer.
        """
        if gas is None:
            call: Any = {"from": self._account, "to": target, "data": calldata}
            estimate = self._w3.eth.estimate_gas(call | ({"value": wish.value} if wish.value else {}))
            gas = min(estimate + estimate // 4 + 30_000, self._settings.max_gas)  # another's transaction may come first
        taken = self._outbox.nonces(self._count)
        nonce = next(n for n in range(self._count, self._count + len(taken) + 1) if n not in taken)
        price = self._price(head)
        self._check_funds(gas * price.fee + wish.value)
        transaction = self._sign(wish, nonce, target, calldata, gas, price, head)
        self._outbox.sign(transaction)
        self._send(transaction, head)

    # --- what became of it

    def _look(self, wish: Wish, nonce: int, head: "BlockData") -> None:
        """Its nonce is used: by whichever of its transactions, or by none."""
        deep = head["number"] - self._settings.confirmations
        found = self._find(wish)
        if found is None:
            if wish.state == "mined":
                self._outbox.unmined(wish)
            # first the nonces that no reorganisation frees, then the receipts: what is missing then is missing for good
            if nonce >= self._settled(deep) or (found := self._find(wish)) is not None:
                return
            log.warning(
                "nonce %d of %s was used by another program: the key has to be this node's alone.", nonce, self._account
            )
            self._outbox.release(wish, "its nonce was used by another transaction", failed=False)
            return
        hash_, receipt = found
        if receipt["status"]:
            self._outbox.mined(wish, hash_, receipt["blockNumber"], done=receipt["blockNumber"] <= deep)
        elif receipt["blockNumber"] <= deep:
            self._outbox.release(wish, "failed in its block", failed=True)
            if wish.attempts + 1 >= self._settings.max_attempts:
                self._outbox.end(wish, "refused", f"failed in a block {wish.attempts + 1} times")

    def _find(self, wish: Wish) -> "tuple[str, TxReceipt] | None":
        for one in reversed(self._outbox.transactions(wish)):
            if found := eth.receipt(self._w3, one.hash):
                return one.hash, found
        return None

    def _settled(self, deep: int) -> int:
        """How many transactions of the account no reorganisation undoes."""
        return self._w3.eth.get_transaction_count(self._account, deep) if deep >= 0 else 0

    # --- sending

    def _offer(self, wish: Wish, head: "BlockData") -> None:
        newest = self._outbox.transactions(wish)[-1]
        first = newest.nonce == self._count
        age = head["number"] - newest.head
        if first and (age >= self._settings.bump_blocks or age < -_FAR):
            newest = self._bump(wish, newest, head) or newest
        block, at = self._tried.get(newest.hash, ("", 0.0))
        if block == head["hash"].to_0x_hex() and self._clock() - at < self._settings.retry_seconds:
            return
        if not self._send(newest, head) and first:
            dearer = self._bump(wish, newest, head)
            if dearer:
                self._send(dearer, head)

    def _send(self, transaction: Transaction, head: "BlockData") -> bool:
        """Whether the endpoint did not call it too cheap. Everything else that it may say is of no consequence."""
        self._tried[transaction.hash] = (head["hash"].to_0x_hex(), self._clock())
        try:
            self._w3.eth.send_raw_transaction(transaction.raw)
        except Refused as error:
            words = error.words.lower()
            if not any(one in words for one in ("known", "imported", "nonce")):
                log.info("the endpoint does not take transaction %s: %s.", transaction.hash, error.words)
            return (
                not any(one in words for one in ("underpriced", "too low", "less than block base fee"))
                or "nonce" in words
            )
        return True

    def _bump(self, wish: Wish, old: Transaction, head: "BlockData") -> Transaction | None:
        """The same with the same nonce at a price that replaces it (10 % more, by custom); None if that is too dear."""
        now = self._price(head)
        if now.fee == 0 or (now.tip is None) != (old.tip is None):
            return None
        fee = max(now.fee, old.fee + old.fee // 8 + 1)
        tip = None if old.tip is None else max(now.tip or 0, old.tip + old.tip // 8 + 1)
        if fee > self._settings.max_fee or (tip or 0) > self._settings.max_tip:
            self._hold("transaction %s stays in line: a higher fee is above this node's limit.", old.hash)
            return None
        try:
            self._check_funds(old.gas * (fee - old.fee))
        except InsufficientFunds as error:
            self._hold("transaction %s stays in line: %s", old.hash, error)
            return None
        self._held = False
        new = self._sign(wish, old.nonce, old.target, old.calldata, old.gas, Price(fee, tip), head)
        self._outbox.sign(new)
        return new

    def _hold(self, *said: object) -> None:
        """Warns of the first in a row: what is too dear now is so for many blocks."""
        log.log(logging.DEBUG if self._held else logging.WARNING, *said)
        self._held = True

    def _sign(
        self, wish: Wish, nonce: int, target: str, calldata: bytes, gas: int, price: Price, head: "BlockData"
    ) -> Transaction:
        signed = sign(self._identity, self._chain_id, nonce, target, calldata, gas, price, wish.value)
        return Transaction(
            signed.hash, wish.id, nonce, target, calldata, gas, price.fee, price.tip, signed.raw, head["number"]
        )

    # --- money

    def _price(self, head: "BlockData") -> Price:
        if self._known_price is None or self._known_price[0] != head["hash"].to_0x_hex():
            limits = (self._settings.max_fee, self._settings.max_tip)
            self._known_price = (head["hash"].to_0x_hex(), ask_price(self._w3, self._account, head, *limits))
        return self._known_price[1]

    def _check_funds(self, wanted: int) -> None:
        """Raises InsufficientFunds unless the account can pay this on top of all that is in flight."""
        if wanted == 0:
            return
        for wish in self._outbox.in_flight():
            newest = self._outbox.transactions(wish)[-1]
            wanted += newest.gas * newest.fee + wish.value if newest.nonce >= self._count else 0
        there = self._w3.eth.get_balance(self._account)
        if there < wanted:
            raise InsufficientFunds(
                f"the account {self._account} has {there / 10**18:.6f} coins, and what it wants to send may take"
                f" {wanted / 10**18:.6f}: send it some."
            )
