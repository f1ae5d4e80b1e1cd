"""Records by their slots, with what an inbox asks of them at every arrival kept at hand: nothing walks them all."""

import bisect
import heapq
from collections.abc import Container, Iterable

from rlswarm_jax.records.envelope import SignedRecord

Slot = tuple[bytes, int, str]  # author, round, stage


class Shelf:
    """records: empty at first, then in the order in which they came. bytes: of all.

    A change costs the logarithm of how many there are.
    """

    def __init__(self, records: dict[Slot, SignedRecord]) -> None:
        self.records = records
        self.bytes = 0
        self._of_author: dict[bytes, list[tuple[int, str]]] = {}  # in order
        self._bytes_of: dict[bytes, int] = {}
        self._at: dict[tuple[int, str], set[bytes]] = {}
        self._in_round: dict[int, dict[Slot, None]] = {}
        self._rounds: list[int] = []  # negative, a heap; some are held no more
        self._burdens: list[tuple[int, int, bytes]] = []  # a heap, the heaviest first; some are out of date
        self.spared: Container[bytes] = ()

    def put(self, slot: Slot, signed: SignedRecord) -> None:
        """In the place of what was there."""
        if slot in self.records:
            self.drop(slot)
        author, round_, stage = slot
        self.records[slot] = signed
        self._weigh(author, len(signed.raw))
        bisect.insort(self._of_author.setdefault(author, []), (round_, stage))
        self._at.setdefault((round_, stage), set()).add(author)
        if round_ not in self._in_round:
            heapq.heappush(self._rounds, -round_)
        self._in_round.setdefault(round_, {})[slot] = None
        self._enter(author)

    def drop(self, slot: Slot) -> None:
        author, round_, stage = slot
        self._weigh(author, -len(self.records.pop(slot).raw))
        own, there, of_round = self._of_author[author], self._at[round_, stage], self._in_round[round_]
        del own[bisect.bisect_left(own, (round_, stage))], of_round[slot]
        there.discard(author)
        if not own:
            del self._of_author[author], self._bytes_of[author]
        if not there:
            del self._at[round_, stage]
        if not of_round:
            del self._in_round[round_]
        self._enter(author)

    def of_author(self, author: bytes) -> tuple[int, int]:
        """How many records, and how many bytes."""
        return len(self._of_author.get(author, ())), self._bytes_of.get(author, 0)

    def first_of(self, author: bytes) -> Slot:
        return (author, *self._of_author[author][0])

    def last_of(self, author: bytes) -> Slot:
        return (author, *self._of_author[author][-1])

    def authors(self) -> Iterable[bytes]:
        return self._of_author.keys()

    def at(self, round_: int, stage: str) -> set[bytes]:
        """Whose records of a round and stage are here: not to be changed."""
        return self._at.get((round_, stage), set())

    def last_round(self) -> int:
        """The latest of all; -1 if there is none."""
        while self._rounds and -self._rounds[0] not in self._in_round:
            heapq.heappop(self._rounds)
        return -self._rounds[0] if self._rounds else -1

    def in_round(self, round_: int) -> Iterable[Slot]:
        return self._in_round.get(round_, {})

    def spare(self, authors: Container[bytes]) -> None:
        """These are not to be the heaviest from now on."""
        self.spared = authors
        self._burdens = []
        for author in self._of_author:
            self._enter(author)

    def heaviest(self) -> bytes | None:
        """Who has most here, by bytes and then by number, of those that are not spared; of equals the least key."""
        while self._burdens:
            size, number, author = self._burdens[0]
            if (-number, -size) == self.of_author(author):
                return author
            heapq.heappop(self._burdens)
        return None

    def _weigh(self, author: bytes, more: int) -> None:
        self.bytes += more
        self._bytes_of[author] = self._bytes_of.get(author, 0) + more

    def _enter(self, author: bytes) -> None:
        number, size = self.of_author(author)
        if number and author not in self.spared:
            heapq.heappush(self._burdens, (-size, -number, author))
            if len(self._burdens) > 4 * len(self._of_author) + 64:  # most of them out of date
                self.spare(self.spared)
