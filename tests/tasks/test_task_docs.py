"""What docs/tasks.md shows works when it is pasted."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from configs import quickstart
from rlswarm_jax.running import build
from rlswarm_jax.tasks import make_mixture
from rlswarm_jax.tasks.dataset import DatasetOptions

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tasks.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def pasted(tmp_path, monkeypatch):
    """The files that the page tells a reader to save, importable by their names."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {match[1]: block for block in BLOCKS if (match := re.match(r'"""([\w/]+)\.py', block))}
    for name, block in files.items():
        name = name.replace("configs/", "pasted_")
        (tmp_path / f"{name}.py").write_text(block)
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return files


def shown() -> dict[str, dict]:
    """`config.tasks.NAME = dict(...)` of every block, by name."""
    found = {}
    for block in BLOCKS:
        for node in ast.parse(block).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config.tasks."):
                call = node.value
                assert isinstance(call, ast.Call) and ast.unparse(call.func) == "dict"
                options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
                found[ast.unparse(node.targets[0]).removeprefix("config.tasks.")] = options
    return found


def test_a_task_of_one_s_own_works_when_pasted(pasted):
    assert len([line for line in pasted["my_tasks"].splitlines() if line.strip()]) <= 30
    mixture = make_mixture({"clock": shown()["clock"]})
    held_out = mixture.held_out(100)
    train = [mixture.problem(seed) for seed in range(1000)]
    assert not {problem.compact for problem in held_out} & {problem.compact for problem in train}
    for problem in held_out + train:
        hours, minutes, later = map(int, re.findall(r"\d+", problem.question))
        total = hours * 60 + minutes + later
        right = f"{total // 60 % 24}:{total % 60:02}"
        assert mixture.score(problem, f" {right}\n") == 1.0
        assert mixture.score(problem, right + "0") == mixture.score(problem, "") == 0.0
    assert 90 < max(int(re.findall(r"\d+", problem.question)[2]) for problem in train) <= 120  # it heeds its options
    assert mixture.fingerprint != make_mixture({"clock": {"kind": "my_tasks:make"}}).fingerprint


def test_the_configs_shown_make_tasks(pasted):
    options = shown()
    assert {"chain_sum", "words", "gsm8k", "spell_backward", "mine", "clock"} <= set(options)
    here = {name: given for name, given in options.items() if "openai/" not in str(given.get("path"))}
    mixture = make_mixture(here)
    for name, task in mixture.tasks.items():
        problem = task.problem(3)
        right = problem.answers[0] if problem.answers else problem.data["answer"]
        assert task.score(problem, rf"\boxed{{{right}}}" if name == "mine" else right) == 1.0
        assert task.score(problem, "no") == 0.0
    gsm8k = {key: value for key, value in options["gsm8k"].items() if key != "kind"}
    assert DatasetOptions(**gsm8k).held_out_split == "test"


def lines() -> list[str]:
    """The blocks of lines for a config that the embedded model can play: no English, and no network."""
    blocks = [block for block in BLOCKS if block.startswith("config.tasks.")]
    return [block for block in blocks if "openai/" not in block and 'kind="code"' not in block]


@pytest.mark.parametrize("block", lines())
def test_lines_that_are_pasted_into_a_config_give_a_game_that_the_tiny_model_can_play(pasted, block):
    """The last thing before weights are loaded: every held-out and many a training problem fits into a prompt."""
    config = quickstart.get_config("simulate-smoke")
    exec(block, {"config": config})
    assert_playable(config)


def test_the_first_example_is_among_them():
    assert BLOCKS[0] == lines()[0] and len(lines()) >= 4


def assert_playable(config):
    seen = build.observed(config)
    game = build.make_game(config, seen.tokenizer, seen.eos_token_ids)  # with a player's own limits
    problems = game.mixture.held_out(config.evaluation.problems) + [game.mixture.problem(seed) for seed in range(200)]
    assert {problem.task for problem in problems} == set(config.tasks)
    lengths = [len(game.prompt_format.encode(problem, game.tokenizer)) for problem in problems]
    assert min(lengths) > 0 and max(lengths) <= game.max_prompt_tokens


def test_the_config_file_shown_is_one(pasted):
    assert_playable(importlib.import_module("pasted_words").get_config("simulate-smoke"))
    config = importlib.import_module("pasted_words").get_config("simulate-smoke")
    (task,) = make_mixture(config.tasks.to_dict()).tasks.values()
    assert task.problem(0).compact.endswith("=") and not task.problem(0).question.endswith("=")


def test_every_option_of_a_data_set_is_in_the_page():
    table = TEXT[TEXT.index("| option |") : TEXT.index("| check |")]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line)))
    assert named == set(DatasetOptions.__dataclass_fields__)
