"""Which authors a coordinator counts as registered, as far as it was asked: soon, and at a bounded rate.

Keys are free, so what is unknown is asked for a few at a time, and a "no" is asked about again after ever longer.
A "yes" is, too, now and then: a reorganisation may undo a registration, and an endpoint may have lied.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

ASKED_AT_FIRST, ASKED = 64, 8  # authors asked for in the first look, and in each later one
MOST = 600.0  # seconds until an answer is asked for again, at most
REMEMBERED = 4096  # answers; the oldest "no" is forgotten first


class _Answer(NamedTuple):
    """since: the round in which it was registered; None: it is not. delay: seconds until it is due to be asked for."""

    since: int | None
    delay: float
    due: float


class Registrations:
    """ask: in which round an author was registered, None if it does not count; what it raises passes through `look`.

    first: seconds until one that does not count is asked for again, at first. `look` is for one thread; the rest may
    be called from any.
    """

    def __init__(self, ask: Callable[[bytes], int | None], first: float, clock: Callable[[], float] = time.monotonic):
        self._ask, self._first, self._clock = ask, first, clock
        self._answers: dict[bytes, _Answer] = {}
        self._since: dict[bytes, int] = {}  # replaced, never changed
        self._looked = False

    def members(self) -> frozenset[bytes] | None:
        """Authors that count; None before the first look was done."""
        return frozenset(self._since) if self._looked else None

    def before(self, round_: int) -> frozenset[bytes]:
        """Authors that were registered before a round."""
        return frozenset(author for author, since in self._since.items() if since < round_)

    def look(self, authors: Iterable[bytes]) -> None:
        """Asks for some of these, given in the order of their importance: for those never asked for first."""
        now, authors = self._clock(), list(authors)
        new = [author for author in authors if author not in self._answers]
        due = [author for author in authors if author in self._answers and self._answers[author].due <= now]
        due.sort(key=lambda author: self._answers[author].due)
        for author in [*new, *due][: ASKED if self._looked else ASKED_AT_FIRST]:
            self._keep(author, self._ask(author), now)
        self._looked = True

    def doubt(self) -> None:
        """Makes all answers due: the chain took back what it had said."""
        self._answers = {author: answer._replace(due=0.0) for author, answer in self._answers.items()}

    def _keep(self, author: bytes, since: int | None, now: float) -> None:
        before = self._answers.pop(author, None)
        no_again = before.delay if before and before.since is None else 0.0
        delay = MOST if since is not None else min(2 * no_again, MOST) or self._first
        self._answers[author] = _Answer(since, delay, now + delay)
        while len(self._answers) > REMEMBERED:
            oldest = next(iter(self._answers))
            del self._answers[next((one for one, answer in self._answers.items() if answer.since is None), oldest)]
        if self._since.get(author) != since or len(self._since) > len(self._answers):
            self._since = {one: answer.since for one, answer in self._answers.items() if answer.since is not None}
