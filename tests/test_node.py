"""The live driver on a network of function calls: who waits for whom, and what a restart takes up."""

import collections
import functools
import itertools
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.audit.played import kept
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.game import turns
from rlswarm_jax.game.chain import Moment
from rlswarm_jax.game.effects import Gather
from rlswarm_jax.game.player import BEGIN, Player
from rlswarm_jax.game.round import NodeState, _make_record
from rlswarm_jax.grpo.learner import state_hash
from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.journal import Journal, JournalError
from rlswarm_jax.juror import Question
from rlswarm_jax.node import LiveConfig, Node
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, NOT_PRODUCED, STAGES, Verdict
from rlswarm_jax.records.trust import Audited
from rlswarm_jax.swarm.mailbox import Mailbox
from tests.game.hand_driver import make_game
from tests.table_node import SEED, TableEngine, auditor_of, learned
from tests.waits import wait_for


class Wire:
    """Hands records from node to node at once. loses: (sender, receiver, raw) -> whether it gets lost."""

    def __init__(self, loses: Callable[[int, int, bytes], bool] = lambda *_: False):
        self.ends: dict[int, End] = {}
        self._lock = threading.Lock()
        self.loses = loses

    def connect(self, index: int, mailbox: Mailbox) -> "End":
        self.ends[index] = End(self, index, mailbox)
        self._tell()
        return self.ends[index]

    def leave(self, index: int) -> None:
        with self._lock:
            del self.ends[index]
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            for index, end in self.ends.items():
                end.mailbox.on_peers(frozenset(simulated(SEED, other).author for other in self.ends if other != index))


class End:
    """One node's end of a `Wire`: a Transport."""

    def __init__(self, wire: Wire, index: int, mailbox: Mailbox):
        self.wire, self.index, self.mailbox = wire, index, mailbox
        self.sent: list[bytes] = []
        self.asked: list[set[bytes]] = []

    def publish(self, raw: bytes) -> None:
        self.sent.append(raw)
        for index, end in list(self.wire.ends.items()):
            if index != self.index and not self.wire.loses(self.index, index, raw):
                end.mailbox.on_record(open_envelope(raw))

    def ask(self, authors) -> None:
        self.asked.append(set(authors))
        for end in list(self.wire.ends.values()):
            if simulated(SEED, end.index).author in authors:
                for raw in end.sent[-len(STAGES) :]:
                    self.mailbox.on_record(open_envelope(raw))

    def flush(self, timeout: float) -> bool:
        return True

    def take_counts(self) -> collections.Counter:
        return collections.Counter()


class Live:
    """A table node in a thread; made again on the same folder, it is the same node after a restart."""

    def __init__(
        self, path, wire: Wire, index: int, named=(), rounds=6, deadline=30.0, every=1000, stages=1, chain=None, **more
    ):
        path.mkdir(exist_ok=True)
        own = simulated(SEED, index)
        fields = ({"chain_every": 1, "state_hash": bytes(32)} if chain else {}) | more
        self.game = make_game(own, rounds=rounds, stages=STAGES[:stages], shared=2 if stages > 1 else 0, **fields)
        inbox = Inbox(self.game.swarm, own.author, self.game.max_staleness, STAGES[:stages], rounds)
        self.mailbox = Mailbox(inbox, [simulated(SEED, i).author for i in named])
        self.end, self.wire, self.index = wire.connect(index, self.mailbox), wire, index
        self.journal = Journal(path / "journal.sqlite")
        self.engine, self.reports = TableEngine(), []
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.player = Player(0, self.game, own, self.journal, inbox)
        self.engine.player = self.player
        config = LiveConfig(deadline, 2.0, every, follow=bool(chain))
        self.node = Node(
            self.player,
            self.engine,
            self.end,
            self.mailbox,
            self.journal,
            self.checkpoints,
            config,
            self.reports.append,
            auditor_of(path, self.end),
            chain,
        )
        self.error: BaseException | None = None

    def run(self, after: int | None = None) -> None:
        """after: stops before so many effects more are done."""
        left = [after]

        def should_stop() -> bool:
            if left[0] is not None:
                left[0] -= 1
            return left[0] is not None and left[0] < 0

        self.node.run(should_stop)
        self.checkpoints.close()

    def start(self) -> threading.Thread:
        def guarded() -> None:
            try:
                self.run()
            except BaseException as error:
                self.error = error
                raise
            finally:
                self.wire.leave(self.index)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def rounds(self) -> list[int]:
        return [report.round for report in self.reports]

    def total(self, name: str) -> float:
        return sum(report.metrics.get(name, 0.0) for report in self.reports)

    def published(self) -> dict[tuple[int, int], bytes]:
        """By round and step."""
        rows = [e for e in self.journal.read(0, 0) if e.kind == "Publish"]
        return {(row.round, row.step): msgspec.msgpack.decode(row.result, type=bytes) for row in rows}


