"""One transaction now, for a program that waits for it: deploying, naming bootnodes, relaying registrations.

A node's own transactions go through its outbox instead, which survives a restart. The key must not be that of a node
that is running: both would use the same nonces.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import rlp
from eth_utils import keccak, to_checksum_address

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.errors import ChainError, EndpointDown, InsufficientFunds, MalformedAnswer, NotMined, Refused
from rlswarm_jax.chain.library import web3
from rlswarm_jax.chain.settings import GWEI, Settings
from rlswarm_jax.chain.signing import Price, Signed, ask_price, sign
from rlswarm_jax.identity import Identity

if TYPE_CHECKING:
    from web3.types import TxReceipt

log = logging.getLogger("rlswarm_jax.chain")

_FIRST_LOOK, _LAST_LOOK = 0.05, 2.0  # seconds from one look at a receipt to the next, doubling
MAX_GAS = 12_000_000  # of a transaction: a deployment takes 5 million


class Payer(NamedTuple):
    """Who pays, where. settings: its limits max_fee and max_tip hold. patience: seconds until a block must have it."""

    w3: web3.Web3
    identity: Identity
    chain_id: int
    settings: Settings = Settings()
    patience: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def account(self) -> str:
        return calls.account_of(self.identity.author)


class Mined(NamedTuple):
    """A transaction that succeeded. gas: used; paid: wei. created: address of the contract that it would make."""

    hash: str
    block: int
    gas: int
    paid: int
    created: str


def transact(payer: Payer, target: str | None, calldata: bytes, what: str, gas: int | None = None) -> Mined:
    """Sends a transaction and waits for its block; target None: it makes a contract. what: in words, for the log.

    gas: of a call whose estimate would mislead. Once it is sent, an endpoint that is away is asked again.
    Raises Reverted if it would fail, and before anything is sent InsufficientFunds, Refused, EndpointDown,
    MalformedAnswer; NotMined if it fails in its block, or if patience ends.
    """
    if gas is None:
        asked = {"from": payer.account, "data": calldata} | ({"to": target} if target else {})
        estimate = payer.w3.eth.estimate_gas(asked)
        gas = estimate + estimate // 4 + 30_000
    if gas > MAX_GAS:
        raise ChainError(f"the endpoint asks {gas:,} gas for {what}, where at most {MAX_GAS:,} are sensible.")
    price = _affordable(payer, gas, what)
    nonce = payer.w3.eth.get_transaction_count(payer.account)
    signed = sign(payer.identity, payer.chain_id, nonce, target, calldata, gas, price)
    receipt = _hand_in(payer, signed, what)
    if not receipt["status"]:
        raise NotMined(f"transaction {signed.hash} ({what}) failed in block {receipt['blockNumber']}: try again.")
    created = keccak(rlp.encode([bytes.fromhex(payer.account[2:]), nonce]))[12:]
    paid = receipt["gasUsed"] * receipt["effectiveGasPrice"]
    return Mined(signed.hash, receipt["blockNumber"], receipt["gasUsed"], paid, to_checksum_address(created))


def _affordable(payer: Payer, gas: int, what: str) -> Price:
    head = payer.w3.eth.get_block("latest")
    limits, base = (payer.settings.max_fee, payer.settings.max_tip), head.get("baseFeePerGas")
    price = ask_price(payer.w3, payer.account, head, *limits)
    if base is not None and price.fee < base:
        raise ChainError(f"the base fee is {base / GWEI:.3f} gwei, above the limit of {limits[0] / GWEI:g}: try later.")
    there = payer.w3.eth.get_balance(payer.account) if price.fee else 0
    if there < gas * price.fee:
        raise InsufficientFunds(
            f"the account {payer.account} has {there / 10**18:.6f} coins, and {what} may take"
            f" {gas * price.fee / 10**18:.6f}: send it some."
        )
    return price


def _hand_in(payer: Payer, signed: Signed, what: str) -> "TxReceipt":
    """Sends it, again if the endpoint was away, until it is in a block."""
    until, wait, tried, sent = payer.clock() + payer.patience, _FIRST_LOOK, False, False
    while True:
        try:
            if not sent:
                _send(payer.w3, signed, tried)
                sent = True
                log.info("sent %s: transaction %s.", what, signed.hash)
            if receipt := eth.receipt(payer.w3, signed.hash):
                return receipt
        except (EndpointDown, MalformedAnswer) as error:  # also what a proxy says while the server is away
            log.info("%s", error)
        tried = True
        if payer.clock() >= until:
            raise NotMined(
                f"transaction {signed.hash} ({what}) is in no block after {payer.patience:g} s, but may still come:"
                " look for it before you try again."
            )
        payer.sleep(wait)
        wait = min(2 * wait, _LAST_LOOK)


def _send(w3: web3.Web3, signed: Signed, again: bool) -> None:
    """Raises Refused, but not if it may have been taken before, which a receipt will tell."""
    try:
        w3.eth.send_raw_transaction(signed.raw)
    except Refused as error:
        if not again and not any(word in error.words.lower() for word in ("known", "imported")):
            raise
