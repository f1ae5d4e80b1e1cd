"""How good a swarm was in an exam, stage by stage, and beside what is had without reading."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

import ml_collections

from rlswarm_jax.evaluation import majority_at_k, mean_and_error, pass_at_k, ranking
from rlswarm_jax.exam import Outcome, Stage
from rlswarm_jax.game.rewards import RIGHT
from rlswarm_jax.game.turns import Critics
from rlswarm_jax.reporting.results import MISSING


@dataclasses.dataclass(frozen=True)
class Measure:
    """A mean over problems, its standard error, and over how many."""

    mean: float
    error: float | None
    problems: int


def by_task(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Measure]]:
    """The measures over all problems, then for each task if there are several."""
    tasks = sorted({outcome.problem.task for outcome in outcomes})
    found = {"all tasks": measures(outcomes)}
    if len(tasks) > 1:
        found |= {task: measures([o for o in outcomes if o.problem.task == task]) for task in tasks}
    return found


def measures(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    """What is measured on each problem, averaged. A measure that no problem has is left out."""
    size = len(outcomes[0].first.scores[0])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= size]
    of: dict[str, Callable[[Outcome], float | None]] = {"first answer": lambda o: _mean_score(o.first)}
    of |= {f"pass@{k}": functools.partial(_pass_at, k) for k in ks if k > 1}
    of |= {f"majority@{k}": functools.partial(_majority_at, k) for k in ks if k > 2}
    of |= {
        "majority of the swarm": lambda o: float(o.majority),
        "vote of the critics": lambda o: None if o.vote is None else float(o.vote),
        "revised": lambda o: _mean_score(o.revised),
        "majority of revised": lambda o: None if o.majority_revised is None else float(o.majority_revised),
        "first answer, vote wrong": lambda o: _mean_score(o.first) if o.vote is False else None,
        "revised, vote wrong (recovery)": lambda o: _mean_score(o.revised) if o.vote is False else None,
        "revised, vote right": lambda o: _mean_score(o.revised) if o.vote is True else None,
    }
    found = {name: [v for o in outcomes if (v := measure(o)) is not None] for name, measure in of.items()}
    measured = {name: _measure(values) for name, values in found.items() if values}
    measured |= _critics("", [o.critics for o in outcomes if o.critics])
    return measured | _critics("contested: ", [o.contested for o in outcomes if o.contested])


def _critics(prefix: str, found: Sequence[Critics]) -> dict[str, Measure]:
    """Of critics of some problems, beside what is had without reading."""
    if not found:
        return {}
    constants = {
        f"{prefix}always the first": _measure([c.first for c in found]),
        f"{prefix}the majority of those shown": _measure([c.majority for c in found]),
        f"{prefix}always none": _measure([c.none for c in found]),
    }
    return {
        f"{prefix}critic names a best answer": _measure([c.critic for c in found]),
        f"{prefix}critic at random": _measure([c.chance for c in found]),
        **constants,
        f"{prefix}best constant critic": max(constants.values(), key=lambda measure: measure.mean),
    }


def _measure(values: Sequence[float]) -> Measure:
    mean, error = mean_and_error(values) if len(values) > 1 else (values[0], None)
    return Measure(mean, error, len(values))


def _right(scores: Sequence[float]) -> list[bool]:
    return [score >= RIGHT for score in scores]


def _mean_score(stage: Stage | None) -> float | None:
    """The fraction right."""
    if stage is None or not stage.scores:
        return None
    return statistics.fmean(right for row in stage.scores for right in _right(row))


def _pass_at(k: int, outcome: Outcome) -> float:
    """Mean over nodes."""
    return statistics.fmean(float(pass_at_k(len(row), sum(_right(row)), k)) for row in outcome.first.scores)


def _majority_at(k: int, outcome: Outcome) -> float:
    """Mean over nodes."""
    rank = ranking(outcome.problem.task, outcome.problem.seed)
    rows = zip(outcome.first.canonical, outcome.first.scores, strict=True)
    return statistics.fmean(majority_at_k(canonical, _right(scores), k, rank) for canonical, scores in rows)


# --- tables


def table(columns: Mapping[str, Mapping[str, Measure]]) -> list[list[str]]:
    names = dict.fromkeys(name for measured in columns.values() for name in measured)
    rows = [[name, *(_cell(measured.get(name)) for measured in columns.values())] for name in names]
    return [["", *columns], *rows]


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return MISSING
    few = f" (of {measure.problems})" if measure.problems < 100 else ""
    error = "" if measure.error is None else f" ± {100 * measure.error:.1f}"
    return f"{100 * measure.mean:.1f}{error} %{few}"


def as_json(config: ml_collections.ConfigDict, found: Mapping[str, Mapping[str, Mapping[str, Measure]]]) -> dict:
    """evaluation.json."""
    measured = {
        when: {task: {name: dataclasses.asdict(m) for name, m in of.items()} for task, of in tasks.items()}
        for when, tasks in found.items()
    }
    return {"name": config.name, "seed": config.seed, **measured, "config": json.loads(config.to_json_best_effort())}
