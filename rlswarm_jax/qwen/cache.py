"""Keys and values that are kept, in the dtype they are kept in."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.qwen import model

INT8_MAX = 127.0


@flax.struct.dataclass
class KV:
    """Of one layer: keys_BKHS and values_BKSH, with the layouts of `model`; rounded keys are without bias (`key_bias`).

    int8 entries are divided by a float32 scale for each token and head: key_scales_BKS and value_scales_BKS, which are
    None for other dtypes. The rounding error of an entry is at most half its scale: 1/254 of the largest in its vector.
    """

    keys_BKHS: Array
    values_BKSH: Array
    key_scales_BKS: Array | None = None
    value_scales_BKS: Array | None = None

    @property
    def slots(self) -> int:
        return self.keys_BKHS.shape[-1]

    def empty(self, batch: int, slots: int) -> "KV":
        """No keys and values in the same dtypes, for `batch` rows of `slots` slots."""
        _, num_kv, size, _ = self.keys_BKHS.shape
        shapes = [(num_kv, size, slots), (num_kv, slots, size), (num_kv, slots), (num_kv, slots)]
        like = [self.keys_BKHS, self.values_BKSH, self.key_scales_BKS, self.value_scales_BKS]
        return KV(*[x if x is None else jnp.zeros((batch, *s), x.dtype) for x, s in zip(like, shapes, strict=True)])

    def attend(self, q_BKQTH: Array, mask_BKQTS: Array, more_BKQTS: Array | None = None) -> model.Part:
        """Attention of queries to the slots that the mask shows, with something more added to their scores."""
        if self.key_scales_BKS is None or self.value_scales_BKS is None:
            return model.attend_part(q_BKQTH, self.keys_BKHS, self.values_BKSH, mask_BKQTS, more_BKQTS)
        keys_BKHS = self.keys_BKHS.astype(jnp.float32) * self.key_scales_BKS[:, :, None]
        values_BKSH = self.values_BKSH.astype(jnp.float32) * self.value_scales_BKS[..., None]
        return model.attend_part(q_BKQTH.astype(jnp.float32), keys_BKHS, values_BKSH, mask_BKQTS, more_BKQTS)


def store(keys_BKHS: Array, values_BKSH: Array, dtype: Any) -> KV:
    """Keys and values in `dtype`."""
    if jnp.dtype(dtype) != jnp.int8:
        return KV(keys_BKHS.astype(dtype), values_BKSH.astype(dtype))
    keys, key_scales = _quantised(keys_BKHS, axis=2)
    values, value_scales = _quantised(values_BKSH, axis=3)
    return KV(keys, values, key_scales, value_scales)


def write(kv: KV, slot: Array, keys_BKHT: Array, values_BKTH: Array) -> KV:
    """Writes new keys and values at `slot` .. `slot + T` in all rows."""
    new = store(keys_BKHT, values_BKTH, kv.keys_BKHS.dtype)
    axes = KV(3, 2, None, None) if kv.key_scales_BKS is None else KV(3, 2, 2, 2)

    def put(old, some, axis):
        return jax.lax.dynamic_update_slice_in_dim(old, some, slot, axis=axis)

    return jax.tree.map(put, kv, new, axes)


def _quantised(x: Array, axis: int) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.abs(x).max(axis=axis), 1e-30) / INT8_MAX
    return jnp.round(x / jnp.expand_dims(scales, axis)).astype(jnp.int8), scales
