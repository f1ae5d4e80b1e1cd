"""The Qwen2 / Qwen2.5 / Qwen3 dense decoder as pure functions over a plain pytree.

`hidden_states` is the one forward pass: sampling, training and replay all go through it. Layers are a list, not
stacked on L: decoding over stacked layers copies each layer's weights out at every token.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.rope import rope_frequencies

Params = dict[str, Any]
Cache = list[tuple[Array, Array]]  # per layer: keys and values, each [B, S, K, H]
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


def hidden_states(
    params: Params,
    config: QwenConfig,
    tokens_BT: Array,
    positions_BT: Array,
    mask_BTS: Array,
    cache: Cache | None = None,
    slot: Array | int = 0,
) -> tuple[Array, Cache]:
    """Runs the decoder; returns the final normed states `[B, T, D]` and every layer's keys and values.

    Args:
      tokens_BT: int32 token ids.
      positions_BT: int32 rope positions.
      mask_BTS: bool, true where query t may see slot s. Without a cache the slots are the T tokens themselves.
      cache: keys and values of earlier tokens; this call's are written at `slot` .. `slot + T` in all rows.
    """
    x_BTD = params["embed"][tokens_BT]
    rope = _rope_tables(config, positions_BT)
    kv: Cache = []
    for index, layer in enumerate(params["layers"]):
        normed = _rms_norm(x_BTD, layer["input_norm"], config.rms_norm_eps)
        attended, layer_kv = _attention_block(layer, config, normed, rope, mask_BTS, cache and cache[index], slot)
        x_BTD = x_BTD + attended
        x_BTD = x_BTD + _mlp(layer, _rms_norm(x_BTD, layer["mlp_norm"], config.rms_norm_eps))
        kv.append(layer_kv)
    return _rms_norm(x_BTD, params["norm"], config.rms_norm_eps), kv


def head(params: Params, states_XD: Array) -> Array:
    """Final states `[..., D]` to float32 logits `[..., V]`."""
    weight_DV = params["lm_head"] if "lm_head" in params else params["embed"].T
    return _matmul(states_XD.astype(jnp.float32), weight_DV.astype(jnp.float32))


def logits(params: Params, config: QwenConfig, tokens_BT: Array) -> Array:
    """Float32 logits `[B, T, V]` of every position, causal, no padding on the left."""
    tokens_BT = jnp.asarray(tokens_BT)
    batch, time = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(time), (batch, time))
    states_BTD, _ = hidden_states(params, config, tokens_BT, positions_BT, causal_mask(batch, time))
    return head(params, states_BTD)


def causal_mask(batch: int, time: int) -> Array:
    """`[B, T, T]` bool: token t sees tokens 0..t. Right padding is never seen by what comes before it."""
    return jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), (batch, time, time))


def attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    """Grouped-query attention, softmax in float32; `[B, T, N, H]` in the dtype of `v_BSKH`."""
    batch, time, num_heads, size = q_BTNH.shape
    num_kv = k_BSKH.shape[2]
    q_BTKQH = q_BTNH.reshape(batch, time, num_kv, num_heads // num_kv, size) * (size**-0.5)
    scores = jnp.einsum("btkqh,bskh->bkqts", q_BTKQH, k_BSKH, precision="highest", preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    out = jnp.einsum("bkqts,bskh->btkqh", weights, v_BSKH, precision="highest")
    return out.reshape(batch, time, num_heads, size)


def _attention_block(layer, config, x_BTD, rope, mask_BTS, cached, slot):
    batch, time, _ = x_BTD.shape

    def project(name, heads):
        y = _matmul(x_BTD, layer[name])
        if config.qkv_bias:
            y = y + layer[f"{name}_bias"]
        return y.reshape(batch, time, heads, config.head_dim)

    q_BTNH = project("q", config.num_heads)
    k_BTKH = project("k", config.num_kv_heads)
    v_BTKH = project("v", config.num_kv_heads)
    if config.qk_norm:
        q_BTNH = _rms_norm(q_BTNH, layer["q_norm"], config.rms_norm_eps)
        k_BTKH = _rms_norm(k_BTKH, layer["k_norm"], config.rms_norm_eps)
    q_BTNH, k_BTKH = _rotate(q_BTNH, rope), _rotate(k_BTKH, rope)
    if cached is None:
        k_BSKH, v_BSKH = k_BTKH, v_BTKH
    else:
        k_BSKH = jax.lax.dynamic_update_slice_in_dim(cached[0], k_BTKH.astype(cached[0].dtype), slot, axis=1)
        v_BSKH = jax.lax.dynamic_update_slice_in_dim(cached[1], v_BTKH.astype(cached[1].dtype), slot, axis=1)
    out_BTNH = attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
    return _matmul(out_BTNH.reshape(batch, time, -1), layer["o"]), (k_BSKH, v_BSKH)


def _mlp(layer: Params, x_BTD: Array) -> Array:
    gated = jax.nn.silu(_matmul(x_BTD, layer["gate"])) * _matmul(x_BTD, layer["up"])
    return _matmul(gated, layer["down"])


def _matmul(x: Array, w: Array) -> Array:
    """`x @ w` at full precision (float32 means float32, also on GPU and TPU).

    Over two axes, not three: the weight gradient of a `[B, T, D]` product was 2.7 times as slow on CPU.
    """
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), w, precision="highest")
    return flat.reshape(*x.shape[:-1], w.shape[-1])


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return weight * normed.astype(x.dtype)


def _rope_tables(config: QwenConfig, positions_BT: Array) -> tuple[Array, Array]:
    frequencies = rope_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    scale = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return jnp.cos(angles)[:, :, None] * scale, jnp.sin(angles)[:, :, None] * scale


def _rotate(x_BTXH: Array, rope: tuple[Array, Array]) -> Array:
    """Rotary embedding in the half-split layout of the Hugging Face checkpoints."""
    cos, sin = rope
    first, second = jnp.split(x_BTXH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTXH.dtype)
