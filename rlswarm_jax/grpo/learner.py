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
from rlswarm_jax.grpo import losses
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.model import Params
from rlswarm_jax.qwen.weights import digest

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """What the loss and the optimiser need to know. `temperature` is the sampling temperature of the completions.

    dual_clip: bound on the ratio of tokens with a negative advantage. external_min_prob: probability below which this
    policy does not learn a peer's token (`losses.likely_tokens`). The learning rate falls linearly from the first
    of `decay_rounds` rounds to `decay_to` of itself in the last one; with 0 of them it stays as it is.
    """

    learning_rate: float
    clip_low: float
    clip_high: float
    dual_clip: float
    temperature: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_b2: float = 0.99
    decay_rounds: int = 0
    decay_to: float = 1.0
    external_min_prob: float = 0.0


@flax.struct.dataclass
class TrainState:
    """params: the policy, float32. opt_state: optax's. step: int32 scalar, updates made so far."""

    params: Params
    opt_state: Any
    step: Array


def state_hash(state: TrainState) -> bytes:
    """32 bytes that stand for a state: SHA-256 over the digest of its parameters and that of all else, so that the
    parameters can be shown alone.
    """
    return hashlib.sha256(digest(state.params) + digest((state.opt_state, state.step))).digest()


@flax.struct.dataclass
class Batch:
    """Completions to learn from; rows with `completion_lengths_B == 0` only fill the shape.

    tokens_BT: `[B, T]` int32, prompt and completion back to back, padded on the right.
    prompt_lengths_B, completion_lengths_B: `[B]` int32, in tokens, the end of sequence included.
    advantages_B: `[B]` float32. old_logprobs_BC: `[B, C]` float32 at the sampling temperature; C tokens are in a
    completion at most.
    old_known_B: `[B]` bool, false where the row is taken to be on-policy (ratio 1, the gradient unweighted).
    external_B: `[B]` bool, whether a peer has sampled the row; None if no row is a peer's.
    """

    tokens_BT: Array
    prompt_lengths_B: Array
    completion_lengths_B: Array
    advantages_B: Array
    old_logprobs_BC: Array
    old_known_B: Array
    external_B: Array | None = None

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
    init, step = make_optimizer(config).init, jnp.zeros((), jnp.int32)
    if mesh is None:
        return TrainState(params, init(params), step)
    params = parallel.place(params, mesh)
    layout = parallel.shardings(jax.eval_shape(init, params), mesh)
    return TrainState(params, jax.jit(init, out_shardings=layout)(params), parallel.place(step, mesh))


def loss_sums(params: Params, batch: Batch, model_config: QwenConfig, config: LearnerConfig) -> tuple[Array, Metrics]:
    """The negated clipped surrogate *summed* over tokens, and sums of what the metrics are made of."""
    logprobs_BC, entropy_BC = losses.completion_logprobs(
        params, model_config, batch.tokens_BT, batch.prompt_lengths_B, batch.max_new_tokens, config.temperature
    )
    mask_BC = jnp.arange(batch.max_new_tokens) < batch.completion_lengths_B[:, None]
    external_BC = jnp.zeros_like(mask_BC) if batch.external_B is None else mask_BC & batch.external_B[:, None]
    likely_BC = losses.likely_tokens(logprobs_BC, external_BC, config.external_min_prob)
    mask_BC = jnp.where(external_BC, likely_BC, mask_BC)
    known_BC = mask_BC & batch.old_known_B[:, None]
    old_BC = jnp.where(known_BC, batch.old_logprobs_BC, jax.lax.stop_gradient(logprobs_BC))
    log_ratio_BC = losses.log_ratio(logprobs_BC, old_BC)
    ratio_BC = jnp.exp(log_ratio_BC)
    surrogate_BC = losses.clipped_surrogate(
        ratio_BC,
        batch.advantages_B,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )
    sign_B1 = jnp.sign(batch.advantages_B)[:, None]
    outside_BC = (ratio_BC < 1 - config.clip_low) | (ratio_BC > config.dual_clip)
    clipped_BC = jnp.where(sign_B1 > 0, ratio_BC > 1 + config.clip_high, outside_BC)
    sums = {
        "tokens": mask_BC.sum().astype(jnp.float32),
        "live": (mask_BC & (sign_B1 != 0)).sum().astype(jnp.float32),
        "external": external_BC.sum().astype(jnp.float32),
        "unlikely": (external_BC & ~likely_BC).sum().astype(jnp.float32),
        "ratio": losses.token_sum(ratio_BC, mask_BC),
        "ratio_squared": losses.token_sum(ratio_BC**2, mask_BC),
        "clipped": losses.token_sum(clipped_BC & (sign_B1 != 0), mask_BC),
        "entropy": losses.token_sum(entropy_BC, mask_BC),
        "known": known_BC.sum().astype(jnp.float32),
        "logprob_gap": losses.token_sum(jnp.abs(log_ratio_BC), known_BC),
    }
    return -losses.token_sum(surrogate_BC, mask_BC), sums