def play(*nodes: Live, seconds: float = 60) -> None:
    threads = [node.start() for node in nodes]
    for thread, node in zip(threads, nodes, strict=True):
        thread.join(seconds)
        assert not thread.is_alive() and node.error is None


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    connect = functools.partial(sqlite3.connect, check_same_thread=False)  # made here, used in a node's thread
    monkeypatch.setattr("rlswarm_jax.journal.sqlite3.connect", connect)
    monkeypatch.setattr("rlswarm_jax.node.SETTLE", 0.0)
    monkeypatch.setattr("rlswarm_jax.node.PART", 0.2)
    monkeypatch.setattr("rlswarm_jax.node.ASK_AFTER", 0.1)
    monkeypatch.setattr("rlswarm_jax.node.POLL", 0.02)


@pytest.mark.parametrize("stages", [1, 3])
def test_nodes_that_wait_for_all_learn_the_same_whatever_the_threads_do(tmp_path, monkeypatch, stages):
    monkeypatch.setattr("tests.table_node.secrets.randbelow", lambda _: 5)
    ends = []
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        wire = Wire()
        nodes = [Live(folder / str(i), wire, i, named=range(3), stages=stages) for i in range(3)]
        play(*nodes)
        for node in nodes:
            assert node.rounds() == list(range(6)) and node.total("records/received") == 12 * stages
            assert node.total("groups/external") > 0 and node.total("peers/given_up") == 0
        ends.append([node.engine.digest.tobytes() for node in nodes])
    assert ends[0] == ends[1] and len(set(ends[0])) == 3


def test_nothing_waits_longer_than_the_deadline_and_never_twice_for_the_silent(tmp_path):
    node = Live(tmp_path / "0", Wire(), 0, named=[1], deadline=0.3)
    play(node)
    assert node.rounds() == list(range(6)) and node.total("peers/given_up") == 1
    assert sum(report.metrics["seconds/gather"] > 0.25 for report in node.reports) == 1


@pytest.mark.parametrize("effects", [3, 4, 8, 15, 22])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_node_told_to_stop_saves_where_it_stands_and_goes_on_from_there_or_the_one_before(
    tmp_path, monkeypatch, caplog, effects, damaged
):
    monkeypatch.setattr("tests.table_node.secrets.randbelow", lambda _: 5)
    whole = Live(tmp_path / "whole", Wire(), 0, stages=3)
    play(whole)
    first = Live(tmp_path / "0", Wire(), 0, stages=3, every=1)
    first.node.restore()
    countdown = itertools.count(effects, -1)
    first.node.run(lambda: next(countdown) <= 0)
    stood, learned = first.player.state.round, first.player.learned
    first.node.save()
    first.checkpoints.close()
    first.journal.close()
    steps = sorted(int(path.name) for path in (tmp_path / "0" / "checkpoints").iterdir())
    assert not learned and (steps[-1:] or [0]) == [stood]  # whoever has learned in a round ends it
    if damaged and stood > 0:
        shutil.rmtree(tmp_path / "0" / "checkpoints" / str(stood) / "states")
        if stood == 1:
            return  # there was but one
    again = Live(tmp_path / "0", Wire(), 0, stages=3, every=1)
    again.node.restore(first.rounds())
    again.run()
    assert first.rounds() + again.rounds() == list(range(6))
    assert again.total("checkpoints/damaged") == (damaged and stood > 0) == ("The one before it" in caplog.text)
    assert again.engine.digest.tobytes() == whole.engine.digest.tobytes()
    assert again.published().items() <= whole.published().items()


