"""Log-probs and entropies of completions under a policy, a few logits at a time; what a loss is made of them is in
`objective.py`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.config import QwenConfig

MAX_CHUNK_LOGITS = 1 << 24  # float32 logits held at once while training: 64 MB


def token_sum(values_BT: Array, mask_BT: Array) -> Array:
    """Sum over the tokens that count, whatever the others are."""
    return jnp.where(mask_BT, values_BT, 0.0).sum()


def completion_logprobs(
    params: model.Params,
    config: QwenConfig,
    tokens_BT: Array,
    prompt_lengths_B: Array,
    max_new_tokens: int,
    temperature: float,
) -> tuple[Array, Array]:
    """Log-prob of every completion token and the entropy it was drawn from, each `[B, max_new_tokens]` float32.

    tokens_BT holds prompt and completion back to back, padded on the right. The head and its softmax run in
    chunks, so `[B, T, V]` logits never exist. Values behind a completion's end are meaningless: mask them.
    """
    states_BTD, _ = model.causal_states(params, config, tokens_BT)
    time = tokens_BT.shape[1]
    targets_BC = jnp.minimum(prompt_lengths_B[:, None] + jnp.arange(max_new_tokens), time - 1)
    states_BCD = jnp.take_along_axis(states_BTD, targets_BC[..., None] - 1, axis=1)
    tokens_BC = jnp.take_along_axis(tokens_BT, targets_BC, axis=1)
    logprobs, entropy = chunked_logprobs(
        params, states_BCD.reshape(-1, states_BCD.shape[-1]), tokens_BC.reshape(-1), temperature
    )
    return logprobs.reshape(tokens_BC.shape), entropy.reshape(tokens_BC.shape)


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
