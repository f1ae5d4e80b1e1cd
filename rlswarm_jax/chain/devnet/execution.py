"""What a transaction or a call does to the state: py-evm's rules of the Prague fork, without its chain of blocks."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from eth._utils.address import generate_contract_address
from eth.abc import ComputationAPI, MessageAPI
from eth.db.backends.base import BaseAtomicDB
from eth.exceptions import Revert
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.prague.state import PragueState, PragueTransactionExecutor
from eth.vm.message import Message

from rlswarm_jax.chain.devnet.transaction import CREATE, Transaction

COINBASE = bytes(20)


class Place(NamedTuple):
    """What a contract sees of the block it runs in. timestamp: seconds. base_fee: wei per gas."""

    number: int
    timestamp: int
    randomness: bytes
    gas_limit: int
    base_fee: int


class Outcome(NamedTuple):
    """gas_used: after the refund; gas_spent: before it, the least limit that can do. output: what was returned, the
    reason of a revert included. error: None if it did what it should. created: the new contract's address.
    """

    gas_used: int
    gas_spent: int
    output: bytes
    error: str | None
    reverted: bool
    created: bytes | None
    logs: tuple[tuple[bytes, tuple[int, ...], bytes], ...]


class _Executor(PragueTransactionExecutor):
    def build_evm_message(self, transaction: Any) -> MessageAPI:
        """As the parent does, less a description for a log that nobody reads and that took a tenth of the time."""
        state, sender = self.vm_state, transaction.sender
        state.delta_balance(sender, -transaction.gas * state.get_gas_price(transaction))
        nonce = state.get_nonce(sender)
        state.set_nonce(sender, nonce + 1)
        gas, value = transaction.gas - transaction.intrinsic_gas, transaction.value
        if transaction.to == CREATE:
            address = generate_contract_address(sender, nonce)
            return Message(gas, CREATE, sender, value, b"", transaction.data, create_address=address)
        code, delegation = self.get_code_at_address(transaction.to)
        is_delegation = delegation is not None
        return Message(gas, transaction.to, sender, value, transaction.data, code, is_delegation=is_delegation)

    def run(self, transaction: Transaction) -> ComputationAPI:
        """Without the checks of a transaction's nonce, funds and limits: they were made, or it is a call."""
        message = self.build_evm_message(transaction)
        computation = self.build_computation(message, transaction)
        self.finalize_computation(transaction, computation)
        self.vm_state.clear_transient_storage()
        return computation


class State(PragueState):
    """The accounts after some block, open for one transaction. The beacon's system contracts are not deployed."""

    transaction_executor_class = _Executor

    def set_system_contracts(self) -> None:
        pass


def open_state(nodes: BaseAtomicDB, root: bytes, place: Place, chain_id: int, ancestors: Iterable[bytes]) -> State:
    """ancestors: hashes of the blocks before this one, newest first; read only as far as a contract asks."""
    context = ExecutionContext(
        COINBASE,
        place.timestamp,
        place.number,
        0,
        place.randomness,
        place.gas_limit,
        ancestors,
        chain_id,
        place.base_fee,
        0,
    )
    return State(nodes, context, root)


def run(state: State, transaction: Transaction) -> Outcome:
    """Executes it, whoever signed it. The sender can pay, or the fees are 0 and so is the place's base fee."""
    state.lock_changes()
    computation = _Executor(state).run(transaction)
    spent = transaction.gas - computation.get_gas_remaining()
    refund = min(computation.get_gas_refund(), spent // 5)
    failed = computation.is_error
    return Outcome(
        gas_used=spent - refund + computation.data_floor_gas,
        gas_spent=spent,
        output=computation.output,
        error=str(computation.error) or type(computation.error).__name__ if failed else None,
        reverted=failed and isinstance(computation.error, Revert),
        created=computation.msg.storage_address if transaction.to == CREATE and not failed else None,
        logs=() if failed else computation.get_log_entries(),
    )
