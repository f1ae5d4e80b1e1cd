"""The records a node holds: what arrived, was checked, and was not learned from yet."""

import collections
import dataclasses

import msgspec

from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import RecordError

Slot = tuple[bytes, int, str]  # author, round, stage
MAX_HELD = 2048  # a hundred nodes, three stages, five rounds, and some
MAX_HELD_BYTES = 64 << 20
MAX_PER_AUTHOR = 48
MAX_EVIDENCE = 64  # pairs
MAX_ROUND = 2**31  # no swarm gets there; a record that says so would lead a node to where rounds can't be counted on


class SavedInbox(msgspec.Struct, array_like=True):
    """An inbox in a checkpoint. held: signed bytes."""

    held: list[bytes]
    taken: list[Slot]
    evidence: list[tuple[Slot, bytes, bytes]]
    counts: dict[str, int]


@dataclasses.dataclass
class Inbox:
    """One record per (author, round, stage); a second one is equivocation and both are kept as evidence.

    Bounded: `MAX_HELD` records and `MAX_HELD_BYTES`, of rounds from `max_staleness` behind until the end, of each
    author those of the latest `MAX_PER_AUTHOR` rounds and stages; evidence, which does not expire, of the first
    `MAX_EVIDENCE` equivocations. A node that was away for long must hear where the others are, so far rounds are
    taken; but where there is no room, a record makes room for one of a nearer round, or of a favoured author.
    stages: those that are played. rounds: of the game; 0 for no end. favoured: authors that a stranger, who can make
    as many keys as he likes, can't crowd out.
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
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)

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
        if slot in self.records:
            first = self.records[slot]
            if first.hash == signed.hash:
                raise RecordError("duplicate", "this record is here already")
            if len(self.evidence) < MAX_EVIDENCE:
                self.evidence.setdefault(slot, (first.raw, signed.raw))
            self.taken.add(slot)  # neither of the two is learned from any more
            raise RecordError("equivocation", f"two records for round {record.round}, stage {record.stage!r}")
        of_author = sorted((s for s in self.records if s[0] == record.author), key=lambda s: s[1:])
        if len(of_author) >= MAX_PER_AUTHOR:
            if slot[1:] < of_author[0][1:]:
                raise RecordError("overflow", f"{MAX_PER_AUTHOR} later records of its author are held")
            self._forget(of_author[0])
        self._make_room(slot, len(signed.raw), current_round)
        self.records[slot] = signed

    def holds(self, signed: SignedRecord) -> bool:
        """Whether this very record is here."""
        held = self.records.get((signed.record.author, signed.record.round, signed.record.stage))
        return held is not None and held.hash == signed.hash

    def authors(self, round_: int, stage: str) -> set[bytes]:
        """Who has spoken in this round and stage."""
        return {author for author, r, s in self.records if r == round_ and s == stage}

    def latest_rounds(self) -> dict[bytes, int]:
        """The latest round each author has spoken in."""
        latest: dict[bytes, int] = {}
        for author, round_, _ in self.records:
            latest[author] = max(round_, latest.get(author, round_))
        return latest

    def take(self, round_: int, stage: str) -> list[SignedRecord]:
        """Hands over, once, all records up to a stage of a round, late ones too, in canonical order (content hash).

        Those of later stages wait for theirs: which of them come before the others is chance.
        """
        order = {stage: number for number, stage in enumerate(self.stages)}
        until = round_, order[stage]
        slots = [slot for slot in self.records if (slot[1], order[slot[2]]) <= until and slot not in self.taken]
        self.taken.update(slots)
        return sorted((self.records[slot] for slot in slots), key=lambda signed: signed.hash)

    def expire(self, current_round: int) -> None:
        """Forgets rounds that nobody may send records of any more."""
        for slot in [slot for slot in self.records if slot[1] < current_round - self.max_staleness]:
            self._forget(slot)

    def mark_taken(self, signed: SignedRecord) -> None:
        """Holds a record that was handed over before a restart, so that it is not handed over again."""
        slot = (signed.record.author, signed.record.round, signed.record.stage)
        self.records[slot] = signed
        self.taken.add(slot)

    def save(self) -> SavedInbox:
        return SavedInbox(
            held=[signed.raw for signed in self.records.values()],
            taken=sorted(self.taken),
            evidence=[(slot, first, second) for slot, (first, second) in sorted(self.evidence.items())],
            counts=dict(self.counts),
        )

    def restore(self, saved: SavedInbox) -> None:
        signed = [open_envelope(raw) for raw in saved.held]
        self.records = {(s.record.author, s.record.round, s.record.stage): s for s in signed}
        self.taken = set(saved.taken)
        self.evidence = {slot: (first, second) for slot, first, second in saved.evidence}
        self.counts = collections.Counter(saved.counts)

    def _make_room(self, slot: Slot, size: int, current_round: int) -> None:
        def burden(held: Slot) -> tuple[int, bool]:
            return max(0, held[1] - current_round - 1), held[0] not in self.favoured

        while True:
            held_bytes = sum(len(held.raw) for held in self.records.values())
            if len(self.records) < MAX_HELD and held_bytes + size <= MAX_HELD_BYTES:
                return
            worst = max(self.records, key=burden)
            if burden(slot) >= burden(worst):
                raise RecordError("overflow", f"{len(self.records)} records, {held_bytes} bytes are held")
            self._forget(worst)
            self.counts["overflow"] += 1

    def _forget(self, slot: Slot) -> None:
        del self.records[slot]
        self.taken.discard(slot)
