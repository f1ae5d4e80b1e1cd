"""What a user meets at the command line."""

import errno
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlswarm_jax.errors import DiskError, TransientError, UsageError
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import record
from tests.page.parts import assert_parts_are_the_loss
from tests.small import SHAPES

CHECKOUT = Path(__file__).parent.parent.parent
QUICK = "--config=configs/quickstart.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.run", *arguments]
    settings = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=CHECKOUT, env=settings, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--config"),
        ([QUICK, "--config.seeed=1"], "'seeed'; did you mean config.seed?"),
        ([QUICK, "--config.learn.lerning_rate=1"], "did you mean config.learn.learning_rate?"),
        ([QUICK, "--config.lr=1"], "did you mean config.learn.learning_rate?"),
        ([QUICK, "--config.learning_rate=1"], "did you mean config.learn.learning_rate?"),
        ([QUICK, "--config.game.learning_rate=1"], "did you mean config.learn.learning_rate?"),
        ([QUICK, "--config.nodes=1"], "did you mean config.swarm.nodes?"),
        ([QUICK, "--config.group_sise=1"], "did you mean config.sampling.group_size?"),
        ([QUICK, "--config.max_tokens=1"], "config.sampling.max_new_tokens"),
        ([QUICK, "--config.swarm.temperature", "1"], "config.sampling.temperature or config.evaluation.temperature?"),
        ([QUICK, "--config.zzz=1"], "no field 'zzz'; configs/common.py has all"),
        ([QUICK, "--config.tasks.six_letters.max_wrd_len=1"], "did you mean 'max_word_len'?"),
        ([QUICK, "--config.rounds=many"], "config.rounds is 'many'; expected a whole number from 0 to 10,000,000"),
        ([QUICK, "--config.sampling.exact=maybe"], "config.sampling.exact is 'maybe'; expected True or False"),
        (["--config=configs/nowhere.py"], "'configs/nowhere.py'."),
        (["--config=configs/quikstart.py"], "did you mean configs/quickstart.py?"),
        (["--config=quickstart"], "did you mean configs/quickstart.py?"),
        (["--config=configs/quickstart"], "did you mean configs/quickstart.py?"),
        (["--config=configs/quickstart.py:simulat"], "did you mean 'simulate'?"),
        ([QUICK, "--workdri=x"], "no flag --workdri; did you mean --workdir?"),
        ([QUICK, "--resum"], "no flag --resum; did you mean --resume?"),
        ([QUICK, "-checkpiont", "x"], "no flag -checkpiont; did you mean --checkpoint?"),
        ([QUICK, "--lr=1"], "no flag --lr; did you mean --config.learn.learning_rate?"),
        ([QUICK, "--nodes=1"], "no flag --nodes; did you mean --config.swarm.nodes?"),
        (["--config=configs/quickstart.py:tiny"], "no variant 'tiny'"),
        (["--config=configs/quickstart.py:simulate-tiny"], "no variant 'tiny'; expected simulate or spoiled or smoke"),
        (["--config=configs/quickstart.py", "stray"], "'stray'"),
        (["--confg=configs/quickstart.py"], "no flag --confg; did you mean --config?"),
    ],
)
def test_a_wrong_argument_is_one_sentence_that_names_it(arguments, says):
    with pytest.raises(UsageError) as raised:
        cli.parse(arguments)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["--config.seed=3", QUICK, "--workdir=x"],
        ["--workdir=x", "--config.seed=3", "--config", "configs/quickstart.py"],
        ["-config", "configs/quickstart.py", "--workdir", "x", "--config.seed=3"],
    ],
    ids=["before", "last", "first"],
)
def test_the_config_may_stand_anywhere(argv):
    found = cli.parse(argv)
    assert found.config.seed == 3 and found.workdir == Path("x") and found.file == "configs/quickstart.py"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--config.model.path=/no/such/model", "'/no/such/model' does not exist"),
        ("--config.swarm.nodes=0", "config.swarm.nodes is 0"),
        ("--config.rounds=0", "config.rounds is 0"),
        ("--config.swarm.port=70000", "config.swarm.port is 70000; expected a whole number from 0 to 65,535"),
        ("--config.swarm.host=localhost", "config.swarm.host is 'localhost'; expected an address"),
        ("--config.swarm.name=", "config.swarm.name is ''; expected text of 1 to 64 characters"),
        ("--config.sampling.group_size=65", "config.sampling.group_size is 65; expected a whole number from 2 to 64"),
        ("--config.driver=fly", "expected one of live, simulate, node"),
        ("--config.swarm.bootnodes=('10.0.0.7:4001',)", "'10.0.0.7:4001'; expected /ip4/ADDRESS"),
        ("--config.swarm.peers=('QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N',)", "expected the peer id of a secp2"),
        ("--config.sampling.group_size=1", "config.sampling.group_size is 1"),
        ("--config.sampling.temperature=0.0", "config.sampling.temperature"),
        ("--config.learn.external_correction=none", "expected one of reencode, behaviour, mask"),
        ("--config.model.prompts=riddle", "config.model.prompts is 'riddle'; expected one of auto, compact, chat"),
        ("--config.tasks.spell_backward.max_word_len=1", "'spell_backward' refused its options"),
        ("--config.sampling.max_prompt_tokens=3", "max_prompt_tokens"),
        (
            "--config.sampling.max_new_tokens=33",
            "max_prompt_tokens 96 and config.sampling.max_new_tokens 33 together exceed the 128 positions",
        ),
        ("--config.game.stages=4", "config.game.stages is 4; expected a whole number from 1 to 3"),
        ("--config.game.shared=0", "config.game.shared is 0"),
        ("--config.game.shared=5", "config.game.shared is 5 of 4 problems"),
        ("--config.game.weights=(1.0, 1.0)", "config.game.weights is (1.0, 1.0); expected a tuple of 3, each a number"),
        ("--config.game.shown=31", "cannot show 315 of what was written: raise config.sampling.max_prompt_tokens"),
        ("--config.game.personas=('You doubt.',)", "personas are for the chat format"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence_that_names_the_field(override, says, tmp_path):
    from rlswarm_jax.running import simulated

    arguments = cli.parse(
        ["--config=configs/quickstart.py:simulate-smoke", override, "--workdir", str(tmp_path / "run")]
    )
    with pytest.raises(UsageError) as raised:
        simulated.run(arguments)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_usage_errors_exit_with_2_and_nothing_but_the_sentence():
    done = run("--config=configs/quickstart.py", "--config.seeed=1")
    assert done.returncode == 2
    assert done.stderr == "error: the config has no field 'seeed'; did you mean config.seed?\n"


def test_an_unwritable_workdir_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'file' / 'run'}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "--workdir" in done.stderr


