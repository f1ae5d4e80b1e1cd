"""Drives the rounds of N nodes in one process: a virtual clock, a lossy network, one engine for all weights.

A discrete-event simulation. Effects take virtual time; those that need a model depend on their node's own state
alone, so all that are waiting are computed together, whatever their virtual time. Everything is a function of the
config and the seed, and a killed simulation goes on from its checkpoint and journal to the same bits.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import msgspec

from rlswarm_jax import parallel
from rlswarm_jax.audit import commit
from rlswarm_jax.chain.virtual import VirtualCoordinator
from rlswarm_jax.checkpoint import Best, Checkpoints
from rlswarm_jax.engine import Engine
from rlswarm_jax.game.chain import Moment
from rlswarm_jax.game.effects import (
    Commit,
    Effect,
    Evaluate,
    Gather,
    Hear,
    Learn,
    Metrics,
    Publish,
    Sample,
    Score,
    Verify,
    decode_result,
)
from rlswarm_jax.game.player import BEGIN, Player, RoundReport, SavedPlayer
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.game.rules import Game
from rlswarm_jax.grpo.learner import TrainState, state_hash
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Journal
from rlswarm_jax.qwen import Params
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.shelf import Slot
from rlswarm_jax.swarm.virtual import VirtualNetwork
from rlswarm_jax.swarm.waiting import Company, Standing, quorum_time, stage_end, still_to_speak

_DELIVER, _DONE, _DEADLINE = range(3)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Virtual seconds: what the effects take, and how long a stage waits for its peers at most (0: for ever).

    slowdown: factors on a node's own effects, by node index; nodes beyond its end have 1.
    """

    sample: float = 1.0
    learn: float = 1.0
    evaluate: float = 0.5
    deadline: float = 5.0
    slowdown: tuple[float, ...] = ()

    def of(self, node: int, effect: Effect) -> float:
        factor = self.slowdown[node] if node < len(self.slowdown) else 1.0
        return factor * {Sample: self.sample, Learn: self.learn, Evaluate: self.evaluate}[type(effect)]


@dataclasses.dataclass(frozen=True)
class _Boundary:
    """A node between two rounds; its state on the host, as that on the device is used up by the next update."""

    train_state: TrainState
    state: NodeState
    at: float


class _Node(Player):
    """boundaries: by number of the checkpoint, the node where it crossed its round. latest: state and time before
    its present one. before: its train state then, if it has learned since.

    stage_began: when it began to work on the stage. spoke: when it had done. arrived: when records came. company: of
    its peers.
    """

    def __init__(self, index: int, game: Game, identity: Identity, journal: Journal):
        super().__init__(index, game, identity, journal)
        self.boundaries: dict[int, _Boundary] = {}
        self.latest = NodeState(), 0.0
        self.before: TrainState | None = None
        self.stage_began = self.spoke = 0.0
        self.arrived: dict[Slot, float] = {}
        self.company = Company()


class _Saved(msgspec.Struct, array_like=True):
    """A simulation at one instant, besides the train states. deliveries: (at, receiver, sender, signed bytes).

    arrived, standings: each node's. chain: the coordinator, empty if there is none. number: of times that all nodes had
    crossed a checkpoint's round; None where the checkpoint itself is called so.
    """

    nodes: list[SavedPlayer]
    deliveries: list[tuple[float, int, int, bytes]]
    arrived: list[dict[Slot, float]]
    standings: list[dict[bytes, Standing]]
    journal_offset: int
    metrics_offset: int
    chain: bytes
    number: int | None = None


