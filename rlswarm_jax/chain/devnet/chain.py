"""The chain itself, on py-evm's classes: it makes a block of each transaction, and answers for the state after any.

Whoever calls it is alone: the server's one thread, or a test. A block is on disk before anyone hears of it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import rlp
from eth._utils.address import generate_contract_address
from eth.abc import BlockHeaderAPI, ComputationAPI, MessageAPI, SignedTransactionAPI
from eth.chains.base import Chain as BaseChain
from eth.constants import SECPK1_N
from eth.db.schema import SchemaV1
from eth.exceptions import HeaderNotFound, PyEVMError, UnrecognizedTransactionType
from eth.vm.forks.berlin.transactions import calculate_txn_intrinsic_gas_berlin
from eth.vm.forks.prague import PragueState, PragueVM
from eth.vm.forks.prague.blocks import PragueBlockHeader
from eth.vm.forks.prague.state import PragueTransactionExecutor
from eth.vm.forks.prague.transactions import PragueTransactionBuilder
from eth.vm.interrupt import EVMMissingData
from eth.vm.message import Message
from eth_hash.auto import keccak
from eth_keys.exceptions import BadSignature
from eth_utils import ValidationError

from rlswarm_jax.chain.devnet import CHAIN_ID, views
from rlswarm_jax.chain.devnet.errors import INTERNAL_ERROR, INVALID_PARAMS, DevnetError, RpcError
from rlswarm_jax.chain.devnet.journal import SAVE_EVERY, Journal, Nodes
from rlswarm_jax.chain.devnet.views import Block

GAS_LIMIT = 30_000_000
MAX_BYTES = 131_072  # of a transaction, as in other nodes' pools
MAX_CODE = 49_152  # bytes of a creation's code (EIP-3860)


class Genesis(NamedTuple):
    """What a new chain starts from. base_fee: wei per gas, of every block. balances: wei by address."""

    base_fee: int = 0
    gas_limit: int = GAS_LIMIT
    balances: dict[bytes, int] = {}  # noqa: RUF012 - never changed


@dataclass(frozen=True)
class Call:
    """A transaction that nobody signed, under the names that py-evm's executor wants. Fees: wei per gas."""

    sender: bytes
    to: bytes
    gas: int
    value: int
    data: bytes
    max_fee_per_gas: int
    max_priority_fee_per_gas: int
    access_list: tuple[tuple[bytes, tuple[int, ...]], ...] = ()
    nonce: int = 0
    type_id: int = 2

    @property
    def intrinsic_gas(self) -> int:
        return calculate_txn_intrinsic_gas_berlin(self)


class _Executor(PragueTransactionExecutor):
    def build_evm_message(self, transaction: Any) -> MessageAPI:
        """As the parent does for types 0 to 2, less a costly description for a log that nobody reads."""
        state, sender, gas = self.vm_state, transaction.sender, transaction.gas - transaction.intrinsic_gas
        state.delta_balance(sender, -transaction.gas * state.get_gas_price(transaction))
        nonce = state.get_nonce(sender)
        state.set_nonce(sender, nonce + 1)
        if not transaction.to:
            created = generate_contract_address(sender, nonce)
            return Message(
                gas, transaction.to, sender, transaction.value, b"", transaction.data, create_address=created
            )
        code, delegation = self.get_code_at_address(transaction.to)
        fields = gas, transaction.to, sender, transaction.value, transaction.data, code
        return Message(*fields, is_delegation=delegation is not None)

    def __call__(self, transaction: Any) -> ComputationAPI:
        """Without the checks of a transaction: they were made, or it is a call."""
        computation = self.build_computation(self.build_evm_message(transaction), transaction)
        self.finalize_computation(transaction, computation)
        self.vm_state.clear_transient_storage()
        return computation


class _State(PragueState):
    transaction_executor_class = _Executor

    def set_system_contracts(self) -> None:
        """The beacon chain's are not deployed."""


class _VM(PragueVM):
    _state_class = _State


class _Chain(BaseChain):
    chain_id = CHAIN_ID
    vm_configuration = ((0, _VM),)


