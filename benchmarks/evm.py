"""A chain within this process with the coordinator on it, and accounts of simulated nodes: for gas and for tests."""

import ast
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import coincurve
from eth_account import Account as Signer
from eth_account.messages import encode_typed_data
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from eth_utils import to_checksum_address
from eth_utils.abi import abi_to_signature, function_signature_to_4byte_selector
from web3 import EthereumTesterProvider, Web3
from web3.logs import DISCARD

from rlswarm_jax.chain import contracts
from rlswarm_jax.identity import Identity, simulated

GAS = 16_000_000
NOBODY = "0x" + 40 * "0"
BEGAN = 4_000_000_000  # seconds: later than now, or a block would be made at the time it is
FAR = 2**32  # a deadline
# root, first and last leaf, their number, state before and after, config
COMMITMENT = (b"\1" * 32, b"\2" * 32, b"\3" * 32, 4, b"\5" * 32, b"\6" * 32, b"\7" * 32)
DEFAULTS = {"minSeconds": 60, "maxSeconds": 600, "quorum": 1, "window": 4, "maxReward": 1_000_000}


class Account(NamedTuple):
    """x, y: of the public key."""

    identity: Identity
    address: str
    x: int
    y: int

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id


def account(identity: Identity) -> Account:
    point = coincurve.PublicKey(identity.author).format(compressed=False)[1:]
    address = to_checksum_address(Web3.keccak(point)[-20:])
    return Account(identity, address, int.from_bytes(point[:32]), int.from_bytes(point[32:]))


def node(index: int) -> Account:
    return account(simulated(0, index))


class Repeatable(PyEVMBackend):
    """The library's, but for the time that it begins at and what it draws for each block: the same calls make the same
    blocks, and beacons, which follow from their hashes.
    """

    def __init__(self) -> None:
        super().__init__(genesis_parameters=self.generate_genesis_params({"timestamp": BEGAN}))
        self._drawn = itertools.count(1)

    def mine_blocks(self, num_blocks: int = 1, coinbase: bytes = bytes(20)) -> tuple[bytes, ...]:
        drawn = itertools.islice(self._drawn, num_blocks)
        fields = {"coinbase": coinbase, "blob_gas_used": 0}
        return tuple(self.chain.mine_block(**fields, mix_hash=n.to_bytes(32, "big")).hash for n in drawn)


