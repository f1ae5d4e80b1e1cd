"""Where the rounds of a process go (metrics.jsonl, wandb, the view), and what they came to (summary.json)."""

import collections
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np
from rich.console import Console

from rlswarm_jax import machine
from rlswarm_jax.files import METRICS_FILE, PROFILE_FOLDER, SUMMARY_FILE, write_whole
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.metrics import MetricsLog, read_rows
from rlswarm_jax.running.folder import earlier_seconds
from rlswarm_jax.running.profiling import Profile
from rlswarm_jax.running.view import SwarmView

if TYPE_CHECKING:  # they load jax, which the parent of a swarm of processes does not
    from rlswarm_jax.game.player import RoundReport
    from rlswarm_jax.running.build import Pieces

# measured on the shared problems of every round
GAME = (
    *("game/first", "game/vote", "game/revised"),
    *("critique/best", "critique/chance", "critique/first", "critique/majority", "critique/none"),
)


class Recorder:
    """`open` once it is known what is kept of an earlier process's rows; then `on_round`, and `finish`.

    started: when the process began, by `time.monotonic`. words: the arguments that it was started with.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        console: Console,
        made: "Pieces",
        started: float,
        words: Sequence[str] = (),
    ):
        self._words = words
        self._config, self._workdir, self._console, self._made = config, workdir, console, made
        self._names = [friendly_name(game.author) for game in made.games]
        self._file = workdir / METRICS_FILE
        self._before, self._started = earlier_seconds(workdir), started
        self._log: MetricsLog | None = None
        self.view: SwarmView | None = None
        self._name: str | None = None  # of the wandb run
        self._mirrored = False
        self._profile = Profile(workdir / PROFILE_FOLDER, config.profile.rounds, self._say)

    def open(self, keep_bytes: int, done: list[int], name: str | None = None) -> SwarmView:
        """done: rounds by node. name: of the wandb run. Returns the view, to be used as a context."""
        self._log, self._name = MetricsLog(self._file, keep_bytes), name
        self.view = SwarmView(self._console, self._names, self._config.rounds, done)
        self._profile.at(0)  # of a run that goes on, not the round it is in; from the end of that one it is known
        return self.view

    def _start_wandb(self) -> None:
        """Once there is a row to send: it takes seconds, and nobody waits for the first round because of it."""
        config, self._mirrored = self._config, True
        assert self._log is not None
        mode = self._log.start_wandb(
            config.wandb.mode,
            workdir=self._workdir,
            project=config.wandb.project,
            group=config.wandb.group or f"{config.name}-{config.seed}",
            tags=config.wandb.tags,
            name=self._name or "-".join([*config.wandb.tags, self._workdir.name]),
            run_id=run_id(config, self._name),
            config=config.to_dict(),
        )
        if mode != "disabled":
            self._console.print(f"wandb: {mode}")

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, soft_wrap=True)

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._log.offset if self._log is not None else 0

    def on_round(self, found: "RoundReport") -> None:
        assert self._log is not None and self.view is not None
        row: dict[str, Any] = {"node": found.node, "name": self._names[found.node], "round": found.round}
        if self._config.driver == "simulate":
            row["virtual_seconds"] = found.at
        row["wall_seconds"] = round(self._before + time.monotonic() - self._started, 3)
        self._log.write(row | found.metrics | {"lessons": found.lessons})
        self.view.update(row | found.metrics)
        if not self._mirrored:
            self._start_wandb()
        if found.node == 0:
            self._profile.at(found.round + 1)

    def halve(self) -> None:
        """Forgets the older half of metrics.jsonl. Raises MetricsError."""
        assert self._log is not None
        self._log.halve()

    def finish(self, finished: bool) -> None:
        """Writes summary.json. finished: whether all rounds were played."""
        assert self._log is not None
        self._profile.close()
        summary = summarise(
            self._config,
            self._names,
            read_rows(self._file),
            finished=finished,
            weights={name: self._made.fingerprint(i) for i, name in enumerate(self._names)},
            base=self._made.base_accuracy(self._config),
            seconds=self._before + time.monotonic() - self._started,
            memory_mb=machine.peak_memory_mb(),
            hardware=machine.hardware(),
            command=self._words,
        )
        write_summary(self._workdir, summary)
        self._log.close({"held_out_accuracy": summary["held_out_accuracy"]})


def summarise(
    config: ml_collections.ConfigDict,
    names: Sequence[str],
    rows: Sequence[dict[str, Any]],
    *,
    finished: bool,
    weights: dict[str, str],
    base: dict[str, float] | None,
    seconds: float,
    memory_mb: int,
    hardware: str,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The contents of summary.json, for the nodes of one process or of a whole swarm.

    rows: of metrics.jsonl. weights: fingerprints by name. base: held-out accuracy of the un-spoiled model.
    command: the arguments that it was started with.
    """
    per_node = [[row for row in rows if row["node"] == node] for node in range(len(names))]

    def total(name: str, of: Sequence[dict[str, Any]] = rows) -> float:
        return sum(row.get(name, 0.0) for row in of)

    def by_suffix(prefix: str, of: Sequence[dict[str, Any]] = rows) -> dict[str, int]:
        found: collections.Counter[str] = collections.Counter()
        for row in of:
            found.update({k.removeprefix(prefix): int(v) for k, v in row.items() if k.startswith(prefix)})
        return dict(sorted(found.items()))

    def by_author(prefix: str) -> dict[str, dict[str, int]]:
        counts = {name: by_suffix(prefix, own) for name, own in zip(names, per_node, strict=True)}
        return {name: {friendly_name(bytes.fromhex(a)): n for a, n in own.items()} for name, own in counts.items()}

    def first(name: str) -> dict[str, float | None]:
        found = (next((row[name] for row in own if name in row), None) for own in per_node)
        return dict(zip(names, found, strict=True))

    def mean(values: dict[str, float | None]) -> float | None:
        known = [v for v in values.values() if v is not None]
        return float(np.mean(known)) if known else None

    def course(name: str) -> list[float] | None:
        """Means over all nodes of the first and of the last tenth of the rounds."""
        tenths = [[row[name] for row in part if name in row] for part in (_tenth(rows, 0), _tenth(rows, 9))]
        return [float(np.mean(values)) for values in tenths] if all(tenths) else None

    local, external = total("learn/rows_local"), total("learn/rows_external")
    task_names = sorted(config.tasks)
    return {
        "name": config.name,
        "status": "finished" if finished else "stopped",
        "seed": config.seed,
        "driver": config.driver,
        "nodes": len(names),
        "rounds": config.rounds,
        "rounds_done": {name: len(own) for name, own in zip(names, per_node, strict=True)},
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": memory_mb,
        "held_out_problems": config.evaluation.problems,
        "held_out_accuracy": {
            "before": first("held_out/accuracy"),
            "after": first("final/accuracy"),
            "base": base and base["accuracy"],
            "per_task": {
                "before": {t: mean(first(f"held_out/accuracy/{t}")) for t in task_names},
                "after": {t: mean(first(f"final/accuracy/{t}")) for t in task_names},
                "base": base and {t: base[f"accuracy/{t}"] for t in task_names if f"accuracy/{t}" in base},
            },
        },
        "weights": weights,
        "external_fraction": round(external / max(local + external, 1.0), 4),
        "game": {name: found for name in GAME if (found := course(name))},
        "samples": {
            "generated": int(total("sample/completions")),
            "trained_local": int(local),
            "trained_external": int(external),
        },
        "records": {
            "published": int(total("records/published")),
            "received": int(total("records/received")),
            "rejected": by_suffix("records/rejected/"),
            "unused_groups": by_suffix("groups/unused/"),
        },
        "network": by_suffix("network/"),
        "received_from": by_author("received_from/"),
        "learned_from": by_author("learned_from/"),
        "config": json.loads(config.to_json_best_effort()),
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("jax", "flax", "optax", "reasoning-gym")},
        "hardware": hardware,
        "command": list(command),
    }


def run_id(config: ml_collections.ConfigDict, name: str | None) -> str | None:
    """Of a run in Weights & Biases, by group, tags and seed; None, for a new one each time, without a group.

    name: of the node, where each has a run of its own.
    """
    named = [config.wandb.group, list(config.wandb.tags), config.seed, name]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16] if config.wandb.group else None


def _tenth(rows: Sequence[dict[str, Any]], which: int) -> list[dict[str, Any]]:
    """The rows of the rounds in a tenth of those that were played."""
    last = max((row["round"] for row in rows), default=0)
    return [row for row in rows if row["round"] * 10 // (last + 1) == which]


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Raises UsageError if the disk does not take it."""
    write_whole(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
