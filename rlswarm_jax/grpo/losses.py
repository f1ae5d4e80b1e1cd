"""The GRPO objective as a small algebra; the loss is a composition of these."""

import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen import model

MAX_CHUNK_LOGITS = 1 << 24  # float32 logits held at once while training: 64 MB
MAX_UNLIKELY = 1 / 16  # of a peer's completion
MAX_LOG_RATIO = 20.0  # a peer may claim any log-prob: an infinite ratio would make the weights NaN, clipped or not


def log_ratio(logprobs_BT: Array, old_logprobs_BT: Array) -> Array:
    """Log-prob of each token now less its log-prob when it was sampled, `[B, T]` nats, within 20 of 0."""
    return jnp.clip(logprobs_BT - jax.lax.stop_gradient(old_logprobs_BT), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    ratio_BT: Array, advantages_B: Array, *, clip_low: float, clip_high: float, dual_clip: float
) -> Array:
    """The smaller of the plain and the clipped objective per token, `[B, T]`, to be maximised.

    PPO (arXiv:1707.06347 eq. 7) with the two bounds of DAPO (arXiv:2503.14476 eq. 10), and with that of dual-clip PPO
    (arXiv:1912.09729 eq. 5): PPO bounds what a good token can gain and a bad one can lose, but not what a bad token
    costs whose ratio is large, and the ratio of a stranger's token is what the stranger says. Below dual_clip (> 1)
    times a negative advantage the objective falls no further, and such a token has no gradient.
    """
    advantages_B1 = advantages_B[:, None]
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    lower_BT = jnp.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    return jnp.where(advantages_B1 < 0, jnp.maximum(lower_BT, dual_clip * advantages_B1), lower_BT)


def likely_tokens(logprobs_BC: Array, mask_BC: Array, min_prob: float) -> Array:
    """Which tokens of others' completions are to be learned from, `[B, C]` bool: those that the policy might have said.

    A token that it gives less than `min_prob` is not, nor is a completion of which more than `MAX_UNLIKELY` is such:
    what is right in a manner of its own is nothing that the policy could have been rewarded for. 0 takes all.
    """
    unlikely_BC = mask_BC & (jax.lax.stop_gradient(logprobs_BC) < jnp.log(min_prob))
    few_B = unlikely_BC.sum(axis=1) <= MAX_UNLIKELY * mask_BC.sum(axis=1)
    return mask_BC & ~unlikely_BC & few_B[:, None]


def token_sum(values_BT: Array, mask_BT: Array) -> Array:
    """Sum over the tokens that count; dividing by the *global* number of them gives DAPO's token-level mean."""
    return jnp.where(mask_BT, values_BT, 0.0).sum()


def chunked_logprobs(
    params: model.Params,
    states_XD: Array,
    tokens_X: Array,
    temperature: float,
    max_logits: int = MAX_CHUNK_LOGITS,
) -> tuple[Array, Array]:
    """Log-prob of `tokens_X` and entropy under the tempered softmax at each state, `[X]` float32 each.

    At most `max_logits` logits exist at a time, in the backward pass too (they are recomputed there).
    """

    def chunk(args):
        states_CD, tokens_C = args
        logits_CV = model.head(params, states_CD) / temperature
        logprobs_CV = jax.nn.log_softmax(logits_CV, axis=-1)
        chosen_C = jnp.take_along_axis(logprobs_CV, tokens_C[:, None], axis=-1)[:, 0]
        return chosen_C, -(jnp.exp(logprobs_CV) * logprobs_CV).sum(axis=-1)

    count = tokens_X.shape[0]
    rows = max(1, max_logits // params["embed"].shape[0])
    if count <= rows:
        return chunk((states_XD, tokens_X))
    chunks = -(-count // rows)
    fill = chunks * rows - count
    states = jnp.pad(states_XD, ((0, fill), (0, 0))).reshape(chunks, rows, -1)
    tokens = jnp.pad(tokens_X, (0, fill)).reshape(chunks, rows)
    logprobs, entropy = jax.lax.map(jax.checkpoint(chunk), (states, tokens))
    return logprobs.reshape(-1)[:count], entropy.reshape(-1)[:count]
