"""What a sweep's runs are and how far they are, and how processes play them: fake ones, that take no time."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from experiments import sweep as sweep_command
from rlswarm_jax.errors import UsageError
from rlswarm_jax.reporting import outcomes
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import folder, sweep, sweep_view, sweeping
from tests.waits import wait_for

CONFIG = """
from configs import common
from configs.sweeps import Sweep

def get_config(variant=""):
    config = common.swarm("study")
    common.apply(config, variant, common.simulate)
    return config

def get_sweep(variant=""):
    return {sweep}
"""
POINTS = """Sweep({"a": {"swarm.local_groups": 8, "game.weights": (1.0, 0.5, 0.0)}, "b": {}}, (0, 3), "a")"""


@pytest.fixture
def study(tmp_path):
    """Arguments of the study of two points and two seeds; `study(sweep, more)` of another one."""

    seconds = itertools.count(1)

    def arguments(sweep=POINTS, *more):
        file = tmp_path / "study.py"
        file.write_text(CONFIG.format(sweep=sweep))
        written = next(seconds)  # by which, and its size, Python knows whether what it has compiled is still that
        os.utime(file, (written, written))
        return [f"--config={file}:simulate", f"--workdir={tmp_path / 'runs'}", *more]

    return arguments


def test_every_point_is_played_with_every_seed_in_a_folder_of_its_own(study, tmp_path):
    plan = sweep.plan(study(POINTS, "--config.rounds=7", "--config.swarm.local_groups", "5"))
    assert [run.name for run in plan.runs] == ["a/seed-0", "a/seed-3", "b/seed-0", "b/seed-3"]
    assert [run.workdir for run in plan.runs[:2]] == [tmp_path / "runs" / "a" / f"seed-{seed}" for seed in (0, 3)]
    a, b = plan.runs[1].config, plan.runs[2].config
    assert (a.swarm.local_groups, a.game.weights, a.seed, a.rounds) == (8, (1.0, 0.5, 0.0), 3, 7)
    assert (b.swarm.local_groups, b.game.weights, b.seed, b.rounds) == (5, (1.0, 1.0, 1.0), 0, 7)
    assert plan.name == a.wandb.group == "study-simulate" and a.wandb.tags == ("a",)


def test_the_words_of_a_run_give_its_config(study):
    """What its process is told, and what its report says to type."""
    for run in sweep.plan(study(POINTS, "--config.game.weights=(0.5,0.5,0.5)")).runs:
        again = cli.parse([*run.words, f"--workdir={run.workdir}", "--resume"])
        assert again.config.to_json_best_effort() == run.config.to_json_best_effort()
        assert run.arguments.workdir == again.workdir and run.arguments.words == again.words
        plain = cli.parse(run.arguments.words).config
        assert not plain.wandb.group  # typed by hand it is no run of the sweep's there
        assert outcomes.settings_of(plain) == outcomes.settings_of(run.config) and plain.seed == run.seed


@pytest.mark.parametrize(
    ("found", "more", "says"),
    [
        (
            "Sweep({'a': {'learn.lerning_rate': 1.0}}, [0])",
            [],
            "point 'a': the config has no field 'learn.lerning_rate'",
        ),
        (
            "Sweep({'a': {'learn.learning_rate': 5.0}}, [0])",
            [],
            "point 'a': config.learn.learning_rate is 5.0; expected",
        ),
        ("Sweep({'a': {'rounds': 'many'}}, [0])", [], "point 'a': config.rounds is 'many'; expected a whole number"),
        ("Sweep({'a': {'sampling.exact': 'perhaps'}}, [0])", [], "'perhaps'; expected True or False"),
        ("Sweep({'a': {'model.path': 3}}, [0])", [], "config.model.path is 3, and becomes '3'; write it as that"),
        ("Sweep({'a': {'game.shared': 9}}, [0])", [], "point 'a': config.game.shared is 9 of 4 problems"),
        ("Sweep({'a': {}, '../b': {}}, [0])", [], "a point is named '../b'; expected a folder's name"),
        ("Sweep({'a,b': {}}, [0])", [], "a point is named 'a,b'"),
        ("Sweep({}, [0])", [], "the sweep has 0 points and 1 seeds"),
        ("Sweep({'a': {}}, [])", [], "the sweep has 1 points and 0 seeds"),
        ("Sweep({'a': {}}, [1, 1])", [], "the sweep names a seed twice"),
        ("Sweep({'a': {}}, [-1])", [], "config.seed is -1; expected a whole number"),
        ("Sweep({'a': {}}, [0], 'b')", [], "the sweep's baseline 'b' is none of its points: a."),
        ("{}", [], "returns a dict; expected configs.sweeps.Sweep"),
        (POINTS, ["--config.seed=3"], "choose some with --seeds 0,1"),
        (POINTS, ["--config.rounds=many"], "config.rounds is 'many'"),
        (POINTS, ["--points", "a,c"], "the sweep has no point 'c'; it has a, b."),
        (POINTS, ["--seeds=1"], "the sweep has no seed '1'; it has 0, 3."),
        (POINTS, ["--index=4"], "--index is 4; there are 4 runs"),
        (POINTS, ["--jobs=-1"], "--jobs is -1; expected at least 1."),
        (POINTS, ["--jbos=1"], "there is no flag --jbos"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_runs(study, tmp_path, capsys, found, more, says):
    assert sweep_command.main(study(found, *more)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_config_without_a_sweep_is_told_what_it_lacks(capsys):
    assert sweep_command.main(["--config=configs/solo.py"]) == 2
    assert "configs/solo.py has no get_sweep(): docs/sweeps.md shows one." in capsys.readouterr().err


# --- how far they are


def begin(run):
    """As a run does before its first round ..."""
    assert folder.prepare_folder(run.config, run.workdir, True) is False
    (run.workdir / "metrics.jsonl").write_text('{"node": 0, "name": "x", "round": 2, "reward/mean": 0.5}\n')
    return run


def finish(run, seconds=10.0):
    """... and after its last."""
    began = begin(run) if run.state() == sweep.NEW else run
    summary = {
        "name": "study",
        "status": "finished",
        "seed": run.seed,
        "nodes": 1,
        "rounds": 3,
        "rounds_done": {"x": 3},
    }
    summary |= {"wall_seconds": seconds, "held_out_problems": 8, "held_out_accuracy": {"before": {"x": 0.5}}}
    summary["config"] = json.loads(run.config.to_json_best_effort())
    (began.workdir / "summary.json").write_text(json.dumps(summary))
    return run


def test_a_dry_run_says_how_far_all_are_and_does_nothing(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runs = sweep.plan(study()).runs
    finish(runs[0])
    begin(runs[2]).log.write_text("round 1\nerror: the disk is full.\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert sweep_command.main(study(POINTS, "--dry-run")) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.strip()]
    assert rows[0] == ["point", "changes", "runs", "finished", "begun"]
    assert rows[2] == ["a", "swarm.local_groups=8", "game.weights=(1.0,", "0.5,", "0.0)", "2", "1"]
    assert rows[3] == ["b", "2", "1"]
    assert "b/seed-0 broke: error: the disk is full." in said
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert sweep_command.main(study(POINTS, "--count", "--seeds=3")) == 0
    assert capsys.readouterr().out == "2\n"


def test_a_folder_of_another_config_is_refused_before_anything_runs(study, capsys):
    finish(sweep.plan(study()).runs[3])
    changed = POINTS.replace('"b": {}', '"b": {"rounds": 9}')
    assert sweep_command.main(study(changed)) == 2
    assert "b/seed-3 was played with another config.rounds than its point has now: move" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"config\.rounds"):
        sweep.plan(study(POINTS, "--config.rounds=9")).runs[3].state()
    assert sweep.plan(study(POINTS, "--config.wandb.mode=disabled")).runs[3].state() == sweep.FINISHED


def test_what_is_in_a_saved_file_is_not_run_again(study, tmp_path):
    plan = sweep.plan(study())
    finish(plan.runs[1])
    outcomes.save(tmp_path / "had.json", outcomes.find([plan.workdir]))
    known = outcomes.find([tmp_path / "had.json"]).runs
    states = [run.state() for run in sweep.plan(study(POINTS, f"--workdir={tmp_path / 'new'}"), known).runs]
    assert states == ["new", "had", "new", "new"]
    for other in (POINTS.replace("0.5", "0.6"), POINTS.replace("8", "7")):
        plan = sweep.plan(study(other, f"--workdir={tmp_path / 'new'}"), known)
        assert {run.state() for run in plan.runs} == {"new"}


def test_the_time_left_is_from_what_finished_ones_took(study):
    runs = sweep.plan(study()).runs
    states = {run.name: "new" for run in runs}
    assert sweep_view.seconds_left(runs, states, {}, 2) is None
    begin(runs[1])  # 3 of 150 rounds are done
    states = {runs[0].name: "finished", runs[1].name: "running", runs[2].name: "new", runs[3].name: "broken"}
    took = {runs[0].name: 100.0}
    assert sweep_view.seconds_left(runs, states, took, 2) == pytest.approx((100 * 147 / 150 + 100) / 2)
    took["b/seed-3"] = 20.0  # of the same point as the one that waits
    assert sweep_view.seconds_left(runs, states, took, 1) == pytest.approx(98 + 20)


# --- processes

FAKE = """
import json, os, signal, sys, time
folder, seconds, code, summary = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with open(folder + "/tries", "a") as file:
    file.write(json.dumps([sorted(os.sched_getaffinity(0)), time.time(), os.environ["OMP_NUM_THREADS"]]) + "\\n")
