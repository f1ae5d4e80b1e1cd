"""A run that is killed at any instant and resumed ends as if it had never been."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARGUMENTS = [
    "--config=configs/quickstart.py:simulate-smoke",
    "--config.rounds=8",
    "--config.evaluation.problems=32",
    "--config.evaluation.rows=32",
    "--config.sampling.temperature=2.0",  # the spoiled model has something to learn from in so few rounds
    "--config.learn.positive_only_external=False",
    "--config.simulation.loss=0.2",
    # node 3 is slow and the others do not wait: at a checkpoint they are in the middle of a later round, and have
    # learned in it
    "--config.simulation.deadline=0.5",
    "--config.simulation.slowdown=(1.0, 1.0, 1.0, 2.2)",
]
CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process = start(workdir)
    assert process.wait(300) == 0
    return workdir


def start(workdir: Path, arguments: list[str] = ARGUMENTS) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.run", *arguments, "--workdir", str(workdir), "--resume"]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)


def rows(workdir: Path) -> list[dict]:
    """What was measured, but for how long it took."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "wall_seconds"} for line in lines]


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def journal_rows(workdir: Path) -> int:
    """How many effects have been journaled so far, from outside."""
    try:
        with sqlite3.connect(f"file:{workdir / 'journal.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT coalesce(max(id), 0) FROM journal").fetchone()[0]
    except sqlite3.Error:
        return 0


def kill_after(process: subprocess.Popen, workdir: Path, effects: int, seconds: float) -> bool:
    """SIGKILL once so many more effects are journaled, and a moment later; whether it was still running."""
    target = journal_rows(workdir) + effects
    while journal_rows(workdir) < target:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL


def interrupted_run(workdir: Path, seed: int, kills: int) -> int:
    """Kills a run again and again, lets the last start finish; returns how often it was killed."""
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        process = start(workdir)
        if not kill_after(process, workdir, draw.randint(1, 90), draw.uniform(0, 0.05)):
            assert process.wait() == 0
            return killed
        killed += 1
    assert start(workdir).wait(300) == 0
    return killed


def check_equal(workdir: Path, uninterrupted: Path) -> None:
    ours, theirs = summary(workdir), summary(uninterrupted)
    assert ours["weights"] == theirs["weights"]
    assert rows(workdir) == rows(uninterrupted)
    for field in ("held_out_accuracy", "records", "learned_from", "samples", "rounds_done"):
        assert ours[field] == theirs[field], field


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    assert sum(row["learn/updates"] for row in rows(uninterrupted)) > 4
    assert len(set(summary(uninterrupted)["weights"].values())) == 4
    assert min(summary(uninterrupted)["rounds_done"].values()) < 8  # node 3 skipped rounds
    assert interrupted_run(tmp_path / "run", seed=0, kills=2) >= 1
    check_equal(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_killed_at_random_instants_equals_uninterrupted(uninterrupted, tmp_path, seed):
    assert interrupted_run(tmp_path / "run", seed=seed, kills=4) >= 1
    check_equal(tmp_path / "run", uninterrupted)


ALONE = [
    "--config=configs/solo.py:smoke",
    "--config.rounds=8",
    "--config.checkpoint_every=2",
    "--config.evaluation.problems=32",
    "--config.evaluation.rows=32",
    "--config.sampling.temperature=2.0",
    "--config.learn.loss=grpo",
    "--config.learn.reference_every=3",  # so that some checkpoints are in the middle of its time
    "--config.learn.updates_per_round=2",
    "--config.learn.entropy_top=0.5",
    "--config.game.redraws=2",
]


@pytest.mark.slow
def test_so_does_one_that_draws_again_and_keeps_near_to_a_reference(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, ALONE).wait(300) == 0
    assert sum(row["sample/redrawn"] for row in rows(whole)) > 4
    assert sum(row.get("learn/kl", 0) > 0 for row in rows(whole)) > 2
    draw = random.Random(5)
    for _ in range(3):
        process = start(killed, ALONE)
        kill_after(process, killed, draw.randint(10, 30), draw.uniform(0, 0.05))
    assert start(killed, ALONE).wait(300) == 0
    assert summary(killed)["weights"] == summary(whole)["weights"] and rows(killed) == rows(whole)


@pytest.mark.slow
def test_ctrl_c_writes_a_report_and_resume_finishes_to_the_same_weights(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    while journal_rows(workdir) < 60:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C
    assert process.wait(120) == 130
    assert summary(workdir)["status"] == "stopped"
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert newest == journal_rows(workdir)  # where it stood
    assert "--resume" in (workdir / "report.md").read_text()
    assert start(workdir).wait(300) == 0
    assert summary(workdir)["status"] == "finished"
    check_equal(workdir, uninterrupted)


def test_a_finished_run_is_moved_aside_and_an_unfinished_one_needs_resume(tmp_path):
    from rlswarm_jax.errors import UsageError
    from rlswarm_jax.running.arguments import parse
    from rlswarm_jax.running.folder import prepare_folder

    workdir = tmp_path / "run"
    config = parse([*ARGUMENTS, "--workdir", str(workdir)]).config
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="choose another --workdir"):
        prepare_folder(config, tmp_path / "mine", resume=True)
    assert prepare_folder(config, workdir, resume=False) is False
    (workdir / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="--resume"):
        prepare_folder(config, workdir, resume=False)
    assert prepare_folder(config, workdir, resume=True) is True
    other = parse([*ARGUMENTS, "--config.learn.learning_rate=0.5"]).config
    with pytest.raises(UsageError, match=r"learn\.learning_rate"):
        prepare_folder(other, workdir, resume=True)
    (workdir / "summary.json").write_text('{"status": "finished"}')
    assert prepare_folder(config, workdir, resume=True) is False
    (aside,) = tmp_path.glob("run-*")
    assert (aside / "summary.json").exists()
    assert not (workdir / "summary.json").exists()
