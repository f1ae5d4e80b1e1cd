"""How much a peer may send, in tables that stay small however many peers there were."""

import collections
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

_SEEN_SECONDS, _MAX_SEEN = 120.0, 65_536
_MAX_KEYS = 4096


class Buckets:
    """Token buckets by key: `rate` a second; `burst`, or twice the rate, at once. The longest unused are forgotten."""

    def __init__(self, rate: float, burst: float | None = None, max_keys: int = _MAX_KEYS):
        self._rate, self._burst, self._max_keys = rate, 2 * rate if burst is None else burst, max_keys
        self._levels: collections.OrderedDict[bytes, tuple[float, float]] = collections.OrderedDict()

    def take(self, key: bytes, cost: float = 1.0) -> bool:
        """Whether there is enough for that, which is then taken; of more than a whole burst, a burst is enough."""
        now, cost = time.monotonic(), min(cost, self._burst)
        level, at = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        self._levels[key] = (level - cost if level >= cost else level, now)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)
        return level >= cost


class Seen:
    """Message ids of the last two minutes; libp2p's own keeps a thread and has no bound."""

    def __init__(self) -> None:
        self._until: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def has(self, key: bytes) -> bool:
        return self._until.get(key, 0.0) > time.monotonic()

    def add(self, key: bytes) -> bool:
        now = time.monotonic()
        self._until[key] = now + _SEEN_SECONDS
        while self._until and (len(self._until) > _MAX_SEEN or next(iter(self._until.values())) < now):
            self._until.popitem(last=False)
        return True


class Offences:
    """What peers sent that they should not have; one that keeps at it is refused for a while."""

    def __init__(self, at_most: int = 20, within: float = 60.0, refused_for: float = 60.0):
        self._at_most, self._within, self._refused_for = at_most, within, refused_for
        self._times: collections.OrderedDict[bytes, collections.deque[float]] = collections.OrderedDict()
        self._refused: collections.OrderedDict[bytes, tuple[float, str]] = collections.OrderedDict()

    def add(self, peer: bytes, what: str = "") -> bool:
        """Whether this one was one too many. what: it was."""
        now = time.monotonic()
        times = self._times.setdefault(peer, collections.deque(maxlen=self._at_most))
        times.append(now)
        over = len(times) == self._at_most and times[0] > now - self._within
        if over:
            del self._times[peer]
            self._refused[peer] = now + self._refused_for, what
        for table in (self._times, self._refused):
            if len(table) > _MAX_KEYS:
                del table[next(iter(table))]
        return over

    def refused(self, peer: bytes) -> bool:
        return self._refused.get(peer, (0.0, ""))[0] > time.monotonic()

    def now_refused(self, most: int = 64) -> list[tuple[bytes, float, str]]:
        """Who is, of the latest: until when, on the monotonic clock, and what they sent last."""
        latest, now = itertools.islice(reversed(self._refused.items()), most), time.monotonic()
        return [(peer, until, what) for peer, (until, what) in latest if until > now]


class Door:
    """How many may be about to come in. A handshake costs the host far more than opening a connection costs a stranger.

    So many begin in a second, from one address and in all; of those that have begun and say nothing, the oldest makes
    room for the newest.
    """

    def __init__(self, of_address: float = 4.0, in_all: float = 16.0, half_open: int = 16):
        self._addresses, self._all = Buckets(of_address, burst=16 * of_address), Buckets(in_all, burst=8 * in_all)
        self._half_open, self._scopes = half_open, collections.OrderedDict[int, trio.CancelScope]()

    def opens(self, address: str) -> bool:
        """Whether one from there may begin."""
        return self._addresses.take(address.encode()) and self._all.take(b"")

    @contextmanager
    def entering(self) -> Iterator[trio.CancelScope]:
        """The handshake of one, which is cancelled if too many others begin meanwhile."""
        with trio.CancelScope() as scope:
            self._scopes[id(scope)] = scope
            if len(self._scopes) > self._half_open:
                self._scopes.popitem(last=False)[1].cancel()
            try:
                yield scope
            finally:
                self._scopes.pop(id(scope), None)
