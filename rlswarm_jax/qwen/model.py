"""The Qwen2 / Qwen2.5 / Qwen3 dense decoder as pure functions over a plain pytree.

`hidden_states` is the one forward pass: sampling, training and replay all go through it, each with its own idea of
what a token attends to. Layers are a list, not stacked on L: decoding over stacked layers copies each layer's weights
out at every token.

Keys are kept `[B, K, H, S]` and values `[B, K, S, H]`, in which both products of attention are plain matrix products
of adjacent axes: with `[B, S, K, H]` they took 5 times as long on CPU.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

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
LONG = 256  # tokens of a text above which training attends block by block
BLOCKS = 8  # of a long text's queries; a block has 128 of them at least

KEPT_BYTES = 1 << 30  # for the backward pass of a tile

Remat = Literal["auto", "none", "dots", "layer"]


@dataclasses.dataclass(frozen=True)
class Forward:
    """How a forward pass that will be differentiated is computed.

    dtype: of activations, and of weights where they are multiplied; "" is that of the weights as they are kept. Norms'
    statistics, softmax and logits are in float32 at least, and gradients in the dtype in which weights are kept.
    remat: what the backward pass computes again instead of keeping it: nothing, all of a layer but its products with
    weights, or the whole layer, of which the input is kept (`jax.checkpoint`, arXiv:1604.06174). auto: the layer,
    where more than `KEPT_BYTES` would be kept, else nothing.
    """

    dtype: str = ""
    remat: Remat = "none"


PLAIN = Forward()


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


@flax.struct.dataclass
class Adapted:
    """A linear map `[in, out]` and what is added to it: `x @ weight + scale * dropped(x) @ a @ b` (arXiv:2106.09685).

    a_IR, b_RO: its low-rank part. keys_B: of each text's dropout, if there is one. dropout: the share of `x` that is 0.
    """

    weight: Array
    a_IR: Array
    b_RO: Array
    keys_B: Array | None
    scale: float = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Cast:
    """A linear map in the dtype that it is multiplied in, and as it is kept, which its gradient is of."""

    cast: Array
    kept: Array
    turned: bool = flax.struct.field(pytree_node=False)


def prepare(params: Params, dtype: Any, rows: int) -> Params:
    """Parameters to sample with: in `dtype`, and in the layout that is fastest for `rows` tokens at a time.

    XLA's CPU products of bfloat16, and of a single row, are up to twice as fast with `[out, in]`; all others, and other
    devices', are as fast or faster with `[in, out]`. The arrays themselves where nothing is to be done.
    """
    dtype = jnp.dtype(dtype)
    adapted = any(isinstance(x, Adapted) for layer in params["layers"] for x in layer.values())
    turn = not adapted and jax.default_backend() == "cpu" and (dtype == jnp.bfloat16 or rows == 1)
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
    params: Params,
    config: QwenConfig,
    tokens_BT: Array,
    positions_BT: Array,
    attend: Attend,
    how: Forward = PLAIN,
) -> tuple[Array, list[Any]]:
    """Runs the decoder; returns the final normed states `[B, T, D]` and what `attend` kept of each layer.

    Args:
      tokens_BT: int32 token ids.
      positions_BT: int32 rope positions.
      attend: `attend(layer, q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, kept)`; `attend_causally` is the plain one.
    """
    x_BTD = params["embed"][tokens_BT]
    x_BTD = x_BTD.astype(how.dtype) if how.dtype else x_BTD
    rope, remat = _rope_tables(config, positions_BT), remat_of(config, x_BTD.shape, x_BTD.dtype, how.remat)
    kept = []
    for index, layer in enumerate(params["layers"]):

        def run(layer: Params, x_BTD: Array, index: int = index) -> tuple[Array, Any]:
            q_BTNH, k_BTKH, v_BTKH = _project(layer, config, _rms_norm(x_BTD, layer["input_norm"], config.rms_norm_eps))
            out_BTNH, keep = attend(index, _rotate(q_BTNH, rope), _rotate(k_BTKH, rope), v_BTKH)
            x_BTD = x_BTD + _matmul(out_BTNH.reshape(*x_BTD.shape[:2], -1), layer["o"])
            return x_BTD + _mlp(layer, _rms_norm(x_BTD, layer["mlp_norm"], config.rms_norm_eps)), keep

        x_BTD, keep = _checkpointed(run, remat)(layer, x_BTD)
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


def remat_of(config: QwenConfig, shape_BTD: tuple[int, ...], dtype: Any, remat: Remat) -> Remat:
    """What "auto" means for a tile."""
    if remat != "auto":
        return remat
    batch, time, width = shape_BTD
    heads = config.num_heads * config.head_dim
    scores = config.num_heads * min(time, LONG)  # above, they are not kept
    of_token = config.num_layers * (8 * width + 5 * config.intermediate_size + 6 * heads + 3 * scores)
    return "layer" if batch * time * of_token * jnp.dtype(dtype).itemsize > KEPT_BYTES else "none"


def _checkpointed(run: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    if remat == "none":
        return run
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(run, policy=policy)


def trained_states(
    params: Params, config: QwenConfig, tokens_BT: Array, positions_BT: Array, seen_BTS: Array, how: Forward
) -> Array:
    """As `causal_states`, to be differentiated: final normed states `[B, T, D]`.

    The scores of a text longer than `LONG` tokens never exist all at once, in the backward pass neither.
    """

    def attend(index: int, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array) -> tuple[Array, None]:
        if tokens_BT.shape[1] > LONG and not flash_applies(q_BTNH):
            return attend_in_blocks(q_BTNH, k_BTKH, v_BTKH, seen_BTS), None
        return attend_causally(index, q_BTNH, k_BTKH, v_BTKH, seen_BTS=seen_BTS)[0], None

    return hidden_states(params, config, tokens_BT, positions_BT, attend, how)[0]


def head(params: Params, states_XD: Array) -> Array:
    """Final states `[..., D]` to float32 logits `[..., V]`; products of bfloat16 are added up in float32."""
    return product(states_XD, head_map(params))


def head_map(params: Params, dtype: Any = None) -> Array | Turned | Cast:
    """The linear map of `head`, to be multiplied in `dtype` by whoever does so many times."""
    tied = "lm_head" not in params
    kept = params["embed" if tied else "lm_head"]
    if dtype is None or kept.dtype == dtype:
        return Turned(kept) if tied else kept
    return Cast(jax.lax.stop_gradient(kept).astype(dtype), kept, tied)


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


def attend_in_blocks(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, seen_BTS: Array) -> Array:
    """As `attend_causally`, some queries at a time, each block against the keys that it can see.

    The backward pass computes a block's scores again, when it comes to it.
    """
    time = q_BTNH.shape[1]
    size = max(128, -(-time // BLOCKS))
    q_BKQTH, k_BKHT, v_BKTH = queries_of(q_BTNH, k_BTKH.shape[2]), keys_of(k_BTKH), values_of(v_BTKH)

    @jax.checkpoint
    def block(q_BKQXH: Array, k_BKHS: Array, v_BKSH: Array, seen_BXS: Array) -> Array:
        first = k_BKHS.shape[-1] - q_BKQXH.shape[3]  # of its queries
        mask_XS = jnp.arange(k_BKHS.shape[-1]) <= first + jnp.arange(q_BKQXH.shape[3])[:, None]
        return merge([attend_part(q_BKQXH, k_BKHS, v_BKSH, (mask_XS & seen_BXS)[:, None, None])])

    blocks = []
    for start in range(0, time, size):
        end = min(start + size, time)
        seen = seen_BTS[:, start:end, :end]
        blocks.append(block(q_BKQTH[..., start:end, :], k_BKHT[..., :end], v_BKTH[..., :end, :], seen))
    return outputs_of(jnp.concatenate(blocks, axis=3), q_BTNH)


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
    to the scores. Float32 inside, at least.
    """
    batch, num_kv, group, time, size = q_BKQTH.shape
    q_BKXH = q_BKQTH.reshape(batch, num_kv, group * time, size)
    scores = jnp.matmul(q_BKXH, k_BKHS, precision="highest", preferred_element_type=wide(q_BKXH))
    scores = scores.reshape(batch, num_kv, group, time, -1)
    if more_BKQTS is not None:
        scores = scores + more_BKQTS
    scores = jnp.where(mask_TS, scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))  # it cancels out
    weights = jnp.exp(scores - top)
    flat = weights.reshape(batch, num_kv, group * time, -1).astype(v_BKSH.dtype)
    out = jnp.matmul(flat, v_BKSH, precision="highest", preferred_element_type=wide(v_BKSH))
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
            y = y + layer[f"{name}_bias"].astype(y.dtype)
        return y.reshape(*x_BTD.shape[:2], heads, config.head_dim)

    q_BTNH, k_BTKH = project("q", config.num_heads), project("k", config.num_kv_heads)
    if config.qk_norm:
        q_BTNH = _rms_norm(q_BTNH, layer["q_norm"], config.rms_norm_eps)
        k_BTKH = _rms_norm(k_BTKH, layer["k_norm"], config.rms_norm_eps)
    return q_BTNH, k_BTKH, project("v", config.num_kv_heads)


