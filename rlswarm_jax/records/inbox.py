"""The records a node holds: what arrived, was checked, and was not learned from yet."""

import collections
import dataclasses
from collections.abc import Callable

import msgspec

from rlswarm_jax import randomness
from rlswarm_jax.records import rotations
from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import Record, RecordError
from rlswarm_jax.records.shelf import Shelf, Slot

MAX_HELD = 2048  # a hundred nodes, three stages, five rounds, and some
MAX_HELD_BYTES = 64 << 20
MAX_PER_AUTHOR = 48
AUTHOR_SHARE = 8  # of the bytes: one author may hold so small a part
MAX_EVIDENCE = 64  # pairs
MAX_RETIRED = 1024  # keys of which it is remembered that they gave their place away
MAX_UNKNOWN = 16  # records that are taken at once of authors that are not favoured: reading and scoring them costs
MAX_ROUND = 2**31  # no swarm gets there; a record that says so would lead a node to where rounds can't be counted on


class SavedInbox(msgspec.Struct, array_like=True):
    """An inbox in a checkpoint. held: signed bytes."""

    held: list[bytes]
    taken: list[Slot]
    evidence: list[tuple[Slot, bytes, bytes]]
    counts: dict[str, int]
    told: list[Slot] = []
    passed: dict[bytes, int] = {}
    retired: list[tuple[bytes, int, bytes]] = []


