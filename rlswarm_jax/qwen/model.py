"""The Qwen2 / Qwen2.5 / Qwen3 dense decoder as pure functions over a plain pytree.

`hidden_states` is the one forward pass: sampling, training and replay all go through it, each with its own idea of
what a token attends to. Layers are a list, not stacked on L: decoding over stacked layers copies each layer's weights
out at every token.

Keys are kept `[B, K, H, S]` and values `[B, K, S, H]`, in which both products of attention are plain matrix products
of adjacent axes: with `[B, S, K, H]` they took 5 times as long on CPU.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.rope import rope_frequencies

Params = dict[str, Any]
KV = tuple[Array, Array]  # keys [B, K, H, S] and values [B, K, S, H] of one layer
Attend = Callable[[int, Array, Array, Array], tuple[Array, Any]]
LINEAR = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")
MASKED = -1e30  # not -inf: a row with every slot masked stays finite


def param_shapes(config: QwenConfig) -> Params:
    """The pytree of parameters, with a shape where an array will be. Linear maps are `[in, out]`."""
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_heads * h, config.num_kv_heads * h
    layer: Params = {
        "input_norm": (d,),
        "q": (d, q),
        "k": (d, kv),
        "v": (d, kv),
        "o": (q, d),
        "mlp_norm": (d,),
        "gate": (d, f),
        "up": (d, f),
        "down": (f, d),
    }
    if config.qkv_bias:
        layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if config.qk_norm:
        layer |= {"q_norm": (h,), "k_norm": (h,)}
    shapes: Params = {"embed": (config.vocab_size, d), "norm": (d,)}
    shapes["layers"] = [dict(layer) for _ in range(config.num_layers)]
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (d, config.vocab_size)
    return shapes


def init_params(config: QwenConfig, key: Array, *, scale: float = 0.02) -> Params:
    """Random float32 parameters: normal with standard deviation `scale`, norms 1, biases 0. Consumes `key`."""
    shapes = param_shapes(config)
    paths, treedef = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))

    def leaf(path, shape, key):
        name = path[-1].key
        if name.endswith("norm"):
            return jnp.ones(shape, jnp.float32)
        if name.endswith("bias"):
            return jnp.zeros(shape, jnp.float32)
        return scale * jax.random.normal(key, shape, jnp.float32)

    keys = jax.random.split(key, len(paths))
    return treedef.unflatten([leaf(path, shape, k) for (path, shape), k in zip(paths, keys, strict=True)])


@flax.struct.dataclass
class Turned:
    """A linear map kept `[out, in]`."""

    weight_OI: Array


def prepare(params: Params, dtype: Any, rows: int) -> Params:
    """Parameters to sample with: in `dtype`, and in the layout that is fastest for `rows` tokens at a time.

    XLA's CPU products of bfloat16, and of a single row, are up to twice as fast with `[out, in]`; all others, and other
    devices', are as fast or faster with `[in, out]`. The arrays themselves where nothing is to be done.
    """
    dtype = jnp.dtype(dtype)
    turn = jax.default_backend() == "cpu" and (dtype == jnp.bfloat16 or rows == 1)
    if not turn and all(leaf.dtype == dtype for leaf in jax.tree.leaves(params)):
        return params
    return _prepared(params, dtype, turn)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _prepared(params: Params, dtype: Any, turn: bool) -> Params:
    def leaf(path, x):
        x = x.astype(dtype)
        return Turned(jnp.swapaxes(x, -1, -2)) if turn and path[-1].key in LINEAR else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def hidden_states(
    params: Params, config: QwenConfig, tokens_BT: Array, positions_BT: Array, attend: Attend
) -> tuple[Array, list[Any]]:
    """Runs the decoder; returns the final normed states `[B, T, D]` and what `attend` kept of each layer.

    Args:
      tokens_BT: int32 token ids.
      positions_BT: int32 rope positions.
      attend: `attend(layer, q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, kept)`; `attend_causally` is the plain one.
    """
    x_BTD = params["embed"][tokens_BT]
    rope = _rope_tables(config, positions_BT)
    kept = []
    for index, layer in enumerate(params["layers"]):
        q_BTNH, k_BTKH, v_BTKH = _project(layer, config, _rms_norm(x_BTD, layer["input_norm"], config.rms_norm_eps))
        out_BTNH, keep = attend(index, _rotate(q_BTNH, rope), _rotate(k_BTKH, rope), v_BTKH)
        x_BTD = x_BTD + _matmul(out_BTNH.reshape(*x_BTD.shape[:2], -1), layer["o"])
        x_BTD = x_BTD + _mlp(layer, _rms_norm(x_BTD, layer["mlp_norm"], config.rms_norm_eps))
        kept.append(keep)
    return _rms_norm(x_BTD, params["norm"], config.rms_norm_eps), kept


def causal_states(
    params: Params,
    config: QwenConfig,
    tokens_BT: Array,
    positions_BT: Array | None = None,
    seen_BTS: Array | None = None,
) -> tuple[Array, list[KV]]:
    """Final normed states `[B, T, D]` of whole texts, padded on the right at most, and every layer's keys and values.

    What stands behind a token, padding too, does not change its state. positions_BT: int32, 0..T-1 by default.
    seen_BTS: which of the tokens before it token t attends to, where these are not all.
    """
    batch, time = tokens_BT.shape
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(time), (batch, time))
    return hidden_states(params, config, tokens_BT, positions_BT, functools.partial(attend_causally, seen_BTS=seen_BTS))


def head(params: Params, states_XD: Array) -> Array:
    """Final states `[..., D]` to float32 logits `[..., V]`; products of bfloat16 are added up in float32."""
    return _product(states_XD, params["lm_head"] if "lm_head" in params else Turned(params["embed"]))


def logits(params: Params, config: QwenConfig, tokens_BT: Array) -> Array:
    """Float32 logits `[B, T, V]` of every position, causal, no padding on the left."""
    return head(params, causal_states(params, config, jnp.asarray(tokens_BT))[0])


def attend_causally(
    index: int, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, seen_BTS: Array | None = None
) -> tuple[Array, KV]:
    """Token t attends to tokens 0..t, or to those of them that it sees. On a GPU in half precision by cuDNN's flash
    attention, which has no scores.
    """
    del index
    time = q_BTNH.shape[1]
    kept = keys_of(k_BTKH), values_of(v_BTKH)
    if flash_applies(q_BTNH):
        mask_B1TS = None if seen_BTS is None else seen_BTS[:, None]
        how = {"mask": mask_B1TS, "is_causal": True, "implementation": "cudnn"}
        return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, **how), kept
    mask = jnp.tril(jnp.ones((time, time), bool))
    if seen_BTS is not None:
        mask = (mask & seen_BTS)[:, None, None]
    part = attend_part(queries_of(q_BTNH, k_BTKH.shape[2]), *kept, mask)
    return outputs_of(merge([part]), q_BTNH), kept


def flash_applies(q_BTNH: Array) -> bool:
    """cuDNN's kernel wants an NVIDIA GPU of compute capability 8 or more, half precision, and heads of 8, 16 .. 128."""
    size = q_BTNH.shape[-1]
    if jax.default_backend() != "gpu" or q_BTNH.dtype.itemsize != 2 or size > 128 or size % 8:
        return False
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 8


