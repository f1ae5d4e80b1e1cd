"""Hugging Face checkpoint directories to and from parameter pytrees; the one place that may import `transformers`."""

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy

from rlswarm_jax.qwen.config import QwenConfig, to_hf
from rlswarm_jax.qwen.model import Params, param_shapes
from rlswarm_jax.qwen.tokenizer import Message, Tokenizer

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

# our name -> (Hugging Face name inside a layer, whether the matrix is stored transposed, [out, in])
_LAYER_NAMES = {
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
_TOP_NAMES = {
    "embed": ("model.embed_tokens.weight", False),
    "norm": ("model.norm.weight", False),
    "lm_head": ("lm_head.weight", True),
}


def resolve(path_or_hub_id: str) -> Path:
    """A directory as it is, or a hub id (`owner/name`) as the local folder of its snapshot.

    Raises ValueError when there is no such directory and the hub cannot give the id either.
    """
    directory = Path(path_or_hub_id).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_absolute() or path_or_hub_id.startswith(".") or path_or_hub_id.count("/") != 1:
        raise ValueError(f"model directory {path_or_hub_id!r} does not exist.")
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]
        return Path(huggingface_hub.snapshot_download(path_or_hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub client raises from half a dozen unrelated libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path_or_hub_id!r} is neither a directory nor a model the hub would give: {reason} "
            "Check the name and the network, or download it and give its directory."
        ) from None


def load_params(directory: Path, config: QwenConfig, dtype: Any = np.float32) -> Params:
    """Reads all `*.safetensors` of a directory into a pytree of arrays of `dtype`.

    Raises ValueError that names every missing, unexpected or misshapen tensor, or the unreadable file.
    """
    expected = {name: (path, transposed) for name, path, transposed in _names(config)}
    shapes = param_shapes(config)
    leaves: dict[tuple, jax.Array] = {}
    unexpected = []
    for name, stored in _read_tensors(directory):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # some exporters write the tied head a second time
        if name not in expected:
            unexpected.append(name)
            continue
        path, transposed = expected.pop(name)
        array = stored.T if transposed else stored
        shape = _at(shapes, path)
        if array.shape != shape:
            raise ValueError(
                f"{directory}: tensor {name!r} is {stored.shape}, expected {shape[::-1] if transposed else shape}."
            )
        leaves[path] = jnp.asarray(np.ascontiguousarray(array.astype(dtype)))
    if expected or unexpected:
        parts = [
            f"{len(names)} tensors {what}: {', '.join(sorted(names)[:5])}"
            for what, names in (("missing", expected), ("unexpected", unexpected))
            if names
        ]
        raise ValueError(f"{directory}: " + "; ".join(parts) + ".")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[_keys(path)], shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def save_checkpoint(directory: Path, config: QwenConfig, params: Params, tokenizer: Tokenizer) -> None:
    """Writes a directory that `transformers` opens: config, safetensors in the params' dtype, tokenizer files.

    Raises ValueError if the directory holds the shards of another checkpoint, which would be read with this one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in directory.glob("*.safetensors*") if path.name != "model.safetensors"]
    if others:
        raise ValueError(f"{directory} holds another checkpoint's {others[0]}: save to an empty directory.")
    tensors = {}
    for name, path, transposed in _names(config):
        array = np.asarray(_at(params, path))
        tensors[name] = np.ascontiguousarray(array.T if transposed else array)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    fields = to_hf(config) | {"torch_dtype": str(np.asarray(params["embed"]).dtype)}
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    for name, raw in tokenizer.files.items():
        (directory / name).write_bytes(raw)


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits of the SHA-256 over all parameters, in the pytree's order."""
    h = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        h.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        h.update(array.tobytes())
    return h.hexdigest()[:16]


def chat_renderer(directory: Path) -> Callable[[Sequence[Message]], str]:
    """The checkpoint's own chat template, ending where the assistant's turn begins."""

    @functools.cache
    def tokenizer():
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
        from transformers import PreTrainedTokenizerFast  # 10 CPU-seconds: only when a conversation is rendered

        return PreTrainedTokenizerFast.from_pretrained(str(directory))

    def render(messages: Sequence[Message]) -> str:
        return tokenizer().apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    return render


def _names(config: QwenConfig) -> Iterator[tuple[str, tuple, bool]]:
    """Every tensor's Hugging Face name, its path in the pytree, and whether it is stored transposed."""
    shapes = param_shapes(config)
    for ours, (theirs, transposed) in _TOP_NAMES.items():
        if ours in shapes:
            yield theirs, (ours,), transposed
    for index, layer in enumerate(shapes["layers"]):
        for ours in layer:
            theirs, transposed = _LAYER_NAMES[ours]
            yield f"model.layers.{index}.{theirs}", ("layers", index, ours), transposed


def _read_tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor as a view of its memory-mapped file (the reader libraries copy, and cast bf16 slowly)."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory} holds no *.safetensors file.")
    for path in files:
        try:
            mapped = np.memmap(path, np.uint8, mode="r")
            (size,) = struct.unpack("<Q", mapped[:8].tobytes())
            if size > min(MAX_HEADER_BYTES, mapped.size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(mapped[8 : 8 + size].tobytes())
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                if entry["dtype"] not in DTYPES:
                    raise ValueError(f"tensor {name!r} has dtype {entry['dtype']}, expected one of {list(DTYPES)}")
                body = mapped[8 + size + start : 8 + size + end]
                yield name, body.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}.") from None


def _at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _keys(path: tuple) -> tuple:
    return tuple(p.key if isinstance(p, jax.tree_util.DictKey) else p.idx for p in path)
