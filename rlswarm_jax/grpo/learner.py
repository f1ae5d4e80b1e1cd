"""The train step: a batch of judged completions in, a better policy out."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from rlswarm_jax import parallel
from rlswarm_jax.grpo import losses, objective
from rlswarm_jax.grpo.objective import Objective
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.model import Params
from rlswarm_jax.qwen.weights import digest

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig(Objective):
    """What the loss and the optimiser need to know. `temperature` is the sampling temperature of the completions.

    The learning rate falls linearly from the first of `decay_rounds` rounds to `decay_to` of itself in the last one;
    with 0 of them it stays as it is.
    """

    learning_rate: float
    temperature: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_b2: float = 0.99
    decay_rounds: int = 0
    decay_to: float = 1.0


@flax.struct.dataclass
class Reference:
    """An earlier policy. epoch: int32 scalar, of `reference_every` rounds each, in which it was taken."""

    params: Params
    epoch: Array


@flax.struct.dataclass
class TrainState:
    """params: the policy, float32. opt_state: optax's. step: int32 scalar, updates made so far."""

    params: Params
    opt_state: Any
    step: Array
    reference = None


@flax.struct.dataclass
class AnchoredState(TrainState):
    """reference: what the loss keeps the policy near to; as large as `params`. (No field of a state that has none: what
    checkpoints hold would be another form.)
    """

    reference: Reference | None = None


def state_hash(state: TrainState) -> bytes:
    """32 bytes that stand for a state: SHA-256 over the digest of its parameters and that of all else, so that the
    parameters can be shown alone.
    """
    rest = (state.opt_state, state.step) if state.reference is None else state.replace(params=None)
    return hashlib.sha256(digest(state.params) + digest(rest)).digest()


@flax.struct.dataclass
class Batch:
    """Completions to learn from; rows with `completion_lengths_B == 0` only fill the shape.

    tokens_BT: `[B, T]` int32, prompt and completion back to back, padded on the right.
    prompt_lengths_B, completion_lengths_B: `[B]` int32, in tokens, the end of sequence included.
    advantages_B: `[B]` float32. Log-probs are `[B, C]` float32, at the sampling temperature; C tokens are in a
    completion at most.
    old_logprobs_BC: of the proximal policy, which the ratio is taken to. old_known_B: `[B]` bool, false where that is
    the current one (ratio 1).
    external_B: `[B]` bool, whether a peer has sampled the row; None if no row is a peer's.
    behaviour_logprobs_BC: of the policy that sampled. behaviour_known_B: `[B]` bool, false where that is taken to be the
    proximal one (weight 1), as it is everywhere if there are none.
    reference_logprobs_BC: of the policy that this one is kept near to, if there is one.
    entropy_floor_B: `[B]` float32, nats, the same for all: the surrogate is of tokens of at least so much.
    """

    tokens_BT: Array
    prompt_lengths_B: Array
    completion_lengths_B: Array
    advantages_B: Array
    old_logprobs_BC: Array
    old_known_B: Array
    external_B: Array | None = None
    behaviour_logprobs_BC: Array | None = None
    behaviour_known_B: Array | None = None
    reference_logprobs_BC: Array | None = None
    entropy_floor_B: Array | None = None

    @property
    def max_new_tokens(self) -> int:
        return self.old_logprobs_BC.shape[1]


def learning_rate(config: LearnerConfig, round_: int) -> float:
    """Of a round, counted from 0; whoever missed some, or had nothing to learn in them, has that of the others."""
    if not config.decay_rounds:
        return config.learning_rate
    done = min(1.0, round_ / max(1, config.decay_rounds - 1))
    return config.learning_rate * (1.0 + done * (config.decay_to - 1.0))


def make_optimizer(config: LearnerConfig) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) behind a bound on the gradient's norm, at a learning rate of -1: a step scales it."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(b2=config.adam_b2),
        optax.add_decayed_weights(config.weight_decay),
    )


