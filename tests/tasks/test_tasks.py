import collections
import functools
import importlib
import importlib.metadata
import itertools
import math
import re
from fractions import Fraction

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.tasks import Mixture, TaskError, make_mixture, reasoning, reasoning_library
from rlswarm_jax.tasks.base import HELD_OUT_ONE_IN, Problem
from rlswarm_jax.tasks.reasoning import COMPACT, ReasoningTask

OFFERED = sorted(COMPACT)
offered = pytest.mark.parametrize("name", OFFERED)


@functools.cache
def task(name: str) -> ReasoningTask:
    return ReasoningTask(name, {})


# --- the answers, found again from the question alone

LEGS = {
    0: "snake,sea slug,jellyfish,flatworm,leech",
    2: "chicken,bird,human,duck",
    4: "dog,cat,cow,horse,lion,elephant,giraffe,tiger,deer,sheep",
    5: "starfish",
    6: "insect,ant,butterfly,beetle,bee,wasp,grasshopper,cricket,cockroach,praying mantis,firefly",
    8: "spider,scorpion",
    10: "crab,lobster,shrimp",
    14: "woodlouse",
}
LEGS_OF = {animal: legs for legs, animals in LEGS.items() for animal in animals.split(",")}


def arithmetic(text: str) -> Fraction:
    """Sums and products of whole numbers with unary minus, in exact arithmetic."""
    total = Fraction(0)
    for sign, term in re.findall(r"(^|[+-])((?:-?\d+)(?:\*-?\d+)*)", text):
        total += (-1 if sign == "-" else 1) * math.prod(int(factor) for factor in term.split("*"))
    return total


def solve(problem: Problem) -> str:
    question = problem.compact
    numbers = [int(digits) for digits in re.findall(r"\d+", question)]
    match problem.task:
        case "chain_sum" | "products":
            return str(arithmetic(question.removesuffix("=")))
        case "count_bits":
            return str(format(numbers[1], "b").count("1"))
        case "gcd":
            return str(math.gcd(*numbers))
        case "lcm":
            return str(math.lcm(*numbers))
        case "leg_counting":
            animals = re.findall(r"(\d+) ([a-z ]+)", question.split("you have")[1])
            return str(sum(int(n) * LEGS_OF[a if n == "1" else a.removesuffix("s")] for n, a in animals))
        case "letter_counting":
            _, letter, _, text, _ = question.split('"')
            return str(sum(character.lower() == letter for character in text))
        case "number_sorting":
            direction, *values = question.removesuffix("=").split()
            return " ".join(sorted(values, key=float, reverse=direction == "down"))
        case "spell_backward":
            return "".join(reversed(question.removeprefix("rev ").removesuffix("=")))
    raise AssertionError(f"no solver of {problem.task}: a new dataset needs one")


@offered
def test_the_answer_is_right(name):
    for split in ("train", "held_out"):
        for seed in range(150):
            problem = task(name).problem(seed, split)
            assert problem.answers[0] == solve(problem), problem


@offered
def test_the_question_asks_the_same_as_the_compact_one(name):
    """Whoever reads the long form gets the same answer, so the chat and the compact game score alike."""
    for seed in range(50):
        problem = task(name).problem(seed)
        entry = (problem.question, *problem.answers)
        if name in ("chain_sum", "products"):
            (expression,) = re.findall(r"-?\d[\d +*-]*", problem.question)
            assert expression.replace(" ", "") + "=" == problem.compact, entry
        elif name == "spell_backward":
            word = problem.question.rsplit(" ", 1)[1]
            assert problem.compact == f"rev {word.lower()}=" and word[::-1].lower() == problem.answers[0], entry
        elif name == "number_sorting":
            ((asked, asked_values),) = re.findall(r"in (\w+) order: ([^\n]*)", problem.question)
            direction, *values = problem.compact.removesuffix("=").split()
            assert {"up": "ascending", "down": "descending"}[direction] == asked, entry
            assert [float(value) for value in values] == [float(value) for value in asked_values.split(",")], entry
        else:
            assert problem.question == problem.compact


# --- problems are functions of their seed, and held-out ones are others


@offered
def test_a_problem_is_a_function_of_its_seed(name):
    first, second = task(name), ReasoningTask(name, {})
    seeds = [0, 1, 2**32, 2**63 - 1]
    backwards = {seed: second.problem(seed) for seed in reversed(seeds)}
    assert [first.problem(seed) for seed in seeds] == [backwards[seed] for seed in seeds]
    assert len({first.problem(seed).question for seed in range(50)}) > 25
    assert first.problem(2**32) != first.problem(0)  # no seed is cut to 32 bits
    assert [first.problem(seed).seed for seed in seeds] == seeds


