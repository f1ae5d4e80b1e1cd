"""What a node says that it does: true while it runs, and of one that has come to a stop, that it has."""

import json
import logging
import math
import time

import msgspec
import pytest

from rlswarm_jax import status
from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, STAGES
from rlswarm_jax.status import BEHIND, READY, STALLED, STARTING, Awaited, Network, Parting, Peer, Status
from rlswarm_jax.swarm.limits import Offences
from rlswarm_jax.swarm.mailbox import Mailbox
from tests.records.samples import sealed
from tests.test_node import Live, Wire, play, short_waits  # noqa: F401
from tests.waits import wait_for

PEER = simulated(3, 3)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plays(told: Status, clock: Clock, steps: int, seconds: float) -> None:
    for number in range(steps):
        told.begins("samples its answers", number, "answer")
        clock.now += seconds
    told.begins("samples its answers", steps, "answer")


def test_it_starts_and_is_ready_from_its_first_round_on(clock):
    told = Status(clock=clock)
    assert told.state() == (STARTING, "it starts, for 0 s by now.")
    told.begins("compiles its model's programs")
    clock.now += 700
    assert told.state()[0] == STARTING and "compiles" in told.state()[1] and "700 s" in told.state()[1]
    told.begins("samples its answers", 0, "answer")
    assert told.state()[0] == READY and "in round 0" in told.state()[1] and "alone" in told.state()[1]
    told.network = lambda: Network([Peer(PEER.peer_id, True, 0.0)])
    assert told.state() == (READY, "it samples its answers in round 0.")


@pytest.mark.parametrize("longest", [0.5, 30.0])
def test_a_step_is_stalled_once_it_takes_far_longer_than_any_before(clock, longest):
    """The bound follows what this machine takes, so a slow one is not called stalled."""
    told = Status(clock=clock)
    plays(told, clock, status.FEW, 0.1)
    told.begins("learns", 99, "")
    clock.now += longest
    told.begins("learns", 100, "")
    bound = 10 * longest + 60
    clock.now += bound - 1
    assert told.state()[0] == READY
    clock.now += 2
    state, reason = told.state()
    assert state == STALLED and "it learns in round 100" in reason and f"{bound:.0f} s are the most" in reason
    told.begins("samples its answers", 101, "answer")
    assert told.state()[0] == READY, "one that goes on is not stalled"


def test_a_first_step_may_take_an_hour_and_not_more(clock):
    """A large model is compiled in it."""
    told = Status(clock=clock)
    told.begins("samples its answers", 0, "answer")
    clock.now += 3600
    assert told.state()[0] == READY
    clock.now += 61
    assert told.state()[0] == STALLED


@pytest.mark.parametrize(("deadline", "after"), [(30.0, 91.0), (math.inf, None)])
def test_a_wait_is_stalled_beyond_what_the_config_says_and_one_without_end_never(clock, deadline, after):
    told = Status(clock=clock)
    plays(told, clock, status.FEW, 0.01)
    told.begins("waits for its peers' answers", 50, "answer", at_most=deadline)
    clock.now += 89 if after else 1e6
    assert told.state()[0] == READY
    if after:
        clock.now += after - 89
        assert told.state()[0] == STALLED and "by its config" in told.state()[1]
    # a long wait says nothing of how long a node's own work takes
    told.begins("learns", 50, "")
    clock.now += 62
    assert told.state()[0] == STALLED


def test_it_is_behind_while_most_peers_are_and_stalled_without_a_network(clock):
    told = Status(clock=clock)
    told.begins("learns", 7, "")
    told.behind = lambda: 4
    assert (
        told.state()[0] == BEHIND
        and "4 rounds further" in told.state()[1]
        and "it learns in round 7" in told.state()[1]
    )
    told.network = lambda: Network(down=clock.now - 119)
    assert told.state()[0] == BEHIND
    told.network = lambda: Network(down=clock.now - 121)
    assert told.state()[0] == STALLED and "network" in told.state()[1]