class Dawdler:
    """Connected, and says an honest record of each round and stage when told to, so late that the deadline is near."""

    def __init__(self, wire: Wire, index: int, stages: int, seconds: float):
        self.wire, self.seconds, self.timers = wire, seconds, []
        self.own = simulated(SEED, index)
        self.game = make_game(self.own, rounds=1000, stages=STAGES[:stages], shared=2 if stages > 1 else 0)
        self.end = wire.connect(index, Mailbox(Inbox(self.game.swarm, self.own.author, 2, STAGES[:stages])))
        self.end.mailbox.on_record = self.hear
        self.heard: set[tuple[int, str]] = set()

    def hear(self, signed: SignedRecord) -> bool:
        at = signed.record.round, signed.record.stage
        if at not in self.heard:
            self.heard.add(at)
            raw = seal(_make_record(self.game, NodeState(round=at[0]), at[1], b"", bytes(32), [], []), self.own)
            self.timers.append(threading.Timer(self.seconds, self.end.publish, [raw]))
            self.timers[-1].daemon = True
            self.timers[-1].start()
        return True


def test_one_that_speaks_just_before_each_deadline_does_not_set_the_pace(tmp_path, monkeypatch):
    """Three stages in each of eight rounds: held to the deadline they would take 48 s."""
    monkeypatch.setattr("rlswarm_jax.swarm.waiting.LEAST_GRACE", 0.2)
    wire = Wire()
    nodes = [Live(tmp_path / str(i), wire, i, named=range(4), deadline=2.2, stages=3, rounds=8) for i in range(3)]
    dawdler = Dawdler(wire, 3, stages=3, seconds=2.0)
    began = time.monotonic()
    play(*nodes)
    for timer in dawdler.timers:
        timer.cancel()
    assert time.monotonic() - began < 12
    for node in nodes:
        assert node.rounds() == list(range(8)) and node.total("peers/given_up") >= 1
        assert all(report.metrics["records/received"] >= 6.0 for report in node.reports)  # all of the others'


def test_only_registered_authors_and_named_peers_are_learned_from_with_a_chain(tmp_path):
    chain = Coordinators()
    chain.is_past = lambda round_, stage: False
    chain.registered = frozenset([simulated(SEED, 2).author])
    wire = Wire()
    node = Live(tmp_path / "node", wire, 0, named=[1], rounds=1, deadline=0.2, chain=chain)
    for index in (1, 2, 3):
        node.mailbox.on_record(ahead(index, 0))
    play(node)
    (gathered,) = [e for e in node.journal.read(0, 0) if e.kind == "Gather"]
    taken = {open_envelope(raw).record.author for raw in msgspec.msgpack.decode(gathered.result, type=list[bytes])}
    assert taken == {simulated(SEED, index).author for index in (1, 2)}
    assert len(node.player.inbox.records) == 3  # the third may register still


def test_lost_records_are_asked_for(tmp_path):
    wire = Wire(loses=lambda sender, receiver, raw: open_envelope(raw).record.round == 2)
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2)) for i in range(2)]
    play(*nodes)
    assert any(node.end.asked for node in nodes)
    for node in nodes:
        assert node.rounds() == list(range(6)) and node.total("peers/given_up") == 0
    assert sum(node.total("records/received") for node in nodes) >= 11


def test_what_was_lost_of_a_stage_is_asked_for_though_its_author_is_a_stage_further(tmp_path):
    def loses(sender, receiver, raw):
        record = open_envelope(raw).record
        return sender == 0 and (record.round, record.stage) in ((2, ANSWER), (3, CRITIQUE))

    wire = Wire(loses)
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2), stages=3) for i in range(2)]
    play(*nodes)
    for node in nodes:
        assert node.rounds() == list(range(6)) and node.total("peers/given_up") == 0
        assert node.total("records/received") == 6 * 3 and node.total("groups/unused/unknown parent") == 0


