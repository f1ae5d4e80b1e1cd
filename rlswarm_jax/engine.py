"""Fulfils the effects that need a model: Sample, Learn and Evaluate, for one node or for the nodes of a simulation.

A sampler, a learner and an evaluator do the work; here are the weights of each node, and what a node's effects ask for.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlswarm_jax import compilation, parallel, qwen, speed
from rlswarm_jax.evaluator import Evaluator
from rlswarm_jax.game.effects import Claimed, Learn, Metrics, Sample, Sampled
from rlswarm_jax.game.prompts import PromptFormat
from rlswarm_jax.grpo import learner, policies, tiles
from rlswarm_jax.grpo.advantages import judged
from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.draw import GREEDY, WHOLE, Draw
from rlswarm_jax.qwen.sampler import Prepared, Sampler
from rlswarm_jax.qwen.verdict import Replay, key_bias_norm, replay_completions, rounding
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.tasks.verifier import Verifier

State = TypeVar("State")  # or parameters

LEAST_SLOTS = 96  # of a tile's prompts: below, padding costs less than compiling once more
LEAST_REPLAYED, MOST_SHARED = 192, 2048  # slots of what is replayed at a time, and for completions to share a prompt
NONFINITE_IN_A_ROW = 3  # updates left out, one after the other, after which a node stops


class DivergedError(RuntimeError):
    """A node's gradients are not finite any more, round after round."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How requests become arrays.

    stages: of each, how many prompts a node samples from, and how many tokens of others' are in one at most. rows:
    completions computed at a time (0: all), on each device of those that hold whole weights. microbatch_rows: sequences
    learned from at a time, of one or more texts each (0: by their tokens).
    dtype, kv_dtype: of the weights and of the key/value cache while sampling; weights are cast once for each update.
    advantage, pass_k, overlong_buffer: see `grpo.advantages`. mask_truncated: learn nothing from completions that were
    cut off. external_min_ess: of peers' groups whose log-probs are used, the least effective sample size over the
    number of tokens. held_out_rows: the same as `rows` for held-out problems. evaluation: what is cut off the
    distribution there, if the temperature is not 0. merge: an adapter is sampled with in the weights, not beside them.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    group_size: int
    stages: Sequence[tuple[int, int]]
    temperature: float
    exact: bool
    exact_rows: int
    held_out_problems: int
    held_out_rows: int
    positive_only_external: bool
    positive_only_local: bool
    external_correction: Literal["reencode", "behaviour", "mask"]
    updates_per_round: int
    advantage: str = "std"
    pass_k: int = 4
    overlong_buffer: float = 0.0
    mask_truncated: bool = False
    external_min_ess: float = 0.0
    rows: int = 0
    microbatch_rows: int = 0
    dtype: str = "float32"
    kv_dtype: str = "float32"
    evaluation_temperature: float = GREEDY
    evaluation: Draw = WHOLE
    merge: bool = True


