"""Problems of reasoning-gym: every dataset by name, with its options or a level of its curriculum.

    {"kind": "reasoning", "dataset": "countdown", "max_numbers": 4}
    {"kind": "reasoning", "dataset": "chain_sum", "level": 2, "score": "exact"}

What an answer is worth, and what scoring it may run, is in `reasoning_scores`; docs/tasks-audit.md has the audit of
each dataset's scorer.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from typing import Any

from rlswarm_jax import randomness
from rlswarm_jax.tasks import reasoning_library as library
from rlswarm_jax.tasks import reasoning_scores as scores
from rlswarm_jax.tasks.base import Problem, Split, TaskError, fold, split_of

VERSION = 2
SCORES = ("exact", "threshold", "graded")
MAX_ANSWER_CHARACTERS = 10_000
SECONDS = 5.0  # an isolated score may take; most take a millisecond
_TRIES = 1_000  # one problem in eight is held out, so a search this long fails for too small a task alone

Compact = Callable[[dict[str, Any]], tuple[str, str]]


def _numbers(values: list[str]) -> str:
    return " ".join(v.removesuffix(".0") for v in values)


def _expression(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["metadata"]["expression"].replace(" ", "") + "=", entry["answer"]


def _spell_backward(entry: dict[str, Any]) -> tuple[str, str]:
    return f"rev {entry['metadata']['word'].lower()}=", entry["answer"].lower()


def _number_sorting(entry: dict[str, Any]) -> tuple[str, str]:
    data = entry["metadata"]
    order = {"ascending": "up", "descending": "down"}[data["direction"]]
    return f"{order} {_numbers(data['original_numbers'])}=", _numbers(data["sorted_numbers"])


def _as_asked(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["question"], entry["answer"]


# Datasets with a short form for a tiny model (stock prompts are 5-10 times longer than what they ask). Of all others
# the short form is the question.
COMPACT: Mapping[str, Compact] = {
    "chain_sum": _expression,
    "count_bits": _as_asked,
    "gcd": _as_asked,
    "lcm": _as_asked,
    "leg_counting": _as_asked,
    "letter_counting": _as_asked,
    "number_sorting": _number_sorting,
    "products": _expression,
    "spell_backward": _spell_backward,
}

# Where datasets whose `answer` is None, as there are many right ones, keep an example of one.
_EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")


class ReasoningTask:
    """One reasoning-gym dataset as a `Task`, with these options; all others are the dataset's own.

    dataset: its name; the task's own where it is left out.
    score: "threshold" (the default), 1 if the dataset's scorer finds the answer as good as right, or where there is
        but one answer, if it is that one after white space and case are folded; "exact", the same for all datasets
        that tell an answer; "graded", what the scorer says, some of which is often had for nothing.
    level: of the dataset's curriculum, from 0, for all of its attributes, or their highest.
    curriculum: levels of single attributes by name; the others are at `level`, or at their first.

    score_kind: which of these it is, for whoever says what an answer earns.

    Raises TaskError for a dataset there is not, or options it refuses.
    """

    def __init__(self, name: str, options: Mapping[str, Any]):
        own = dict(options)
        self.name = name
        self.dataset = str(own.pop("dataset", name))
        self._dataset = self._make(own)
        self.score_kind = self._how_to_score(options.get("score"))
        self._scorer = scores.scorer_of(self.dataset)
        quick = self.score_kind == "exact" or self.dataset in scores.OURS
        self.seconds = 0.0 if quick else SECONDS
        used = ("reasoning-gym",) if self.dataset in COMPACT else ("reasoning-gym", "numpy", "sympy")
        versions = [f"{package} {importlib.metadata.version(package)}" for package in used]
        described = f"{name} {self.dataset} {self.score_kind} {_sorted(options)} {versions} task version {VERSION}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]
        kept = 65_536 if self.score_kind == "exact" else 4_096  # those carry what their scorer needs
        self.problem = functools.lru_cache(maxsize=kept)(self._problem)

    def _make(self, options: dict[str, Any]) -> Any:
        factory = library.factory(self.dataset)
        if self.dataset == "composite":
            raise TaskError(f"task {self.name!r} is reasoning-gym's composite; name a task for each of its datasets.")
        if self.dataset not in factory.DATASETS:
            known = sorted(factory.DATASETS.keys() - {"composite"})
            at = "" if self.dataset == self.name else f"of task {self.name!r} "
            raise TaskError(f"dataset {self.dataset!r} {at}is not offered; expected one of {', '.join(known)}.")
        config_of = factory.DATASETS[self.dataset][1]
        fields = {key: value for key, value in options.items() if key not in ("score", "level", "curriculum")}
        size = 2**62 if self.dataset in COMPACT else library.PLANNED_ITEMS
        try:
            if options.get("level") is None and not options.get("curriculum"):
                config = config_of(seed=0, size=size, **fields)
            else:
                curriculum = self._curriculum(options, fields)
                config = curriculum.generate_configuration(dict(seed=0, size=size, **fields))
            return library.make(self.dataset, config)
        except TaskError:
            raise
        except (TypeError, AssertionError, ValueError, OSError, LookupError, RuntimeError) as error:
            raise TaskError(f"task {self.name!r} refused its options {dict(options)}: {error}.") from None

    def _curriculum(self, options: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
        """The dataset's curriculum at the levels asked for."""
        factory = library.factory(self.dataset)
        if not factory.has_curriculum(self.dataset):
            raise TaskError(f"task {self.name!r} asks for a level, but dataset {self.dataset!r} has no curriculum.")
        curriculum = factory.create_curriculum(self.dataset)
        highest = {name: len(attribute.levels) - 1 for name, attribute in curriculum.attributes.items()}
        level, by_name = options.get("level"), dict(options.get("curriculum") or {})
        if level is not None:
            self._check_level("level", level, max(highest.values()))
            curriculum.set_global_level(level)
        for name, attribute_level in by_name.items():
            if name not in highest:
                expected = f"expected {', '.join(sorted(highest))}"
                raise TaskError(f"the curriculum of task {self.name!r} has no attribute {name!r}; {expected}.")
            self._check_level(name, attribute_level, highest[name])
            curriculum.set_attr_level(name, attribute_level)
        set_by_it = {
            value
            for attribute in curriculum.attributes.values()
            for key, value in vars(attribute).items()
            if key.endswith("field_name")
        }
        if both := sorted(set_by_it & fields.keys()):
            raise TaskError(f"task {self.name!r} sets {', '.join(both)} twice: by its curriculum and by an option.")
        return curriculum

    def _check_level(self, name: str, level: Any, highest: int) -> None:
        if type(level) is not int or not 0 <= level <= highest:
            raise TaskError(f"{name} of task {self.name!r} is {level!r}, expected a whole number from 0 to {highest}.")

    def _how_to_score(self, asked: Any) -> str:
        how = asked or "threshold"
        if how not in SCORES:
            raise TaskError(f"score of task {self.name!r} is {asked!r}, expected one of {', '.join(SCORES)}.")
        if how == "exact" and self.dataset in scores.UNANSWERED:
            raise TaskError(f"dataset {self.dataset!r} tells no answer, so task {self.name!r} cannot score it exactly.")
        return "exact" if how == "threshold" and self.dataset in scores.UNIQUE else how

    def _problem(self, seed: int, split: Split = "train") -> Problem:
        reason = "it is too small, widen its options"
        for attempt in range(_TRIES):
            try:
                problem = self._draw(seed, randomness.seed("problem", self.name, seed, attempt), split)
            except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:  # some options raise
                reason = f"{type(error).__name__}: {error}"
                continue
            if split_of(self.dataset, problem.compact) == split:
                return problem
        raise TaskError(f"task {self.name!r} has no {split} problems: {reason}.")

    def _draw(self, seed: int, index: int, split: Split) -> Problem:
        if self.dataset in COMPACT:
            entry = self._dataset[index >> 2]  # item i is Random(seed + i): one dataset holds the problem of every seed
            compact, short_answer = COMPACT[self.dataset](entry)
            answers = tuple(dict.fromkeys((short_answer, str(entry["answer"]))))
        else:
            entry = library.item(self.dataset, self._dataset, index)
            compact, answers = entry["question"], _oracles(entry)
        data = None if self.score_kind == "exact" else entry
        return Problem(self.name, seed, entry["question"], compact, answers, split, data=data)

    def score(self, problem: Problem, answer_text: str) -> float:
        if len(answer_text) > max(MAX_ANSWER_CHARACTERS, 2 * max(map(len, problem.answers), default=0)):
            return 0.0
        folded = fold(answer_text)
        exact = float(folded in {fold(answer) for answer in problem.answers})
        if self.score_kind == "exact" or exact or not folded:
            return exact
        score = self._scorer(self._dataset, problem.data, answer_text.strip())
        if self.score_kind == "graded":
            return max(0.0, min(1.0, score))
        return float(score >= scores.RIGHT_FROM_OF.get(self.dataset, scores.RIGHT_FROM))

    def canonical(self, answer_text: str) -> str:
        return fold(answer_text)


def _sorted(value: Any) -> Any:
    """The same text for options that are the same, in whatever order they are given."""
    if isinstance(value, Mapping):
        return sorted((key, _sorted(item)) for key, item in value.items())
    return value


def _oracles(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The answer as it is told, or an example of one; none where the dataset does not tell any.

    Raises ValueError for an integral that it says is itself, and for silence, which must never be right.
    """
    answer = entry["answer"]
    if answer is None:
        answer = next((entry["metadata"][key] for key in _EXAMPLES if key in entry["metadata"]), None)
    if answer is None:
        return ()
    if "Integral(" in str(answer):
        raise ValueError("reasoning-gym does not know the answer")
    if not str(answer).strip():
        raise ValueError("the answer is empty")
    return (json.dumps(answer) if isinstance(answer, dict) else str(answer),)
