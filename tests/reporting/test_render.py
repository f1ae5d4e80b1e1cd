import ast
import json

import numpy as np
import pytest

from configs import quickstart
from experiments import render as render_command
from rlswarm_jax.reporting import outcomes, render
from tests.reporting.test_report import make_run
from tests.reporting.test_study import run as outcome

CONFIG = '''"""A study.

Hardware: two cores.
Measured (rendered: quickstart):
  a figure that somebody typed
  and another

What comes after stays.
"""

MEASURED = "untouched"
'''
README = """# Title

<!-- rendered: quickstart -->
| a figure | that somebody typed |
<!-- /rendered -->

Between.

<!-- rendered: warmstart -->
<!-- /rendered -->

<!-- rendered: benchmarks -->
<!-- /rendered -->
"""
AFTERS = ((0.7, 0.8), (0.8, 0.9), (0.6, 0.8))
GAINS = np.array([60.0, 70.0, 55.0])
ROUNDS = quickstart.get_config().rounds


@pytest.fixture
def root(tmp_path):
    """A repository with blocks and no results."""
    root = tmp_path / "repository"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "quickstart.py").write_text(CONFIG)
    (root / "README.md").write_text(README)
    return root


def write_results(root, tmp_path):
    runs = [make_run(tmp_path / f"seed-{seed}", seed=seed, rounds=ROUNDS, after=a) for seed, a in enumerate(AFTERS)]
    for seed, run in enumerate(runs):
        for kind, after in (("sampled", 0.01), ("together", 0.02)):
            make_run(run / "alone" / kind, nodes=1, rounds=ROUNDS, after=(after * (seed + 1),))
    assert render_command.main(["--collect", "quickstart", *map(str, runs[::-1])], root) == 0
    base = {
        "greedy": 0.912,
        "sampled": 0.875,
        "greedy/chain_sum": 0.8,
        "sampled/chain_sum": 1.0,
        "fingerprint": "ab12",
    }
    spoiled = {
        "greedy": 0.1,
        "sampled": 0.05,
        "greedy/chain_sum": 0.0,
        "sampled/chain_sum": 0.02,
        "fingerprint": "cd34",
    }
    made = {"seed": 0, "parameters": 104896, "base": base, "spoiled": spoiled, "seconds": 400, "config": {}}
    (root / "results" / "warmstart.json").write_text(json.dumps(made))
    row = {
        "benchmark": "generate",
        "config": {"batch": 8, "prompt": {"tokens": 64}},
        "value": 12345.6,
        "unit": "tokens/s",
        "versus": "transformers",
        "ratio": 2.5,
        "hardware": "Imaginary CPU",
        "versions": {"jax": "0.11.0"},
    }
    (root / "results" / "benchmarks").mkdir()
    alone = row | {"benchmark": "score", "value": 0.01234, "unit": "s", "versus": None, "ratio": None}
    lines = (json.dumps(row), json.dumps(alone), "")
    (root / "results" / "benchmarks" / "cpu.jsonl").write_text("\n".join(lines))


def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def docstring(root):
    return ast.get_docstring(ast.parse((root / "configs" / "quickstart.py").read_text(encoding="utf-8")))


def test_the_repositorys_own_figures_are_as_measured():
    assert render_command.main(["--check"]) == 0


def test_without_results_blocks_say_so(root):
    assert render_command.main([], root) == 0
    for path in ("results/quickstart.json", "results/warmstart.json", "results/benchmarks/*.jsonl"):
        assert f"Not measured yet: `{path}` does not exist." in readme(root)
    assert "Measured (rendered: quickstart):\n  not measured yet\n\nWhat comes after stays." in docstring(root)
    assert "typed" not in readme(root) + docstring(root)


def test_the_readme_has_each_seed_and_their_mean_and_deviation(root, tmp_path):
    write_results(root, tmp_path)
    assert render_command.main([], root) == 0
    text = readme(root)
    assert f"| 0 | 15.0 % | 75.0 % | 1.0 % | 2.0 % | +60.0 | {ROUNDS} | 100 | 1,834 | 45.1 % |" in text
    assert f"| 2 | 15.0 % | 70.0 % | 3.0 % | 6.0 % | +55.0 | {ROUNDS} | 102 | 1,834 | 45.1 % |" in text
    assert f"| {GAINS.mean():+.1f} ± {GAINS.std(ddof=1):.1f} |" in text
    assert "| un-spoiled base |  | 90.0 % |" in text
    assert "200 held-out problems, mean over 2 nodes. Imaginary CPU, 2 cores; commit unknown." in text
    assert text.startswith("# Title\n") and "\nBetween.\n" in text


