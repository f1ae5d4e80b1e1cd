"""Every dataset of reasoning-gym can be made by name; its answers are right, its held-out problems are others."""

import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlswarm_jax.tasks import TaskError, make_mixture, reasoning_library, reasoning_scores
from rlswarm_jax.tasks.base import split_of
from rlswarm_jax.tasks.reasoning import COMPACT, ReasoningTask
from tests.tasks.gym_datasets import QUICK, SLOW, audit, every_dataset, problems_digest, solution, task

every = pytest.mark.parametrize("name", every_dataset())


def test_there_is_a_task_of_every_dataset_and_each_is_audited():
    registered = reasoning_library.factory().DATASETS.keys()
    assert set(every_dataset()) == registered - {"composite"} and len(every_dataset()) > 100
    assert sys.modules.get("pycosat") is None  # sympy would take what stands in for it for the real one
    with pytest.raises(TaskError, match="composite; name a task for each"):
        make_mixture({"composite": {}})


@every
def test_the_audit_says_what_is_done(name):
    _, here, where = audit()[name]
    assert here.startswith("one answer") == (name in reasoning_scores.UNIQUE)
    assert (task(name).seconds == 0) == (where == "here")
    assert (task(name, "graded").seconds == 0) == (name in reasoning_scores.OURS)


def answers_are_right(name, seeds):
    """By the dataset's scorer, and in each way of scoring: graded problems carry what all of these need."""
    raw = functools.partial(reasoning_scores.scorer_of(name), task(name)._dataset)
    for seed in seeds:
        problem = task(name, "graded").problem(seed)
        right = solution(problem)
        if name != "number_sorting":  # its compact form is another than its scorer reads
            assert raw(problem.data, right.strip()) >= reasoning_scores.RIGHT_FROM, (problem, right)
        for how in ("threshold", "graded"):
            assert task(name, how).score(problem, f" {right}\n") >= reasoning_scores.RIGHT_FROM, (problem, right)
            assert task(name, how).score(problem, "") == task(name, how).score(problem, "\n ") == 0.0
        assert problem.compact == problem.question or name in COMPACT


@every
def test_its_own_answers_are_right_and_silence_is_not(name):
    answers_are_right(name, [0] if name in SLOW else range(4))


@pytest.mark.slow
@every
def test_its_own_answers_are_right_many_times(name):
    answers_are_right(name, range(10 if name in SLOW else 150))


def split_is_disjoint(name, count):
    train = [task(name).problem(seed) for seed in range(4 * count)]
    held_out = [task(name).problem(seed, "held_out") for seed in range(count)]
    assert all(problem.split == "train" for problem in train)
    assert all(problem.split == "held_out" for problem in held_out)
    for content in ("compact", "question"):
        assert not {getattr(p, content) for p in train} & {getattr(p, content) for p in held_out}
    other = ReasoningTask("other", {"dataset": name, **QUICK.get(name, {})})  # a task of the same, drawn otherwise
    assert all(split_of(name, other.problem(seed).compact) == "train" for seed in range(count))


@pytest.mark.parametrize(
    "name", [*COMPACT, "acre", "binary_matrix", "cryptarithm", "rush_hour", "tower_of_hanoi", "word_ladder"]
)
def test_held_out_problems_are_no_training_problems(name):
    split_is_disjoint(name, 20)


@pytest.mark.slow
@every
def test_held_out_problems_are_no_training_problems_of_any_dataset(name):
    split_is_disjoint(name, 5 if name in SLOW else 40)


def test_two_tasks_may_be_of_one_dataset():
    options = {"min_terms": 2, "max_terms": 2}
    mixture = make_mixture(
        {"two": {"dataset": "chain_sum", **options}, "ten": {"dataset": "chain_sum", "min_terms": 10, "max_terms": 10}}
    )
    for seed in range(40):
        problem = mixture.problem(seed)
        assert len(problem.compact.lstrip("-").replace("-", "+").split("+")) == {"two": 2, "ten": 10}[problem.task]
        assert mixture.score(problem, problem.answers[0]) == 1.0
    two, own = mixture.tasks["two"], ReasoningTask("chain_sum", options)
    assert two.fingerprint != own.fingerprint and two.problem(0).question != own.problem(0).question


def test_problems_do_not_depend_on_what_else_is_made_or_rolled():
    """codeio keeps its programs on its class, word_ladder remembers failures, and list_functions has common dice."""
    for name in ("codeio", "list_functions", "pool_matrix", "word_ladder"):
        first = ReasoningTask(name, {})
        expected = [first.problem(seed) for seed in range(6)]
        again = ReasoningTask(name, {})
        ReasoningTask(name, {"difficulty": 5} if name == "codeio" else {}).problem(0)
        random.seed(5), np.random.seed(5)
        state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
        assert [again.problem(seed) for seed in reversed(range(6))] == expected[::-1]
        assert random.getstate() == state and np.random.get_state()[1].tolist() == numpy_state


