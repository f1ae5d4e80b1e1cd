"""A node that is killed while it checks others: what it says after that, and that it goes on with what it had begun."""

import collections
import dataclasses
from concurrent.futures import Future

import msgspec
import numpy as np
import pytest

from rlswarm_jax.audit import patches
from rlswarm_jax.identity import simulated
from rlswarm_jax.qwen import tensors_hash
from rlswarm_jax.qwen.verdict import Replay, Rounding
from rlswarm_jax.records import audits
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import ANSWER, NOT_PRODUCED, PRODUCED, Verdict
from rlswarm_jax.records.trust import SILENT
from rlswarm_jax.swarm.mailbox import Mailbox
from rlswarm_jax.swarm.transport import NotShownError
from tests.game.hand_driver import record_of, signed
from tests.table_node import SEED
from tests.test_node import Live, Wire, short_waits

__all__ = ["short_waits"]  # a fixture
HONEST, LIAR, ROUNDS = 1, 2, 6
WEIGHTS = {who: {"digest": np.full(8, who, "<f4")} for who in (HONEST, LIAR)}


class Killed(BaseException):
    """In the midst of something."""


class Peer:
    """Says its record of a round when it hears another's, and shows its weights while `shows`; `asked` of them."""

    def __init__(self, wire: Wire, index: int):
        self.own, self.index, self.shows = simulated(SEED, index), index, True
        self.accuses: dict[int, list[Verdict]] = {}  # by round
        self.end = wire.connect(index, Mailbox(Inbox("tests", self.own.author, 2, (ANSWER,))))
        self.end.mailbox.on_record = self.hear
        self.heard: dict[tuple[int, str], set[bytes]] = collections.defaultdict(set)
        self.verdicts: list = []
        self.futures: list[Future] = []

    def hear(self, said: SignedRecord) -> bool:
        record = said.record
        if record.author == simulated(SEED, 0).author:
            new = (record.round, record.stage) not in self.heard
            self.heard[record.round, record.stage].add(said.raw)
            if new:
                self.verdicts += record.verdicts
                self.end.publish(self.said(record.round).raw)
        return True

    def said(self, round_: int) -> SignedRecord:
        fields = {"weights": tensors_hash(WEIGHTS[self.index]), "verdicts": self.accuses.get(round_, [])}
        return signed(msgspec.structs.replace(record_of(self.own, round_), **fields), self.own)

    def show(self) -> Future:
        self.futures.append(Future())
        if self.shows:
            self.futures[-1].set_result([patches.encode(WEIGHTS[self.index], None)])
        return self.futures[-1]


@dataclasses.dataclass
class World:
    """A node that checks the two others every round, in as many processes as it takes."""

    path: object
    every: int = 1000

    def __post_init__(self):
        self.wire = Wire()
        self.peers = {index: Peer(self.wire, index) for index in (HONEST, LIAR)}
        self.replayed, self.killed_at = 0, -1

    def node(self, max_staleness: int = 4) -> Live:
        fields = dict(rounds=ROUNDS, auditors=2, external_groups=0, max_staleness=max_staleness, deadline=5.0)
        made = Live(self.path / "node", self.wire, 0, named=(HONEST, LIAR), every=self.every, **fields)
        made.end.fetch_weights = lambda author, *_: self.peer(author).show()
        made.node._auditor._run, made.node._auditor._share = self.replay, 1.0
        return made

    def peer(self, author: bytes) -> Peer:
        (found,) = (one for one in self.peers.values() if one.own.author == author)
        return found

    def replay(self, tensors, claimed):
        if self.replayed == self.killed_at:
            raise Killed
        self.replayed += 1
        lead = -2.0 if tensors["digest"][0] == LIAR else 9.0
        sizes = [len(one) for one in claimed[0].completions]
        return [Replay(np.full(n, -3.0), np.full((n, 2), lead), np.full(n, 0.5), Rounding(1e-4, 1e-5)) for n in sizes]

    def restart(self, before: Live) -> Live:
        """After a kill: nothing was saved that is not on disk."""
        before.checkpoints.close()
        before.journal.close()
        self.wire.leave(0)
        again = self.node()
        again.node.restore(before.rounds())
        return again

    def check(self, node: Live) -> None:
        """It never contradicted itself, says everything once, and has found out who lies and nobody else."""
        heard, verdicts = self.peers[HONEST].heard, self.peers[HONEST].verdicts
        assert heard.keys() == {(round_, ANSWER) for round_ in range(ROUNDS)}
        assert all(len(raws) == 1 for raws in heard.values())
        about = [(one.record, one.index) for one in verdicts]
        assert len(about) == len(set(about)) >= 2 * (ROUNDS - 3)
        assert {one.finding for one in verdicts} == {PRODUCED, NOT_PRODUCED}
        assert node.player.state.trust.offenders.keys() == {self.peers[LIAR].own.author}


