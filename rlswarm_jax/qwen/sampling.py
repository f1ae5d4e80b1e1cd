"""Sampling completions: one compiled prefill and decode loop with a key/value cache.

Each prompt is prefilled once and its cache forked to the rows that continue it. Token t of a row is a pure
function of the row's key and t (`rlswarm_jax.randomness`, version 1), drawn by two-level Gumbel-max.

A tile's shape is (prompts, prompt slots, rows, new tokens). At one shape a row's bits do not depend on its
neighbours, so the *exact* mode always runs one fixed tile and is bit-identical in any batch and for any G; the
*fast* mode runs a whole request as one tile, and its logits agree with exact ones to a small tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax import randomness
from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.config import QwenConfig

GREEDY = 0.0


class PromptError(ValueError):
    """A prompt that cannot be sampled from; the message says which and what would help."""


@flax.struct.dataclass
class Tile:
    """Prompts and the rows that continue them.

    prompts_PT: `[P, T]` int32, padded on the right. prompt_lengths_P: `[P]` int32, at least 1.
    prompt_R: `[R]` int32, the prompt each row continues. keys_RM: `[R, 2]` uint32 key data of each row.
    alive_R: `[R]` bool, false for rows that only fill the tile.
    """

    prompts_PT: Array
    prompt_lengths_P: Array
    prompt_R: Array
    keys_RM: Array
    alive_R: Array


@flax.struct.dataclass
class Completions:
    """tokens_RT: `[R, T]` int32, 0 behind the end. lengths_R: `[R]` int32, the end-of-sequence token included.

    logprobs_RT: `[R, T]` float32, of each token at the sampling temperature (greedy: at temperature 1), 0 behind
    the end. ended_R: `[R]` bool, false where the completion was cut off at the maximum length.
    """

    tokens_RT: Array
    logprobs_RT: Array
    lengths_R: Array
    ended_R: Array


@flax.struct.dataclass
class _Loop:
    cache: Any
    logits_RV: Array
    out: Completions


def two_level_gumbel(logits_V: Array, key: Array) -> Array:
    """One exact draw from softmax(logits), int32, with about 2 sqrt(V) Gumbel draws instead of V. Consumes `key`.

    Gumbel-max over chunks by their logsumexp, then over the tokens of the chosen chunk (a draw of the chunk with
    its marginal probability and of the token with its conditional one: the product is the token's own).
    """
    size = int(np.ceil(np.sqrt(logits_V.shape[0])))
    chunks = -(-logits_V.shape[0] // size)
    padded_CV = jnp.pad(logits_V, (0, chunks * size - logits_V.shape[0]), constant_values=model.MASKED).reshape(
        chunks, size
    )
    noise = jax.random.gumbel(key, (chunks + size,), jnp.float32, mode="high")
    chunk = jnp.argmax(jax.nn.logsumexp(padded_CV, axis=1) + noise[:chunks])
    return (chunk * size + jnp.argmax(padded_CV[chunk] + noise[chunks:])).astype(jnp.int32)


def make_sampler(
    config: QwenConfig,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int] | None = None,
    over_nodes: bool = False,
) -> Callable[[model.Params, Tile], Completions]:
    """Returns jitted `sample(params, tile) -> Completions`.

    Args:
      max_new_tokens: completions are cut off there.
      temperature: divides the logits; 0 is greedy decoding.
      eos_token_ids: tokens that end a completion; the checkpoint's own by default.
      over_nodes: params, tile and completions carry a leading axis W of nodes with weights of their own.
    """
    eos = jnp.asarray(config.eos_token_ids if eos_token_ids is None else tuple(eos_token_ids), jnp.int32)
    greedy = temperature == GREEDY
    lift = (lambda f, axes: jax.vmap(f, in_axes=axes)) if over_nodes else (lambda f, axes: f)

    def prefill(params, tile: Tile) -> _Loop:
        num_prompts, time = tile.prompts_PT.shape
        positions = jnp.broadcast_to(jnp.arange(time), (num_prompts, time))
        states_PTD, cache = model.hidden_states(
            params, config, tile.prompts_PT, positions, model.causal_mask(num_prompts, time)
        )
        last_PD = jnp.take_along_axis(states_PTD, (tile.prompt_lengths_P - 1)[:, None, None], axis=1)[:, 0]
        rows = tile.prompt_R.shape[0]

        def fork(kv_PTKH):
            return jnp.pad(kv_PTKH[tile.prompt_R], ((0, 0), (0, max_new_tokens), (0, 0), (0, 0)))

        out = Completions(
            tokens_RT=jnp.zeros((rows, max_new_tokens), jnp.int32),
            logprobs_RT=jnp.zeros((rows, max_new_tokens), jnp.float32),
            lengths_R=jnp.zeros(rows, jnp.int32),
            ended_R=~tile.alive_R,
        )
        return _Loop(jax.tree.map(fork, cache), model.head(params, last_PD)[tile.prompt_R], out)

    def step(params, tile: Tile, loop: _Loop, t) -> _Loop:
        scaled_RV = loop.logits_RV if greedy else loop.logits_RV / temperature
        if greedy:
            token_R = jnp.argmax(scaled_RV, axis=-1).astype(jnp.int32)
        else:
            keys_R = jax.vmap(jax.random.fold_in, in_axes=(0, None))(randomness.wrap(tile.keys_RM), t)
            token_R = jax.vmap(two_level_gumbel)(scaled_RV, keys_R)
        chosen_R = jnp.take_along_axis(scaled_RV, token_R[:, None], axis=-1)[:, 0]
        logprob_R = chosen_R - jax.nn.logsumexp(scaled_RV, axis=-1)
        live_R = ~loop.out.ended_R
        out = Completions(
            tokens_RT=loop.out.tokens_RT.at[:, t].set(jnp.where(live_R, token_R, 0)),
            logprobs_RT=loop.out.logprobs_RT.at[:, t].set(jnp.where(live_R, logprob_R, 0.0)),
            lengths_R=loop.out.lengths_R + live_R,
            ended_R=loop.out.ended_R | (token_R[:, None] == eos).any(axis=-1),
        )
        prompt_slots = tile.prompts_PT.shape[1]
        lengths_R = tile.prompt_lengths_P[tile.prompt_R]
        slots_S = jnp.arange(prompt_slots + max_new_tokens)
        seen_RS = (slots_S < lengths_R[:, None]) | ((slots_S >= prompt_slots) & (slots_S <= prompt_slots + t))
        states_R1D, cache = model.hidden_states(
            params,
            config,
            token_R[:, None],
            (lengths_R + t)[:, None],
            seen_RS[:, None],
            loop.cache,
            prompt_slots + t,
        )
        return _Loop(cache, model.head(params, states_R1D[:, 0]), out)

    def sample(params, tile: Tile) -> Completions:
        first = lift(prefill, (0, 0))(params, tile)

        def unfinished(carry):
            t, loop = carry
            return (t < max_new_tokens) & ~loop.out.ended_R.all()

        def advance(carry):
            t, loop = carry
            return t + 1, lift(step, (0, 0, 0, None))(params, tile, loop, t)

        _, loop = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), first))
        # a filler row was born ended and a cut-off row never ended: what ended is what stopped on its own
        return loop.out.replace(ended_R=loop.out.ended_R & (loop.out.lengths_R > 0))

    return jax.jit(sample)


def pad_prompts(prompts: Sequence[Sequence[int]], slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as `[P, slots]` int32 padded on the right with 0, and their lengths `[P]` int32.

    Raises PromptError for a prompt that is empty or does not fit.
    """
    lengths = np.array([len(p) for p in prompts], np.int32)
    for index, length in enumerate(lengths):
        if not 1 <= length <= slots:
            raise PromptError(f"prompt {index} has {length} tokens; 1 to {slots} fit: raise max_prompt_tokens.")
    padded = np.zeros((len(prompts), slots), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


def make_tile(
    prompts: Sequence[Sequence[int]],
    keys_PGM: np.ndarray,
    *,
    prompt_slots: int,
    num_prompts: int | None = None,
    num_rows: int | None = None,
) -> Tile:
    """A tile with G rows for each prompt, in order, filled up to `num_prompts` prompts and `num_rows` rows.

    keys_PGM: `[P, G, 2]` uint32 key data, consumed by the rows' completions.
    """
    count, group = keys_PGM.shape[:2]
    num_prompts, num_rows = num_prompts or count, num_rows or count * group
    fill_prompts, fill_rows = num_prompts - count, num_rows - count * group
    padded, lengths = pad_prompts(list(prompts) + [[0]] * fill_prompts, prompt_slots)
    return Tile(
        prompts_PT=padded,
        prompt_lengths_P=lengths,
        prompt_R=np.concatenate([np.repeat(np.arange(count), group), np.zeros(fill_rows, int)]).astype(np.int32),
        keys_RM=np.concatenate([keys_PGM.reshape(-1, 2), np.zeros((fill_rows, 2), np.uint32)]).astype(np.uint32),
        alive_R=np.arange(num_rows) < count * group,
    )


def sample_exact(
    sample: Callable[[model.Params, Tile], Completions],
    params: model.Params,
    prompts: Sequence[Sequence[int]],
    keys_PGM: np.ndarray,
    *,
    prompt_slots: int,
    rows: int,
) -> Completions:
    """All completions of all prompts through tiles of one fixed shape: `[rows]` rows with a prompt slot each.

    Bit-identical whatever else is in the request: a row's bits depend on its prompt, its key and the tile's shape
    alone. Returns NumPy arrays with P * G rows, prompt-major.
    """
    count, group = keys_PGM.shape[:2]
    pairs = [(p, g) for p in range(count) for g in range(group)]
    pieces = []
    for start in range(0, len(pairs), rows):
        part = pairs[start : start + rows]
        keys = np.stack([keys_PGM[p, g] for p, g in part])[:, None]
        tile = make_tile(
            [prompts[p] for p, _ in part], keys, prompt_slots=prompt_slots, num_prompts=rows, num_rows=rows
        )
        out = jax.device_get(sample(params, tile))
        pieces.append(jax.tree.map(lambda x, n=keys.shape[0]: x[:n], out))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)
