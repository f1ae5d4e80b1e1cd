import io
import json
import re
import shlex
import subprocess
import sys

import pytest
import scipy.stats
from rich.console import Console

from configs import quickstart
from experiments import report as report_command
from rlswarm_jax.reporting import blocks, report, results
from rlswarm_jax.reporting.plots import plot
from rlswarm_jax.running import arguments as cli

NAMES = ("keen-raven-4131", "bold-elk-0a2f")
TASKS = ("chain_sum", "spell_backward")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """They take most of the time of a report: whoever tests them calls `plot`."""
    monkeypatch.setattr(report, "plot", lambda run: None)


def make_run(workdir, *, rounds=8, done=None, nodes=2, seed=0, after=(0.75, 0.875), base=0.9, config=None):
    """A run's folder, made up: accuracies on 200 problems, of node 0 and 1; held-out every 4 rounds."""
    names, done = NAMES[:nodes], rounds if done is None else done
    finished = done == rounds
    config = quickstart.get_config() if config is None else config
    config.seed, config.rounds = seed, rounds
    before = dict(zip(names, (0.1, 0.2), strict=False))
    rows = []
    for round_ in range(done):
        for node, own in enumerate(names):
            row = {"node": node, "name": own, "round": round_, "reward/mean": 0.1 * round_}
            if round_ % 4 == 0:
                row |= {"held_out/accuracy": before[own] + 0.05 * round_}
                row |= {f"held_out/accuracy/{task}": 0.3 + 0.01 * round_ + 0.1 * node for task in TASKS}
            if round_ + 1 == rounds:
                row |= {"final/accuracy": after[node]}
            rows.append(row)
    summary = {
        "name": config.name,
        "status": "finished" if finished else "stopped",
        "seed": seed,
        "nodes": nodes,
        "rounds": rounds,
        "rounds_done": dict.fromkeys(names, done),
        "wall_seconds": 100.0 + seed,
        "peak_memory_mb": 1834,
        "held_out_problems": 200,
        "held_out_accuracy": {
            "before": before,
            "after": {own: after[i] if finished else None for i, own in enumerate(names)},
            "base": base,
            "per_task": {
                "before": dict.fromkeys(TASKS, 0.15),
                "after": {task: 0.8 if finished else None for task in TASKS},
                "base": base and dict.fromkeys(TASKS, base),
            },
        },
        "external_fraction": 0.451,
        "records": {
            "published": 16,
            "received": 13,
            "rejected": {"bad signature": 3},
            "unused_groups": {"unknown task": 5},
        },
        "learned_from": {names[0]: {names[-1]: 41}, names[-1]: {names[0]: 37}} if nodes == 2 else {names[0]: {}},
        "samples": {"generated": 5120, "trained_local": 3000, "trained_external": 2464},
        "config": json.loads(config.to_json_best_effort()),
        "versions": {"python": "3.12.1", "jax": "0.11.0"},
        "hardware": "Imaginary CPU, 2 cores",
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "summary.json").write_text(json.dumps(summary))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def written(workdir):
    return report.write_report(workdir).read_text(encoding="utf-8")


def printed(workdir):
    console = Console(file=io.StringIO(), width=100)
    report.print_summary(workdir, console)
    return console.file.getvalue()