def test_neighbouring_seeds_do_not_share_problems():
    """reasoning-gym's item i of seed s is item i - 1 of seed s + 1; ours are drawn apart."""
    questions = [task("chain_sum").problem(seed).question for seed in range(300)]
    assert all(a != b for a, b in itertools.pairwise(questions))
    dataset = reasoning_library.factory().create_dataset("chain_sum", seed=0, size=400)
    assert len({entry["question"] for entry in dataset} & set(questions)) < 20


def test_a_small_task_is_cut_in_two():
    """Sums of two digits: all 200 problems are seen, each on one side only, and one in eight is held out."""
    small = ReasoningTask("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    train = {small.problem(seed).compact for seed in range(4000)}
    held_out = {small.problem(seed, "held_out").compact for seed in range(1000)}
    assert train | held_out == {f"{a}{sign}{b}=" for a in range(10) for b in range(10) for sign in "+-"}
    assert not train & held_out
    assert scipy.stats.binomtest(len(held_out), 200, 1 / HELD_OUT_ONE_IN).pvalue > 1e-3


def test_held_out_problems_are_distinct_and_the_same_for_all():
    options = {name: {"weight": 1 + index} for index, name in enumerate(OFFERED)}
    first, second = make_mixture(options), make_mixture(dict(reversed(options.items())))
    first.problem(5), first.held_out(3)  # what was asked before does not matter
    held_out = first.held_out(200)
    assert held_out == second.held_out(200)
    assert held_out[:50] == first.held_out(50)
    assert len({(problem.task, problem.compact) for problem in held_out}) == 200
    assert all(problem.split == "held_out" for problem in held_out)
    train = {(p.task, p.compact) for p in (first.problem(seed) for seed in range(5000))}
    assert not train & {(p.task, p.compact) for p in held_out}


# --- what is refused


def test_a_task_too_small_for_both_splits_is_an_error():
    one = make_mixture({"count_bits": {"min_n": 7, "max_n": 7}})
    with pytest.raises(TaskError, match=r"count_bits.* has no (train|held_out) problems: it is too small"):
        one.problem(0), one.problem(0, "held_out")
    few = make_mixture({"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}})
    with pytest.raises(TaskError, match=r"only \d+ distinct held-out problems, 100 are asked for"):
        few.held_out(100)


def test_an_unknown_task_is_an_error_that_names_it_and_those_there_are():
    for name in ("", "no_such"):
        with pytest.raises(TaskError, match=f"{name!r} is not offered.*chain_sum.*sudoku"):
            make_mixture({name: {}})
    with pytest.raises(TaskError, match="dataset 'no_such' of task 'sums' is not offered"):
        make_mixture({"sums": {"dataset": "no_such"}})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chain_sum", {"minimum_terms": 3}),
        ("chain_sum", {"min_terms": 3, "max_terms": 2}),
        ("chain_sum", {"min_terms": "three"}),
        ("chain_sum", {"min_terms": None}),
        ("chain_sum", {"seed": 1}),  # a seed or a size of its own would make it another task
        ("chain_sum", {"size": 10}),
        ("spell_backward", {"data_file": "no_such.txt"}),
    ],
)
def test_options_a_dataset_refuses_are_an_error_that_names_them(name, options):
    with pytest.raises(TaskError, match=rf"{name}.*{next(iter(options))}"):
        make_mixture({name: options})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("spell_backward", {"min_word_len": 50, "max_word_len": 60}, "empty sequence"),
        ("chain_sum", {"min_terms": 2.5}, "ValueError"),
        ("chain_sum", {"min_digits": 5000, "max_digits": 5000}, "limit"),
    ],
)
def test_options_under_which_no_problem_can_be_made_are_an_error_that_says_why(name, options, says):
    mixture = make_mixture({name: options})
    with pytest.raises(TaskError, match=f"{name}.*{says}"):
        mixture.problem(0)


def test_an_item_that_raises_is_passed_over_alike_by_everybody(monkeypatch):
    """A generator that fails for some indices (a division by zero) must not end a node's round."""

    class Failing:
        def __init__(self, config):
            pass

        def __getitem__(self, index):
            if index % 3:
                raise ZeroDivisionError
            return {"question": f"{index}?", "answer": str(index)}

    datasets = reasoning_library.factory().DATASETS
    monkeypatch.setitem(datasets, "count_bits", (Failing, datasets["count_bits"][1]))
    first, second = ReasoningTask("count_bits", {}), ReasoningTask("count_bits", {})
    problems = [first.problem(seed) for seed in range(100)]
    assert problems == [second.problem(seed) for seed in range(100)]
    assert all(int(problem.answers[0]) % 3 == 0 for problem in problems)


