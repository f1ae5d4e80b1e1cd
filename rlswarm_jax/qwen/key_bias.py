"""The bias of keys (Qwen2, Qwen2.5), kept apart from what a cache rounds.

Real checkpoints have key biases a hundred times as large as the keys' own products, and an error relative to the whole
drowns those. The rotation is linear, R(Wx + b) = R(Wx) + R(b): a cache keeps R(Wx), and what q R(b) adds to the scores
is computed from the positions alone.
"""

import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.rope import rope_frequencies


def per_head(config: QwenConfig, layer: model.Params) -> Array:
    """The keys' bias, `[K, H]` float32."""
    return layer["k_bias"].reshape(config.num_kv_heads, config.head_dim).astype(jnp.float32)


def rotated(config: QwenConfig, bias_KH: Array, positions_BT: Array) -> Array:
    """R(b) of tokens at these positions as the cache keeps keys, `[B, K, H, T]` float32."""
    bias_BTKH = jnp.broadcast_to(bias_KH, (*positions_BT.shape, *bias_KH.shape))
    return model.keys_of(model.rotated(config, bias_BTKH, positions_BT))


def scores(config: QwenConfig, q_BKQTH: Array, bias_BKH: Array, turns_S: Array) -> Array:
    """Scores of rotated queries with the bias turned further by the angles of these positions, `[B, K, Q, T, S]`.

    In coordinates in which the angles are the same for all heads and rows: one product with a table `[H, S]`.
    """
    q1, q2 = jnp.split(q_BKQTH.astype(jnp.float32), 2, axis=-1)
    b1, b2 = jnp.split(bias_BKH[:, :, None, None], 2, axis=-1)
    turned_BKQTH = jnp.concatenate([q1 * b1 + q2 * b2, q2 * b1 - q1 * b2], axis=-1)
    frequencies = rope_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    angles_HS = jnp.asarray(frequencies)[:, None] * turns_S.astype(jnp.float32)
    table_HS = jnp.concatenate([jnp.cos(angles_HS), jnp.sin(angles_HS)])
    return jnp.matmul(turned_BKQTH, table_HS, precision="highest")