def keys_of(k_BTKH: Array) -> Array:
    """As the cache keeps keys, `[B, K, H, T]`."""
    return k_BTKH.transpose(0, 2, 3, 1)


def values_of(v_BTKH: Array) -> Array:
    """As the cache keeps values, `[B, K, T, H]`."""
    return v_BTKH.transpose(0, 2, 1, 3)


def queries_of(q_BTNH: Array, num_kv_heads: int) -> Array:
    """`[B, K, Q, T, H]`, scaled: the Q query heads that share key/value head K."""
    batch, time, heads, size = q_BTNH.shape
    q_BTKQH = q_BTNH.reshape(batch, time, num_kv_heads, heads // num_kv_heads, size) * (size**-0.5)
    return q_BTKQH.transpose(0, 2, 3, 1, 4)


def outputs_of(out_BKQTH: Array, like_BTNH: Array) -> Array:
    """The inverse of `queries_of`, but for the scale."""
    return out_BKQTH.transpose(0, 3, 1, 2, 4).reshape(like_BTNH.shape).astype(like_BTNH.dtype)


Part = tuple[Array, Array, Array]  # of a softmax: maximum [..., 1], sum [..., 1] and weighted values [..., H]


def attend_part(q_BKQTH: Array, k_BKHS: Array, v_BKSH: Array, mask_TS: Array, more_BKQTS: Array | None = None) -> Part:
    """Attention to some of the slots, to be put together by `merge` (the online softmax, arXiv:1805.02867).

    mask_TS: true where token t may see slot s; anything that broadcasts to `[B, K, Q, T, S]`. more_BKQTS: what is added
    to the scores. Float32 inside.
    """
    batch, num_kv, group, time, size = q_BKQTH.shape
    q_BKXH = q_BKQTH.reshape(batch, num_kv, group * time, size)
    scores = jnp.matmul(q_BKXH, k_BKHS, precision="highest", preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_kv, group, time, -1)
    if more_BKQTS is not None:
        scores = scores + more_BKQTS
    scores = jnp.where(mask_TS, scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))  # it cancels out
    weights = jnp.exp(scores - top)
    flat = weights.reshape(batch, num_kv, group * time, -1).astype(v_BKSH.dtype)
    out = jnp.matmul(flat, v_BKSH, precision="highest", preferred_element_type=jnp.float32)
    return top, weights.sum(axis=-1, keepdims=True), out.reshape(q_BKQTH.shape)


