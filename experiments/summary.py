"""What a run came to, as summary.json says it."""

import collections
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.folder import SUMMARY_FILE, write_whole
from rlswarm_jax.identity import friendly_name

# measured on the shared problems of every round
GAME = (
    *("game/first", "game/vote", "game/revised"),
    *("critique/best", "critique/chance", "critique/first", "critique/majority", "critique/none"),
)


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


def _tenth(rows: Sequence[dict[str, Any]], which: int) -> list[dict[str, Any]]:
    """The rows of the rounds in a tenth of those that were played."""
    last = max((row["round"] for row in rows), default=0)
    return [row for row in rows if row["round"] * 10 // (last + 1) == which]


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Raises UsageError if the disk does not take it."""
    write_whole(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def peak_memory_mb(pid: int | None = None) -> int:
    """Of this process, resident; or of another one, as far as the system tells (else 0)."""
    if pid is not None:
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        except OSError:
            return 0
        return round(int(found[1]) / 1024) if found else 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(usage / (1024 if sys.platform == "linux" else 1024**2))


def hardware() -> str:
    """Processor, cores and accelerator, in words."""
    import jax  # here: the parent of a swarm of processes needs none

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    accelerator = "" if jax.default_backend() == "cpu" else f", {jax.devices()[0].device_kind}"
    return f"{model}, {os.cpu_count()} cores{accelerator}"
