"""Keeps a live node's account on its chain: hears rounds and beacons, and settles each round, in its own thread.

The node asks what was heard last, and writes down what it wants; neither waits for the chain. Which peers may be voted
for, when a round ends and by whose turn, and who makes the block that a beacon waits for, is decided here.
"""

import collections
import itertools
import logging
import random
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rlswarm_jax import randomness
from rlswarm_jax.audit import commit
from rlswarm_jax.chain import upgrade
from rlswarm_jax.chain.calls import Commitment, Interface, Status, account_of
from rlswarm_jax.chain.errors import AnswerTooLarge, ChainError, Refused
from rlswarm_jax.chain.registrations import Registrations
from rlswarm_jax.chain.rpc import Backoff
from rlswarm_jax.chain.upgrade import Upgrade
from rlswarm_jax.game.chain import WINNERS, Moment
from rlswarm_jax.game.effects import Commit
from rlswarm_jax.identity import peer_id
from rlswarm_jax.juror import Finding, Juror, Question
from rlswarm_jax.records.schema import STAGES

if TYPE_CHECKING:
    from rlswarm_jax.chain.coordinator import Coordinator  # which loads web3

log = logging.getLogger("rlswarm_jax.chain")
TURNS = 4  # before everybody's, at most: those whose turn it is may be gone, and keys are free
POLL = 0.05  # seconds between looks at what the thread has heard
HASH_DEPTH = 256  # blocks whose hashes the EVM knows
SEEN = 16  # blocks by whose coming the chain's pace is known
LAST_BLOCKS = 6  # waited for at the end: a registration, a settlement and weights, one after another, two blocks each
LEAST, MOST = 20.0, 600.0  # seconds that these are taken for


