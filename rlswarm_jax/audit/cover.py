"""Which of an author's records a commitment covers: found by its Merkle root.

All those that were published since the author's last commitment, those of a round that was left included. But where a
reorganisation undid a beacon, or the chain did not take a commitment, what was said until then is in none.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from rlswarm_jax.records.envelope import SignedRecord

TRIES = 100_000  # roots that are computed to say what was left out, about 3 µs each


class Cover(NamedTuple):
    """records: that a commitment covers, in order. left_out: what it doesn't, of the rounds up to its last one."""

    records: list[SignedRecord]
    left_out: list[SignedRecord]

    @property
    def holes(self) -> list[SignedRecord]:
        """What was left out of the rounds from its first one on, which nobody has a reason to."""
        first = self.records[0].record.round
        return [signed for signed in self.left_out if signed.record.round >= first]


def cover(candidates: Sequence[SignedRecord], root: bytes) -> Cover | None:
    """None if no choice of the candidates has that root. candidates: an author's records, in order of publication.

    Tried are all that follow each other from the beginning of any round on, the earliest and shortest first; then the
    same without a round, or a record, within.
    """
    tries = 0
    for dropped in _drops(candidates):
        kept = [signed for signed in candidates if signed.hash not in dropped]
        for start in range(len(kept)):
            if start and kept[start - 1].record.round == kept[start].record.round:
                continue
            if dropped and tries > TRIES:
                return None
            for end, found in enumerate(roots([signed.hash for signed in kept[start:]]), start + 1):
                if found == root:
                    return _cover(candidates, kept[start:end])
            tries += len(kept) - start if dropped else 0
    return None


def _cover(candidates: Sequence[SignedRecord], chosen: list[SignedRecord]) -> Cover:
    hashes, last = {signed.hash for signed in chosen}, chosen[-1].record.round
    left_out = [signed for signed in candidates if signed.record.round <= last and signed.hash not in hashes]
    return Cover(chosen, left_out)


def roots(records: Sequence[bytes]) -> Iterator[bytes]:
    """The Merkle roots (`commit.root`) of the first record, the first two, and so on; a few hashes for each."""
    whole: list[bytes] = []  # roots of the full subtrees, the largest first, as in the binary digits of how many
    for count, record in enumerate(records, 1):
        node, digits = hashlib.sha256(b"\0" + record).digest(), count
        while digits % 2 == 0:
            node, digits = _node(whole.pop(), node), digits // 2
        whole.append(node)
        found = whole[-1]
        for left in reversed(whole[:-1]):
            found = _node(left, found)
        yield found


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _drops(candidates: Sequence[SignedRecord]) -> Iterator[Collection[bytes]]:
    """Hashes to leave out."""
    yield set()
    for _, of_round in itertools.groupby(candidates, key=lambda signed: signed.record.round):
        yield {signed.hash for signed in of_round}
    for signed in candidates:
        yield {signed.hash}
