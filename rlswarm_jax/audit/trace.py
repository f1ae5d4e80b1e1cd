"""Which records an author's commitments cover, one after the other, and what is missing of those that have no cover."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlswarm_jax.audit.cover import Cover, cover
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.game.turns import in_time
from rlswarm_jax.records.envelope import SignedRecord

Slot = tuple[bytes, int, str]  # author, round, stage
LATER = 64  # rounds under a later beacon than the commitment's, which a node may have begun and left


class Traced(NamedTuple):
    """missing: where there is no cover, about how many records that it may be of are not here; 0 if all are."""

    cover: Cover | None
    missing: int


class Shelf:
    """The records that are here, of each author in order.

    since: of authors of whom all that they published from a round on is here, as the observer itself knows. numbers:
    rounds of the coordinator, by what records call their beacons. stages: of a round.
    """

    def __init__(
        self,
        records: Sequence[SignedRecord],
        since: Mapping[bytes, int],
        numbers: Mapping[bytes, int],
        stages: tuple[str, ...],
    ):
        self._since, self._numbers, self._stages = since, numbers, stages
        self._slots = collections.defaultdict[bytes, dict[tuple[int, str], list[SignedRecord]]](dict)
        for signed in sorted(records, key=in_time):
            at = (signed.record.round, signed.record.stage)
            self._slots[signed.record.author].setdefault(at, []).append(signed)
        self._last = max((signed.record.round for signed in records), default=-1)
        self.authors = {account_of(author): author for author in self._slots}

    @property
    def equivocations(self) -> list[Slot]:
        """Authors, rounds and stages of which two signed records are here."""
        slots = [(author, *at, len(of)) for author, own in self._slots.items() for at, of in own.items()]
        return [(author, round_, stage) for author, round_, stage, count in slots if count > 1]

    def rounds(self, author: bytes) -> dict[int, set[str]]:
        """The stages that are here of an author's rounds."""
        found = collections.defaultdict[int, set[str]](set)
        for round_, stage in self._slots[author]:
            found[round_].add(stage)
        return found

    def trace(self, author: bytes | None, commitments: Sequence[tuple[int, bytes]]) -> list[Traced]:
        """What each of an author's commitments covers. commitments: rounds of the coordinator, in order, and roots."""
        if author is None:
            return [Traced(None, len(self._stages)) for _ in commitments]
        covers: list[Cover | None] = []
        ends, known = [-1], -1  # the last round covered before each; the round since when that is known
        for number, root in commitments:
            found = self._cover(author, ends[-1], known, number, root)
            if found and covers and covers[-1] is None:  # what comes before may be the other's
                found = found._replace(left_out=found.holes)
            covers.append(found)
            ends.append(found.records[-1].record.round if found else ends[-1])
            known = -1 if found else number
        starts = [found.records[0].record.round if found else None for found in covers]
        following = [next((start for start in starts[at:] if start is not None), None) for at in range(len(starts))]
        return [
            Traced(found, 0 if found else self._missing(author, end, until))
            for found, end, until in zip(covers, ends, following, strict=False)
        ]

    def _cover(self, author: bytes, end: int, earliest: int, number: int, root: bytes) -> Cover | None:
        """Of the records after a round, under the beacon of `earliest` or a later one."""
        candidates, later = [], set[int]()
        for (round_, _), of in self._slots[author].items():
            at = self._numbers.get(of[0].record.beacon, number)
            if at > number:
                later.add(round_)
            if round_ > end and at >= earliest and len(later) <= LATER:
                candidates.append(of)
        for pick in range(max(map(len, candidates), default=0)):  # whoever signs two for a slot commits to one of them
            if found := cover([of[min(pick, len(of) - 1)] for of in candidates], root):
                return found
        return None

    def _missing(self, author: bytes, end: int, until: int | None) -> int:
        """About how many records are not here between two rounds; if nobody knows where it ends, one at least."""
        if self._since.get(author, end + 2) <= end + 1:
            return 0
        span = range(end + 1, self._last + 1 if until is None else until)  # which who names a far round makes long
        here = sum(round_ in span and stage in self._stages for round_, stage in self._slots[author])
        missing = len(span) * len(self._stages) - here
        return max(missing, 1) if until is None else missing