class Chain:
    """rules: those of DEFAULTS to change. owner: an address; None for a funded one.

    A block is made for each transaction, as a devnet does.
    """

    def __init__(self, nodes: int = 6, owner: str | None = None, **rules: int):
        self.tester = EthereumTester(Repeatable())
        self.web3 = Web3(EthereumTesterProvider(self.tester))
        self.funded = self.web3.eth.accounts
        self.owner = self.funded[0] if owner is None else owner
        self.nodes = [node(index) for index in range(nodes)]
        for one in self.nodes:
            self.tester.add_account("0x" + one.identity.expose_secret().hex())
            self._mined({"from": self.funded[1], "to": one.address, "value": 10**20, "gas": 21_000})
        artifact = contracts.coordinator()
        errors = [one for one in (*artifact["abi"], *contracts.court()["abi"]) if one["type"] == "error"]
        self._errors = {function_signature_to_4byte_selector(abi_to_signature(e)): e["name"] for e in errors}
        deployment = self._deployment(rules)
        self.deployed = self._mined({"from": self.funded[0], "gas": GAS, "data": deployment})
        address = self.deployed.contractAddress
        self.coordinator = self.web3.eth.contract(address, abi=artifact["abi"], decode_tuples=True)

    def _deployment(self, rules: dict[str, int]) -> Any:
        artifact = contracts.coordinator()
        contract = self.web3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
        return contract.constructor(self.owner, tuple({**DEFAULTS, **rules}.values())).data_in_transaction

    def deployment_refusal(self, **rules: int) -> str | None:
        """The name of the error that a deployment with these rules would be reverted with; None if it would pass."""
        deployment = {"from": self.funded[0], "gas": GAS, "data": self._deployment(rules)}
        return self._refusal(lambda: self.web3.eth.call(deployment))

    def call(self, name: str, *values: Any, sender: str | None = None) -> Any:
        """Asks a view."""
        return self.coordinator.functions[name](*values).call({"from": sender or self.funded[2], "gas": GAS})

    def send(self, sender: str, name: str, *values: Any) -> Any:
        """The receipt of a transaction. Raises AssertionError if it was reverted."""
        data = self.coordinator.functions[name](*values)
        receipt = self.web3.eth.get_transaction_receipt(data.transact({"from": sender, "gas": GAS}))
        assert receipt.status == 1, f"{name} was reverted: {self.refusal(sender, name, *values)}"
        return receipt

    def refusal(self, sender: str, name: str, *values: Any) -> str | None:
        """The name of the error that a transaction would be reverted with; None if it would pass."""
        return self._refusal(lambda: self.call(name, *values, sender=sender))

    def _refusal(self, ask: Callable[[], Any]) -> str | None:
        try:
            ask()
        except TransactionFailed as failed:
            _, _, raw = str(failed).partition("execution reverted: ")
            return self._errors[ast.literal_eval(raw)[:4]]
        return None

    def events(self, receipt: Any, name: str) -> list[dict[str, Any]]:
        """The events of this name in a receipt, in order."""
        return [dict(event.args) for event in self.coordinator.events[name]().process_receipt(receipt, DISCARD)]

    def pass_time(self, seconds: int) -> None:
        """Makes a block that is this much later."""
        self.tester.time_travel(self.web3.eth.get_block("latest").timestamp + seconds)
        self.tester.mine_block()

    def pass_to(self, seconds: int) -> None:
        """Makes a block that is this much after the beginning of the round."""
        self.tester.time_travel(self.call("status").started + seconds)
        self.tester.mine_block()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What is done within leaves no trace."""
        snapshot = self.tester.take_snapshot()
        try:
            yield
        finally:
            self.tester.revert_to_snapshot(snapshot)

    def _mined(self, transaction: Any) -> Any:
        return self.web3.eth.wait_for_transaction_receipt(self.web3.eth.send_transaction(transaction))

    # --- what nodes do

    def register(self, *nodes: Account) -> None:
        for one in nodes:
            self.send(one.address, "register", one.x, one.y)

    def signed(self, one: Account, payout: str = NOBODY, deadline: int = FAR, **domain: Any) -> tuple:
        """A registration as `registerFor` takes it. domain: what differs from the contract's own."""
        usual = {
            "name": "rlswarm_jax coordinator",
            "version": "2",
            "chainId": self.web3.eth.chain_id,
            "verifyingContract": self.coordinator.address,
        }
        fields = (("account", "address"), ("payout", "address"), ("deadline", "uint256"))
        types = {"Register": [{"name": name, "type": type_} for name, type_ in fields]}
        message = {"account": one.address, "payout": payout, "deadline": deadline}
        typed = encode_typed_data(usual | domain, types, message)
        by = Signer.sign_message(typed, one.identity.expose_secret())
        return one.x, one.y, payout, deadline, by.v, by.r.to_bytes(32), by.s.to_bytes(32)

    def tag(self, round_: int) -> bytes:
        return self.call("beacon", round_)[:4]

    def settle(self, one: Account, round_: int, claims: Sequence[int] = (0, 0, 0), *winners: Account) -> Any:
        return self.send(one.address, "settle", round_, self.tag(round_), COMMITMENT, list(claims), ascending(*winners))

    def next_round(self) -> Any:
        """Lets the maximum time pass, goes to the next round, and makes the blocks that its beacon takes."""
        self.pass_time(self.call("rules").maxSeconds)
        receipt = self.send(self.funded[3], "advanceRound")
        self.tester.mine_blocks(2)
        return receipt


def ascending(*nodes: Account) -> list[str]:
    """Their addresses, as `settle` takes them."""
    return sorted((one.address for one in nodes), key=lambda address: int(address, 16))
