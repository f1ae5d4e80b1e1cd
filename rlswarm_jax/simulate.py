"""Drives the rounds of N nodes in one process: a virtual clock, a lossy network, one engine for all weights.

A discrete-event simulation. Effects take virtual time; those that need a model depend on their node's own state
alone, so all that are waiting are computed together, whatever their virtual time. Everything is a function of the
config and the seed, and a killed simulation goes on from its checkpoint and journal to the same bits.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import msgspec

from rlswarm_jax import parallel
from rlswarm_jax.audit import commit, patches, played, replays
from rlswarm_jax.chain.virtual import VirtualCoordinator
from rlswarm_jax.checkpoint import Best, Checkpoints
from rlswarm_jax.engine import Engine
from rlswarm_jax.engines import Engines
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
from rlswarm_jax.game.player import BEGIN, RoundReport
from rlswarm_jax.game.round import NodeState, next_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.grpo.learner import state_hash
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Journal
from rlswarm_jax.qwen import Params, tensors_hash
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.schema import UNDECIDED, WITHHELD
from rlswarm_jax.records.trust import Audited
from rlswarm_jax.simulated_node import Boundary, SavedSimulation, SimulatedNode, Timing
from rlswarm_jax.swarm.virtual import VirtualNetwork
from rlswarm_jax.swarm.waiting import Company, quorum_time, read_by, stage_end, still_to_speak

_DELIVER, _DONE, _DEADLINE = range(3)


class Simulation:
    """N nodes and the events between them. `run` plays until all rounds are done or `should_stop` says so."""

    def __init__(
        self,
        games: Sequence[Game],
        identities: Sequence[Identity],
        engine: Engine | Engines,
        network: VirtualNetwork,
        timing: Timing,
        journal: Journal,
        on_round: Callable[[RoundReport], None],
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_every: int = 0,
        metrics_offset: Callable[[], int] = lambda: 0,
        chain: VirtualCoordinator | None = None,
        best: Sequence[Best] = (),
    ):
        self.nodes = [
            SimulatedNode(i, game, identity, journal)
            for i, (game, identity) in enumerate(zip(games, identities, strict=True))
        ]
        self._authors = frozenset(node.game.author for node in self.nodes)
        self._by_author = {node.game.author: node for node in self.nodes}
        for node in self.nodes:
            node.inbox.favoured = self._authors
            node.there = timing.is_there(node.index, 0)
        for node in self.nodes:
            node.company = Company(self._peers(node))
        self._audits = any(game.auditors for game in games)
        self._front = -1  # the latest round that anybody has begun
        self._engine, self._network, self._timing, self._journal = engine, network, timing, journal
        self._on_round, self._metrics_offset = on_round, metrics_offset
        self._checkpoints, self._every, self._chain = checkpoints, checkpoint_every, chain
        self._best = best
        self._last_checkpoint = 0
        self._rounds_at: dict[int, list[int]] = {}  # by step of the checkpoint, in which rounds its nodes were
        self._damaged = 0  # newer ones that could not be used
        self._events: list[tuple] = []
        self._waiting: dict[type, dict[int, Effect]] = {Sample: {}, Learn: {}, Evaluate: {}}
        self._results: dict[int, Any] = {}
        self._started = False

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        if not self._started:
            self._started = True
            self._front = 0
            for node in [node for node in self.nodes if node.there]:
                node.life = 1
                self._begin(node, 0.0)
        while self._events and not should_stop():
            self._process(heapq.heappop(self._events))

    def save(self) -> None:
        """A checkpoint of all nodes where they stand; whoever ends a run calls it."""
        if self._checkpoints is not None:
            boundaries = [self._boundary(node, *node.latest) for node in self.nodes]
            self._write(self._last_checkpoint, boundaries)

    @property
    def finished(self) -> bool:
        """Whether all are done that are there."""
        return all(node.finished for node in self.nodes if node.there)

    def weights(self, node: int) -> Params:
        """A node's parameters as they are now."""
        return self._engine.weights(node)

    def inject(self, raw: bytes, receiver: int, at: float) -> None:
        """Lets bytes of anyone's making reach a node at a time: what a hostile peer can do."""
        heapq.heappush(self._events, (at, _DELIVER, receiver, -1, raw))

    # --- events: (at, what, node, ...), ordered by their content alone

    def _process(self, event: tuple) -> None:
        at, what, index, *rest = event
        node = self.nodes[index]
        if what == _DELIVER:
            if node.there:
                self._deliver(node, rest[1], at)
        elif rest.pop() != node.life:
            pass  # it was killed since
        elif what == _DEADLINE:
            if isinstance(node.effect, Gather) and rest == [node.effect.round, node.step]:
                self._gather(node, node.effect, at)
            elif isinstance(node.effect, Hear) and rest == [node.state.round, node.step]:
                self._complete(node, self._heard(), at)
        else:
            if index not in self._results:
                self._compute(type(node.effect), index)
            self._complete(node, self._results.pop(index), at)

    def _deliver(self, node: SimulatedNode, said: SignedRecord | bytes, at: float) -> None:
        author = b""
        if isinstance(said, SignedRecord) and self._passes_by(node, said):
            author, round_ = said.record.author, said.record.round
            node.inbox.pass_by(author, round_)
        elif signed := node.inbox.offer(_raw(said), node.state.round):
            author, round_ = signed.record.author, signed.record.round
            node.arrived[author, round_, signed.record.stage] = at
        if author in self._authors:
            node.gone.discard(author)
            node.company.spoke(author, round_, node.state.round)
        # what nobody waits for ends no stage; but whoever reads all may begin to wait for who was late
        if isinstance(node.effect, Gather) and (not node.game.reads or author in node.missing):
            self._gather(node, node.effect, at)

    def _passes_by(self, node: SimulatedNode, signed: SignedRecord) -> bool:
        """Whether a node will not read an author in a round, as far as it can know by now."""
        author, round_, now = signed.record.author, signed.record.round, node.state.round
        if not node.game.reads or author not in self._authors or round_ > now + 1:
            return False
        if round_ not in node.read and round_ >= now and not self._chain:
            self._draw(node, round_, node.game.beacon(round_))
        return round_ in node.read and author not in node.read[round_]

    def _compute(self, kind: type, index: int) -> None:
        """A node's effect, and with it all others' that wait for the same; but an update only once it is over."""
        waiting = self._waiting[kind]
        if kind is Learn:
            waiting = {index: waiting.pop(index)}
        else:
            self._waiting[kind] = {}
        with jax.profiler.TraceAnnotation(kind.__name__.lower()):
            self._results |= self._run(kind, waiting)

    def _run(self, kind: type, requests: Mapping[int, Any]) -> Mapping[int, Any]:
        if kind is Sample:
            return self._engine.sample(requests)
        if kind is Learn:
            for node in map(self.nodes.__getitem__, requests if self._checkpoints else ()):
                if node.state.round + 1 == node.game.rounds:  # in all others an update ends the round at once
                    node.before = parallel.fetch(self._engine.state(node.index))
            return self._engine.learn(requests)
        found = self._engine.evaluate(list(requests))
        for index, metrics in found.items():
            self._offer(self.nodes[index], metrics)
        return found

    def _offer(self, node: SimulatedNode, found: Metrics) -> None:
        """The weights that were just evaluated may be the node's best so far."""
        if self._best:
            before = node.state.round + node.learned
            self._best[node.index].offer(before, found["accuracy"], parallel.fetch(self._engine.state(node.index)))

    # --- a node's round

    def _begin(self, node: SimulatedNode, at: float) -> None:
        node.latest, node.before = (node.state, at), None
        life = node.life
        while self._front < node.state.round and not node.finished:
            self._front += 1
            self._come_and_go(at)
        if node.there and node.life == life and not node.finished:
            node.begin(at)
            node.stage_began = at
            self._start(node, at)

    def _come_and_go(self, at: float) -> None:
        """Kills and starts nodes as the first of the swarm begins a round; those that go are gone for all who come."""
        changed = [node for node in self.nodes if node.there != self._timing.is_there(node.index, self._front)]
        for node in [node for node in changed if node.there]:
            self._kill(node, at)
        for node in [node for node in changed if not node.there and self._timing.is_there(node.index, self._front)]:
            self._start_again(node, at)

    def _kill(self, node: SimulatedNode, at: float) -> None:
        """What a node was doing is lost, and what it had heard and not taken; its journal stands."""
        node.there = False
        node.life += 1  # so that nothing of what it had begun is ever done
        for waiting in self._waiting.values():
            waiting.pop(node.index, None)
        self._results.pop(node.index, None)
        held = node.inbox.save()
        slots = set(held.taken)
        held.held = [s.raw for slot, s in node.inbox.records.items() if slot in slots]
        held.evidence = [proof for proof in held.evidence if proof[0] in set(held.told)]
        held.counts = {}
        node.inbox.restore(held)
        for peer in self.nodes:
            peer.gone.add(node.game.author)
            if peer.there and isinstance(peer.effect, Gather) and node.game.author in peer.missing:
                self._gather(peer, peer.effect, at)

    def _start_again(self, node: SimulatedNode, at: float) -> None:
        """As a live node that comes, or comes back: it is told what the others said last, hears where they are, and
        goes there unless it is bound to finish its round; what it said last it says again.
        """
        node.there, node.came, node.gone = True, at, set()
        node.company, node.read = Company(self._peers(node)), {}
        node.life += 1
        for raw in node.said[1]:
            self._send(node.index, raw, at)
        for peer in (self._by_author[author] for author in node.company.told):
            for signed in map(open_envelope, peer.said[1]):
                if (arrival := self._network.arrivals(peer.index, signed.hash, at).get(node.index)) is not None:
                    heapq.heappush(self._events, (arrival, _DELIVER, node.index, peer.index, signed))
        before, was = node.state.round, node.effect
        latest = {a: self._by_author[a].state.round for a in self._peers(node)}
        ahead = next_round(node.state, latest, len(latest)).round > before
        if was is not None and ahead and not node.bound:
            node.abandon()
        if node.effect is None:
            node.join(latest, len(latest))
            self._cross(node, before, at)
            self._begin(node, at)
        else:
            node.stage_began = at
            self._start(node, at)

    def _peers(self, node: SimulatedNode) -> frozenset[bytes]:
        """The others that are there."""
        return frozenset(other.game.author for other in self.nodes if other.there) - {node.game.author}

    def _complete(self, node: SimulatedNode, result: Any, at: float) -> None:
        """Resumes a round with an effect's result and starts the next effect."""
        report = node.complete(result, at)
        if report is None:
            self._start(node, at)
        else:
            metrics = report.metrics | node.inbox_metrics()
            if self._damaged:
                metrics["checkpoints/damaged"], self._damaged = float(self._damaged), 0
            self._on_round(dataclasses.replace(report, metrics=metrics))
            node.before = None
            self._join(node)
            self._cross(node, report.round, at)
            self._save_if_all_crossed()
            self._begin(node, at)

    def _start(self, node: SimulatedNode, at: float) -> None:
        """Starts a node's effect; one without duration ends at once."""
        effect = node.effect
        if isinstance(effect, Verify):
            self._engine.verifier.begin(effect.items, effect.payers)
            self._complete(node, None, at)
        elif isinstance(effect, Score):
            self._complete(node, self._engine.verifier.score(effect.items, effect.payers), at)
        elif isinstance(effect, Publish):
            raw = seal(effect.record, node.identity)
            round_, said = node.said
            node.said = effect.record.round, [*(said if effect.record.round == round_ else ()), raw]
            self._send(node.index, raw, at)
            self._complete(node, raw, at)
        elif isinstance(effect, Hear):
            heard = self._heard()
            if effect.beyond is None or heard[-1].round > effect.beyond:
                self._complete(node, heard, at)
            else:
                at += self._timing.deadline
                heapq.heappush(self._events, (at, _DEADLINE, node.index, node.state.round, node.step, node.life))
        elif isinstance(effect, Commit):
            assert self._chain
            self._chain.commit(node.game.author, effect.moment.round, commit.root(effect.work.records))
            self._complete(node, state_hash(self._engine.state(node.index), self._engine.base_of(node.index)), at)
        elif isinstance(effect, Gather):
            node.spoke = at
            self._gather(node, effect, at)
        elif isinstance(effect, Pin):
            self._complete(node, self._pin(node), at)
        elif isinstance(effect, Replay):
            self._complete(node, replays.own(self._replay_of(node), effect), at)
        elif isinstance(effect, Audit):
            self._complete(node, self._audit(node, effect), at)
        else:
            assert effect is not None
            self._waiting[type(effect)][node.index] = effect
            heapq.heappush(self._events, (at + self._timing.of(node.index, effect), _DONE, node.index, node.life))

    def _pin(self, node: SimulatedNode) -> bytes:
        tensors = self._engine.tensors(node.index)
        name = tensors_hash(tensors)
        if self._audits:
            latest = node.shown | {name: (node.state.round, tensors)}
            oldest = node.state.round - node.game.max_staleness
            node.shown = {n: one for n, one in latest.items() if one[0] >= oldest or n == name}
        return name

    def _replay_of(self, node: SimulatedNode) -> replays.Run:
        return functools.partial(self._engine.replay, node.index)

    def _audit(self, node: SimulatedNode, effect: Audit) -> list[Audited]:
        """At once: every node that is there shows the weights of its latest rounds to whoever asks."""
        held, found = replays.by_hash(node.inbox.records), []
        old = {case.record for case in effect.cases} - held.keys()
        earlier = played.kept(node.game, self._journal, node.index, old)
        held = earlier.records | held
        effect = Audit(effect.cases, {**earlier.sheets, **effect.sheets}, {**earlier.beacons, **effect.beacons})
        for case in effect.cases:
            if (signed := held.get(case.record)) is None:
                continue
            if verdict := replays.absent(case, signed):
                found.append(verdict)
                continue
            index, claimed = replays.claim(node.game, effect, case, signed)
            author = self._by_author.get(signed.record.author)
            _, tensors = author.shown.get(signed.record.weights, (0, None)) if author else (0, None)
            if claimed is None or tensors is None:
                latest = author is not None and author.state.round - signed.record.round <= author.game.max_staleness
                withheld = claimed is not None and author is not None and author.there and latest
                found.append(replays.undecided(case, signed, index, WITHHELD if withheld else UNDECIDED))
            else:
                found.append(replays.decide(self._replay_of(node), tensors, case, signed, index, claimed))
        return found

    def _heard(self) -> list[Moment]:
        assert self._chain, "a game that hears a chain has one"
        return [Moment(*moment) for moment in self._chain.moments()]

    def _gather(self, node: SimulatedNode, effect: Gather, at: float) -> None:
        """Ends a stage if it is over, else looks again when it will be if nothing more comes.

        Waited for are the nodes that are not late; strangers, of whom anyone can make as many as they like, are not.
        With a chain they are not registered either, and so not heard.
        """
        began, own, inbox = node.stage_began, node.spoke - node.stage_began, node.inbox
        awaited = {author for author in self._read_by(node, effect) if node.company.earned(author)} - node.gone
        awaited -= effect.without
        missing = still_to_speak(awaited, inbox, effect.round, effect.stage)
        node.missing = missing
        spoken = awaited & inbox.authors(effect.round, effect.stage)
        times = {a: max(0.0, node.arrived[a, effect.round, effect.stage] - began) for a in sorted(spoken)}
        heard = own, list(times.values()), len(missing | spoken)
        end = began + stage_end(*heard, self._timing.deadline)
        if missing and at < end:
            if end < math.inf:
                heapq.heappush(self._events, (end, _DEADLINE, node.index, effect.round, node.step, node.life))
            return
        if self._timing.deadline and (quorum := quorum_time(*heard)) < math.inf:
            node.company.heard(times, quorum)
            node.company.late(missing)  # where most are silent, it is the network that is
        node.stage_began = at
        node.arrived = {slot: when for slot, when in node.arrived.items() if slot in inbox.records}
        self._complete(node, self._taken(node, effect), at)

    def _read_by(self, node: SimulatedNode, effect: Gather) -> Iterable[bytes]:
        """Whom a node reads in a round: drawn once, of those that it then waits for, or of all nodes."""
        if not node.game.reads:
            return self._authors if self._timing.present else node.company.told
        if effect.round not in node.read:
            self._draw(node, effect.round, effect.beacon)
        return node.read[effect.round]

    def _draw(self, node: SimulatedNode, round_: int, beacon: bytes) -> None:
        known = [author for author in self._authors - node.gone if node.company.earned(author)]
        node.read[round_] = read_by(node.game.author, known, node.game.reads, beacon, round_)
        if len(node.read) > node.game.max_staleness + 2:
            del node.read[min(node.read)]

    def _taken(self, node: SimulatedNode, effect: Gather) -> list[SignedRecord]:
        reads, nobody = node.game.reads, frozenset[bytes]()

        def wanted(author: bytes, round_: int) -> bool:
            if author not in self._authors:
                return self._chain is None
            return not reads or author in node.read.get(round_, nobody)

        room = max(0, reads - len(node.read.get(effect.round, nobody))) if reads else None
        return node.inbox.take(effect.round, effect.stage, wanted, room)

    def _send(self, sender: int, raw: bytes, at: float) -> None:
        signed, node = open_envelope(raw), self.nodes[sender]  # once: what is on its way is held
        at = node.free = self._network.sent(len(raw), at, node.free)
        for receiver, arrival in self._network.arrivals(sender, signed.hash, at).items():
            heapq.heappush(self._events, (arrival, _DELIVER, receiver, sender, signed))

    def _join(self, node: SimulatedNode) -> None:
        voters = self._peers(node)
        if self._timing.present:  # a newcomer has no say in where the others are until it has played with them
            voters = frozenset(a for a in voters if node.company.earned(a) or a in node.company.told)
        latest = {author: r for author, r in node.inbox.latest_rounds().items() if author in voters}
        node.join(latest, voters=len(voters))

    # --- checkpoints

    def _cross(self, node: SimulatedNode, before: int, at: float) -> None:
        """Keeps the node as it is where it crosses a checkpoint's round."""
        if self._checkpoints is None or not self._every:
            return
        crossed = range(before // self._every + 1, node.state.round // self._every + 1)
        if crossed:
            node.boundaries |= dict.fromkeys(crossed, self._boundary(node, node.state, at))

    def _boundary(self, node: SimulatedNode, state: NodeState, at: float) -> Boundary:
        train_state = node.before or parallel.fetch(self._engine.state(node.index))
        return Boundary(train_state, state, at, node.shown)

    def _save_if_all_crossed(self) -> None:
        if self._checkpoints is None or not self._every:
            return
        common = min(max(node.boundaries, default=0) for node in self.nodes if node.there)
        if common > self._last_checkpoint:
            self._save(common)

    def _save(self, number: int) -> None:
        # who is not there stands where it stood when it was killed
        self._write(number, [n.boundaries.get(number) or self._boundary(n, *n.latest) for n in self.nodes])
        self._last_checkpoint = number
        for node in self.nodes:
            node.boundaries = {k: b for k, b in node.boundaries.items() if k >= number}

    def _write(self, number: int, boundaries: Sequence[Boundary]) -> None:
        """A checkpoint of the nodes at some boundaries: from there each goes on by the journal, which is its step."""
        assert self._checkpoints is not None
        step = self._journal.offset
        if step <= (self._checkpoints.latest or 0):
            return
        extra = msgspec.msgpack.encode(self._saved(number, boundaries))
        self._checkpoints.save(step, [b.train_state for b in boundaries], extra)
        self._rounds_at[step] = [b.state.round for b in boundaries]
        oldest = self._checkpoints.needed
        for node, before in zip(self.nodes, self._rounds_at.get(oldest or 0, ()), strict=False):
            self._journal.prune(node.index, before)

    def _saved(self, number: int, boundaries: Sequence[Boundary]) -> SavedSimulation:
        nodes = [node.save(b.state, b.at, node.inbox.save()) for node, b in zip(self.nodes, boundaries, strict=True)]
        deliveries = [(e[0], e[2], e[3], _raw(e[4])) for e in sorted(self._events) if e[1] == _DELIVER]
        chain = self._chain.save() if self._chain else b""
        arrived, standings = [node.arrived for node in self.nodes], [node.company.standings for node in self.nodes]
        offsets = self._journal.offset, self._metrics_offset()
        whereabouts = [node.whereabouts() for node in self.nodes]
        shown = [[(round_, patches.encode(t, None)) for round_, t in b.shown.values()] for b in boundaries]
        return SavedSimulation(
            nodes, deliveries, arrived, standings, *offsets, chain, number, self._front, whereabouts, shown
        )

    def restore(self) -> int | None:
        """Goes back to the newest checkpoint; returns the metrics' offset it stands at, None if there is none.

        Raises CheckpointError or JournalError if what is there does not fit this run.
        """
        like = [self._engine.state(node.index) for node in self.nodes]
        if self._checkpoints is None or (found := self._checkpoints.newest(like, repair=True)) is None:
            self._journal.truncate(0)
            return None
        saved = msgspec.msgpack.decode(found.extra, type=SavedSimulation)
        self._engine.set_states(found.states)
        self._journal.truncate(saved.journal_offset)
        number = found.step if saved.number is None else saved.number
        self._last_checkpoint, self._started, self._damaged = number, True, found.damaged
        self._rounds_at = {found.step: [kept.round for kept in saved.nodes]}
        if self._chain:
            self._chain.restore(saved.chain)
        for at, receiver, sender, raw in saved.deliveries:
            said = raw if sender < 0 else open_envelope(raw)
            heapq.heappush(self._events, (at, _DELIVER, receiver, sender, said))
        for node, shown in zip(self.nodes, saved.shown, strict=False):
            every = [(round_, patches.apply(raw, None)) for round_, raw in shown]
            node.shown = {tensors_hash(tensors): (round_, tensors) for round_, tensors in every}
        for node, kept, arrived, standings in zip(self.nodes, saved.nodes, saved.arrived, saved.standings, strict=True):
            node.restore(kept)
            node.arrived, node.company.standings = arrived, standings
            node.latest = node.state, kept.at
            crossed = range(number, node.state.round // self._every + 1 if self._every else number + 1)
            node.boundaries = dict.fromkeys(crossed, Boundary(found.states[node.index], *node.latest, node.shown))
        self._front = saved.front
        for node, known in zip(self.nodes, saved.whereabouts, strict=False):  # versions before had none
            node.restore_whereabouts(known)
        replayed = [(node, *self._replay(node, kept.at)) for node, kept in zip(self.nodes, saved.nodes, strict=True)]
        # whoever was between two rounds last: as it begins, others may come and go
        for node, at, steps in sorted(replayed, key=lambda one: one[0].effect is None):
            if node.there:
                self._go_on(node, at, steps)
        return saved.metrics_offset

    def _replay(self, node: SimulatedNode, at: float) -> tuple[float, int]:
        """Feeds a node its journal since the checkpoint's boundary; returns when the last of it was, and its round.

        Only learning is done again: the weights of a boundary are in the checkpoint, later ones nowhere.
        """
        played = node.state.round
        for entry in self._journal.read(node.index, played):
            at = entry.at
            if isinstance(node.effect, Evaluate) and entry.kind == Evaluate.__name__:
                self._offer(node, decode_result(node.effect, entry.result))
            fed = node.feed(entry)
            if entry.kind in (BEGIN, Gather.__name__):
                node.stage_began = at
            if entry.kind == BEGIN:
                node.latest, node.before = (node.state, at), None
                self._cross(node, played, at)
            elif isinstance(fed.effect, Learn):
                self._run(Learn, {node.index: fed.effect})
            elif isinstance(fed.effect, Pin):
                self._pin(node)
            played = entry.round
        return at, played

    def _go_on(self, node: SimulatedNode, at: float, played: int) -> None:
        """Starts the effect that a node was waiting for, or its next round."""
        at, node.stage_began = max(at, node.came), max(node.stage_began, node.came)
        if node.effect is not None:
            self._start(node, at)
        else:
            node.before = None
            self._join(node)
            self._cross(node, played, at)
            self._begin(node, at)


def _raw(said: SignedRecord | bytes) -> bytes:
    """What travels: a node's record, which is opened once for all whom it reaches, or bytes of anyone's making."""
    return said.raw if isinstance(said, SignedRecord) else said