end = time.time() + seconds
while time.time() < end:
    time.sleep(0.02)
    if stop:
        open(folder + "/saved", "w").close()
        sys.exit(130)
if code < 0:
    os.kill(os.getpid(), -code)
if code:
    print(f"error: it went wrong with {code}", flush=True)
    os._exit(code)
open(folder + "/summary.json", "w").write(summary)
"""


class Fakes:
    """fate: (seconds, exit code) of a run by its name and try, from 0. finished: all have, however they end."""

    def __init__(self, fate, finished):
        self._fate, self._finished, self.tries = fate, finished, dict[str, int]()

    def __call__(self, run):
        number = self.tries[run.name] = self.tries.get(run.name, -1) + 1
        seconds, code = self._fate(run.name, number)
        if run.state() == sweep.NEW:
            begin(run)
        summary = finish(run).workdir / "summary.json"
        text = summary.read_text()
        if not self._finished:
            summary.unlink()
        return [sys.executable, "-S", "-c", FAKE, str(run.workdir), str(seconds), str(code), text]


def tries(run):
    return [json.loads(line) for line in (run.workdir / "tries").read_text().splitlines()]


def played(plan, fate, jobs=2, console=None, finished=False):
    local = sweeping.Local(plan.runs, jobs, console or Console(quiet=True), Fakes(fate, finished))
    return local.play(), local


def test_all_are_played_so_many_at_once_each_on_its_cores(study, capsys):
    plan = sweep.plan(study())
    code, local = played(plan, lambda *_: (0.5, 0), console=Console())
    assert code == 0 and set(local.states.values()) == {"finished"} and not local.errors
    began = sorted(tries(run)[0][1] for run in plan.runs)
    ended = sorted((run.workdir / "summary.json").stat().st_mtime for run in plan.runs)
    assert all(start > end for start, end in zip(began[2:], ended, strict=False))  # never three at once
    used = {tuple(tries(run)[0][0]) for run in plan.runs}
    if len(sweeping.cores()) > 1:
        assert len(used) == 2 and set(next(iter(used))).isdisjoint(*(set(own) for own in list(used)[1:]))
    assert "a/seed-0 finished in 10 s" in capsys.readouterr().out
    assert played(plan, lambda *_: (0, 1))[0] == 0  # none is played again
    assert all(len(tries(run)) == 1 for run in plan.runs)


def test_a_terminal_shows_each_point_and_how_many_are_done(study):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    assert played(sweep.plan(study()), lambda *_: (1.5, 0), console=console)[0] == 0
    assert "a/seed-0 3/150  a/seed-3 3/150" in shown.getvalue()
    last = shown.getvalue().split("point")[-1]
    assert "4 of 4" in last and "swarm.local_groups=8" in last and "left" not in last


@pytest.mark.parametrize(("jobs", "of"), [(1, 4), (2, 4), (3, 8), (4, 4), (5, 2)])
def test_cores_are_shared_fairly(jobs, of):
    found = [sweeping.share(slot, jobs, range(of)) for slot in range(jobs)]
    assert {core for own in found for core in own} == set(range(of))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert sum(map(len, found)) == max(of, jobs)  # each core has one, but where there are more runs than cores


def test_cards_are_those_that_one_may_see():
    assert sweeping.cards({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}) == []
    assert sweeping.cards({"CUDA_VISIBLE_DEVICES": "3,GPU-5"}) == ["3", "GPU-5"]
    assert sweeping.cards({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_what_breaks_is_said_and_tried_once_more_unless_it_is_to_be_mended(study, capsys):
    plan = sweep.plan(study())
    fates = {"a/seed-0": [1, 0], "a/seed-3": [2, 0], "b/seed-0": [-signal.SIGKILL, -signal.SIGKILL], "b/seed-3": [0]}
    code, local = played(plan, lambda name, number: (0, fates[name][number]), console=Console(width=200))
    assert code == 1
    assert [local.states[run.name] for run in plan.runs] == ["finished", "broken", "broken", "finished"]
    assert local.errors["a/seed-3"] == (2, "ended with code 2: error: it went wrong with 2")
    assert local.errors["b/seed-0"] == (-9, "killed by SIGKILL") and len(local.errors) == 2
    said = capsys.readouterr().out
    assert "a/seed-0: ended with code 1: error: it went wrong with 1; once more at the end" in said
    assert f"a/seed-3: ended with code 2: error: it went wrong with 2 (log: {plan.runs[1].log})" in said
    assert sweeping.last_error(plan.runs[1]) == "error: it went wrong with 2"
    code, local = played(plan, lambda *_: (0, 0))  # the next time all of them are played again
    assert code == 0 and set(local.states.values()) == {"finished"}
    assert sweeping.last_error(plan.runs[3]) == ""


def test_where_all_that_is_broken_is_to_be_mended_the_exit_code_says_so(study):
    assert played(sweep.plan(study()), lambda name, _: (0, 2 * (name == "b/seed-0")))[0] == 2


def test_one_that_is_killed_when_it_has_finished_has_finished(study):
    plan = sweep.plan(study())
    code, local = played(plan, lambda *_: (0, -signal.SIGKILL), finished=True)
    assert code == 0 and not local.errors and all(len(tries(run)) == 1 for run in plan.runs)


def test_ctrl_c_lets_all_save(study):
    plan = sweep.plan(study())

    def stop():
        wait_for(lambda: all((run.workdir / "tries").exists() for run in plan.runs[:2]))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    code, local = played(plan, lambda *_: (60, 0))
    assert code == 130 and not local.errors
    assert [(run.workdir / "saved").exists() for run in plan.runs] == [True, True, False, False]
    assert [local.states[run.name] for run in plan.runs] == ["begun", "begun", "new", "new"]


def test_a_run_that_another_process_is_at_is_waited_for(study, monkeypatch):
    monkeypatch.setattr(sweeping, "AGAIN", 0.1)
    plan = sweep.plan(study())
    other = begin(plan.runs[0])
    holder = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(d, fcntl.LOCK_EX);"
            "print(flush=True); sys.stdin.read()",
            str(other.workdir),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()

    def let_go():
        time.sleep(1.5)
        finish(other)
        holder.communicate()

    thread = threading.Thread(target=let_go)
    thread.start()
    code, local = played(plan, lambda *_: (0, 0))
    thread.join()
    assert code == 0 and set(local.states.values()) == {"finished"}
    assert not (other.workdir / "tries").exists()  # the other has played it