def test_a_config_says_what_to_expect_and_is_otherwise_unchanged(root, tmp_path):
    write_results(root, tmp_path)
    assert render_command.main([], root) == 0
    text = docstring(root)
    gain = f"{GAINS.mean():+.1f} ± {GAINS.std(ddof=1):.1f} points over 3 seeds, +55.0 with the worst"
    assert f"  held-out accuracy 15.0 % -> 76.7 %: {gain}\n" in text
    assert "  101 ± 1 s a run on Imaginary CPU, 2 cores\n" in text
    assert text.startswith("A study.") and text.endswith("\n\nWhat comes after stays.")
    whole = (root / "configs" / "quickstart.py").read_text(encoding="utf-8")
    assert whole.partition("What comes after stays.")[2] == CONFIG.partition("What comes after stays.")[2]


def test_warmstart_and_benchmarks(root, tmp_path):
    write_results(root, tmp_path)
    assert render_command.main([], root) == 0
    text = readme(root)
    assert "| all | 91.2 % | 87.5 % | 10.0 % | 5.0 % |" in text
    assert "| chain_sum | 80.0 % | 100.0 % | 0.0 % | 2.0 % |" in text
    assert "104,896 parameters, made in 6 min 40 s" in text
    assert "| generate | batch=8 prompt.tokens=64 | 12,346 tokens/s | 2.50 × transformers | Imaginary CPU |" in text
    assert "| score | batch=8 prompt.tokens=64 | 0.0123 s |  | Imaginary CPU |" in text
    assert "Versions: jax 0.11.0." in text


def evaluation(seed: int, name: str = "game", **means: float) -> dict:
    measured = {key.replace("_", " "): {"mean": mean, "error": 0.1, "problems": 512} for key, mean in means.items()}
    start = {"first answer": {"mean": 0.01, "error": 0.1, "problems": 512}}
    return {"name": name, "seed": seed, "before": {"all tasks": start}, "after": {"all tasks": measured}}


def test_a_study_has_means_over_seeds_and_differences_within_them(root, tmp_path):
    """Both columns by hand: seeds 0.80, 0.84, 0.82 have the mean 82 and the standard error 2 / sqrt(3)."""
    found = [
        evaluation(0, first_answer=0.80, revised=0.85),
        evaluation(1, first_answer=0.84, revised=0.88),
        evaluation(2, first_answer=0.82, revised=0.88),
        evaluation(0, "game-control", first_answer=0.75),
    ]
    (root / "results").mkdir()
    made = {"evaluations": found, "commit": "abc", "hardware": "Imaginary CPU"}
    (root / "results" / "game.json").write_text(json.dumps(made))
    (root / "configs" / "game.py").write_text(CONFIG.replace("quickstart", "game"))
    (root / "README.md").write_text("<!-- rendered: game -->\n<!-- /rendered -->\n")
    assert render_command.main([], root) == 0
    text = readme(root)
    assert "| held-out problems, % right | before | game | game-control (1 of 3 seeds) |" in text
    assert "| first answer | 1.0 ± 0.0 | 82.0 ± 1.2 | 75.0 |" in text
    assert "| revised |  | 87.0 ± 1.0 |  |" in text
    assert "| revised, less first answer |  | +5.0 ± 0.6 |  |" in text  # of 5, 4 and 6
    assert "512 problems, mean over nodes; ± standard error over 3 seeds, on the same problems." in text


def make_trial(tmp_path, seed, revised, **changed):
    config = quickstart.get_config()
    config.chain.endpoint = "none"
    config.update_from_flattened_dict({f"game.{name}": value for name, value in changed.items()})
    workdir = make_run(tmp_path / f"{len(changed)}-{seed}", seed=seed, rounds=10, after=(0.8, 0.9), config=config)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        late = row["round"] >= 8
        row |= {"game/first": 0.5 if late else 0.0, "game/vote": 0.25, "game/revised": revised if late else 1.0}
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((workdir / "summary.json").read_text())
    summary["game"] = {"game/revised": [0.0, revised]}
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir


