"""Records among many hosts, each a process with a network of its own, on loopback: who gets them, when, at what cost.

    python -m benchmarks.gossip_hosts                  8, 16 and 32 hosts, two sizes; ten minutes on two CPU cores
    python -m benchmarks.gossip_hosts --hosts 16       for these

Hosts know one address, find each other as a swarm's nodes do, and keep `target_peers` of them or more. In a stage each
publishes one record. *spread*: one after the other, with gaps that two cores can serve; *together*: all at the same
time, as at the start of a swarm's stage; *busy*: spread, while two processes compute. Who has not heard an author
`ASK` seconds after the last one spoke asks its peers for it, as a node does (`repaired`: deliveries that took that).

Printed is one JSON line a row. The value is the 95th percentile of the latency in ms, from `publish` to `on_record`, of
what gossip alone delivered (`p50`: the median); `delivered`, % of all deliveries (each record to each other host) that
were made before the deadline; `cost`, processor ms of all hosts' processes a delivery, with what keeps the mesh. `idle`
is what a host takes when nobody speaks, in processor ms a second.
"""

import argparse
import contextlib
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gossip import make_record
from rlswarm_jax.identity import simulated
from rlswarm_jax.machine import hardware
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig

HOSTS, SIZES, STAGES = (8, 16, 32), (1024, 65_536), 6
GAP = {1024: 0.015, 65_536: 0.04}  # seconds a host, between two that speak: below what two cores can do
ASK, DEADLINE = 2.0, 15.0  # seconds after the last one spoke
IDLE = 10.0


class Host:
    """One process's. Answers a question on each line of its input with a line."""

    def __init__(self, index: int, hosts: int, bootnodes: Sequence[str]):
        self.index, self._authors = index, {simulated(0, n).author: n for n in range(hosts) if n != index}
        self._arrived: dict[tuple[int, int], float] = {}  # author and round: on the monotonic clock, which all share
        self._gossip = Gossip(simulated(0, index), GossipConfig("benchmark", bootnodes=tuple(bootnodes)), self._keep)
        self.addresses = self._gossip.start()

    def _keep(self, signed: SignedRecord) -> bool:
        self._arrived.setdefault((self._authors[signed.record.author], signed.record.round), time.monotonic())
        return True

    def peers(self) -> int:
        return len(self._gossip.connected())

    def stage(self, round_: int, size: int, at: float, gap: float) -> dict[str, Any]:
        """Speaks in turn and hears the others; when it spoke, and when it heard each, before it asked and after."""
        raw, last = make_record(self.index, size, round_), at + gap * len(self._authors)
        time.sleep(max(0.0, at - time.monotonic()))
        used = time.process_time()
        time.sleep(gap * self.index)
        sent = time.monotonic()
        self._gossip.publish(raw)
        asked = last + ASK
        by_gossip = None
        while (missing := self._missing(round_)) and time.monotonic() < last + DEADLINE:
            if time.monotonic() >= asked:
                by_gossip = self._heard(round_) if by_gossip is None else by_gossip
                self._gossip.ask({author for author, n in self._authors.items() if n in missing})
                asked += ASK
            time.sleep(0.02)
        heard = self._heard(round_)
        time.sleep(max(0.0, last + ASK / 2 - time.monotonic()))  # others are still served
        used = time.process_time() - used
        return {"sent": sent, "gossip": heard if by_gossip is None else by_gossip, "heard": heard, "used": used}

    def _heard(self, round_: int) -> dict[int, float]:
        return {author: at for (author, of), at in list(self._arrived.items()) if of == round_}

    def _missing(self, round_: int) -> set[int]:
        return set(self._authors.values()) - self._heard(round_).keys()

    def idle(self, seconds: float) -> float:
        used = time.process_time()
        time.sleep(seconds)
        return time.process_time() - used

    def close(self) -> None:
        self._gossip.close()


