"""Fulfils the effects that need a model: Sample, Learn and Evaluate, for one node or for the nodes of a simulation.

Nodes learn one after the other. They sample so, too, through the executables that a live node runs, with fixed tiles
in exact mode, so that every bit depends on that node alone; or *stacked*: their weights on a leading axis W, and one
executable for all, which agrees to rounding (`benchmarks/simulate.py` measures how closely, and how much faster it is).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlswarm_jax import parallel, qwen, randomness
from rlswarm_jax.game.effects import Learn, Metrics, Sample, Sampled
from rlswarm_jax.game.prompts import PromptFormat
from rlswarm_jax.grpo import learner, tiles
from rlswarm_jax.grpo.advantages import group_advantages
from rlswarm_jax.qwen import model, sampling
from rlswarm_jax.qwen.draw import GREEDY, WHOLE, Draw
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.tasks import Problem
from rlswarm_jax.tasks.verifier import Verifier

LEAST_SLOTS = 96  # of a tile's prompts: below, padding costs less than compiling once more
NONFINITE_IN_A_ROW = 3  # updates left out, one after the other, after which a node stops


class DivergedError(RuntimeError):
    """A node's gradients are not finite any more, round after round."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How requests become arrays.

    max_prompts: the most that a node ever samples from at once. rows: completions computed at a time (0: all), on each
    device of those that hold whole weights. microbatch_rows: the same of those learned from (0: by their tokens).
    dtype, kv_dtype: of the weights and of the key/value cache while sampling; weights are cast once for each update.
    held_out_rows: the same as `rows` for held-out problems. evaluation: what is cut off the distribution there, if the
    temperature is not 0.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    group_size: int
    max_prompts: int
    temperature: float
    exact: bool
    exact_rows: int
    held_out_problems: int
    held_out_rows: int
    positive_only_external: bool
    positive_only_local: bool
    external_correction: Literal["reencode", "behaviour"]
    advantage_scale: Literal["std", "none"]
    updates_per_round: int
    rows: int = 0
    microbatch_rows: int = 0
    dtype: str = "float32"
    kv_dtype: str = "float32"
    evaluation_temperature: float = GREEDY
    evaluation: Draw = WHOLE


