"""Drives the rounds of N nodes in one process: a virtual clock, a lossy network, one engine for all weights.

A discrete-event simulation. Effects take virtual time; those that need a model depend on their node's own state
alone, so all that are waiting are computed together, whatever their virtual time. Everything is a function of the
config and the seed, and a killed simulation goes on from its checkpoint and journal to the same bits.
"""

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.engine import Engine
from rlswarm_jax.game.effects import (
    Effect,
    Evaluate,
    Gather,
    Learn,
    Metrics,
    Publish,
    Sample,
    Score,
    decode_result,
    encode_result,
)
from rlswarm_jax.game.round import STAGES, Game, NodeState, Round, next_round, play_round
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Entry, Journal, JournalError
from rlswarm_jax.qwen import Params
from rlswarm_jax.records.envelope import open_envelope, seal
from rlswarm_jax.records.inbox import Inbox, Slot
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.swarm.virtual import VirtualNetwork

BEGIN = "begin"  # the journal's first row of a round: which round follows which is a decision too
_DELIVER, _DONE, _DEADLINE = range(3)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Virtual seconds: what the effects take, and how long a stage waits for its peers.

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
class RoundReport:
    """What is told about a node's finished round. at: virtual seconds."""

    node: int
    round: int
    at: float
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class _Boundary:
    """A node between two rounds."""

    train_state: TrainState
    state: NodeState
    at: float


@dataclasses.dataclass
class _Node:
    index: int
    game: Game
    identity: Identity
    inbox: Inbox
    state: NodeState
    generator: Round | None = None
    effect: Effect | None = None
    step: int = 0
    boundaries: dict[int, _Boundary] = dataclasses.field(default_factory=dict)


class _SavedNode(msgspec.Struct, array_like=True):
    round: int
    policy_version: int
    pool: bytes
    at: float
    held: list[bytes]  # SHA-256 of envelopes
    taken: list[Slot]
    evidence: list[tuple[Slot, bytes, bytes]]
    counts: dict[str, int]


