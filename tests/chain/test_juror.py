"""Nodes before a court, on a chain of their own: who lies loses its stake, who accuses wrongly its bond."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from rlswarm_jax.audit.replays import absent
from rlswarm_jax.chain import anvil
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.court import (
    ABSTAIN,
    FOUND_GUILTY,
    FOUND_NOT_GUILTY,
    GUILTY,
    NOT_GUILTY,
    UNDECIDED,
    Court,
)
from rlswarm_jax.chain.deployment import terms
from rlswarm_jax.chain.devnet import CHAIN_ID
from rlswarm_jax.chain.local import LocalChain
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.game.chain import Work
from rlswarm_jax.game.effects import Commit
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.juror import NOT_PRODUCED, PRODUCED, Juror, Question
from rlswarm_jax.keeper import Keeper
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.schema import STAGES
from tests.game.hand_driver import ALICE, record_of, signed

STAKE = 10**18
TERMS = terms(STAKE, 5)
PROMPT = Settings(confirmations=0, retry_seconds=0.0)
LIAR, FINDER, HONEST, OTHER, SLANDERER = (simulated(7, number) for number in range(5))
KEYS = [LIAR, FINDER, HONEST, OTHER, SLANDERER]


def record(identity: Identity, round_: int, number: int) -> bytes:
    return hashlib.sha256(f"{identity.peer_id} {round_} {number}".encode()).digest()


LIE, TRUTH = record(LIAR, 0, 1), record(HONEST, 0, 2)


class Node(NamedTuple):
    identity: Identity
    keeper: Keeper
    client: Coordinator
    said: list[bytes]  # all its records

    def turn(self) -> None:
        self.client.step()
        self.keeper.look()

    def settle(self) -> None:
        """Three records for the present round."""
        at = self.keeper.moments()[-1]
        new = [record(self.identity, at.round, number) for number in range(3)]
        self.said.extend(new if new[0] not in self.said else [])
        effect = Commit(at, Work(new, dict.fromkeys(STAGES, 0), {}), bytes(32))
        self.keeper.commit(effect, b"a" * 32, b"b" * 32)

    @property
    def court(self) -> Court:
        assert self.client.court
        return self.client.court


class Nodes(list[Node]):
    chain: LocalChain


def honest_finding(record_: bytes, index: int) -> str | None:
    if record_ == TRUTH:  # which has no such group
        found = absent(Case(TRUTH, index), signed(record_of(ALICE), ALICE))
        return found.verdict.finding if found else None
    return NOT_PRODUCED if (record_, index) == (LIE, 2) else PRODUCED


@contextlib.contextmanager
def swarm(directory: Path, kind: str = "devnet", findings=None, stake: int = STAKE) -> Iterator[Nodes]:
    """Five nodes with stakes, whose first settlements are on a chain of their own."""
    accounts = [account_of(one.author) for one in KEYS]
    with contextlib.ExitStack() as held:
        chain = held.enter_context(LocalChain(kind, directory / "chain", len(KEYS), [], stake, accounts))
        nodes = Nodes(node(chain, directory, one, (findings or {}).get(one, honest_finding)) for one in KEYS)
        nodes.chain = chain
        held.callback(lambda: [one.client.close() for one in nodes])
        until(nodes, lambda: all(one.keeper.moments() for one in nodes), settling=False)
        until(nodes, lambda: all(one.court.peer(one.court.account).stake for one in nodes), settling=False)
        yield nodes


def node(chain: LocalChain, directory: Path, identity: Identity, finding, stake: int = STAKE) -> Node:
    folder = directory / identity.peer_id
    folder.mkdir(exist_ok=True)
    options = {"chain_id": CHAIN_ID, "court": chain.court, "settings": PROMPT}
    client = Coordinator(Endpoint(chain.url), chain.contract, identity, folder, **options)
    known = [one.author for one in KEYS if one is not identity]
    options = {"stake": stake, "finding": finding, "stagger": 0.0, "patience": 0.0}
    keeper = Keeper(client, identity.author, lambda: known, **options)
    client.register()
    return Node(identity, keeper, client, [])


def until(nodes: list[Node], is_so, settling: bool = True, most: int = 60) -> None:
    """Turns of all nodes, in each of which they settle, until something is so."""
    for _ in range(most):
        for one in nodes:
            if settling:
                one.settle()
            one.turn()
        if is_so():
            return
    raise AssertionError("it never was so")


def states(nodes: list[Node]) -> dict[Question, int]:
    count = nodes[0].court._contract.view("counts")[0]
    cases = [nodes[0].court.case(number) for number in range(1, count + 1)]
    return {Question(case.accused, case.record, case.index): case.state for case in cases}


GUILT = Question(account_of(LIAR.author), LIE, 2)
SLANDER = Question(account_of(HONEST.author), TRUTH, 99)


@pytest.mark.parametrize("kind", ["devnet", pytest.param("anvil", marks=pytest.mark.slow)])
def test_a_liar_loses_its_stake_and_a_slanderer_its_bond_by_what_each_member_found_itself(kind, tmp_path):
    """Who slanders names a group that the record does not have.

    Both challengers say it twice, and one is killed between its wish and the chain.
    """
    if kind == "anvil" and not anvil.find():
        pytest.skip("anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
    lies = {
        SLANDERER: lambda record_, index: NOT_PRODUCED if record_ == TRUTH else honest_finding(record_, index),
        LIAR: lambda record_, index: PRODUCED,
    }
    with swarm(tmp_path, kind, lies) as nodes:
        liar, finder, honest, _, slanderer = nodes
        until(nodes, lambda: all(one.keeper.moments()[-1].round >= 1 for one in nodes))
        for _ in range(2):
            slanderer.keeper.challenge(HONEST.author, TRUTH, 99, honest.said)
            slanderer.turn()
        until(nodes, lambda: states(nodes) == {SLANDER: FOUND_NOT_GUILTY})

        finder.keeper.challenge(LIAR.author, LIE, 2, liar.said)
        finder.keeper.look()
        assert [wish.state for wish in finder.client.wishes() if wish.kind == "challenge"] == ["waiting"]
        finder.client.close()
        again = nodes[1] = node(nodes.chain, tmp_path, FINDER, honest_finding)
        again.keeper.challenge(LIAR.author, LIE, 2, liar.said)
        again.said.extend(finder.said)
        again.turn()
        until(nodes, lambda: states(nodes) == {SLANDER: FOUND_NOT_GUILTY, GUILT: FOUND_GUILTY})

        court = again.court
        slander, guilt = court.case(1), court.case(2)
        assert (slander.challenger, guilt.challenger) == (slanderer.court.account, again.court.account)
        assert set(guilt.votes) == {GUILTY}  # the slanderer, too, says what it found of the liar
        paid = dict.fromkeys((one.court.account for one in nodes), 0)  # by hand
        for case, side in ((slander, NOT_GUILTY), (guilt, GUILTY)):
            for member, vote in zip(case.members, case.votes, strict=True):
                paid[member] += TERMS.fee * (vote == side)
        paid[slander.accused] += (TERMS.bond - TERMS.fee * slander.votes.count(NOT_GUILTY)) // 2
        paid[guilt.challenger] += TERMS.bond + (STAKE - 3 * TERMS.fee) // 2
        assert {account: court.credit(account) for account in paid} == paid
        stakes = [court.peer(one.court.account).stake for one in nodes]
        assert stakes == [0, STAKE, STAKE, STAKE, STAKE]
        again.keeper.challenge(LIAR.author, LIE, 0, liar.said)  # which has nothing left to lose
        again.turn()
        challenges = [wish.state for one in nodes for wish in one.client.wishes() if wish.kind == "challenge"]
        assert challenges == ["done", "done"]
        counts = [one.keeper.take_counts() for one in nodes]
        assert [one["chain/challenged"] for one in counts] == [0, 0, 0, 0, 1]  # the killed one had counted its own
        assert sum(one["chain/voted"] for one in counts) >= 4 and not sum(one["chain/abstained"] for one in counts)


@pytest.mark.slow
def test_a_member_that_cannot_tell_says_so_in_the_last_round_and_knows_of_its_duty_before(tmp_path):
    blind = dict.fromkeys((HONEST, OTHER, SLANDERER), lambda record_, index: "withheld")
    with swarm(tmp_path, findings=blind) as nodes:
        liar, finder, *members = nodes
        until(nodes, lambda: all(one.keeper.moments()[-1].round >= 1 for one in nodes))
        finder.keeper.challenge(LIAR.author, LIE, 2, liar.said)
        until(nodes, lambda: all(one.keeper.duties() == {GUILT: FINDER.author} for one in members))
        case = finder.court.case(1)
        assert set(case.votes) == {0} and not finder.keeper.duties() and not liar.keeper.duties()
        until(nodes, lambda: states(nodes) == {GUILT: UNDECIDED})
        assert set(finder.court.case(1).votes) == {ABSTAIN} and not any(one.keeper.duties() for one in nodes)
        assert finder.court.credit(finder.court.account) == TERMS.bond
        assert all(one.court.peer(one.court.account).stake == STAKE for one in nodes)


def test_what_is_not_covered_by_a_settlement_that_is_here_is_not_brought_to_court(tmp_path):
    with swarm(tmp_path) as nodes:
        liar, finder, *_ = nodes
        until(nodes, lambda: all(one.keeper.moments()[-1].round >= 1 for one in nodes))
        finder.keeper.challenge(LIAR.author, LIE, 2, liar.said[:2])  # one of three is missing
        finder.keeper.challenge(LIAR.author, b"r" * 32, 0, liar.said)
        for _ in range(2):
            for one in nodes:
                one.turn()
        assert not states(nodes) and "challenge" not in {wish.kind for wish in finder.client.wishes()}
        finder.keeper.challenge(LIAR.author, LIE, 2, liar.said)
        finder.turn()
        assert {wish.kind for wish in finder.client.wishes()} >= {"challenge"}


def test_findings_that_no_settlement_ever_covers_are_forgotten_from_the_oldest_on():
    juror = Juror(SimpleNamespace(court=object()), STAKE, honest_finding, 0.0)
    for number in range(300):
        juror.challenge(LIAR.author, bytes([number % 256]) * 32, number, [])
    assert [question.index for question in juror._accused] == list(range(300 - 256, 300))
