"""Nodes and attackers that end with the test that started them."""

from collections.abc import Callable, Iterator

import pytest

from tests.swarm.hostile_peer import HostilePeer
from tests.swarm.live import Node, stranger


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start_one(*args, **kwargs) -> Node:
        nodes.append(Node(*args, **kwargs))
        return nodes[-1]

    start_one.nodes = nodes  # type: ignore[attr-defined]
    yield start_one
    for node in nodes:
        node.gossip.close()


@pytest.fixture
def attack() -> Iterator[Callable[..., HostilePeer]]:
    peers: list[HostilePeer] = []

    def attack_one(victim: Node, **kwargs) -> HostilePeer:
        peers.append(HostilePeer(stranger(), victim.addresses[0], **kwargs))
        return peers[-1]

    yield attack_one
    for peer in peers:
        peer.close()
