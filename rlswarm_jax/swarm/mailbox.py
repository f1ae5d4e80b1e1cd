"""Where a live node's network thread leaves the records and its round's thread waits for them."""

import collections
import threading
from collections.abc import Collection

from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.inbox import Inbox


class Mailbox:
    """The inbox of a live node, and whom its stages wait for.

    Waited for are the peers in `named`, who are known before they come, and whoever has sent a valid record, until
    they disconnect or let a deadline pass; then not before they speak again. So nobody can hold up more than one
    stage by silence. Hold `changed` to look at the inbox or to change it; it is notified when records or peers come
    or go. round: the one being played; records from too far behind it are refused.
    """

    def __init__(self, inbox: Inbox, named: Collection[bytes] = (), *, expects_peers: bool = False):
        self.inbox, self.named = inbox, frozenset(named) - {inbox.owner}
        self.round = 0
        self.connected: frozenset[bytes] = frozenset()
        self.changed = threading.Condition()
        self._expects_peers = expects_peers
        self._awaited = set(self.named)
        self._counts: collections.Counter[str] = collections.Counter()

    # --- called by the network's thread

    def on_record(self, signed: SignedRecord) -> None:
        """Takes a record whose form and signature were checked."""
        with self.changed:
            if self.inbox.holds(signed):
                self._counts["records/again"] += 1  # re-sent after a restart, or asked for
            elif self.inbox.offer(signed.raw, self.round) is not None:
                self._awaited.add(signed.record.author)
                self.changed.notify_all()

    def on_peers(self, connected: frozenset[bytes]) -> None:
        """Takes the authors that are connected now."""
        with self.changed:
            self._awaited -= self.connected - connected
            self.connected = connected
            self.changed.notify_all()

    # --- called by the round's thread

    @property
    def met(self) -> bool:
        """Whether the peers that this node was told of are there."""
        return self.named <= self.connected and (bool(self.connected) or not self._expects_peers)

    @property
    def quorum(self) -> int:
        """Half of the nodes that are known, this one included, but not itself alone."""
        return max(1, (len(self._awaited) + 1) // 2)

    def latest_rounds(self) -> dict[bytes, int]:
        """The latest round of each peer that is waited for."""
        return {author: r for author, r in self.inbox.latest_rounds().items() if author in self._awaited}

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
        """Waits no more for these until they speak again."""
        self._awaited -= set(authors)
        self._counts["peers/given_up"] += len(authors)

    def take_counts(self) -> collections.Counter[str]:
        """What was counted since the last call."""
        with self.changed:
            counts, self._counts = self._counts, collections.Counter()
        return counts
