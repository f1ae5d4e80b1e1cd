"""What leads from weights to their next version, bit by bit: which entries changed, and to what.

A patch is its header's length (8 bytes, little-endian), the header in MessagePack, zeros up to a multiple of 8, and the
body. A *whole* one holds the tensors themselves, sorted by name. A *sparse* one stands on its parent's: it counts all
entries of all tensors, sorted by name and in the order of each, as one sequence. Its body is streams of bytes, one
after the other:

  gaps: of each entry that changed, how many before it did not, since the one before: as many bytes 255 as that is times
    255, and a byte of what is left;
  planes: first the lowest bytes of all changes, then the next, as many as an entry has. A change is the difference of
    both bit patterns as integers, zigzag coded (0, -1, 1, -2, ... are 0, 1, 2, 3, ...): steps of a rounding are small.

A stream that takes as many bytes as it holds is plain; one that takes fewer is compressed by zlib. Where most entries
change at every step, and their low bits are noise, a sparse patch would save little: then it is a whole one.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from rlswarm_jax.qwen.naming import KINDS, NAME, Tensors, tensors_hash
from rlswarm_jax.qwen.tensors import DTYPES, MAX_AXES
from rlswarm_jax.records.schema import U63, Hash

WORTH = 0.4  # of the whole that a sparse patch may take
NOISE = 7.0  # bits of entropy in a byte above which compressing is not tried
SAMPLED, COUNTED = 16, 4096  # every such entry is looked at first; bytes of a stream that are counted, about
BLOCK = 1 << 20  # entries looked at at once
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 1 << 14
PREFIX = 8  # bytes of the header's length

Kind = Annotated[str, Meta(pattern=rf"\A({'|'.join(DTYPES)})\Z")]
Shape = Annotated[list[Annotated[int, Meta(ge=1, le=1 << 40)]], Meta(max_length=MAX_AXES)]
Entry = tuple[Annotated[str, Meta(pattern=rf"\A{NAME.pattern}\Z")], Shape]


class PatchError(ValueError):
    """A patch that leads nowhere; the message says what is wrong with it."""


class Whole(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """weights: their name. tensors: each one's name and shape."""

    weights: Hash
    dtype: Kind
    tensors: Annotated[list[Entry], Meta(min_length=1, max_length=MAX_TENSORS)]

    @property
    def changed(self) -> int:
        """All entries."""
        return sum(math.prod(shape) for _, shape in self.tensors)