class Simulation:
    """N nodes and the events between them. `run` plays until all rounds are done or `should_stop` says so."""

    def __init__(
        self,
        games: Sequence[Game],
        identities: Sequence[Identity],
        engine: Engine,
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
            _Node(i, game, identity, journal) for i, (game, identity) in enumerate(zip(games, identities, strict=True))
        ]
        self._authors = frozenset(node.game.author for node in self.nodes)
        for node in self.nodes:
            node.inbox.favoured = self._authors
            node.company = Company(self._authors - {node.game.author})
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
            for node in self.nodes:
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
        return all(node.finished for node in self.nodes)

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
            _, said = rest
            if signed := node.inbox.offer(_raw(said), node.state.round):
                record = signed.record
                node.arrived[record.author, record.round, record.stage] = at
                if record.author in self._authors:
                    node.company.spoke(record.author, record.round, node.state.round)
            if isinstance(node.effect, Gather):
                self._gather(node, node.effect, at)
        elif what == _DEADLINE:
            if isinstance(node.effect, Gather) and rest == [node.effect.round, node.step]:
                self._gather(node, node.effect, at)
            elif isinstance(node.effect, Hear) and rest == [node.state.round, node.step]:
                self._complete(node, self._heard(), at)
        else:
            if index not in self._results:
                self._compute(type(node.effect), index)
            self._complete(node, self._results.pop(index), at)

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

    def _offer(self, node: _Node, found: Metrics) -> None:
        """The weights that were just evaluated may be the node's best so far."""
        if self._best:
            before = node.state.round + node.learned
            self._best[node.index].offer(before, found["accuracy"], parallel.fetch(self._engine.state(node.index)))

    # --- a node's round

    def _begin(self, node: _Node, at: float) -> None:
        node.latest, node.before = (node.state, at), None
        if not node.finished:
            node.begin(at)
            node.stage_began = at
            self._start(node, at)

    def _complete(self, node: _Node, result: Any, at: float) -> None:
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

    def _start(self, node: _Node, at: float) -> None:
        """Starts a node's effect; one without duration ends at once."""
        effect = node.effect
        if isinstance(effect, Verify):
            self._engine.verifier.begin(effect.items, effect.payers)
            self._complete(node, None, at)
        elif isinstance(effect, Score):
            self._complete(node, self._engine.verifier.score(effect.items, effect.payers), at)
        elif isinstance(effect, Publish):
            raw = seal(effect.record, node.identity)
            self._send(node.index, raw, at)
            self._complete(node, raw, at)
        elif isinstance(effect, Hear):
            heard = self._heard()
            if effect.beyond is None or heard[-1].round > effect.beyond:
                self._complete(node, heard, at)
            else:
                at += self._timing.deadline
                heapq.heappush(self._events, (at, _DEADLINE, node.index, node.state.round, node.step))
        elif isinstance(effect, Commit):
            assert self._chain
            self._chain.commit(node.game.author, effect.moment.round, commit.root(effect.work.records))
            self._complete(node, state_hash(self._engine.state(node.index), self._engine.base), at)
        elif isinstance(effect, Gather):
            node.spoke = at
            self._gather(node, effect, at)
        else:
            assert effect is not None
            self._waiting[type(effect)][node.index] = effect
            heapq.heappush(self._events, (at + self._timing.of(node.index, effect), _DONE, node.index))

    def _heard(self) -> list[Moment]:
        assert self._chain, "a game that hears a chain has one"
        return [Moment(*moment) for moment in self._chain.moments()]

    def _gather(self, node: _Node, effect: Gather, at: float) -> None:
        """Ends a stage if it is over, else looks again when it will be if nothing more comes.

        Waited for are the nodes that are not late; strangers, of whom anyone can make as many as they like, are not.
        With a chain they are not registered either, and so not heard.
        """
        began, own, inbox = node.stage_began, node.spoke - node.stage_began, node.inbox
        awaited = {author for author in node.company.told if node.company.earned(author)}
        missing = still_to_speak(awaited, inbox, effect.round, effect.stage)
        spoken = awaited & inbox.authors(effect.round, effect.stage)
        times = {a: max(0.0, node.arrived[a, effect.round, effect.stage] - began) for a in sorted(spoken)}
        heard = own, list(times.values()), len(missing | spoken)
        end = began + stage_end(*heard, self._timing.deadline)
        if missing and at < end:
            if end < math.inf:
                heapq.heappush(self._events, (end, _DEADLINE, node.index, effect.round, node.step))
            return
        if self._timing.deadline and (quorum := quorum_time(*heard)) < math.inf:
            node.company.heard(times, quorum)
            node.company.late(missing)  # where most are silent, it is the network that is
        node.stage_began = at
        node.arrived = {slot: when for slot, when in node.arrived.items() if slot in inbox.records}
        registered = self._authors.__contains__ if self._chain else lambda author: True
        self._complete(node, inbox.take(effect.round, effect.stage, registered), at)

    def _send(self, sender: int, raw: bytes, at: float) -> None:
        signed = open_envelope(raw)  # once: what is on its way is held
        for receiver, arrival in self._network.arrivals(sender, signed.hash, at).items():
            heapq.heappush(self._events, (arrival, _DELIVER, receiver, sender, signed))

    def _join(self, node: _Node) -> None:
        latest = {author: r for author, r in node.inbox.latest_rounds().items() if author in self._authors}
        node.join(latest, voters=len(self.nodes) - 1)

    # --- checkpoints

    def _cross(self, node: _Node, before: int, at: float) -> None:
        """Keeps the node as it is where it crosses a checkpoint's round."""
        if self._checkpoints is None or not self._every:
            return
        crossed = range(before // self._every + 1, node.state.round // self._every + 1)
        if crossed:
            node.boundaries |= dict.fromkeys(crossed, self._boundary(node, node.state, at))

    def _boundary(self, node: _Node, state: NodeState, at: float) -> _Boundary:
        return _Boundary(node.before or parallel.fetch(self._engine.state(node.index)), state, at)

    def _save_if_all_crossed(self) -> None:
        common = min(max(node.boundaries, default=0) for node in self.nodes)
        if common > self._last_checkpoint:
            self._save(common)

    def _save(self, number: int) -> None:
        self._write(number, [node.boundaries[number] for node in self.nodes])
        self._last_checkpoint = number
        for node in self.nodes:
            node.boundaries = {k: b for k, b in node.boundaries.items() if k >= number}

    def _write(self, number: int, boundaries: Sequence[_Boundary]) -> None:
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

    def _saved(self, number: int, boundaries: Sequence[_Boundary]) -> _Saved:
        nodes = [node.save(b.state, b.at, node.inbox.save()) for node, b in zip(self.nodes, boundaries, strict=True)]
        deliveries = [(e[0], e[2], e[3], _raw(e[4])) for e in sorted(self._events) if e[1] == _DELIVER]
        chain = self._chain.save() if self._chain else b""
        arrived, standings = [node.arrived for node in self.nodes], [node.company.standings for node in self.nodes]
        offsets = self._journal.offset, self._metrics_offset()
        return _Saved(nodes, deliveries, arrived, standings, *offsets, chain, number)

    def restore(self) -> int | None:
        """Goes back to the newest checkpoint; returns the metrics' offset it stands at, None if there is none.

        Raises CheckpointError or JournalError if what is there does not fit this run.
        """
        like = [self._engine.state(node.index) for node in self.nodes]
        if self._checkpoints is None or (found := self._checkpoints.newest(like, repair=True)) is None:
            self._journal.truncate(0)
            return None
        saved = msgspec.msgpack.decode(found.extra, type=_Saved)
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
        for node, kept, arrived, standings in zip(self.nodes, saved.nodes, saved.arrived, saved.standings, strict=True):
            node.restore(kept)
            node.arrived, node.company.standings = arrived, standings
            node.latest = node.state, kept.at
            crossed = range(number, node.state.round // self._every + 1 if self._every else number + 1)
            node.boundaries = dict.fromkeys(crossed, _Boundary(found.states[node.index], *node.latest))
        for node, kept in zip(self.nodes, saved.nodes, strict=True):
            self._replay(node, kept.at)
        return saved.metrics_offset

    def _replay(self, node: _Node, at: float) -> None:
        """Feeds a node its journal since the checkpoint's boundary, then starts the effect it was waiting for.

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
            played = entry.round
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
