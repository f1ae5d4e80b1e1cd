"""Eight nodes to which everything happens at once, and what is left of it in the end: nothing.

About eighteen minutes on two cores that others use as well.
"""

import collections
import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import Record
from tests.chaos import KINDS, NEEDS_ROOT, Fault, Swarm, schedule
from tests.swarm.internet import why_not

SEED, NODES, ROUNDS = 5, 8, 240
FIRST, LAST = 12, 130  # rounds between which faults begin
SMALL, LIARS = 3, ("equivocate",)  # whose disk can be filled; who plays beside them and lies
# what some of the attacks come up against
MET = [f"network/{one}" for one in ("refused", "malformed", "half open")]
MET += [f"records/rejected/{one}" for one in ("wrong swarm", "foreign sender", "undecodable", "unavailable")]
WORDS = [
    *("--config=configs/quickstart.py:spoiled", f"--config.seed={SEED}", f"--config.rounds={ROUNDS}"),
    *("--config.swarm.alone=False", "--config.wandb.mode=disabled", "--config.evaluation.every=80"),
    *("--config.swarm.deadline=15.0", "--config.checkpoint_every=8", "--config.chain.keep=1000"),
]


def test_a_schedule_is_the_seed_s_hits_everybody_and_has_all_there_is():
    made = schedule(1, NODES, 10, 150, SMALL)
    assert made == schedule(1, NODES, 10, 150, SMALL) != schedule(2, NODES, 10, 150, SMALL)
    assert {kind: sum(fault.kind == kind for fault in made) for kind in KINDS} == {k: n for k, (n, _) in KINDS.items()}
    assert [fault.at for fault in made] == sorted(fault.at for fault in made)
    assert made[0].at >= 10 and made[-1].at < 150
    assert {node for fault in made if fault.kind in ("kill", "suspend") for node in fault.nodes} == set(range(NODES))
    assert all(len(fault.nodes) == NODES // 2 for fault in made if fault.kind == "partition")
    assert all(fault.nodes == (SMALL,) for fault in made if fault.kind == "full disk")
    assert {fault.kind for fault in schedule(1, NODES, 10, 150, SMALL, NEEDS_ROOT)} == KINDS.keys() - set(NEEDS_ROOT)


def can_mount(folder: Path) -> bool:
    made = subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True)
    return made.returncode == 0 and subprocess.run(["umount", str(folder)]).returncode == 0


def of_journal(folder: Path, kind: str) -> list[bytes]:
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True)) as db:
        return [raw for (raw,) in db.execute("SELECT result FROM journal WHERE kind = ? ORDER BY id", (kind,))]


def record_of(raw: bytes) -> Record:
    return open_envelope(raw).record


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_after_all_that_can_befall_a_swarm_it_has_learned_as_if_nothing_had(tmp_path):
    rooted = not why_not()
    without = () if rooted and can_mount(tmp_path) else NEEDS_ROOT if not rooted else ("full disk",)
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    with Swarm(calm, WORDS, NODES, namespaces=rooted, observed=False) as swarm:
        swarm.play()
    faults = schedule(SEED, NODES, FIRST, LAST, SMALL, without)
    small = None if "full disk" in without else SMALL
    with Swarm(hit, WORDS, NODES, liars=LIARS, seed=SEED, namespaces=rooted, small_disk=small) as swarm:
        after = swarm.play(faults)
        check(hit, calm, swarm, faults, after)


def check(hit: Path, calm: Path, swarm: Swarm, faults: list[Fault], after: int) -> None:
    """While the disk is still there."""
    honest = {one.author: one for one in swarm.members[:NODES]}
    peers = {one.peer_id for one in honest.values()}
    assert {swarm.launcher.states()[index] for index in range(NODES)} == {"finished"}
    assert all(swarm.endpoint.lied.values()) and len(swarm.endpoint.lied) > 4

    # each goes on learning, from the others too
    assert after < ROUNDS - 20
    for index in range(NODES):
        rows = [row for row in read_rows(hit / f"node-{index}" / "metrics.jsonl") if row["round"] > after]
        assert rows[-1]["round"] == ROUNDS - 1 and sum(row["learn/updates"] for row in rows) > 5
        assert sum(row["groups/external"] for row in rows) > 5
        assert sum(row["records/received"] for row in rows) > 2 * len(rows)

    # whoever attacked was there, and was met
    counts = collections.Counter[str]()
    for index in range(NODES):
        counts.update(
            {k: v for row in read_rows(hit / f"node-{index}" / "metrics.jsonl") for k, v in row.items() if k in MET}
        )
    assert set(counts) == set(MET)

    # nobody honest is cut off, accused, or caught contradicting themselves
    for index in range(NODES):
        assert not swarm.banned[index] & peers, f"node {index}"
        rows = read_rows(hit / f"node-{index}" / "metrics.jsonl")
        distrusted = {name.rpartition("/")[2] for row in rows for name in row if name.startswith("audit/distrusted/")}
        assert distrusted <= {one.author.hex() for one in swarm.members[NODES:]}, f"node {index}"

    # what was announced is what was journaled, and what was journaled was heard
    gathered = {
        one
        for index in range(len(swarm.members))
        for raw in of_journal(hit / f"node-{index}", "Gather")
        for one in msgspec.msgpack.decode(raw)
    }
    for author, member in honest.items():
        signed = {}
        for raw in (msgspec.msgpack.decode(raw) for raw in of_journal(member.folder, "Publish")):
            record = record_of(raw)
            assert signed.setdefault((record.round, record.stage), raw) == raw
        heard = swarm.heard[author]
        assert len(heard) > ROUNDS and all(heard[slot] == {signed.get(slot)} for slot in heard)
        lost = [slot for slot, raw in signed.items() if slot not in heard and raw not in gathered]
        assert not lost, f"node {member.index}: {lost}"
    assert {author for author in swarm.heard if len(swarm.heard[author]) > 20} >= set(honest)

    # and it is as good as if nothing had been
    accuracies = [
        [json.loads((run / f"node-{i}" / "summary.json").read_text())["held_out_accuracy"] for i in range(NODES)]
        for run in (calm, hit)
    ]
    before, (undisturbed, disturbed) = (
        accuracies[0][0]["before"],
        ([mean_after(one) for one in of] for of in accuracies),
    )
    print(f"held-out accuracy {undisturbed} undisturbed, {disturbed} after all that")
    assert sum(before.values()) / len(before) < 0.1
    assert sum(disturbed) / NODES >= sum(undisturbed) / NODES - 0.02


def mean_after(accuracy: dict) -> float:
    return sum(accuracy["after"].values()) / len(accuracy["after"])
