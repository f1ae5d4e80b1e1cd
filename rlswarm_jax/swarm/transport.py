"""What a node needs of a network, whatever carries it."""

import collections
from collections.abc import Collection
from typing import Protocol


class NetworkError(RuntimeError):
    """The network cannot be used; the message is one sentence that says what is wrong and what to do."""


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

    def flush(self, timeout: float) -> bool:
        """Waits until all that was published has been handed to the peers' streams; False after `timeout` seconds."""

    def take_counts(self) -> collections.Counter[str]:
        """What happened since the last call, by name."""

    def close(self) -> None:
        """Stops, and gives the port back, within seconds; does nothing if it has stopped."""
