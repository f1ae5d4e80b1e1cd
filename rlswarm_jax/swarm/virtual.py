"""The in-process network of a simulated swarm: delays, losses and partitions as functions of one seed."""

import dataclasses
from collections.abc import Sequence

from rlswarm_jax import randomness


@dataclasses.dataclass(frozen=True)
class Partition:
    """From `start` to `end` (virtual seconds) messages between different `groups` of node indices are lost.

    A node in no group is cut off from everybody.
    """

    start: float
    end: float
    groups: tuple[tuple[int, ...], ...]

    def separates(self, at: float, sender: int, receiver: int) -> bool:
        if not self.start <= at < self.end:
            return False
        return not any(sender in group and receiver in group for group in self.groups)


@dataclasses.dataclass(frozen=True)
class VirtualNetwork:
    """latency and jitter in virtual seconds, loss a probability per message and receiver.

    bandwidth: bytes a second that a node can send, each message once and one after the other (0: all at once).

    What happens to a message depends on (seed, sender, receiver, content hash) and the time alone: one that was lost
    by chance is lost again if it is sent again.
    """

    seed: int
    num_nodes: int
    latency: float = 0.05
    jitter: float = 0.05
    loss: float = 0.0
    partitions: Sequence[Partition] = ()
    bandwidth: float = 0.0

    def sent(self, size: int, at: float, free: float) -> float:
        """When a message of so many bytes is out, whose sender had sent all before by `free`."""
        return max(at, free) + size / self.bandwidth if self.bandwidth else at

    def arrivals(self, sender: int, content_hash: bytes, at: float) -> dict[int, float]:
        """When a message sent at `at` reaches each other node; nodes it never reaches are absent."""
        fields, number = (self.seed, sender, content_hash), self.num_nodes
        lost = randomness.uniforms(number, "network", "loss", *fields) < self.loss if self.loss else None
        when = at + (self.latency + self.jitter * randomness.uniforms(number, "network", "delay", *fields))
        return {
            receiver: arrival
            for receiver, arrival in enumerate(when.tolist())
            if receiver != sender
            and not (lost is not None and lost[receiver])
            and not any(p.separates(at, sender, receiver) for p in self.partitions)
        }
