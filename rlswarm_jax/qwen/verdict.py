"""Replay: was this token drawn from these weights, this prompt and this key? One prefill-style pass for all tokens."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax import randomness
from rlswarm_jax.qwen import draw, model
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.sampling import bucket

MAX_CHUNK_LOGITS = 1 << 24  # float32 logits held at once: 64 MB
# By dtype of weights and cache, at temperature 1: 1.5 to 4 times the most that a drawn token's margin was found to
# differ between sampler and replay (2.8e-5, 0.21, 0.33, 1.0 and 1.3, of the embedded models on CPU).
TAU = {
    ("float32", "float32"): 1e-4,
    ("float32", "bfloat16"): 0.5,
    ("float32", "int8"): 1.0,
    ("bfloat16", "bfloat16"): 1.5,
    ("bfloat16", "int8"): 2.0,
}
# And more for each unit of the norm of a layer's key bias, which is rounded with the keys: at 400, as in published 7B
# models, sampler and replay differed by up to 2.2e-3, 0.31, 0.63, 3.9 and 4.7, of the test models with random biases.
TAU_OF_BIAS = {
    ("float32", "float32"): 1e-5,
    ("float32", "bfloat16"): 1e-3,
    ("float32", "int8"): 1e-3,
    ("bfloat16", "bfloat16"): 0.02,
    ("bfloat16", "int8"): 0.02,
}


class Verdict(enum.IntEnum):
    """UNDECIDED: logits that differ by rounding alone could have drawn this token, and another one too."""

    NOT_PRODUCED = -1
    UNDECIDED = 0
    PRODUCED = 1

    def __str__(self) -> str:
        return self.name

    __format__ = enum.Enum.__format__


@dataclasses.dataclass(frozen=True)
class Replay:
    """Of each token: its log-prob and its margin (`draw.margin`), both `[T]` float32, and the verdict at tau."""

    logprobs_T: np.ndarray
    margins_T: np.ndarray
    tau: float

    @property
    def verdicts_T(self) -> list[Verdict]:
        return [Verdict(int(v)) for v in verdicts(self.margins_T, self.tau)]

    @property
    def verdict(self) -> Verdict:
        """Of the whole: not produced if any token is not, produced if all are."""
        return min(self.verdicts_T)


def key_bias_norm(params: model.Params) -> float:
    """The largest norm that a layer's key bias has; 0 for models without."""
    return max(
        (float(jnp.linalg.norm(layer["k_bias"])) for layer in params["layers"] if "k_bias" in layer), default=0.0
    )


def default_tau(dtype: Any, kv_dtype: Any, temperature: float, bias_norm: float = 0.0) -> float:
    """Margins are of logits that were divided by the temperature, and so is their error. bias_norm: `key_bias_norm`.

    Raises ValueError for dtypes whose error was not measured.
    """
    names = np.dtype(dtype).name, np.dtype(kv_dtype).name
    if names not in TAU:
        raise ValueError(f"no tau was measured for {names[0]} weights and a {names[1]} cache: give one.")
    return (TAU[names] + TAU_OF_BIAS[names] * bias_norm) / min(1.0, temperature or 1.0)


def verdicts(margins_X: np.ndarray, tau: float) -> np.ndarray:
    """`Verdict` values, int8. A margin that no rounding up to tau can turn decides."""
    return (np.asarray(margins_X) >= tau).astype(np.int8) - (np.asarray(margins_X) <= -tau).astype(np.int8)


@functools.lru_cache(maxsize=32)
def make_replay(
    config: QwenConfig, *, max_new_tokens: int, temperature: float
) -> Callable[[model.Params, Array, Array, Array], tuple[Array, Array]]:
    """Returns jitted `replay(params, tokens_BT, prompt_lengths_B, keys_BM) -> (logprobs_BC, margins_BC)`.

    tokens_BT: int32, prompt and completion back to back, padded on the right. C = max_new_tokens; what stands behind
    a completion's end is meaningless. It computes in the dtype of `params`, and the head's logits come in chunks.
    """

    def of_state(params: Any, state_D: Array, token: Array, key: Array) -> tuple[Array, Array]:
        logits_V = model.head(params, state_D)
        if temperature == draw.GREEDY:
            return jax.nn.log_softmax(logits_V)[token], draw.greedy_margin(logits_V, token)
        scaled_V = logits_V / temperature
        return jax.nn.log_softmax(scaled_V)[token], draw.margin(scaled_V, key, token)

    def replay(params, tokens_BT, prompt_lengths_B, keys_BM):
        states_BTD, _ = model.causal_states(params, config, tokens_BT)
        steps_C = jnp.arange(max_new_tokens)
        places_BC = jnp.minimum(prompt_lengths_B[:, None] + steps_C, tokens_BT.shape[1] - 1)
        states_BCD = jnp.take_along_axis(states_BTD, places_BC[..., None] - 1, axis=1)
        tokens_BC = jnp.take_along_axis(tokens_BT, places_BC, axis=1)
        keys_BC = jax.vmap(lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(steps_C))(
            randomness.wrap(keys_BM)
        )
        flat = (states_BCD.reshape(-1, states_BCD.shape[-1]), tokens_BC.reshape(-1), keys_BC.reshape(-1))
        chunk = max(1, MAX_CHUNK_LOGITS // config.vocab_size)
        found = jax.lax.map(lambda xs: of_state(params, *xs), flat, batch_size=chunk)
        return jax.tree.map(lambda x: x.reshape(tokens_BC.shape), found)

    return jax.jit(replay)


def replay_tokens(
    params: model.Params,
    config: QwenConfig,
    prompt: Sequence[int],
    tokens_T: Sequence[int],
    key_M: np.ndarray,
    *,
    temperature: float,
    tau: float,
) -> Replay:
    """Replays one completion; what follows an end of sequence was not drawn.

    Raises ValueError if it or its prompt is empty, or a token is not in the vocabulary.
    """
    tokens = np.asarray(tokens_T, np.int64)
    if not len(prompt) or tokens.ndim != 1 or not len(tokens):
        raise ValueError("a replay needs a prompt and a completion of at least one token each.")
    text = np.concatenate([np.asarray(prompt, np.int64), tokens])
    if text.min() < 0 or text.max() >= config.vocab_size:
        raise ValueError(f"a replay was given a token that is not in the vocabulary of {config.vocab_size}.")
    width, new = bucket(len(text)), bucket(len(tokens))
    padded_1T = np.zeros((1, width), np.int32)
    padded_1T[0, : len(text)] = text
    run = make_replay(config, max_new_tokens=new, temperature=float(temperature))
    found = run(params, padded_1T, np.array([len(prompt)], np.int32), np.asarray(key_M, np.uint32)[None])
    logprobs_T, margins_T = (np.asarray(x)[0, : len(tokens)] for x in found)
    after_T = np.cumsum(np.isin(tokens, config.eos_token_ids)) - np.isin(tokens, config.eos_token_ids) > 0
    margins_T = np.where(after_T, -np.inf, margins_T)  # nothing is drawn after the end
    return Replay(logprobs_T, margins_T, tau)
