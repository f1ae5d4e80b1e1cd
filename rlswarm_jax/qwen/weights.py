"""Hugging Face checkpoint directories to and from parameter pytrees."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlswarm_jax.qwen.config import QwenConfig, read_config, to_hf
from rlswarm_jax.qwen.model import Params
from rlswarm_jax.qwen.naming import KINDS, TOP_NAMES, assembled, at, layout, misfits, on_device
from rlswarm_jax.qwen.tensors import (
    INDEX,
    SINGLE,
    Stored,
    find_tensors,
    index_json,
    plan_files,
    write_file,
)
from rlswarm_jax.qwen.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger("rlswarm_jax.qwen")

EMBED, HEAD = TOP_NAMES["embed"][0], TOP_NAMES["lm_head"][0]
COMPARED_ROWS = 4096  # of two large matrices at a time


class SaveError(RuntimeError):
    """A checkpoint directory cannot be written; the message says which and why."""


def resolve(path_or_hub_id: str) -> Path:
    """A directory as it is, or a hub id (`owner/name`, or `owner/name@revision`) as the local folder of its snapshot.

    What is in the hub's cache is taken from there when there is no network or HF_HUB_OFFLINE=1.

    Raises ValueError when there is no such directory and the hub cannot give the id either.
    """
    directory = Path(path_or_hub_id).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_absolute() or path_or_hub_id.startswith(".") or path_or_hub_id.count("/") != 1:
        raise ValueError(f"model directory {path_or_hub_id!r} does not exist.")
    import huggingface_hub
    from huggingface_hub import constants, errors

    name, _, revision = path_or_hub_id.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "merges.txt"],
            ignore_patterns=["*/*"],
        )
    except errors.LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ValueError(
            f"{path_or_hub_id!r} is not a directory and not in the hub's cache ({constants.HF_HUB_CACHE}), and {why}: "
            f"run `hf download {name}` where there is a network, or give a directory."
        ) from None
    except Exception as error:  # the hub client raises from half a dozen unrelated libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path_or_hub_id!r} is neither a directory nor a model the hub would give: {reason} "
            "Check the name and the network, or download it and give its directory."
        ) from None
    return Path(found)


def read_model(directory: Path) -> tuple[QwenConfig, Tokenizer]:
    """What a directory says of a model beside its weights; the config's end tokens are those of all its files.

    Raises ValueError that names what is missing, unreadable or not supported.
    """
    config = read_config(directory)
    tokenizer = load_tokenizer(directory, config.vocab_size, config.eos_token_ids)
    return dataclasses.replace(config, eos_token_ids=tokenizer.end_token_ids), tokenizer


Place = Callable[[tuple, np.ndarray], jax.Array]  # a parameter's path and array -> where it is kept


def load_params(directory: Path, config: QwenConfig, dtype: Any = np.float32, place: Place | None = None) -> Params:
    """Reads a checkpoint's tensors into a pytree of arrays of `dtype`, on the default device or by `place`.

    Needs the memory of its result and of one tensor: the files are mapped, and transposed and widened on the way.
    They have an `lm_head` unless it is tied, which the files decide where the config says so, as in `transformers`: of
    two matrices that differ both are kept, and either of them alone is both.

    Raises ValueError that names every missing, unexpected and misshapen tensor, or the unreadable file.
    """
    stored = find_tensors(directory)
    if config.tie_word_embeddings and HEAD in stored:
        embed = stored.setdefault(EMBED, stored[HEAD])
        if _same_numbers(embed, stored[HEAD], dtype):
            del stored[HEAD]
        else:
            config = dataclasses.replace(config, tie_word_embeddings=False)
            log.warning(
                "%s says tie_word_embeddings=true, but %s holds other numbers than %s: they are not tied.",
                directory / "config.json",
                HEAD,
                EMBED,
            )
    if wrong := misfits(config, stored):
        raise ValueError(f"{directory}: {wrong}.")

    def leaf(name: str, path: tuple, transposed: bool) -> jax.Array:
        array = stored[name].map()
        if place is None:
            return on_device(array, transposed, dtype)
        return place(path, np.array(array.T if transposed else array, dtype, order="C"))

    return assembled(config, leaf)


def _same_numbers(one: Stored, other: Stored, dtype: Any) -> bool:
    """Whether two matrices are equal in `dtype`, a few rows at a time."""
    if one is other or one.shape != other.shape:
        return one is other
    rows = range(0, one.shape[0] if one.shape else 0, COMPARED_ROWS)
    parts = ([view[r : r + COMPARED_ROWS].astype(dtype) for view in (one.map(), other.map())] for r in rows)
    return all(np.array_equal(a, b) for a, b in parts)


def save_checkpoint(
    directory: Path,
    config: QwenConfig,
    params: Params,
    tokenizer: Tokenizer,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a directory that `transformers` opens: config, safetensors in the params' dtype, tokenizer files, and
    the end tokens where it looks for them.

    `config.json` comes last, and nothing is touched before all files are written: what a failure or a kill leaves is
    the old checkpoint, or a directory that is none.

    Raises:
      ValueError: the directory holds files of another checkpoint, which would be taken for this one's.
      SaveError: the files cannot be written.
    """
    paths = {name: (path, transposed) for name, path, transposed in layout(config)}

    def described(name: str) -> tuple[str, tuple[int, ...]]:
        path, transposed = paths[name]
        leaf = at(params, path)
        return KINDS[np.dtype(leaf.dtype)], leaf.shape[::-1] if transposed else leaf.shape

    def read(name: str) -> np.ndarray:
        path, transposed = paths[name]
        array = np.asarray(at(params, path))
        return array.T if transposed else array

    sizes = {name: at(params, path).nbytes for name, (path, _) in paths.items()}
    files = plan_files(sizes, max_shard_bytes)
    indexed = set(files) != {SINGLE}
    others = {path.name for path in directory.glob("*.safetensors*")} - files.keys() - ({INDEX} if indexed else set())
    if others:
        raise ValueError(f"{directory} holds another checkpoint's {min(others)}: save to an empty directory.")
    dtype = str(params["embed"].dtype)
    small = dict(tokenizer.files) | {"tokenizer.json": tokenizer.backend.to_str(pretty=True).encode()}
    small |= _with_end_tokens(small, config.eos_token_ids, tokenizer)
    if indexed:
        small[INDEX] = index_json(files, sum(sizes.values())).encode()
    small["config.json"] = (json.dumps(to_hf(config) | {"torch_dtype": dtype}, indent=2) + "\n").encode()
    staged = directory / ".saving"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)  # of a save that was killed
        staged.mkdir()
        for file, names in files.items():
            write_file(staged / file, {name: described(name) for name in names}, read)
        for file, raw in small.items():
            (staged / file).write_bytes(raw)
        (directory / "config.json").unlink(missing_ok=True)
        for file in [*files, *small]:
            (staged / file).replace(directory / file)
    except OSError as error:
        size = sum(sizes.values()) / 1e6
        raise SaveError(f"cannot save {size:.1f} MB of weights to {directory}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _with_end_tokens(
    files: Mapping[str, bytes], end_token_ids: Sequence[int], tokenizer: Tokenizer
) -> dict[str, bytes]:
    """Files that tell `transformers` where a text ends, where those there are do not: it generates by the one, and
    makes a tokenizer of its own kind, with an end of its own, without the other."""

    def written(name: str, fields: dict[str, Any]) -> dict[str, bytes]:
        return {name: (json.dumps(json.loads(files.get(name, b"{}")) | fields, indent=2) + "\n").encode()}

    changed: dict[str, bytes] = {}
    ids = json.loads(files.get("generation_config.json", b"{}")).get("eos_token_id")
    if {*end_token_ids} != {*(ids if isinstance(ids, list) else [] if ids is None else [ids])}:
        changed |= written("generation_config.json", {"eos_token_id": list(end_token_ids)})
    if "tokenizer_config.json" not in files:
        added = tokenizer.backend.get_added_tokens_decoder()
        first = next((added[n].content for n in end_token_ids if n in added), None)
        eos = {} if first is None else {"eos_token": first}
        changed |= written("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | eos)
    return changed


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits of the parameters' `digest`."""
    return digest(params).hex()[:16]


def digest(tree: Any) -> bytes:
    """SHA-256 over all arrays of a pytree in its order, each with its path, dtype and shape; they are whole here."""
    h = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        h.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        h.update(array.tobytes())
    return h.digest()
