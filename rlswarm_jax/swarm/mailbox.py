"""Where a live node's network thread leaves the records and its round's thread waits for them."""

import collections
import logging
import threading
import time
from collections.abc import Collection

from rlswarm_jax.identity import friendly_name
from rlswarm_jax.records import rotations
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import Announcing, Record
from rlswarm_jax.records.shelf import Slot
from rlswarm_jax.status import plural
from rlswarm_jax.swarm.waiting import EARN, VOTING, Company, quorum_time, read_by, stage_end, still_to_speak

log = logging.getLogger("rlswarm_jax.network")


class Mailbox:
    """The inbox of a live node, whom its stages wait for, and whose rounds it follows.

    named: peers that are known before they come, those of a local swarm. bootnodes: peers this node was told to join.
    members: authors that are registered with the chain's coordinator; None where that is not known. Where it is, only
    they and the named are waited for, and only their records are handed over: others' stay, they may become members.

    Waited for are the named, and connected peers that have earned it (see `waiting.Company`), until they disconnect or
    are late. A stage ends as `waiting.stage_end` says, by those of standing; but for a named peer that has never
    spoken, which is still to start, it waits until the deadline.

    Without a chain keys are free. Whoever makes many can hold up a stage for its grace with each that has spoken in
    `EARN` rounds, and until the deadline only with a third of those that have been there half as long as the longest;
    and each that did must speak in more rounds than before. A node that was told of nobody, or finds none of them,
    follows those of standing; in its first `EARN` rounds, most of all that it is connected with.

    distrusted: authors that are not waited for, and whose rounds are not followed.

    reads: authors that are read in a round, drawn from those that are waited for as it begins (`waiting.read_by`); none
    but they are waited for in it, and only their records of it are handed over, or kept once they are drawn. 0: all.

    Hold `changed` to look at the inbox or to change it; it is notified when records or peers come or go. round: the
    one being played; records from too far behind it are refused.
    """

    def __init__(self, inbox: Inbox, named: Collection[bytes] = (), bootnodes: Collection[bytes] = (), reads: int = 0):
        self.inbox, self._reads = inbox, reads
        self._read: dict[int, frozenset[bytes]] = {}  # by round, the authors that were drawn
        self.named, self.bootnodes = (frozenset(authors) - {inbox.owner} for authors in (named, bootnodes))
        self.round = 0
        self.members: frozenset[bytes] | None = None
        self.distrusted: frozenset[bytes] = frozenset()
        self.connected: frozenset[bytes] = frozenset()
        self.changed = threading.Condition()
        self._company = Company(self.named | self.bootnodes)
        self._awaited = set(self.named)
        self._starting = set(self.named)
        self._spoken: frozenset[bytes] = frozenset()  # who has, of those that are connected
        self._trailing: dict[bytes, int] = {}  # the latest round that was too old to take, of those that are connected
        self._arrived: dict[Slot, float] = {}  # on the monotonic clock
        self._rounds: set[int] = set()  # the first that were played since this node's start
        self._counts: collections.Counter[str] = collections.Counter()
        inbox.favoured = self.named | self.bootnodes

    # --- called by the network's thread

    def on_record(self, signed: SignedRecord) -> bool:
        """Takes a record whose form and signature were checked; whether it is here now."""
        record = signed.record
        with self.changed:
            if self.inbox.holds(signed):
                self._counts["records/again"] += 1  # re-sent after a restart, or asked for
                return True
            if self._passes_by(record):
                self.inbox.pass_by(record.author, record.round)
            elif self.inbox.offer(signed.raw, self.round) is None:
                if record.author in self.connected and record.round < self.round - self.inbox.max_staleness:
                    self._trailing[record.author] = max(record.round, self._trailing.get(record.author, -1))
                return False
            else:
                self._arrived[record.author, record.round, record.stage] = time.monotonic()
                self._follow(record)
            self._spoken |= {record.author} & self.connected
            self._starting.discard(record.author)
            # one heard through others comes when it comes
            if record.author in self.connected | self.named and self._company.spoke(
                record.author, record.round, self.round
            ):
                self._awaited.add(record.author)
                self._favour()
            self.changed.notify_all()
            return True

    def _follow(self, record: Record) -> None:
        """Whoever gives their place to another key of theirs keeps it."""
        for old, new, round_ in rotations.of(record):
            if old == self.inbox.owner:
                if not self._counts["peers/own_key_given_up"]:
                    log.error(
                        "%s says that this node's key was given up for theirs, and nobody hears it from round %d on: "
                        "if it was not you who did that, the key is in wrong hands",
                        friendly_name(new),
                        round_,
                    )
                self._counts["peers/own_key_given_up"] += 1
            elif self._company.follow(old, new):
                self._awaited.discard(old)
                log.info("%s speaks as %s from round %d on", friendly_name(old), friendly_name(new), round_)

    def on_peers(self, connected: frozenset[bytes]) -> None:
        """Takes the authors that are connected now."""
        with self.changed:
            self._awaited -= self.connected - connected
            self.connected = connected
            self._trailing = {author: round_ for author, round_ in self._trailing.items() if author in connected}
            self._spoken = connected & (self._spoken | self.inbox.speakers())
            self._favour()
            self.changed.notify_all()

    def trusts(self, author: bytes) -> bool:
        """Whether one is no stranger."""
        return author in self.inbox.favoured

    def _favour(self) -> None:
        favoured = self.named | self.bootnodes | {a for a in self.connected if self._company.earned(a)}
        if favoured != self.inbox.favoured:
            self.inbox.favoured = favoured

    # --- called by the round's thread

    @property
    def met(self) -> bool:
        """Whether the peers that this node was told of are there: all that are named, any of the bootnodes' swarm."""
        return self.named <= self.connected and (bool(self.connected) or not self.bootnodes)

    def is_peer(self, author: bytes) -> bool:
        """Whether one is waited for, shown and learned from at all."""
        return self.members is None or author in self.members or author in self.named

    def voters(self) -> frozenset[bytes]:
        """Whose rounds this node follows: the connected ones of those it was told of, else those of standing."""
        if told := ((self.named | self.bootnodes) & self.connected) - self.distrusted:
            return told
        peers = {author for author in self._spoken if self.is_peer(author)} - self.distrusted
        if standing := self._company.seasoned(peers, at_most=VOTING):
            return frozenset(standing)
        return frozenset(peers) if len(self._rounds) <= EARN else frozenset()

    def authors(self) -> list[bytes]:
        """Everybody this node was told of, then those it is connected with, then those it has heard."""
        with self.changed:
            in_order = (self.named | self.bootnodes, self.connected, self.inbox.speakers())
            return list(dict.fromkeys(author for authors in in_order for author in sorted(authors)))

    def latest_rounds(self) -> dict[bytes, int]:
        """The latest round of each voter that has spoken."""
        latest = {author: self.inbox.latest_round(author, -1) for author in self.voters()}
        return {author: round_ for author, round_ in latest.items() if round_ >= 0}

    def trailing(self) -> dict[bytes, int]:
        """Peers whose records are all too old to take, with the latest round of each, if they are most of the connected
        ones that this node was told of, or of those of standing; else none.
        """
        peers = set(filter(self.is_peer, self.connected)) - self.distrusted
        most = (self.named | self.bootnodes) & peers or self._company.seasoned(peers, at_most=VOTING)
        oldest = self.round - self.inbox.max_staleness
        latest = {author: max(self._trailing.get(author, -1), self.inbox.latest_round(author, -1)) for author in most}
        found = {author: round_ for author, round_ in latest.items() if 0 <= round_ < oldest}
        return found if 2 * len(found) > len(most) else {}

    def draw(self, round_: int, beacon: bytes) -> None:
        """Decides whom this node reads in a round, once."""
        if self._reads and round_ not in self._read:
            known = filter(self.is_peer, self._awaited)
            self._read[round_] = read_by(self.inbox.owner, known, self._reads, beacon, round_)
            if len(self._read) > self.inbox.max_staleness + 1:
                del self._read[min(self._read)]

    def _reads_of(self, author: bytes, round_: int) -> bool:
        """Whether an author is read in a round; a stranger where there is room (`take`)."""
        if not self.is_peer(author):
            return False
        return not self._reads or author not in self.inbox.favoured or author in self._read.get(round_, ())

    def _passes_by(self, record: Record) -> bool:
        """Whether one that is no stranger is not among those who were drawn for a round, and has the key it had."""
        drawn = self._read.get(record.round)
        if drawn is None or record.author in drawn or isinstance(record, Announcing):
            return False
        return record.author in self.inbox.favoured and record.author not in self.inbox.retired

    def _waited_for(self, round_: int) -> set[bytes]:
        awaited = {author for author in self._awaited if self.is_peer(author)} - self.distrusted
        return awaited & self._read.get(round_, frozenset()) if self._reads else awaited

    def missing(self, round_: int, stage: str) -> set[bytes]:
        """Who is still to speak in a stage; one that has spoken in a later round will not."""
        return still_to_speak(self._waited_for(round_), self.inbox, round_, stage)

    def why(self, author: bytes, round_: int) -> str:
        """What is known of one who has not spoken in a stage of a round, in words that go on after its name."""
        inbox, latest = self.inbox, self.inbox.latest_round(author, -1)
        if author in self._starting:
            return "has not been heard of yet, and may be starting"
        heard = "nothing was heard of it yet" if latest < 0 else f"what it said last was of round {latest}"
        if author not in self.connected:
            return f"is not connected; {heard}"
        if latest < round_:
            behind = round_ - latest
            return f"is connected; {heard}" + f", {behind} round{'s' * (behind > 1)} behind" * (latest >= 0)
        said = [stage for stage in inbox.stages if author in inbox.authors(round_, stage)]
        return f"is connected, and has said its {' and '.join(map(plural, said))} of this round"

    def stage_end(self, round_: int, stage: str, began: float, spoke: float, deadline: float) -> float:
        """When a stage ends if nobody says any more; all on the monotonic clock but `deadline`, seconds from `spoke`.

        began: when this node began to work on the stage. spoke: when it had done.
        """
        if deadline and self.missing(round_, stage) & self._starting:
            return spoke + deadline
        spoken, awaited = self._of_standing(round_, stage, began)
        return began + stage_end(spoke - began, spoken, awaited, deadline)

    def close_stage(self, round_: int, stage: str, began: float, spoke: float, deadline: float) -> set[bytes]:
        """Ends a stage: waits no more for those that have drawn it out or not spoken; returns the latter.

        Arguments as for `stage_end`.
        """
        self._rounds |= {round_} if len(self._rounds) <= EARN else set()
        missing = self.missing(round_, stage)
        if deadline:
            quorum = quorum_time(spoke - began, *self._of_standing(round_, stage, began))
            drawn_out = self._company.heard(self._times(round_, stage, began), quorum)
            self._awaited -= drawn_out
            if drawn_out:
                self._counts["peers/given_up"] += len(drawn_out)
        self.give_up(missing)
        self._arrived = {slot: at for slot, at in self._arrived.items() if slot in self.inbox.records}
        return missing

    def _times(self, round_: int, stage: str, began: float) -> dict[bytes, float]:
        """When those who are waited for spoke in a stage, in seconds from its begin; 0 for all that came before."""
        speakers = self._waited_for(round_) & self.inbox.authors(round_, stage)
        slots = {author: (author, round_, stage) for author in speakers}
        return {author: max(0.0, self._arrived.get(slot, began) - began) for author, slot in slots.items()}

    def _of_standing(self, round_: int, stage: str, began: float) -> tuple[list[float], int]:
        """Of those that make a quorum: when they spoke in a stage, as far as they have; and how many they are."""
        missing, times = self.missing(round_, stage), self._times(round_, stage, began)
        standing = self._company.seasoned(missing | times.keys())
        return [time for author, time in times.items() if author in standing], len(standing)

    def take(self, round_: int, stage: str) -> list[SignedRecord]:
        """Hands over the peers' records up to a stage of a round, once, as `Inbox.take` does."""
        room = max(0, self._reads - len(self._read.get(round_, ()))) if self._reads else None
        return self.inbox.take(round_, stage, self._reads_of, room)

    def behind(self, round_: int) -> set[bytes]:
        """Peers that have not come to a round yet: the named, and of the others those that are here, unless late."""
        here = {author for author in self._spoken if self.is_peer(author) and not self._company.is_late(author)}
        waited_for = (self.named | here) - self.distrusted
        return {author for author in waited_for if self.inbox.latest_round(author, -1) < round_}

    def give_up(self, authors: Collection[bytes]) -> None:
        """Waits no more for these: they were late."""
        self._company.late(authors)
        self._awaited -= set(authors)
        self._starting -= set(authors)
        if authors:
            self._counts["peers/given_up"] += len(authors)
            self._favour()

    def take_counts(self) -> collections.Counter[str]:
        """What was counted since the last call."""
        with self.changed:
            counts, self._counts = self._counts, collections.Counter()
        return counts
