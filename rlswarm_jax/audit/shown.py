"""What an auditor makes of the parts that a peer shows: weights, or what is wrong with which part."""

from collections import OrderedDict
from collections.abc import Sequence

from rlswarm_jax.audit import patches
from rlswarm_jax.audit.archive import MAX_CHANGES
from rlswarm_jax.audit.patches import PatchError, Sparse
from rlswarm_jax.qwen.naming import Tensors, tensors_hash

MOST = 64  # versions that are kept of all peers together: they are in memory, and named in each request


class NotHereError(PatchError):
    """What the first part stands on, or all if there are no parts, is not among what was shown, or not any more.

    That is nobody's fault who was told that it is there: ask again for all that leads to the weights.
    """


class Shown:
    """Weights of peers that were checked, by name: the last `MOST` that were asked for, of `max_bytes` in all."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Tensors] = OrderedDict()

    @property
    def names(self) -> list[bytes]:
        """Whoever shows more need not send what leads to these."""
        return list(self._kept)

    def get(self, weights: bytes) -> Tensors | None:
        if weights in self._kept:
            self._kept.move_to_end(weights)
        return self._kept.get(weights)

    def keep(self, weights: bytes, tensors: Tensors) -> None:
        """In the place of those not asked for the longest; larger ones than `max_bytes` are not kept."""
        self._kept[weights] = tensors
        self._kept.move_to_end(weights)
        while self._kept and (len(self._kept) > MOST or sum(map(_bytes, self._kept.values())) > self._max_bytes):
            self._kept.popitem(last=False)


def assemble(parts: Sequence[bytes], shown: Shown, wanted: bytes) -> Tensors:
    """The weights of that name, which are then among those shown. parts: patches, each on the one before, the first on
    nothing or on weights that were shown before.

    Raises NotHereError, or PatchError that says which part is wrong, and why.
    """
    if not parts:
        return _shown(shown, wanted)
    _check_names(parts, wanted)
    first = patches.header(parts[0])
    start = _shown(shown, first.parent) if isinstance(first, Sparse) else None
    entries = sum(array.size for array in start.values()) if start is not None else first.changed
    if sum(patches.header(part).changed for part in parts) > (1 + MAX_CHANGES) * entries:
        raise PatchError(f"{len(parts)} parts change more than {1 + MAX_CHANGES} times all {entries} entries")
    found = start
    for number, part in enumerate(parts, 1):
        try:
            found = patches.unchecked(part, found)
        except PatchError as error:
            raise _wrong(number, parts, error) from None
    if found is None or tensors_hash(found) != wanted:
        raise _blamed(parts, start)
    shown.keep(wanted, found)
    return found


def _shown(shown: Shown, weights: bytes) -> Tensors:
    found = shown.get(weights)
    if found is None:
        raise NotHereError(f"weights {weights.hex()[:16]} are not here, and no part leads to them")
    return found


def _check_names(parts: Sequence[bytes], wanted: bytes) -> None:
    """Each part says that it leads on from the one before, and the last to what is wanted."""
    before = b""
    for number, part in enumerate(parts, 1):
        try:
            head = patches.header(part)
        except PatchError as error:
            raise _wrong(number, parts, error) from None
        parent = head.parent if isinstance(head, Sparse) else b""
        if number > 1 and parent != before:
            on = parent.hex()[:16] or "nothing"
            raise _wrong(number, parts, f"it stands on {on}, and the part before it leads to {before.hex()[:16]}")
        before = head.weights
    if before != wanted:
        raise PatchError(
            f"{len(parts)} parts lead to {before.hex()[:16] or 'nothing'}, not to weights {wanted.hex()[:16]}"
        )


def _blamed(parts: Sequence[bytes], start: Tensors | None) -> PatchError:
    """Of parts that lead elsewhere than they say, the first one that does."""
    found = start
    for number, part in enumerate(parts, 1):
        try:
            found = patches.apply(part, found)
        except PatchError as error:
            return _wrong(number, parts, error)
    raise AssertionError("unreachable")


def _wrong(number: int, parts: Sequence[bytes], why: object) -> PatchError:
    return PatchError(f"part {number} of {len(parts)}: {why}")


def _bytes(tensors: Tensors) -> int:
    return sum(array.nbytes for array in tensors.values())
