"""The chain itself, on py-evm's classes: it makes a block of each transaction, and answers for the state after any.

Whoever calls it is alone: the server's one thread, or a test. A block is on disk before anyone hears of it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import rlp
from eth.abc import BlockHeaderAPI, ComputationAPI, SignedTransactionAPI
from eth.chains.base import Chain as BaseChain
from eth.db.schema import SchemaV1
from eth.exceptions import HeaderNotFound, PyEVMError, UnrecognizedTransactionType
from eth.vm.forks.prague import PragueState, PragueVM
from eth.vm.forks.prague.blocks import PragueBlockHeader
from eth.vm.forks.prague.state import PragueTransactionExecutor
from eth.vm.forks.prague.transactions import PragueTransactionBuilder
from eth.vm.spoof import SpoofTransaction
from eth_keys.exceptions import BadSignature
from eth_utils import ValidationError, keccak

from rlswarm_jax.chain.devnet import CHAIN_ID, FUNDS, views
from rlswarm_jax.chain.devnet.errors import INVALID_PARAMS, DevnetError, RpcError
from rlswarm_jax.chain.devnet.store import Store

GAS_LIMIT = 30_000_000
MAX_BYTES = 131_072  # of a transaction, as in other nodes' pools
_MALFORMED = (
    *(ValidationError, BadSignature, UnrecognizedTransactionType, rlp.exceptions.RLPException),
    *(TypeError, ValueError, OverflowError),  # of a list where bytes belong, of coincurve
)


class _State(PragueState):
    def set_system_contracts(self) -> None:
        """The beacon chain's are not deployed."""


class _VM(PragueVM):
    _state_class = _State


class _Chain(BaseChain):
    chain_id = CHAIN_ID
    vm_configuration = ((0, _VM),)