@dataclasses.dataclass
class Inbox:
    """One record per (author, round, stage); a second one is equivocation and both are kept as evidence.

    Bounded: `MAX_HELD` records and `MAX_HELD_BYTES`, of rounds from `max_staleness` behind until the end, of each
    author those of the latest `MAX_PER_AUTHOR` rounds and stages, and of the bytes an eighth; evidence, which does not
    expire, of `MAX_EVIDENCE` equivocations (`_prove`). A node that was away for long must hear where the others are, so
    far rounds are taken; but where there is no room, a record makes room for one of a nearer round, one of whoever
    holds most for one of who holds less, and any for a favoured author's.
    stages: those that are played. rounds: of the game; 0 for no end. favoured: authors that a stranger, who can make
    as many keys as he likes, can't crowd out. told: of the evidence, what was handed over. passed: the latest round of
    authors whose record of it is not kept, as nobody reads it here. retired: keys that may not speak any more, from
    which round on, and who speaks in their place (`rotations`), those said longest ago first.
    """

    swarm: str
    owner: bytes
    max_staleness: int
    stages: tuple[str, ...]
    rounds: int = 0
    favoured: frozenset[bytes] = frozenset()
    records: dict[Slot, SignedRecord] = dataclasses.field(default_factory=dict)
    taken: set[Slot] = dataclasses.field(default_factory=set)
    evidence: dict[Slot, tuple[bytes, bytes]] = dataclasses.field(default_factory=dict)
    told: set[Slot] = dataclasses.field(default_factory=set)
    passed: dict[bytes, int] = dataclasses.field(default_factory=dict)
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    retired: dict[bytes, tuple[int, bytes]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shelf = Shelf(self.records)  # through which alone they are changed

    def offer(self, raw: bytes, current_round: int) -> SignedRecord | None:
        """Checks and keeps a record. None, and a count under its cause, if it is not to be used."""
        try:
            signed = open_envelope(raw)
            self._admit(signed, current_round)
        except RecordError as error:
            self.counts[error.cause] += 1
            return None
        self.counts["received"] += 1
        return signed

    def _admit(self, signed: SignedRecord, current_round: int) -> None:
        record = signed.record
        slot = (record.author, record.round, record.stage)
        if record.swarm != self.swarm:
            raise RecordError("wrong swarm", f"it is for {record.swarm!r}")
        if record.author == self.owner:
            raise RecordError("own record", "it came back")
        if record.stage not in self.stages:
            raise RecordError("unknown stage", f"{record.stage!r}, played are {', '.join(self.stages)}")
        if not current_round - self.max_staleness <= record.round < (self.rounds or MAX_ROUND):
            raise RecordError("out of window", f"round {record.round}, this node is in {current_round}")
        if record.author in self.retired and record.round >= self.retired[record.author][0]:
            raise RecordError("retired key", f"{self.retired[record.author][1].hex()} speaks in its place")
        if slot in self.records:
            first = self.records[slot]
            if first.hash == signed.hash:
                raise RecordError("duplicate", "this record is here already")
            self._prove(slot, first.raw, signed.raw)
            self.taken.add(slot)  # neither of the two is handed over by itself any more
            raise RecordError("equivocation", f"two records for round {record.round}, stage {record.stage!r}")
        self._bound_author(slot, len(signed.raw))
        self._make_room(slot, len(signed.raw), current_round)
        self._shelf.put(slot, signed)
        self._retire(record)

    def pass_by(self, author: bytes, round_: int) -> None:
        """Notes that one has spoken in a round, and keeps nothing of it."""
        if self.passed.get(author, -1) < round_:
            self.passed[author] = round_

    def holds(self, signed: SignedRecord) -> bool:
        """Whether this very record is here."""
        held = self.records.get((signed.record.author, signed.record.round, signed.record.stage))
        return held is not None and held.hash == signed.hash

    def authors(self, round_: int, stage: str) -> set[bytes]:
        """Who has spoken in this round and stage."""
        return set(self._shelf.at(round_, stage))

    def speakers(self) -> set[bytes]:
        """Who was heard in the rounds that are kept."""
        return {*self._shelf.authors(), *self.passed}

    def latest_rounds(self) -> dict[bytes, int]:
        """The latest round each author has spoken in."""
        held = {author: self._shelf.last_of(author)[1] for author in self._shelf.authors()}
        return held | {author: max(round_, held.get(author, round_)) for author, round_ in self.passed.items()}

    def latest_round(self, author: bytes, otherwise: int) -> int:
        """That of one author; `otherwise` if there is none."""
        held = self._shelf.last_of(author)[1] if self._shelf.of_author(author)[0] else -1
        latest = max(held, self.passed.get(author, -1))
        return latest if latest >= 0 else otherwise

    def take(
        self,
        round_: int,
        stage: str,
        wanted: Callable[[bytes, int], bool] = lambda author, round_: True,
        strangers: int | None = None,
    ) -> list[SignedRecord]:
        """Hands over, once, all records up to a stage of a round, late ones too, in canonical order (content hash).

        Those of later stages wait for theirs: which of them come before the others is chance. wanted: whose, and of
        which rounds; others stay. Of authors that are not favoured it is `MAX_UNKNOWN` at a time, or `strangers` if
        that is less, as many authors as possible, the latest first; which of them is drawn anew in each stage.
        Two records for one slot are handed over together, whatever was before: who has both has the proof.
        """
        order = {stage: number for number, stage in enumerate(self.stages)}
        until = round_, order[stage]
        found = [
            slot
            for slot in self.records
            if (slot[1], order[slot[2]]) <= until and slot not in self.taken and wanted(*slot[:2])
        ]
        slots = [slot for slot in found if slot[0] in self.favoured]
        unknown = [slot for slot in found if slot[0] not in self.favoured]
        most = MAX_UNKNOWN if strangers is None else min(strangers, MAX_UNKNOWN)
        slots += self._some(unknown, round_, stage, order, most)
        self.taken.update(slots)
        return sorted([self.records[slot] for slot in slots] + self._proofs(), key=lambda signed: signed.hash)

    def _proofs(self) -> list[SignedRecord]:
        """Pairs of records that contradict each other, once; of strangers, who can make any number, a few at a time."""
        untold = sorted(self.evidence.keys() - self.told)
        unknown = [slot for slot in untold if slot[0] not in self.favoured]
        now = [slot for slot in untold if slot[0] in self.favoured] + unknown[:MAX_UNKNOWN]
        self.told.update(now)
        return [open_envelope(raw) for slot in now for raw in self.evidence[slot]]

    def _some(self, slots: list[Slot], round_: int, stage: str, order: dict[str, int], most: int) -> list[Slot]:
        """So many of these at most: everybody's last before anyone's last but one."""
        if len(slots) <= most:
            return slots
        behind: collections.Counter[bytes] = collections.Counter()
        ranked = []
        for slot in sorted(slots, key=lambda slot: (slot[1], order[slot[2]]), reverse=True):
            rank = randomness.digest("pool", "read", self.owner, round_, stage, slot[0])
            ranked.append((behind[slot[0]], rank, slot))
            behind[slot[0]] += 1
        return [slot for _, _, slot in sorted(ranked)[:most]]

    def expire(self, current_round: int) -> None:
        """Forgets rounds that nobody may send records of any more."""
        oldest = current_round - self.max_staleness
        for slot in [slot for slot in self.records if slot[1] < oldest]:
            self._forget(slot)
        self.passed = {author: round_ for author, round_ in self.passed.items() if round_ >= oldest}

    def mark_taken(self, signed: SignedRecord) -> None:
        """Holds a record that was handed over before a restart, so that it is not handed over again."""
        slot = (signed.record.author, signed.record.round, signed.record.stage)
        held = self.records.get(slot)
        if held is None or held.hash == signed.hash:
            self._shelf.put(slot, signed)
        elif self._prove(slot, held.raw, signed.raw):
            self.told.add(slot)
        self.taken.add(slot)
        self._retire(signed.record)

    def save(self) -> SavedInbox:
        return SavedInbox(
            held=[signed.raw for signed in self.records.values()],
            taken=sorted(self.taken),
            evidence=[(slot, first, second) for slot, (first, second) in self.evidence.items()],
            counts=dict(self.counts),
            told=sorted(self.told),
            passed=self.passed,
            retired=[(old, round_, new) for old, (round_, new) in self.retired.items()],
        )

    def restore(self, saved: SavedInbox) -> None:
        signed = [open_envelope(raw) for raw in saved.held]
        for slot in list(self.records):
            self._shelf.drop(slot)
        for one in signed:
            self._shelf.put((one.record.author, one.record.round, one.record.stage), one)
        self.taken = set(saved.taken)
        self.evidence = {slot: (first, second) for slot, first, second in saved.evidence}
        self.counts, self.told = collections.Counter(saved.counts), set(saved.told)
        self.passed = dict(saved.passed)
        self.retired = {old: (round_, new) for old, round_, new in saved.retired}

    def _retire(self, record: Record) -> None:
        """Hears no more of the keys that a record's author had before. Its owner's own, stolen, is not for it to judge.

        Of what such a key has said after that, what was not handed over yet goes, whichever came first. Where there is
        no room, of those that nobody favoured follows the one that was repeated longest ago is forgotten.
        """
        for old, new, round_ in rotations.of(record):
            if old == self.owner:
                continue
            before = self.retired.pop(old, (round_, new))
            self.retired[old] = min(before, (round_, new))
            for slot in [slot for slot in self.records if slot[0] == old and slot[1] >= round_]:
                if slot not in self.taken:
                    self._forget(slot)
            if len(self.retired) > MAX_RETIRED:
                strange = (one for one, (_, heir) in self.retired.items() if heir not in self.favoured)
                del self.retired[next(strange, next(iter(self.retired)))]

    def _prove(self, slot: Slot, first: bytes, second: bytes) -> bool:
        """Keeps two records of one slot; whether there is room for them.

        Where there is none, a favoured author's first pair takes the place of somebody's second, or of a stranger's:
        nobody who is listened to contradicts themselves unseen behind keys that were made for that.
        """
        if slot not in self.evidence and len(self.evidence) >= MAX_EVIDENCE:
            pairs = collections.Counter(author for author, _, _ in self.evidence)
            spare = [held for held in self.evidence if pairs[held[0]] > 1]
            spare = spare or [held for held in self.evidence if held[0] not in self.favoured]
            if slot[0] in pairs or slot[0] not in self.favoured or not spare:
                return False
            del self.evidence[spare[-1]]
            self.told.discard(spare[-1])
        if slot not in self.told:  # of more than two those of least hash: whichever came first
            raws = sorted({*self.evidence.get(slot, ()), first, second}, reverse=True)
            every = sorted({open_envelope(raw).hash: raw for raw in raws}.items())
            self.evidence[slot] = every[0][1], every[1][1]
        return True

    def _bound_author(self, slot: Slot, size: int) -> None:
        """Makes room for an author's record among their own: the oldest go."""
        shelf, author = self._shelf, slot[0]
        while True:
            number, held = shelf.of_author(author)
            if number < MAX_PER_AUTHOR and (not number or held + size <= MAX_HELD_BYTES // AUTHOR_SHARE):
                return
            oldest = shelf.first_of(author)
            if slot[1:] < oldest[1:]:
                raise RecordError("overflow", f"{number} later records of its author, {held} bytes, are held")
            self._forget(oldest)

    def _make_room(self, slot: Slot, size: int, current_round: int) -> None:
        shelf = self._shelf
        while len(self.records) >= MAX_HELD or shelf.bytes + size > MAX_HELD_BYTES:
            worst = self._worse(slot, size, current_round)
            if worst is None:
                raise RecordError("overflow", f"{len(self.records)} records, {shelf.bytes} bytes are held")
            self._forget(worst)
            self.counts["overflow"] += 1

    def _worse(self, slot: Slot, size: int, current_round: int) -> Slot | None:
        """A record that is to go before this one comes; None if this one is."""
        author, round_, _ = slot
        shelf, favoured = self._shelf, self.favoured
        far = shelf.last_round()
        if far > current_round + 1 and far >= round_:
            stranger = next((held for held in shelf.in_round(far) if held[0] not in favoured), None)
            if far > round_:
                return stranger or next(iter(shelf.in_round(far)))
            return stranger if author in favoured else None
        if round_ > current_round + 1:
            return None
        if shelf.spared is not favoured:
            shelf.spare(favoured)
        heaviest = shelf.heaviest()
        if heaviest is None:
            return None
        number, held = shelf.of_author(heaviest)
        own_number, own_held = shelf.of_author(author)
        heavier = (held, number) > (own_held + size, own_number + 1)
        return shelf.first_of(heaviest) if author in favoured or heavier else None

    def _forget(self, slot: Slot) -> None:
        self._shelf.drop(slot)
        self.taken.discard(slot)
