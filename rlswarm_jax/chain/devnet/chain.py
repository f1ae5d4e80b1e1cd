"""The chain itself: takes transactions, makes a block of each, and answers for the state after any of its blocks.

Whoever calls it is alone: the server's one thread, or a test. A block is on disk before anyone hears of it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import rlp
from eth.vm.interrupt import EVMMissingData
from eth_hash.auto import keccak
from eth_utils import ValidationError

from rlswarm_jax.chain.devnet import CHAIN_ID, views
from rlswarm_jax.chain.devnet.errors import INTERNAL_ERROR, INVALID_PARAMS, DevnetError, RpcError
from rlswarm_jax.chain.devnet.execution import Outcome, Place, State, open_state, run
from rlswarm_jax.chain.devnet.header import EMPTY_ROOT, Header, parse
from rlswarm_jax.chain.devnet.nodes import Nodes
from rlswarm_jax.chain.devnet.store import BlockRow, Included, LogRow, Store
from rlswarm_jax.chain.devnet.transaction import CREATE, Transaction, decode

GAS_LIMIT = 30_000_000
MAX_CODE = 49_152  # bytes of a creation's code (EIP-3860)
MAX_QUEUED = 1024  # transactions that wait for an earlier nonce, of all senders
MAX_SNAPSHOTS = 1024


class Genesis(NamedTuple):
    """What a new chain starts from. base_fee: wei per gas, of every block. balances: wei by address."""

    base_fee: int = 0
    gas_limit: int = GAS_LIMIT
    balances: dict[bytes, int] = {}  # noqa: RUF012 - never changed


class Chain:
    """version: a number that changes whenever an answer may change. head: of the newest block.

    tick: least seconds between the timestamps of two blocks; 0 lets them be equal. genesis: used if the store is
    empty. Raises DevnetError if the store holds no such chain.
    """

    def __init__(self, store: Store, genesis: Genesis, *, tick: int = 1, now: Callable[[], float] = time.time):
        self._store, self._tick, self._now = store, tick, now
        self._nodes = Nodes(store)
        self._snapshots: dict[int, int] = {}
        self._snapshot = 0
        self.version = 0
        self._queue: dict[bytes, Transaction] = {}
        try:
            self._open(genesis)
            for raw in store.queue():
                waiting = decode(raw, CHAIN_ID)
                self._queue[waiting.hash] = waiting
            for sender in {one.sender for one in self._queue.values()}:
                self._promote(sender)
        except RpcError as error:
            raise DevnetError(f"cannot go on from {store.path}, it is damaged: {error}.") from None
        except msgspec.DecodeError:
            raise DevnetError(f"{store.path} is damaged: its clock is unreadable; use an empty folder.") from None

    def _open(self, genesis: Genesis) -> None:
        self._offset, self._next_timestamp = msgspec.json.decode(self._store.meta("clock") or "[0, null]")
        found = self._store.head()
        if found is None:
            place = Place(0, int(self._now()), keccak(b"rlswarm_jax"), genesis.gas_limit, genesis.base_fee)
            state = open_state(self._nodes, EMPTY_ROOT, place, CHAIN_ID, ())
            for address, balance in sorted(genesis.balances.items()):
                state.set_balance(address, balance)
            self._append(self._seal(state, place, bytes(32)), "genesis")
            return
        _, block_hash, encoded = found
        if keccak(encoded) != block_hash:
            raise DevnetError(f"{self._store.path} is damaged: its newest block's hash is wrong; use an empty folder.")
        self.head = parse(encoded)
        if self.head.state_root != EMPTY_ROOT and self.head.state_root not in self._nodes:
            raise DevnetError(f"{self._store.path} is damaged: its newest state is missing; use an empty folder.")
        if (self.head.base_fee, self.head.gas_limit) != genesis[:2]:
            raise DevnetError(
                f"the chain of {self._store.path} has a base fee of {self.head.base_fee} wei and blocks of"
                f" {self.head.gas_limit} gas: start it with these, or in an empty folder."
            )

    # what happens

    def send(self, raw: bytes) -> bytes:
        """Takes a signed transaction and returns its hash. It is in a block then, or waits for an earlier nonce.

        Raises RpcError if it is refused; then it changed nothing.
        """
        transaction = decode(raw, CHAIN_ID)
        if transaction.hash in self._queue:
            self._promote(transaction.sender)
            raise RpcError("already known")
        if self._store.transaction(transaction.hash):
            raise RpcError("already known")
        place, state = self._next()
        nonce = self._admit(state, transaction)
        if transaction.nonce > nonce:
            self._wait(transaction, raw)
        else:
            self._include(state, place, transaction, raw)
            self._promote(transaction.sender)
        return transaction.hash

    def mine(self) -> None:
        """An empty block."""
        place, state = self._next()
        self._append(self._seal(state, place, self.head.hash), "empty")

    def set_balance(self, address: bytes, balance: int) -> None:
        """A block after which the account has this many wei."""
        place, state = self._next()
        state.set_balance(address, balance)
        self._append(self._seal(state, place, self.head.hash), f"balance {address.hex()} {balance}")

    def fund(self, balances: dict[bytes, int]) -> None:
        """Those of the accounts that have nothing get this many wei, a block each."""
        for address, balance in sorted(balances.items()):
            if not self.state(self.head).get_balance(address):
                self.set_balance(address, balance)

    def increase_time(self, seconds: int) -> int:
        """Later blocks are at least this much after the newest one. Returns the shift from the wall clock, seconds."""
        ahead = self.head.timestamp - int(self._now())
        self._set_clock(max(self._offset, ahead) + seconds, self._next_timestamp)
        return self._offset

    def set_next_timestamp(self, timestamp: int) -> None:
        """Of the next block; time goes on from there. Raises RpcError if it isn't after the newest block's."""
        if timestamp < self.head.timestamp + self._tick or timestamp >= 2**63:
            raise RpcError(
                f"Timestamp error: {timestamp} is lower than or equal to previous block's timestamp", INVALID_PARAMS
            )
        self._set_clock(timestamp - int(self._now()), timestamp)

    def snapshot(self) -> int:
        """An id to come back here with `revert`, until the process ends."""
        if len(self._snapshots) >= MAX_SNAPSHOTS:
            raise RpcError(f"there are {MAX_SNAPSHOTS} snapshots already: revert to one")
        self._snapshot += 1
        self._snapshots[self._snapshot] = self.head.number
        return self._snapshot

    def revert(self, snapshot: int) -> bool:
        """Drops the blocks since a snapshot, and it and later snapshots; False if there is no such."""
        number = self._snapshots.get(snapshot)
        if number is None:
            return False
        self._store.drop_after(number)
        self._snapshots = {one: at for one, at in self._snapshots.items() if one < snapshot}
        self.head = self.header(number)
        self._queue.clear()
        self.version += 1
        return True

    # what is so

    def header(self, number: int) -> Header:
        """Raises RpcError if there is no such block."""
        encoded = self._store.header(number)
        if encoded is None:
            raise RpcError(f"block {number} not found: the newest is {self.head.number}")
        return parse(encoded)

    def headers(self, first: int, last: int) -> list[Header]:
        return [parse(encoded) for encoded in self._store.headers(first, last)]

    def number_of(self, block_hash: bytes) -> int | None:
        """Of a block, by its hash; None if there is none."""
        return self._store.number_of(block_hash)

    def state(self, header: Header, base_fee: int | None = None) -> State:
        """After a block, as if in it. base_fee: instead of the block's."""
        fee = header.base_fee if base_fee is None else base_fee
        place = Place(header.number, header.timestamp, header.randomness, header.gas_limit, fee)
        return open_state(self._nodes, header.state_root, place, CHAIN_ID, self._ancestors(header.number))

    def call(self, header: Header, transaction: Transaction) -> Outcome:
        """What it would do after a block; nothing changes. Without a fee, the block's base fee is 0, too.

        Raises RpcError if its sender can't pay for it, or its gas is below what it costs before it starts.
        """
        base_fee = header.base_fee if transaction.max_fee_per_gas else 0
        state = self.state(header, base_fee)
        self._check_gas(transaction, base_fee)
        self._check_funds(state, transaction)
        return self._run(state, transaction)

    def estimate(self, header: Header, transaction: Transaction) -> tuple[int, Outcome]:
        """The least gas limit found to do, within 1.5 %, and what comes of it; of one that fails whatever its limit,
        the limit it was given. Raises RpcError as `call` does.
        """
        outcome = self.call(header, transaction)
        if outcome.error:
            return transaction.gas, outcome
        low = max(outcome.gas_spent, transaction.least_gas)
        if not self._with_gas(header, transaction, low).error:
            return low, outcome
        high = transaction.gas
        guess = min((outcome.gas_spent + 2300) * 64 // 63, high)  # a call keeps a 64th back from what it calls
        while high - low > high * 0.015:
            if self._with_gas(header, transaction, guess).error:
                low = guess
            else:
                high = guess
            guess = (low + high) // 2
        return high, outcome

    def waiting(self, transaction_hash: bytes) -> Transaction | None:
        """The transaction, if it waits for an earlier one of its sender."""
        return self._queue.get(transaction_hash)

    # how it is done

    def _ancestors(self, number: int) -> Iterator[bytes]:
        for older in range(number - 1, -1, -1):
            found = self._store.block_hash(older)
            assert found is not None
            yield found

    def _next(self) -> tuple[Place, State]:
        wanted = self._next_timestamp or int(self._now()) + self._offset
        timestamp = max(wanted, self.head.timestamp + self._tick)
        randomness = keccak(self.head.hash)
        place = Place(self.head.number + 1, timestamp, randomness, self.head.gas_limit, self.head.base_fee)
        ancestors = self._ancestors(place.number)
        return place, open_state(self._nodes, self.head.state_root, place, CHAIN_ID, ancestors)

    def _admit(self, state: State, transaction: Transaction) -> int:
        """The sender's nonce. Raises RpcError if the transaction can't be included, now or later."""
        nonce = state.get_nonce(transaction.sender)
        if transaction.nonce < nonce:
            raise RpcError(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        self._check_gas(transaction, self.head.base_fee)
        self._check_funds(state, transaction)
        return nonce

    def _check_gas(self, transaction: Transaction, base_fee: int) -> None:
        if transaction.to == CREATE and len(transaction.data) > MAX_CODE:
            raise RpcError(f"max initcode size exceeded: code size {len(transaction.data)}, limit {MAX_CODE}")
        if transaction.gas > self.head.gas_limit:
            raise RpcError(f"exceeds block gas limit: gas {transaction.gas}, limit {self.head.gas_limit}")
        if transaction.gas < transaction.least_gas:
            least = transaction.least_gas
            raise RpcError(f"intrinsic gas too low: gas {transaction.gas}, minimum needed {least}")
        if transaction.max_fee_per_gas < base_fee:
            fee = transaction.max_fee_per_gas
            raise RpcError(f"max fee per gas less than block base fee: maxFeePerGas: {fee}, baseFee: {base_fee}")

    def _check_funds(self, state: State, transaction: Transaction) -> None:
        balance = state.get_balance(transaction.sender)
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        if balance < cost:
            missing = cost - balance
            raise RpcError(
                f"insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, overshot {missing}"
            )

    def _wait(self, transaction: Transaction, raw: bytes) -> None:
        """Keeps it until its nonce's turn, in place of one of the same nonce that pays a tenth less."""
        place = (transaction.sender, transaction.nonce)
        same = [one for one in self._queue.values() if (one.sender, one.nonce) == place]
        if same and transaction.max_fee_per_gas * 10 < same[0].max_fee_per_gas * 11:
            raise RpcError("replacement transaction underpriced")
        if not same and len(self._queue) >= MAX_QUEUED:
            raise RpcError(f"txpool is full: {MAX_QUEUED} transactions wait for an earlier nonce of their sender")
        self._store.change_queue([(transaction.hash, raw)], [one.hash for one in same])
        for one in same:
            del self._queue[one.hash]
        self._queue[transaction.hash] = transaction
        self.version += 1

    def _promote(self, sender: bytes) -> None:
        """Includes what waited for its sender's next nonce; forgets it if it can't be included any more."""
        waiting = {one.nonce: one for one in self._queue.values() if one.sender == sender}
        while waiting:
            place, state = self._next()
            transaction = waiting.pop(state.get_nonce(sender), None)
            if transaction is None:
                return
            try:
                self._admit(state, transaction)
                self._include(state, place, transaction, self._store.queued(transaction.hash))
            except RpcError as error:
                if error.code == INTERNAL_ERROR:  # the disk: it is tried again when it is sent again
                    return
                with contextlib.suppress(RpcError):
                    self._store.change_queue(removed=[transaction.hash])
            del self._queue[transaction.hash]
            self.version += 1

    def _include(self, state: State, place: Place, transaction: Transaction, raw: bytes) -> None:
        outcome = self._run(state, transaction)
        succeeded = outcome.error is None
        receipt = views.encoded_receipt(transaction, succeeded, outcome.gas_used, outcome.logs)
        header = self._seal(
            state,
            place,
            self.head.hash,
            transactions_root=views.only_item_root(raw),
            receipts_root=views.only_item_root(receipt),
            bloom=views.bloom(outcome.logs),
            gas_used=outcome.gas_used,
        )
        logs = [views.log_view(log, at, transaction.hash, header) for at, log in enumerate(outcome.logs)]
        answer = views.transaction_view(transaction, header)
        receipt_answer = views.receipt_view(transaction, header, succeeded, outcome.created, logs)
        encode = msgspec.json.encode
        rows = [
            LogRow(address, tuple(topic.to_bytes(32) for topic in topics), encode(view))
            for (address, topics, _), view in zip(outcome.logs, logs, strict=True)
        ]
        self._append(header, None, (transaction.hash, raw, encode(answer), encode(receipt_answer)), tuple(rows))

    def _seal(self, state: State, place: Place, parent: bytes, **roots: Any) -> Header:
        """The header of a block with this state after it, whose nodes wait to be written."""
        state.persist()
        fields: dict[str, Any] = {
            "transactions_root": EMPTY_ROOT,
            "receipts_root": EMPTY_ROOT,
            "bloom": bytes(256),
            "gas_used": 0,
        }
        return Header(
            parent_hash=parent,
            state_root=state.state_root,
            **place._asdict() | fields | roots,
        )

    def _append(
        self, header: Header, cause: str | None, transaction: Included | None = None, logs: tuple[LogRow, ...] = ()
    ) -> None:
        """Writes the block, then makes it the head. Raises RpcError if it can't be written; then nothing changed."""
        body = [raw if raw[0] < 0x80 else rlp.decode(raw) for raw in ([transaction[1]] if transaction else [])]
        size = len(rlp.encode([header.fields(), body, [], []]))
        answer = views.block_view(header, size, [transaction[0]] if transaction else [])
        written = False
        try:
            self._store.append(
                BlockRow(
                    header.number,
                    header.hash,
                    header.encoded,
                    cause,
                    msgspec.json.encode(answer),
                    transaction,
                    logs,
                    self._nodes.added,
                )
            )
            written = True
        finally:
            self._nodes.settle(written)
        self.head = header
        self._next_timestamp = None
        self.version += 1

    def _run(self, state: State, transaction: Transaction) -> Outcome:
        try:
            return run(state, transaction)
        except ValidationError as error:
            raise RpcError(f"cannot execute the transaction: {error}") from None
        except EVMMissingData as error:
            raise RpcError(f"{self._store.path} is damaged: {error}", INTERNAL_ERROR) from None

    def _with_gas(self, header: Header, transaction: Transaction, gas: int) -> Outcome:
        return self.call(header, dataclasses.replace(transaction, gas=gas))

    def _set_clock(self, offset: int, next_timestamp: int | None) -> None:
        self._store.set_meta("clock", msgspec.json.encode([offset, next_timestamp]).decode())
        self._offset, self._next_timestamp = offset, next_timestamp
