"""What strangers can make a node spend: its processor time for each millisecond of theirs, and what its rounds suffer.

    python -m benchmarks.hostile [ATTACK ...] [--nodes 8] [--pairs 3]        twenty minutes on two CPU cores

Prints two JSON lines for each attack of tests/swarm/attacks.py. `cost`: the victim's processor milliseconds, beyond
those of as many undisturbed rounds, for one of the attacker's; the victim is a process with a live node's network and
inbox, the attacker another. `rounds`: what the honest nodes play in a second while the same attacker goes at the first
of them, against what the same nodes played just before (`ratio`, the median of all pairs of stretches); one process a
node, a real network, journal and waiting, and a model that is a table, so that the network and the records are nearly
all that a round takes. The attacker has the last core to itself, and the nodes the others, so that it takes of their
time only what it makes them spend. `closed_by`: what the victim counted most beside what it counts undisturbed, a
second. `nothing` is a peer that is connected and silent.
"""

import argparse
import collections
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from rlswarm_jax import launch
from rlswarm_jax.machine import hardware
from rlswarm_jax.metrics import read_rows
from tests.swarm.attacks import ATTACKS
from tests.table_node import SEED

SECONDS, REST, SWARM = 8.0, 3.0, "tables"  # of a stretch; until what an attack has left behind is over
SHOWN = 3  # counts
COUNTED = ("network/", "records/rejected/")
ORDINARY = ("network/bytes_in", "network/bytes_out", "network/messages_in", "network/messages_out")


@contextlib.contextmanager
def swarm(folder: Path, nodes: int) -> Iterator[tuple[list[launch.Member], list[subprocess.Popen]]]:
    """Nodes that have begun to play."""
    members, processes = launch.assign(folder, nodes, seed=SEED), []
    for member in members:
        told = {
            "folder": str(member.folder),
            "index": member.index,
            "rounds": 1_000_000,
            "port": member.port,
            "bootnodes": [members[0].address] if member.index else [],
            "peers": [other.peer_id for other in members if other is not member],
            "deadline": 30.0,
            "sample_seconds": 0.05,
            "pause": None,
        }
        command = [sys.executable, "-m", "tests.table_node", json.dumps(told)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        keep_to(processes[-1].pid, list(range(max(1, (os.cpu_count() or 1) - 1))))
    try:
        while not all(played(member) > 4 for member in members):
            time.sleep(0.05)
        yield members, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def keep_to(pid: int, cores: list[int]) -> None:
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        psutil.Process(pid).cpu_affinity(cores)


def rows(member: launch.Member) -> list[dict]:
    file = member.folder / "metrics.jsonl"
    return read_rows(file) if file.exists() else []


def played(member: launch.Member) -> int:
    return len(rows(member))


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return 1000 * (times.user + times.system)


class Stretch:
    """What happened from its begin to its end: rounds a second of the slowest node, the victim's CPU ms and counts."""

    def __init__(self, members: list[launch.Member], victim: psutil.Process):
        self._members, self._victim = members, victim
        self._before, self._played, self._began = spent(victim), [played(m) for m in members], time.monotonic()

    def end(self) -> "Stretch":
        self.seconds = time.monotonic() - self._began
        done = [played(member) - before for member, before in zip(self._members, self._played, strict=True)]
        self.own_rounds, self.rounds = done[0], min(done) / self.seconds
        self.cpu = spent(self._victim) - self._before
        self.counts: collections.Counter[str] = collections.Counter()
        for row in rows(self._members[0])[self._played[0] :]:
            self.counts.update({k: n for k, n in row.items() if k.startswith(COUNTED) and k not in ORDINARY})
        return self


def attacked(name: str, members: list[launch.Member], victim: psutil.Process) -> tuple[Stretch, float]:
    """The stretch while somebody attacks, and their CPU ms."""
    command = [sys.executable, "-m", "tests.swarm.attacks", name, members[0].address, str(SECONDS), SWARM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    keep_to(process.pid, [(os.cpu_count() or 1) - 1])
    assert process.stdout
    process.stdout.readline()  # that it begins
    stretch = Stretch(members, victim)
    said = json.loads(process.stdout.readline())
    process.wait()
    return stretch.end(), said["cpu_ms"]


def measure(name: str, members: list[launch.Member], victim: psutil.Process, pairs: int) -> list[dict]:
    found: list[tuple[Stretch, Stretch, float]] = []
    for _ in range(pairs):
        calm = Stretch(members, victim)
        time.sleep(SECONDS)
        found.append((calm.end(), *attacked(name, members, victim)))
        time.sleep(REST)
    own = sum(calm.cpu for calm, _, _ in found) / max(1, sum(calm.own_rounds for calm, _, _ in found))  # of a round
    seconds = sum(hit.seconds for _, hit, _ in found)
    extra = max(0.0, sum(hit.cpu - own * hit.own_rounds for _, hit, _ in found))
    paid = sum(cpu for _, _, cpu in found)
    counts: collections.Counter[str] = collections.Counter()
    for calm, hit, _ in found:
        counts.update(hit.counts)
        counts.subtract(calm.counts)
    closed = ", ".join(f"{k.removeprefix('records/')} {n / seconds:.1f}" for k, n in counts.most_common(SHOWN) if n > 0)
    config = {"attack": name, "nodes": len(members), "seconds": SECONDS, "pairs": pairs}
    cost = {"value": round(extra / max(paid, 1.0), 2), "unit": "CPU ms per CPU ms"}
    cost["measured"] = {"attacker_ms_per_s": round(paid / seconds, 1), "victim_ms_per_s": round(extra / seconds, 1)}
    ratio = statistics.median(hit.rounds / calm.rounds for calm, hit, _ in found)
    speed = {"value": round(statistics.median(hit.rounds for _, hit, _ in found), 2), "unit": "rounds/s"}
    speed |= {"versus": "undisturbed", "ratio": round(ratio, 2)}
    return [
        {"benchmark": "hostile: cost", "config": config} | cost,
        {"benchmark": "hostile: rounds", "config": config | {"closed_by": closed or "nothing"}} | speed,
    ]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="by default all")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3, help="of stretches, undisturbed and attacked")
    given = parser.parse_args()
    if unknown := set(given.attacks) - set(ATTACKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected one of {', '.join(ATTACKS)}.")
    packages = ("libp2p", "trio", "coincurve", "msgspec")
    versions = {package: importlib.metadata.version(package) for package in packages}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    with tempfile.TemporaryDirectory() as folder, swarm(Path(folder), given.nodes) as (members, processes):
        for name in given.attacks or ATTACKS:
            for row in measure(name, members, psutil.Process(processes[0].pid), given.pairs):
                print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
