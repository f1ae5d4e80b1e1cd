"""Problems of reasoning-gym with a scorer that never executes what it reads.

reasoning-gym's own `score_answer` calls `eval` on answers in several datasets and pays for answers that merely
contain the right one. Here an answer is right if it equals an accepted one after white space is folded: only
datasets whose answer is unique are offered.
"""

import functools
import hashlib
import importlib.metadata
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from rlswarm_jax import randomness
from rlswarm_jax.tasks.base import Problem, Split, TaskError, fold, split_of

VERSION = 1
MAX_ANSWER_CHARACTERS = 10_000
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


# The datasets whose answer is unique, each with its short form for a tiny model (stock prompts are 5-10 times
# longer than what they ask). basic_arithmetic is not among them: it rounds quotients down without saying so, and
# takes seconds, at worst hours, for a problem whose dividend is large.
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


class ReasoningTask:
    """One reasoning-gym dataset with its options, as a `Task`.

    Raises TaskError for a dataset that is not offered, or options the dataset refuses.
    """

    seconds = 0.0

    def __init__(self, name: str, options: Mapping[str, Any]):
        if name not in COMPACT:
            raise TaskError(f"task {name!r} is not offered; expected one of {', '.join(sorted(COMPACT))}.")
        # reasoning_gym imports pycosat at once, a C extension without wheels; of its tasks only zebra_puzzles uses it
        sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
        import reasoning_gym  # two seconds: only a node that plays needs it

        self.name = name
        try:
            # item i is Random(seed + i): one dataset object holds the problem of every seed
            self._dataset = reasoning_gym.create_dataset(name, seed=0, size=2**62, **options)
        except (TypeError, AssertionError, ValueError, OSError) as error:
            raise TaskError(f"task {name!r} refused its options {dict(options)}: {error}.") from None
        version = importlib.metadata.version("reasoning-gym")
        described = f"{name} {sorted(options.items())} reasoning-gym {version} task version {VERSION}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]
        self.problem = functools.lru_cache(maxsize=65_536)(self._problem)

    def _problem(self, seed: int, split: Split = "train") -> Problem:
        reason = "it is too small, widen its options"
        for attempt in range(_TRIES):
            try:
                problem = self._draw(seed, randomness.seed("problem", self.name, seed, attempt), split)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # some options make it raise
                reason = f"{type(error).__name__}: {error}"
                continue
            if split_of(self.name, problem.compact) == split:
                return problem
        raise TaskError(f"task {self.name!r} has no {split} problems: {reason}.")

    def _draw(self, seed: int, index: int, split: Split) -> Problem:
        entry = self._dataset[index >> 2]
        compact, short_answer = COMPACT[self.name](entry)
        answers = tuple(dict.fromkeys((short_answer, str(entry["answer"]))))
        return Problem(self.name, seed, entry["question"], compact, answers, split)

    def score(self, problem: Problem, answer_text: str) -> float:
        if len(answer_text) > MAX_ANSWER_CHARACTERS:
            return 0.0
        return float(fold(answer_text) in {fold(answer) for answer in problem.answers})

    def canonical(self, answer_text: str) -> str:
        return fold(answer_text)
