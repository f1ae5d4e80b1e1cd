"""Where the time of a round goes, in a live swarm that plays all three stages.

    python -m benchmarks.game        about two minutes on 2 CPU cores

Runs configs/quickstart.py:spoiled for 60 rounds and prints one JSON line for each phase: its share of a node's time in
rounds, mean over nodes, without what each has once (loading, compiling) and without held-out evaluations. `gather` is
waiting for peers, most of it for those that still compute on the same cores.
"""

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

ROUNDS = 60
PHASES = ("hear", "pin", "sample", "verify", "score", "publish", "gather", "replay", "learn", "commit", "audit")


def shares(workdir: Path) -> dict[str, float]:
    """Of each phase, by a node's clock: seconds in it, of the seconds in all phases."""
    rows = read_rows(workdir / "metrics.jsonl")[4:]  # not the first round, in which something may compile
    seconds = {phase: sum(row.get(f"seconds/{phase}", 0.0) for row in rows) for phase in PHASES}
    return {phase: spent / sum(seconds.values()) for phase, spent in seconds.items() if spent}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        run("", Path(folder) / "warm", rounds=4)
        timed = run("", Path(folder) / "run", rounds=ROUNDS)
        found = shares(Path(folder) / "run")
        lengths = [row["seconds/learn"] for row in read_rows(Path(folder) / "run" / "metrics.jsonl")]
    about = {
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("jax", "libp2p")},
    }
    config = {"nodes": 4, "rounds": ROUNDS, "stages": 3}
    for phase, share in found.items():
        fields = {"benchmark": "game: share of a round", "config": config | {"phase": phase}}
        print(json.dumps(fields | {"value": round(100 * share, 2), "unit": "%"} | about))
    rate = {"benchmark": "game: rounds of the quickstart swarm", "config": config, "value": round(timed["rounds"], 2)}
    print(json.dumps(rate | {"unit": "rounds/s"} | about))
    median = {"benchmark": "game: an update", "config": config, "value": round(statistics.median(lengths), 3)}
    print(json.dumps(median | {"unit": "s"} | about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
