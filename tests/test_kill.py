"""A node that is killed in the middle of a round: what the others see of it, and how it comes back."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax import launch
from rlswarm_jax.identity import simulated
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from tests.table_node import SEED
from tests.waits import wait_for

CHECKOUT = Path(__file__).parent.parent
NODES, KILLED, KILL_ROUND = 3, 2, 4  # evaluated, too, is every fourth round


def rows(folder: Path, kind: str) -> list[tuple[int, bytes]]:
    """(round, journaled result) of a kind, from outside."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True)) as db:
            return db.execute("SELECT round, result FROM journal WHERE kind = ? ORDER BY id", (kind,)).fetchall()
    except sqlite3.OperationalError:
        return []


def slot(raw: bytes) -> tuple[int, str]:
    record = open_envelope(raw).record
    return record.round, record.stage


def played(folder: Path) -> list[int]:
    """The rounds that a node has finished."""
    file = folder / "metrics.jsonl"
    return [row["round"] for row in read_rows(file)] if file.exists() else []


def last_round(folder: Path) -> int:
    return max((round_ for round_, _ in rows(folder, "begin")), default=-1)


class Swarm:
    """Three table nodes as processes, and an observer that keeps every record it hears."""

    def __init__(self, tmp_path: Path):
        # more ports than nodes: the last is the observer's
        self.members = launch.assign(tmp_path, NODES, seed=SEED)
        self.processes: dict[int, subprocess.Popen] = {}
        self.heard: dict[bytes, dict[tuple[int, str], set[bytes]]] = {}  # of an author, by round and stage
        self._lock = threading.Lock()
        # it dials each of them by itself, and from before they are there: it misses as little as can be
        config = GossipConfig(swarm="tables", bootnodes=tuple(member.address for member in self.members[:NODES]))
        self.observer = Gossip(simulated(SEED, 99), config, self._hear, lambda _: None)

    def _hear(self, signed) -> bool:
        with self._lock:
            of_author = self.heard.setdefault(signed.record.author, {})
            of_author.setdefault(slot(signed.raw), set()).add(signed.raw)
        return True

    def start(self, index: int, pause: tuple[str, str, int] | None = None, peers: bool = True, **more) -> None:
        member = self.members[index]
        told = {
            "folder": str(member.folder),
            "index": index,
            "rounds": 10_000,
            "port": member.port,
            "bootnodes": [self.members[0].address] if index else [],
            "peers": [other.peer_id for other in self.members if other is not member] if peers else [],
            "deadline": 30.0,
            "sample_seconds": 0.1,
            "pause": pause,
            **more,
        }
        with (member.folder / "log.txt").open("ab") as log:
            command = [sys.executable, "-m", "tests.table_node", json.dumps(told)]
            self.processes[index] = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=log)

    def folder(self, index: int) -> Path:
        return self.members[index].folder

    def finish(self) -> None:
        """Whoever plays has played enough; no speed of a machine decides how much that is."""
        (self.folder(0).parent / "enough").touch()
        for process in self.processes.values():
            assert process.wait(60) == 0

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.observer.close()


@pytest.fixture
def swarm(tmp_path):
    made = Swarm(tmp_path)
    yield made
    made.stop()


def test_a_folder_of_members_is_what_the_table_nodes_use(tmp_path):
    for member in launch.assign(tmp_path, NODES, seed=SEED):
        assert member.author == simulated(SEED, member.index).author


