"""What was asked, what is right and how that is judged: problems made again by their seeds, without the game."""

from collections.abc import Callable, Mapping
from typing import Any

from rlswarm_jax.page.texts import named, shown
from rlswarm_jax.tasks import Mixture, Problem, TaskError, make_mixture
from rlswarm_jax.tasks.code import CodeTask
from rlswarm_jax.tasks.dataset import DatasetTask
from rlswarm_jax.tasks.reasoning import ReasoningTask
from rlswarm_jax.tasks.rewards import RewardTask

MOST_RIGHT = 4
Problems = Callable[[str, str], dict[str, Any] | None]  # by a task's name and a problem's seed


def no_problems(task: str, seed: str) -> None:
    return None


def make_problems(config: Mapping[str, Any]) -> Problems:
    """Of a config's tasks; of tasks that cannot be made here, or of no such problem, None."""
    model = config.get("model", {})
    compact = model.get("prompts") == "compact" or (model.get("prompts"), model.get("path")) == ("auto", "embedded")
    try:
        mixture = make_mixture(config.get("tasks", {}))
    except TaskError:
        return no_problems

    def found(task: str, seed: str) -> dict[str, Any] | None:
        try:
            return asked(mixture, mixture.tasks[task].problem(int(seed)), compact)
        except Exception:  # a task may be anybody's module
            return None

    return found


def asked(mixture: Mixture, problem: Problem, compact: bool) -> dict[str, Any]:
    """question: as models were asked, in the short form if `compact`. full: the same for a person, where that differs.
    right: accepted answers, the canonical one first. judged: how an answer is scored.
    """
    right = problem.answers[:MOST_RIGHT] if problem.verifiable else ()
    question = problem.compact if compact else problem.question
    return {
        "question": shown(question),
        "full": shown(problem.question) if question != problem.question else None,
        "right": [named(answer) for answer in right],
        "judged": judged(mixture.tasks[problem.task]),
    }


def judged(task: Any) -> str:
    """How a task scores an answer, in a sentence."""
    if isinstance(task, ReasoningTask):
        return {
            "exact": "An answer is right, 1, if it is the same text, but for white space and case; any other earns 0.",
            "threshold": "An answer is right, 1, if it is that one or reasoning-gym's scorer takes it for right; any "
            "other earns 0.",
            "graded": "An answer earns what reasoning-gym's scorer gives it, from 0 to 1.",
        }[task.score_kind]
    if isinstance(task, DatasetTask):
        check = task.options.check
        says = "" if check == "none" else f" if the check {check!r} finds that it says the same; any other earns 0"
        return f"An answer is right, 1,{says}." if says else "Nothing can score an answer: the swarm's votes count."
    if isinstance(task, RewardTask):
        return f"An answer earns what {', '.join(task.options.reward)} gives it, from 0 to 1."
    if isinstance(task, CodeTask):
        return "An answer is a program; it is run against tests in a sandbox."
    return "The task's own code scores an answer, from 0 to 1."
