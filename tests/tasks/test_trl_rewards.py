"""Reward functions as TRL's documentation and its users write them, plugged in as they are."""

import json
import os
import sys

import pytest

from configs import quickstart
from rlswarm_jax.errors import UsageError
from rlswarm_jax.running import build, simulated
from rlswarm_jax.running.arguments import Arguments
from rlswarm_jax.tasks import TaskError, make_mixture
from rlswarm_jax.tasks.rewards import RewardTask
from rlswarm_jax.tasks.verifier import Scores, Verifier
from tests.tasks.trl_rewards import (
    accuracy_reward,
    boxed_reward,
    even_reward,
    failing_reward,
    format_reward,
    length_reward,
    nan_reward,
    negative_reward,
    seen,
    slow_reward,
    spying_reward,
    text_reward,
    two_rewards,
)

HERE = "tests.tasks.trl_rewards"
ROWS = [
    {"prompt": f"What is {n} + {n}?", "solution": f"${2 * n}$", "kind": "even" if n % 2 == 0 else "odd"}
    for n in range(60)
]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def task(path, reward, **options):
    return RewardTask("mine", {"path": path, "question": "prompt", "reward": reward, **options})


def named(*functions):
    return tuple(f"{HERE}:{function.__name__}" for function in functions)


def even_and_odd(made):
    """A problem of a row that is even, and one that is not."""
    problems = [made.problem(seed) for seed in range(100)]
    return (next(p for p in problems if p.data["kind"] == kind) for kind in ("even", "odd"))


def test_a_reward_of_texts_scores_with_the_columns_of_its_row(path):
    made = make_mixture({"mine": dict(kind="trl", path=path, question="prompt", reward=f"{HERE}:boxed_reward")})
    assert made.tasks["mine"].seconds == 10  # it runs in a process of its own
    for seed in range(30):
        problem = made.problem(seed)
        right = problem.data["solution"].strip("$")
        assert problem.verifiable and problem.question in {row["prompt"] for row in ROWS}
        assert made.score(problem, rf"so \boxed{{{right}}}") == 1.0
        assert (
            made.score(problem, right) == made.score(problem, rf"\boxed{{{right}0}}") == made.score(problem, "") == 0.0
        )


def test_rewards_of_messages_add_up_with_weights_as_in_trl(path):
    made = task(path, named(accuracy_reward, format_reward), weights=(0.75, 0.25), conversational=True)
    problem = made.problem(1)
    right = problem.data["solution"].strip("$")
    assert made.score(problem, right) == 0.75
    assert made.score(problem, f"<think>adding</think> {right}") == 0.25
    assert made.score(problem, "7 or so") == 0.0


def test_a_reward_that_does_not_apply_is_left_out(path):
    made = task(path, named(even_reward))
    even, odd = even_and_odd(made)
    assert made.score(even, "yes") == 1.0 and made.score(odd, "yes") == 0.0
    assert task(path, named(even_reward), threshold=-0.5).score(odd, "yes") == 0.0  # nothing is no 0
    both = task(path, named(even_reward, length_reward), scale=0.125)
    assert both.score(even, "yes") == (1 + 3) / 8 and both.score(odd, "yes") == 3 / 8


def test_a_score_is_scaled_and_cut_or_held_against_a_threshold(path):
    problem = task(path, named(length_reward)).problem(0)
    assert task(path, named(length_reward)).score(problem, "abc") == 1.0
    assert task(path, named(length_reward), scale=0.25).score(problem, "abc") == 0.75
    assert [task(path, named(length_reward), threshold=3).score(problem, text) for text in ("ab", "abc")] == [0.0, 1.0]
    assert task(path, named(negative_reward)).score(problem, "abc") == 0.0


def test_a_reward_may_be_a_coroutine(path):
    made = task(path, named(slow_reward))
    problem = made.problem(0)
    assert made.score(problem, "What is") == 1.0 and made.score(problem, "Why is") == 0.0


def test_a_reward_gets_what_trl_gives_it_and_can_spoil_nothing(tmp_path):
    """Every column but TRL's own, as a list of one; no ids, no trainer; and a copy."""
    row = {"question": "Q", "solution": "1", "tags": ["a"], "prompt": "P", "completion": "C"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    made = RewardTask(
        "mine", {"path": str(tmp_path / "rows.jsonl"), "reward": named(spying_reward), "answer": "solution"}
    )
    problem = made.problem(0, "train" if made.counts.train else "held_out")
    assert problem.answers == ("1",)  # told apart from what scores: people may read it
    for _ in range(2):
        seen.clear()
        assert made.score(problem, "A") == 0.5
    expected = {"question": ["Q"], "solution": ["1"], "tags": [[]], "prompts": ["Q"], "completions": ["A"]}
    assert seen == [expected] and problem.data["solution"] == "1" and problem.data["tags"] == ["a"]


@pytest.mark.parametrize("reward", [nan_reward, two_rewards, text_reward, failing_reward])
def test_a_reward_that_is_no_number_raises_for_the_verifier_to_count(path, reward):
    made = task(path, named(reward))
    with pytest.raises((TaskError, ValueError, RuntimeError)):
        made.score(made.problem(0), "7")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reward": ()}, "needs reward='module:function'"),
        ({"reward": "no_such_module:reward"}, "expected module:function: No module named"),
        ({"reward": "reward"}, "expected module:function"),
        ({"reward": f"{HERE}:no_such"}, "expected module:function: .*no_such"),
        ({"reward": f"{HERE}:not_a_function"}, "which is a int, not a function"),
        (
            {"reward": f"{HERE}:token_reward"},
            "missing a required argument: 'completion_ids'; a reward takes .*solution",
        ),
        ({"weights": (1, 2)}, "as many weights"),
        ({"scale": "big"}, "scale='big'"),
        ({"seconds": 0}, "seconds=0"),
        ({"check": "math"}, "for a check use kind='dataset'"),
        ({"rewards": "x:y"}, "an option 'rewards'"),
        ({"columns": ("kind",)}, "missing a required argument: 'solution'"),
    ],
)
def test_options_that_cannot_be_are_an_error(path, options, says):
    with pytest.raises(TaskError, match=says):
        task(path, **{"reward": f"{HERE}:boxed_reward", **options})


