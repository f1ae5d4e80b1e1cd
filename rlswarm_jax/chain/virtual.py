"""The coordinator's rule of rounds and beacons without a chain, for simulations: a function of what was committed."""

import msgspec

from rlswarm_jax import randomness

Moment = tuple[int, bytes]  # a round and its beacon


class _Saved(msgspec.Struct, array_like=True):
    moments: list[Moment]
    commitments: dict[bytes, bytes]


class VirtualCoordinator:
    """Goes to the next round when a quorum has committed in the present one. seed: of the first beacon."""

    def __init__(self, seed: int, quorum: int):
        self._quorum = quorum
        self._saved = _Saved([(0, randomness.digest("problem", "virtual", seed))], {})

    def moments(self) -> list[Moment]:
        """The latest two rounds."""
        return list(self._saved.moments)

    def commit(self, author: bytes, round_: int, root: bytes) -> None:
        """Takes a commitment; only those for the present round make it end."""
        now, beacon = self._saved.moments[-1]
        if round_ != now:
            return
        self._saved.commitments.setdefault(author, root)
        if len(self._saved.commitments) >= self._quorum:
            fields = (field for item in sorted(self._saved.commitments.items()) for field in item)
            following = now + 1, randomness.digest("problem", "virtual", beacon, *fields)
            self._saved = _Saved([(now, beacon), following], {})

    def save(self) -> bytes:
        return msgspec.msgpack.encode(self._saved)

    def restore(self, saved: bytes) -> None:
        self._saved = msgspec.msgpack.decode(saved, type=_Saved)


def quorum(nodes: int) -> int:
    """Of a swarm of so many: two thirds, rounded up, so that one that is gone does not hold up the others."""
    return -(-2 * nodes // 3)