class Keeper:
    """One node's account. known: authors that it has heard of, oneself left out.

    stagger: seconds between a node's turn to end a round and the next one's: a block of a public chain. patience:
    seconds without a block after which a node makes one, where a round or its beacon waits for it. stake, finding: of
    the coordinator's court, if it has one: see `juror`. Use it as a context manager.
    """

    def __init__(
        self,
        coordinator: "Coordinator",
        author: bytes,
        known: Callable[[], Iterable[bytes]],
        *,
        payout: str = "",
        stake: int = 0,
        finding: Finding = lambda record, index: None,
        stagger: float = 15.0,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ):
        self._coordinator, self._author, self._known = coordinator, author, known
        self._payout, self._stagger, self._clock, self._wall_clock = payout, stagger, clock, wall_clock
        self._patience, self._rng = patience, random.Random(author)
        self._seen: tuple[tuple[int, float], ...] = ()  # latest blocks, and when they were first seen
        self._stalled_at = 0.0  # when it has been too long since the last
        self._stop, self._changed = threading.Event(), threading.Condition()
        self._moments: list[Moment] = []
        self._at = (-1, 0)  # round and stage
        self._registrations = Registrations(coordinator.registered, stagger, clock)
        self._may_end = (-1, 0.0, 0)  # a round that may end, since when, and how many turns come before this node's
        self._juror = Juror(coordinator, stake, finding, stagger, clock) if coordinator.court else None
        self._crashes = 0  # of the thread
        self._upgrade: Upgrade | None = None  # that the coordinator names
        self._asked_in = -1  # the round in which it was asked for that last
        self._told: collections.Counter[str] = collections.Counter()
        self._thread = threading.Thread(target=self._run, name="chain", daemon=True)

    def __enter__(self) -> "Keeper":
        self._coordinator.register(self._payout or None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._coordinator.wake()
        self._thread.join()
        self._coordinator.close()

    # --- called by the round's thread

    def moments(self) -> list[Moment]:
        """The latest two rounds as last heard; none before the chain was heard of."""
        with self._changed:
            return list(self._moments)

    def is_past(self, round_: int, stage: int) -> bool:
        """Whether the coordinator was last heard to be in a later round, or in a later stage of that one."""
        with self._changed:
            return self._at > (round_, stage)

    def members(self) -> frozenset[bytes] | None:
        """Authors known to be registered; None where that is not known or not asked for: a contract that has no
        registrations of keys, or one not heard of yet.
        """
        return self._registrations.members()

    def upgrade(self) -> tuple[Upgrade | None, int]:
        """Which version the coordinator says is played from which round on, if any, and the round it is in."""
        with self._changed:
            return self._upgrade, self._at[0]

    def wait(self, beyond: int, seconds: float, should_stop: Callable[[], bool]) -> bool:
        """Whether a round after that one was heard of in time."""
        until = time.monotonic() + seconds
        with self._changed:
            while not (self._moments and self._moments[-1].round > beyond):
                if time.monotonic() >= until or should_stop() or not self._thread.is_alive():
                    return False
                self._changed.wait(POLL)
        return True

    def commit(self, effect: Commit, state_hash: bytes, agreement: bytes) -> None:
        """Writes down a commitment, its claims and votes: on disk when it returns, once however often it is called."""
        work, at, made = effect.work, effect.moment, None
        if at.beacon:
            of = work.records
            made = Commitment(commit.root(of), of[0], of[-1], len(of), effect.before, state_hash, agreement)
        claims = [work.earned.get(stage, 0) for stage in STAGES]
        winners = [peer_id(author) for author in self._eligible(work.best, at)[:WINNERS]]
        self._coordinator.settle(at.round, at.beacon, made, claims, winners)

    def publish(self, weights_hash: bytes, uri: str) -> bool:
        """Writes down for the chain where weights of this node are; whether that could be: it settles first."""
        return self._coordinator.record_weights(weights_hash, uri) is not None

    def challenge(self, author: bytes, record: bytes, index: int, records: Sequence[bytes]) -> None:
        """This node found out that a group of a record was not sampled as its author says: see `Juror.challenge`.

        Nothing comes of it where the chain has no court.
        """
        if self._juror:
            self._juror.challenge(author, record, index, records)

    def judge_by(self, finding: Finding) -> None:
        """By which a court that draws this node is told its vote; nothing comes of it where the chain has no court."""
        if self._juror:
            self._juror.finding = finding

    @property
    def has_court(self) -> bool:
        return self._juror is not None

    def duties(self) -> dict[Question, bytes]:
        """What a court has drawn this node to judge, and it has not; of each the author who asked it, if known."""
        duties = self._juror.duties() if self._juror else {}
        authors = {account_of(author): author for author in self._known()} if duties else {}
        return {question: authors.get(challenger, b"") for question, challenger in duties.items()}

    def _eligible(self, authors: list[bytes], at: Moment) -> list[bytes]:
        """Who was registered before that round; all, where the contract does not ask for it."""
        if not at.beacon:
            return authors
        counted = self._registrations.before(at.round)
        return [author for author in authors if author in counted]

    def closing_seconds(self) -> float:
        """Seconds that the chain may take for what is left at the end of a run, by the pace of its blocks so far."""
        pace = [(b - a) / (n - m) for (m, a), (n, b) in itertools.pairwise(self._seen)]
        return min(max(LEAST, LAST_BLOCKS * statistics.median(pace or [self._stagger])), MOST)

    def finish(self, should_stop: Callable[[], bool]) -> bool:
        """Waits until all that was wished is in a block, for as long as it may take; whether it is."""
        until = time.monotonic() + self.closing_seconds()
        while not (idle := self._coordinator.idle()) and time.monotonic() < until and self._thread.is_alive():
            if should_stop():
                break
            time.sleep(POLL)
        return idle

    def take_counts(self) -> collections.Counter[str]:
        """What went wrong since the last call, by name, and how many wishes wait for the chain."""
        problems = collections.Counter({f"chain/{name}": n for name, n in self._coordinator.problems.items()})
        problems["chain/crashed"] = self._crashes
        problems.update(self._juror.counts if self._juror else {})
        new, self._told = problems - self._told, problems
        counts = self._coordinator.counts()
        new["chain/waiting"] = counts.get("waiting", 0) + counts.get("signed", 0)
        return new

    # --- the chain's thread

    def _run(self) -> None:
        """Supervised: whatever ends the client's work is counted, and it begins anew; the node never ends by it."""
        backoff = Backoff(self._rng)
        while not self._stop.is_set():
            try:
                self._coordinator.run(self._stop, self.look)
            except Exception as error:  # there is nothing else to tell it to, and a node plays on without its chain
                self._crashes += 1
                delay = backoff.failed()
                # an unforeseen error's own words may hold the endpoint's whole address
                said = str(error) if isinstance(error, ChainError) else f"{type(error).__name__}{_where(error)}."
                log.error("the chain's thread failed: %s It begins anew in %.0f s.", said, delay)
                self._stop.wait(delay)

    def look(self) -> None:
        """After a step that found the chain well. Raises ChainError."""
        now, interface = self._coordinator.status(), self._coordinator.connect()
        self._watch(now.block)
        heard = Moment(now.round, now.beacon)
        if now.round < self._at[0]:
            self._registrations.doubt()
        if interface.ours and now.round != self._asked_in:
            found = upgrade.read(self._coordinator.bootnodes())
            with self._changed:
                self._upgrade, self._asked_in = found, now.round
        with self._changed:
            self._at = (now.round, now.stage)
        if self._moments[-1:] != [heard] and (now.beacon or not interface.ours):
            before = []
            if interface.ours and now.round:
                before = [Moment(now.round - 1, self._coordinator.beacon(now.round - 1))]
            with self._changed:
                self._moments = [*before, heard]
                self._changed.notify_all()
        if interface.ours:
            self._make_beacon(now)
            self._registrations.look([self._author, *self._known()])
            self._end_round(now, interface)
            if self._juror:
                self._juror.look(now)

    def _watch(self, block: int) -> None:
        """Notes when blocks come; with jitter, so that not all nodes make a missing one at once."""
        if self._seen and block == self._seen[-1][0]:
            return
        before = self._seen if self._seen and block > self._seen[-1][0] else ()
        self._seen = (*before, (block, self._clock()))[-SEEN:]
        self._stalled_at = self._clock() + self._patience * self._rng.uniform(0.5, 1.5)

    @property
    def _stalled(self) -> bool:
        return self._clock() > self._stalled_at

    def _make_beacon(self, now: Status) -> None:
        """Makes the block that a beacon waits for, where nobody does; postpones one whose block was forgotten."""
        if not now.beacon and (self._stalled or now.block > now.anchor + HASH_DEPTH):
            self._coordinator.finalize(now.round, now.block)

    def _end_round(self, now: Status, interface: Interface) -> None:
        """Wishes it when this node's turn comes: in an order that the beacon draws, so that one node pays for it.

        By this machine's clock, too: the chain's stands still where a block is made only for a transaction. Then an
        estimate misleads, which goes by the last block's time: the transaction's own block will have the present one.
        """
        elapsed = self._wall_clock() - now.started
        by_clock = elapsed > interface.max_seconds or (
            elapsed >= interface.min_seconds and now.settlements >= now.needed
        )
        if not now.beacon or not (now.advanceable or by_clock):
            return
        if self._may_end[0] != now.round:
            self._may_end = (now.round, self._clock(), self._turn(now, now.beacon))
        _, since, turn = self._may_end
        if self._clock() - since >= turn * self._stagger:
            self._coordinator.advance(now.round, unasked=by_clock and self._stalled)

    def _turn(self, now: Status, beacon: bytes) -> int:
        """How many come first: of those who have settled in this round, and so are there and have funds."""

        def rank(account: str) -> bytes:
            return randomness.digest("network", beacon, account)

        try:
            there = self._coordinator.committers(now)
        except (Refused, AnswerTooLarge) as error:
            log.debug("%s", error)
            there = frozenset[str]()
        there = there or frozenset(map(account_of, self._registrations.members() or ()))
        own = self._coordinator.account
        return min(TURNS, sum(rank(other) < rank(own) for other in there if other != own))


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return "".join(f", {frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames)
