"""What a session of the live network is given, and what it leaves behind: both outlive it."""

import collections
import dataclasses
import ipaddress
from collections.abc import Callable, Mapping
from typing import Protocol

from rlswarm_jax.identity import Identity
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.swarm.memory import Memory


@dataclasses.dataclass(frozen=True)
class GossipConfig:
    """host, port: where to listen; port 0 takes a free one. bootnodes: multiaddrs with `/p2p/<peer id>`.

    pace: seconds between two records sent. jitter: at most so many seconds before the first of several.
    inline_bytes: a larger record is announced, and fetched by whoever has not got it.
    """

    swarm: str
    host: str = "127.0.0.1"
    port: int = 0
    bootnodes: tuple[str, ...] = ()
    target_peers: int = 6  # at least so many are looked for
    max_connections: int = 64
    pace: float = 0.02
    jitter: float = 0.02
    inline_bytes: int = 16_384
    max_messages_per_second: float = 200.0  # of one peer, all authors together
    max_records_per_second: float = 20.0  # of one author

    def __post_init__(self) -> None:
        if not 0 < self.inline_bytes <= 65_536:
            raise ValueError(f"inline_bytes must be 1 to 65536, not {self.inline_bytes}: peers drop larger messages.")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be 0 to 65535, not {self.port}.")
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(f"host must be an address like 127.0.0.1 or 0.0.0.0, not {self.host!r}.") from None


class Lasting(Protocol):
    """A `Gossip`, as its session sees it on the network's thread. port: the one to listen on. latest: own records.

    started: it has listened before. outbox: what is to be published. asked: authors whose latest records are wanted.
    rules: by which this node plays, once it knows. on_record: takes a record once; whether it is kept.
    """

    identity: Identity
    config: GossipConfig
    memory: Memory
    port: int
    started: bool
    rules: Mapping[str, str] | None
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