class Engine:
    """The weights of `num_nodes` nodes, which start equal, and what is done with them."""

    def __init__(
        self,
        policy: qwen.Policy,
        verifier: Verifier,
        prompt_format: PromptFormat,
        config: EngineConfig,
        learner_config: learner.LearnerConfig,
        num_nodes: int,
        devices: parallel.DeviceConfig | None = None,
        jit: Callable[..., Callable] = jax.jit,
    ):
        self.verifier, self.mixture = verifier, verifier.mixture
        self.prompt_format, self._tokenizer = prompt_format, policy.tokenizer
        self.config, self._learner_config, self.num_nodes = config, learner_config, num_nodes
        self.stacked = num_nodes > 1 and not config.exact
        devices = devices or parallel.DeviceConfig()
        mesh = parallel.make_mesh(jax.devices(), devices.fsdp, devices.tensor)  # of all processes: they are one node
        if self.stacked and parallel.is_sharded(mesh):
            raise ValueError("the weights of nodes that are stacked are not split: fsdp and tensor must be 1.")
        self._mesh = None if self.stacked or mesh.size == 1 else mesh
        self._shards = parallel.row_shards(self._mesh)
        jit = jit if self._mesh is None else jax.jit
        on, state = (self._mesh, devices.backend), learner.init_state(policy.params, learner_config, self._mesh)
        most = config.max_prompt_tokens + config.max_new_tokens
        self._shapes = tiles.shapes(most, config.max_new_tokens, config.microbatch_rows, self._shards)
        self._states = [state] * num_nodes
        self._nonfinite = [0] * num_nodes  # updates left out since the last that was made

        def make_sampler(temperature, how, rows):
            sample = sampling.make_sampler(
                policy.config,
                max_new_tokens=config.max_new_tokens,
                temperature=temperature,
                how=how,
                rows=0 if config.exact else rows,
                kv_dtype=config.kv_dtype,
                over_nodes=self.stacked,
                jit=jit,
            )
            return sample if self._mesh is None else parallel.split(sample, *on)

        self._sample = make_sampler(config.temperature, Draw(), config.rows)
        self._evaluate = make_sampler(config.evaluation_temperature, config.evaluation, config.held_out_rows)
        self._cast_params: dict[int, qwen.Params] = {}  # of the weights that stand
        self._step = learner.make_train_step(policy.config, learner_config, *on, jit=jit)
        self._logprobs = learner.make_logprobs(policy.config, learner_config, *on)
        self._held_out = self.mixture.held_out(config.held_out_problems)
        self._held_out_prompts = [prompt_format.encode(p, policy.tokenizer) for p in self._held_out]

    def state(self, node: int) -> learner.TrainState:
        return self._states[node]

    def set_states(self, states: Sequence[learner.TrainState]) -> None:
        self._states = [parallel.place(one, self._mesh) if self._mesh else _uncommitted(one) for one in states]
        self._nonfinite = [0] * self.num_nodes
        self._cast_params.clear()

    def evaluate_params(self, params: qwen.Params) -> Metrics:
        """What `evaluate` would find for a node with these weights."""
        own = self._states
        self.set_states([dataclasses.replace(state, params=params) for state in own])
        try:
            return self.evaluate([0])[0]
        finally:
            self._states = own
            self._cast_params.clear()

    def compile(self, prompts: Sequence[int]) -> None:
        """Compiles what a round needs whose stages have so many prompts, ahead of the first one; changes nothing.

        On a CPU two at a time; elsewhere a device's memory may not be enough, or devices must meet in the same order.
        """
        typical = max(self._held_out_prompts, key=len)

        def sample(count: int) -> None:
            keys_PGM = np.zeros((count, self.config.group_size, 2), np.uint32)
            self.sample({node: Sample([typical] * count, keys_PGM) for node in range(self.num_nodes)})

        def step(shape: tiles.Shape) -> None:
            self._step(self._states[0], tiles.tile([], shape), 0.0)

        def evaluate() -> None:
            _, tile = next(self._held_out_tiles())
            self._run_tiles(self._evaluate, dict.fromkeys(range(self.num_nodes), tile))

        counts = [self.config.max_prompts] if self.stacked else dict.fromkeys(prompts)
        work = [evaluate, *(partial(sample, count) for count in counts), *(partial(step, one) for one in self._shapes)]
        for node in range(1 if self.stacked else self.num_nodes):
            self._sampling_params(node)  # cast once
        with ThreadPoolExecutor(2 if jax.default_backend() == "cpu" and self._mesh is None else 1) as pool:
            list(pool.map(lambda run: run(), work))
        self._step(self._states[0], 2 * [tiles.tile([], self._shapes[0])], 0.0)  # and the sum over tiles

    def sample(self, requests: Mapping[int, Sample]) -> dict[int, list[list[Sampled]]]:
        """Completions of every node's prompts."""
        if self.config.exact:
            outs = {
                node: sampling.sample_exact(
                    self._sample,
                    self._sampling_params(node),
                    request.prompts,
                    request.keys_PGM,
                    prompt_slots=self.config.max_prompt_tokens,
                    rows=self.config.exact_rows * self._shards,  # so many on each device
                )
                for node, request in requests.items()
            }
        else:
            slots = self._slots([prompt for request in requests.values() for prompt in request.prompts])
            # one size for nodes that are stacked, or its bits would depend on which stage a node's neighbours are in
            least = self.config.max_prompts if self.stacked else 0
            sizes = {node: max(least, len(request.prompts)) for node, request in requests.items()}
            asked = {node: self._tile(r.prompts, r.keys_PGM, slots, sizes[node]) for node, r in requests.items()}
            outs = self._run_tiles(self._sample, asked)
        return {node: self._by_prompt(out)[: len(requests[node].prompts)] for node, out in outs.items()}

    def learn(self, requests: Mapping[int, Learn]) -> dict[int, Metrics]:
        """Takes the gradient on every node's groups; nothing else changes the weights.

        A gradient that is not finite is left out, and counted. Raises DivergedError if that happens
        `NONFINITE_IN_A_ROW` times, one after the other.
        """
        found = {node: self._learn(node, request) for node, request in requests.items()}
        self._cast_params.clear()
        return found

    def _learn(self, node: int, request: Learn) -> Metrics:
        rows = self.rows(request.groups)
        parts = tiles.tiles(rows, self._shapes)
        if self.config.updates_per_round > 1:
            parts = [self._with_old_logprobs(node, part) for part in parts]
        rate, found = learner.learning_rate(self._learner_config, request.round), []
        for _ in range(self.config.updates_per_round):
            self._states[node], metrics = self._step(self._states[node], parts, rate)
            found.append({name: float(value) for name, value in jax.device_get(metrics).items()})
            self._watch(node, rows, found[-1])
        external = sum(row.external for row in rows)
        return _mean(found) | {"rows_external": float(external), "rows_local": float(len(rows) - external)}

    def evaluate(self, nodes: Sequence[int]) -> dict[int, Metrics]:
        """Held-out accuracy on problems common to all nodes, by greedy decoding unless the config says otherwise.

        If it samples, then with the same noise each time: what differs between nodes and rounds are the weights.
        """
        answers: dict[int, list[tuple[Problem, str]]] = {node: [] for node in nodes}
        for part, tile in self._held_out_tiles():
            for node, out in self._run_tiles(self._evaluate, dict.fromkeys(nodes, tile)).items():
                for problem, (sampled,) in zip(self._held_out[part], self._by_prompt(out), strict=False):
                    answers[node].append((problem, self.prompt_format.answer(sampled.text)))
                self.verifier.begin(answers[node][part.start :])  # while the device goes on
        return {node: self._accuracy(self.verifier.score(found).scores) for node, found in answers.items()}

    def _held_out_tiles(self) -> Iterator[tuple[slice, sampling.Tile]]:
        """Of one shape, and which problems are in each."""
        prompts = self._held_out_prompts
        keys_P1M = np.array([[randomness.key_data("eval", "held-out", p)] for p in range(len(prompts))])
        waiting = 1 if self.config.exact else sampling.WAITING
        size = min(len(prompts), self.config.held_out_rows * waiting) * self._shards
        size = size if self.config.exact else min(len(prompts), size)
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            yield part, self._tile(prompts[part], keys_P1M[part], self._slots(prompts), size)

    def rows(self, groups: Sequence[ScoredGroup]) -> list[tiles.Row]:
        """The completions that are learned from.

        Those without a positive advantage are left out where the config says so. A peer's log-probs are used under
        external_correction="behaviour"; else its samples are taken to be on-policy.
        """
        config, found = self.config, []
        for group in groups:
            advantages_1G = group_advantages(np.array([group.rewards], np.float32), scale=config.advantage_scale)
            advantages_G = np.float32(group.weight) * np.asarray(advantages_1G)[0]
            positive_only = config.positive_only_external if group.external else config.positive_only_local
            correct = not group.external or config.external_correction == "behaviour"
            known = group.logprobs if correct and group.logprobs is not None else [None] * len(group.tokens)
            for completion, advantage, logprobs in zip(group.tokens, advantages_G.tolist(), known, strict=True):
                if not (positive_only and advantage <= 0):
                    found.append(tiles.Row(group.prompt, completion, advantage, logprobs, group.external))
        return found

    def _with_old_logprobs(self, node: int, batch: learner.Batch) -> learner.Batch:
        """With more than one update a round, "on-policy" means the policy before the first of them."""
        logprobs_BC = np.asarray(self._logprobs(self._states[node].params, batch))
        old_BC = np.where(batch.old_known_B[:, None], batch.old_logprobs_BC, logprobs_BC)
        return dataclasses.replace(batch, old_logprobs_BC=old_BC, old_known_B=np.ones_like(batch.old_known_B))

    def _slots(self, prompts: Sequence[Sequence[int]]) -> int:
        """Prompt slots of a tile: exact mode has one width, else there are a few, so that short prompts cost less."""
        most = self.config.max_prompt_tokens
        return most if self.config.exact else min(most, sampling.bucket(max(LEAST_SLOTS, *map(len, prompts))))

    def _whole_shards(self, size: int) -> int:
        """As many rows at least, as many for each device."""
        return -(-size // self._shards) * self._shards

    def _tile(self, prompts: Sequence[Sequence[int]], keys_PGM: np.ndarray, slots: int, size: int) -> sampling.Tile:
        return sampling.make_tile(prompts, keys_PGM, prompt_slots=slots, num_prompts=self._whole_shards(size))

    def _sampling_params(self, node: int) -> qwen.Params:
        """A node's weights (all nodes' where they are stacked) in the dtype that is sampled with."""
        if node not in self._cast_params:
            params = _stack([one.params for one in self._states]) if self.stacked else self._states[node].params
            rows = self.config.group_size  # at least, so that the layout is one for all
            self._cast_params[node] = model.prepare(params, self.config.dtype, rows)
        return self._cast_params[node]

    def _run_tiles(self, sample, of: Mapping[int, sampling.Tile]) -> dict[int, sampling.Completions]:
        if not self.stacked:
            return {node: jax.device_get(sample(self._sampling_params(node), tile)) for node, tile in of.items()}
        filler = jax.tree.map(np.zeros_like, next(iter(of.values())))
        filler = dataclasses.replace(filler, prompt_lengths_P=np.ones_like(filler.prompt_lengths_P))
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *[of.get(n, filler) for n in range(self.num_nodes)])
        out = jax.device_get(sample(self._sampling_params(0), stacked))
        return {node: jax.tree.map(lambda x, n=node: x[n], out) for node in of}

    def _watch(self, node: int, rows: Sequence[tiles.Row], metrics: Metrics) -> None:
        """Raises DivergedError, with what is wrong as far as it can be seen."""
        if metrics["updates"]:
            self._nonfinite[node] = 0
        self._nonfinite[node] += int(metrics["nonfinite"])
        if self._nonfinite[node] < NONFINITE_IN_A_ROW:
            return
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(parallel.fetch(self.state(node).params))):
            why = "the weights themselves are not finite: begin again from an earlier checkpoint"
        elif not all(np.isfinite(row.advantage) for row in rows):
            why = "rewards are not finite: look at the scores of your tasks"
        else:
            why = "weights and rewards are finite, their gradient overflows: lower config.learn.learning_rate"
        times = f"{NONFINITE_IN_A_ROW} updates in a row were left out because their gradient is not finite"
        raise DivergedError(f"{times}; {why}.")

    def _by_prompt(self, out: sampling.Completions) -> list[list[Sampled]]:
        def sampled(p: int, g: int) -> Sampled:
            tokens = out.tokens_PGT[p, g, : out.lengths_PG[p, g]].tolist()
            return Sampled(
                tokens=tokens,
                logprobs=out.logprobs_PGT[p, g, : len(tokens)].tolist(),
                text=self._tokenizer.decode(tokens),
                ended=bool(out.ended_PG[p, g]),
            )

        count, group = out.lengths_PG.shape
        return [[sampled(p, g) for g in range(group)] for p in range(count)]

    def _accuracy(self, scores: list[float]) -> Metrics:
        right = np.array(scores) >= 1.0
        found = {"accuracy": float(right.mean()), "problems": float(len(right))}
        for task in self.mixture.tasks:
            of_task = np.array([p.task == task for p in self._held_out])
            if of_task.any():
                found[f"accuracy/{task}"] = float(right[of_task].mean())
        return found


def _mean(updates: Sequence[Metrics]) -> Metrics:
    """Of a round's updates, over those that say a number; how many were made and left out are sums."""
    found = {}
    for name in updates[0]:
        values = [metrics[name] for metrics in updates if np.isfinite(metrics[name])]
        if values:
            found[name] = sum(values) / (1 if name in ("updates", "nonfinite") else len(values))
    return found


def _uncommitted(tree: Any) -> Any:
    """Arrays that are bound to no device, as those are that programs were compiled for: a checkpoint's are."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