def test_a_peer_that_is_further_is_not_waited_for(tmp_path):
    """Its record of this round was lost; it has not stood still for it, so this node does not either."""
    wire = Wire(loses=lambda sender, receiver, raw: sender == 0 and open_envelope(raw).record.round == 2)
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2)) for i in range(2)]
    play(*nodes)
    assert nodes[1].rounds() == list(range(6)) and nodes[1].total("peers/given_up") == 0
    assert nodes[1].total("records/received") == 5 and nodes[0].total("records/received") == 6


@pytest.mark.parametrize(("stages", "effects"), [(1, n) for n in range(1, 30, 4)] + [(3, n) for n in range(4, 26, 3)])
def test_a_node_stopped_anywhere_goes_on_from_its_journal(tmp_path, stages, effects):
    first = Live(tmp_path / "node", Wire(), 0, stages=stages)
    first.run(after=effects)
    assert not first.player.finished
    before = first.published()
    second = Live(tmp_path / "node", Wire(), 0, stages=stages)
    second.node.restore(first.rounds())
    second.run()
    assert first.rounds() + second.rounds() == list(range(6))
    assert second.engine.digest.tobytes() == learned(second.journal, second.game)
    assert before.items() <= second.published().items()  # a record that is made again would be another
    old = [key for key in before if key[0] < max(before)[0]]  # all of the last round again
    assert second.end.sent == [raw for key, raw in second.published().items() if key not in old]


def test_a_restarted_node_takes_up_its_checkpoint_and_what_came_after_it(tmp_path):
    wire = Wire()
    # one with checkpoints: orbax does not save in two threads at a time
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2), every=(1000, 2)[i]) for i in range(2)]
    threads = [nodes[0].start()]
    nodes[1].run(after=27)
    nodes[1].wire.leave(1)
    threads[0].join(60)
    assert nodes[0].rounds() == list(range(6))
    stopped_in = nodes[1].player.state.round
    assert 0 < stopped_in < 6
    again = Live(tmp_path / "1", Wire(), 1, every=2)
    again.node.restore(nodes[1].rounds())
    assert again.player.state.round == stopped_in
    assert again.engine.digest.tobytes() == nodes[1].engine.digest.tobytes()
    held = {signed.hash for signed in again.player.inbox.records.values()}
    assert {
        signed.hash for signed in nodes[1].player.inbox.records.values() if signed.record.round < stopped_in
    } <= held


def test_a_round_that_was_over_but_not_reported_is_reported_once(tmp_path):
    first = Live(tmp_path / "node", Wire(), 0)
    first.run(after=25)
    done = first.rounds()
    assert len(done) >= 2
    second = Live(tmp_path / "node", Wire(), 0)
    second.node.restore(done[:-1])  # the last line was not written any more
    assert second.rounds() == done[-1:]
    for name, value in second.reports[0].metrics.items():
        assert first.reports[-1].metrics[name] == value


def ahead(index: int, round_: int) -> SignedRecord:
    """A record of a peer that is in that round."""
    game = make_game(simulated(SEED, index), rounds=1000)
    return open_envelope(
        seal(_make_record(game, NodeState(round=round_), ANSWER, b"", bytes(32), [], []), simulated(SEED, index))
    )


def begun(node: Live) -> list[int]:
    return [entry.round for entry in node.journal.read(0, 0) if entry.kind == BEGIN]


def test_a_node_that_was_away_joins_the_round_of_the_others_and_leaves_its_own(tmp_path):
    first = Live(tmp_path / "node", Wire(), 0, rounds=12)
    first.run(after=9)
    left_in = first.player.state.round
    wire = Wire()
    again = Live(tmp_path / "node", wire, 0, rounds=12, deadline=0.1)
    wire.connect(1, Live(tmp_path / "peer", Wire(), 1).mailbox)
    again.node.restore(first.rounds())
    again.mailbox.on_record(ahead(1, 9))  # what a greeting brings
    again.run()
    assert begun(again)[-3:] == [9, 10, 11] and not set(begun(again)) & set(range(left_in + 1, 9))
    assert sorted(set(begun(again))) == begun(again)


