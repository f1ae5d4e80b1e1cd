"""Two live nodes for a while: do memory, descriptors, threads and the disk stay as they are?

    python -m benchmarks.soak [--minutes 45] [--every 30] [--out DIR]

One JSON line for each look at a node, then one for each node with the verdict: of each quantity the growth, by a
straight line through what was seen after the warm-up (its first third), over that time. It ends with 1 if any grew.
"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rlswarm_jax import disk
from rlswarm_jax.metrics import read_rows

# what may grow over the whole time after the warm-up, besides 5 % of what there was
ROOM = {"rss_mb": 8.0, "descriptors": 4.0, "threads": 3.0, "processes": 1.0, "bounded_disk_mb": 8.0}
SHARE = 0.05


@dataclasses.dataclass
class Soaked:
    """A node that runs, and what was seen of it."""

    name: str
    folder: Path
    process: subprocess.Popen
    seen: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def look(self, began: float) -> dict[str, float]:
        main = psutil.Process(self.process.pid)
        everyone = [main, *main.children(recursive=True)]
        taken = {part: size / disk.MB for part, size in disk.taken(self.folder).items()}
        now = {
            "seconds": time.monotonic() - began,
            "rounds": float(len(read_rows(self.folder / "metrics.jsonl"))),
            "rss_mb": sum(_of(one, lambda p: p.memory_info().rss) for one in everyone) / disk.MB,
            "descriptors": float(sum(_of(one, lambda p: p.num_fds()) for one in everyone)),
            "threads": float(main.num_threads()),
            "processes": float(len(everyone)),
            "bounded_disk_mb": sum(size for part, size in taken.items() if part != "metrics"),
            **{f"disk_{part}_mb": size for part, size in sorted(taken.items())},
        }
        self.seen.append(now)
        return now


def _of(process: psutil.Process, read: Any) -> int:
    try:
        return read(process)
    except psutil.NoSuchProcess:
        return 0


def grown(seen: list[dict[str, float]], name: str, over: str = "seconds") -> float:
    """By how much, by a straight line through all that was seen."""
    x, y = (np.array([one.get(of, 0.0) for one in seen]) for of in (over, name))
    slope = np.polyfit(x, y, 1)[0] if len(set(x)) > 1 else 0.0
    return float(slope * (x[-1] - x[0]))


def judge(seen: list[dict[str, float]]) -> dict[str, Any]:
    """What grew after the first third, and of the disk by how much in 1,000 rounds."""
    after = seen[len(seen) // 3 :]
    found: dict[str, Any] = {"rounds": after[-1]["rounds"], "looks": len(after), "grew": []}
    for name, room in ROOM.items():
        mean = float(np.mean([one[name] for one in after]))
        growth = grown(after, name)
        found[name] = {"mean": round(mean, 1), "growth": round(growth, 2)}
        if growth > room + SHARE * mean:
            found["grew"].append(name)
    rounds = max(1.0, after[-1]["rounds"] - after[0]["rounds"])
    parts = sorted({name for one in after for name in one if name.startswith("disk_")})
    found["mb_per_1000_rounds"] = {p: round(1000 / rounds * grown(after, p, "rounds"), 2) for p in parts}
    return found


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.run", "--config=configs/node.py", f"--workdir={folder}"]
    with folder.with_suffix(".out").open("wb") as log:
        return subprocess.Popen([*command, "--config.wandb.mode=disabled", *more], stdout=log, stderr=log)


def soak(folder: Path, minutes: float, every: float) -> bool:
    """Whether all stayed as it was."""
    first = Soaked("first", folder / "first", start(folder / "first"))
    nodes = [first]
    try:
        address = _told(first)["addresses"]
        nodes.append(
            Soaked("second", folder / "second", start(folder / "second", f"--config.swarm.bootnodes={address}"))
        )
        for node in nodes:
            while not (node.folder / "metrics.jsonl").exists():
                _wait(node)
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            time.sleep(every)
            for node in nodes:
                assert node.process.poll() is None, f"{node.name} has ended; see {node.folder}"
                print(
                    json.dumps({"node": node.name, **{k: round(v, 2) for k, v in node.look(began).items()}}), flush=True
                )
    finally:
        for node in nodes:
            node.process.send_signal(signal.SIGTERM)
        codes = [node.process.wait(300) for node in nodes]
    verdicts = [judge(node.seen) for node in nodes]
    for node, code, verdict in zip(nodes, codes, verdicts, strict=True):
        print(json.dumps({"node": node.name, "flat": not verdict["grew"], "code": code, **verdict}))
    return not any(verdict["grew"] for verdict in verdicts) and set(codes) == {130}


def _told(node: Soaked) -> dict[str, Any]:
    while not (node.folder / "node.json").exists():
        _wait(node)
    return json.loads((node.folder / "node.json").read_text())


def _wait(node: Soaked) -> None:
    assert node.process.poll() is None, f"{node.name} has ended; see {node.folder}"
    time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between looks")
    parser.add_argument("--out", type=Path, help="where the nodes' folders stay; else they are forgotten")
    given = parser.parse_args()
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        return 0 if soak(given.out, given.minutes, given.every) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if soak(Path(folder), given.minutes, given.every) else 1


if __name__ == "__main__":
    sys.exit(main())
