"""Which of their peers' records nodes check: drawn by a beacon that nobody knew when they were published."""

from collections.abc import Mapping

import msgspec

from rlswarm_jax import randomness

LATE = 8  # rounds for which weights are shown beyond those in which records are looked at: to fetch them takes time


class Case(msgspec.Struct, array_like=True, frozen=True):
    """A group to be replayed. record: content hash. index: of the group; None for the one that the beacon draws."""

    record: bytes
    index: int | None = None
    beacon: bytes = b""


def drawn(auditor: bytes, authors: Mapping[bytes, bytes], beacon: bytes, auditors: int) -> list[Case]:
    """What a node is to check, of records by content hash with their authors: one of each of so many authors.

    The beacon puts all authors, and the auditor, in a ring, in which everybody checks those before them: so each is
    checked by as many, and each checks as many. Where two nodes do not know the same authors, a link of the ring is
    another here or there.
    """
    own: dict[bytes, list[bytes]] = {}
    for record, author in authors.items():
        own.setdefault(author, []).append(record)
    rank = {author: randomness.digest("pool", "auditors", beacon, author) for author in {*own, auditor}}
    ring = sorted(rank, key=lambda author: rank[author])
    at = ring.index(auditor)
    before = [ring[at - place] for place in range(1, min(auditors, len(ring) - 1) + 1)]
    lowest = [
        min(own[author], key=lambda record: randomness.digest("pool", "audited", beacon, record)) for author in before
    ]
    return [Case(record, beacon=beacon) for record in lowest]


def shown_for(max_staleness: int) -> int:
    """Rounds for which a node shows the weights of its records. max_staleness: of records that are learned from."""
    return 2 * max_staleness + LATE


def place(case: Case, groups: int) -> int:
    """Which of so many groups of a record the beacon draws."""
    return randomness.seed("pool", "audited", case.beacon, case.record) % groups