def cells(text, first):
    """The cells of the table's row that starts so, in Markdown."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_report_has_the_runs_figures(tmp_path):
    text = written(make_run(tmp_path / "run"))
    interval = scipy.stats.binomtest(150, 200).proportion_ci(method="wilson")
    shown = f"75.0 % ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
    assert cells(text, "0 keen-raven-4131") == ["8", "10.0 % (6.6–14.9)", shown, "+65.0"]
    assert cells(text, "mean over nodes") == ["", "15.0 %", "81.2 %", "+66.2"]
    assert cells(text, "chain_sum") == ["15.0 %", "80.0 %", "+65.0", "90.0 %"]
    assert "| 0 keen-raven-4131 |  | 41 | 41 |" in text
    assert "| 1 bold-elk-0a2f | 37 |  | 37 |" in text
    assert "45.1 % of the samples trained on came from peers: 2,464" in text
    assert cells(text, "records received") == ["13"]
    assert cells(text, "records rejected: bad signature") == ["3"]
    assert cells(text, "groups left unused: unknown task") == ["5"]
    for fact in ("100 s", "1,834 MB", "Imaginary CPU, 2 cores", "python 3.12.1, jax 0.11.0"):
        assert f"| {fact} |" in text


def test_the_terminal_says_what_the_report_says(tmp_path):
    text = printed(make_run(tmp_path / "run"))
    for fact in (
        "quickstart, seed 0: 2 nodes, 8 rounds, finished",
        "81.2 %",
        "+66.2",
        "bad signature",
        "1,834 MB",
    ):
        assert fact in text
    assert "skipped" not in text


def test_every_plot_the_report_shows_is_there(tmp_path):
    run = make_run(tmp_path / "run")
    text = written(run)
    plot(results.load(run))
    for image in ("held_out.png", "reward.png", "learned_from.png"):
        assert f"]({image})" in text
        assert (run / image).read_bytes().startswith(PNG)


def test_a_node_alone_has_no_exchange(tmp_path):
    run = make_run(tmp_path / "run", nodes=1)
    text = written(run) + printed(run)
    for word in ("From whom", "Records", "learned_from", "peers", "mean over nodes"):
        assert word not in text
    plot(results.load(run))
    assert (run / "reward.png").exists() and not (run / "learned_from.png").exists()


def test_only_a_spoiled_model_is_said_to_have_been_spoiled(tmp_path):
    assert "brought back by reinforcement learning, not knowledge gained" in written(
        make_run(tmp_path / "spoiled", config=quickstart.get_config("spoiled"))
    )
    assert "spoiled" not in written(make_run(tmp_path / "other", base=None))


def test_what_the_embedded_model_was_not_taught_is_said_to_be_learned(tmp_path):
    text = written(make_run(tmp_path / "new", config=quickstart.get_config(), base=None))
    assert "small tasks, six_letters not among them: a gain there is learned" in text
    known = quickstart.get_config("spoiled")
    known.model.path = "embedded:base"
    assert "not among them" not in written(make_run(tmp_path / "known", config=known, base=None))


@pytest.mark.parametrize("path", ["embedded:base", "models/tiny-qwen3", "Qwen/Qwen3-0.6B"])
def test_another_model_is_not_said_to_have_been_spoiled(tmp_path, path):
    config = quickstart.get_config("spoiled")
    config.model.path = path
    assert "and then spoiled" not in written(make_run(tmp_path / "run", config=config))


def test_the_embedded_model_was_not_taught_every_task(tmp_path):
    config = quickstart.get_config("spoiled")
    with config.unlocked():
        config.tasks = {"countdown": {}, "sums": {"dataset": "chain_sum"}}
    text = written(make_run(tmp_path / "run", config=config))
    assert "was taught other tasks than countdown and then spoiled" in text and "brought back" not in text


def with_groups(run, rewards, **counts):
    """The run's rows, with so many groups with an advantage and such rewards."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    fields = {"groups/local": 0.0, "groups/external": 0.0, "groups/received_with_advantage": 0.0} | counts
    rows = [row | fields | {"reward/mean": rewards} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize(
    ("rewards", "why"),
    [(0.0, "too hard for this model"), (1.0, "nothing more to teach"), (0.5, "some of the time")],
)
def test_a_run_in_which_no_group_had_an_advantage_says_so_first(tmp_path, rewards, why):
    run = with_groups(make_run(tmp_path / "run"), rewards)
    text = written(run)
    section = text[text.index("## ") :].splitlines()
    assert section[0] == "## What was learned"
    assert section[2].startswith("No group of completions had an advantage") and why in section[2]
    assert f"python -m experiments.show {run}" in section[2]
    terminal = " ".join(printed(run).split())
    assert terminal.index("No group of completions had an advantage") < terminal.index("By task")


@pytest.mark.parametrize("name", ["groups/local", "groups/external", "groups/received_with_advantage"])
def test_a_run_with_any_advantage_does_not_say_that_there_was_none(tmp_path, name):
    run = with_groups(make_run(tmp_path / "run"), 0.5, **{name: 1.0})
    assert "No group" not in written(run) + printed(run)


def test_a_run_of_which_nobody_knows_does_not_say_that_there_was_none(tmp_path):
    assert "No group" not in written(make_run(tmp_path / "run"))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_result_is_the_last_thing_in_the_terminal_and_names_stay_whole(tmp_path, width):
    console = Console(width=width, record=True, file=io.StringIO())
    report.print_summary(make_run(tmp_path / "run"), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= max(width, len(text.split("\npython ")[1].splitlines()[0]) + 7)
    titles = [line for line in text.splitlines() if line in ("What was learned", "By task", "Cost", "Reproduce")]
    assert titles == ["By task", "Cost", "Reproduce", "What was learned"]
    assert all(text.count(name) >= 2 for name in NAMES)  # in one piece
    last = text[text.index("What was learned") :]
    assert "+66.2" in last and "75.0 %" in last and "keen-raven-4131" in last


def test_a_table_too_wide_goes_without_what_matters_least_and_says_so():
    table = [["who", "what", "more", "gain"], ["keen-raven-4131", "something", "quite a lot of it", "+12.5"]]
    for width, shown, gone in [(100, "more", ""), (42, "what", "more"), (24, "gain", "more, what")]:
        console = Console(width=width, record=True, file=io.StringIO())
        blocks.print_table(table, console, ("more", "what"))
        text = console.export_text()
        assert "keen-raven-4131" in text and "+12.5" in text and shown in text
        assert (f"(too narrow for: {gone})" in " ".join(text.split())) == bool(gone)


def test_corrupt_metrics_are_skipped_and_counted(tmp_path):
    whole, torn = make_run(tmp_path / "whole"), make_run(tmp_path / "torn")
    with (torn / "metrics.jsonl").open("ab") as file:
        file.write(b'[1, 2]\n\xff\xfe\n{"round": 3}\n{"node": 0, "name": "keen-rav')
    assert "Unreadable lines of metrics.jsonl, skipped: 4." in written(torn)
    assert results.load(torn).rows == results.load(whole).rows


def test_a_run_without_metrics_has_no_curves(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    text = written(run)
    assert "There are no curves" in text and "held_out.png" not in text
    assert cells(text, "mean over nodes") == ["", "15.0 %", "81.2 %", "+66.2"]


def test_a_stopped_run_reports_its_latest_measurement(tmp_path):
    run = make_run(tmp_path / "run", rounds=20, done=10)  # held-out at rounds 0, 4 and 8
    text = written(run)
    assert cells(text, "mean over nodes") == ["", "15.0 %", "55.0 %", "+40.0"]
    assert cells(text, "chain_sum") == ["15.0 %", "43.0 %", "+28.0", "90.0 %"]
    assert "Not all nodes reached round 20; the latest figures are of round 8." in text
    assert f"--workdir {run} --resume" in text


def test_what_was_measured_before_learning_is_never_called_after(tmp_path):
    text = written(make_run(tmp_path / "run", rounds=20, done=3))
    assert cells(text, "mean over nodes") == ["", "15.0 %", "–", "–"]
    assert "15.0 % before, not measured after learning" in text


def test_the_command_to_reproduce_gives_the_same_config(tmp_path, monkeypatch):
    config = quickstart.get_config("smoke")
    config.learn.learning_rate = 0.123
    config.simulation.partitions = ((0.0, 5.0, ((0,), (1,))),)
    command = results.command(results.load_summary(make_run(tmp_path / "run", seed=3, config=config)))
    program, arguments = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "experiments.run"]
    monkeypatch.setattr("sys.argv", ["experiments.run", *arguments])  # where ml_collections looks for overrides
    parsed = cli.parse(arguments).config
    assert parsed.to_json_best_effort() == config.to_json_best_effort()
    assert "--config.seed=3" in arguments and len(arguments) == 6  # only what differs from the smoke variant


OWN = """
from configs import quickstart


def get_config(variant=""):
    config = quickstart.get_config()
    config.name = "another-name"
    config.rounds = 7 if variant == "short" else 9
    return config
"""
ENDPOINT = "--config.chain.endpoint=$RPC_URL"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config.seed=3", "--config.learn.learning_rate=1e-5", "--resume", "--workdir=elsewhere"],
        ["--config.tasks={'countdown': {}, 'sums': {'dataset': 'chain_sum', 'weight': 2.0}}", "--workdir", "x y"],
        ["--config.simulation.partitions=((0.0, 5.0, ((0,), (1,))),)", "--config.simulation.slowdown=(2.0, 1.0)"],
        ["--config.game.personas=('You doubt.', \"You don't; $HOME `x`\")", "--config.swarm.name=a b"],
        [ENDPOINT, "--config.chain.contract=0x" + "1" * 40, "--config.chain.id=5", "--noresume"],
        ["--config.seed", "5"],
    ],
)
@pytest.mark.parametrize("variant", ["", ":short"])
def test_the_line_to_reproduce_runs_as_printed(tmp_path, monkeypatch, arguments, variant):
    """Through a shell: of a config of one's own, wherever it is and whatever it calls itself."""
    monkeypatch.setattr(report, "plot", lambda run: None)
    file = tmp_path / "my configs" / "two words-1.py"
    file.parent.mkdir()
    file.write_text(OWN)
    argv = ["--config", f"{file}{variant}", *arguments]
    wanted = cli.parse(argv)
    run = make_run(tmp_path / "run", config=wanted.config.copy_and_resolve_references())
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": list(wanted.words)}))
    line = re.search(r"```bash\n(.*)\n```", written(run))[1]
    assert line in printed(run)
    monkeypatch.setenv("RPC_URL", "http://expanded-by-the-shell")
    echo = f"python() {{ shift 2; {sys.executable} -c 'import sys, json; print(json.dumps(sys.argv[1:]))' \"$@\"; }}"
    said = subprocess.run(["bash", "-c", f"{echo}\n{line}"], capture_output=True, text=True, check=True).stdout
    again = cli.parse(json.loads(said))
    assert again.config.to_json_best_effort() == wanted.config.to_json_best_effort()
    assert not again.resume and again.workdir == cli.parse(["--config", f"{file}{variant}"]).workdir


def test_with_a_chain_the_line_is_for_the_same_settings_and_other_problems(tmp_path):
    config = quickstart.get_config()
    assert "the same settings, other problems" in written(make_run(tmp_path / "chain", config=config))
    simulated, alone = quickstart.get_config("simulate"), quickstart.get_config()
    alone.chain.endpoint = "none"
    for name, config in {"simulated": simulated, "alone": alone}.items():
        assert "other problems" not in written(make_run(tmp_path / name, config=config))


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (None, "does not exist"),
        ("{", "is not the summary of a run"),
        ("[]", "is not the summary of a run"),
        ('{"name": "x"}', "missing required field"),
    ],
)
def test_a_folder_without_a_readable_summary_is_one_sentence(tmp_path, capsys, summary, said):
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert report_command.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert said in message and "summary.json" in message
    assert not (tmp_path / "report.md").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        report_command.main(["--help"])
    assert stop.value.code == 0
    assert "python -m experiments.report runs/quickstart" in capsys.readouterr().out
