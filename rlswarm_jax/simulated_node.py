"""A node of a simulated swarm: its time, where it is between rounds, and what a checkpoint has of it."""

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec

from rlswarm_jax.game.effects import Effect, Evaluate, Learn, Sample
from rlswarm_jax.game.player import Player, SavedPlayer
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.game.rules import Game
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Journal
from rlswarm_jax.qwen import Tensors
from rlswarm_jax.records.shelf import Slot
from rlswarm_jax.swarm.waiting import Company, Standing


@dataclasses.dataclass(frozen=True)
class Timing:
    """Virtual seconds: what the effects take, and how long a stage waits for its peers at most (0: for ever).

    slowdown: factors on a node's own effects, by node index; nodes beyond its end have 1. present: of nodes that are
    not there all the time, from which round of the swarm on they are, and in which they are killed: each time.
    """

    sample: float = 1.0
    learn: float = 1.0
    evaluate: float = 0.5
    deadline: float = 5.0
    slowdown: tuple[float, ...] = ()
    present: Mapping[int, Sequence[tuple[int, int]]] = dataclasses.field(default_factory=dict)

    def is_there(self, node: int, round_: int) -> bool:
        """Whether a node is there while the first of the swarm are in a round."""
        return node not in self.present or any(start <= round_ < end for start, end in self.present[node])

    def of(self, node: int, effect: Effect) -> float:
        factor = self.slowdown[node] if node < len(self.slowdown) else 1.0
        return factor * {Sample: self.sample, Learn: self.learn, Evaluate: self.evaluate}[type(effect)]


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A node between two rounds; its state on the host, as that on the device is used up by the next update."""

    train_state: TrainState
    state: NodeState
    at: float
    shown: Mapping[bytes, tuple[int, Tensors]]


class SimulatedNode(Player):
    """boundaries: by number of the checkpoint, the node where it crossed its round. latest: state and time before
    its present one. before: its train state then, if it has learned since.

    stage_began: when it began to work on the stage. spoke: when it had done. arrived: when records came. company: of
    its peers. read: by round, the authors that were drawn to be read. missing: who is still to speak in the stage.
    there: whether it runs. life: how often it was started and killed. came: when, at last. gone: peers that went and
    were not heard since. free: when all that it sent is out. said: in its last round, signed. shown: the weights of its
    latest rounds by name, each with its round.
    """

    def __init__(self, index: int, game: Game, identity: Identity, journal: Journal):
        super().__init__(index, game, identity, journal)
        self.boundaries: dict[int, Boundary] = {}
        self.latest = NodeState(), 0.0
        self.before: TrainState | None = None
        self.stage_began = self.spoke = 0.0
        self.arrived: dict[Slot, float] = {}
        self.company = Company()
        self.read: dict[int, frozenset[bytes]] = {}
        self.missing: set[bytes] = set()
        self.there, self.life, self.came, self.free = False, 0, 0.0, 0.0
        self.gone: set[bytes] = set()
        self.said: tuple[int, list[bytes]] = (0, [])
        self.shown: dict[bytes, tuple[int, Tensors]] = {}

    def whereabouts(self) -> "Whereabouts":
        told, gone, read = sorted(self.company.told), sorted(self.gone), sorted(self.read.items())
        drawn = [(round_, sorted(authors)) for round_, authors in read]
        return Whereabouts(self.there, self.life, self.came, self.free, told, gone, drawn, self.said)

    def restore_whereabouts(self, saved: "Whereabouts") -> None:
        self.there, self.life, self.came, self.free = saved.there, saved.life, saved.came, saved.free
        self.said = saved.said
        self.company.told, self.gone = frozenset(saved.told), set(saved.gone)
        self.read = {round_: frozenset(authors) for round_, authors in saved.read}


class Whereabouts(msgspec.Struct, array_like=True):
    """Of a node in a checkpoint: see `SimulatedNode`. told: of whom, when it was started."""

    there: bool
    life: int
    came: float
    free: float
    told: list[bytes]
    gone: list[bytes]
    read: list[tuple[int, list[bytes]]]
    said: tuple[int, list[bytes]]


class SavedSimulation(msgspec.Struct, array_like=True):
    """A simulation at one instant, besides the train states. deliveries: (at, receiver, sender, signed bytes).

    arrived, standings: each node's. chain: the coordinator, empty if there is none. number: of times that all nodes had
    crossed a checkpoint's round; None where the checkpoint itself is called so. front: the round of the first node.
    shown: each node's weights that others may ask for, with their rounds.
    """

    nodes: list[SavedPlayer]
    deliveries: list[tuple[float, int, int, bytes]]
    arrived: list[dict[Slot, float]]
    standings: list[dict[bytes, Standing]]
    journal_offset: int
    metrics_offset: int
    chain: bytes
    number: int | None = None
    front: int = -1
    whereabouts: list[Whereabouts] = []
    shown: list[list[tuple[int, bytes]]] = []
