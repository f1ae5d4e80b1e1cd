"""Whom a node waits for in a stage, and for how long: the one rule of the live and the simulated driver.

A node's own record counts as one that was spoken: who waits for two peers has heard two of three when one has spoken.
All times are seconds from the stage's begin here, so they hold the work that the stage takes.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Collection, Iterable, Sequence

from rlswarm_jax import randomness
from rlswarm_jax.records.inbox import Inbox

GRACE = 2.0  # times the median of the quorum's own times: who takes more than three times as long is late
LEAST_GRACE = 1.0  # seconds: a garbage collection, a checkpoint, a busy machine
LAG = 0.25  # seconds by which one may be later than twice the quorum's time before that is held against it
EARN = 3  # rounds that one must speak in before it is waited for
FADE = 32  # rounds kept after which a strike is forgiven
LAGS = 4.0  # stages drawn out by one peer before it is waited for no more
FORGIVEN = 0.25  # of a drawn out stage, by each that was not
VOTING = 16  # rounds of standing that are enough to say where most are, however long others have been there
MAX_STANDINGS = 1024  # authors that are remembered


def quorum_time(own: float, spoken: Sequence[float], awaited: int) -> float:
    """When a quorum had spoken, infinity if it has not yet: 2/3 of those awaited and oneself, rounded up.

    It never takes all of them, so nobody can hold up a stage alone, not even the only peer. own: when this node spoke.
    spoken: when those of the awaited did that have. awaited: how many peers there are to hear, heard or not.
    """
    needed = max(1, min(math.ceil(2 * (awaited + 1) / 3), awaited))
    times = sorted([own, *spoken])
    return max(own, times[needed - 1]) if len(times) >= needed else math.inf


def stage_end(own: float, spoken: Sequence[float], awaited: int, deadline: float) -> float:
    """When a stage ends if nobody says any more, in seconds from its begin; arguments as for `quorum_time`.

    That is a quorum's time and a grace of twice the median of its members' own times, at the latest `deadline` after
    this node has spoken. What is said after the quorum moves nothing. deadline 0: never before all have spoken.
    """
    if not deadline:
        return math.inf
    quorum = quorum_time(own, spoken, awaited)
    if math.isinf(quorum):
        return own + deadline
    in_quorum = [time for time in [own, *spoken] if time <= quorum]
    grace = max(LEAST_GRACE, GRACE * statistics.median(in_quorum))
    return min(quorum + grace, own + deadline)


def still_to_speak(awaited: Iterable[bytes], inbox: Inbox, round_: int, stage: str) -> set[bytes]:
    """Who of those awaited is; one that has spoken in a later round will not."""
    silent = set(awaited) - inbox.authors(round_, stage)
    return {author for author in silent if inbox.latest_round(author, round_) <= round_}


def read_by(reader: bytes, authors: Iterable[bytes], reads: int, beacon: bytes, round_: int) -> frozenset[bytes]:
    """Whom a node reads in a round, of the authors that it knows: at most `reads` of them, or all where that is 0.

    The beacon puts them all in an order, the reader among them, that is cut into as few equal parts as will do: those
    of one part read each other, and so what the others there answer to. Where two nodes do not know the same authors,
    a part loses an author here or there. Nobody's word has a say in it, nor their place in the swarm.
    """
    everyone = _in_order(frozenset([*authors, reader]), beacon, round_)
    parts = -(-len(everyone) // (reads + 1)) if reads else 1
    own = everyone.index(reader) * parts // len(everyone)
    bounds = (-(-part * len(everyone) // parts) for part in (own, own + 1))
    return frozenset(everyone[slice(*bounds)]) - {reader}


@functools.lru_cache(maxsize=16)  # in a simulation it is the same for most nodes
def _in_order(authors: frozenset[bytes], beacon: bytes, round_: int) -> list[bytes]:
    return sorted(authors, key=lambda author: randomness.digest("pool", "reads", beacon, round_, author))


@dataclasses.dataclass
class Standing:
    """What an author has shown. rounds: that it spoke in, in time, halved when it is late. owed: of them, before it is
    waited for. strikes: how often it was late. lags: stages it drew out. counted: this node's round when it last did.
    """

    owed: int
    rounds: int = 0
    strikes: int = 0
    lags: float = 0.0
    counted: int = -1


class Company:
    """The standing of the authors that a node has met. told: those whose word counts from the start.

    A stranger earns being waited for by speaking in `EARN` rounds of this node's, while they are played or in the one
    after (else one a little slower than the swarm would never get into step with it). Who is late n times must speak
    in time in n rounds to be waited for again; a strike fades in `FADE` rounds. Late is who has not spoken when a
    stage is over, and who draws stages out again and again though it speaks before they are.
    """

    def __init__(self, told: Collection[bytes] = ()):
        self.told = frozenset(told)
        self.standings: dict[bytes, Standing] = {}

    def spoke(self, author: bytes, round_: int, now: int) -> bool:
        """Notes a record of `round_` that came in round `now`; whether its author is to be waited for from here on."""
        standing = self._of(author)
        in_time = round_ >= now - (0 if standing.strikes else 1)
        if in_time and standing.counted < now:
            standing.counted = now
            standing.rounds += 1
            standing.owed = max(0, standing.owed - 1)
            if standing.rounds % FADE == 0:
                standing.strikes = max(0, standing.strikes - 1)
        return in_time and not standing.owed

    def follow(self, old: bytes, new: bytes) -> bool:
        """An author speaks in the place of another key of theirs, once: it has that one's standing, good and bad.

        Whether that is news. Who has standing of their own keeps it.
        """
        if old not in self.standings or new in self.standings:
            return False
        self.standings[new] = self.standings.pop(old)
        return True

    def late(self, authors: Iterable[bytes]) -> None:
        """These were waited for in vain."""
        for author in authors:
            standing = self._of(author)
            standing.strikes += 1
            standing.owed = standing.strikes
            standing.rounds //= 2

    def heard(self, times: dict[bytes, float], quorum: float) -> set[bytes]:
        """Who of those that spoke in a stage, and when, has drawn out one too many; it is late from here on."""
        over = set()
        for author, time in times.items():
            standing = self._of(author)
            drawn_out = time > GRACE * quorum + LAG
            standing.lags = standing.lags + 1 if drawn_out else max(0.0, standing.lags - FORGIVEN)
            if standing.lags >= LAGS:
                over.add(author)
                standing.lags = LAGS - 1  # the next one is one too many again
        self.late(over)
        return over

    def is_late(self, author: bytes) -> bool:
        """Whether one was waited for in vain, and has not made up for it."""
        standing = self.standings.get(author)
        return standing is not None and bool(standing.strikes and standing.owed)

    def earned(self, author: bytes) -> bool:
        """Whether this author is waited for when it is here."""
        standing = self.standings.get(author)
        return not standing.owed if standing is not None else author in self.told

    def seasoned(self, authors: Iterable[bytes], at_most: float = math.inf) -> set[bytes]:
        """Those told of, and of the others that have earned it who has been there half as long as the longest.

        However many keys are made today, they are no majority of a swarm that has played for a week. at_most: rounds
        that are long enough.
        """
        found = {author for author in authors if author in self.told or self.earned(author)}
        rounds = {author: self.standings[author].rounds for author in found if author in self.standings}
        enough = min(max(rounds.values(), default=0) / 2, at_most)
        return {author for author in found if author in self.told or rounds.get(author, 0) >= enough}

    def _of(self, author: bytes) -> Standing:
        standing = self.standings.get(author)
        if standing is None:
            standing = self.standings[author] = Standing(owed=0 if author in self.told else EARN)
            if len(self.standings) > MAX_STANDINGS:  # the newcomers of longest ago go before anyone of standing
                del self.standings[min(self.standings, key=lambda one: self.standings[one].rounds)]
        return standing
