"""A real sweep, small, killed anywhere and started again, ends as one that nobody touched; and how others start it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from wandb.sdk.launch.sweeps import utils as agent

from rlswarm_jax.errors import UsageError
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import folder, record, slurm, sweep
from tests.small import SHAPES
from tests.waits import wait_for

CHECKOUT = Path(__file__).parent.parent.parent
STUDY = """
from configs import common
from configs.sweeps import Sweep

def get_config(variant=""):
    config = common.swarm("study")
    common.simulate(config)
    config.swarm.nodes = 2
    config.game.stages = 1
    config.chain.endpoint = "none"
    config.rounds, config.evaluation.every, config.checkpoint_every = 12, 6, 2
    config.wandb.mode = "disabled"
    return config

def get_sweep(variant=""):
    return Sweep({"alone": {"swarm.external_groups": 0}, "both": {}}, (0, 5), "alone")
"""
OWN = [words for words in SHAPES if "external_groups" not in words]


class Study:
    """A sweep as a user starts it; `run` waits for it."""

    def __init__(self, tmp_path: Path):
        self._file, self.workdir = tmp_path / "study.py", tmp_path / "runs"
        self._file.write_text(STUDY)

    def arguments(self, *more: str) -> list[str]:
        return [f"--config={self._file}", f"--workdir={self.workdir}", *OWN, *more]

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "experiments.sweep", *self.arguments(*more)]
        settings = os.environ | {"JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=CHECKOUT, env=settings, stdout=pipe, stderr=pipe, text=True)

    def run(self, *more: str) -> str:
        process = self.start(*more)
        told, errors = process.communicate(timeout=400)
        assert process.returncode == 0, told + errors
        return told

    def rounds(self, name: str) -> int:
        file = self.workdir / name / "metrics.jsonl"
        return len(file.read_text().splitlines()) // 2 if file.exists() else 0

    def child(self, name: str) -> int:
        """The process of a run."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if f"--workdir={self.workdir / name}".encode() in words:
                return int(path.parent.name)
        raise AssertionError(name)

    def tables(self) -> str:
        """The report, but for what the clock says."""
        text = (self.workdir / "report.md").read_text()
        assert "nan" not in text and "both" in text
        return re.sub(r"[\d,]+ \|$", "|", text, flags=re.MULTILINE)

    def weights(self) -> dict[str, dict[str, str]]:
        summaries = sorted(self.workdir.glob("*/seed-*/summary.json"))
        return {str(path.relative_to(self.workdir)): json.loads(path.read_text())["weights"] for path in summaries}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("undisturbed"))
    told = study.run()
    assert "4 of 4" in told and f"report: {study.workdir / 'report.html'}" in told
    return study


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["sweep", "run"])
def test_a_sweep_that_is_killed_and_started_again_ends_with_equal_tables(undisturbed, tmp_path, killed):
    study = Study(tmp_path)
    process = study.start()
    wait_for(lambda: study.rounds("alone/seed-0") >= 5, seconds=120)
    if killed == "sweep":
        process.kill()
        process.communicate()
    else:
        os.kill(study.child("alone/seed-0"), signal.SIGKILL)
        told, errors = process.communicate(timeout=400)
        assert "alone/seed-0: killed by SIGKILL; once more at the end" in told and process.returncode == 0, errors
    assert (study.rounds("both/seed-5") == 12) == (killed == "run")
    study.run()
    assert study.tables() == undisturbed.tables()
    assert study.weights() == undisturbed.weights() and len(study.weights()) == 4
    assert sorted(path.name for path in study.workdir.glob("*/seed-*[0-9]")) == ["seed-0", "seed-0", "seed-5", "seed-5"]


@pytest.mark.slow
def test_what_is_stopped_has_saved_and_a_single_index_goes_on(undisturbed, tmp_path):
    study = Study(tmp_path)
    process = study.start("--jobs=1")
    wait_for(lambda: study.rounds("alone/seed-0") >= 2, seconds=120)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    states = [run.state() for run in sweep.plan(study.arguments()).runs]
    assert states == ["begun", "new", "new", "new"]
    told = study.run("--index=0")
    assert "resuming at round" in told
    summary = study.workdir / "alone" / "seed-0" / "summary.json"
    same = undisturbed.workdir / "alone" / "seed-0" / "summary.json"
    assert json.loads(summary.read_text())["weights"] == json.loads(same.read_text())["weights"]
    assert "alone/seed-0 is finished" in study.run("--index=0")
    assert not list((study.workdir / "alone").glob("seed-0-*"))  # nothing was moved aside


