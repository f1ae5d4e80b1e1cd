"""Weights as Hugging Face's tensors: what each is called, how it lies, and the name of them all, a hash."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.model import Params, param_shapes
from rlswarm_jax.qwen.tensors import DTYPES, listed

Tensors = dict[str, np.ndarray]  # Hugging Face's name -> array in its layout (a linear map is [out, in]), on the host

# our name -> (Hugging Face name inside a layer, whether the matrix is stored transposed, [out, in])
LAYER_NAMES = {
    "input_norm": ("input_layernorm.weight", False),
    "q": ("self_attn.q_proj.weight", True),
    "k": ("self_attn.k_proj.weight", True),
    "v": ("self_attn.v_proj.weight", True),
    "o": ("self_attn.o_proj.weight", True),
    "q_bias": ("self_attn.q_proj.bias", False),
    "k_bias": ("self_attn.k_proj.bias", False),
    "v_bias": ("self_attn.v_proj.bias", False),
    "q_norm": ("self_attn.q_norm.weight", False),
    "k_norm": ("self_attn.k_norm.weight", False),
    "mlp_norm": ("post_attention_layernorm.weight", False),
    "gate": ("mlp.gate_proj.weight", True),
    "up": ("mlp.up_proj.weight", True),
    "down": ("mlp.down_proj.weight", True),
}
TOP_NAMES = {
    "embed": ("model.embed_tokens.weight", False),
    "norm": ("model.norm.weight", False),
    "lm_head": ("lm_head.weight", True),
}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}  # dtype -> as safetensors has it
NAME = re.compile("[!-~]{1,256}")  # printable ASCII without blanks: what a line of the hash can hold


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def tensors_hash(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The name of weights, 32 bytes (docs/wire-format.md): SHA-256 over a line for each tensor, sorted by name,

        NAME DTYPE SHAPE HASH

    in ASCII with "\\n" behind each: the dtype as safetensors has it, the shape as numbers with commas between, and the
    SHA-256 of the little-endian bytes in hexadecimal. So a single tensor can be shown, and be checked.

    Raises ValueError for a tensor that has no such line.
    """
    lines = [_line(name, tensors[name]) for name in sorted(tensors)]
    return hashlib.sha256("".join(lines).encode()).digest()


def _line(name: str, array: np.ndarray) -> str:
    if array.dtype not in KINDS or not NAME.fullmatch(name):
        raise ValueError(f"tensor {name[:200]!r} of {array.dtype} has no hash: it needs a plain name and {[*DTYPES]}.")
    found = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return f"{name} {KINDS[array.dtype]} {','.join(map(str, array.shape))} {found.hexdigest()}\n"


def to_tensors(params: Params, config: QwenConfig, dtype: Any) -> Tensors:
    """Plain parameters as C-contiguous arrays of `dtype`; whatever needs no cast and no turning shares their memory.

    What is sharded must be whole here, as `parallel.fetch` makes it where it is on several processes.
    """
    dtype = np.dtype(dtype)

    def of(leaf: Any, transposed: bool) -> np.ndarray:
        array = np.asarray(leaf) if jax.default_backend() == "cpu" else leaf  # others turn and cast faster than NumPy
        return np.ascontiguousarray((array.T if transposed else array).astype(dtype, copy=False))

    return {name: of(at(params, path), transposed) for name, path, transposed in layout(config)}


def from_tensors(tensors: Mapping[str, np.ndarray], config: QwenConfig) -> Params:
    """Parameters on the default device, in the tensors' dtype and in memory of their own.

    Raises ValueError that names every missing, unexpected and misshapen tensor, and every one of a dtype that weights
    don't have or that differs from the others'.
    """
    wrong = [misfits(config, tensors)] if misfits(config, tensors) else []
    dtypes = {name: array.dtype for name, array in sorted(tensors.items())}
    dtype = dtypes.get(TOP_NAMES["embed"][0])
    if odd := {name: d for name, d in dtypes.items() if d not in KINDS or d != dtype}:
        wrong += [f"{len(odd)} tensors are not of one dtype of {[*DTYPES]}: {listed(odd)}"]
    if wrong:
        raise ValueError(f"these tensors are not the model's: {'; '.join(wrong)}.")

    def leaf(name: str, path: tuple, transposed: bool) -> np.ndarray:
        return np.array(tensors[name].T if transposed else tensors[name], order="C")  # or jax may share its memory

    return jax.device_put(assembled(config, leaf))  # all at once: each call costs more than a tiny model's matrix


def misfits(config: QwenConfig, found: Mapping[str, Shaped]) -> str:
    """What makes these tensors others than the model's: every missing, unexpected and misshapen one; "" if nothing."""
    shapes = param_shapes(config)
    expected = {}
    for name, path, transposed in layout(config):
        shape = at(shapes, path)
        expected[name] = shape[::-1] if transposed else shape
    wrong = []
    for which, what in ((expected.keys() - found, "missing"), (found.keys() - expected, "unexpected")):
        if which:
            wrong.append(f"{len(which)} tensors {what}: {listed(which)}")
    for name in expected.keys() & found:
        if found[name].shape != expected[name]:
            wrong.append(f"tensor {name!r} is {found[name].shape}, expected {expected[name]}")
    return "; ".join(sorted(wrong))


def assembled(config: QwenConfig, leaf: Callable[[str, tuple, bool], Any]) -> Params:
    """The pytree of parameters. leaf: from a tensor's name, its path and whether it lies transposed."""
    leaves = {path: leaf(name, path, transposed) for name, path, transposed in layout(config)}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[_keys(path)], param_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
    )


def on_device(array: np.ndarray, transposed: bool, dtype: Any) -> jax.Array:
    """A tensor as a parameter on the default device, in memory of its own."""
    view = array.T if transposed else array
    if view.flags.c_contiguous:  # jax may share such memory: the parameter would change with it
        view = view.copy()
    return jax.device_put(view).astype(dtype).block_until_ready()  # jax transposes twice as fast as NumPy


def layout(config: QwenConfig) -> Iterator[tuple[str, tuple, bool]]:
    """Every tensor's Hugging Face name, its path in the pytree, and whether it lies transposed."""
    shapes = param_shapes(config)
    for ours, (theirs, transposed) in TOP_NAMES.items():
        if ours in shapes:
            yield theirs, (ours,), transposed
    for index, layer in enumerate(shapes["layers"]):
        for ours in layer:
            theirs, transposed = LAYER_NAMES[ours]
            yield f"model.layers.{index}.{theirs}", ("layers", index, ours), transposed


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _keys(path: tuple) -> tuple:
    return tuple(p.key if isinstance(p, jax.tree_util.DictKey) else p.idx for p in path)