def init_state(params: Params, config: LearnerConfig, mesh: Mesh | None = None) -> TrainState:
    """A state before its first update, laid out over the mesh if there is one."""
    init, zero = make_optimizer(config).init, jnp.zeros((), jnp.int32)
    if mesh is None:
        return _anchored(TrainState(params, init(params), zero), config)
    params, zero = parallel.place(params, mesh), parallel.place(zero, mesh)
    layout = parallel.shardings(jax.eval_shape(init, params), mesh)
    return _anchored(TrainState(params, jax.jit(init, out_shardings=layout)(params), zero), config)


def _anchored(state: TrainState, config: LearnerConfig) -> TrainState:
    """With itself as its reference, if the loss wants one; in arrays of its own."""
    if not config.keeps_reference:
        return state
    reference = Reference(jax.tree.map(jnp.array, state.params), jnp.array(state.step))
    return AnchoredState(state.params, state.opt_state, state.step, reference)


def loss_sums(params: Params, batch: Batch, model_config: QwenConfig, config: LearnerConfig) -> tuple[Array, Metrics]:
    """The loss *summed* over a tile, before it is divided, and sums of what the metrics are made of."""
    logprobs_BC, entropy_BC = losses.completion_logprobs(
        params, model_config, batch.tokens_BT, batch.prompt_lengths_B, batch.max_new_tokens, config.temperature
    )
    return objective.loss_sums(logprobs_BC, entropy_BC, batch, config)


def make_train_step(
    model_config: QwenConfig, config: LearnerConfig, mesh: Mesh | None = None, backend: str = "shard_map"
) -> Callable[[TrainState, Batch | Sequence[Batch], float], tuple[TrainState, Metrics]]:
    """Returns `step(state, batch, learning_rate) -> (state, metrics)`; metrics are float32 scalars.

    A batch may come in several parts of any shape, one or more: it is one update, and the loss is divided once, by
    what all parts and devices say together (`objective.aggregate`). A batch without a single token, or with no advantage that is learned from, changes
    nothing, not even Adam's momentum: `updates` is 0 then. Nor does one whose gradient is not finite, which `nonfinite`
    counts.

    Args:
      mesh: split each part over its devices (`parallel.row_shards` divides B); one device without.
      backend: how, as `parallel.data_parallel` takes it.
    """
    optimizer = make_optimizer(config)

    def summed(params, batch):
        return parallel.total(jax.value_and_grad(loss_sums, has_aux=True)(params, batch, model_config, config), mesh)

    def apply(state: TrainState, total: Any, rate: Array) -> tuple[TrainState, Metrics]:
        (loss, sums), gradients = total
        divisor = jnp.maximum(sums["divisor"], 1.0)
        gradients = jax.tree.map(lambda g: g / divisor, gradients)
        grad_norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        params = optax.apply_updates(state.params, updates)
        new = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
        live, finite = sums["live"] > 0, jnp.isfinite(grad_norm)
        update = live & finite
        state = jax.tree.map(lambda after, before: jnp.where(update, after, before), new, state)
        return parallel.laid_out(state, mesh), objective.means(loss, sums) | {
            "updates": update.astype(jnp.float32),
            "nonfinite": (live & ~finite).astype(jnp.float32),
            "grad_norm": grad_norm,
        }

    sums_of = jax.jit(summed) if mesh is None else parallel.data_parallel(summed, mesh, backend)
    add = jax.jit(parallel.add, donate_argnums=0)
    applied = jax.jit(apply)

    def step(state: TrainState, batch: Batch | Sequence[Batch], learning_rate: float) -> tuple[TrainState, Metrics]:
        first, *others = [batch] if isinstance(batch, Batch) else batch
        total = sums_of(state.params, first)
        for part in others:
            total = add(total, sums_of(state.params, part))
        return applied(state, total, np.float32(learning_rate))

    return step


def make_logprobs(
    model_config: QwenConfig, config: LearnerConfig, mesh: Mesh | None = None, backend: str = "shard_map"
) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """Returns jitted `logprobs(params, batch)`: of the completions under a policy, and entropies, `[B, C]` each."""

    def logprobs(params, batch):
        return losses.completion_logprobs(
            params, model_config, batch.tokens_BT, batch.prompt_lengths_B, batch.max_new_tokens, config.temperature
        )

    return jax.jit(logprobs) if mesh is None else parallel.split(logprobs, mesh, backend)
