"""A swarm of processes against the same swarm in one process.

    python -m benchmarks.live        about four minutes on 2 CPU cores

Runs configs/quickstart.py:spoiled for 60 rounds both ways, in turn, after one that fills the compilation cache. Prints
one JSON line a row: seconds until the parent has said who is who, rounds a second from the first round's end
(evaluations included), and wall and processor time of everything.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rlswarm_jax.machine import hardware
from rlswarm_jax.metrics import read_rows

ROUNDS, REPEATS = 60, 3


def run(variant: str, workdir: Path, rounds: int = ROUNDS, arguments: Sequence[str] = ()) -> dict[str, float]:
    """What one run takes, in seconds and rounds a second."""
    command = [sys.executable, "-m", "experiments.run", f"--config=configs/quickstart.py:spoiled{variant}"]
    command += [f"--config.rounds={rounds}", "--config.wandb.mode=disabled", f"--workdir={workdir}", *arguments]
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    said = next((time.perf_counter() - began for line in process.stdout if line.startswith("node 3")), 0.0)
    process.communicate()
    wall = time.perf_counter() - began
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = {row["round"]: 0.0 for row in read_rows(workdir / "metrics.jsonl")}
    for row in read_rows(workdir / "metrics.jsonl"):
        ends[row["round"]] = max(ends[row["round"]], row["wall_seconds"])
    return {
        "who is who": said,
        "rounds": (rounds - 1) / (ends[rounds - 1] - ends[0]),
        "processor": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        "whole": wall,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        variants = {"live": "", "simulate": "-simulate"}
        for name, variant in variants.items():
            run(variant, Path(folder) / f"warm-{name}")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        for repeat in range(REPEATS):
            for name, variant in variants.items():
                found[name].append(run(variant, Path(folder) / f"{name}-{repeat}"))
    about = {
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("jax", "libp2p")},
    }
    config = {"nodes": 4, "rounds": ROUNDS, "repeats": REPEATS}

    def row(name: str, unit: str, measured: str, *, against: bool = True) -> None:
        live, simulated = ([one[measured] for one in found[name]] for name in variants)
        ratio = round(statistics.median(a / b for a, b in zip(live, simulated, strict=True)), 2) if against else None
        fields = {
            "benchmark": f"live: {name}",
            "config": config,
            "value": round(statistics.median(live), 2),
            "unit": unit,
        }
        print(json.dumps(fields | {"versus": "simulate" if against else None, "ratio": ratio} | about))

    row("until it is said who is who", "s", "who is who", against=False)
    row("rounds of the quickstart swarm", "rounds/s", "rounds")
    row("the whole run", "s", "whole")
    row("processor time of the whole run", "s", "processor")


if __name__ == "__main__":
    main()
