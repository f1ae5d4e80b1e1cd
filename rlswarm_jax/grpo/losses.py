"""Log-probs and entropies of completions under a policy, a few logits at a time; what a loss is made of them is in
`objective.py`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen import model

MAX_CHUNK_LOGITS = 1 << 24  # float32 logits held at once while training: 64 MB


def token_sum(values_BT: Array, mask_BT: Array) -> Array:
    """Sum over the tokens that count, whatever the others are."""
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

    head = model.head_map(params, states_XD.dtype)

    def chunk(args):
        states_CD, tokens_C = args
        logits_CV = model.product(states_CD, head) / temperature
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
