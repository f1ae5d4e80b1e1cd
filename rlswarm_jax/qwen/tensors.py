"""Safetensors files as Hugging Face lays them out: `model.safetensors`, or shards and an index of what is where.

Both ways one tensor at a time. The files may come from anybody: all headers are checked before any tensor is read.
"""

import collections
import dataclasses
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
MAX_AXES = 8
MAX_HEADER_BYTES = 10_000_000  # a tensor takes about 120
MAX_LISTED = 4_000  # characters; all tensors of 64 layers are 3,000


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies: bytes `start` to `end` of a file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def map(self) -> np.ndarray:
        """A view of the file, which takes no memory of its own and is gone with its last reference."""
        mapped = np.memmap(self.file, self.dtype, "r", self.start, self.shape)
        return np.asarray(mapped) if mapped.flags.aligned else np.array(mapped)


def find_tensors(directory: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint directory by name; which files count is as in `transformers`.

    Symbolic links are followed, the hub's cache is made of them; names in the index that lead elsewhere are not.

    Raises ValueError that names the file that is missing or damaged, or the tensor that is not where it should be.
    """
    if (directory / SINGLE).exists():
        return read_header(directory / SINGLE)
    if not (directory / INDEX).exists():
        raise ValueError(f"{directory} holds neither {SINGLE} nor {INDEX}.")
    weight_map = _read_index(directory / INDEX)
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        if not (directory / file).is_file():
            names = [name for name, where in weight_map.items() if where == file]
            raise ValueError(f"{directory / file} does not exist: {INDEX} says that it holds {listed(names)}.")
        for name, stored in read_header(directory / file).items():
            if name in found:
                raise ValueError(f"{directory}: tensor {name!r} is in both {found[name].file.name} and {file}.")
            found[name] = stored
    wrong = [n for n in weight_map.keys() | found if n not in found or weight_map.get(n) != found[n].file.name]
    if wrong:
        raise ValueError(f"{directory / INDEX} and the files disagree on where {listed(wrong)} is.")
    return found


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_bytes(), object_pairs_hook=_no_name_twice)["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("its weight_map must be an object")
        for file in weight_map.values():
            if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
                raise ValueError(f"{file!r} is not the name of a file in its directory")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable index of safetensors files: {error}.") from None
    return weight_map


def read_header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds. Raises ValueError if anything about its header is not as the format has it."""
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            file.seek(0)
            (size,) = struct.unpack("<Q", file.read(8))
            if size > min(MAX_HEADER_BYTES, file_size - 8):
                raise ValueError(f"its header of {size} bytes is longer than the file or than {MAX_HEADER_BYTES}")
            header = json.loads(file.read(size), object_pairs_hook=_no_name_twice)
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        header.pop("__metadata__", None)
        found = {name: _entry(path, name, entry, 8 + size) for name, entry in header.items()}
        end = 8 + size
        for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
            if stored.start != end:
                raise ValueError(f"tensor {name!r} begins at byte {stored.start}, where {end} was expected")
            end = stored.end
        if end != file_size:
            raise ValueError(f"its tensors end at byte {end}, the file at {file_size}")
    except (ValueError, TypeError, struct.error, RecursionError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from None
    return found


def _entry(path: Path, name: str, entry: Any, origin: int) -> Stored:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {dtype!r}, expected one of {list(DTYPES)}")
    for numbers in (shape, offsets):
        whole = isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
        if not whole or len(numbers) > MAX_AXES:
            shown = f"{shape} at {offsets}"[:200]
            wanted = f"those must be at most {MAX_AXES} whole numbers, none below 0"
            raise ValueError(f"tensor {name[:200]!r} has shape {shown}: {wanted}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {name!r} of shape {shape} and dtype {dtype} cannot lie at {offsets}")
    return Stored(path, DTYPES[dtype], tuple(shape), origin + offsets[0], origin + offsets[1])


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def plan_files(sizes: Mapping[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """Which tensors go into which file: one file if all fit, else shards filled in order.

    A tensor larger than `max_shard_bytes` has a shard of its own.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}


def write_file(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Writes a safetensors file of the dtypes and shapes given, asking `read` for one tensor after the other."""
    names = sorted(tensors, key=lambda name: -DTYPES[tensors[name][0]].itemsize)  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name in names:
            file.write(np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8).data)


def index_json(files: Mapping[str, Iterable[str]], total_size: int) -> str:
    weight_map = {name: file for file, names in files.items() for name in names}
    return json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=2) + "\n"


def listed(names: Iterable[str]) -> str:
    """All names, those of several layers as one: `model.layers.{0,1,2}.mlp.up_proj.weight`."""
    found, layers = [], collections.defaultdict(list)
    for name in names:
        match = re.fullmatch(r"model\.layers\.(\d{1,5})\.(.+)", name)
        if match:
            layers[match[2]].append(match[1])
        else:
            found.append(name)
    for rest, numbers in layers.items():
        joined = ",".join(sorted(numbers, key=int))
        found.append(f"model.layers.{joined if len(numbers) == 1 else '{' + joined + '}'}.{rest}")
    text = ", ".join(sorted(found))
    return text if len(text) <= MAX_LISTED else f"{text[:MAX_LISTED]}..."
