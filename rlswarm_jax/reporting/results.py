"""What a run leaves behind, read back and checked, and the figures that reports are made of."""

import collections
import importlib
import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from rlswarm_jax.chain.ledger import Ledger
from rlswarm_jax.errors import UsageError
from rlswarm_jax.evaluation import wilson
from rlswarm_jax.files import ALONE, ALONE_FOLDER, METRICS_FILE, SUMMARY_FILE

Accuracy = Annotated[float, msgspec.Meta(ge=0, le=1)]
Scores = dict[str, Accuracy | None]
MISSING = "–"
UNIMPORTANT = ("wandb", "checkpoint_every", "publish")  # of a config: says nothing about what was learned


class PerTask(msgspec.Struct, frozen=True):
    """Accuracy by task: mean over nodes before and after, and the un-spoiled model's."""

    before: Scores | None = None
    after: Scores | None = None
    base: Scores | None = None


class HeldOut(msgspec.Struct, frozen=True):
    """Held-out greedy accuracy, 0 to 1, by node before and after; `base` is the un-spoiled model's."""

    before: Scores
    after: Scores | None = None
    base: Accuracy | None = None
    per_task: PerTask = PerTask()


class Records(msgspec.Struct, frozen=True):
    """Counts over all nodes and rounds; rejected records and unused groups by cause."""

    published: float = 0
    received: float = 0
    rejected: dict[str, float] = {}
    unused_groups: dict[str, float] = {}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """summary.json of a run. game: of its metrics, the means of the first and of the last tenth of the rounds.

    alone: held-out accuracy after, of the nodes alone that were played beside it, by kind; in collected results only.
    ledger: what the chain has of it; None without a chain. command: the arguments that it was started with, but for
    its folder; empty where it was not started by a command.
    """

    name: str
    status: Literal["finished", "stopped"]
    seed: int
    nodes: int
    rounds: int
    rounds_done: dict[str, int]
    wall_seconds: float
    held_out_problems: int
    held_out_accuracy: HeldOut
    peak_memory_mb: float | None = None
    external_fraction: float | None = None
    records: Records = Records()
    network: dict[str, float] = {}
    received_from: dict[str, dict[str, float]] = {}
    learned_from: dict[str, dict[str, float]] = {}
    game: dict[str, tuple[float, float]] = {}
    samples: dict[str, float] = {}
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    hardware: str = "unknown"
    alone: dict[str, Accuracy | None] = {}
    ledger: Ledger | None = None
    command: list[str] = []

    @property
    def by_chance(self) -> bool:
        """Whether its problems came from a chain, so that the seed alone does not give them."""
        endpoint = self.config.get("chain", {}).get("endpoint", "none")
        return endpoint != "none" and self.config.get("driver") != "simulate"

    @property
    def before(self) -> float | None:
        """Mean over nodes of the held-out accuracy before learning."""
        return mean(self.held_out_accuracy.before.values())

    @property
    def after(self) -> float | None:
        """Mean over nodes of the held-out accuracy after the last round."""
        return mean((self.held_out_accuracy.after or {}).values())


