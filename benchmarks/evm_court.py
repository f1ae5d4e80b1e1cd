"""A court beside the coordinator of an `evm.Chain`: for gas and for tests."""

from collections.abc import Sequence
from typing import Any

from benchmarks.evm import GAS, Account, Chain
from rlswarm_jax.audit import commit
from rlswarm_jax.chain import contracts

ABSTAIN, GUILTY, NOT_GUILTY = 1, 2, 3  # votes
OPEN, FOUND_GUILTY, FOUND_NOT_GUILTY, UNDECIDED = 1, 2, 3, 4  # states of a case
NO_CLAIMS = (0, 0, 0)
TERMS = {"stake": 10**18, "bond": 10**17, "fee": 10**15}
TERMS |= {"claims": 6, "voting": 2, "delay": 8, "size": 3, "quorum": 2}


def commitment(records: Sequence[bytes]) -> tuple:
    """As `settle` takes it. records: content hashes."""
    return (commit.root(records), records[0], records[-1], len(records), b"\5" * 32, b"\6" * 32, b"\7" * 32)


class Courtroom(Chain):
    """A chain with a coordinator and a court, whose terms are those of TERMS but for what is given."""

    def __init__(self, nodes: int = 6, terms: dict[str, int] | None = None, **rules: int):
        super().__init__(nodes, **rules)
        self.terms = TERMS | (terms or {})
        made = self._mined({"from": self.funded[0], "gas": GAS, "data": self._court_code(self.coordinator.address)})
        self.court_deployed = made
        self.court = self.web3.eth.contract(made.contractAddress, abi=contracts.court()["abi"], decode_tuples=True)

    def _court_code(self, coordinator: str, **terms: int) -> Any:
        artifact = contracts.court()
        made = self.web3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
        return made.constructor(coordinator, tuple((self.terms | terms).values())).data_in_transaction

    def court_refusal(self, coordinator: str | None = None, **terms: int) -> str | None:
        """The name of the error that a deployment would be reverted with; None if it would pass."""
        code = self._court_code(coordinator or self.coordinator.address, **terms)
        return self._refusal(lambda: self.web3.eth.call({"from": self.funded[0], "gas": GAS, "data": code}))

    def ask(self, name: str, *values: Any, sender: str | None = None, value: int = 0) -> Any:
        """A call of the court without a transaction: a view's answer."""
        of = {"from": sender or self.funded[2], "gas": GAS, "value": value}
        return self.court.functions[name](*values).call(of)

    def act(self, one: Account, name: str, *values: Any, value: int = 0) -> Any:
        """The receipt of a transaction to the court. Raises AssertionError if it was reverted."""
        sent = self.court.functions[name](*values).transact({"from": one.address, "gas": GAS, "value": value})
        receipt = self.web3.eth.get_transaction_receipt(sent)
        assert receipt.status == 1, f"{name} was reverted: {self.no(one, name, *values, value=value)}"
        return receipt

    def no(self, one: Account, name: str, *values: Any, value: int = 0) -> str | None:
        """The name of the error that a transaction to the court would be reverted with; None if it would pass."""
        return self._refusal(lambda: self.ask(name, *values, sender=one.address, value=value))

    # --- what peers do

    def stake(self, *nodes: Account) -> None:
        for one in nodes:
            self.act(one, "deposit", value=self.terms["stake"])

    def commit(self, one: Account, round_: int, records: Sequence[bytes]) -> None:
        said = commitment(records)
        self.send(one.address, "settle", round_, self.tag(round_), said, list(NO_CLAIMS), [])

    def question(
        self, accused: Account, round_: int, records: Sequence[bytes], position: int = 0, index: int = 0
    ) -> tuple:
        """The arguments of a challenge."""
        proof = commit.proof(records, position)
        said = commitment(records), list(NO_CLAIMS)
        return accused.address, round_, *said, records[position], position, proof, index

    def challenge(self, by: Account, *question: Any, **of: int) -> int:
        """The number of the case."""
        self.act(by, "challenge", *self.question(*question, **of), value=self.terms["bond"])
        return self.ask("counts")[0]

    def draw(self, number: int) -> list[Account]:
        """Goes to the next round; the members of the case's committee, in their order."""
        self.next_round()
        self.act(self.nodes[0], "draw", number)
        return self.members(number)

    def members(self, number: int) -> list[Account]:
        by_address = {one.address: one for one in self.nodes}
        return [by_address[address] for address in self.ask("caseAt", number).members]

    def vote(self, number: int, *votes: int) -> None:
        """Each member's, in their order; 0: it does not vote."""
        for seat, (member, given) in enumerate(zip(self.members(number), votes, strict=True)):
            if given:
                self.act(member, "vote", number, seat, given)

    def resolve(self, number: int) -> int:
        """The state of the case after it."""
        self.act(self.nodes[0], "resolve", number)
        return self.ask("caseAt", number).state

    def credit(self, one: Account) -> int:
        return self.ask("creditOf", one.address)

    def staked(self, one: Account) -> int:
        return self.ask("peerOf", one.address)[0]
