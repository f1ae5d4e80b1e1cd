"""A staked node before a court: it challenges what it found out itself, and votes by its own finding alone.

Called by the chain's thread (`keeper`), but for `challenge` and `duties`, which any may call.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rlswarm_jax.audit import commit
from rlswarm_jax.chain.calls import Status, account_of
from rlswarm_jax.chain.errors import AnswerTooLarge, Refused
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED

if TYPE_CHECKING:
    from rlswarm_jax.chain.coordinator import Coordinator  # which loads web3
    from rlswarm_jax.chain.court import Case, Peer, Settlement, Terms

log = logging.getLogger("rlswarm_jax.chain")
Finding = Callable[[bytes, int], str | None]
_EVENT_BLOCKS, _MOST_BLOCKS = 1000, 16_000  # of settlements read at once, and how far back
_MOST_ACCUSED = 256  # findings that wait for a settlement that covers them
COIN = 10**18  # wei


class Question(NamedTuple):
    """Was this group of completions sampled as its author says? account: the author's. record: its content hash."""

    account: str
    record: bytes
    index: int  # type: ignore[assignment] # hides tuple's method


class Juror:
    """One node's part. coordinator: with a court. most: wei that it may stake; 0: it takes no part, and only looks.

    finding: this node's own about a group of a record; another word, or None, where it can't tell (yet).
    stagger: seconds between its turn to move a case on and the next one's.
    """

    def __init__(
        self,
        coordinator: "Coordinator",
        most: int,
        finding: Finding,
        stagger: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        assert coordinator.court
        self._coordinator, self._court, self._most, self.finding = coordinator, coordinator.court, most, finding
        self._stagger, self._clock = stagger, clock
        self._lock = threading.Lock()
        self._accused: dict[Question, Sequence[bytes]] = {}
        self._duties: Mapping[Question, str] = {}
        self._settled: list[Settlement] = []
        self._unread = -1  # the first block whose settlements were not read; -1: none was
        self._ready: dict[tuple[int, str], float] = {}  # cases that can be moved on, and since when
        self._looked = (-1, 0.0)  # block and second of the last look
        self._warned = False
        self.counts: collections.Counter[str] = collections.Counter()

    # --- called by the round's thread

    def challenge(self, author: bytes, record: bytes, index: int, records: Sequence[bytes]) -> None:
        """This node found a group not sampled as its author says: that goes to court once a settlement covers it.

        records: content hashes of all the author's records that are here, in the order of publication. May be said
        again, as after a restart: a challenge is made once.
        """
        with self._lock:
            self._accused[Question(account_of(author), record, index)] = records
            while len(self._accused) > _MOST_ACCUSED:  # what no settlement has covered for longest
                del self._accused[next(iter(self._accused))]

    def duties(self) -> Mapping[Question, str]:
        """What this node was drawn to judge and has not, to be replayed first; of each the account that asked it."""
        return self._duties

    # --- the chain's thread

    def look(self, now: Status) -> None:
        """Does what is due. Raises ChainError."""
        block, at = self._looked
        if now.block == block and self._clock() - at < self._stagger:
            return
        self._looked = (now.block, self._clock())
        terms, own = self._court.connect(), self._court.peer(self._court.account)
        self._deposit(terms, own)
        if self._accused and not own.leaving and not own.accusing and 2 * own.stake >= terms.stake:
            self._accuse(now, terms)
        cases = self._court.open_cases()
        self._duties = {
            Question(case.accused, case.record, case.index): case.challenger for case in cases if self._sits(case, now)
        }
        for case in cases:
            if self._sits(case, now):
                self._judge(case, now)
            elif own.stake:
                self._move_on(case, now)
        open_ = {case.number for case in cases}
        self._ready = {key: since for key, since in self._ready.items() if key[0] in open_}

    def _deposit(self, terms: "Terms", own: "Peer") -> None:
        if own.stake or not self._most:
            return
        if self._most >= terms.stake:
            self._court.stake(terms.stake)
        elif not self._warned:
            self._warned = True
            log.warning(
                "the court asks for a stake of %g coins, and config.chain.stake allows %g: this node has none there.",
                terms.stake / COIN,
                self._most / COIN,
            )

    def _accuse(self, now: Status, terms: "Terms") -> None:
        """Asks about one of those that a settlement covers: a court takes one open challenge of each."""
        self._read(now, terms)
        with self._lock:
            accused = list(self._accused.items())
        staked = {account: self._court.peer(account).stake > 0 for account in {one.account for one, _ in accused}}
        for question, records in accused:
            if not staked[question.account]:  # any more: a court takes no question about it
                continue
            for settled in self._settled:
                made = settled.commitment
                if settled.account != question.account or made.count > len(records):
                    continue
                covered = commit.covered(records, made.first, made.count, made.root)
                if question.record not in covered:
                    continue
                place = covered.index(question.record)
                self._forget(question)
                which = question.record, place, commit.proof(covered, place), question.index
                if self._court.challenge(settled, *which, terms.bond):
                    self.counts["chain/challenged"] += 1
                    return

    def _forget(self, question: Question) -> None:
        with self._lock:
            self._accused.pop(question, None)

    def _read(self, now: Status, terms: "Terms") -> None:
        """Settlements that can still be challenged: of some blocks more each time, from the oldest on."""
        if self._unread < 0 or self._unread > now.block + 1:  # at first, or the chain was begun anew
            self._unread, self._settled = max(0, now.block - _MOST_BLOCKS), []
        while self._unread <= now.block:
            last = min(now.block, self._unread + _EVENT_BLOCKS - 1)
            try:
                found = self._coordinator.settlements(self._unread, last)
            except (Refused, AnswerTooLarge) as error:
                log.debug("%s", error)
                return
            self._settled += found
            self._unread = last + 1
        self._settled = [one for one in self._settled if one.round + terms.claims >= now.round]

    def _sits(self, case: "Case", now: Status) -> bool:
        """Whether this node is to vote and has not."""
        if self._court.account not in case.members or now.round > case.until:
            return False
        return case.votes[case.members.index(self._court.account)] == 0

    def _judge(self, case: "Case", now: Status) -> None:
        """By its own finding; as long as it has none, not before the last round, and then that it can't tell."""
        from rlswarm_jax.chain.court import ABSTAIN, GUILTY, NOT_GUILTY

        found = self.finding(case.record, case.index)
        vote = {NOT_PRODUCED: GUILTY, PRODUCED: NOT_GUILTY}.get(found or "")
        if vote is None and now.round < case.until:
            return
        if self._court.vote(case, ABSTAIN if vote is None else vote):
            self.counts["chain/abstained" if vote is None else "chain/voted"] += 1

    def _move_on(self, case: "Case", now: Status) -> None:
        """Draws a committee, or closes a case, by turns: first who asked, then who is accused, then all others."""
        if case.until:
            step = "resolve" if all(case.votes) or now.round > case.until else ""
        else:
            step = "draw" if now.round > case.opened + 1 or (now.round > case.opened and now.beacon) else ""
        if not step:
            return
        since = self._ready.setdefault((case.number, step), self._clock())
        sides = [case.challenger, case.accused, *case.members]
        turn = sides.index(self._court.account) if self._court.account in sides else len(sides)
        if self._clock() - since >= turn * self._stagger:
            (self._court.draw if step == "draw" else self._court.resolve)(case.number)