def merge(parts: list[Part]) -> Array:
    """Attention to the slots of all parts together, float32 in the queries' shape."""
    top = functools.reduce(jnp.maximum, [part[0] for part in parts])
    scales = [jnp.exp(part[0] - top) for part in parts]
    total = sum(scale * part[1] for scale, part in zip(scales, parts, strict=True))
    return sum(scale * part[2] for scale, part in zip(scales, parts, strict=True)) / total


def _project(layer: Params, config: QwenConfig, x_BTD: Array) -> tuple[Array, Array, Array]:
    """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`, before the rotation."""

    def project(name: str, heads: int) -> Array:
        y = _matmul(x_BTD, layer[name])
        if config.qkv_bias:
            y = y + layer[f"{name}_bias"]
        return y.reshape(*x_BTD.shape[:2], heads, config.head_dim)

    q_BTNH, k_BTKH = project("q", config.num_heads), project("k", config.num_kv_heads)
    if config.qk_norm:
        q_BTNH = _rms_norm(q_BTNH, layer["q_norm"], config.rms_norm_eps)
        k_BTKH = _rms_norm(k_BTKH, layer["k_norm"], config.rms_norm_eps)
    return q_BTNH, k_BTKH, project("v", config.num_kv_heads)


def _mlp(layer: Params, x_BTD: Array) -> Array:
    gated = jax.nn.silu(_matmul(x_BTD, layer["gate"])) * _matmul(x_BTD, layer["up"])
    return _matmul(gated, layer["down"])


def _matmul(x: Array, w: Array | Turned) -> Array:
    return _product(x, w).astype(x.dtype)


def _product(x: Array, w: Array | Turned) -> Array:
    """`x @ w`, added up in float32 (which means float32, also on GPU and TPU), and not rounded.

    Over two axes, not three: the weight gradient of a `[B, T, D]` product was 2.7 times as slow on CPU.
    """
    weight, axis = (w.weight_OI, 1) if isinstance(w, Turned) else (w, 0)
    flat = x.reshape(-1, x.shape[-1])
    rows = flat.shape[0]
    if rows == 1 and flat.dtype == jnp.bfloat16:
        flat = jnp.pad(flat, ((0, 1), (0, 0)))  # two rows are a matrix product, one is a loop ten times as slow
    dims = (((1,), (axis,)), ((), ()))
    y = jax.lax.dot_general(flat, weight, dims, precision="highest", preferred_element_type=jnp.float32)
    return y[:rows].reshape(*x.shape[:-1], -1)


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return weight * normed.astype(x.dtype)


def _rope_tables(config: QwenConfig, positions_BT: Array) -> tuple[Array, Array]:
    """Cosine and sine of each pair of dimensions, `[B, T, 1, H / 2]` float32."""
    frequencies = rope_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    scale = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return jnp.cos(angles)[:, :, None] * scale, jnp.sin(angles)[:, :, None] * scale


def rotated(config: QwenConfig, x_BTXH: Array, positions_BT: Array) -> Array:
    """Heads turned as those of tokens at these positions are."""
    return _rotate(x_BTXH, _rope_tables(config, positions_BT))


def _rotate(x_BTXH: Array, rope: tuple[Array, Array]) -> Array:
    """Rotary embedding in the half-split layout of the Hugging Face checkpoints."""
    cos, sin = rope
    first, second = jnp.split(x_BTXH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTXH.dtype)