def test_what_was_tried_is_told_by_what_it_changed(root, tmp_path, capsys):
    """By hand: 0.5 + 0.125 and 0.5 + 0.25 are +12.5 and +25 points, whose t-interval is 18.75 ± 12.706 * 6.25."""
    tried = [make_trial(tmp_path, 0, 0.375, shared=3), make_trial(tmp_path, 0, 0.625), make_trial(tmp_path, 1, 0.75)]
    assert render_command.main(["--trials", "reviser", *map(str, tried)], root) == 0
    (root / "README.md").write_text("<!-- rendered: reviser -->\n<!-- /rendered -->\n")
    assert render_command.main([], root) == 0
    text = readme(root)
    assert "| `game.shared=3` | 1 | 50.0 | 25.0 | 37.5 | -12.5 | 85.0 |" in text
    assert "| `rounds" not in text and "With `chain.endpoint=none`, `rounds=10`." in text
    assert "| default | 2 | 50.0 | 25.0 | 68.8 | +18.8 (-60.7 to +98.2) | 85.0 |" in text
    alone = make_run(tmp_path / "alone", rounds=ROUNDS)
    assert render_command.main(["--trials", "reviser", str(alone)], root) == 2
    assert "no finished run of a game in which answers are revised" in capsys.readouterr().err


def write_reasons(root, tmp_path):
    """Results in which every figure that speaks for a swarm can be told by eye."""
    write_results(root, tmp_path)
    found = {
        "8-0": ((0.50, 0.60), (0.50, 0.60)),
        "4-4": ((0.55, 0.63), (0.57, 0.64)),
        "alone-redrawn": ((0.0, 0.64), (0.0, 0.66)),
        "new-adaptive": ((0.98, 1.0), (1.0, 1.0)),
        "new-8-0": ((0.01, 0.1), (0.03, 0.1)),
    }
    runs = [
        outcome(point, seed, {100: at, 300: end}, generated=800 if point == "alone-redrawn" else 200)
        for point, both in found.items()
        for seed, (at, end) in enumerate(both)
    ]
    outcomes.save(root / "results" / "sapo.json", outcomes.Outcomes(name="sapo", runs=runs))
    poison = [("keys", 0, 78.4), ("keys", 8, 77.7), ("code", "before", 3.0)]
    shape = {"model": "0.5b", "questions": 1, "completions": 8, "prompt": 64}
    rows = {
        "poison": [({"keys": 8, "rounds": 32} | {name: value}, of, "%") for name, value, of in poison],
        "decode": [
            (shape | {"side": side}, of, "tokens/s") for side, of in (("ours", 40.0), ("genrl", 5.0), ("hf", 1.0))
        ],
    }
    for name, those in rows.items():
        lines = [
            json.dumps({"benchmark": name, "config": config, "value": value, "unit": unit, "hardware": "Imaginary CPU"})
            for config, value, unit in those
        ]
        (root / "results" / "benchmarks" / f"{name}.jsonl").write_text("\n".join(lines))


def test_the_readme_has_the_reasons_as_they_were_measured(root, tmp_path):
    page = root / "README.md"
    page.write_text("<!-- rendered: why -->\n<!-- /rendered -->\n")
    render.render(root)
    assert "Not measured yet: `results/quickstart.json` does not exist." in readme(root)
    write_reasons(root, tmp_path)
    render.render(root)
    together, study, trust, quick = [line for line in readme(root).splitlines() if line.startswith("- ")]
    # 98 and 100, 1 and 3
    assert "after 100 rounds 99.0 ± 1.4 % of new words are right, and 2.0 ± 1.4 % of each by itself" in together
    # 5 and 7; 3 and 4; 1 and 2 less; 800 against 200 completions
    assert "against nodes alone: +6.0 points after 100 rounds, +3.5 points after 300 rounds; against one alone" in study
    assert "samples 4.0 times as much, -1.5." in study
    assert "78.4 % in 32 rounds by themselves, and 77.7 % beside 8 keys" in trust
    assert "takes 101 s on two CPU cores" in quick and "8 completions of a 0.5B model come 8.0 times" in quick


def test_a_page_can_have_an_experiment_in_one_line(root, tmp_path):
    write_results(root, tmp_path)
    (root / "docs").mkdir()
    page = root / "docs" / "some.md"
    page.write_text("<!-- rendered: quickstart/line -->\n<!-- /rendered -->\n")
    assert page in render.render(root)
    (line,) = [line for line in page.read_text().splitlines() if line and not line.startswith("<")]
    assert line.startswith("held-out accuracy 15.0 % -> 76.7 %: ") and line.endswith("chance beacons.")


