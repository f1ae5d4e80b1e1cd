"""Log-probs and entropies of completions under a policy, a few logits at a time; what a loss is made of them is in
`objective.py`.
"""

import functools
from typing import Any

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
    max_logits: int = 0,
    how: model.Forward = model.PLAIN,
) -> tuple[Array, Array]:
    """Log-prob of `tokens_X` and entropy under the tempered softmax at each state, `[X]` float32 each.

    At most `max_logits` logits (by default `MAX_CHUNK_LOGITS`) exist at a time on a device, in the backward pass too,
    where they are computed again. Where the token is -1 nothing is asked; chunks of such states alone are left out.
    """

    name = "lm_head" if "lm_head" in params else "embed"
    head = model.head_map(how.weights({name: params[name]}), states_XD.dtype)
    size = max(1, (max_logits or MAX_CHUNK_LOGITS) // params["embed"].shape[0])
    return how.by_rows(functools.partial(_chunked, temperature, size))(head, states_XD, tokens_X)


def _chunked(temperature: float, rows: int, head: Any, states_XD: Array, tokens_X: Array) -> tuple[Array, Array]:
    def chunk(args):
        states_CD, tokens_C = args
        logits_CV = model.product(states_CD, head) / temperature
        logprobs_CV = jax.nn.log_softmax(logits_CV, axis=-1)
        chosen_C = jnp.take_along_axis(logprobs_CV, jnp.maximum(tokens_C, 0)[:, None], axis=-1)[:, 0]
        return chosen_C, -(jnp.exp(logprobs_CV) * logprobs_CV).sum(axis=-1)

    def asked(args):
        return jax.lax.cond((args[1] >= 0).any(), chunk, nothing, args)

    def nothing(args):  # made of what is given: under `shard_map` it must be each device's own too
        zero_C = jnp.where(False, args[0][:, 0], 0.0)
        return tuple(zero_C.astype(x.dtype) for x in jax.eval_shape(chunk, args))

    count = tokens_X.shape[0]
    if count <= rows:
        return chunk((states_XD, tokens_X))
    chunks = -(-count // rows)
    fill = chunks * rows - count
    states = jnp.pad(states_XD, ((0, fill), (0, 0))).reshape(chunks, rows, -1)
    tokens = jnp.pad(tokens_X, (0, fill), constant_values=-1).reshape(chunks, rows)
    logprobs, entropy = jax.lax.map(jax.checkpoint(asked), (states, tokens))
    return logprobs.reshape(-1)[:count], entropy.reshape(-1)[:count]
