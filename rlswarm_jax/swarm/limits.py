"""How much a peer may send, in tables that stay small however many peers there were."""

import collections
import time

_SEEN_SECONDS, _MAX_SEEN = 120.0, 65_536
_MAX_KEYS = 4096


class Buckets:
    """Token buckets by key: `rate` a second; `burst`, or twice the rate, at once. The longest unused are forgotten."""

    def __init__(self, rate: float, burst: float | None = None, max_keys: int = _MAX_KEYS):
        self._rate, self._burst, self._max_keys = rate, 2 * rate if burst is None else burst, max_keys
        self._levels: collections.OrderedDict[bytes, tuple[float, float]] = collections.OrderedDict()

    def take(self, key: bytes) -> bool:
        now = time.monotonic()
        level, at = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        self._levels[key] = (max(level - 1, 0.0) if level >= 1 else level, now)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)
        return level >= 1


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
        self._refused: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def add(self, peer: bytes) -> bool:
        """Whether this one was one too many."""
        now = time.monotonic()
        times = self._times.setdefault(peer, collections.deque(maxlen=self._at_most))
        times.append(now)
        over = len(times) == self._at_most and times[0] > now - self._within
        if over:
            del self._times[peer]
            self._refused[peer] = now + self._refused_for
        for table in (self._times, self._refused):
            if len(table) > _MAX_KEYS:
                del table[next(iter(table))]
        return over

    def refused(self, peer: bytes) -> bool:
        return self._refused.get(peer, 0.0) > time.monotonic()