class Engine:
    """The weights of `num_nodes` nodes, which start equal, and what is done with them: node by node, so that every bit
    depends on that node alone.
    """

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
        self.config, self.verifier, self.mixture = config, verifier, verifier.mixture
        self._learner_config, self._tokenizer = learner_config, policy.tokenizer
        self._ends = frozenset(policy.config.eos_token_ids)
        devices = devices or parallel.DeviceConfig()
        mesh = parallel.make_mesh(jax.devices(), devices.fsdp, devices.tensor)  # of all processes: they are one node
        self._mesh = None if mesh.size == 1 else mesh
        on, most = (self._mesh, devices.backend), config.max_prompt_tokens
        jit = jit if self._mesh is None else jax.jit
        quick = jit if self._mesh is not None else compilation.quickly(jit, policy.config.num_parameters)
        self._jit = quick
        self._model = policy.config
        text, group = (most + count * config.max_new_tokens for count in (1, config.group_size))
        widest = max(text, min(group, 2 * text, MOST_SHARED))
        self._replayed = sorted({max(LEAST_REPLAYED, -(-widest >> half)) for half in range(2)})  # one program, or two
        self._rounding = rounding(config.dtype, config.kv_dtype, config.temperature, key_bias_norm(policy.params))

        def sampler(
            temperature: float, how: Draw, rows: int, exact_rows: int, counts: Sequence[int], jit: Any
        ) -> Sampler:
            return Sampler(
                policy.config,
                widths=prompt_widths(most),
                counts=counts,
                rows=rows,
                exact_rows=exact_rows if config.exact else 0,
                mesh=self._mesh,
                backend=devices.backend,
                max_new_tokens=config.max_new_tokens,
                temperature=temperature,
                how=how,
                kv_dtype=config.kv_dtype,
                jit=jit,
            )

        counts, held_out = [count for count, _ in config.stages], config.held_out_rows
        # not quickly: that no bit depends on a completion's place in its tile was not shown of such programs
        self._sampler = sampler(config.temperature, Draw(), config.rows, config.exact_rows, counts, jit)
        greedy = sampler(config.evaluation_temperature, config.evaluation, held_out, held_out, (), quick)
        self._evaluator = Evaluator(greedy, verifier, prompt_format, policy.tokenizer, config.held_out_problems)
        # the rate is an argument of a step: whatever it follows from makes no other program
        same = dataclasses.replace(learner_config, learning_rate=0.0, decay_rounds=0, decay_to=1.0)
        base = None if learner_config.lora is None else policy.params
        self._learner = learner.Learner(same, policy.config, *on, base, jit=quick)
        self.base = b"" if base is None else qwen.digest(parallel.fetch(base))  # digest of what is beneath an adapter
        shards, longest = parallel.row_shards(self._mesh), most + config.max_new_tokens
        self._shapes = tiles.shapes(
            longest, config.max_new_tokens, config.microbatch_rows, shards, policy.config.hidden_size
        )
        self._states = [self._learner.init(policy.params) for _ in range(num_nodes)]
        self._prepared = [Prepared() for _ in range(num_nodes)]
        self._nonfinite = [0] * num_nodes  # updates left out since the last that was made

    def state(self, node: int) -> learner.TrainState:
        """As it is; its arrays are used up when the node learns."""
        return self._states[node]

    def weights(self, node: int) -> qwen.Params:
        """A node's policy as it is: plain parameters, with the adapter in them if there is one."""
        return self._learner.policy(self._states[node].params)

    def tensors(self, node: int) -> qwen.Tensors:
        """A node's policy as it samples: in Hugging Face's layout and the dtype that samples, in memory of its own."""
        return self.named(parallel.fetch(self.weights(node)))

    def named(self, params: qwen.Params) -> qwen.Tensors:
        found = qwen.to_tensors(params, self._model, self.config.dtype)
        return {name: array if array.flags.owndata else array.copy() for name, array in found.items()}

    def replay(self, node: int, tensors: qwen.Tensors | None, claimed: Sequence[Claimed]) -> list[Replay]:
        """Of each completion, whether it was drawn as is said: with these weights, or those that the node learns.

        Raises ValueError for tensors of another kind of model.
        """
        if tensors is None:
            params = self.weights(node)
        else:
            params = qwen.from_tensors(tensors, self._model)
            if self._mesh is not None and jax.process_count() == 1:  # else the other processes know nothing of it
                params = parallel.place(params, self._mesh)
        every = [(c.prompt, tokens, key) for c in claimed for tokens, key in zip(c.completions, c.keys, strict=True)]
        prompts, completions, keys = zip(*every, strict=True)
        longest = max(len(c.prompt) + sum(map(len, c.completions)) for c in claimed)
        return replay_completions(
            model.prepare(params, self.config.dtype, self.config.group_size),
            self._model,
            prompts,
            completions,
            np.array(keys, np.uint32),
            temperature=self.config.temperature,
            rounding=self._rounding,
            whole=self.config.max_new_tokens,
            rows=self.config.group_size,
            together=self.config.group_size,
            text_slots=next((slots for slots in self._replayed if slots >= longest), self._replayed[-1]),
            jit=self._jit,
        )

    def base_of(self, node: int) -> bytes:
        """The digest of the weights beneath a node's adapter; empty where there is none."""
        return self.base

    def set_states(self, states: Sequence[learner.TrainState]) -> None:
        """Goes on from copies of these."""
        self._states = [self._own(one) for one in states]
        self._nonfinite = [0] * len(states)
        self._prepared = [Prepared() for _ in states]

    def _own(self, state: State) -> State:
        """A copy; on one device of arrays that are bound to none, as those are that programs were compiled for."""
        if self._mesh is None:
            return jax.tree.map(lambda x: jnp.array(np.asarray(x)), state)
        return jax.tree.map(jnp.copy, parallel.place(state, self._mesh))

    def evaluate_params(self, params: qwen.Params) -> Metrics:
        """What `evaluate` would find for a node with these weights."""
        return self._evaluator(model.prepare(self._own(params), self.config.dtype, self.config.group_size))

    def compile(self) -> None:
        """Compiles what a round needs, ahead of the first one; changes nothing.

        On a CPU two at a time; elsewhere a device's memory may not be enough, or devices must meet in the same order.
        """
        group, params, longest = self.config.group_size, self._sampling_params(0), self._evaluator.longest
        shapes = {(count, self._sampler.width(longest + more)) for count, more in self.config.stages}

        work: list[Callable[[], Any]] = [
            partial(self._sampler.compile, params, count, group, width) for count, width in sorted(shapes)
        ]
        work.append(partial(self._evaluator.compile, params))
        work += self._learner.ahead(self._states[0], self._scored(0, tiles.fillers(self._shapes)))
        at_once = 2 if jax.default_backend() == "cpu" and self._mesh is None else 1
        with ThreadPoolExecutor(at_once, thread_name_prefix="compile") as pool:
            list(pool.map(lambda run: run(), work))

    def sample(self, requests: Mapping[int, Sample]) -> dict[int, list[list[Sampled]]]:
        """Completions of every node's prompts."""
        return {node: self._sample(node, request) for node, request in requests.items()}

    def _sample(self, node: int, request: Sample) -> list[list[Sampled]]:
        out = self._sampler(self._sampling_params(node), request.prompts, request.keys_PGM)

        def sampled(p: int, g: int) -> Sampled:
            tokens = out.tokens_PGT[p, g, : out.lengths_PG[p, g]].tolist()
            logprobs, text = out.logprobs_PGT[p, g, : len(tokens)].tolist(), self._tokenizer.decode(tokens)
            return Sampled(tokens, logprobs, text, bool(out.ended_PG[p, g]))

        count, group = out.lengths_PG.shape
        return [[sampled(p, g) for g in range(group)] for p in range(count)]

    def evaluate(self, nodes: Sequence[int]) -> dict[int, Metrics]:
        """Held-out accuracy by greedy decoding, unless the config says otherwise."""
        return {node: self._evaluator(self._sampling_params(node)) for node in nodes}

    def learn(self, requests: Mapping[int, Learn]) -> dict[int, Metrics]:
        """Takes the gradient on every node's groups; nothing else changes the weights.

        A gradient that is not finite is left out, and counted. Raises DivergedError if that happens
        `NONFINITE_IN_A_ROW` times, one after the other.
        """
        return {node: self._learn(node, request) for node, request in requests.items()}

    def _learn(self, node: int, request: Learn) -> Metrics:
        self._states[node] = policies.refreshed(self._states[node], self._learner_config, request.round)
        groups = self._trusted(node, request.groups)
        rows = self.rows(groups)
        parts = self._scored(node, tiles.tiles(rows, self._shapes))
        rate, found = learner.learning_rate(self._learner_config, request.round), []
        self._prepared[node].forget()  # now, so that a copy in another dtype takes no room while it is learned
        for _ in range(self.config.updates_per_round):
            self._states[node], metrics = self._learner.step(self._states[node], parts, rate)
            found.append({name: float(value) for name, value in jax.device_get(metrics).items()})
            self._watch(node, rows, found[-1])
        external = sum(row.external for row in rows)
        counts: dict[str, float] = {"rows_external": external, "rows_local": len(rows) - external}
        counts["low_ess_groups"] = len(request.groups) - len(groups)
        lengths = [len(row.prompt) + len(row.completion) for row in rows]
        counts["text_tokens"] = sum(lengths) * len(found)
        counts["filled_fraction"] = tiles.filled(parts)
        counts["flops"] = speed.train_flops(self._learner.model, lengths) * len(found)
        return _mean(found) | {name: float(count) for name, count in counts.items()}

    def rows(self, groups: Sequence[ScoredGroup]) -> list[tiles.Row]:
        """The completions that are learned from.

        Those without a positive advantage are left out where the config says so, and those that were cut off. A peer's
        log-probs are used unless external_correction="reencode": then its samples are taken to be on-policy.
        """
        config, found = self.config, []
        for group in groups:
            advantages_G = np.float32(group.weight) * judged(
                group.rewards,
                [len(tokens) for tokens in group.tokens],
                advantage=config.advantage,
                pass_k=config.pass_k,
                overlong_buffer=config.overlong_buffer,
                max_new_tokens=config.max_new_tokens,
            )
            positive_only = config.positive_only_external if group.external else config.positive_only_local
            correct = not group.external or config.external_correction != "reencode"
            known = group.logprobs if correct and group.logprobs is not None else [None] * len(group.tokens)
            for completion, advantage, logprobs in zip(group.tokens, advantages_G.tolist(), known, strict=True):
                if not (positive_only and advantage <= 0) and not self._is_cut_off(group, completion):
                    found.append(tiles.Row(group.prompt, completion, advantage, logprobs, group.external))
        return found

    def _is_cut_off(self, group: ScoredGroup, completion: Sequence[int]) -> bool:
        """Where that is left out; of a text that was encoded anew the end is not known, only its length."""
        if not self.config.mask_truncated or completion[-1] in self._ends:
            return False
        return group.logprobs is not None or len(completion) >= self.config.max_new_tokens

    def _trusted(self, node: int, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Without those of peers whose policy is too far from this one for weights to make up for it."""
        least = self.config.external_min_ess if self.config.external_correction != "reencode" else 0.0
        doubted = [group for group in groups if least and group.external and group.logprobs is not None]
        rows = [
            [tiles.Row(g.prompt, *one, g.external) for one in zip(g.tokens, repeat(1.0), g.logprobs or ())]
            for g in doubted
        ]
        shares = policies.effective_shares(rows, self._states[node].params, self._learner.logprobs, self._shapes)
        left = {group.slot for group, share in zip(doubted, shares, strict=True) if share < least}
        return [group for group in groups if not (group.external and group.slot in left)]

    def _scored(self, node: int, parts: Sequence[learner.Batch]) -> list[learner.Batch]:
        """With what the loss asks of other policies."""
        score, updates = self._learner.logprobs, self.config.updates_per_round
        return policies.prepared(parts, self._states[node], score, self._learner_config, updates)

    def _sampling_params(self, node: int) -> qwen.Params:
        """A node's weights in the dtype that is sampled with."""
        at_least = self.config.group_size  # rows, so that the layout is one for all
        policy = partial(self._learner.policy, merge=self.config.merge)
        return self._prepared[node](self._states[node].params, self.config.dtype, at_least, policy)

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


def prompt_widths(most: int) -> list[int]:
    """Tokens that tiles of prompts have room for: at most four sizes, each half of the next."""
    return sorted({min(most, max(LEAST_SLOTS, -(-most >> part))) for part in range(4)})


def _mean(updates: Sequence[Metrics]) -> Metrics:
    """Of a round's updates, over those that say a number; how many were made and left out are sums, and
    `step` is what it came to."""
    found = {}
    for name in updates[0]:
        values = [metrics[name] for metrics in updates if np.isfinite(metrics[name])]
        if values:
            found[name] = sum(values) / (1 if name in ("updates", "nonfinite") else len(values))
    found["step"] = updates[-1]["step"]
    return found