@pytest.mark.slow
def test_a_run_ends_when_the_sweep_is_gone(tmp_path):
    study = Study(tmp_path)
    process = study.start("--config.rounds=100000", "--jobs=1")
    wait_for(lambda: study.rounds("alone/seed-0") >= 2, seconds=120)
    child = study.child("alone/seed-0")
    process.kill()
    process.communicate()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), seconds=60)
    assert not folder.in_use(study.workdir / "alone" / "seed-0")
    assert (study.workdir / "alone" / "seed-0" / "summary.json").exists()  # it has saved


# --- on a cluster


def test_without_submitit_one_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"--slurm needs submitit: pip install 'rlswarm_jax\[slurm\]'"):
        slurm.submit([], [], "", 0, tmp_path)


SBATCH = """#!/usr/bin/env python3
import os, sys
open(os.environ["SUBMITTED"], "a").write(open(sys.argv[-1]).read())
print("Submitted batch job 4711")
"""


def test_an_array_of_jobs_is_submitted(tmp_path, monkeypatch):
    """To an sbatch of our own, which keeps what it is given."""
    pytest.importorskip("submitit")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text(SBATCH)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "submitted"))
    study = Study(tmp_path)
    told = study.run("--slurm=slurm_partition=gpu timeout_min=90 gpus_per_node=1", "--jobs=2", "--seeds=5")
    assert "submitted 2 jobs: 4711_0 4711_1" in told
    script = (tmp_path / "submitted").read_text()
    for line in ("partition=gpu", "time=90", "gpus-per-node=1", "array=0-1%2"):
        assert f"#SBATCH --{line}\n" in script
    refused = study.start("--slurm=partitoin=gpu")
    said = refused.communicate()[1]
    assert refused.returncode == 2 and said.startswith("error: cannot submit to slurm: Parameter 'partitoin'")
    with pytest.raises(UsageError, match="--slurm has 'timeout_min'; expected NAME=VALUE"):
        slurm.submit([], [], "timeout_min", 0, tmp_path)


@pytest.mark.slow
def test_jobs_of_submitit_play_the_runs(tmp_path):
    """As processes of its local executor: what a job does is what it does on a cluster."""
    pytest.importorskip("submitit")
    study = Study(tmp_path)
    told = study.run("--points=both", "--config.rounds=2", "--slurm=cluster=local timeout_min=5")
    assert "submitted 2 jobs" in told
    runs = sweep.plan(study.arguments("--config.rounds=2")).chosen("both")
    wait_for(lambda: all(run.state() == "finished" for run in runs), seconds=200)
    assert study.run("--points=both", "--config.rounds=2", "--slurm=cluster=local").count("submitted 0 jobs") == 1


# --- Weights & Biases


def agents_words(**values) -> list[str]:
    """The arguments with which its agent starts a run."""
    command = agent.create_sweep_command(
        ["${interpreter}", "-m", "experiments.run", "--config=configs/solo.py", "${args}"]
    )
    given = {name.replace("__", "."): {"value": value} for name, value in values.items()}
    at = command.index("${args}")
    return [*command[3:at], *agent.create_sweep_command_args({"args": given})["args"], *command[at + 1 :]]


def test_what_an_agent_sets_is_taken(monkeypatch):
    words = agents_words(
        config__learn__learning_rate=1e-05,
        config__rounds=4,
        config__learn__positive_only_local=True,
        config__learn__positive_only_external=False,
        config__learn__loss="dapo",
        config__game__weights=[1, 0.5, 0],
        config__simulation__loss=0,
    )
    assert words[1] == "--config.learn.learning_rate=1e-05" and "--config.learn.positive_only_local=True" in words
    config = cli.parse(words).config
    cli.check(config)
    assert (config.learn.learning_rate, config.rounds, config.learn.loss) == (1e-5, 4, "dapo")
    assert config.learn.positive_only_local is True and config.learn.positive_only_external is False
    assert tuple(config.game.weights) == (1, 0.5, 0) and config.simulation.loss == 0.0


def test_each_run_of_an_agent_has_a_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "k3x")
    assert cli.parse(agents_words()).workdir == Path("runs/solo")  # one may choose an id oneself
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert cli.parse(agents_words()).workdir == Path("runs/solo/k3x")
    assert cli.parse([*agents_words(), "--workdir=here"]).workdir == Path("here")


def test_a_runs_id_follows_from_sweep_point_and_seed(tmp_path):
    first, second = (sweep.plan(Study(tmp_path).arguments()).runs for _ in range(2))
    ids = [record.run_id(run.config, None) for run in first]
    assert ids == [record.run_id(run.config, None) for run in second] and len(set(ids)) == 4
    assert record.run_id(first[0].config, "node") not in ids
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)
    assert record.run_id(cli.parse(["--config=configs/solo.py"]).config, None) is None