def test_who_is_far_ahead_of_most_waits_until_they_are_near(tmp_path):
    """As after it was cut off, and played by itself: it would be ahead for ever, and read nobody."""
    wire = Wire()
    node = Live(tmp_path / "node", wire, 0, named=(1, 2), rounds=24, deadline=3.0)
    for index in (1, 2):
        wire.connect(index, Live(tmp_path / str(index), Wire(), index).mailbox)
    ours, theirs = node.mailbox, [simulated(SEED, index).author for index in (1, 2)]
    node.player.join(dict.fromkeys(theirs, 20), 2)
    ours.round = 20
    assert not any(ours.on_record(ahead(index, 3)) for index in (1, 2))
    with ours.changed:
        ours.give_up(theirs)  # they were late, long ago
    assert ours.trailing() == dict.fromkeys(theirs, 3)
    thread = node.start()
    time.sleep(0.3)
    assert begun(node) == [20] and len(node.node.status.read().waiting) == len(theirs)
    assert ours.on_record(ahead(1, 20)) and not ours.trailing()
    with ours.changed:
        ours.give_up(theirs)
    wait_for(lambda: begun(node) == [20, 21, 22, 23], "all are played")
    thread.join(10)
    assert node.error is None


@pytest.mark.parametrize("stage", STAGES)
def test_a_round_is_left_for_the_others_unless_its_last_stage_was_published(tmp_path, stage):
    """Then it is played to the end, without waiting for anybody, and left for theirs."""
    wire = Wire()
    node = Live(tmp_path / "node", wire, 0, named=(1, 2, 3), rounds=51, stages=3, deadline=0.0)
    for index in (1, 2, 3):
        wire.connect(index, Live(tmp_path / str(index), Wire(), index).mailbox)
    node.player.begin(0.0)
    while not isinstance(node.player.effect, Gather) or node.player.effect.stage != stage:
        if isinstance(node.player.effect, Gather):
            node.player.complete([], 0.0)
        else:
            node.node._play(node.player.effect, lambda: False)
    for index in (1, 2):
        node.mailbox.on_record(ahead(index, 50))
    node.node._go_to_the_others(at_least=2)
    assert node.player.state.round == (0 if stage == STAGES[-1] else 50)
    while node.player.state.round == 0:
        node.node._play(node.player.effect, lambda: False)
    assert [report.round for report in node.reports] == ([0] if stage == STAGES[-1] else [])
    assert node.player.state.round == 50


def test_one_peer_of_three_leads_nobody_anywhere(tmp_path):
    wire = Wire()
    node = Live(tmp_path / "node", wire, 0, rounds=8, deadline=0.05)
    for index in (1, 2, 3):
        wire.connect(index, Live(tmp_path / str(index), Wire(), index).mailbox)
    for index, round_ in ((1, 7), (2, 0), (3, 0)):
        node.mailbox.on_record(ahead(index, round_))
    node.run()
    assert begun(node) == list(range(8))


def test_a_stranger_cannot_lead_a_node_behind_the_end_or_away_from_those_it_was_told_of(tmp_path):
    wire = Wire()
    node = Live(tmp_path / "node", wire, 0, named=[1], rounds=8, deadline=0.05)
    for index in (1, 2, 3, 4):
        wire.connect(index, Live(tmp_path / str(index), Wire(), index).mailbox)
    for index in (2, 3, 4):
        assert not node.mailbox.on_record(ahead(index, 8)) and not node.mailbox.on_record(ahead(index, 2**32 - 1))
        assert node.mailbox.on_record(ahead(index, 6))
    node.run()
    assert begun(node) == list(range(8)) and node.player.finished