class _Saved(msgspec.Struct, array_like=True):
    """A simulation at one instant, besides the train states. deliveries: (at, receiver, sender, envelope hash)."""

    nodes: list[_SavedNode]
    deliveries: list[tuple[float, int, int, bytes]]
    envelopes: dict[bytes, bytes]
    journal_offset: int
    metrics_offset: int


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
    ):
        self.nodes = [
            _Node(i, game, identity, Inbox(game.swarm, game.author, game.max_staleness, STAGES), NodeState())
            for i, (game, identity) in enumerate(zip(games, identities, strict=True))
        ]
        self._engine, self._network, self._timing, self._journal = engine, network, timing, journal
        self._on_round, self._metrics_offset = on_round, metrics_offset
        self._checkpoints, self._every = checkpoints, checkpoint_every
        self._last_checkpoint = 0
        self._envelopes: dict[bytes, bytes] = {}  # by SHA-256, while they are on their way
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

    @property
    def finished(self) -> bool:
        return all(node.state.round >= node.game.rounds for node in self.nodes)

    def weights(self, node: int) -> Params:
        """A node's parameters as they are now."""
        return self._engine.state(node).params

    def inject(self, raw: bytes, receiver: int, at: float) -> None:
        """Lets bytes of anyone's making reach a node at a time: what a hostile peer can do."""
        envelope_hash = hashlib.sha256(raw).digest()
        self._envelopes[envelope_hash] = raw
        heapq.heappush(self._events, (at, _DELIVER, receiver, -1, envelope_hash))

    # --- events: (at, what, node, ...), ordered by their content alone

    def _process(self, event: tuple) -> None:
        at, what, index, *rest = event
        node = self.nodes[index]
        if what == _DELIVER:
            _, envelope_hash = rest
            node.inbox.offer(self._envelopes[envelope_hash], node.state.round)
            if isinstance(node.effect, Gather) and self._gathered(node, node.effect):
                self._complete(node, node.effect, node.inbox.take(node.effect.round), at)
        elif what == _DEADLINE:
            if isinstance(node.effect, Gather) and rest == [node.effect.round, node.step]:
                self._complete(node, node.effect, node.inbox.take(node.effect.round), at)
        else:
            effect = node.effect
            assert isinstance(effect, Sample | Learn | Evaluate)
            if index not in self._results:
                self._compute(type(effect))
            self._complete(node, effect, self._results.pop(index), at)

    def _compute(self, kind: type) -> None:
        waiting, self._waiting[kind] = self._waiting[kind], {}
        self._results |= self._run(kind, waiting)

    def _run(self, kind: type, requests: Mapping[int, Any]) -> Mapping[int, Any]:
        if kind is Sample:
            return self._engine.sample(requests)
        if kind is Learn:
            return self._engine.learn(requests)
        return self._engine.evaluate(list(requests))

    # --- a node's round

    def _begin(self, node: _Node, at: float) -> None:
        if node.state.round >= node.game.rounds:
            return
        self._journal.write(Entry(node.index, node.state.round, 0, BEGIN, b"", at))
        node.generator, node.step = play_round(node.game, node.state), 1
        self._advance(node, None, at)

    def _complete(self, node: _Node, effect: Effect, result: Any, at: float) -> None:
        self._write(node, effect, result, at)
        self._advance(node, None if isinstance(effect, Publish) else result, at)

    def _write(self, node: _Node, effect: Effect, result: Any, at: float) -> None:
        raw = encode_result(effect, result)
        self._journal.write(Entry(node.index, node.state.round, node.step, type(effect).__name__, raw, at))
        node.step += 1

    def _advance(self, node: _Node, result: Any, at: float) -> None:
        """Resumes a round with an effect's result and starts the next effect; effects without duration end at once."""
        assert node.generator is not None
        node.effect = None
        try:
            effect = node.generator.send(result)
        except StopIteration as stop:
            state, metrics = stop.value
            self._finish_round(node, state, metrics, at)
            return
        self._start(node, effect, at)

    def _start(self, node: _Node, effect: Effect, at: float) -> None:
        node.effect = effect
        if isinstance(effect, Score):
            self._complete(node, effect, [node.game.mixture.score(*item) for item in effect.items], at)
        elif isinstance(effect, Publish):
            raw = seal(effect.record, node.identity)
            self._send(node.index, raw, at)
            self._complete(node, effect, raw, at)
        elif isinstance(effect, Gather):
            if self._gathered(node, effect):
                self._complete(node, effect, node.inbox.take(effect.round), at)
            else:
                heapq.heappush(
                    self._events, (at + self._timing.deadline, _DEADLINE, node.index, effect.round, node.step)
                )
        else:
            self._waiting[type(effect)][node.index] = effect
            heapq.heappush(self._events, (at + self._timing.of(node.index, effect), _DONE, node.index))

    def _gathered(self, node: _Node, effect: Gather) -> bool:
        """Whether all peers have spoken; strangers, of whom anyone can make as many as they like, don't count."""
        spoken = node.inbox.authors(effect.round, effect.stage)
        return all(peer.game.author in spoken for peer in self.nodes if peer is not node)

    def _send(self, sender: int, raw: bytes, at: float) -> None:
        envelope_hash = hashlib.sha256(raw).digest()
        self._envelopes[envelope_hash] = raw
        for receiver, arrival in self._network.arrivals(sender, open_envelope(raw).hash, at).items():
            heapq.heappush(self._events, (arrival, _DELIVER, receiver, sender, envelope_hash))

    def _finish_round(self, node: _Node, state: NodeState, metrics: Metrics, at: float) -> None:
        rejected = {cause: n for cause, n in sorted(node.inbox.counts.items()) if cause != "received"}
        metrics |= {f"records/rejected/{cause}": float(n) for cause, n in rejected.items()}
        metrics["records/equivocations"] = float(len(node.inbox.evidence))
        node.inbox.counts.clear()
        node.inbox.expire(state.round)
        self._on_round(RoundReport(node.index, node.state.round, at, metrics))
        before, node.state = node.state.round, self._join(node, state)
        self._cross(node, before, at)
        self._save_if_all_crossed()
        self._begin(node, at)

    def _join(self, node: _Node, state: NodeState) -> NodeState:
        peers = {peer.game.author for peer in self.nodes}
        latest = {author: r for author, r in node.inbox.latest_rounds().items() if author in peers}
        return next_round(state, latest, quorum=len(self.nodes) // 2)

    # --- checkpoints

    def _cross(self, node: _Node, before: int, at: float) -> None:
        """Keeps the node as it is where it crosses a checkpoint's round."""
        if self._checkpoints is None or not self._every:
            return
        crossed = range(before // self._every + 1, node.state.round // self._every + 1)
        if crossed:
            boundary = _Boundary(self._engine.state(node.index), node.state, at)
            node.boundaries |= dict.fromkeys(crossed, boundary)

    def _save_if_all_crossed(self) -> None:
        common = min(max(node.boundaries, default=0) for node in self.nodes)
        if common > self._last_checkpoint:
            self._save(common)

    def _save(self, number: int) -> None:
        assert self._checkpoints is not None
        boundaries = [node.boundaries[number] for node in self.nodes]
        extra = msgspec.msgpack.encode(self._saved(boundaries))
        self._checkpoints.save(number, [b.train_state for b in boundaries], extra)
        previous, self._last_checkpoint = self._last_checkpoint, number
        for node in self.nodes:
            # the checkpoint before this one may still be the newest complete one if the process is killed now
            if previous in node.boundaries:
                self._journal.prune(node.index, node.boundaries[previous].state.round)
            node.boundaries = {k: b for k, b in node.boundaries.items() if k >= number}

    def _saved(self, boundaries: Sequence[_Boundary]) -> _Saved:
        envelopes: dict[bytes, bytes] = {}

        def keep(raw: bytes) -> bytes:
            envelope_hash = hashlib.sha256(raw).digest()
            envelopes[envelope_hash] = raw
            return envelope_hash

        nodes = [
            _SavedNode(
                round=boundary.state.round,
                policy_version=boundary.state.policy_version,
                pool=boundary.state.pool.to_bytes(),
                at=boundary.at,
                held=[keep(signed.raw) for signed in node.inbox.records.values()],
                taken=sorted(node.inbox.taken),
                evidence=[(slot, first, second) for slot, (first, second) in sorted(node.inbox.evidence.items())],
                counts=dict(node.inbox.counts),
            )
            for node, boundary in zip(self.nodes, boundaries, strict=True)
        ]
        deliveries = [
            (event[0], event[2], event[3], keep(self._envelopes[event[4]]))
            for event in sorted(self._events)
            if event[1] == _DELIVER
        ]
        self._envelopes = {h: raw for h, raw in envelopes.items() if h in {d[3] for d in deliveries}}
        return _Saved(nodes, deliveries, envelopes, self._journal.offset, self._metrics_offset())

    def restore(self) -> int | None:
        """Goes back to the newest checkpoint; returns the metrics' offset it stands at, None if there is none.

        Raises CheckpointError or JournalError if what is there does not fit this run.
        """
        if self._checkpoints is None or (number := self._checkpoints.latest) is None:
            self._journal.truncate(0)
            return None
        states, extra = self._checkpoints.restore(number, [self._engine.state(n.index) for n in self.nodes])
        saved = msgspec.msgpack.decode(extra, type=_Saved)
        self._engine.set_states(states)
        self._journal.truncate(saved.journal_offset)
        self._last_checkpoint, self._started = number, True
        for at, receiver, sender, envelope_hash in saved.deliveries:
            self._envelopes[envelope_hash] = saved.envelopes[envelope_hash]
            heapq.heappush(self._events, (at, _DELIVER, receiver, sender, envelope_hash))
        for node, kept in zip(self.nodes, saved.nodes, strict=True):
            node.state = NodeState(kept.round, kept.policy_version, Pool.from_bytes(kept.pool))
            node.boundaries[number] = _Boundary(states[node.index], node.state, kept.at)
            signed = [open_envelope(saved.envelopes[envelope_hash]) for envelope_hash in kept.held]
            node.inbox.records = {(s.record.author, s.record.round, s.record.stage): s for s in signed}
            node.inbox.taken = set(kept.taken)
            node.inbox.evidence = {slot: (first, second) for slot, first, second in kept.evidence}
            node.inbox.counts = collections.Counter(kept.counts)
        for node, kept in zip(self.nodes, saved.nodes, strict=True):
            self._replay(node, kept.at)
        return saved.metrics_offset

    def _replay(self, node: _Node, at: float) -> None:
        """Feeds a node its journal since the checkpoint's boundary, then starts the effect it was waiting for.

        Only learning is done again: the weights of a boundary are in the checkpoint, later ones nowhere.
        """
        effect: Effect | None = None
        before = node.state.round
        for entry in self._journal.read(node.index, node.state.round):
            at = entry.at
            if entry.kind == BEGIN:
                node.state = dataclasses.replace(node.state, round=entry.round)
                self._cross(node, before, at)
                node.generator, node.step, result = play_round(node.game, node.state), 1, None
            else:
                if effect is None or entry.kind != type(effect).__name__ or entry.step != node.step:
                    raise JournalError(f"node {node.index} round {entry.round}: the journal is of another run.")
                result = decode_result(effect, entry.result)
                if isinstance(effect, Learn):
                    self._run(Learn, {node.index: effect})
                node.step += 1
            assert node.generator is not None
            try:
                effect = node.generator.send(result)
            except StopIteration as stop:
                before, effect = node.state.round, None
                node.state, _ = stop.value
        if effect is not None:
            self._start(node, effect, at)
        else:
            node.state = self._join(node, node.state)
            self._cross(node, before, at)
            self._begin(node, at)