def test_no_scorer_runs_what_it_is_sent(tmp_path):
    """A foreign process, of another hash seed, sends code to all of them while an audit hook looks on."""
    marker = tmp_path / "marker"
    command = [sys.executable, "-m", "tests.tasks.hostile_scorers", str(marker)]
    environment = os.environ | {"PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout)
    assert found["datasets"] == sorted(every_dataset())
    assert {"compile", "exec", "open"} <= set(found["control"])  # the hook sees what it is there to see
    assert found["events"] == []
    assert found["right"] == []
    assert found["written"] == []  # by the programs that codeio runs
    assert found["memory"] < 1024
    assert found["slowest"] < 0.5
    assert not marker.exists()
    # and all nodes make the same problems, whatever their hash seed
    for name in every_dataset():
        assert found["problems"][name] == problems_digest(task(name, "graded")), name


# --- levels

# reasoning-gym's own curricula lead to options that its datasets refuse.
REFUSED_LEVELS = {("knight_swap", 1), ("modulo_grid", 1)}


@every
def test_a_level_of_the_curriculum_makes_a_task(name):
    if not reasoning_library.factory().has_curriculum(name):
        with pytest.raises(TaskError, match=f"{name}.* has no curriculum"):
            ReasoningTask(name, {"level": 0})
        return
    if (name, 1) in REFUSED_LEVELS:
        with pytest.raises(TaskError, match=f"{name}.* refused its options"):
            ReasoningTask(name, {"level": 1})
        return
    assert ReasoningTask(name, {"level": 1}).fingerprint != task(name).fingerprint


@pytest.mark.parametrize(("level", "terms"), [(0, {2, 3}), (2, {2, 3, 4}), (5, set(range(2, 8)))])
def test_a_level_makes_the_problems_it_says(level, terms):
    """chain_sum has 2 terms at level 0, and another at each; its curriculum keeps the lower levels in."""
    easy = ReasoningTask("chain_sum", {"curriculum": {"num_terms": level}})
    drawn = {len(easy.problem(seed).compact.lstrip("-").replace("-", "+").split("+")) for seed in range(200)}
    assert drawn <= terms and max(drawn) == level + 2
    digits = [
        int(d) for seed in range(50) for d in easy.problem(seed).compact.strip("=").replace("-", "+").split("+") if d
    ]
    assert max(digits) < 10  # the other attribute is at its first level


def test_levels_of_attributes_are_counted_from_the_common_one():
    both = ReasoningTask("chain_sum", {"level": 4, "curriculum": {"num_digits": 0}})
    sums = [both.problem(seed).compact.strip("=").lstrip("-").replace("-", "+").split("+") for seed in range(200)]
    assert max(map(len, sums)) == 6 and all(len(term) == 1 for terms in sums for term in terms)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": -1}, "level of task 'chain_sum' is -1, expected a whole number from 0 to 10"),
        ({"level": 11}, "expected a whole number from 0 to 10"),
        ({"level": "high"}, "expected a whole number"),
        ({"level": True}, "expected a whole number"),
        ({"curriculum": {"terms": 1}}, "no attribute 'terms'; expected num_digits, num_terms"),
        ({"curriculum": {"num_digits": 10}}, "num_digits of task 'chain_sum' is 10, expected .* 0 to 9"),
        ({"level": 1, "min_terms": 2}, "sets min_terms twice"),
        ({"level": 1, "seed": 3}, "chain_sum.*seed"),
        ({"score": "half"}, "score of task 'chain_sum' is 'half', expected one of exact, threshold, graded"),
    ],
)
def test_levels_and_scores_there_are_not_are_errors_that_say_what_there_is(options, says):
    with pytest.raises(TaskError, match=says):
        ReasoningTask("chain_sum", options)


def test_a_dataset_that_tells_no_answer_cannot_be_scored_exactly():
    for name in reasoning_scores.UNANSWERED:
        assert task(name).problem(0).answers == ()
        with pytest.raises(TaskError, match=f"{name}.* tells no answer"):
            ReasoningTask(name, {"score": "exact"})


def test_one_dataset_comes_without_the_others_and_they_come_when_they_are_asked_for():
    """In a process of its own: what was imported stays so."""
    script = """
import sys
from rlswarm_jax.tasks import reasoning_library as library
one = library.factory("spell_backward").DATASETS["spell_backward"]
assert "reasoning_gym" not in sys.modules and "sympy" not in sys.modules and "matplotlib" not in sys.modules
assert library.factory("chain_sum").DATASETS["spell_backward"] is one
assert "no_such" not in library.factory("no_such").DATASETS and len(library.factory().DATASETS) > 100
assert library.factory("chain_sum").DATASETS["spell_backward"] is one and "matplotlib" not in sys.modules
import reasoning_gym
dataset = reasoning_gym.create_dataset("game_of_life", size=1, seed=1)
assert dataset.score_answer(dataset[0]["answer"], dataset[0]) == 1 and "cellpylib" in sys.modules
assert type(reasoning_gym.create_dataset("spell_backward", size=1, seed=1)) is one[0]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