def make_train_step(
    model_config: QwenConfig,
    config: LearnerConfig,
    mesh: Mesh | None = None,
    backend: str = "shard_map",
    jit: Callable[..., Callable] = jax.jit,
) -> Callable[[TrainState, Batch | Sequence[Batch], float], tuple[TrainState, Metrics]]:
    """Returns `step(state, batch, learning_rate) -> (state, metrics)`; metrics are float32 scalars.

    A batch may come in several parts of any shape, one or more: it is one update, and the loss is the mean over all
    tokens of all parts and devices. A batch without a single token, or with no advantage that is learned from, changes
    nothing, not even Adam's momentum: `updates` is 0 then. Nor does one whose gradient is not finite, which `nonfinite`
    counts.

    Args:
      mesh: split each part over its devices (`parallel.row_shards` divides B); one device without.
      backend: how, as `parallel.data_parallel` takes it.
      jit: what compiles where there is no mesh, such as `compilation.Programs.jit`.
    """
    # the rate is an argument: whatever it follows from makes no other program
    config = dataclasses.replace(config, learning_rate=0.0, decay_rounds=0, decay_to=1.0)
    optimizer = make_optimizer(config)

    def summed(params, batch):
        return parallel.total(jax.value_and_grad(loss_sums, has_aux=True)(params, batch, model_config, config), mesh)

    def apply(state: TrainState, total: Any, rate: Array) -> tuple[TrainState, Metrics]:
        (loss, sums), gradients = total
        tokens = jnp.maximum(sums["tokens"], 1.0)
        gradients = jax.tree.map(lambda g: g / tokens, gradients)
        grad_norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        live, finite = sums["live"] > 0, jnp.isfinite(grad_norm)
        update = live & finite
        state = jax.tree.map(lambda after, before: jnp.where(update, after, before), new, state)
        ratio = sums["ratio"] / tokens
        return parallel.laid_out(state, mesh), {
            "loss": loss / tokens,
            "updates": update.astype(jnp.float32),
            "nonfinite": (live & ~finite).astype(jnp.float32),
            "tokens": sums["tokens"],
            "unlikely_fraction": sums["unlikely"] / jnp.maximum(sums["external"], 1.0),
            "ratio_mean": ratio,
            "ess_fraction": ratio**2 / jnp.maximum(sums["ratio_squared"] / tokens, 1e-9),
            "clip_fraction": sums["clipped"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "logprob_gap": sums["logprob_gap"] / jnp.maximum(sums["known"], 1.0),
            "grad_norm": grad_norm,
        }

    sums_of = jit(summed) if mesh is None else parallel.data_parallel(summed, mesh, backend)
    add = jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0)
    applied = jit(apply)

    def step(state: TrainState, batch: Batch | Sequence[Batch], learning_rate: float) -> tuple[TrainState, Metrics]:
        first, *others = [batch] if isinstance(batch, Batch) else batch
        total = sums_of(state.params, first)
        for part in others:
            total = add(total, sums_of(state.params, part))
        return applied(state, total, np.float32(learning_rate))

    return step


def make_logprobs(
    model_config: QwenConfig, config: LearnerConfig, mesh: Mesh | None = None, backend: str = "shard_map"
) -> Callable[[Params, Batch], Array]:
    """Returns jitted `logprobs(params, batch) -> [B, C]` of the completions under a policy."""

    def logprobs(params, batch):
        return losses.completion_logprobs(
            params, model_config, batch.tokens_BT, batch.prompt_lengths_B, batch.max_new_tokens, config.temperature
        )[0]

    return jax.jit(logprobs) if mesh is None else parallel.split(logprobs, mesh, backend)