@pytest.mark.parametrize("effects", range(9, 30, 2))
@pytest.mark.parametrize("every", [1000, 2], ids=["journal", "checkpoints"])
def test_an_auditor_killed_at_any_step_says_nothing_twice_and_finds_the_liar(tmp_path, effects, every):
    world = World(tmp_path, every)
    first = world.node()
    first.run(after=effects)
    assert not first.player.finished
    again = world.restart(first)
    again.run()
    world.check(again)


@pytest.mark.parametrize("replay", range(0, 6, 2))
def test_an_auditor_killed_in_the_midst_of_a_replay_takes_it_up_again(tmp_path, replay):
    world = World(tmp_path)
    first, world.killed_at = world.node(), replay
    with pytest.raises(Killed):
        first.run()
    world.killed_at = -1
    again = world.restart(first)
    again.run()
    world.check(again)


@pytest.mark.parametrize("every", [1000, 1], ids=["journal", "checkpoints"])
def test_cases_that_wait_for_weights_are_not_forgotten_in_a_restart(tmp_path, every):
    world = World(tmp_path, every)
    for peer in world.peers.values():
        peer.shows = False
    first = world.node()
    first.run(after=8 * 3)
    waiting = {(case.record, case.index) for case in first.node._auditor.waiting}
    assert len(waiting) >= 2 and not world.peers[HONEST].verdicts
    for peer in world.peers.values():
        peer.shows = True
    again = world.restart(first)
    assert {case.record for case in again.node._auditor.waiting} == {record for record, _ in waiting}
    again.run()
    said = {(one.record, one.index) for one in world.peers[HONEST].verdicts}
    assert waiting <= said and len(said) == len(world.peers[HONEST].verdicts)
    assert again.player.state.trust.offenders.keys() == {world.peers[LIAR].own.author}


def test_who_is_killed_while_it_shows_its_weights_is_not_held_to_withhold_them(tmp_path):
    """Every second time that it is asked it is away; what it showed before and after that counts."""
    world, honest = World(tmp_path), None
    honest = world.peers[HONEST]
    times = iter(range(ROUNDS))

    def show() -> Future:
        future: Future = Future()
        if next(times) % 2 == 0:
            future.set_exception(NotShownError("it is away", withheld=False))
        else:
            future.set_result([patches.encode(WEIGHTS[HONEST], None)])
        return future

    honest.show = show
    node = world.node()
    node.run()
    findings = collections.Counter(one.finding for one in honest.verdicts)
    assert findings["undecided"] >= 1 and findings[PRODUCED] >= 1 and findings["withheld"] == 0
    assert honest.own.author not in node.player.state.trust.silent
    assert node.player.state.trust.offenders.keys() == {world.peers[LIAR].own.author} and SILENT > 1


def test_an_accusation_of_a_record_that_only_the_journal_has_is_looked_into(tmp_path, monkeypatch):
    """A verdict takes a beacon, weights and a replay: by then the record is older than what is learned from."""
    monkeypatch.setattr(audits, "drawn", lambda *_: [])
    world = World(tmp_path)
    said = world.peers[LIAR].said(0)
    world.peers[HONEST].accuses[4] = [Verdict(said.hash, 0, NOT_PRODUCED, 9, 30.0, 9.0)]
    node = world.node(max_staleness=1)
    node.run()
    assert said.hash not in {one.hash for one in node.node.player.inbox.records.values()}
    assert node.node.player.state.trust.offenders.keys() == {world.peers[LIAR].own.author}
