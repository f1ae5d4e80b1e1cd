"""A node between its rounds and its driver: the generator, the inbox, and every result written down before it counts.

A driver fulfils `effect` and hands the result to `complete`; after a restart it hands the journal's rows to `feed`
and goes on from there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from rlswarm_jax.game.chain import Account, Moment
from rlswarm_jax.game.effects import Effect, Gather, Hear, Learn, Metrics, Publish, decode_result, encode_result
from rlswarm_jax.game.round import NodeState, Round, next_round, play_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import Sheet
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Entry, Journal, JournalError
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.inbox import Inbox, SavedInbox
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.schema import MAX_VERDICTS
from rlswarm_jax.records.teachers import Teachers
from rlswarm_jax.records.trust import Trust, contradictory

# author ("": the node itself), round, stage, index, rewards, and whether the group was learned from
Lesson = tuple[str, int, str, int, list[float], bool]
BEGIN = "begin"  # the journal's first row of a round: which round follows which is a decision too


@dataclasses.dataclass(frozen=True)
class RoundReport:
    """What is told about a node's finished round. at: seconds on the driver's clock. lessons: its groups, as scored."""

    node: int
    round: int
    at: float
    metrics: Metrics
    lessons: Sequence[Lesson] = ()


class SavedPlayer(msgspec.Struct, array_like=True):
    """A node between two rounds, besides its train state. waiting: audits that a live one has begun."""

    round: int
    policy_version: int
    pool: bytes
    at: float
    inbox: SavedInbox
    sheets: dict[bytes, Sheet]
    account: Account
    teachers: Teachers
    trust: Trust
    waiting: list[Case] = []


class Fed(NamedTuple):
    """A journaled step taken again. metrics: of the round that it ended. lessons: its groups, as scored."""

    effect: Effect | None
    result: Any
    metrics: Metrics | None
    lessons: Sequence[Lesson] = ()


def published(entry: Entry) -> bytes:
    """The signed bytes of a journaled Publish."""
    return msgspec.msgpack.decode(entry.result, type=bytes)


class Player:
    """One node's rounds. effect: what the driver is to fulfil; None between two rounds."""

    def __init__(self, index: int, game: Game, identity: Identity, journal: Journal, inbox: Inbox | None = None):
        self.index, self.game, self.identity, self._journal = index, game, identity, journal
        self.inbox = inbox or Inbox(game.swarm, game.author, game.max_staleness, game.stages, game.rounds)
        self.state = NodeState()
        self.effect: Effect | None = None
        self.step = 0
        self.learned = False  # in this round: the weights are not those that it began with
        self._round: Round | None = None
        self._heard: list[Moment] = []  # of the chain when this round began
        self._published: list[bytes] = []  # in this round: content hashes
        self._exposed: frozenset[bytes] = frozenset()  # in this round: who contradicts themselves
        self._lessons: list[Lesson] = []  # of the round that was learned from last

    @property
    def finished(self) -> bool:
        """Whether all rounds are played; a game of 0 rounds goes on until it is stopped."""
        return 0 < self.game.rounds <= self.state.round

    def begin(self, at: float) -> None:
        """Starts the round that the state says."""
        self._journal.write(Entry(self.index, self.state.round, 0, BEGIN, b"", at))
        self._start()

    def complete(self, result: Any, at: float) -> RoundReport | None:
        """Journals the result of `effect` and resumes the round; a report if that was its end.

        result: as the effect says; of Publish, the signed bytes, which may be sent once this has returned.
        """
        effect, played = self.effect, self.state.round
        assert effect is not None
        raw = encode_result(effect, result)
        self._journal.write(Entry(self.index, played, self.step, type(effect).__name__, raw, at))
        if isinstance(effect, Publish):
            self._published.append(open_envelope(result).hash)
        metrics = self._resume(None if isinstance(effect, Publish) else result)
        return None if metrics is None else RoundReport(self.index, played, at, metrics, self._lessons)

    def feed(self, entry: Entry) -> Fed:
        """Takes a journaled step again. Raises JournalError if it is not a step of this round."""
        if entry.kind == BEGIN:
            if self.effect is not None:
                if self.bound:
                    raise JournalError(f"node {self.index} round {entry.round}: the journal is of another run.")
                self.abandon()
            self.state = dataclasses.replace(self.state, round=entry.round)
            self._start()
            return Fed(None, None, None)
        effect = self.effect
        at_step = (type(effect).__name__, self.state.round, self.step)
        if effect is None or (entry.kind, entry.round, entry.step) != at_step:
            raise JournalError(f"node {self.index} round {entry.round}: the journal is of another run.")
        result = decode_result(effect, entry.result)
        if isinstance(effect, Publish):
            signed = open_envelope(published(entry))
            if signed.record.author != self.game.author:
                raise JournalError(f"node {self.index} round {entry.round}: the journal is of a node with another key.")
            self._published.append(signed.hash)
        return Fed(effect, result, self._resume(result), self._lessons)

    def join(self, latest_rounds: dict[bytes, int], voters: int) -> None:
        """Between two rounds: goes to the round in which most of the voting peers are."""
        self.state = next_round(self.state, latest_rounds, voters)

    @property
    def bound(self) -> bool:
        """Whether the present round is to be finished, because its last stage was published."""
        return len(self._published) == len(self.game.stages)

    def abandon(self) -> None:
        """Leaves the round that is being played unfinished; what was published in it stands, and earns nothing."""
        assert not self.bound, "what it claims and what its update is would not follow from what it published"
        trust = self.state.trust.expose(self._exposed, self.state.round)  # that will not be shown again
        trust = trust.tell(MAX_VERDICTS) if self._published else trust  # as the first stage's record did
        self.state = dataclasses.replace(self.state, trust=trust)
        if self.game.chain_every:
            take = self.state.round % self.game.chain_every == 0
            account = self.state.account.hear(self._heard, take).add(self._published, [])
            self.state = dataclasses.replace(self.state, account=account)
        self.effect, self._round, self.learned = None, None, False

    def save(self, state: NodeState, at: float, inbox: SavedInbox) -> SavedPlayer:
        """state: of the boundary that the checkpoint is for."""
        pool, sheets, kept = state.pool.to_bytes(), dict(state.sheets), (state.account, state.teachers, state.trust)
        return SavedPlayer(state.round, state.policy_version, pool, at, inbox, sheets, *kept)

    def restore(self, saved: SavedPlayer) -> None:
        pool = Pool.from_bytes(saved.pool)
        kept = saved.account, saved.teachers, saved.trust
        self.state = NodeState(saved.round, saved.policy_version, pool, saved.sheets, *kept)
        self.inbox.restore(saved.inbox)

    def _start(self) -> None:
        self._round, self.step = play_round(self.game, self.state), 1
        self._heard, self._published, self._exposed, self.learned = [], [], frozenset(), False
        self.effect = self._round.send(None)

    def _resume(self, result: Any) -> Metrics | None:
        assert self._round is not None
        if isinstance(self.effect, Hear) and self.step == 1:
            self._heard = result
        if isinstance(self.effect, Gather):
            self._exposed |= contradictory(result)
        if isinstance(self.effect, Learn):
            self.learned = True
            self._lessons = lessons_of(self.effect)
        self.step += 1
        try:
            self.effect = self._round.send(result)
        except StopIteration as stop:
            self.effect, self._published, self.learned = None, [], False
            self.state, metrics = stop.value
            return metrics
        return None

    def inbox_metrics(self) -> Metrics:
        """After a round: what was refused since the last one; forgets what nobody may send any more."""
        rejected = {cause: n for cause, n in sorted(self.inbox.counts.items()) if cause != "received"}
        self.inbox.counts.clear()
        self.inbox.expire(self.state.round)
        metrics = {f"records/rejected/{cause}": float(n) for cause, n in rejected.items()}
        return metrics | {"records/equivocations": float(len(self.inbox.evidence))}


def lessons_of(effect: Learn) -> list[Lesson]:
    """A node's groups of a round, those it learned from first; rewards that are whole numbers are written as such."""
    told = [(group, True) for group in effect.groups] + [(group, False) for group in effect.idle]
    return [
        (
            group.author.hex() if group.external else "",
            *(group.round, group.stage, group.index),
            [int(reward) if float(reward).is_integer() else round(reward, 6) for reward in group.rewards],
            learned,
        )
        for group, learned in told
    ]
