"""Replay: was this token drawn from these weights, this prompt and this key? One prefill-style pass for all tokens."""

import dataclasses
import enum
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax import randomness
from rlswarm_jax.qwen import draw, model
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.packed import Packed, pack, sequences_of
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
# Root mean square of the difference, at temperature 1 (`Rounding.rms`): 2.5 to 5 times what it was over many tokens of
# the embedded model (4.2e-6, 0.016, 0.036, 0.078, 0.068); single audits of 512 tokens came to twice that.
RMS = {
    ("float32", "float32"): 2e-5,
    ("float32", "bfloat16"): 0.05,
    ("float32", "int8"): 0.1,
    ("bfloat16", "bfloat16"): 0.2,
    ("bfloat16", "int8"): 0.25,
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
class Rounding:
    """How far apart two honest computations of a difference of two logits may be, in nats.

    tau: at most. rms: root mean square over an audit, of the pairs of tokens that may be drawn, each as often as they
    are drawn by two keys.
    """

    tau: float
    rms: float


@dataclasses.dataclass(frozen=True)
class Replay:
    """Of each token: its log-prob `[T]`, and of its two decisions (`draw.leads`) the leads `[T, 2]` and how open they
    were `[T]`; all float32. It holds nothing where nothing was drawn by chance (temperature 0).
    """

    logprobs_T: np.ndarray
    leads_T2: np.ndarray
    open_T: np.ndarray
    rounding: Rounding

    @property
    def margins_T(self) -> np.ndarray:
        """The smaller of each token's leads: negative, and the key draws another one."""
        return self.leads_T2.min(axis=1)

    @property
    def verdicts_T(self) -> list[Verdict]:
        return [Verdict(int(v)) for v in verdicts(self.margins_T, self.rounding.tau)]

    @property
    def verdict(self) -> Verdict:
        """Of the whole: not produced if any token is not, produced if all are."""
        return min(self.verdicts_T)


def key_bias_norm(params: model.Params) -> float:
    """The largest norm that a layer's key bias has; 0 for models without."""
    return max(
        (float(jnp.linalg.norm(layer["k_bias"])) for layer in params["layers"] if "k_bias" in layer), default=0.0
    )


def rounding(dtype: Any, kv_dtype: Any, temperature: float, bias_norm: float = 0.0) -> Rounding:
    """Of logits that were divided by the temperature, as their error was. bias_norm: `key_bias_norm`.

    Raises ValueError for dtypes whose error was not measured.
    """
    names = np.dtype(dtype).name, np.dtype(kv_dtype).name
    if names not in TAU:
        raise ValueError(f"no tau was measured for {names[0]} weights and a {names[1]} cache: give one.")
    tau = (TAU[names] + TAU_OF_BIAS[names] * bias_norm) / min(1.0, temperature or 1.0)
    return Rounding(tau, tau * RMS[names] / TAU[names])


def verdicts(margins_X: np.ndarray, tau: float) -> np.ndarray:
    """`Verdict` values, int8. A margin that no rounding up to tau can turn decides."""
    return (np.asarray(margins_X) >= tau).astype(np.int8) - (np.asarray(margins_X) <= -tau).astype(np.int8)


@functools.lru_cache(maxsize=32)
def make_replay(
    config: QwenConfig, *, max_new_tokens: int, temperature: float, jit: Callable[..., Any] = jax.jit
) -> Callable[[model.Params, Packed, np.ndarray], tuple[Array, Array, Array]]:
    """Returns jitted `replay(params, packed, keys_RM) -> (logprobs_RC, leads_RC2, open_RC)`, of R completions.

    C = max_new_tokens; what stands behind a completion's end is meaningless. It computes in the dtype of `params`, and
    the head's logits come in chunks.
    """

    def of_state(params: Any, state_D: Array, token: Array, key: Array) -> tuple[Array, Array, Array]:
        logits_V = model.head(params, state_D)
        if temperature == draw.GREEDY:
            lead_2 = jnp.broadcast_to(draw.greedy_margin(logits_V, token), 2)
            return jax.nn.log_softmax(logits_V)[token], lead_2, jnp.zeros(())
        scaled_V = logits_V / temperature
        return jax.nn.log_softmax(scaled_V)[token], *draw.leads(scaled_V, key, token)

    def replay(params, packed, keys_RM):
        ours_BTS = packed.prompts_BT[:, :, None] == packed.prompts_BT[:, None, :]
        seen_BTS = (packed.rows_BT[:, None, :] == 0) | (packed.rows_BT[:, :, None] == packed.rows_BT[:, None, :])
        states_BTD, _ = model.causal_states(params, config, packed.tokens_BT, packed.positions_BT, ours_BTS & seen_BTS)
        states_XD = states_BTD.reshape(-1, states_BTD.shape[-1])[packed.before_RC.reshape(-1)]
        steps_C = jnp.arange(max_new_tokens)
        keys_RC = jax.vmap(lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(steps_C))(
            randomness.wrap(keys_RM)
        )
        flat = states_XD, packed.tokens_RC.reshape(-1), keys_RC.reshape(-1)
        chunk = max(1, MAX_CHUNK_LOGITS // config.vocab_size)
        found = jax.lax.map(lambda xs: of_state(params, *xs), flat, batch_size=chunk)
        return jax.tree.map(lambda x: x.reshape(*packed.tokens_RC.shape, *x.shape[1:]), found)

    return jit(replay)


def replay_completions(
    params: model.Params,
    config: QwenConfig,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    keys_RM: np.ndarray,
    *,
    temperature: float,
    rounding: Rounding,
    whole: int = 0,
    rows: int = 16,
    together: int = 1,
    text_slots: int = 0,
    jit: Callable[..., Any] = jax.jit,
) -> list[Replay]:
    """Replays R completions of a prompt each. What follows an end of sequence was not drawn.

    Args:
      keys_RM: `[R, 2]` uint32, of each completion. rounding: by default that of the dtypes (`rounding`).
      whole: tokens after which completions are cut off: a shorter one that does not end was cut by hand, which counts
        as a last token that was not drawn. 0: it may have been a stop string.
      rows: computed at a time. together: of these at most so many in a sequence, as far as they fit; those that follow
        each other share their prompt if it is the same.
      text_slots: tokens of a sequence; by default those of the longest text. All that is asked for with the same
        `text_slots` and `whole` takes few programs.

    Raises ValueError if a completion or its prompt is empty, or a token is not in the vocabulary.
    """
    written = [np.asarray(tokens_T, np.int64) for tokens_T in completions]
    for prompt, tokens_T in zip(prompts, written, strict=True):
        _check(config, prompt, tokens_T)
    lengths = [len(prompt) + len(tokens_T) for prompt, tokens_T in zip(prompts, written, strict=True)]
    width, new = bucket(max([*lengths, text_slots])), bucket(max(whole, *map(len, written)))
    run = make_replay(config, max_new_tokens=new, temperature=float(temperature), jit=jit)
    keys_RM = np.asarray(keys_RM, np.uint32).reshape(len(written), 2)
    shown = [tuple(prompt) for prompt in prompts]
    sequences, at_once = sequences_of(shown, written, width, together), max(1, rows // together)
    replays = []
    for start in range(0, len(sequences), at_once):
        part = sequences[start : start + at_once]
        padded = part + [[]] * (bucket(len(part)) - len(part))
        packed = pack(shown, written, padded, width=width, together=together, new_tokens=new)
        places = [b * together + row for b, numbers in enumerate(part) for row in range(len(numbers))]
        part_RM = np.zeros((len(packed.tokens_RC), 2), np.uint32)
        part_RM[places] = keys_RM[part[0][0] : part[-1][-1] + 1]
        found = jax.device_get(run(params, packed, part_RM))
        for place, i in zip(places, itertools.chain(*part), strict=True):
            logprobs_T, leads_T2, open_T = (x[place, : len(written[i])] for x in found)
            drawn_T = _drawn(written[i], config.eos_token_ids, whole)
            replays.append(Replay(logprobs_T, np.where(drawn_T[:, None], leads_T2, -np.inf), open_T, rounding))
    return replays


def replay_tokens(
    params: model.Params,
    config: QwenConfig,
    prompt: Sequence[int],
    tokens_T: Sequence[int],
    key_M: np.ndarray,
    *,
    temperature: float,
    rounding: Rounding,
) -> Replay:
    """`replay_completions` of one."""
    asked = ([prompt], [tokens_T], np.asarray(key_M)[None])
    return replay_completions(params, config, *asked, temperature=temperature, rounding=rounding)[0]


def _check(config: QwenConfig, prompt: Sequence[int], tokens_T: np.ndarray) -> None:
    if not len(prompt) or tokens_T.ndim != 1 or not len(tokens_T):
        raise ValueError("a replay needs a prompt and a completion of at least one token each.")
    text = np.concatenate([np.asarray(prompt, np.int64), tokens_T])
    if text.min() < 0 or text.max() >= config.vocab_size:
        raise ValueError(f"a replay was given a token that is not in the vocabulary of {config.vocab_size}.")


def _drawn(tokens_T: np.ndarray, eos_token_ids: Sequence[int], whole: int) -> np.ndarray:
    """Which tokens can have been drawn at all: none behind an end, no last one before `whole` that is no end."""
    ends_T = np.isin(tokens_T, eos_token_ids)
    drawn_T: np.ndarray = np.cumsum(ends_T) - ends_T == 0
    drawn_T[-1] &= len(tokens_T) >= whole or ends_T[-1]
    return drawn_T
