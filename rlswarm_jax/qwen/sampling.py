"""Sampling completions: one compiled loop over a key/value cache, in which finished rows take up waiting completions.

Each prompt is prefilled once, and its keys and values are kept once: attention is put together from the part over the
prompt, which a prompt's completions share, and the part over what each has written itself. A row is a place in the
batch that computes one completion at a time; when that has ended, the row goes on with the next that waits.

Token t of a completion is a pure function of its key and t (`rlswarm_jax.randomness`, version 1), drawn by two-level
Gumbel-max. At one shape its bits do not depend on its neighbours, so the *exact* mode always runs one fixed tile
without waiting completions and is bit-identical in any batch and for any G; the *fast* mode runs a whole request as
one tile, and its logits agree with exact ones to a small tolerance.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax import randomness
from rlswarm_jax.qwen import key_bias, model
from rlswarm_jax.qwen.cache import KV, store, write
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.draw import Draw, draw
from rlswarm_jax.qwen.stopping import StopTable

PREFILL_TOKENS = 4096  # of all prompts that are prefilled together, padding included


class PromptError(ValueError):
    """A prompt that cannot be sampled from; the message says which and what would help."""


@flax.struct.dataclass
class Tile:
    """Prompts, and the completions asked for.

    prompts_PT: `[P, T]` int32, padded on the right. prompt_lengths_P: `[P]` int32, at least 1.
    keys_PGM: `[P, G, 2]` uint32 key data of each completion. alive_PG: `[P, G]` bool, false for what only fills the
    shape.
    """

    prompts_PT: Array
    prompt_lengths_P: Array
    keys_PGM: Array
    alive_PG: Array


@flax.struct.dataclass
class Completions:
    """tokens_PGT: `[P, G, T]` int32, 0 behind the end. lengths_PG: `[P, G]` int32, the token that ended it included.

    logprobs_PGT: `[P, G, T]` float32, of each token in the distribution that it was drawn from (greedy: at temperature
    1), 0 behind the end. ended_PG: `[P, G]` bool, false where the completion was cut off at the maximum length.
    usage_X4: `[1, 4]` int32: decoding steps while completions waited, rows that were alive in them (summed up), and
    the same two after that.
    """

    tokens_PGT: Array
    logprobs_PGT: Array
    lengths_PG: Array
    ended_PG: Array
    usage_X4: Array

    def of(self, prompts: Any) -> "Completions":
        """Those of some prompts, in that order; `usage_X4` stays as it is. prompts: an index of axis P."""
        names = ("tokens_PGT", "logprobs_PGT", "lengths_PG", "ended_PG")
        return dataclasses.replace(self, **{name: getattr(self, name)[prompts] for name in names})


@flax.struct.dataclass
class _Prefix:
    """kv: of each layer, B = P. last_PD: final state of each prompt's last token."""

    kv: list[KV]
    last_PD: Array


@flax.struct.dataclass
class _Loop:
    """One state of the decoding loop; Q = P * G completions in all, R rows.

    kv: what the rows have written, S = max_new_tokens slots used in turn. states_RD: what the next token is drawn
    from. item_R: the completion each row computes, Q when idle. t_R: tokens it has. stop_R: state of the stop table.
    queue: completions taken up so far.
    """

    kv: list[KV]
    states_RD: Array
    item_R: Array
    t_R: Array
    stop_R: Array
    queue: Array
    tokens_QT: Array
    logprobs_QT: Array
    lengths_Q: Array
    ended_Q: Array
    usage_4: Array