def test_the_file_says_the_same_to_others_and_goes_with_the_process(clock, tmp_path):
    path = tmp_path / "status.json"
    ban = Parting("16Uiu2", "it sent too much that is wrong, last: network/malformed", clock.now + 30)
    old = Parting("16Uiu3", "gone by", clock.now - 1)
    left = Parting("16Uiu4", "it was silent", clock.now - 9)
    network = Network([Peer(PEER.peer_id, True, clock.now - 5)], [ban, old], [left])
    told = Status(path, "me", lambda: network, clock)
    told.begins("samples its answers", 3, "answer")
    found = status.read(path)
    assert (found.state, found.round, found.doing) == (READY, 3, "samples its answers")
    assert [(one.peer, one.mesh) for one in found.peers] == [(PEER.peer_id, True)]
    assert [(one.peer, one.why) for one in found.banned] == [("16Uiu2", ban.why)]
    assert found.banned[0].at == pytest.approx(time.time() + 30, abs=2)
    assert found.left[0].at == pytest.approx(time.time() - 9, abs=2)
    assert found.seen(found.stalled_from - 1)[0] == READY
    assert found.seen(found.stalled_from + 1)[0] == STALLED
    told.close()
    assert status.read(path) is None and not list(tmp_path.iterdir())


def test_the_file_is_not_written_while_nothing_changes(clock, tmp_path):
    path = tmp_path / "status.json"
    told = Status(path, clock=clock)
    told.begins("waits for its peers' answers", 3, "answer", at_most=30.0)
    waited, written = [Awaited(PEER.author, "is not connected")], []
    for _ in range(100):
        told.waits_for(waited, clock.now // 1000 + 30)
        written.append(path.stat().st_mtime_ns)
        clock.now += 0.1
    assert len(set(written)) == 2, "once when the step began, once for whom it waits for"
    (one,) = status.read(path).waiting
    assert status.name_of(one.author) == friendly_name(PEER.author) and one.why == "is not connected"
    told.begins("learns", 3, "")
    assert not status.read(path).waiting, "whom a stage waited for is gone with it"


def test_what_takes_no_time_is_not_worth_the_file(clock, tmp_path):
    told = Status(tmp_path / "status.json", clock=clock)
    told.begins("learns", 3, "")
    told.begins("goes on", 3, "", brief=True)
    assert status.read(tmp_path / "status.json").doing == "learns" and "goes on" in told.state()[1]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[1]", b"\xff", b'{"pid": -1}', b"9" * 1000],
    ids=["empty", "no fields", "a list", "no text", "few fields", "a number"],
)
def test_a_file_that_is_none_is_nothing(tmp_path, raw):
    (tmp_path / "status.json").write_bytes(raw)
    assert status.read(tmp_path / "status.json") is None
    assert status.read(tmp_path / "nowhere.json") is None


@pytest.mark.parametrize("pid", [2**22 + 1, 2**62])
def test_one_of_a_process_that_was_killed_is_nothing(clock, tmp_path, pid):
    """No process has such a number: the former is more than the most that Linux gives."""
    path = tmp_path / "status.json"
    Status(path, clock=clock).begins("learns", 3, "")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": pid}))
    assert status.read(path) is None


def test_a_disk_that_takes_nothing_is_said_once_and_ends_nothing(clock, tmp_path, caplog):
    told = Status(tmp_path / "nowhere" / "status.json", clock=clock)
    for round_ in range(3):
        told.begins("learns", round_, "")
    assert sum("cannot write" in record.message for record in caplog.records) == 1
    assert told.state()[0] == READY


def test_the_last_warning_is_told_without_secrets():
    told, logger = Status(), logging.getLogger("rlswarm_jax.test_status")
    logger.addHandler(told.warned)
    logger.info("all is well")
    assert told.read().warning is None
    logger.warning("no answer from http://me:word@host/path for %s", "ab" * 32)
    logger.removeHandler(told.warned)
    assert told.read().warning.text == "no answer from http://…@host/path for …"


