"""A live node's audits: weights are fetched while it plays, and replays take a bounded share of its time."""

import collections
import dataclasses
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future

from rlswarm_jax.audit import replays
from rlswarm_jax.audit.archive import Archive
from rlswarm_jax.audit.patches import PatchError
from rlswarm_jax.audit.shown import NotHereError, Shown, assemble
from rlswarm_jax.game.effects import Audit, Claimed
from rlswarm_jax.game.rules import Game
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.records.audits import Case, shown_for
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import NOT_PRODUCED, UNDECIDED, WITHHELD
from rlswarm_jax.records.trust import Audited
from rlswarm_jax.swarm.transport import NotShownError, Transport

log = logging.getLogger("rlswarm_jax.audit")

MOST_WAITING = 16  # cases
PATIENCE = 600.0  # seconds for weights to come
SAVED = 10.0  # seconds of its share that a node may save up, for a replay that takes long


@dataclasses.dataclass(frozen=True)
class _Waiting:
    case: Case
    signed: SignedRecord
    index: int
    claimed: Claimed
    weights: "Future[list[bytes]]"
    since: float
    shown_by: bytes  # who is asked for the weights: their author, or the witness
    witness: bytes = b""  # who was shown them, and is asked if their author does not show them
    again: bool = False  # asked for from nothing on: what the author was told that is had here is not any more


class Auditor:
    """Of one node. archive: what it shows of its own weights. run: what replays.

    evidence: where it keeps weights of others by which it found somebody out, for whoever is to judge it.
    share: of the node's time that replays may take; a case that comes out of turn waits for the next round. limit:
    bytes that are fetched for a case.
    """

    def __init__(
        self,
        archive: Archive,
        run: replays.Run,
        transport: Transport,
        share: float,
        limit: int,
        evidence: Archive | None = None,
    ):
        self.archive, self._run, self._transport, self._evidence = archive, run, transport, evidence
        self._share, self._limit = share, limit
        self._shown = Shown(2 * limit)
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._left: list[Case] = []  # by an earlier process
        self._allowed, self._before = SAVED, time.monotonic()

    @property
    def waiting(self) -> list[Case]:
        """Cases that were begun and are not decided, for a checkpoint."""
        return [*self._left, *(Case(one.signed.hash, one.index) for one in self._waiting)]

    def take_up(self, cases: Iterable[Case], found: Collection[Audited] = ()) -> None:
        """After a restart: cases that were begun, and what was found since of them all; the rest waits."""
        self._left += cases
        for verdict in (one.verdict for one in found):
            of_record = [case for case in self._left if case.record == verdict.record]
            asked = [case for case in of_record if case.index == verdict.index]
            drawn = [case for case in of_record if case.index is None]
            self._left = [case for case in self._left if case not in (asked or drawn[:1])]

    def audit(
        self,
        game: Game,
        effect: Audit,
        held: Mapping[bytes, SignedRecord],
        round_: int,
        known: Collection[tuple[bytes, int]] = (),
        witnesses: Mapping[bytes, bytes] | None = None,
    ) -> list[Audited]:
        """Begins with an effect's cases, and says what was found of earlier ones. held: records by content hash.

        round_: of the game. Who does not show weights of longer ago than anybody keeps them withholds nothing.
        known: groups, by record and index, of which something was found already: nothing is said of them again.
        witnesses: of some records an author who was shown their weights.
        """
        found: list[Audited] = []
        begun = {(one.case.record, one.index) for one in self._waiting} | set(known)
        cases, self._left = [*self._left, *effect.cases], []
        for case in cases:
            if (signed := held.get(case.record)) and (case.record, case.index) not in begun:
                if verdict := replays.absent(case, signed):
                    found.append(verdict)
                    continue
                index, claimed = replays.claim(game, effect, case, signed)
                if (case.record, index) in begun:
                    continue
                begun.add((case.record, index))
                if claimed is None or len(self._waiting) >= MOST_WAITING:
                    found.append(replays.undecided(case, signed, index))
                else:
                    author, witness = signed.record.author, (witnesses or {}).get(case.record, b"")
                    waits = _Waiting(case, signed, index, claimed, Future(), time.monotonic(), author, witness)
                    self._waiting.append(self._ask(waits))
        now = time.monotonic()
        self._allowed, self._before = min(SAVED, self._allowed + self._share * (now - self._before)), now
        for _ in range(len(self._waiting)):
            one = self._waiting.popleft()
            over = now - one.since > PATIENCE
            if over:
                one.weights.cancel()
                found.append(replays.undecided(one.case, one.signed, one.index))
            elif one.weights.done() and self._allowed > 0:
                began = time.monotonic()
                try:
                    is_kept = round_ - one.signed.record.round <= shown_for(game.max_staleness)
                    decided = self._decide(one, is_kept)
                    if one.witness and not decided.verdict.tokens:
                        one = dataclasses.replace(one, shown_by=one.witness, witness=b"")
                        self._waiting.append(self._ask(one, again=True))
                    else:
                        found.append(decided)
                except NotHereError:
                    if one.again:  # it leads from weights that nobody said are here
                        found.append(self._unshown(one, is_kept))
                    else:
                        self._waiting.append(self._ask(one, again=True))
                self._allowed -= time.monotonic() - began
            else:
                self._waiting.append(one)
        return found

    def _ask(self, one: _Waiting, again: bool = False) -> _Waiting:
        weights = one.signed.record.weights
        if self._shown.get(weights) is not None:
            one.weights.set_result([])
            return one
        have = [] if again else self._shown.names
        fetched = self._transport.fetch_weights(one.shown_by, weights, have, self._limit)
        return dataclasses.replace(one, weights=fetched, again=again)

    def _unshown(self, one: _Waiting, is_kept: bool) -> Audited:
        """What is found where the weights are not to be had; a witness owes them to nobody."""
        withheld = is_kept and one.shown_by == one.signed.record.author
        return replays.undecided(one.case, one.signed, one.index, WITHHELD if withheld else UNDECIDED)

    def _decide(self, one: _Waiting, is_kept: bool) -> Audited:
        """Raises NotHereError where what the author shows leads from weights that are not here."""
        record = one.signed.record
        who, what = friendly_name(record.author), f"round {record.round}, {record.stage} {one.index}"
        try:
            tensors = assemble(one.weights.result(), self._shown, record.weights)
        except NotShownError as error:
            log.info("audit of %s (%s): the weights are not to be had: %s", who, what, error)
            return self._unshown(one, is_kept and error.withheld)
        except NotHereError:
            raise
        except PatchError as error:
            shown_by = friendly_name(one.shown_by)
            log.warning("audit of %s (%s): what %s shows is not the weights: %s", who, what, shown_by, error)
            return self._unshown(one, is_kept)
        found = replays.decide(self._run, tensors, one.case, one.signed, one.index, one.claimed)
        if found.verdict.finding == NOT_PRODUCED:
            log.warning("audit of %s (%s): not sampled with the weights and keys that it says", who, what)
            if self._evidence:
                self._evidence.add(tensors, record.round)
        return found
