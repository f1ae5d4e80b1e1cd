"""What it costs to bring a record from one node to another over libp2p, on loopback.

    python -m benchmarks.gossip        half a minute on two CPU cores

Prints one JSON line a row. Four nodes in one process, each with its own thread, all connected with each other; each in
turn publishes records, and a delivery is one record that arrived at one other node, verified. `CPU ms a delivery` is
the processor time of the whole process, sending, receiving, relaying and the copies that arrive twice included, divided
by the deliveries. Latency is from `publish` to `on_record`, with the wait that keeps nodes from all speaking at once.
"""

import importlib.metadata
import itertools
import json
import platform
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments.summary import hardware
from rlswarm_jax.identity import simulated
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import SignedRecord, seal
from rlswarm_jax.records.schema import Completion, Group, Record
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig

NODES = 4
RECORDS = 100
SIZES = (1024, 4096, 65_536)
IDENTITIES = [simulated(0, node) for node in range(NODES)]
rounds = itertools.count()


def make_record(node: int, size: int) -> bytes:
    """A signed record of about `size` bytes, unlike any other."""
    rng, tokens = random.Random(0), (7).to_bytes(4, "little")
    texts = [rng.randbytes((size - 300) // 4).hex() for _ in range(2)]
    completions = [Completion(tokens, bytes(4), text) for text in texts]
    record = Record(
        version=schema.VERSION,
        swarm="benchmark",
        author=IDENTITIES[node].author,
        round=next(rounds),
        stage="answer",
        prompt_format="compact-1",
        policy_version=1,
        weights_fingerprint="0123456789abcdef",
        tokenizer_fingerprint="0123456789abcdef",
        temperature=1.0,
        groups=[Group("spell_backward", "0123456789abcdef", 0, 1, [], completions)],
    )
    return seal(record, IDENTITIES[node])


class Arrivals:
    """When each record arrived at each of the other nodes."""

    def __init__(self) -> None:
        self.times: dict[bytes, list[float]] = {}
        self.left = 0
        self.done = threading.Event()
        self._lock = threading.Lock()

    def expect(self, deliveries: int) -> None:
        self.left = deliveries
        self.done.clear()

    def __call__(self, signed: SignedRecord) -> bool:
        with self._lock:
            self.times.setdefault(signed.raw, []).append(time.perf_counter())
            self.left -= 1
            if self.left == 0:
                self.done.set()
        return True


def start(arrivals: Arrivals) -> list[Gossip]:
    """Nodes that are all connected with each other."""
    nodes: list[Gossip] = []
    bootnodes: tuple[str, ...] = ()
    for identity in IDENTITIES:
        nodes.append(Gossip(identity, GossipConfig("benchmark", bootnodes=bootnodes), arrivals))
        addresses = nodes[-1].start()
        bootnodes = bootnodes or (addresses[0],)
    while not all(len(node.connected()) == NODES - 1 for node in nodes):
        time.sleep(0.05)
    time.sleep(2.0)  # first greetings and pings are not what is measured
    return nodes


def measure(nodes: list[Gossip], arrivals: Arrivals, size: int) -> tuple[float, list[float]]:
    """CPU milliseconds a delivery, and the latencies in milliseconds, sorted."""
    records = [make_record(index % NODES, size) for index in range(RECORDS)]
    arrivals.expect(RECORDS * (NODES - 1))
    sent = {}
    used = time.process_time()
    for index, raw in enumerate(records):
        sent[raw] = time.perf_counter()
        nodes[index % NODES].publish(raw)
        time.sleep(0.03 if size <= 16_384 else 0.15)
    if not arrivals.done.wait(60):
        raise RuntimeError(f"{arrivals.left} deliveries of {size} bytes did not arrive: {nodes[0].take_counts()}")
    used = time.process_time() - used
    latencies = [1000 * (at - sent[raw]) for raw in records for at in arrivals.times[raw]]
    return 1000 * used / len(latencies), sorted(latencies)


def rows() -> Iterator[dict[str, Any]]:
    arrivals = Arrivals()
    nodes = start(arrivals)
    try:
        for size in SIZES:
            milliseconds, latencies = measure(nodes, arrivals, size)
            measured = (
                ("delivery", "CPU ms", milliseconds),
                ("latency, p50", "ms", latencies[len(latencies) // 2]),
                ("latency, p95", "ms", latencies[int(0.95 * len(latencies))]),
            )
            for measure_name, unit, value in measured:
                config = {"measure": measure_name, "bytes": size, "nodes": NODES, "records": RECORDS}
                yield {"benchmark": "gossip", "config": config, "value": round(value, 2), "unit": unit}
    finally:
        for node in reversed(nodes):  # the bootnode last: the others would report that it is gone
            node.close()


def main() -> None:
    versions = {package: importlib.metadata.version(package) for package in ("libp2p", "trio", "coincurve", "msgspec")}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for row in rows():
        print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