INSTANTS = [
    pytest.param("Evaluate", "answer", marks=pytest.mark.slow),
    pytest.param("Sample", "critique", marks=pytest.mark.slow),
    ("Publish", "revise"),
    pytest.param("Send", "critique", marks=pytest.mark.slow),
    pytest.param("Gather", "revise", marks=pytest.mark.slow),
    pytest.param("Score", "", marks=pytest.mark.slow),
    pytest.param("Learn", "", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("effect", "stage"), INSTANTS)
def test_a_node_killed_in_an_effect_comes_back_and_never_contradicts_itself(swarm, effect, stage):
    swarm.observer.start()
    for index in range(NODES):
        swarm.start(index, (effect, stage, KILL_ROUND) if index == KILLED else None)
    dead = swarm.folder(KILLED)
    wait_for((dead / "paused").exists, "the node comes to the effect", 90.0)
    before = rows(dead, "Publish")
    swarm.processes[KILLED].kill()
    swarm.processes[KILLED].wait()
    wait_for(lambda: last_round(swarm.folder(0)) > KILL_ROUND + 1, "the others go on without it", 90.0)
    alone = len(played(dead))
    swarm.start(KILLED)
    wait_for(lambda: len(played(dead)) > alone + 5, "it comes back to the others", 90.0)
    swarm.finish()

    # the others played round after round, and waited for nobody until a deadline
    for index in (0, 1):
        found = read_rows(swarm.folder(index) / "metrics.jsonl")
        assert [row["round"] for row in found] == list(range(len(found)))
        assert not any("peers/given_up" in row for row in found)
        assert max(row["records/equivocations"] for row in found) == 0
    # it came back into the round the others were in, and took part to the end
    rounds = played(dead)
    assert rounds == sorted(set(rounds)) and len(rounds) <= rounds[-1]
    assert abs(rounds[-1] - played(swarm.folder(0))[-1]) <= 1
    # nobody ever heard anything of it but the bytes that it had journaled, one record for a stage of a round
    journaled = [*before, *rows(dead, "Publish")]  # older rows are pruned by and by
    raws = {msgspec.msgpack.decode(raw, type=bytes) for _, raw in journaled}
    signed = {slot(raw): raw for raw in raws}
    assert len(signed) == len(raws)
    heard = swarm.heard[simulated(SEED, KILLED).author]
    assert len(heard) > 15 and all(len(raws) == 1 for raws in heard.values())
    both = heard.keys() & signed.keys()
    assert max(both)[0] > KILL_ROUND and all(heard[at] == {signed[at]} for at in both)
    if effect == "Send":  # journaled and not sent before the kill: it was sent after it
        assert (KILL_ROUND, stage) in heard


LIAR = 1
STEPS = {
    "auditor begins": (KILLED, ("Audit", "", KILL_ROUND)),
    "auditor fetches": (KILLED, ("Fetch", "", KILL_ROUND)),
    "auditor replays": (KILLED, ("Replay", "", KILL_ROUND)),
    "auditor has signed its verdict": (KILLED, ("Send", "answer", KILL_ROUND + 1)),
    "audited says what there is": (KILLED, ("Show", "", KILL_ROUND)),
    "audited sends it": (KILLED, ("Read", "", KILL_ROUND)),
    "liar sends it": (LIAR, ("Read", "", KILL_ROUND)),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_an_audit_of_which_either_side_is_killed_ends_as_it_would_have(swarm, step):
    """Nobody says two things, the liar is found out by both others, and whoever did not lie is accused of nothing."""
    killed, pause = STEPS[step]
    swarm.observer.start()
    for index in range(NODES):
        swarm.start(index, pause if index == killed else None, auditors=2, liar=index == LIAR)
    dead = swarm.folder(killed)
    wait_for((dead / "paused").exists, "the node comes to the step", 90.0)
    swarm.processes[killed].kill()
    swarm.processes[killed].wait()
    wait_for(lambda: last_round(swarm.folder(0)) > KILL_ROUND + 2, "the others go on without it", 90.0)
    alone = len(played(dead))
    swarm.start(killed, auditors=2, liar=killed == LIAR)
    wait_for(lambda: len(played(dead)) > alone + 8, "it comes back to the others", 90.0)
    swarm.finish()

    keys = [simulated(SEED, index).author for index in range(NODES)]
    for index in {*range(NODES)} - {LIAR}:
        found = read_rows(swarm.folder(index) / "metrics.jsonl")
        distrusted = {name for row in found for name in row if name.startswith("audit/distrusted/")}
        assert distrusted == {f"audit/distrusted/{keys[LIAR].hex()}"}
        assert max(row["records/equivocations"] for row in found) == 0
        assert not any("audit/equivocators" in row for row in found)
        assert sum(row["audit/found/produced"] for row in found) > 0
    for author in keys:
        heard = swarm.heard[author]
        assert len(heard) > 15 and all(len(raws) == 1 for raws in heard.values())
        told = [open_envelope(raw).record.verdicts for (raw,) in heard.values()]
        verdicts = [(one.record, one.index) for verdicts in told for one in verdicts]
        assert len(verdicts) == len(set(verdicts))


@pytest.mark.slow
def test_a_node_that_joins_late_takes_part_from_the_current_round(swarm):
    for index in (0, 1):
        swarm.start(index, peers=False)
    wait_for(lambda: last_round(swarm.folder(0)) >= 8, "the first two play", 90.0)
    now = last_round(swarm.folder(0))
    swarm.start(2, peers=False)
    wait_for(lambda: len(played(swarm.folder(2))) > 8, "it takes part", 90.0)
    swarm.finish()
    late = read_rows(swarm.folder(2) / "metrics.jsonl")
    assert late[0]["round"] >= now and len(late) >= 8
    assert [row["round"] for row in late] == list(range(late[0]["round"], late[-1]["round"] + 1))
    assert sum(row["records/received"] for row in late) >= len(late)  # it learned from them ...
    author = simulated(SEED, 2).author.hex()
    others = [row for index in (0, 1) for row in read_rows(swarm.folder(index) / "metrics.jsonl")]
    assert any(row.get(f"learned_from/{author}") for row in others)  # ... and they from it
    (first, _), *_ = rows(swarm.folder(2), "Publish")
    assert first >= now  # it never acted under a key of a round that was over
    raws = [raw for _, raw in rows(swarm.folder(2), "Publish")]
    assert open_envelope(msgspec.msgpack.decode(raws[0], type=bytes)).record.round == first
