"""Drives the rounds of one live node: devices in this thread, the network in its own, every result journaled first.

A stage ends as `swarm.waiting` says, at its deadline at the latest, down to playing alone. A node that was killed loads
its checkpoint, plays its journal again, re-sends the bytes it had signed, and joins the round in which the others are.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import msgspec

from rlswarm_jax import machine, parallel, speed, status
from rlswarm_jax.audit import played, replays
from rlswarm_jax.audit.auditor import Auditor
from rlswarm_jax.checkpoint import Best, Checkpoints
from rlswarm_jax.engine import Engine
from rlswarm_jax.game.chain import Moment
from rlswarm_jax.game.effects import (
    Audit,
    Commit,
    Effect,
    Evaluate,
    Gather,
    Hear,
    Learn,
    Metrics,
    Pin,
    Publish,
    Replay,
    Sample,
    Score,
    Verify,
    decode_result,
)
from rlswarm_jax.game.player import Player, RoundReport, SavedPlayer, published
from rlswarm_jax.game.round import next_round
from rlswarm_jax.grpo.learner import state_hash
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Journal
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import SignedRecord, seal
from rlswarm_jax.records.schema import NOT_PRODUCED, STAGES
from rlswarm_jax.records.trust import Audited, contradictory
from rlswarm_jax.status import Awaited, Status
from rlswarm_jax.swarm.mailbox import Mailbox
from rlswarm_jax.swarm.transport import Transport

if TYPE_CHECKING:  # it needs the chain's libraries, which a node without one does not
    from rlswarm_jax.keeper import Keeper

log = logging.getLogger("rlswarm_jax.node")
DOING = {  # in words that go on after "it"; what is left out takes no time to speak of
    "Sample": "samples its {said}",
    "Gather": "waits for its peers' {said}",
    "Score": "scores what was said",
    "Learn": "learns",
    "Evaluate": "answers held-out problems",
    "Hear": "waits for the chain",
    "Replay": "replays its own samples",
    "Audit": "checks peers' samples",
    "Commit": "settles with the chain",
}
POLL = 0.1  # seconds between looks at whether to stop
ASK_AFTER = 2.0  # seconds of waiting, at most, after which a missing record is asked for: gossip can lose one silently
SETTLE = 0.5  # seconds for the answers of peers just met
FLUSH = 5.0  # seconds for what was published to go out
CHAIN = 20.0  # seconds for the chain to say its round at first
PART = 30.0  # seconds a finished node stays for peers that are still to come to the last round, such as restarted ones
AHEAD = 2  # rounds that most are further, for a node to go there: in a swarm that waits for all, one is for a moment
STOPPED = object()  # in the place of an effect's result
CHECKPOINT = msgspec.msgpack.Decoder(SavedPlayer)


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """Seconds. deadline: a stage waits no longer for its peers (0: it waits for ever). join: to find peers at first.

    keep: rounds whose records stay in the journal, for whoever checks what was committed to and claimed. follow: the
    coordinator's stages are the game's: one ends when the coordinator is past it, too.
    """

    deadline: float
    join: float
    checkpoint_every: int
    keep: int = 0
    follow: bool = False


class Node:
    """One node of a live swarm. `run` plays until all rounds are done or `should_stop` says so."""

    def __init__(
        self,
        player: Player,
        engine: Engine,
        transport: Transport,
        mailbox: Mailbox,
        journal: Journal,
        checkpoints: Checkpoints,
        config: LiveConfig,
        on_round: Callable[[RoundReport], None],
        auditor: Auditor,
        chain: "Keeper | None" = None,
        best: Best | None = None,
        told: Status | None = None,
    ):
        self.player, self._engine, self._transport, self._mailbox = player, engine, transport, mailbox
        self._journal, self._checkpoints, self._config, self._on_round = journal, checkpoints, config, on_round
        self._auditor, self._chain, self._best = auditor, chain, best
        self.status = told or Status()
        self.status.behind = self._far_behind
        self._stage = ""  # of the round, as far as it has come
        self._coordinators_round: int | None = None  # when the present round began, as far as it was heard
        self._checkpoint = 0  # the round of the last one
        peaks = [speed.peak_flops(device.device_kind) for device in jax.devices()]
        self._peak = sum(peak or 0.0 for peak in peaks) or None  # FLOP/s
        if chain:
            chain.judge_by(lambda record, index: self._findings.get((record, index)))
        self._damaged = 0  # newer ones that could not be used
        self._published: list[bytes] = []  # by an earlier process, in its last round
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._stage_began = time.monotonic()

    def restore(self, reported: Collection[int] = ()) -> None:
        """Takes up what an earlier process left: its checkpoint, then its journal; reports rounds not yet reported.

        Raises CheckpointError or JournalError if what is there does not fit this run.
        """
        player, inbox, lock = self.player, self.player.inbox, self._mailbox.changed
        if (found := self._checkpoints.newest([self._engine.state(0)], repair=True)) is not None:
            self._engine.set_states(found.states)
            self._checkpoint, self._damaged = found.step, found.damaged
            with lock:
                arrived = list(inbox.records.values())
                saved = CHECKPOINT.decode(found.extra)
                player.restore(saved)
                for signed in arrived:
                    inbox.offer(signed.raw, player.state.round)
            self._auditor.take_up(saved.waiting)
        for entry in self._journal.read(player.index, player.state.round):
            if isinstance(player.effect, Evaluate) and entry.kind == Evaluate.__name__:
                self._offer(decode_result(player.effect, entry.result))
            fed = player.feed(entry)
            self._note_stage(fed.effect)
            with lock:
                for signed in fed.result if isinstance(fed.effect, Gather) else ():
                    inbox.mark_taken(signed)
                self._mailbox.round = player.state.round
                inbox.expire(player.state.round)
            if isinstance(fed.effect, Learn):
                self._engine.learn({0: fed.effect})  # its weights are nowhere but in what led to them
            if isinstance(fed.effect, Audit):
                self._auditor.take_up(fed.effect.cases, fed.result)
            if fed.metrics is not None and entry.round not in reported:
                self._on_round(RoundReport(player.index, entry.round, entry.at, fed.metrics, fed.lessons))
        self._published = [published(entry) for entry in self._journal.last(player.index, Publish.__name__)]

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Plays until the end. Raises RecordError if what this node has to say does not fit into a record."""
        self.status.begins("looks for its peers", at_most=self._config.join + (CHAIN if self._chain else 0.0))
        self._meet(should_stop)
        self._stage_began = time.monotonic()
        for raw in self._published:
            self._transport.publish(raw)  # again: nobody knows whether it was sent
        while not self.player.finished and (self.player.learned or not should_stop()):
            if self.player.effect is None:
                self.player.begin(time.time())
                self._note_stage(None)
                self._stage_began = time.monotonic()
            elif not self._play(self.player.effect, should_stop):
                break
            self._go_to_the_others(at_least=AHEAD)
        if self.player.finished:
            most = PART + FLUSH + (self._chain.closing_seconds() if self._chain else 0.0)
            self.status.begins("has played all rounds, and stays until its peers have", at_most=most)
            self._part(should_stop)

    # --- effects

    def _play(self, effect: Effect, should_stop: Callable[[], bool]) -> bool:
        """Whether it was: false if told to stop while waiting."""
        self._tell(effect)
        with self._timed(type(effect).__name__.lower()):
            result = self._fulfil(effect, should_stop)
        if result is STOPPED:
            return False
        if isinstance(effect, Evaluate):
            self._offer(result)
        self._note_stage(effect)
        report = self.player.complete(result, time.time())
        if isinstance(effect, Publish):
            self._transport.publish(result)  # only now: what is sent is in the journal
        if report is not None:
            self._end_round(report)
        return True

    def _tell(self, effect: Effect) -> None:
        """Says what it does now, and how long that may take at most where the config says so."""
        name, most = type(effect).__name__, self._longest_wait(effect)
        doing = DOING.get(name, "goes on").format(said=status.plural(self._stage))
        brief = name not in DOING or (isinstance(effect, Hear) and most is None)
        self.status.begins(doing, self.player.state.round, self._stage, most, brief)

    def _note_stage(self, over: Effect | None) -> None:
        """What comes next is of which one. over: the effect that is; None of a round that begins."""
        if over is None or isinstance(over, Gather):
            stages = self.player.game.stages
            self._stage = (*stages, "")[stages.index(over.stage) + 1 if over else 0]

    def _longest_wait(self, effect: Effect) -> float | None:
        """In seconds, for others; None of what this node does itself."""
        if isinstance(effect, Gather):
            return self._config.deadline or math.inf
        if isinstance(effect, Hear) and effect.beyond is not None and self._chain:
            return self._chain.closing_seconds()
        return None

    def _offer(self, found: Metrics) -> None:
        """The weights that were just evaluated may be the best so far."""
        if self._best is not None and "accuracy" in found:
            before = self.player.state.round + self.player.learned
            self._best.offer(before, found["accuracy"], parallel.fetch(self._engine.state(0)))

    def _fulfil(self, effect: Effect, should_stop: Callable[[], bool]) -> Any:
        if isinstance(effect, Sample):
            return self._engine.sample({0: effect})[0]
        if isinstance(effect, Pin):
            return self._auditor.archive.add(self._engine.tensors(0), self.player.state.round)
        if isinstance(effect, Replay):
            return self._recheck(effect)
        if isinstance(effect, Audit):
            return self._audit(effect)
        if isinstance(effect, Verify):
            return self._engine.verifier.begin(effect.items, effect.payers)
        if isinstance(effect, Score):
            return self._engine.verifier.score(effect.items, effect.payers)
        if isinstance(effect, Publish):
            return seal(effect.record, self.player.identity)
        if isinstance(effect, Gather):
            return self._gather(effect, should_stop)
        if isinstance(effect, Learn):
            return self._engine.learn({0: effect})[0]
        if isinstance(effect, Hear):
            return self._hear(effect, should_stop)
        if isinstance(effect, Commit):
            assert self._chain, "a game that hears a chain has one"
            hash_ = state_hash(self._engine.state(0), self._engine.base)
            self._chain.commit(effect, hash_, self.player.game.agreement)
            return hash_
        assert isinstance(effect, Evaluate)
        return self._engine.evaluate([0])[0]

    @property
    def _findings(self) -> Mapping[tuple[bytes, int], str]:
        """This node's own, by record and index."""
        return self.player.state.trust.found

    def _audit(self, effect: Audit) -> list[Audited]:
        with self._mailbox.changed:
            held = replays.by_hash(self.player.inbox.records)
        game, journal, index = self.player.game, self._journal, self.player.index
        duties = self._chain.duties() if self._chain else {}
        known = {*self._findings, *((case.record, case.index) for case in self._auditor.waiting)}
        asked = {Case(one.record, one.index): who for one, who in duties.items() if one[1:] not in known}
        witnesses = {case.record: who for case, who in asked.items() if who != game.author}
        old = {case.record for case in effect.cases if (case.record, case.index) not in known} - held.keys()
        earlier = played.kept(game, journal, index, witnesses.keys() | old)  # of what is said when rounds have gone by
        effect = Audit(
            [*asked, *effect.cases], {**earlier.sheets, **effect.sheets}, {**earlier.beacons, **effect.beacons}
        )
        held = earlier.records | held
        found = self._auditor.audit(game, effect, held, self.player.state.round, self._findings, witnesses)
        if self._chain and self._chain.has_court:
            self._challenge(found, bool(effect.cases))
        return found

    def _challenge(self, found: Sequence[Audited], again: bool) -> None:
        """Brings to court what this node has found out; again and again, as settlements cover what was said since."""
        assert self._chain
        guilty = [(v.record, v.index) for v in (one.verdict for one in found) if v.finding == NOT_PRODUCED]
        if guilty or again:
            guilty = [at for at, finding in self._findings.items() if finding == NOT_PRODUCED] + guilty
            said = played.published(self._journal, self.player.index) if guilty else {}
            for (record, index), (author, records) in itertools.product(guilty, said.items()):
                if record in records:
                    self._chain.challenge(author, record, index, records)

    def _recheck(self, effect: Replay) -> Metrics:
        found = replays.own(functools.partial(self._engine.replay, 0), effect)
        if found[f"audit/own_{NOT_PRODUCED}"] or found["audit/own_gap"] > 1:
            log.error("the sampler of this node does not compute what its learner does: what it says cannot be trusted")
        return found

    def _hear(self, effect: Hear, should_stop: Callable[[], bool]) -> list[Moment] | object:
        """What the chain says; `STOPPED` if told to while waiting."""
        assert self._chain
        seconds = self._chain.closing_seconds()
        if effect.beyond is not None and not self._chain.wait(effect.beyond, seconds, should_stop):
            if should_stop():
                return STOPPED
            log.warning("the chain did not go on for %.0f s: what this node did last is not committed to", seconds)
        heard = self._chain.moments()
        if effect.beyond is None and self.player.step == 1:
            self._coordinators_round = heard[-1].round if heard else None
        return heard

    def _gather(self, effect: Gather, should_stop: Callable[[], bool]) -> list[SignedRecord] | object:
        """The records in hand once a stage has ended as `Mailbox.stage_end` says; `STOPPED` if told to."""
        mailbox, deadline = self._mailbox, self._config.deadline
        at = effect.round, effect.stage
        began, spoke = self._stage_began, time.monotonic()
        asked, why = spoke, "after a quorum's grace"
        if self._chain:
            mailbox.members = self._chain.members()
        with mailbox.changed:
            mailbox.distrusted = effect.without
            mailbox.draw(effect.round, effect.beacon)
            if effect.stage == STAGES[0] and self._let_most_come(spoke + deadline, should_stop):
                return STOPPED
            while missing := mailbox.missing(*at):
                now, end = time.monotonic(), mailbox.stage_end(*at, began, spoke, deadline)
                named = sorted(missing)[: status.MOST]
                self.status.waits_for([Awaited(who, mailbox.why(who, effect.round)) for who in named], end)
                if should_stop():
                    return STOPPED
                if self._is_over(effect):
                    why = "because the coordinator is past it"
                    break
                if self._behind() >= AHEAD:
                    why = "because most are further"
                    break
                if now >= end:
                    why = "at its deadline" if now >= spoke + deadline else why
                    break
                if now - asked >= min(ASK_AFTER, max(POLL, (end - asked) / 2)):  # in time for the answer to come
                    asked = now
                    self._transport.ask(missing)
                mailbox.changed.wait(min(POLL, end - now))
            if late := mailbox.close_stage(*at, began, spoke, deadline):
                level = logging.INFO if "grace" in why else logging.WARNING
                log.log(level, "round %d went on without %d peer(s) %s", effect.round, len(late), why)
            self._stage_began = time.monotonic()
            heard = mailbox.take(*at)
        for author in sorted(contradictory(heard)):
            log.warning("%s signed two records for one stage of a round, and is not trusted now", friendly_name(author))
        return heard

    def _let_most_come(self, end: float, should_stop: Callable[[], bool]) -> bool:
        """Where this node is so far ahead of most that neither side reads the other, as after it was cut off and played
        by itself, each of its rounds takes a deadline until they are near. Whether it is told to stop meanwhile.
        """
        mailbox, said = self._mailbox, False
        while (late := mailbox.trailing()) and time.monotonic() < end:
            if not said:
                said = True
                log.info("round %d waits for %d peers, most of all, who are far behind", mailbox.round, len(late))
            self.status.waits_for(
                [Awaited(who, f"is in round {late[who]}") for who in sorted(late)[: status.MOST]], end
            )
            if should_stop():
                return True
            mailbox.changed.wait(min(POLL, max(0.0, end - time.monotonic())))
        return False

    def _is_over(self, effect: Gather) -> bool:
        """Whether the coordinator is past a stage, and this node is to follow it."""
        at = self._coordinators_round
        if not self._config.follow or self._chain is None or at is None:
            return False
        return self._chain.is_past(at, STAGES.index(effect.stage))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        self._seconds[name] += time.perf_counter() - began

    # --- between rounds

    def _end_round(self, report: RoundReport) -> None:
        with self._mailbox.changed:
            metrics = report.metrics | self.player.inbox_metrics()
        if self._chain:
            metrics |= {name: float(n) for name, n in sorted(self._chain.take_counts().items())}
            if (upgrade := self._chain.upgrade()[0]) is not None:
                metrics["chain/upgrade_round"] = float(upgrade.round)
        for name, count in sorted((self._transport.take_counts() + self._mailbox.take_counts()).items()):
            name = f"records/{name}" if name.startswith("rejected/") else name
            metrics[name] = metrics.get(name, 0.0) + float(count)
        metrics |= {name: float(n) for name, n in sorted(self._auditor.archive.take_counts().items())}
        metrics["peers/connected"] = float(len(self._mailbox.connected))
        if self._damaged:
            metrics["checkpoints/damaged"], self._damaged = float(self._damaged), 0
        metrics |= speed.of_round(metrics, self._seconds["sample"], self._seconds["learn"], self._peak)
        metrics |= machine.memory_mb()
        metrics |= {f"seconds/{name}": spent for name, spent in sorted(self._seconds.items())}
        self._seconds.clear()
        self._on_round(dataclasses.replace(report, metrics=metrics))
        self._go_to_the_others(at_least=1)
        self._save_if_due(report.round)

    def _go_to_the_others(self, at_least: int) -> None:
        """If most peers are so many rounds ahead, goes there; out of a round too whose last stage is not published."""
        player, mailbox = self.player, self._mailbox
        with mailbox.changed:
            ahead = self._behind()
            if ahead >= at_least and not player.bound:
                if player.effect is not None:
                    log.info("round %d is left: the others are %d further", player.state.round, ahead)
                    player.abandon()
                player.join(mailbox.latest_rounds(), len(mailbox.voters()))
            mailbox.round = player.state.round

    def _far_behind(self) -> int:
        """The same for whoever looks from outside; 0 if it is no more than what is normal for a moment."""
        with self._mailbox.changed:
            behind = self._behind()
        return behind if behind >= AHEAD else 0

    def _behind(self) -> int:
        """How many rounds most peers are ahead."""
        mailbox, state = self._mailbox, self.player.state
        return next_round(state, mailbox.latest_rounds(), len(mailbox.voters())).round - state.round

    def _save_if_due(self, played: int) -> None:
        every = self._config.checkpoint_every
        if played // every != self.player.state.round // every:
            self.save()

    def save(self) -> None:
        """A checkpoint of the node as it was before the round that it is in; whoever ends a run calls it.

        There is none where it has learned in that round, and stopped as it waited for the chain: the journal has that.
        """
        if (round_ := self.player.state.round) <= self._checkpoint or self.player.learned:
            return
        with self._mailbox.changed:
            inbox = self.player.inbox.save()
        saved = self.player.save(self.player.state, time.time(), inbox)
        saved.waiting = self._auditor.waiting
        extra = msgspec.msgpack.encode(saved)
        self._checkpoints.save(round_, [parallel.fetch(self._engine.state(0))], extra)
        if (oldest := self._checkpoints.needed) is not None:
            self._journal.prune(self.player.index, oldest, oldest - self._config.keep)
        self._checkpoint = round_

    def let_go_of_records(self) -> None:
        """Of those that are kept for whoever checks claims, not for a restart. Raises JournalError."""
        if (oldest := self._checkpoints.needed) is not None:
            self._journal.prune(self.player.index, oldest, oldest)
        self._journal.shrink()

    # --- coming and going

    def _meet(self, should_stop: Callable[[], bool]) -> None:
        """Finds the peers that this node was told of, hears in which round they are, and goes there."""
        mailbox, began = self._mailbox, time.monotonic()
        with mailbox.changed:
            while not mailbox.met and not should_stop():
                if time.monotonic() - began >= self._config.join:
                    log.warning("not all peers were found in %.0f s: going on with those that come", self._config.join)
                    break
                mailbox.changed.wait(POLL)
            met = bool(mailbox.connected)
        if met:
            time.sleep(SETTLE)
        self._go_to_the_others(at_least=1)
        if self._chain and not self._chain.wait(-1, CHAIN, should_stop):
            log.warning("nothing was heard of the chain for %.0f s: going on without it until it speaks", CHAIN)

    def _part(self, should_stop: Callable[[], bool]) -> None:
        """Stays until what was published is out and the others have come to the last round too, but not for long."""
        mailbox, last = self._mailbox, self.player.state.round - 1
        began = time.monotonic()
        self._transport.flush(FLUSH)
        if self._chain and not self._chain.finish(should_stop):
            log.warning("the chain has not taken all that was to be told: the outbox keeps it for the next start here")
        with mailbox.changed:
            while mailbox.behind(last) and time.monotonic() - began < PART and not should_stop():
                mailbox.changed.wait(POLL)
        time.sleep(SETTLE)
