"""Problems scored by reward functions written for TRL: `reward(prompts, completions, **columns) -> list[float | None]`.

The signature is that of TRL's GRPOTrainer ("Using a custom reward function" in its documentation), called here for
one completion at a time.
"""

import asyncio
import copy
import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlswarm_jax.tasks.base import Problem, Split, TaskError, imported
from rlswarm_jax.tasks.dataset import ALL, DatasetTask

VERSION = 1
SECONDS = 10.0
_NOT_PASSED = {"prompt", "prompts", "completion", "completions", "completion_ids"}

Reward = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """reward: `module:function`, or several of which the weighted sum counts, as in TRL; weights: one for each.

    scale: what the sum is multiplied by. threshold: a product from here on scores 1, others 0; without one the product
    itself, cut to [0, 1], is the score. conversational: prompts and completions are lists of messages, not texts.
    seconds: most that scoring one completion may take.
    """

    reward: tuple[str, ...]
    weights: tuple[float, ...] = ()
    scale: float = 1.0
    threshold: float | None = None
    conversational: bool = False
    seconds: float = SECONDS


class RewardTask:
    """Rows of a data set, which it takes the options of, scored by reward functions. Raises TaskError.

    A function gets every column but TRL's own (`prompt`, `completion`, `completion_ids`) as a list of one value, and
    what it says of a completion is a number, or None where it does not apply. It gets no token ids and no state of a
    trainer. What it raises is its own error, for the verifier to count.
    """

    def __init__(self, name: str, options: Mapping[str, Any]):
        mine = {field.name for field in dataclasses.fields(RewardOptions)}
        self.options = _read_options(name, {key: value for key, value in options.items() if key in mine})
        others = {key: value for key, value in options.items() if key not in mine}
        if "check" in others:
            raise TaskError(f"task {name!r} has a check; its reward is what scores, for a check use kind='dataset'.")
        self._dataset = DatasetTask(name, {"columns": ALL, **others, "check": "none"})
        self._rewards = [_function(name, reward) for reward in self.options.reward]
        self.name = name
        self.seconds = self.options.seconds
        self.counts = self._dataset.counts
        problem = self._dataset.problem(0, "train" if self.counts.train else "held_out")
        for reward in self._rewards:
            _check_signature(name, reward, self._arguments(problem, ""))
        sources = [_source(reward) for reward in self._rewards]
        described = f"{VERSION} {self.options} {self._dataset.fingerprint} {sources}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]

    def problem(self, seed: int, split: Split = "train") -> Problem:
        return dataclasses.replace(self._dataset.problem(seed, split), verifiable=True)

    def score(self, problem: Problem, answer_text: str) -> float:
        arguments = self._arguments(problem, answer_text)
        weights = self.options.weights or (1.0,) * len(self._rewards)
        given = [(_call(reward, arguments), weight) for reward, weight in zip(self._rewards, weights, strict=True)]
        total = self.options.scale * sum(value * weight for value, weight in given if value is not None)
        if self.options.threshold is not None:
            return float(total >= self.options.threshold and any(value is not None for value, _ in given))
        return min(max(total, 0.0), 1.0)

    def canonical(self, answer_text: str) -> str:
        return self._dataset.canonical(answer_text)

    def _arguments(self, problem: Problem, answer_text: str) -> dict[str, list[Any]]:
        prompt: Any = problem.question
        completion: Any = answer_text
        if self.options.conversational:
            prompt = [{"role": "user", "content": prompt}]
            completion = [{"role": "assistant", "content": completion}]
        kept = copy.deepcopy(problem.data or {})  # a function that changes what it gets changes no later score
        columns = {name: [value] for name, value in kept.items() if name not in _NOT_PASSED}
        return columns | {"prompts": [prompt], "completions": [completion]}


def _read_options(name: str, options: Mapping[str, Any]) -> RewardOptions:
    given = dict(options)
    for field in ("reward", "weights"):
        if isinstance(given.get(field), str | int | float):
            given[field] = (given[field],)
        given[field] = tuple(given.get(field, ()))
    chosen = RewardOptions(**given)
    for field in ("scale", "threshold", "seconds", "weights"):
        value = getattr(chosen, field)
        for number in value if field == "weights" else () if value is None else (value,):
            if type(number) not in (int, float) or not math.isfinite(number) or (field == "seconds" and number <= 0):
                raise TaskError(f"task {name!r} has {field}={value!r}, which cannot be.")
    if not chosen.reward or len(chosen.weights) not in (0, len(chosen.reward)):
        raise TaskError(f"task {name!r} needs reward='module:function', or several and as many weights.")
    return chosen


def _function(name: str, reward: str) -> Reward:
    try:
        found = imported(reward)
    except TaskError as error:
        raise TaskError(f"task {name!r} has reward {reward!r}: {error}.") from None
    if not callable(found):
        raise TaskError(f"task {name!r} has reward {reward!r}, which is a {type(found).__name__}, not a function.")
    return found


def _check_signature(name: str, reward: Reward, arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(reward)
    except ValueError:  # a builtin's, which is not told
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TaskError(
            f"task {name!r} cannot call its reward: {error}; a reward takes {', '.join(sorted(arguments))}, "
            "or some of them and **kwargs."
        ) from None


def _call(reward: Reward, arguments: Mapping[str, Any]) -> float | None:
    """Raises TaskError unless the function gives one number or one None."""
    given = reward(**arguments)
    if inspect.isawaitable(given):
        given = asyncio.run(_wait_for(given))
    values = list(given)
    if len(values) != 1:
        raise TaskError(f"a reward gave {len(values)} values for one completion.")
    if values[0] is None:
        return None
    value = float(values[0])
    if not math.isfinite(value):
        raise TaskError(f"a reward gave {value}; expected a finite number or None.")
    return value


async def _wait_for(given: Any) -> Any:
    return await given


def _source(reward: Reward) -> str:
    """The hash of the file that a function is in: nodes whose rewards differ do not understand each other."""
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(inspect.unwrap(reward)) or "").read_bytes()).hexdigest()
    except (OSError, TypeError):  # no file of its own: a partial, a builtin
        return ""