def serve(index: int, hosts: int, bootnodes: Sequence[str]) -> None:
    host = Host(index, hosts, bootnodes)
    print(json.dumps(host.addresses), flush=True)
    for line in sys.stdin:
        name, *given = json.loads(line)
        print(json.dumps(getattr(host, name)(*given)), flush=True)
    host.close()


class Swarm:
    """All hosts, as their parent sees them."""

    def __init__(self, hosts: int):
        self.hosts, self._processes = hosts, list[subprocess.Popen]()
        bootnodes: list[str] = []
        for index in range(hosts):
            words = [str(index), str(hosts), *bootnodes[:1]]
            command = [sys.executable, "-m", "benchmarks.gossip_hosts", "--host", *words]
            self._processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
            bootnodes = bootnodes or json.loads(self._answer(self._processes[0]))
        for process in self._processes[1:]:
            self._answer(process)
        wanted = min(hosts - 1, GossipConfig("benchmark").target_peers)
        until = time.monotonic() + 120
        while min(self.all("peers")) < wanted:
            assert time.monotonic() < until, "the hosts have not found each other"
            time.sleep(0.5)
        time.sleep(5.0)  # first greetings and dials back are not what is measured

    def all(self, *question: Any) -> list[Any]:
        for process in self._processes:
            assert process.stdin
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        return [json.loads(self._answer(process)) for process in self._processes]

    @staticmethod
    def _answer(process: subprocess.Popen) -> str:
        assert process.stdout
        return process.stdout.readline()

    def close(self) -> None:
        for process in self._processes[::-1]:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def busy(on: bool) -> Iterator[None]:
    """While two processes compute, as they do that train."""
    code = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 if on else 0)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(swarm: Swarm, first: int, size: int, gap: float) -> dict[str, float]:
    """Of `STAGES` stages. Latencies in seconds."""
    late, alone, all_in, used = list[float](), 0, 0, 0.0
    for round_ in range(first, first + STAGES):
        told = swarm.all("stage", round_, size, time.monotonic() + 0.3, gap)
        sent = [one["sent"] for one in told]
        late += [at - sent[int(author)] for one in told for author, at in one["gossip"].items()]
        alone += sum(len(one["gossip"]) for one in told)
        all_in += sum(len(one["heard"]) for one in told)
        used += sum(one["used"] for one in told)
    wanted = STAGES * swarm.hosts * (swarm.hosts - 1)
    found = {"delivered": 100 * all_in / wanted, "repaired": 100 * (all_in - alone) / wanted}
    found |= {"p50": 1e3 * statistics.median(late), "p95": 1e3 * statistics.quantiles(late, n=20)[-1]}
    return found | {"cost": 1e3 * used / all_in}


def rows(hosts: int) -> Iterator[dict[str, Any]]:
    swarm, first = Swarm(hosts), 0
    try:
        peers, quiet = statistics.mean(swarm.all("peers")), statistics.mean(swarm.all("idle", IDLE))
        about = {"hosts": hosts, "peers": round(peers, 1)}
        yield {"benchmark": "idle", "config": about, "value": round(1e3 * quiet / IDLE, 2), "unit": "CPU ms a second"}
        for size in SIZES:
            for how in ("spread", "together", "busy"):
                with busy(how == "busy"):
                    found = measure(swarm, first, size, 0.0 if how == "together" else hosts * GAP[size])
                first += STAGES
                config = about | {"bytes": size, "how": how, "stages": STAGES}
                more = {name: round(found[name], 2) for name in ("delivered", "repaired", "p50", "cost")}
                yield {"benchmark": "hosts", "config": config, "value": round(found["p95"], 1), "unit": "ms"} | {
                    "measured": more
                }
    finally:
        swarm.close()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gossip_hosts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hosts", nargs="+", type=int, default=HOSTS)
    parser.add_argument("--host", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.host:
        serve(int(given.host[0]), int(given.host[1]), given.host[2:])
        return
    versions = {package: importlib.metadata.version(package) for package in ("libp2p", "trio", "coincurve", "msgspec")}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for hosts in given.hosts:
        for row in rows(hosts):
            print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