class Sparse(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """weights, parent: names of what it leads to and from. changed: entries that do. gaps: bytes of that stream when it
    is plain. streams: bytes that each takes."""

    weights: Hash
    parent: Hash
    changed: U63
    gaps: U63
    streams: Annotated[list[U63], Meta(max_length=1 + 4)]


_headers = msgspec.msgpack.Decoder(Whole | Sparse)


def encode(new: Tensors, old: Tensors | None, *, weights: bytes = b"", parent: bytes = b"") -> bytes:
    """The patch that leads to `new`: from `old` if that is given, alike in names, dtype and shapes, and worth it.

    weights, parent: the names of `new` and `old`, if they are known. Raises ValueError for tensors of several dtypes,
    of one that weights don't have, or without entries.
    """
    dtypes, sizes = {array.dtype for array in new.values()}, {array.size for array in new.values()}
    if len(dtypes) != 1 or not dtypes <= KINDS.keys() or 0 in sizes:
        raise ValueError(f"weights are tensors of one dtype of {[*DTYPES]}, none without entries.")
    weights = weights or tensors_hash(new)
    if old is not None and _layout(old) == _layout(new):
        sparse = _sparse(new, old, weights, parent or tensors_hash(old)) if _saves(new, old) else None
        if sparse is not None:
            return sparse
    listed = [(name, list(new[name].shape)) for name in sorted(new)]
    body = [_bits(new[name]).view(np.uint8).data for name in sorted(new)]
    return _framed(Whole(weights, KINDS[dtypes.pop()], listed), body)


def apply(patch: bytes, old: Tensors | None, *, parent: bytes = b"") -> Tensors:
    """The tensors that a patch leads to. They share the memory of the patch, or of `old` where nothing changed.

    parent: the name of `old`, if it is known. Raises PatchError, also if it gives other weights than it says.
    """
    head = header(patch)
    if isinstance(head, Sparse):
        if old is None:
            raise PatchError(f"it stands on weights {head.parent.hex()[:16]}, which are not here")
        if (given := parent or tensors_hash(old)) != head.parent:
            raise PatchError(f"it stands on weights {head.parent.hex()[:16]}, not on {given.hex()[:16]}")
    found = unchecked(patch, old)
    if (name := tensors_hash(found)) != head.weights:
        raise PatchError(f"it gives weights {name.hex()[:16]} and says {head.weights.hex()[:16]}")
    return found


def unchecked(patch: bytes, old: Tensors | None) -> Tensors:
    """As `apply`, but without a look at the names: whoever calls checks what comes of a row of patches.

    Takes no memory but for what a model of the size of `old`, or of the patch, needs. Raises PatchError.
    """
    head, body = _opened(patch)
    if isinstance(head, Whole):
        return _unpacked(head, body)
    if old is None:
        raise PatchError(f"it stands on weights {head.parent.hex()[:16]}, which are not here")
    return _patched(head, body, old)


def header(patch: bytes) -> Whole | Sparse:
    """What a patch says of itself. Raises PatchError."""
    return _opened(patch)[0]


def _saves(new: Tensors, old: Tensors) -> bool:
    """Whether a sparse patch would be worth it, by some entries and what their changes say at least."""
    ours, theirs = (np.concatenate([_bits(side[name])[::SAMPLED] for name in sorted(new)]) for side in (new, old))
    differ = ours != theirs
    bits = sum(map(_entropy, _planes(_zigzag(ours[differ] - theirs[differ]))))
    return bits * int(differ.sum()) <= WORTH * 8 * ours.nbytes


def _sparse(new: Tensors, old: Tensors, weights: bytes, parent: bytes) -> bytes | None:
    """None where it would not be worth it."""
    gaps, changes, before = [np.zeros(0, np.uint8)], [_bits(next(iter(new.values())))[:0]], -1
    for start, ours, theirs in _blocks(new, old):
        at = np.flatnonzero(ours != theirs)
        if at.size:
            gaps.append(_escaped(np.diff(at, prepend=before - start) - 1))
            changes.append(_zigzag(ours[at] - theirs[at]))
            before = start + int(at[-1])
    values = np.concatenate(changes)
    streams = [np.concatenate(gaps), *_planes(values)]
    body = [_packed(stream) for stream in streams]
    if sum(map(len, body)) > WORTH * sum(array.nbytes for array in new.values()):
        return None
    return _framed(Sparse(weights, parent, len(values), len(streams[0]), [len(part) for part in body]), body)


def _blocks(new: Tensors, old: Tensors) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Pieces of both, each with the number of its first entry."""
    start = 0
    for name in sorted(new):
        ours, theirs = _bits(new[name]), _bits(old[name])
        for at in range(0, ours.size, BLOCK):
            yield start + at, ours[at : at + BLOCK], theirs[at : at + BLOCK]
        start += ours.size


def _patched(head: Sparse, body: memoryview, old: Tensors) -> Tensors:
    order, itemsize = sorted(old), next(iter(old.values())).itemsize
    total = sum(array.size for array in old.values())
    if head.changed > total or not head.changed <= head.gaps <= head.changed + total // 255:
        raise PatchError(f"it changes {head.changed} entries by {head.gaps} bytes of gaps, where {total} entries are")
    if len(head.streams) != 1 + itemsize or sum(head.streams) != len(body):
        raise PatchError(f"its streams of {head.streams} bytes are not {1 + itemsize} in {len(body)} bytes")
    streams, end = [], 0
    for taken, plain in zip(head.streams, [head.gaps] + [head.changed] * itemsize, strict=True):
        streams.append(_plain(body[end : end + taken], plain))
        end += taken
    gaps, *planes = streams
    if np.count_nonzero(gaps != 255) != head.changed or int(gaps.sum(dtype=np.int64)) + head.changed > total:
        raise PatchError(f"its gaps are not those of {head.changed} entries among {total}")
    ends = np.cumsum([old[name].size for name in order])
    found, copied = dict(old), [np.zeros(0, f"<u{itemsize}")] * len(order)
    for at, changes in _changes(gaps, planes):
        owner = np.searchsorted(ends, at, "right")
        for number in range(int(owner[0]), int(owner[-1]) + 1):
            mine = slice(*np.searchsorted(owner, [number, number + 1]))
            if mine.start == mine.stop:
                continue
            name = order[number]
            if found[name] is old[name]:
                found[name] = np.array(old[name], order="C")
                copied[number] = _bits(found[name])
            copied[number][at[mine] - (ends[number] - old[name].size)] += changes[mine]
    return found


def _changes(gaps: np.ndarray, planes: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of what changes: numbers of entries, and what is to be added to their bits."""
    before, used = -1, 0
    for start in range(0, len(gaps), BLOCK):
        piece = gaps[start : start + BLOCK]
        last = piece != 255
        passed = np.cumsum(piece, dtype=np.int64)[last]
        count = len(passed)
        if count:
            pieces = [plane[used : used + count] for plane in planes]
            zigzag = np.stack(pieces, axis=1).reshape(-1).view(f"<u{len(planes)}")
            yield before + passed + np.arange(1, count + 1), (zigzag >> 1) ^ -(zigzag & 1)
        before, used = before + int(piece.sum(dtype=np.int64)) + count, used + count


def _escaped(gaps: np.ndarray) -> np.ndarray:
    """Each as bytes 255 and one below."""
    if int(gaps.max()) < 255:
        return gaps.astype(np.uint8)
    ends = np.cumsum(gaps // 255 + 1)
    found = np.full(int(ends[-1]), 255, np.uint8)
    found[ends - 1] = gaps % 255
    return found


def _zigzag(difference: np.ndarray) -> np.ndarray:
    """Of unsigned integers that are differences modulo their range."""
    sign = difference >> (8 * difference.itemsize - 1)
    return (difference << 1) ^ -sign


def _planes(values: np.ndarray) -> list[np.ndarray]:
    """The lowest bytes of all, the next ones, and so on."""
    return [*np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)]


def _entropy(stream: np.ndarray) -> float:
    """Bits of a byte, were it independent of all others: what Huffman's code comes near to. By some of them."""
    some = stream[:: max(1, stream.size // COUNTED)]
    counts = np.bincount(some, minlength=256)
    shares = counts[counts > 0] / max(1, some.size)
    return float(-(shares * np.log2(shares)).sum())


def _packed(stream: np.ndarray) -> bytes:
    plain = stream.tobytes()
    if _entropy(stream) > NOISE:
        return plain
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = packer.compress(plain) + packer.flush()
    return packed if len(packed) < len(plain) else plain


def _plain(stream: memoryview, size: int) -> np.ndarray:
    """`size` bytes out of a stream, plain or not."""
    if len(stream) == size:
        return np.frombuffer(stream, np.uint8)
    if len(stream) > size:
        raise PatchError(f"a stream takes {len(stream)} bytes for {size}")
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(stream, size + 1)
    except zlib.error as error:
        raise PatchError(f"a stream can't be decompressed: {error}") from None
    if len(plain) != size or not unpacker.eof or unpacker.unused_data:
        raise PatchError(f"a stream doesn't decompress to {size} bytes")
    return np.frombuffer(plain, np.uint8)


def _unpacked(head: Whole, body: memoryview) -> Tensors:
    dtype, names = DTYPES[head.dtype], [name for name, _ in head.tensors]
    sizes = [math.prod(shape) for _, shape in head.tensors]
    if names != sorted(set(names)):
        raise PatchError("its tensors are not sorted by name, or one is there twice")
    if sum(sizes) * dtype.itemsize != len(body):
        raise PatchError(f"its tensors take {sum(sizes) * dtype.itemsize} bytes, its body has {len(body)}")
    found, end = {}, 0
    for (name, shape), size in zip(head.tensors, sizes, strict=True):
        found[name] = np.frombuffer(body, dtype, size, end).reshape(shape)
        end += size * dtype.itemsize
    return found


def _opened(patch: bytes) -> tuple[Whole | Sparse, memoryview]:
    view = memoryview(patch)
    size = int.from_bytes(view[:PREFIX], "little")
    if not 0 < size <= min(MAX_HEADER_BYTES, len(view) - PREFIX):
        raise PatchError(f"its header of {size} bytes is longer than it is, or than {MAX_HEADER_BYTES}")
    try:
        return _headers.decode(view[PREFIX : PREFIX + size]), view[PREFIX + size + -size % PREFIX :]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PatchError(f"its header can't be read: {error}") from None


def _framed(head: Whole | Sparse, body: Sequence[bytes | memoryview]) -> bytes:
    raw = msgspec.msgpack.encode(head)
    return b"".join([len(raw).to_bytes(PREFIX, "little"), raw, bytes(-len(raw) % PREFIX), *body])


def _bits(array: np.ndarray) -> np.ndarray:
    """Its entries as unsigned integers, one after the other; its own memory if it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(f"<u{array.itemsize}")


def _layout(tensors: Tensors) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: (array.dtype, array.shape) for name, array in tensors.items()}