def test_the_journal_of_another_run_is_refused(tmp_path):
    first = Live(tmp_path / "node", Wire(), 0)
    first.run(after=12)
    rows = first.journal.read(0, 0)
    first.journal.truncate(0)
    for row in rows:
        first.journal.write(row._replace(kind="Learn" if row.kind == "Sample" else row.kind))
    with pytest.raises(JournalError, match="another run"):
        Live(tmp_path / "node", Wire(), 0).node.restore()


def test_the_journal_of_another_key_is_refused(tmp_path):
    """It would re-send, and act on, what somebody else has signed."""
    first = Live(tmp_path / "node", Wire(), 0)
    first.run(after=12)
    with pytest.raises(JournalError, match="another key"):
        Live(tmp_path / "node", Wire(), 1).node.restore()


def test_a_long_journal_does_not_fill_the_inbox(tmp_path):
    """What was taken long ago is not held again after a restart."""
    wire = Wire()
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2), rounds=20) for i in range(2)]
    play(*nodes)
    again = Live(tmp_path / "0", Wire(), 0, rounds=20)
    again.node.restore(nodes[0].rounds())
    held = [round_ for _, round_, _ in again.player.inbox.records]
    assert held and min(held) >= 20 - again.game.max_staleness and again.mailbox.round == 20


class Coordinators:
    """A keeper's, for a test: it goes to the next stage each time that a node has asked for it long enough."""

    def __init__(self):
        self.at, self.asked, self.committed = (4, 0), 0, []
        self.registered = None
        self.has_court, self.finding, self.challenged, self.to_judge = False, None, [], {}

    def judge_by(self, finding):
        self.finding = finding

    def duties(self):
        return self.to_judge

    def challenge(self, author, record, index, records):
        self.challenged.append((author, record, index, records))

    def moments(self):
        return [Moment(self.at[0], bytes([self.at[0]]) * 32)]

    def upgrade(self):
        return None, self.at[0]

    def wait(self, beyond, seconds, should_stop):
        return True

    def members(self):
        return self.registered

    def is_past(self, round_, stage):
        self.asked += 1
        if self.asked % 3 == 0:
            number, stage_now = self.at
            self.at = (number, stage_now + 1) if stage_now + 1 < len(STAGES) else (number + 1, 0)
        return self.at > (round_, stage)

    def commit(self, effect, state_hash, agreement):
        self.committed.append((effect.moment.round, len(effect.work.records), state_hash, agreement))

    def closing_seconds(self):
        return 20.0

    def finish(self, should_stop):
        return True

    def take_counts(self):
        return collections.Counter({"chain/waiting": 1})


def test_a_stage_ends_when_the_coordinator_is_past_it(tmp_path):
    """The peer that it waits for never comes, and there is no deadline."""
    chain = Coordinators()
    node = Live(tmp_path / "node", Wire(), 0, named=[1], rounds=3, deadline=0.0, stages=3, chain=chain)
    play(node)
    assert node.player.finished and node.total("peers/given_up") >= 1
    assert [report.metrics["chain/waiting"] for report in node.reports] == [1.0] * 3


def test_what_a_node_found_out_goes_to_court_with_all_that_its_author_said(tmp_path):
    wire, chains = Wire(), [Coordinators(), Coordinators()]
    nodes = [
        Live(tmp_path / str(n), wire, n, named=[1 - n], rounds=4, chain=chains[n], auditors=1, external_groups=0)
        for n in range(2)
    ]
    author, audits, found = nodes[1].game.author, [], []

    def audit(game, effect, held, round_, known, witnesses):
        audits.append(effect.cases)
        if found:
            chains[0].to_judge = {Question("0x", found[0].record, n): author for n in (0, 7)}
        if effect.cases and not found:
            found.append(Verdict(effect.cases[0].record, 0, NOT_PRODUCED, 9, 30.0, 8.0))
            return [Audited(author, found[0])]
        return []

    for chain in chains:
        chain.is_past, chain.has_court = (lambda round_, stage: False), True
        chain.commit = lambda *_, chain=chain: setattr(chain, "at", (chain.at[0] + 1, 0))
    nodes[0].node._auditor.audit, nodes[1].node._auditor.audit = audit, lambda *_: []
    play(*nodes)
    said = [open_envelope(raw).hash for raw in nodes[1].end.sent]
    asked = chains[0].challenged
    assert found[0].record in said and not chains[1].challenged
    assert {(who, record, index) for who, record, index, _ in asked} == {(author, found[0].record, 0)}
    assert all(records == said[: len(records)] for *_, records in asked) and len(asked[-1][3]) >= 3
    # what a court asks is looked into, unless it is known
    assert all(Case(found[0].record, 7) in cases for cases in audits[3:]) and len(audits) == 4
    assert not any(Case(found[0].record, 0) in cases for cases in audits)
    assert chains[0].finding(found[0].record, 0) == NOT_PRODUCED and chains[0].finding(said[0], 7) is None


