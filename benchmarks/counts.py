"""What the problems that all nodes share are worth, and a node's own: with more of one or of the other.

    python -m benchmarks.counts        a quarter of an hour on 2 CPU cores; `--seeds 1` half of that

Each round a node answers four problems; so many of them are the same for all nodes, and only those are criticised and
revised. Prints JSON lines, means over nodes and seeds: held-out accuracy after 150 rounds, what was right of revised
answers in the last tenth of them, how many groups of peers there were to select from in a round (those that teach
anything), and the seconds of a round.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.live import run
from rlswarm_jax.machine import hardware
from rlswarm_jax.metrics import read_rows

ROUNDS, SHARED, PROBLEMS = 150, (1, 2, 4), 4


def measure(workdir: Path, shared: int, seed: int) -> dict[str, float]:
    """Of one run."""
    timed = run("", workdir, ROUNDS, [f"--config.game.shared={shared}", f"--config.seed={seed}"])
    summary = json.loads((workdir / "summary.json").read_text())
    rows = read_rows(workdir / "metrics.jsonl")
    last = [row["game/revised"] for row in rows if row["round"] >= 0.9 * ROUNDS and "game/revised" in row]
    return {
        "held-out accuracy, % right": 100 * statistics.mean(summary["held_out_accuracy"]["after"].values()),
        "revised answers, % right": 100 * statistics.mean(last),
        "peers' groups with an advantage, a round": statistics.mean(r["groups/received_with_advantage"] for r in rows),
        "round, s": 1 / timed["rounds"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind (default 2)")
    seeds = parser.parse_args().seeds
    found: dict[int, list[dict[str, float]]] = {shared: [] for shared in SHARED}
    with tempfile.TemporaryDirectory() as folder:
        run("", Path(folder) / "warm", rounds=4)
        for seed in range(seeds):
            for shared in SHARED:
                found[shared].append(measure(Path(folder) / f"{shared}-{seed}", shared, seed))
    about = {
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("jax", "libp2p")},
    }
    for shared, measured in found.items():
        config = {"shared": shared, "own": PROBLEMS - shared, "rounds": ROUNDS, "seeds": seeds}
        for name in measured[0]:
            values = [one[name] for one in measured]
            row = {"benchmark": f"counts: {name.rpartition(', ')[0]}", "config": config}
            row |= {"value": round(statistics.mean(values), 3), "unit": name.rpartition(", ")[2]}
            print(
                json.dumps(
                    row | {"measured": {f"seed {n}": round(value, 3) for n, value in enumerate(values)}} | about
                ),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
