"""Tasks of a swarm: a weighted mixture, from which a seed picks a task and the task makes a problem."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from rlswarm_jax import randomness
from rlswarm_jax.tasks.base import Problem, Split, Task, TaskError, imported, reason
from rlswarm_jax.tasks.dataset import DatasetTask
from rlswarm_jax.tasks.reasoning import ReasoningTask
from rlswarm_jax.tasks.rewards import RewardTask

__all__ = ["Mixture", "Problem", "Split", "Task", "TaskError", "make_mixture"]


class Mixture:
    """Weighted tasks. Everything is a function of the seed; nothing is drawn from a stream.

    unread: how many of their accepted answers no check can read, so that only the same text is right.
    parts: by task, what must be equal for two mixtures to have the same problems; fingerprint: of all of them.
    """

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float]):
        if not tasks or not all(0 < weight < math.inf for weight in weights.values()):
            raise TaskError("a mixture needs at least one task, and every weight must be a positive number.")
        self.tasks = dict(sorted(tasks.items()))
        self.unread = sum(getattr(task, "unread", 0) for task in self.tasks.values())
        self._weights = weights
        self.parts = {name: f"weight {weights[name]}, {task.fingerprint}" for name, task in self.tasks.items()}
        joined = " ".join(f"{name} {weights[name]} {task.fingerprint}" for name, task in self.tasks.items())
        self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()[:16]

    def pick(self, seed: int) -> str:
        """The name of the task that the seed falls on, by weight."""
        point = randomness.uniform("problem", "mixture", seed) * sum(self._weights.values())
        for name in self.tasks:
            point -= self._weights[name]
            if point < 0:
                return name
        return next(reversed(self.tasks))

    def problem(self, seed: int, split: Split = "train") -> Problem:
        return self.tasks[self.pick(seed)].problem(seed, split)

    def score(self, problem: Problem, answer_text: str) -> float:
        return self.tasks[problem.task].score(problem, answer_text)

    def canonical(self, problem: Problem, answer_text: str) -> str:
        """The same text for answers that say the same."""
        return self.tasks[problem.task].canonical(answer_text)

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` distinct held-out problems, the same for every node and run of this mixture.

        Raises TaskError if the mixture does not have that many.
        """
        found: dict[tuple[str, str], Problem] = {}
        for index in range(20 * count):
            problem = self.problem(randomness.seed("eval", "held out", index), "held_out")
            found.setdefault((problem.task, problem.compact), problem)
            if len(found) == count:
                return list(found.values())
        raise TaskError(f"the tasks have only {len(found)} distinct held-out problems, {count} are asked for.")


def _code(name: str, options: Mapping[str, Any]) -> Task:
    from rlswarm_jax.tasks.code import CodeTask  # here, or `python -m rlswarm_jax.tasks.sandbox` would be there twice

    return CodeTask(name, options)


KINDS: Mapping[str, Callable[[str, Mapping[str, Any]], Task]] = {
    "code": _code,
    "dataset": DatasetTask,
    "reasoning": ReasoningTask,
    "trl": RewardTask,
}


def make_mixture(tasks: Mapping[str, Mapping[str, Any]]) -> Mixture:
    """From `{task name: {"kind": k, "weight": w, option: value, ...}}`.

    kind: one of `KINDS`, "reasoning" where it is left out, or `module:function` of your own, which takes the name and
    the options. The weight is 1 where it is left out. Raises TaskError.
    """
    made, weights = {}, {}
    for name, fields in tasks.items():
        options = dict(fields)
        weights[name] = float(options.pop("weight", 1.0))
        kind = str(options.pop("kind", "reasoning"))
        made[name] = KINDS[kind](name, options) if kind in KINDS else _own(name, kind, options)
    return Mixture(made, weights)


def _own(name: str, kind: str, options: Mapping[str, Any]) -> Task:
    """A task that somebody else's module makes, whatever that raises. Raises TaskError."""
    try:
        make = imported(kind)
    except TaskError as error:
        raise TaskError(f"task {name!r} is of kind {kind!r}, none of {', '.join(KINDS)}: {error}.") from None
    try:
        return make(name, options)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"task {name!r} cannot be made, {kind} raised {reason(error)}.") from None