# --- scores


@offered
def test_an_oracle_scores_one_and_a_near_miss_nothing(name):
    for seed in range(60):
        problem = task(name).problem(seed)
        score = functools.partial(task(name).score, problem)
        for right in problem.answers:
            assert score(right) == score(f"  {right}\n") == 1.0
            for wrong in (
                f"{right}{right}",
                f"{right} {right}",
                f"{right}.",
                f"The answer is {right}",
                f"{right} or so",
                f"x{right}",
                right[:-1],
                right[1:],
                f"{right}0",
                f"<answer>{right}</answer>",
            ):
                assert wrong in problem.answers or score(wrong) == 0.0, (wrong, problem)
        for constant in ("", " ", "\n", "No", "Yes", "None", "True", "0", "1", "[]", "?", "nan", ".*", "answer"):
            assert score(constant) == float(constant in problem.answers)


@offered
def test_no_constant_is_often_right(name):
    """An answer that pays for nothing would be learned first."""
    right = collections.Counter(task(name).problem(seed).answers[0] for seed in range(400))
    assert right.most_common(1)[0][1] < 0.5 * 400


@settings(deadline=None)
@given(st.sampled_from(OFFERED), st.integers(0, 20), st.text(st.characters(), max_size=40))
def test_any_text_at_all_gets_a_score(name, seed, text):
    problem = task(name).problem(seed)
    expected = {" ".join(answer.split()).lower() for answer in problem.answers}
    assert task(name).score(problem, text) == float(re.sub(r"\s+", " ", text).strip().lower() in expected)


# --- mixtures


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(0.05, 5.0), min_size=2, max_size=4), st.integers(0, 2**40))
def test_tasks_are_picked_by_weight(weights, start):
    names = OFFERED[: len(weights)]
    mixture = Mixture({name: task(name) for name in names}, dict(zip(names, weights, strict=True)))
    counts = collections.Counter(mixture.pick(start + seed) for seed in range(4000))
    expected = [4000 * weight / sum(weights) for weight in weights]
    assert scipy.stats.chisquare([counts[name] for name in names], expected).pvalue > 1e-6


def test_a_mixture_s_problem_is_that_of_the_task_it_picks():
    mixture = make_mixture({"gcd": {"weight": 3}, "lcm": {}})
    for seed in range(100):
        problem = mixture.problem(seed)
        assert problem.task == mixture.pick(seed)
        assert problem == mixture.tasks[problem.task].problem(seed)
        assert mixture.problem(seed, "held_out").task == problem.task


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number_is_an_error(weight):
    with pytest.raises(TaskError, match="positive"):
        make_mixture({"gcd": {"weight": weight}, "lcm": {}})


def test_a_mixture_needs_a_task():
    with pytest.raises(TaskError, match="at least one task"):
        make_mixture({})


def test_a_fingerprint_tells_apart_what_makes_or_scores_problems_differently(monkeypatch):
    def of(options):
        mixture = make_mixture(options)
        return (mixture.fingerprint, *(task.fingerprint for task in mixture.tasks.values()))

    one = of({"gcd": {"max_value": 50}, "lcm": {}})
    assert one == of({"lcm": {}, "gcd": {"max_value": 50}})  # order is nothing
    assert of({"gcd": {"min_value": 2, "max_value": 9}}) == of({"gcd": {"max_value": 9, "min_value": 2}})
    options, weight, other_task = (
        of({"gcd": {"max_value": 51}, "lcm": {}}),
        of({"gcd": {"max_value": 50, "weight": 2}, "lcm": {}}),
        of({"gcd": {"max_value": 50}, "products": {}}),
    )
    assert len({one[0], options[0], weight[0], other_task[0]}) == 4
    assert options[1] != one[1] and options[2] == one[2]  # a task's own is of its options alone
    assert weight[1:] == one[1:]
    assert len({task(name).fingerprint for name in OFFERED}) == len(OFFERED)
    monkeypatch.setattr(reasoning, "VERSION", reasoning.VERSION + 1)
    assert not set(of({"gcd": {"max_value": 50}, "lcm": {}})) & set(one)
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9.9")
    assert not set(of({"gcd": {"max_value": 50}, "lcm": {}})) & set(one)