def _mlp(layer: Params, x_BTD: Array) -> Array:
    gated = jax.nn.silu(_matmul(x_BTD, layer["gate"])) * _matmul(x_BTD, layer["up"])
    return _matmul(gated, layer["down"])


def wide(x: Array) -> Any:
    """The dtype to add up in, float32 or, in tests, float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _matmul(x: Array, w: Array | Turned | Adapted) -> Array:
    return product(x, w).astype(x.dtype)


def product(x: Array, w: Array | Turned | Adapted | Cast) -> Array:
    """`x @ w`, added up in float32 (which means float32, also on GPU and TPU), and not rounded.

    Over two axes, not three: the weight gradient of a `[B, T, D]` product was 2.7 times as slow on CPU.
    """
    if isinstance(w, Adapted):
        low = _matmul(x if w.keys_B is None else _dropped(x, w.keys_B, w.dropout), w.a_IR)
        return product(x, w.weight) + w.scale * product(low, w.b_RO)
    if isinstance(w, Cast):
        cast, kept, axis = w.cast, w.kept, int(w.turned)
    else:
        kept, axis = (w.weight_OI, 1) if isinstance(w, Turned) else (w, 0)
        cast = kept if kept.dtype == x.dtype else jax.lax.stop_gradient(kept).astype(x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    rows = flat.shape[0]
    if rows == 1 and flat.dtype == jnp.bfloat16:
        flat = jnp.pad(flat, ((0, 1), (0, 0)))  # two rows are a matrix product, one is a loop ten times as slow
    y = _dot(flat, cast, 1, axis) if flat.dtype.itemsize > 2 else _half_product(flat, cast, kept, axis)
    return y[:rows].reshape(*x.shape[:-1], -1)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    dims = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, dims, precision="highest", preferred_element_type=wide(x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _half_product(x_XI: Array, cast: Array, kept: Array, axis: int) -> Array:
    """A product in half precision, `[X, O]` float32, and of its gradient's products too: they are by nature of a
    float32 and a half, which leaves matrix units idle. The gradient of `kept` is not rounded on the way.
    """
    return _dot(x_XI, cast, 1, axis)


def _half_forward(x_XI: Array, cast: Array, kept: Array, axis: int) -> tuple[Array, Any]:
    return _dot(x_XI, cast, 1, axis), (x_XI, cast, jnp.zeros((0,), kept.dtype))


def _half_backward(axis: int, residuals: Any, gradient_XO: Array) -> tuple[Array, None, Array]:
    x_XI, cast, like = residuals
    gradient_XO = gradient_XO.astype(x_XI.dtype)
    of_x = _dot(gradient_XO, cast, 1, 1 - axis).astype(x_XI.dtype)
    pair = (x_XI, gradient_XO) if axis == 0 else (gradient_XO, x_XI)
    return of_x, None, _dot(*pair, 0, 0).astype(like.dtype)


_half_product.defvjp(_half_forward, _half_backward)


def _dropped(x_BTI: Array, keys_B: Array, rate: float) -> Array:
    """Each text's own noise; that of a token does not depend on the width that its text is padded to."""
    keep_BTI = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_BTI.shape[1:]))(keys_B)
    return jnp.where(keep_BTI, x_BTI / (1 - rate), jnp.zeros_like(x_BTI))


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    x32 = x.astype(wide(x))
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype) * normed.astype(x.dtype)


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
    first, second = jnp.split(x_BTXH.astype(wide(x_BTXH)), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTXH.dtype)
