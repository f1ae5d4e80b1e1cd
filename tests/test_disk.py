"""What a node's folder takes is what `du` says, and what goes where that is too much is what nothing needs."""

import itertools
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rlswarm_jax import disk, files, launch
from rlswarm_jax.audit.archive import Archive
from rlswarm_jax.disk import MB, Quota
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.metrics import MetricsLog, read_rows
from rlswarm_jax.running.live import _Tail
from tests.test_node import Live, Wire, short_waits  # noqa: F401


def fill(path: Path, megabytes: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(int(megabytes * MB)))
    return path


def test_what_is_taken_is_what_du_finds_part_by_part(tmp_path):
    fill(tmp_path / files.JOURNAL_FILE, 0.5)
    fill(tmp_path / f"{files.JOURNAL_FILE}-wal", 0.1)
    fill(tmp_path / files.CHECKPOINT_FOLDER / "20" / "states" / "a", 0.7)
    fill(tmp_path / "wandb" / "run-1" / "b", 0.2)
    fill(tmp_path / "log.txt.1", 0.01)
    fill(tmp_path / "node.key", 0.001)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    found = disk.taken(tmp_path)
    assert found.keys() == {"journal", "checkpoints", "wandb", "logs", "other"}
    blocks = subprocess.run(["du", "-s", "--block-size=1", *tmp_path.iterdir()], capture_output=True, text=True).stdout
    without_folders = sum(
        path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_dir() and not path.is_symlink()
    )
    of_du = sum(int(line.split()[0]) for line in blocks.splitlines())
    assert sum(found.values()) == of_du - without_folders
    assert found["journal"] == pytest.approx(0.6 * MB, rel=0.02)
    assert disk.taken(tmp_path / "nowhere") == {}


def test_what_goes_goes_in_order_and_no_more_than_must(tmp_path):
    parts = [fill(tmp_path / name, 1.0) for name in "abcd"]
    gone = []

    def drop(path: Path) -> None:
        gone.append(path.name)
        path.unlink()

    steps = {path.name: (lambda path=path: drop(path)) for path in parts}
    assert "disk/over" not in Quota(tmp_path, 0, steps).keep() and not gone
    assert Quota(tmp_path, 4, steps).keep()["disk/over"] == 0 and not gone, "just as much as it may be"
    assert Quota(tmp_path, 3, steps).keep() == {"disk/other": 2.0, "disk/over": 0.0}
    assert gone == ["a", "b"], "one would be within the quota, and not for long"


def test_what_cannot_go_is_said_once_and_counted(tmp_path, caplog):
    fill(tmp_path / "node.key", 3.0)

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    quota = Quota(tmp_path, 1, {"older logs": refuse, "traces": lambda: None})
    for _ in range(3):
        assert quota.keep()["disk/over"] == 2.0
    said = [record.getMessage() for record in caplog.records]
    assert sum("nothing more can go; raise config.disk.megabytes (1)" in line for line in said) == 1
    assert any("cannot make room on the disk of older logs" in line for line in said)


def test_earlier_runs_of_wandb_go_and_the_present_one_stays(tmp_path):
    for name in ("run-1", "offline-run-2", "run-3"):
        fill(tmp_path / "wandb" / name / "files", 0.1)
    fill(tmp_path / "wandb" / "debug.log", 0.1)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-3")
    disk.drop_wandb(tmp_path)
    assert sorted(path.name for path in (tmp_path / "wandb").iterdir()) == ["debug.log", "latest-run", "run-3"]
    disk.drop_wandb(tmp_path / "nowhere")
    disk.drop_log(tmp_path)
    disk.drop_traces(tmp_path)


def test_a_journal_gives_back_what_was_pruned_and_stays_the_same_journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    for round_ in range(100):
        journal.write(Entry(0, round_, 0, "Publish", os.urandom(20_000), 1.0))
    name, size = journal.id, disk.taken(tmp_path)["journal"]
    journal.prune(0, 90, 90)
    assert disk.taken(tmp_path)["journal"] >= size
    journal.shrink()
    assert disk.taken(tmp_path)["journal"] < 0.2 * size
    journal.write(Entry(0, 100, 0, "Publish", b"", 1.0))
    assert (
        journal.id == name and [e.round for e in journal.read(0, 0)] == list(range(90, 101)) and journal.offset == 101
    )
    journal.close()


def test_metrics_keep_the_first_row_and_the_newer_half_and_go_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for round_ in range(10):
        log.write({"node": 0, "round": round_})
    log.halve()
    log.write({"node": 0, "round": 10})
    assert [row["round"] for row in read_rows(path)] == [0, 5, 6, 7, 8, 9, 10]
    assert log.offset == path.stat().st_size
    for _ in range(9):
        log.halve()
    assert [row["round"] for row in read_rows(path)][-1] == 10
    log.close()


def test_a_launcher_that_follows_metrics_is_not_confused_by_their_halving(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log, tail = MetricsLog(path), _Tail(path)
    seen = []
    for round_ in range(20):
        log.write({"node": 0, "round": round_})
        if round_ % 3 == 2:
            seen += tail.new_rows()
        if round_ == 11:
            log.halve()
    seen += tail.new_rows()
    rounds = [row["round"] for row in seen]
    assert rounds == sorted(set(rounds)) and rounds[-1] == 19 and len(rounds) >= 17
    log.close()


def test_weights_that_are_shown_are_halved_and_the_latest_stay(tmp_path):
    archive = Archive(tmp_path / "weights", 1 << 30, 1000)
    rng = np.random.default_rng(0)
    names = [archive.add({"a": rng.normal(size=50_000).astype("<f4")}, round_) for round_ in range(8)]
    before = disk.taken(tmp_path)["weights"]
    archive.halve()
    assert disk.taken(tmp_path)["weights"] <= 0.55 * before
    assert archive.path(names[-1], []) and not archive.path(names[0], [])
    archive.add({"a": rng.normal(size=50_000).astype("<f4")}, 8)
    assert archive.path(names[-1], []), "from now on as before"


def test_a_node_that_let_go_of_records_goes_on_after_a_restart(tmp_path):
    first = Live(tmp_path / "0", Wire(), 0, stages=3, every=2, rounds=9)
    first.node._config = first.node._config.__class__(30.0, 2.0, 2, keep=1000)
    countdown = itertools.count(60, -1)
    first.node.run(lambda: next(countdown) <= 0)
    rounds = {entry.round for entry in first.journal.read(0, 0)}
    first.node.let_go_of_records()
    left = {entry.round for entry in first.journal.read(0, 0)}
    assert left < rounds and min(left) == first.checkpoints.needed
    first.node.save()
    first.checkpoints.close()
    first.journal.close()
    again = Live(tmp_path / "0", Wire(), 0, stages=3, every=2, rounds=9)
    again.node.restore(first.rounds())
    again.run()
    assert first.rounds() + again.rounds() == list(range(9))


def test_a_log_that_another_process_appends_to_is_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LOG_BYTES", 1000)
    path = tmp_path / "log.txt"
    with path.open("ab", buffering=0) as log:
        for line in range(100):
            log.write(b"line %03d of many\n" % line)
            disk.rotate(path)
            assert path.stat().st_size <= 1000
    assert sorted(one.name for one in tmp_path.iterdir()) == ["log.txt", "log.txt.1"]
    assert launch.last_line(path, offset=10**9) == "line 099 of many", "of where a process began, which is gone"
    kept = (tmp_path / "log.txt.1").read_bytes() + path.read_bytes()
    assert kept.endswith(b"line 099 of many\n") and b"\0" not in kept
