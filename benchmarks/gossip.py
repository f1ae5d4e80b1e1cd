"""What it costs to bring a record from one node to another over libp2p, on loopback, ours against libp2p as it comes.

    python -m benchmarks.gossip        five minutes on two CPU cores

Prints one JSON line a row. Four nodes in one process, all connected with each other; each in turn publishes records,
and a delivery is one record that arrived at one other node, verified. `delivery` is the processor time of the whole
process, sending, receiving, relaying and the copies that arrive twice included, divided by the deliveries. Latency is
from `publish` to `on_record`, with the wait that keeps nodes from all speaking at once. Stock is libp2p's own host and
gossipsub (meshsub 1.1, every message inline) with a heartbeat of 1 s and without its rate limit, under which it drops
messages silently; the two take turns, and figures and ratios are medians. At 64 KB ours announces and is asked, which
costs a stream a delivery and saves sending the record to those who have it.
"""

import contextlib
import importlib.metadata
import itertools
import json
import platform
import random
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import trio
from libp2p import new_host
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from rlswarm_jax.identity import simulated
from rlswarm_jax.machine import hardware
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.schema import Completion, Group, Record
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig

NODES = 4
RECORDS = 100
REPEATS = 3
SIZES = (1024, 4096, 65_536)
IDENTITIES = [simulated(0, node) for node in range(NODES)]
rounds = itertools.count()


def make_record(node: int, size: int, round_: int | None = None) -> bytes:
    """A signed record of about `size` bytes, unlike any other."""
    rng, tokens, identity = random.Random(0), (7).to_bytes(4, "little"), simulated(0, node)
    texts = [rng.randbytes((size - 300) // 4).hex() for _ in range(2)]
    completions = [Completion(tokens, bytes(4), text) for text in texts]
    record = Record(
        version=schema.VERSION,
        swarm="benchmark",
        author=identity.author,
        round=next(rounds) if round_ is None else round_,
        stage="answer",
        beacon=b"",
        prompt_format="compact-2/01234567",
        policy_version=1,
        weights=bytes(32),
        tokenizer_fingerprint="0123456789abcdef",
        temperature=1.0,
        groups=[Group("spell_backward", "0123456789abcdef", 0, 1, [], None, completions)],
        verdicts=[],
    )
    return seal(record, identity)


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


class Network(Protocol):
    """Nodes that are all connected with each other."""

    def publish(self, node: int, raw: bytes) -> None: ...
    def close(self) -> None: ...


class Ours:
    def __init__(self, arrivals: Arrivals):
        self._nodes: list[Gossip] = []
        bootnodes: tuple[str, ...] = ()
        for identity in IDENTITIES:
            self._nodes.append(Gossip(identity, GossipConfig("benchmark", bootnodes=bootnodes), arrivals))
            addresses = self._nodes[-1].start()
            bootnodes = bootnodes or (addresses[0],)
        while not all(len(node.connected()) == NODES - 1 for node in self._nodes):
            time.sleep(0.05)

    def publish(self, node: int, raw: bytes) -> None:
        self._nodes[node].publish(raw)

    def close(self) -> None:
        for node in reversed(self._nodes):  # the bootnode last: the others would report that it is gone
            node.close()


class Stock:
    def __init__(self, arrivals: Arrivals):
        self._arrivals, self._ready = arrivals, threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    async def _run(self) -> None:
        self._token, self._stop, self._pubsubs = trio.lowlevel.current_trio_token(), trio.Event(), []
        async with contextlib.AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            hosts = []
            for identity in IDENTITIES:
                private = Secp256k1PrivateKey.from_bytes(identity.expose_secret())
                host = new_host(key_pair=KeyPair(private, private.get_public_key()))
                options = {"adaptive_gossip_enabled": False, "spam_protection_enabled": False}
                router = GossipSub([TProtocol("/meshsub/1.1.0")], 6, 4, 12, heartbeat_interval=1, **options)
                pubsub = Pubsub(host, router, strict_signing=True)
                await stack.enter_async_context(host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]))
                await stack.enter_async_context(background_trio_service(router))
                await stack.enter_async_context(background_trio_service(pubsub))
                await pubsub.wait_until_ready()
                self._nursery.start_soon(self._collect, await pubsub.subscribe("benchmark"), host.get_id().to_bytes())
                for other in hosts:
                    await host.connect(PeerInfo(other.get_id(), other.get_addrs()))
                hosts.append(host)
                self._pubsubs.append(pubsub)
            while not all(len(pubsub.router.mesh["benchmark"]) == NODES - 1 for pubsub in self._pubsubs):
                await trio.sleep(0.1)
            self._ready.set()
            await self._stop.wait()
            self._nursery.cancel_scope.cancel()

    async def _collect(self, subscription: Any, me: bytes) -> None:
        while True:
            message = await subscription.get()
            if message.from_id != me:
                self._arrivals(open_envelope(message.data))

    def publish(self, node: int, raw: bytes) -> None:
        self._token.run_sync_soon(self._nursery.start_soon, self._pubsubs[node].publish, "benchmark", raw)

    def close(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(30)


def measure(network: Network, arrivals: Arrivals, size: int) -> dict[str, float]:
    """CPU milliseconds a delivery, and the median and 95th percentile of its latency in milliseconds."""
    records = [make_record(index % NODES, size) for index in range(RECORDS)]
    arrivals.expect(RECORDS * (NODES - 1))
    sent = {}
    used = time.process_time()
    for index, raw in enumerate(records):
        sent[raw] = time.perf_counter()
        network.publish(index % NODES, raw)
        time.sleep(0.1 if size <= 16_384 else 0.25)  # below what libp2p as it comes can do on two cores
    if not arrivals.done.wait(60):
        raise RuntimeError(f"{arrivals.left} deliveries of {size} bytes did not arrive")
    used = time.process_time() - used
    latencies = sorted(1000 * (at - sent[raw]) for raw in records for at in arrivals.times[raw])
    p50, p95 = latencies[len(latencies) // 2], latencies[int(0.95 * len(latencies))]
    return {"delivery": 1000 * used / len(latencies), "latency, p50": p50, "latency, p95": p95}


def rows() -> Iterator[dict[str, Any]]:
    found: dict[str, dict[int, list[dict[str, float]]]] = {name: {size: [] for size in SIZES} for name in KINDS}
    for _ in range(REPEATS):
        for name, kind in KINDS.items():
            arrivals = Arrivals()
            network = kind(arrivals)
            time.sleep(2.0)  # first greetings and pings are not what is measured
            try:
                for size in SIZES:
                    found[name][size].append(measure(network, arrivals, size))
            finally:
                network.close()
    for size in SIZES:
        for measured in found["ours"][size][0]:
            ours, stock = ([one[measured] for one in found[name][size]] for name in KINDS)
            ratio = statistics.median(a / b for a, b in zip(ours, stock, strict=True))
            yield {
                "benchmark": "gossip",
                "config": {"measure": measured, "bytes": size, "nodes": NODES, "records": RECORDS, "repeats": REPEATS},
                "value": round(statistics.median(ours), 2),
                "unit": "CPU ms" if measured == "delivery" else "ms",
                "versus": "stock libp2p",
                "ratio": round(ratio, 2),
            }


KINDS = {"ours": Ours, "stock": Stock}


def main() -> None:
    versions = {package: importlib.metadata.version(package) for package in ("libp2p", "trio", "coincurve", "msgspec")}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for row in rows():
        print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