class Chain:
    """head: of the newest block. funded: accounts that have coins in a chain that begins here.

    Raises DevnetError if the store holds no such chain.
    """

    def __init__(self, store: Store, *, now: Callable[[], float] = time.time, funded: Sequence[str] = ()):
        self._store, self._now = store, now
        try:
            if store.find("number", "number", 0) is None:
                self._begin(funded)
            self._chain = _Chain(store)
            self.head = self._chain.get_canonical_head()
        except (RpcError, PyEVMError, ValidationError, rlp.exceptions.RLPException) as error:
            raise DevnetError(f"{store.path} is damaged, begin in an empty folder: {error}.") from None

    def _begin(self, funded: Sequence[str]) -> None:
        fields = {"difficulty": 0, "gas_limit": GAS_LIMIT, "base_fee_per_gas": 0, "timestamp": int(self._now())}
        account: Any = {"balance": FUNDS, "nonce": 0, "code": b"", "storage": {}}
        state: Any = {bytes.fromhex(one[2:]): account for one in funded}
        with self._store.writing() as rows:
            rows.append(views.first_row(_Chain.from_genesis(self._store, fields, state).get_canonical_head()))

    # what happens

    def send(self, raw: bytes) -> bytes:
        """Puts a signed transaction into a block and returns its hash.

        Raises RpcError if it cannot be in one, or cannot be written; then it changed nothing.
        """
        transaction, sent_hash, parent = decode(raw), keccak(raw), self.head
        if self._store.find("number", "sent_hash", sent_hash) is not None:
            raise RpcError("already known")
        header = PragueBlockHeader(
            difficulty=0,
            block_number=parent.block_number + 1,
            gas_limit=GAS_LIMIT,
            timestamp=max(int(self._now()), parent.timestamp),
            parent_hash=parent.hash,
            state_root=parent.state_root,
            mix_hash=keccak(parent.hash),
            base_fee_per_gas=0,
        )
        with self._store.writing() as rows:
            vm = self._chain.get_vm(header)
            nonce = vm.state.get_nonce(transaction.sender)
            if transaction.nonce != nonce:
                low = "low" if transaction.nonce < nonce else "high"
                raise RpcError(f"nonce too {low}: next nonce {nonce}, tx nonce {transaction.nonce}")
            _check_gas(transaction)
            if (
                vm.state.get_balance(transaction.sender)
                < transaction.gas * transaction.max_fee_per_gas + transaction.value
            ):
                raise RpcError("insufficient funds for gas * price + value: gas costs nothing here, and few have coins")
            try:
                receipt, computation = vm.apply_transaction(header, transaction)
            except ValidationError as error:
                raise RpcError(f"invalid transaction: {_line(error)}") from None
            vm.state.persist()
            sealed = header.copy(
                state_root=vm.state.state_root,
                transaction_root=_root(raw),
                receipt_root=_root(receipt.encode()),
                bloom=int(receipt.bloom),
                gas_used=receipt.gas_used,
            )
            self._enter(sealed)
            rows.append(views.row(sealed, transaction, sent_hash, receipt, computation))
        self.head = sealed
        return sent_hash

    def _enter(self, header: BlockHeaderAPI) -> None:
        """What py-evm's chain writes of its newest header, without its accounts of forks and gaps."""
        number_key = SchemaV1.make_block_number_to_hash_lookup_key(header.block_number)
        self._store[header.hash], self._store[number_key] = rlp.encode(header), rlp.encode(header.hash)
        self._store[SchemaV1.make_canonical_head_hash_lookup_key()] = header.hash

    # what is so

    def header(self, number: int) -> BlockHeaderAPI:
        """Raises RpcError if there is no such block."""
        if number == self.head.block_number:
            return self.head
        try:
            return self._chain.get_canonical_block_header_by_number(number)
        except HeaderNotFound:
            raise RpcError(f"block {number} not found: the newest is {self.head.block_number}") from None

    def state(self, header: BlockHeaderAPI) -> _State:
        """After a block, as if in it."""
        return self._chain.get_vm(header).state

    def call(self, header: BlockHeaderAPI, sender: bytes, call: dict[str, Any]) -> ComputationAPI:
        """What it would do after a block; nothing changes. call: to, gas, value and data, which nobody signed.

        Raises RpcError if it could be in no block.
        """
        vm = self._chain.get_vm(header)
        unsigned = vm.create_unsigned_transaction(nonce=vm.state.get_nonce(sender), gas_price=0, **call)
        _check_gas(unsigned)
        try:
            return vm.state.apply_transaction(SpoofTransaction(unsigned, from_=sender))
        except ValidationError as error:
            raise RpcError(f"cannot execute the call: {_line(error)}") from None

    def estimate(self, header: BlockHeaderAPI, sender: bytes, call: dict[str, Any]) -> tuple[int, ComputationAPI]:
        """The least gas limit found to do, within 1.5 %, and what comes of it; of one that fails whatever its limit,
        the limit it was given. Raises RpcError as `call` does.
        """

        def fails(gas: int) -> bool:
            try:
                return self.call(header, sender, call | {"gas": gas}).is_error
            except RpcError:  # below what it costs before it starts
                return True

        outcome, high = self.call(header, sender, call), call["gas"]
        low = spent = high - outcome.get_gas_remaining()
        guesses = [spent, spent * 64 // 63 + 2300]  # a call keeps a 64th back from what it calls
        while high - low > high * 0.015 and not outcome.is_error:
            guess = min(guesses.pop(0) if guesses else (low + high) // 2, high)
            low, high = (guess, high) if fails(guess) else (low, guess)
        return high, outcome


def decode(raw: bytes) -> SignedTransactionAPI:
    """The transaction in these bytes. Raises RpcError if it is none of this chain, or nobody's."""
    if len(raw) > MAX_BYTES:
        raise RpcError(f"oversized data: transaction size {len(raw)}, limit {MAX_BYTES}")
    if raw[:1] < b"\x80" and raw[:1] not in (b"\1", b"\2"):  # beside legacy: EIP-2930, EIP-1559
        raise RpcError(f"transaction type not supported: 0x{raw[:1].hex()}", INVALID_PARAMS)
    try:
        found = PragueTransactionBuilder.decode(raw)
        body = getattr(found, "_inner", found)
        if rlp.encode(type(body).serialize(body)) != raw[raw[0] < 0x80 :]:  # py-evm takes an empty list for a zero
            raise ValidationError("it is not in its only form")
        found.sender  # noqa: B018 - raises if nobody made this signature
    except _MALFORMED as error:
        raise RpcError(f"invalid transaction: {_line(error)}", INVALID_PARAMS) from None
    if found.chain_id != CHAIN_ID:
        raise RpcError(f"invalid chain id for signer: have {found.chain_id} want {CHAIN_ID}")
    return found


def _check_gas(transaction: Any) -> None:
    """What py-evm leaves to others: EIP-2028 and EIP-3860 of data, and EIP-7623's floor. Raises RpcError."""
    words = 0 if transaction.to else -(-len(transaction.data) // 32)
    floor = PragueTransactionExecutor.calc_data_floor_gas(transaction, 0, 0)
    least = max(transaction.intrinsic_gas + 2 * words, floor)
    if transaction.gas < least:
        raise RpcError(f"intrinsic gas too low: gas {transaction.gas}, minimum needed {least}")


def _root(item: bytes) -> bytes:
    """Of the trie that has just one item, at index 0: a leaf at the path of rlp(0) = 0x80."""
    return keccak(rlp.encode([b"\x20\x80", item]))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "malformed"