@dataclass(frozen=True)
class Run:
    """A run's folder, read. rows: by node, in order of rounds. skipped: unreadable lines of metrics.jsonl.

    alone: the nodes alone that were played beside a swarm, by kind.
    """

    workdir: Path
    summary: Summary
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    skipped: int
    alone: Mapping[str, "Run"]

    @property
    def names(self) -> list[str]:
        """The nodes."""
        return list(self.summary.rounds_done)

    @property
    def authors(self) -> list[str]:
        """The nodes, then whoever else was heard."""
        heard = [*self.summary.learned_from.values(), *self.summary.received_from.values()]
        others = {author for row in heard for author in row}
        return [*self.names, *sorted(others - set(self.names))]

    def measured(self, name: str, metric: str = "accuracy") -> list[tuple[int, float]]:
        """(rounds learned from by then, value) wherever a node's held-out metric was measured."""
        rows, before, final = self.rows.get(name, ()), f"held_out/{metric}", f"final/{metric}"
        found = [(row["round"], row[before]) for row in rows if before in row]
        return found + [(row["round"] + 1, row[final]) for row in rows if final in row]

    @property
    def advantages(self) -> int | None:
        """Groups with an advantage that were learned from, or could have been; None where nobody knows."""
        names = ("groups/local", "groups/external", "groups/received_with_advantage")
        rows = [row for own in self.rows.values() for row in own if any(name in row for name in names)]
        if rows:
            return round(sum(row.get(name, 0) for row in rows for name in names))
        trained = [self.summary.samples[name] for name in self.summary.samples if name.startswith("trained_")]
        return round(sum(trained)) if trained else None

    @property
    def after(self) -> Scores:
        """By node: accuracy after the last round or, in a run that stopped before it, the latest there is."""
        final = self.summary.held_out_accuracy.after or {}
        return {n: self._latest(n) if final.get(n) is None else final[n] for n in self.names}

    @property
    def after_by_task(self) -> Scores:
        """The same by task, mean over nodes."""
        per_task = self.summary.held_out_accuracy.per_task
        final = (per_task.before or {}).keys() | (per_task.after or {}).keys()
        after = {task: (per_task.after or {}).get(task) for task in sorted(final)}
        return {
            task: mean(self._latest(n, f"accuracy/{task}") for n in self.names) if value is None else value
            for task, value in after.items()
        }

    def _latest(self, name: str, metric: str = "accuracy") -> float | None:
        found = self.measured(name, metric)
        return found[-1][1] if len(found) > 1 else None  # the first is from before learning


def load_summary(workdir: Path) -> Summary:
    """Raises UsageError where there is no summary.json, or one that is not of a run."""
    path = workdir / SUMMARY_FILE
    try:
        return msgspec.convert(json.loads(path.read_bytes()), Summary)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: no run has ended in {workdir}.") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"{path} is not the summary of a run: {error}.") from None


def load(workdir: Path) -> Run:
    """Reads a run's folder; lines of metrics.jsonl that are not a node's round are skipped and counted."""
    summary, path = load_summary(workdir), workdir / METRICS_FILE
    rows: dict[str, dict[int, Mapping[str, Any]]] = collections.defaultdict(dict)
    skipped = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows[row["name"]][int(row["round"])] = row
        except (ValueError, KeyError, TypeError):
            skipped += 1
    kinds = [kind for kind in ALONE if (workdir / ALONE_FOLDER / kind / SUMMARY_FILE).exists()]
    alone = {kind: load(workdir / ALONE_FOLDER / kind) for kind in kinds}
    return Run(workdir, summary, {name: [own[r] for r in sorted(own)] for name, own in rows.items()}, skipped, alone)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def mean_sd(values: Sequence[float], form: str = "+.1f") -> str:
    """Mean, and the sample's standard deviation where there is more than one value."""
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{spread}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def points(before: float | None, after: float | None) -> str:
    """Gain in percentage points, signed."""
    return MISSING if before is None or after is None else f"{100 * (after - before):+.1f}"


def duration(seconds: float) -> str:
    """For people: seconds up to two minutes, then minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:,} min {rest} s"


def interval(accuracy: float | None, n: int) -> str:
    if accuracy is None or not n:
        return percent(accuracy)
    low, high = wilson(accuracy, n)
    return f"{percent(accuracy)} ({100 * low:.1f}–{100 * high:.1f})"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def overrides(summary: Summary) -> dict[str, Any] | None:
    """Fields in which a run differs from its config file (and variant); None where there is no such file."""
    file, _, variant = summary.name.partition("-")
    try:
        defaults = importlib.import_module(f"configs.{file}").get_config(variant)
    except (ImportError, ValueError):
        return None
    defaults = flatten(json.loads(defaults.to_json_best_effort()))
    return {name: value for name, value in flatten(summary.config).items() if defaults.get(name) != value}


def command(summary: Summary) -> str:
    """What to type to run it again; nothing where that is not known."""
    words = summary.command or _command_of(summary)
    return shlex.join(["python", "-m", "experiments.run", *words]) if words else ""


def _command_of(summary: Summary) -> list[str]:
    """For a run that was not started by a command: its config file, if it has one, and the fields that differ."""
    changed = overrides(summary)
    if changed is None:
        return []
    file, _, variant = summary.name.partition("-")
    flags = [f"--config.{name}={tuple(value) if isinstance(value, list) else value}" for name, value in changed.items()]
    return ["--config", f"configs/{file}.py{':' if variant else ''}{variant}", *flags]