def test_what_a_court_asks_of_rounds_ago_is_made_again_from_the_journal(tmp_path):
    """Critiques and revisions too, whose prompts quote what others had said."""
    wire = Wire()
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2), stages=3) for i in range(2)]
    play(*nodes)
    asks, author = nodes
    held = {signed.hash for signed in asks.player.inbox.records.values()}
    for stage in STAGES:
        (said,) = (s for s in map(open_envelope, author.end.sent) if (s.record.round, s.record.stage) == (0, stage))
        assert said.hash not in held and said.hash not in asks.player.state.sheets
        found = kept(asks.game, asks.journal, 0, [said.hash])
        assert found.records[said.hash] == said and {sheet.round for sheet in found.sheets.values()} == {0}
        for group in said.record.groups:
            claimed = turns.claim(asks.game, found.sheets, said, group.index, found.beacons)
            assert claimed.completions == [one.tokens_T.tolist() for one in group.completions]
        by_late = turns.claim(asks.game, asks.player.state.sheets, said, said.record.groups[0].index, turns.NO_CHAIN)
        assert (by_late is None) == (stage != ANSWER)
    assert kept(asks.game, asks.journal, 0, [b"?" * 32]).records == {} == kept(asks.game, asks.journal, 0, []).sheets


def test_a_live_node_commits_to_what_it_published_and_to_its_state(tmp_path):
    chain = Coordinators()
    node = Live(tmp_path / "node", Wire(), 0, rounds=3, stages=3, chain=chain)
    chain.is_past = lambda round_, stage: False
    began = state_hash(node.engine.state(0))
    commit = chain.commit

    def goes_on(effect, state_hash, agreement):
        commit(effect, state_hash, agreement)
        chain.at = (chain.at[0] + 1, 0)

    chain.commit = goes_on
    play(node)
    assert [round_ for round_, *_ in chain.committed] == [4, 5, 6] and {n for _, n, *_ in chain.committed} == {3}
    states = [state for _, _, state, _ in chain.committed]
    assert states[-1] == state_hash(node.engine.state(0)) != began and len(set(states)) == 3
    assert {agreement for *_, agreement in chain.committed} == {node.game.agreement}


def test_who_contradicts_itself_live_is_distrusted_by_all_and_still_is_after_a_restart(tmp_path, caplog):
    wire = Wire()
    more = [{}, {}, {"strategy": STRATEGIES["equivocate"]}]
    nodes = [Live(tmp_path / str(i), wire, i, named=range(3), stages=3, **more[i]) for i in range(3)]
    play(*nodes)
    liar = nodes[2].game.author
    assert f"{friendly_name(liar)} signed two records for one stage of a round" in caplog.text
    for index, node in enumerate(nodes[:2]):
        trust = node.player.state.trust
        assert trust.offenders.keys() == {liar} and node.total("audit/equivocators") >= 1
        assert node.total(f"learned_from/{liar.hex()}") == 0 < node.total("groups/external")
        assert liar in node.mailbox.distrusted  # nor is it waited for
        again = Live(tmp_path / str(index), Wire(), index, named=range(3), stages=3)
        again.node.restore(node.rounds())
        assert again.player.state.trust == trust and again.player.inbox.told == node.player.inbox.told
    assert nodes[2].player.state.trust.offenders == {}