def test_who_is_refused_is_told_with_the_reason_and_for_how_long():
    offences = Offences(at_most=3, refused_for=5.0)
    for what in ("network/malformed", "network/malformed", "rejected/bad signature"):
        offences.add(b"peer", what)
    ((peer, until, what),) = offences.now_refused()
    assert (peer, what) == (b"peer", "rejected/bad signature") and 4 < until - time.monotonic() <= 5
    assert offences.refused(b"peer") and not offences.refused(b"other")


# --- of a node that plays


def mailbox_of(named=()) -> Mailbox:
    return Mailbox(Inbox("swarm", simulated(1, 0).author, 4, STAGES), named)


def test_why_one_is_waited_for():
    other = simulated(1, 1)
    box = mailbox_of([other.author])
    assert box.why(other.author, 5) == "has not been heard of yet, and may be starting"

    def hears(round_, stage):
        from rlswarm_jax.records.envelope import open_envelope

        box.on_record(open_envelope(sealed(other, swarm="swarm", round=round_, stage=stage)))

    box.round = 5
    hears(3, ANSWER)
    assert box.why(other.author, 5) == "is not connected; what it said last was of round 3"
    box.on_peers(frozenset([other.author]))
    assert box.why(other.author, 5) == "is connected; what it said last was of round 3, 2 rounds behind"
    hears(5, ANSWER)
    assert box.why(other.author, 5) == "is connected, and has said its answers of this round"
    hears(5, CRITIQUE)
    assert box.why(other.author, 5) == "is connected, and has said its answers and critiques of this round"
    silent = simulated(1, 2)
    box.on_peers(frozenset([silent.author]))
    assert box.why(silent.author, 5) == "is connected; nothing was heard of it yet"


def test_a_node_says_whom_it_waits_for_while_it_does_and_goes_on(tmp_path):
    """The named peer never comes: the node waits to its deadline, and says so."""
    node = Live(tmp_path / "0", Wire(), 0, named=[1], deadline=1.5, stages=3, rounds=2)
    path = tmp_path / "status.json"
    told = node.node.status = Status(path)
    told.behind = node.node._far_behind
    thread = node.start()

    def waiting():
        found = status.read(path)
        return found if found and found.waiting else None

    found = wait_for(waiting, "it waits")
    assert (found.state, found.round, found.stage, found.doing) == (READY, 0, "answer", "waits for its peers' answers")
    assert [(one.author, one.why) for one in found.waiting] == [
        (simulated(23, 1).author.hex(), "has not been heard of yet, and may be starting")
    ]
    assert 0 < found.until - time.time() < 1.6
    assert found.stalled_from == pytest.approx(found.since + 1.5 + status.SLACK, abs=0.3)
    thread.join(60)
    found = status.read(path)
    assert found.doing == "has played all rounds, and stays until its peers have" and not found.waiting


def test_steps_are_called_by_their_stage(tmp_path):
    wire = Wire()
    node, other = (Live(tmp_path / str(i), wire, i, named=range(2), stages=3, rounds=1) for i in range(2))
    said = []
    told = node.node.status
    begins, told.begins = told.begins, lambda *step, **more: (said.append(step[:3]), begins(*step, **more))
    play(node, other)
    sampled = [step for step in said if step[0].startswith("samples ")]
    words = {"answer": "answers", "critique": "critiques", "revise": "revisions"}
    assert sampled == [(f"samples its {words[stage]}", 0, stage) for stage in STAGES]
    assert [step for step in said if step[0] == "learns"] == [("learns", 0, "")]


def test_reading_costs_little_beside_a_round(tmp_path):
    """A round has about ten steps, and costs a node some 200 ms of a processor."""
    network = Network([Peer(simulated(5, i).peer_id, True, 0.0) for i in range(8)])
    told = Status(tmp_path / "status.json", "me", lambda: network)
    began = time.process_time()
    for step in range(200):
        told.begins(f"samples {step}", step, "answer")
    assert (time.process_time() - began) / 200 < 1e-3
    assert msgspec.json.decode((tmp_path / "status.json").read_bytes(), type=status.Told).round == 199
