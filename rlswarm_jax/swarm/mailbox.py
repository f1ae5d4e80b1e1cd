"""Where a live node's network thread leaves the records and its round's thread waits for them."""

import collections
import threading
from collections.abc import Collection

from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.inbox import Inbox

MAX_STRIKES = 1024  # authors whose silences are remembered


class Mailbox:
    """The inbox of a live node, whom its stages wait for, and whose rounds it follows.

    named: peers that are known before they come, those of a local swarm. bootnodes: peers this node was told to join.

    Waited for are the named, and connected peers that have spoken, until they disconnect or let a deadline pass. Who
    has let n deadlines pass must speak in n rounds, while they are played, before it is waited for again. (Keys are
    free, so someone who makes many can still hold up a stage with each.)

    Hold `changed` to look at the inbox or to change it; it is notified when records or peers come or go. round: the
    one being played; records from too far behind it are refused.
    """

    def __init__(self, inbox: Inbox, named: Collection[bytes] = (), bootnodes: Collection[bytes] = ()):
        self.inbox = inbox
        self.named, self.bootnodes = (frozenset(authors) - {inbox.owner} for authors in (named, bootnodes))
        self.round = 0
        self.connected: frozenset[bytes] = frozenset()
        self.changed = threading.Condition()
        self._awaited = set(self.named)
        self._spoken: frozenset[bytes] = frozenset()  # who has, of those that are connected
        self._strikes: collections.OrderedDict[bytes, tuple[int, int]] = collections.OrderedDict()
        self._counts: collections.Counter[str] = collections.Counter()
        inbox.favoured = self.named | self.bootnodes

    # --- called by the network's thread

    def on_record(self, signed: SignedRecord) -> bool:
        """Takes a record whose form and signature were checked; whether it is here now."""
        with self.changed:
            if self.inbox.holds(signed):
                self._counts["records/again"] += 1  # re-sent after a restart, or asked for
                return True
            if self.inbox.offer(signed.raw, self.round) is None:
                return False
            self._spoken |= {signed.record.author} & self.connected
            first = signed.record.stage == self.inbox.stages[0]
            self._note(signed.record.author, in_time=first and signed.record.round >= self.round)
            self.changed.notify_all()
            return True

    def on_peers(self, connected: frozenset[bytes]) -> None:
        """Takes the authors that are connected now."""
        with self.changed:
            self._awaited -= self.connected - connected
            self.connected = connected
            self._spoken = connected & (self._spoken | self.inbox.latest_rounds().keys())
            self.inbox.favoured = self.named | self.bootnodes | connected
            self.changed.notify_all()

    def _note(self, author: bytes, in_time: bool) -> None:
        """Whether to wait for an author from now on, who has just spoken."""
        if author not in self.connected | self.named:
            return  # heard through others: it comes when it comes
        strikes, owed = self._strikes.get(author, (0, 0))
        if owed and in_time:
            owed -= 1
            self._strikes[author] = (strikes, owed)
        if not owed:
            self._awaited.add(author)

    # --- called by the round's thread

    @property
    def met(self) -> bool:
        """Whether the peers that this node was told of are there: all that are named, any of the bootnodes' swarm."""
        return self.named <= self.connected and (bool(self.connected) or not self.bootnodes)

    def voters(self) -> frozenset[bytes]:
        """Whose rounds this node follows: the connected ones of those it was told of, else who has spoken to it."""
        told = (self.named | self.bootnodes) & self.connected
        return told or self._spoken

    def authors(self) -> list[bytes]:
        """Everybody this node was told of, then those it is connected with, then those it has heard."""
        with self.changed:
            in_order = (self.named | self.bootnodes, self.connected, self.inbox.latest_rounds())
            return list(dict.fromkeys(author for authors in in_order for author in sorted(authors)))

    def latest_rounds(self) -> dict[bytes, int]:
        """The latest round of each voter that has spoken."""
        voters = self.voters()
        return {author: round_ for author, round_ in self.inbox.latest_rounds().items() if author in voters}

    def missing(self, round_: int, stage: str) -> set[bytes]:
        """Who is still to speak in a stage; one that has spoken in a later round will not."""
        found = self._awaited - self.inbox.authors(round_, stage)
        latest = self.inbox.latest_rounds()
        return {author for author in found if latest.get(author, round_) <= round_}

    def behind(self, round_: int) -> set[bytes]:
        """Peers that have not come to a round yet: the named ones, and of the others those that are still here."""
        latest = self.inbox.latest_rounds()
        return {a for a in self.named | (self._awaited & self.connected) if latest.get(a, -1) < round_}

    def give_up(self, authors: Collection[bytes]) -> None:
        """Waits no more for these: they have let a deadline pass."""
        for author in authors:
            strikes = self._strikes.pop(author, (0, 0))[0] + 1
            self._strikes[author] = (strikes, strikes)
        while len(self._strikes) > MAX_STRIKES:
            self._strikes.popitem(last=False)
        self._awaited -= set(authors)
        self._counts["peers/given_up"] += len(authors)

    def take_counts(self) -> collections.Counter[str]:
        """What was counted since the last call."""
        with self.changed:
            counts, self._counts = self._counts, collections.Counter()
        return counts
