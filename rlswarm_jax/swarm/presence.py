"""Who is there: says who comes and goes and when nobody is left, and remembers whom to look for next time.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import logging
import time
from collections.abc import Callable, Sequence, Set

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from rlswarm_jax.identity import author_of, friendly_name
from rlswarm_jax.status import Parting
from rlswarm_jax.swarm.limits import Buckets
from rlswarm_jax.swarm.memory import Memory
from rlswarm_jax.swarm.peers import AddressBook

log = logging.getLogger("rlswarm_jax.network")

KEEP_AFTER = 5.0  # seconds that a peer has been there before it is remembered
ALONE_AFTER, ALONE_AT_MOST = 120.0, 3600.0  # seconds alone before that is said, and most between two times
_LINES_A_MINUTE = 12  # on who comes and goes: keys are free


class Presence:
    """reached: where a peer was reached, by dialling."""

    def __init__(self, book: AddressBook, memory: Memory, reached: Callable[[ID], Sequence[Multiaddr]]):
        self._book, self._memory, self._reached = book, memory, reached
        self._own, self._port = "", 0
        self.left: collections.deque[Parting] = collections.deque(maxlen=16)  # lately
        self._since: dict[ID, float] = {}  # of those present
        self._kept: set[ID] = set()  # the same, as far as they are remembered
        self._why: dict[ID, str] = {}  # they will leave
        self._lines = Buckets(_LINES_A_MINUTE / 60, burst=_LINES_A_MINUTE)
        self._unsaid = 0
        self._alone, self._wait = time.monotonic(), ALONE_AFTER

    def expect(self, peer: ID, why: str) -> None:
        """That a peer will leave, because this node hangs up."""
        if peer in self._since:
            self._why[peer] = why

    def look(self, present: Set[ID]) -> None:
        """Takes who takes part in the swarm now."""
        now = time.monotonic()
        for peer in present - self._since.keys():
            self._since[peer] = now
            self._say(f"{_name(peer)} joined; {len(present)} connected")
        for peer in self._since.keys() - present:
            stayed, why = now - self._since.pop(peer), self._why.pop(peer, "the connection ended")
            self._kept.discard(peer)
            self.left.append(Parting(str(peer), why, now))
            self._say(f"{_name(peer)} left after {_duration(stayed)} ({why}); {len(present)} connected")
        for peer, since in self._since.items():
            if peer in self._kept or now - since < KEEP_AFTER or author_of(peer.to_bytes()) is None:
                continue
            if reached := self._reached(peer):
                self._kept.add(peer)
                self._book.keep(peer, reached, present)
                self._save()
        if present:
            self._alone, self._wait = now, ALONE_AFTER
        elif now - self._alone >= self._wait:
            self._wait = self._wait + min(self._wait, ALONE_AT_MOST)
            self._say_alone(now - self._alone)

    def since(self, peer: ID) -> float:
        """When one that is present came, on the monotonic clock."""
        return self._since[peer]

    def listens(self, port: int, address: str) -> None:
        """Takes this node's port, and its own address, for others to join it."""
        self._port, self._own = port, address
        self._save()

    def _save(self) -> None:
        self._memory.save(self._port, self._book.kept)

    def _say_alone(self, seconds: float) -> None:
        known = len({*map(str, self._book.bootnodes), *self._book.kept})
        if known:
            what = f"none of the {known} peer(s) it knows answers, and it goes on trying"
            advice = "if the swarm has moved, name a node that runs (config.swarm.bootnodes) with --resume"
        else:
            what = "nobody has come, and it knows no peer to look for"
            advice = f"others join it with --config.swarm.bootnodes=\"['{self._own}']\""
        log.warning("this node has been alone for %s: %s; %s", _duration(seconds), what, advice)

    def _say(self, line: str) -> None:
        if not self._lines.take(b""):
            self._unsaid += 1
            return
        log.info("%s%s", line, f" ({self._unsaid} others came or went)" if self._unsaid else "")
        self._unsaid = 0


def _name(peer: ID) -> str:
    author = author_of(peer.to_bytes())
    return f"{friendly_name(author)} ({peer})" if author else f"{peer}, who is no node,"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