class Chain:
    """head: of the newest block. tick: least seconds between the timestamps of two blocks; 0 lets them be equal.

    genesis: used if the journal is empty. replayed: blocks that were run again to start. Raises DevnetError if the
    journal holds no such chain.
    """

    def __init__(self, journal: Journal, genesis: Genesis, *, tick: int = 1, now: Callable[[], float] = time.time):
        self._journal, self._tick, self._now = journal, tick, now
        self._nodes = Nodes(journal)
        damaged = f"{journal.path} is damaged, begin in an empty folder: "
        try:
            if journal.find("number", "number", 0) is None:
                self._begin(genesis)
            self._chain = _Chain(self._nodes)
            self.head = self._chain.get_canonical_head()
            self._head_hash = self.head.hash
            later = journal.after(self.head.block_number)
            for timestamp, raw, block_hash in later:
                block = self._run(raw, timestamp)
                if block.hash != block_hash:
                    raise RpcError(f"block {block.header.block_number} is another when it is run again")
                self._advance(block)
        except (RpcError, PyEVMError, ValidationError, rlp.exceptions.RLPException) as error:
            raise DevnetError(f"{damaged}{error}.") from None
        self.replayed = len(later)
        if (self.head.base_fee_per_gas, self.head.gas_limit) != genesis[:2]:
            raise DevnetError(
                f"the chain of {journal.path} has a base fee of {self.head.base_fee_per_gas} wei and blocks of"
                f" {self.head.gas_limit} gas: start it with these, or in an empty folder."
            )
        poor = [one.hex() for one in genesis.balances if not self.state(self.head).get_balance(one)]
        if poor:
            raise DevnetError(f"0x{poor[0]} has nothing on the chain of {journal.path}: only a new one gives ether.")

    def _begin(self, genesis: Genesis) -> None:
        fields = {
            "difficulty": 0,
            "gas_limit": genesis.gas_limit,
            "base_fee_per_gas": genesis.base_fee,
            "timestamp": int(self._now()),
            "extra_data": b"rlswarm_jax devnet",
            "mix_hash": keccak(b"rlswarm_jax"),
        }
        account = {"nonce": 0, "code": b"", "storage": {}}
        state = {address: account | {"balance": balance} for address, balance in genesis.balances.items()}
        first = _Chain.from_genesis(self._nodes, fields, state).get_canonical_head()
        self._journal.append(views.first_row(first), self._nodes.added)
        self._nodes.saved()

    def close(self) -> None:
        """Saves the state, so that the next start is quick."""
        with contextlib.suppress(RpcError):
            self._journal.save(self._nodes.added)

    # what happens

    def send(self, raw: bytes) -> bytes:
        """Puts a signed transaction into a block and returns its hash.

        Raises RpcError if it cannot be in one, or cannot be written; then it changed nothing.
        """
        transaction_hash = keccak(raw)
        if self._journal.find("number", "sent_hash", transaction_hash) is not None:
            raise RpcError("already known")
        block = self._run(raw, max(int(self._now()), self.head.timestamp + self._tick))
        full = block.header.block_number % SAVE_EVERY == 0
        self._journal.append(views.row(block, transaction_hash), self._nodes.added if full else {})
        if full:
            self._nodes.saved()
        self._advance(block)
        return transaction_hash

    def _run(self, raw: bytes, timestamp: int) -> Block:
        """The next block. Raises RpcError if the transaction cannot be in it."""
        transaction, parent, parent_hash = decode(raw), self.head, self._head_hash
        header = PragueBlockHeader(
            difficulty=0,
            block_number=parent.block_number + 1,
            gas_limit=parent.gas_limit,
            timestamp=timestamp,
            parent_hash=parent_hash,
            state_root=parent.state_root,
            mix_hash=keccak(parent_hash),
            base_fee_per_gas=parent.base_fee_per_gas,
        )
        vm = self._chain.get_vm(header)
        nonce = vm.state.get_nonce(transaction.sender)
        if transaction.nonce != nonce:
            low = "low" if transaction.nonce < nonce else "high"
            raise RpcError(f"nonce too {low}: next nonce {nonce}, tx nonce {transaction.nonce}")
        _check(vm.state, transaction)
        receipt, computation = vm.apply_transaction(header, transaction)
        vm.state.persist()
        sealed = header.copy(
            state_root=vm.state.state_root,
            transaction_root=_root(raw),
            receipt_root=_root(receipt.encode()),
            bloom=int(receipt.bloom),
            gas_used=receipt.gas_used,
        )
        encoded = rlp.encode(sealed)
        return Block(sealed, keccak(encoded), encoded, raw, transaction, receipt, computation)

    def _advance(self, block: Block) -> None:
        """Writes of the newest header what py-evm's chain would, without its accounts of forks and gaps."""
        number_key = SchemaV1.make_block_number_to_hash_lookup_key(block.header.block_number)
        self._nodes[block.hash], self._nodes[number_key] = block.encoded, rlp.encode(block.hash)
        self._nodes[SchemaV1.make_canonical_head_hash_lookup_key()] = block.hash
        self.head, self._head_hash = block.header, block.hash

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

    def call(self, header: BlockHeaderAPI, call: Call) -> ComputationAPI:
        """What it would do after a block; nothing changes. Without a fee, the block's base fee is 0, too.

        Raises RpcError if its sender can't pay for it, or its gas is below what it costs before it starts.
        """
        state = self.state(header if call.max_fee_per_gas else header.copy(base_fee_per_gas=0))
        _check(state, call)
        try:
            return state.apply_transaction(call)
        except ValidationError as error:
            raise RpcError(f"cannot execute the call: {error}") from None
        except EVMMissingData as error:
            raise RpcError(f"{self._journal.path} is damaged: {error}", INTERNAL_ERROR) from None

    def estimate(self, header: BlockHeaderAPI, call: Call) -> tuple[int, ComputationAPI]:
        """The least gas limit found to do, within 1.5 %, and what comes of it; of one that fails whatever its limit,
        the limit it was given. Raises RpcError as `call` does.
        """

        def fails(gas: int) -> bool:
            return self.call(header, dataclasses.replace(call, gas=gas)).is_error

        outcome = self.call(header, call)
        if outcome.is_error:
            return call.gas, outcome
        spent = call.gas - outcome.get_gas_remaining()
        low, high = max(spent, _least_gas(call)), call.gas
        if not fails(low):
            return low, outcome
        guess = min((spent + 2300) * 64 // 63, high)  # a call keeps a 64th back from what it calls
        while high - low > high * 0.015:
            low, high = (guess, high) if fails(guess) else (low, guess)
            guess = (low + high) // 2
        return high, outcome


def decode(raw: bytes) -> SignedTransactionAPI:
    """The transaction in these bytes. Raises RpcError if it is none of this chain, or nobody's."""
    if len(raw) > MAX_BYTES:
        raise RpcError(f"oversized data: transaction size {len(raw)}, limit {MAX_BYTES}")
    if raw[:1] < b"\x80" and raw[:1] not in (b"\1", b"\2"):  # beside legacy: EIP-2930, EIP-1559
        raise RpcError(
            f"transaction type not supported: 0x{raw[:1].hex()}; this network takes legacy, 1 and 2", INVALID_PARAMS
        )
    try:
        found = PragueTransactionBuilder.decode(raw)
        body = getattr(found, "_inner", found)
        if rlp.encode(type(body).serialize(body)) != raw[raw[0] < 0x80 :]:  # py-evm takes an empty list for a zero
            raise ValidationError("it is not in its only form")
        found.sender  # noqa: B018 - raises if nobody made this signature
    except (ValidationError, BadSignature, UnrecognizedTransactionType, rlp.exceptions.RLPException) as error:
        raise RpcError(
            f"invalid transaction: {' '.join(str(error).split())[:200] or 'malformed'}", INVALID_PARAMS
        ) from None
    except (TypeError, ValueError, OverflowError):  # of a list where bytes belong, of coincurve
        raise RpcError("invalid transaction: malformed", INVALID_PARAMS) from None
    if found.chain_id is None:
        raise RpcError("only replay-protected (EIP-155) transactions allowed over RPC")
    if found.chain_id != CHAIN_ID:
        raise RpcError(f"invalid chain id for signer: have {found.chain_id} want {CHAIN_ID}")
    if found.s > SECPK1_N // 2:
        raise RpcError("invalid sender: the signature's s is out of range")
    return found


def _root(item: bytes) -> bytes:
    """Of the trie that has just one item, at index 0: a leaf at the path of rlp(0) = 0x80."""
    return keccak(rlp.encode([b"\x20\x80", item]))


def _least_gas(transaction: Any) -> int:
    """The smallest limit with which it may be in a block: with EIP-3860's words, and EIP-7623's floor."""
    words = 2 * ((len(transaction.data) + 31) // 32) if not transaction.to else 0
    return max(transaction.intrinsic_gas + words, _Executor.calc_data_floor_gas(transaction, 0, 0))


def _check(state: _State, transaction: Any) -> None:
    """Raises RpcError if its sender cannot pay for it, or no block could have it."""
    gas, fee, least = transaction.gas, transaction.max_fee_per_gas, _least_gas(transaction)
    if not transaction.to and len(transaction.data) > MAX_CODE:
        raise RpcError(f"max initcode size exceeded: code size {len(transaction.data)}, limit {MAX_CODE}")
    if gas > state.gas_limit:
        raise RpcError(f"exceeds block gas limit: gas {gas}, limit {state.gas_limit}")
    if gas < least:
        raise RpcError(f"intrinsic gas too low: gas {gas}, minimum needed {least}")
    if transaction.max_priority_fee_per_gas > fee:
        raise RpcError(f"max priority fee per gas higher than max fee per gas: more than {fee}")
    if fee < state.base_fee:
        raise RpcError(f"max fee per gas less than block base fee: maxFeePerGas: {fee}, baseFee: {state.base_fee}")
    balance, cost = state.get_balance(transaction.sender), gas * fee + transaction.value
    if balance < cost:
        raise RpcError(f"insufficient funds for gas * price + value: balance {balance}, tx cost {cost}")
