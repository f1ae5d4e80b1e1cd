"""What a node needs of a network, whatever carries it."""

import collections
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

import msgspec

from rlswarm_jax.records.schema import U63, Hash

RANGE = 512 << 10  # bytes of a part that are sent at a time
MAX_PARTS = 64  # that lead to some weights


class NetworkError(RuntimeError):
    """The network cannot be used; the message is one sentence that says what is wrong and what to do."""


class NotShownError(RuntimeError):
    """Weights that are not to be had. withheld: their author is here, and does not show what it should be able to."""

    def __init__(self, why: str, withheld: bool):
        super().__init__(why)
        self.withheld = withheld


class Part(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A step on the way to some weights. hash: SHA-256 of its bytes. size: in bytes. weights: what it leads to."""

    hash: Hash
    size: U63
    weights: Hash


class Kept(Protocol):
    """What a `Part` says of something that is kept."""

    @property
    def hash(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def weights(self) -> bytes: ...


class Shelf(Protocol):
    """What a node shows of its weights; called on the network's thread."""

    def path(self, weights: bytes, have: Collection[bytes]) -> Sequence[Kept]:
        """What leads to some weights from others that are had, or from none; empty if they can't be shown."""

    def read(self, part: bytes, start: int, size: int) -> bytes:
        """Bytes of a part, by its hash; empty if it is not here."""


class Transport(Protocol):
    """Carries signed records between nodes. Every method may be called from any thread."""

    def start(self) -> list[str]:
        """Listens, and returns this node's multiaddrs, each with its `/p2p/<peer id>`. Raises NetworkError."""

    def publish(self, raw: bytes) -> None:
        """Queues a signed record (the bytes of its envelope) for all peers; never blocks."""

    def ask(self, authors: Collection[bytes]) -> None:
        """Asks those of `authors` that are connected for their latest own records; never blocks.

        For a record that is waited for and does not come: gossip can lose messages silently.
        """

    def fetch_weights(self, author: bytes, weights: bytes, have: Collection[bytes], limit: int) -> Future[list[bytes]]:
        """Asks an author for what leads to some weights: the parts, oldest first, or a NotShownError; never blocks.

        limit: bytes, of all of them.
        """

    def flush(self, timeout: float) -> bool:
        """Waits until all that was published has been handed to the peers' streams; False after `timeout` seconds."""

    def take_counts(self) -> collections.Counter[str]:
        """What happened since the last call, by name."""

    def close(self) -> None:
        """Stops, and gives the port back, within seconds; does nothing if it has stopped."""
