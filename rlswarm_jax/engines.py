"""Nodes of one simulation that differ in their model, or in how they sample and learn: several engines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rlswarm_jax import qwen
from rlswarm_jax.engine import Engine
from rlswarm_jax.game.effects import Claimed, Learn, Metrics, Sample, Sampled
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.qwen.verdict import Replay

Found = TypeVar("Found")


class Engines:
    """As one `Engine` for all nodes. of: by node, the number of its engine; an engine has its nodes in order."""

    def __init__(self, engines: Sequence[Engine], of: Sequence[int]):
        self._engines = list(engines)
        self._places = [(one, of[:node].count(one)) for node, one in enumerate(of)]
        self.verifier, self.mixture = engines[0].verifier, engines[0].mixture

    def state(self, node: int) -> TrainState:
        one, place = self._places[node]
        return self._engines[one].state(place)

    def weights(self, node: int) -> qwen.Params:
        one, place = self._places[node]
        return self._engines[one].weights(place)

    def tensors(self, node: int) -> qwen.Tensors:
        one, place = self._places[node]
        return self._engines[one].tensors(place)

    def replay(self, node: int, tensors: qwen.Tensors | None, claimed: Sequence[Claimed]) -> list[Replay]:
        one, place = self._places[node]
        return self._engines[one].replay(place, tensors, claimed)

    def base_of(self, node: int) -> bytes:
        return self._engines[self._places[node][0]].base_of(self._places[node][1])

    def set_states(self, states: Sequence[TrainState]) -> None:
        for number, engine in enumerate(self._engines):
            own = [state for state, (one, _) in zip(states, self._places, strict=True) if one == number]
            engine.set_states(own)

    def evaluate_params(self, params: qwen.Params) -> Metrics:
        """By the first node's engine."""
        return self._engines[self._places[0][0]].evaluate_params(params)

    def compile(self) -> None:
        for engine in self._engines:
            engine.compile()

    def sample(self, requests: Mapping[int, Sample]) -> dict[int, list[list[Sampled]]]:
        return self._each(requests, lambda engine, own: engine.sample(own))

    def learn(self, requests: Mapping[int, Learn]) -> dict[int, Metrics]:
        return self._each(requests, lambda engine, own: engine.learn(own))

    def evaluate(self, nodes: Sequence[int]) -> dict[int, Metrics]:
        return self._each(dict.fromkeys(nodes), lambda engine, own: engine.evaluate(list(own)))

    def _each(self, asked: Mapping[int, Any], act: Callable[[Engine, dict], dict[int, Found]]) -> dict[int, Found]:
        """What each engine finds for its own nodes, in their places there."""
        found: dict[int, Found] = {}
        for number, engine in enumerate(self._engines):
            nodes = [node for node in asked if self._places[node][0] == number]
            if nodes:
                by_place = act(engine, {self._places[node][1]: asked[node] for node in nodes})
                found |= {node: by_place[self._places[node][1]] for node in nodes}
        return found
