"""How good the nodes of a swarm are, stage by stage: the game played on held-out problems, without learning.

    python -m experiments.evaluate --config configs/game.py                         the weights it starts from
    python -m experiments.evaluate --config configs/game.py --checkpoint runs/game  and those that a run has learned

  --config FILE[:variant]       the game, its tasks and how many held-out problems (config.evaluation.problems)
  --config.FIELD=VALUE          changes one field; --config.seed chooses the noise too
  --checkpoint DIR              the folder of a run of that config, simulated or live
  --workdir DIR                 where evaluation.json is written (default: the run's folder, else runs/<config name>)

Every node answers each problem as often as a group has completions, at the sampling temperature; then they criticise
and revise as in the game. Printed, before and after training, with standard errors over problems: pass@k of first
answers (the unbiased estimator), majority@k of one node's samples, the swarm's majority, the critics' vote, the revised
answers, and those where the vote is wrong (recovery); then how often critics name a best answer, beside what is had
without reading: at random, always the first, the majority of those shown, always none. Of all problems first, then of
contested ones, where the answers shown differ in worth.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_collections
from rich.console import Console
from rich.progress import Progress

from rlswarm_jax import identity
from rlswarm_jax.checkpoint import CheckpointError, Checkpoints
from rlswarm_jax.errors import UsageError
from rlswarm_jax.evaluation import majority_at_k, mean_and_error, pass_at_k, ranking
from rlswarm_jax.exam import Outcome, Stage, make_exam, sit
from rlswarm_jax.files import CHECKPOINT_FOLDER, write_whole
from rlswarm_jax.game.rewards import RIGHT
from rlswarm_jax.game.turns import Critics
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.qwen.sampling import PromptError
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.reporting.results import MISSING
from rlswarm_jax.running import build
from rlswarm_jax.running.arguments import Arguments, main
from rlswarm_jax.tasks.verifier import VerifierError

FILE = "evaluation.json"
PER_ROUND = 32  # problems played at once; their records must fit their bounds


@dataclasses.dataclass(frozen=True)
class Measure:
    """A mean over problems, its standard error, and over how many."""

    mean: float
    error: float | None
    problems: int


def run(arguments: Arguments) -> int:
    config, console = arguments.config, Console()
    checkpoint = arguments.checkpoint
    nodes = config.swarm.nodes
    identities = [identity.simulated(config.seed, node) for node in range(nodes)]
    found: dict[str, dict[str, dict[str, Measure]]] = {}
    made = build.build(config, identities, console)
    with made.engine.verifier:
        problems = made.engine.mixture.held_out(config.evaluation.problems)
        exams = [make_exam(game, problems, PER_ROUND) for game in made.games]
        try:
            for name in ("before", "after") if checkpoint else ("before",):
                if checkpoint and name == "after":
                    made.engine.set_states(load_states(checkpoint, made.engine.state(0), nodes))
                with Progress(console=console, transient=True) as progress:
                    rounds = progress.track(sit(exams, identities, made.engine), exams[0].num_rounds, description=name)
                    outcomes = [outcome for round_ in rounds for outcome in round_]
                found[name] = by_task(outcomes)
        except (CheckpointError, PromptError, VerifierError) as error:
            raise UsageError(str(error)) from error
    for task in found["before"]:
        console.print(f"\n[bold]{task}[/bold], {found['before'][task]['first answer'].problems} problems")
        print_table(table({name: tasks[task] for name, tasks in found.items()}), console)
    path = (checkpoint or arguments.workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(as_json(config, found), indent=2) + "\n")
    console.print(f"written to {path}")
    return 0


def load_states(directory: Path, like: TrainState, nodes: int) -> list[TrainState]:
    """The newest states of all nodes of a run, simulated (one checkpoint) or live (one of each node).

    Raises UsageError or CheckpointError if they are not there, or of another model.
    """
    own = sorted(directory.glob("node-*"), key=lambda path: int(path.name.removeprefix("node-")))
    if not own:
        return _newest(directory, [like] * nodes)
    if len(own) != nodes:
        raise UsageError(f"{directory} is a run of {len(own)} nodes; set --config.swarm.nodes={len(own)}.")
    return [state for path in own for state in _newest(path, [like])]


def _newest(directory: Path, like: Sequence[TrainState]) -> list[TrainState]:
    if not (directory / CHECKPOINT_FOLDER).is_dir():
        raise UsageError(f"{directory} has no checkpoints: give --checkpoint the folder of a run.")
    checkpoints = Checkpoints(directory / CHECKPOINT_FOLDER)
    try:
        if (number := checkpoints.latest) is None:
            raise UsageError(f"{directory} has no complete checkpoint yet.")
        return checkpoints.restore(number, like)[0]
    finally:
        checkpoints.close()


# --- measures


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


if __name__ == "__main__":
    main(run, __doc__)
