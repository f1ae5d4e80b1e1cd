"""Which of an author's records a commitment covers: found by its Merkle root.

As a rule those published since the author's last commitment. But a round that a node has left for one in which the
others were is in no commitment, and what was made for a beacon that a reorganisation undid, or for a commitment that
the chain did not take, is in none either: so single rounds, and all before some round, may be left out. Parts of a
round may not.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from rlswarm_jax.records.envelope import SignedRecord

TRIES = 200_000  # roots that are computed for one commitment, about 3 µs each


class Cover(NamedTuple):
    """records: that a commitment covers, in order. left_out: what it doesn't, of the rounds up to its last one."""

    records: list[SignedRecord]
    left_out: list[SignedRecord]

    @property
    def torn(self) -> list[SignedRecord]:
        """What was left out of rounds of which it covers the rest."""
        rounds = {signed.record.round for signed in self.records}
        return [signed for signed in self.left_out if signed.record.round in rounds]


class Undecided(Exception):
    """There are more choices of what an author may have left out than are tried."""


def cover(candidates: Sequence[SignedRecord], root: bytes, stages: int) -> Cover | None:
    """None if no choice of the candidates has that root; raises Undecided if there are too many to tell.

    candidates: an author's records, in order of publication. stages: of a round. The first of these that fits: nothing
    left out within, incomplete rounds, one or two rounds more, a single record, any rounds after which the author
    jumped; of each, the earliest start and the shortest.
    """
    tries = TRIES
    for dropped in _drops(candidates, stages):
        kept = [signed for signed in candidates if signed.hash not in dropped]
        for start in range(len(kept)):
            if start and kept[start - 1].record.round == kept[start].record.round:
                continue
            if tries <= 0:
                raise Undecided
            for end, found in enumerate(roots([signed.hash for signed in kept[start:]]), start + 1):
                if found == root:
                    return _cover(candidates, kept[start:end])
            tries -= len(kept) - start
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


def _drops(candidates: Sequence[SignedRecord], stages: int) -> Iterator[Collection[bytes]]:
    """Hashes to leave out, the likeliest first."""
    by_round = {r: [s.hash for s in of] for r, of in itertools.groupby(candidates, key=lambda s: s.record.round)}
    incomplete = {hash_ for of_round in by_round.values() if len(of_round) < stages for hash_ in of_round}
    whole = [of_round for of_round in by_round.values() if len(of_round) >= stages]
    yield set()
    if incomplete:
        yield incomplete
    for count in (1, 2):
        for rounds in itertools.combinations(whole, count):
            yield incomplete.union(*rounds)
    for signed in candidates:
        yield {signed.hash}
    numbers = sorted(by_round)
    jumped = {r for r, following in itertools.pairwise(numbers) if following > r + 1}
    for count in range(3, len(jumped) + 1):
        for chosen in itertools.combinations([r for r in sorted(jumped) if len(by_round[r]) >= stages], count):
            yield incomplete.union(*(by_round[r] for r in chosen))