READS_AT_CALL = """
import os
def reward(completions, **kwargs):
    return [float(os.environ["JUDGE_KEY"] == completion) for completion in completions]
"""
READS_AT_IMPORT = """
import os
KEY = os.environ["JUDGE_KEY"]
def reward(completions, **kwargs):
    return [float(KEY == completion) for completion in completions]
"""


@pytest.mark.parametrize("source", [READS_AT_CALL, READS_AT_IMPORT], ids=["at call", "at import"])
def test_a_reward_has_the_environment_of_the_run(path, tmp_path, monkeypatch, source):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "judge_reward", raising=False)
    monkeypatch.setenv("JUDGE_KEY", "of the judge")
    (tmp_path / "judge_reward.py").write_text(source)
    tasks = {"mine": dict(kind="trl", path=path, question="prompt", reward="judge_reward:reward")}
    mixture = make_mixture(tasks)
    with Verifier(tasks, mixture, 1) as verifier:
        problem = mixture.problem(0)
        assert verifier.score([(problem, "of the judge"), (problem, "")]) == Scores([1.0, 0.0], {})


RAISES = {
    READS_AT_IMPORT: r"it raised KeyError: 'JUDGE_KEY' \(.*judge_reward\.py, line 3\)\.$",
    "import no_such_package": r"it raised ModuleNotFoundError: No module named 'no_such_package' \(.*, line 1\)\.$",
    "from os import no_such_name": r"it raised ImportError: cannot import name 'no_such_name' .*line 1\)\.$",
    "x = 1\nx.no_such_name": r"it raised AttributeError: .*no_such_name.*line 2\)\.$",
    "def reward(:": r"it raised .*SyntaxError: ",
    "raise SystemExit(3)": r"it raised SystemExit: 3",
    "import sys; sys.exit()": r"it raised SystemExit",
    "raise RuntimeError('no\\nkey \\x1b[31m')": r"it raised RuntimeError: no key \[31m \(",
    "class Odd(Exception):\n    __str__ = property(lambda _: 1 / 0)\nraise Odd": "it raised judge_reward.Odd: ",
}


@pytest.mark.parametrize(("source", "says"), RAISES.items(), ids=range(len(RAISES)))
@pytest.mark.parametrize("kind", ["trl", "own"])
def test_a_module_that_raises_as_it_is_imported_is_one_sentence_with_the_cause(
    path, tmp_path, monkeypatch, source, says, kind
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "judge_reward", raising=False)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    (tmp_path / "judge_reward.py").write_text(source)
    trl = dict(kind="trl", path=path, question="prompt", reward="judge_reward:reward")
    with pytest.raises(TaskError, match=says) as raised:
        make_mixture({"mine": trl if kind == "trl" else {"kind": "judge_reward:reward"}})
    assert "task 'mine'" in str(raised.value) and str(raised.value).isprintable()


def test_a_run_whose_reward_cannot_be_imported_ends_in_one_sentence(path, tmp_path, monkeypatch):
    """In the parent, or only in a worker; there as the first answer is to be scored."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "judge_reward", raising=False)
    (tmp_path / "judge_reward.py").write_text(f"import os\nif os.getpid() != {os.getpid()}:\n    1 / 0\nreward = max")
    (tmp_path / "ruin.py").write_text("1 / 0")
    config = quickstart.get_config("simulate-smoke")
    config.tasks = {"mine": dict(kind="trl", path=path, question="prompt", reward="ruin:reward")}
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        build.observed(config)
    tasks = {"mine": dict(kind="trl", path=path, question="prompt", reward="judge_reward:reward")}
    mixture = make_mixture(tasks)
    with Verifier(tasks, mixture, 1) as verifier:
        monkeypatch.setattr(simulated, "_run", lambda *_: verifier.score([(mixture.problem(0), "")]))
        with pytest.raises(UsageError, match=r"a worker cannot make the tasks: .* it raised ZeroDivisionError"):
            simulated.run(Arguments(quickstart.get_config("simulate-smoke"), tmp_path / "run", False))


def test_a_task_of_one_s_own_that_raises_as_it_is_made_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_task.py").write_text("def make(name, options):\n    return options['no_such_option']\n")
    with pytest.raises(TaskError, match=r"^task 'mine' cannot be made, own_task:make raised KeyError: 'no_such"):
        make_mixture({"mine": {"kind": "own_task:make"}})


def test_a_fingerprint_tells_rewards_apart(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "first_reward.py").write_text("def reward(completions, **kwargs):\n    return [1.0]\n")
    (tmp_path / "other_reward.py").write_text("def reward(completions, **kwargs):\n    return [0.0]\n")
    prints = [
        task(path, "first_reward:reward").fingerprint,
        task(path, "other_reward:reward").fingerprint,
        task(path, named(boxed_reward)).fingerprint,
        task(path, named(even_reward)).fingerprint,
        task(path, named(even_reward), scale=2.0).fingerprint,
        task(path, named(even_reward), template="$prompt!").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert task(path, "first_reward:reward").fingerprint == prints[0]
    import first_reward

    (tmp_path / "first_reward.py").write_text("def reward(completions, **kwargs):\n    return [0.5]\n")
    assert first_reward and task(path, "first_reward:reward").fingerprint != prints[0]
