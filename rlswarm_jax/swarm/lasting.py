"""What a session of the live network is given, and what it leaves behind: both outlive it."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

from rlswarm_jax.identity import Identity
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.status import Network
from rlswarm_jax.swarm.memory import Memory
from rlswarm_jax.swarm.transport import Shelf


@dataclasses.dataclass(frozen=True)
class GossipConfig:
    """host, port: where to listen, "any" for all addresses; port 0 takes a free one. announce: multiaddrs that others
    are told first. bootnodes: multiaddrs with `/p2p/<peer id>`.

    pace: seconds between two records sent to anybody: fewer than others take of one author. jitter: at most so many
    seconds before the first of several.
    """

    swarm: str
    host: str = "127.0.0.1"
    port: int = 0
    announce: tuple[str, ...] = ()
    bootnodes: tuple[str, ...] = ()
    target_peers: int = 6  # at least so many are looked for
    max_connections: int = 64
    pace: float = 0.06
    jitter: float = 0.02
    max_messages_per_second: float = 200.0  # of one peer, all authors together
    max_records_per_second: float = 20.0  # of one author


class Lasting(Protocol):
    """A `Gossip`, as its session sees it on the network's thread. port: the one to listen on. latest: own records.

    started: it has listened before. outbox: what is to be published. asked: authors whose latest records are wanted.
    rules: by which this node plays, and shelf: what it shows of its weights, once it knows. on_record: takes a record
    once; whether it is kept. network: how it stands, for whoever wants to know.
    """

    identity: Identity
    config: GossipConfig
    memory: Memory
    port: int
    started: bool
    rules: Mapping[str, str] | None
    shelf: Shelf | None
    network: Network
    latest: collections.deque[bytes]
    outbox: collections.deque[bytes]
    asked: set[bytes]
    on_record: Callable[[SignedRecord], bool]
    trusts: Callable[[bytes], bool]

    def count(self, name: str, number: int = 1) -> None:
        """Of what happens, by name."""

    def take_asked(self) -> set[bytes]:
        """Those that were asked for since the last call."""

    def set_connected(self, authors: frozenset[bytes]) -> None:
        """Who takes part now."""