def test_help_teaches():
    done = run("--help")
    assert done.returncode == 0
    for word in (
        "--config",
        "--workdir",
        "--resume",
        "--config.model.path",
        "Ctrl-C",
        "summary.json",
        "Exit codes",
        "75",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("name", "variant", "changes"),
    [
        ("quickstart", "simulate-smoke", [*SHAPES, "--config.model.path=embedded", "--config.rounds=2"]),
        pytest.param("quickstart", "simulate-smoke", [], marks=pytest.mark.slow),
        pytest.param("solo", "smoke", [], marks=pytest.mark.slow),
    ],
)
def test_the_smoke_variant_of_every_config_runs_and_leaves_what_is_promised(name, variant, changes, tmp_path):
    """The live quickstart's is in tests/test_live.py, a single node's in tests/running/test_single_node.py."""
    workdir = tmp_path / "run"
    arguments = [f"--config=configs/{name}.py:{variant}", f"--workdir={workdir}", *changes]
    labels = ["--config.wandb.group=study", "--config.wandb.tags=('point',)"]
    done = run(*arguments, "--config.wandb.mode=offline", *labels)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"run folder: {workdir}")
    summary = json.loads((workdir / "summary.json").read_text())
    nodes = {"quickstart": 4, "solo": 1}[name]
    assert summary["status"] == "finished" and summary["nodes"] == nodes
    assert len(summary["held_out_accuracy"]["before"]) == len(summary["held_out_accuracy"]["after"]) == nodes
    assert summary["held_out_accuracy"]["base"] > 0.8
    published = {"quickstart": 3, "solo": 1}[name] * nodes * summary["rounds"]  # one for each stage
    assert summary["records"]["published"] == published
    assert summary["records"]["received"] == published * (nodes - 1)
    assert summary["records"]["rejected"] == {}
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == nodes * summary["rounds"]
    assert done.stdout.splitlines()[1].startswith("page: http://127.0.0.1:")
    if not changes:  # else there is not always something to learn in so few rounds
        assert_parts_are_the_loss(workdir)
    for file in ("report.md", "held_out.png", "reward.png", "config.json", "journal.sqlite", "page.html"):
        assert (workdir / file).stat().st_size > 0
    assert list((workdir / "checkpoints").iterdir())
    own = record.run_id(cli.parse([*arguments, *labels]).config, None)
    (offline,) = (workdir / "wandb").glob(f"offline-run-*/run-{own}.wandb")
    assert not any("wandb.group" in word or "wandb.tags" in word for word in summary["command"])
    assert offline.stat().st_size > 1000