def make_sampler(
    config: QwenConfig,
    *,
    max_new_tokens: int,
    temperature: float,
    how: Draw | None = None,
    rows: int = 0,
    eos_token_ids: Sequence[int] | None = None,
    stop: StopTable | None = None,
    kv_dtype: Any = None,
    jit: Callable[..., Any] = jax.jit,
) -> Callable[[model.Params, Tile], Completions]:
    """Returns jitted `sample(params, tile) -> Completions`, which computes in the dtype of `params`.

    Args:
      max_new_tokens: completions are cut off there.
      temperature: divides the logits; 0 is greedy decoding.
      how: truncation of the distribution, for evaluation: as behaviour of a policy that learns it would bias ratios.
      rows: completions computed at a time, the others wait; 0 is all of the tile. (Attention to the prompts is computed
        for those that wait too: with long prompts let no more than a few wait for each row.)
      eos_token_ids: tokens that end a completion; the checkpoint's own by default.
      stop: ends a completion whose text holds one of its strings.
      kv_dtype: of the cache: float32, bfloat16 or int8 (scaled per token and head); that of `params` by default.
      jit: what compiles, such as `compilation.Programs.jit`.
    """
    eos = jnp.asarray(config.eos_token_ids if eos_token_ids is None else tuple(eos_token_ids), jnp.int32)
    how = how or Draw()
    next_XV = None if stop is None else jnp.asarray(stop.next_XV)

    def apart(params) -> bool:
        """Whether keys are rounded by the cache, which then keeps them without their bias."""
        computed = params["embed"].dtype
        return config.qkv_bias and jnp.dtype(kv_dtype or computed) not in (computed, jnp.float32)

    def prefill(params, tile: Tile) -> _Prefix:
        kv_type = kv_dtype or params["embed"].dtype

        def some(prompts):
            tokens_CT, lengths_C = prompts
            states_CTD, kv = model.causal_states(params, config, tokens_CT)
            last_CD = jnp.take_along_axis(states_CTD, (lengths_C - 1)[:, None, None], axis=1)[:, 0]
            if apart(params):
                positions_1T = jnp.arange(tokens_CT.shape[1])[None]
                biases = [key_bias.per_head(config, layer) for layer in params["layers"]]
                shifts = [key_bias.rotated(config, bias_KH, positions_1T) for bias_KH in biases]
                kv = [(keys - shift, values) for (keys, values), shift in zip(kv, shifts, strict=True)]
            return _Prefix([store(keys, values, kv_type) for keys, values in kv], last_CD)

        prompts = (tile.prompts_PT, tile.prompt_lengths_P)
        count, slots = tile.prompts_PT.shape
        chunk = next(c for c in range(min(count, max(1, PREFILL_TOKENS // slots)), 0, -1) if count % c == 0)
        if chunk == count:
            return some(prompts)
        chunks = jax.tree.map(lambda x: x.reshape(count // chunk, chunk, *x.shape[1:]), prompts)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(some, chunks))

    def begin(tile: Tile, prefix: _Prefix) -> _Loop:
        count, group = tile.alive_PG.shape
        total, num_rows = count * group, min(rows or count * group, count * group)
        first_R = jnp.arange(num_rows)
        if num_rows < total:
            waiting = tile.alive_PG.sum()
            item_R = jnp.where(first_R < waiting, _queue(tile)[:num_rows], total)
            queue = jnp.minimum(num_rows, waiting)
        else:
            item_R, queue = jnp.where(tile.alive_PG.reshape(-1), first_R, total), jnp.int32(total)
        return _Loop(
            kv=[kv.empty(num_rows, max_new_tokens) for kv in prefix.kv],
            states_RD=prefix.last_PD[jnp.minimum(item_R // group, count - 1)],
            item_R=item_R.astype(jnp.int32),
            t_R=jnp.zeros(num_rows, jnp.int32),
            stop_R=jnp.zeros(num_rows, jnp.int32),
            queue=queue.astype(jnp.int32),
            tokens_QT=jnp.zeros((total, max_new_tokens), jnp.int32),
            logprobs_QT=jnp.zeros((total, max_new_tokens), jnp.float32),
            lengths_Q=jnp.zeros(total, jnp.int32),
            ended_Q=jnp.zeros(total, bool),
            usage_4=jnp.zeros(4, jnp.int32),
        )

    def step(params, tile: Tile, prefix: _Prefix, loop: _Loop, index) -> _Loop:
        """Draws a token for each row, and computes what the next is drawn from; `index` counts the steps."""
        count, group = tile.alive_PG.shape
        total = count * group
        keys_RM = tile.keys_PGM.reshape(total, 2)[jnp.minimum(loop.item_R, total - 1)]
        logits_RV = model.head(params, loop.states_RD)
        token_R, logprob_R = draw(logits_RV, randomness.wrap(keys_RM), loop.t_R, temperature, how)
        stop_R = loop.stop_R if next_XV is None else next_XV[loop.stop_R, token_R].astype(jnp.int32)
        ended_R = (token_R[:, None] == eos).any(axis=-1)
        if stop is not None:
            ended_R |= stop_R == stop.found
        alive_R = loop.item_R < total
        done_R = alive_R & (ended_R | (loop.t_R + 1 == max_new_tokens))
        ended_item_R = jnp.where(done_R, loop.item_R, total)

        waits, queue, item_R = jnp.zeros((), bool), loop.queue, jnp.where(done_R, total, loop.item_R)
        if loop.item_R.shape[0] < total:
            end = tile.alive_PG.sum()
            turn_R = loop.queue + jnp.cumsum(done_R) - 1
            next_R = _queue(tile)[jnp.minimum(turn_R, total - 1)]
            item_R = jnp.where(done_R & (turn_R < end), next_R, item_R)
            waits, queue = loop.queue < end, jnp.minimum(loop.queue + done_R.sum(), end).astype(jnp.int32)
        alive = alive_R.sum()
        spent_4 = jnp.stack([waits, waits * alive, ~waits, ~waits * alive]).astype(jnp.int32)

        prompt_R = jnp.minimum(loop.item_R // group, count - 1)
        positions_R1 = (tile.prompt_lengths_P[prompt_R] + loop.t_R)[:, None]
        biases = [key_bias.per_head(config, layer) for layer in params["layers"]] if apart(params) else None
        bias = None if biases is None else _Bias(config, biases, positions_R1)
        attend = functools.partial(_attend, tile, prefix, loop, index % max_new_tokens, bias)
        states_R1D, kv = model.hidden_states(params, config, token_R[:, None], positions_R1, attend)
        begun_RD = prefix.last_PD[jnp.minimum(item_R // group, count - 1)]
        return _Loop(
            kv=kv,
            states_RD=jnp.where(done_R[:, None], begun_RD, states_R1D[:, 0]),
            item_R=item_R.astype(jnp.int32),
            t_R=jnp.where(done_R, 0, loop.t_R + 1),
            stop_R=jnp.where(done_R, 0, stop_R),
            queue=queue,
            tokens_QT=loop.tokens_QT.at[loop.item_R, loop.t_R].set(token_R, mode="drop"),
            logprobs_QT=loop.logprobs_QT.at[loop.item_R, loop.t_R].set(logprob_R, mode="drop"),
            lengths_Q=loop.lengths_Q.at[ended_item_R].set(loop.t_R + 1, mode="drop"),
            ended_Q=loop.ended_Q.at[ended_item_R].set(ended_R, mode="drop"),
            usage_4=loop.usage_4 + spent_4,
        )

    def results(tile: Tile, loop: _Loop) -> Completions:
        shape = tile.alive_PG.shape
        return Completions(
            tokens_PGT=loop.tokens_QT.reshape(*shape, -1),
            logprobs_PGT=loop.logprobs_QT.reshape(*shape, -1),
            lengths_PG=loop.lengths_Q.reshape(shape),
            ended_PG=loop.ended_Q.reshape(shape),
            usage_X4=loop.usage_4[None],
        )

    def sample(params, tile: Tile) -> Completions:
        prefix = prefill(params, tile)
        total = tile.alive_PG.size

        def unfinished(carry):
            return (carry[1].item_R < total).any()

        def advance(carry):
            index, loop = carry
            return index + 1, step(params, tile, prefix, loop, index)

        start = (jnp.int32(0), begin(tile, prefix))
        _, loop = jax.lax.while_loop(unfinished, advance, start)
        return results(tile, loop)

    return jit(sample)


def _queue(tile: Tile) -> Array:
    """The tile's completions `[Q]`, those that are alive first and in their order."""
    return jnp.argsort(~tile.alive_PG.reshape(-1), stable=True)


@dataclasses.dataclass(frozen=True)
class _Bias:
    """What keys are kept without: of each layer `[K, H]`, and the rows' positions `[R, 1]`."""

    config: QwenConfig
    layers_KH: list[Array]
    positions_R1: Array

    def of_rows(self, layer: int) -> Array:
        """Of the rows' newest keys, `[R, K, H, 1]`."""
        return key_bias.rotated(self.config, self.layers_KH[layer], self.positions_R1)

    def own_scores(self, layer: int, q_RKQ1H: Array, age_S: Array) -> Array:
        """With what the rows wrote `age_S` tokens ago: turned back from where they are."""
        return key_bias.scores(self.config, q_RKQ1H, self.of_rows(layer)[..., 0], -age_S)

    def prompt_scores(self, layer: int, q_PKQGH: Array, slots: int) -> Array:
        at_0 = key_bias.rotated(self.config, self.layers_KH[layer], jnp.zeros((1, 1)))[..., 0]
        return key_bias.scores(self.config, q_PKQGH, at_0, jnp.arange(slots))


def _attend(
    tile: Tile, prefix: _Prefix, loop: _Loop, slot: Array, bias: _Bias | None, layer: int, q_R1NH, k_R1KH, v_R1KH
):
    """Attention of the rows' newest tokens, which are kept in `slot`, to their prompts and to what they wrote.

    A row that took up a completion t tokens ago sees the t + 1 newest slots, whose order does not matter.
    """
    num_rows, num_kv = q_R1NH.shape[0], k_R1KH.shape[2]
    q_RKQ1H = model.queries_of(q_R1NH, num_kv)
    k_RKH1 = model.keys_of(k_R1KH) if bias is None else model.keys_of(k_R1KH) - bias.of_rows(layer)
    own = write(loop.kv[layer], slot, k_RKH1, model.values_of(v_R1KH))
    age_S = (slot - jnp.arange(own.slots)) % own.slots
    seen_RS = age_S <= loop.t_R[:, None]
    more = None if bias is None else bias.own_scores(layer, q_RKQ1H, age_S)
    own_part = own.attend(q_RKQ1H, seen_RS[:, None, None, None], more)

    count, group = tile.alive_PG.shape
    everybody = num_rows == count * group  # row r computes completion r
    q_QKQ1H = q_RKQ1H
    if not everybody:
        q_QKQ1H = jnp.zeros((count * group, *q_RKQ1H.shape[1:]), q_RKQ1H.dtype)
        q_QKQ1H = q_QKQ1H.at[loop.item_R].set(q_RKQ1H, mode="drop")
    q_PKQGH = jnp.moveaxis(q_QKQ1H[:, :, :, 0].reshape(count, group, *q_QKQ1H.shape[1:3], -1), 1, 3)
    slots = tile.prompts_PT.shape[1]
    written_PS = jnp.arange(slots) < tile.prompt_lengths_P[:, None]
    more = None if bias is None else bias.prompt_scores(layer, q_PKQGH, slots)
    part = prefix.kv[layer].attend(q_PKQGH, written_PS[:, None, None, None], more)

    def of_rows(x_PKQGX):
        x_QKQ1X = jnp.moveaxis(x_PKQGX, 3, 1).reshape(count * group, *x_PKQGX.shape[1:3], 1, -1)
        return x_QKQ1X if everybody else x_QKQ1X[jnp.minimum(loop.item_R, count * group - 1)]

    out_RKQ1H = model.merge([tuple(map(of_rows, part)), own_part])
    return model.outputs_of(out_RKQ1H, q_R1NH), own


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
    prompts: Sequence[Sequence[int]], keys_PGM: np.ndarray, *, prompt_slots: int, num_prompts: int | None = None
) -> Tile:
    """A tile with G completions of each prompt, filled up to `num_prompts` prompts.

    keys_PGM: `[P, G, 2]` uint32 key data, consumed by the completions.
    """
    count, group = keys_PGM.shape[:2]
    fill = (num_prompts or count) - count
    padded, lengths = pad_prompts(list(prompts) + [[0]] * fill, prompt_slots)
    keys = np.concatenate([keys_PGM, np.zeros((fill, group, 2), np.uint32)]).astype(np.uint32)
    alive = np.repeat(np.arange(count + fill) < count, group).reshape(-1, group)
    return Tile(prompts_PT=padded, prompt_lengths_P=lengths, keys_PGM=keys, alive_PG=alive)


def sample_exact(
    sample: Callable[[model.Params, Tile], Completions],
    params: model.Params,
    prompts: Sequence[Sequence[int]],
    keys_PGM: np.ndarray,
    *,
    prompt_slots: int,
    rows: int,
) -> Completions:
    """All completions of all prompts through tiles of one fixed shape: `rows` prompts with one completion each.

    Bit-identical whatever else is in the request: a completion's bits depend on its prompt, its key and the tile's
    shape alone. `sample` must compute all rows of a tile at a time. Returns NumPy arrays.
    """
    count, group = keys_PGM.shape[:2]
    pairs = [(p, g) for p in range(count) for g in range(group)]
    pieces = []
    for start in range(0, len(pairs), rows):
        part = pairs[start : start + rows]
        keys = np.stack([keys_PGM[p, g] for p, g in part])[:, None]
        tile = make_tile([prompts[p] for p, _ in part], keys, prompt_slots=prompt_slots, num_prompts=rows)
        pieces.append(jax.device_get(sample(params, tile)))

    def whole(name: str) -> np.ndarray:
        rows_R = np.concatenate([getattr(out, name)[:, 0] for out in pieces])[: len(pairs)]
        return rows_R.reshape(count, group, *rows_R.shape[1:])

    usage_X4 = np.concatenate([out.usage_X4 for out in pieces])
    return Completions(whole("tokens_PGT"), whole("logprobs_PGT"), whole("lengths_PG"), whole("ended_PG"), usage_X4)


def bucket(size: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `size`: few shapes, at most half is padding."""
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power