def test_what_a_node_pays_a_day_follows_from_the_gas_of_its_calls(root):
    calls = {
        "settle": 300_000,
        "settle, first of a round: records its beacon": 310_000,
        "advanceRound": 30_000,
        "register": 80_000,
        "deployment": 5_000_000,
    }
    (root / "results").mkdir()
    (root / "results" / "gas.json").write_text(json.dumps({"compiler": "0.8.1+x", "evm": "prague", "gas": calls}))
    (root / "docs").mkdir()
    page = root / "docs" / "chain.md"
    page.write_text("<!-- rendered: gas -->\n<!-- /rendered -->\n<!-- rendered: gas/day -->\n<!-- /rendered -->\n")
    assert page in render.render(root)
    text = page.read_text()
    assert "| register | 80,000 |" in text and "solc 0.8.1, the EVM's prague." in text
    # 300,000 gas in each of 1,440 minutes are 432 million, which are 0.432 coins at a gwei
    assert "| **a node: its settlement** | 300,000 | 1,440 | 0.00432 | 0.432 | 8.64 |" in text
    assert "| the whole swarm: ending a round, its beacon | 40,000 | 1,440 | 0.000576 | 0.0576 | 1.15 |" in text
    assert "| the whole swarm: deployment | 5,000,000 | once | 0.0000500 | 0.00500 | 0.100 |" in text


def test_the_costs_in_the_docs_are_those_that_were_measured():
    page = render_command.ROOT / "docs" / "chain.md"
    text = page.read_text(encoding="utf-8")
    assert text.count(render.OPEN) == 4 and render.fill_markdown(text, render_command.ROOT) == text


def test_rendering_twice_changes_nothing(root, tmp_path):
    write_results(root, tmp_path)
    assert render.render(root) == [root / "README.md", root / "configs" / "quickstart.py"]
    once = readme(root), docstring(root)
    assert render.render(root) == []
    assert (readme(root), docstring(root)) == once
    assert render_command.main(["--check"], root) == 0


@pytest.mark.parametrize("path", ["README.md", "configs/quickstart.py"])
def test_check_names_the_file_whose_figure_was_edited_by_hand(root, tmp_path, capsys, path):
    write_results(root, tmp_path)
    render.render(root)
    edited = (root / path).read_text(encoding="utf-8").replace("61.7", "71.7")
    (root / path).write_text(edited, encoding="utf-8")
    assert render_command.main(["--check"], root) == 1
    assert capsys.readouterr().err.startswith(f"{path} is stale")
    assert (root / path).read_text(encoding="utf-8") == edited


def test_results_are_stale_news_once_their_config_has_changed(root, tmp_path, monkeypatch):
    write_results(root, tmp_path)
    render.render(root)
    config = quickstart.get_config()
    config.rounds, config.wandb.mode = ROUNDS + 1, "offline"
    monkeypatch.setattr(quickstart, "get_config", lambda variant="": config)
    assert render_command.main(["--check"], root) == 1
    render.render(root)
    assert "commit unknown, before changes of rounds." in readme(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- rendered: quickstart -->\n", "not closed"),
        ("<!-- rendered: quickstart -->\n<!-- rendered: solo -->\n<!-- /rendered -->\n", "not closed"),
        ("<!-- rendered: quickstrat -->\n<!-- /rendered -->\n", "quickstrat"),
    ],
)
def test_a_block_that_cannot_be_filled_is_one_sentence(root, capsys, text, said):
    (root / "README.md").write_text(text)
    assert render_command.main([], root) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: README.md: ") and said in message and message.count("\n") == 1
    assert readme(root) == text


def test_corrupt_results_are_one_sentence(root, capsys):
    (root / "results").mkdir()
    (root / "results" / "quickstart.json").write_text('{"runs": [{}]}')
    assert render_command.main(["--check"], root) == 2
    assert "results/quickstart.json is not what is written there" in capsys.readouterr().err


def test_only_finished_runs_of_the_config_as_it_stands_are_collected(root, tmp_path, capsys):
    other = quickstart.get_config()
    other.learn.learning_rate = 0.5
    refused = {
        "a stopped run": [make_run(tmp_path / "stopped", rounds=ROUNDS, done=3)],
        "another learn.learning_rate": [make_run(tmp_path / "other", rounds=ROUNDS, config=other)],
        "not a finished quickstart": [make_run(tmp_path / "smoke", config=quickstart.get_config("smoke"))],
        "has seed 0, as another": [
            make_run(tmp_path / "one", rounds=ROUNDS),
            make_run(tmp_path / "two", rounds=ROUNDS),
        ],
        "does not exist": [tmp_path / "nowhere"],
    }
    for said, workdirs in refused.items():
        assert render_command.main(["--collect", "quickstart", *map(str, workdirs)], root) == 2
        assert said in capsys.readouterr().err
    assert not (root / "results").exists()


def test_collecting_keeps_what_matters_of_the_config(root, tmp_path):
    write_results(root, tmp_path)
    found = json.loads((root / "results" / "quickstart.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [0, 1, 2]
    assert found["hardware"] == "Imaginary CPU, 2 cores"
    assert found["runs"][0]["config"]["learn"] == quickstart.get_config().learn.to_dict()
    assert "wandb" not in found["runs"][0]["config"]