def copied(tmp_path: Path, name: str, change: str = "") -> str:
    text = (CHECKOUT / "configs" / "quickstart.py").read_text()
    (tmp_path / name).write_text(text.replace('swarm("quickstart")', f"swarm({change})") if change else text)
    return f"--config={tmp_path / name}"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (lambda folder: [copied(folder, "mine.py")], "mine"),
        (lambda folder: [copied(folder, "mine.py") + ":simulate-smoke"], "mine-simulate-smoke"),
        (lambda folder: [copied(folder, "mine.py", "'ours'") + ":smoke"], "ours-smoke"),
        (lambda folder: [copied(folder, "mine.py", "'ours'"), copied(folder, "ours.py")][:1], "mine"),
        (lambda folder: [copied(folder, "mine.py", "''")], "mine"),
        (lambda folder: [copied(folder, "mine.py"), "--config.name=third"], "third"),
        (lambda folder: ["--config=configs/quickstart.py:smoke"], "quickstart-smoke"),
        (lambda folder: ["--config=configs/game.py:control"], "game-control"),
    ],
)
def test_a_copied_config_has_the_name_and_the_folder_of_its_own_file(arguments, name, tmp_path):
    """A copy that kept the original's name moved the real run aside."""
    found = cli.parse(arguments(tmp_path))
    assert found.config.name == name and found.workdir == Path("runs") / name


def test_a_name_that_is_no_folders_is_refused():
    with pytest.raises(UsageError, match=r"config\.name is '\.\./x'; expected a name for a folder"):
        cli.parse([QUICK, "--config.name=../x"])


def test_a_field_that_a_config_of_ones_own_lacks_has_its_default_which_is_said(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import common\n"
        "def get_config(variant=''):\n"
        "    config = common.swarm('mine')\n"
        "    del config.learn['max_grad_norm']\n"
        "    return config\n"
    )
    config = cli.parse([f"--config={mine}"]).config
    cli.check(config)
    assert config.learn.max_grad_norm == 1.0
    assert capsys.readouterr().err == "the config has no learn.max_grad_norm: its default, 1.0, holds\n"


def test_a_program_looks_for_cycles_seldom():
    before = gc.get_threshold()
    try:
        assert cli.code_of(lambda: gc.get_threshold()[0]) == cli.NEW_OBJECTS
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("mend this."), 2, "error: mend this.\n"),
        (TransientError("wait."), 75, "error: wait.\n"),
        (DiskError("full."), 1, "error: full.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "error: cannot write a.png: No space left on"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "error: cannot write: Disk quota exceeded; what was written"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_an_exit_code_says_what_may_help(error, code, said, capsys):
    def fails() -> int:
        raise error

    assert cli.code_of(fails) == code
    told = capsys.readouterr().err
    assert told.startswith(said) and len(told.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_log_on_a_full_disk_does_not_change_the_exit_code():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "experiments.run", "--config=nothing"]
        assert subprocess.run(command, cwd=CHECKOUT, stdout=full, stderr=full).returncode == 2


def test_run_stays_short():
    assert len((CHECKOUT / "experiments" / "run.py").read_text().splitlines()) < 60
