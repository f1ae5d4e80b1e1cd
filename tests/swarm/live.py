"""Live nodes for tests, over real connections on loopback."""

import collections
import itertools

from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.records.envelope import SignedRecord, seal
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.memory import Memory
from tests.records.samples import completion, group, record, sealed
from tests.waits import wait_for

numbers = itertools.count()


def stranger() -> Identity:
    """A key that no other test has used."""
    return simulated(11, next(numbers))


class Node:
    """A Gossip, with what it delivered and all it counted."""

    def __init__(self, bootnodes=(), identity=None, memory=None, kind: type[Gossip] = Gossip, **config):
        self.identity = identity or stranger()
        self.author = self.identity.author
        self.records: list[bytes] = []
        self.keeps, self.turned_away = True, 0  # whether it keeps what comes, and how often it did not
        self.counts: collections.Counter[str] = collections.Counter()
        settings = {"swarm": "tests", "bootnodes": tuple(bootnodes)} | config
        self.peers: list[frozenset[bytes]] = []  # as they came and went
        config = GossipConfig(**settings)
        self.gossip = kind(self.identity, config, self._take, self.peers.append, Memory(memory))
        self.addresses = self.gossip.start()

    def _take(self, signed: SignedRecord) -> bool:
        if self.keeps:
            self.records.append(signed.raw)
        else:
            self.turned_away += 1
        return self.keeps

    def count(self, name: str) -> int:
        self.counts.update(self.gossip.take_counts())
        return self.counts[name]

    def record(self, round_: int, **fields) -> bytes:
        return sealed(self.identity, round=round_, **fields)

    def publish(self, round_: int) -> bytes:
        raw = self.record(round_)
        self.gossip.publish(raw)
        return raw

    def sees(self, *others: "Node") -> bool:
        return {other.author for other in others} <= self.gossip.connected()


def swarm(start, number: int, **config) -> list[Node]:
    """Nodes that know the first of them only, once all are connected with all."""
    nodes = [start(**config)]
    nodes += [start(nodes[0].addresses[:1], **config) for _ in range(number - 1)]
    for node in nodes:
        wait_for(lambda node=node: node.sees(*(n for n in nodes if n is not node)), "all are connected")
    return nodes


def large(identity: Identity, kilobytes: int, round_: int = 1) -> bytes:
    texts = [completion(text="x" * 25_000) for _ in range(kilobytes // 25)]
    return seal(record(identity, groups=[group(texts)], round=round_), identity)


# --- between honest nodes
