"""A simulated swarm whose models are tables: real rounds, network and journal, and no compilation."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from rlswarm_jax.game.rules import Game
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.journal import Journal
from rlswarm_jax.simulate import Simulation
from rlswarm_jax.simulated_node import Timing
from rlswarm_jax.swarm.virtual import VirtualNetwork
from rlswarm_jax.tasks.verifier import Verifier
from tests.game.hand_driver import TASKS, Speaker, answer, make_game, mixture


class Engines:
    """A table for each node, whose weights are a digest of all that it learned, in order."""

    def __init__(self, nodes: int):
        self.verifier, self.simulation = Verifier(TASKS, mixture()), None
        self.digests = [np.zeros(32, np.uint8)] * nodes

    def state(self, node):
        return TrainState({"digest": self.digests[node]}, (), np.zeros((), np.int32))

    def set_states(self, states):
        self.digests = [np.asarray(state.params["digest"]) for state in states]

    def tensors(self, node):
        return {}  # what a record says, and when it comes, does not depend on what was learned

    def sample(self, requests):
        nodes = self.simulation.nodes
        return {
            n: answer(nodes[n].game, nodes[n].state, effect, (), Speaker(), nodes[n].identity)
            for n, effect in requests.items()
        }

    def learn(self, requests):
        for n, effect in requests.items():
            raw = self.digests[n].tobytes() + msgspec.msgpack.encode(effect.groups)
            self.digests[n] = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8)
        return {n: {"loss": 0.25, "updates": 1.0} for n in requests}

    def evaluate(self, nodes):
        return {n: {"accuracy": 0.5} for n in nodes}


def simulation(
    path,
    timing: Timing,
    nodes: int = 4,
    *,
    game: Callable[..., Game] = make_game,
    own: Mapping[int, Mapping[str, Any]] | None = None,
    reports: list,
    network: Mapping[str, Any] | None = None,
    **options,
) -> Simulation:
    """path: of the journal. game: of an identity. own: fields of some nodes' games. reports: to which is added."""
    keys: Sequence[Identity] = [simulated(11, index) for index in range(nodes)]
    games = [dataclasses.replace(game(one), **(own or {}).get(n, {})) for n, one in enumerate(keys)]
    engines, virtual = Engines(nodes), VirtualNetwork(5, nodes, **network or {})
    made = Simulation(games, keys, engines, virtual, timing, Journal(path), reports.append, **options)
    engines.simulation = made
    return made
