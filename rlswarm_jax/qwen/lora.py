"""LoRA (arXiv:2106.09685): what is added to a model's linear maps, as a pytree of its own.

An adapter is `{"layers": [{"q": {"a": [in, R], "b": [R, out]}, ...}, ...]}`, float32, with an empty layer where there
is none. The weights beneath it, its base, never change.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.model import Adapted, Params, Turned, param_shapes

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
Adapter = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """rank, alpha: the adapter adds `alpha / rank * x @ a @ b`. dropout: share of `x` that is 0 while it is trained.

    targets: of `TARGETS`. layers: their numbers, all if there are none. path: a PEFT directory that it begins with.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    layers: tuple[int, ...] = ()
    path: str = ""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def of_layer(self, index: int) -> tuple[str, ...]:
        """Which maps of a layer have one."""
        return tuple(name for name in TARGETS if name in self.targets and (not self.layers or index in self.layers))


def check(lora: LoraConfig, config: QwenConfig) -> None:
    """Raises ValueError for layers that the model does not have."""
    beyond = [layer for layer in lora.layers if layer >= config.num_layers]
    if beyond:
        raise ValueError(f"the adapter is of layer {beyond[0]}; the model's {config.num_layers} count from 0.")


def shapes(config: QwenConfig, lora: LoraConfig) -> Adapter:
    """The adapter, with a shape where an array will be."""

    def of(shape: tuple[int, int]) -> Adapter:
        return {"a": (shape[0], lora.rank), "b": (lora.rank, shape[1])}

    layers = param_shapes(config)["layers"]
    return {"layers": [{name: of(layer[name]) for name in lora.of_layer(index)} for index, layer in enumerate(layers)]}


def init(config: QwenConfig, lora: LoraConfig, key: Array) -> Adapter:
    """One that adds nothing yet, as PEFT begins: `a` uniform within 1 / sqrt(in), `b` zero. Consumes `key`."""
    check(lora, config)

    def leaf(path: Any, shape: tuple[int, int]) -> Array:
        if path[-1].key == "b":
            return jnp.zeros(shape, jnp.float32)
        name = jax.tree_util.keystr(path).encode()
        own = jax.random.fold_in(key, int.from_bytes(hashlib.sha256(name).digest()[:4], "little"))
        bound = shape[0] ** -0.5
        return jax.random.uniform(own, shape, jnp.float32, -bound, bound)

    return jax.tree_util.tree_map_with_path(leaf, shapes(config, lora), is_leaf=lambda x: isinstance(x, tuple))


def attached(base: Params, adapter: Adapter, lora: LoraConfig, keys_B: Array | None = None) -> Params:
    """Parameters that compute with both. keys_B: of dropout, if any."""

    def of(weight: Array | Turned, low: Adapter) -> Adapted:
        return Adapted(weight, low["a"], low["b"], keys_B, lora.scale, lora.dropout)

    layers = [
        layer | {name: of(layer[name], low) for name, low in own.items()}
        for layer, own in zip(base["layers"], adapter["layers"], strict=True)
    ]
    return base | {"layers": layers}


def dropout_keys(key: Array, step: Array, tokens_BT: Array) -> Array:
    """Of each sequence of a batch, `[B]`: by the update and by what it says, whatever other sequences there are."""

    def of(tokens_T: Array) -> Array:
        def fold(state: Array, token: Array) -> tuple[Array, None]:
            return (state ^ token.astype(jnp.uint32)) * jnp.uint32(16777619), None  # FNV-1a

        return jax.lax.scan(fold, jnp.uint32(2166136261), tokens_T)[0]

    words_B = jax.vmap(of)(tokens_BT)
    return jax.vmap(lambda word: jax.random.fold_in(jax.random.fold_in(key, step), word))(words_B)


def merged(base: Params, adapter: Adapter, lora: LoraConfig) -> Params:
    """Plain parameters that compute the same, in the base's dtypes; what the adapter leaves alone is the base's own."""
    layers = [
        layer | {name: _sum(layer[name], low["a"], low["b"], lora.scale) for name, low in own.items()}
        for layer, own in zip(base["layers"], adapter["layers"], strict=True)
    ]
    return base | {"layers": layers}


@functools.partial(jax.jit, static_argnums=3)
def _sum(weight: Array, a_IR: Array, b_RO: Array, scale: float) -> Array:
    more = scale * jnp.matmul(a_IR, b_RO, precision="highest")
    return (weight + more.astype(jnp.promote_types(weight.dtype, more.dtype))).astype(weight.dtype)


def num_parameters(config: QwenConfig, lora: LoraConfig) -> int:
    leaves = jax.tree.leaves(shapes(config, lora), is_leaf=lambda x: isinstance(x, tuple))
    return sum(int(np.prod(shape)) for shape in leaves)
