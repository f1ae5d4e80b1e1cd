"""What a node commits to: its records since the last commitment, said by the first, the last, their number and root."""

import dataclasses
import hashlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Cover:
    """Records in the order of publication. root: see `root`. first, last: content hashes, 32 bytes each."""

    root: bytes
    first: bytes
    last: bytes
    count: int


def cover(records: Sequence[bytes]) -> Cover:
    """Of content hashes in the order of publication; at least one (ValueError)."""
    return Cover(root(records), records[0], records[-1], len(records))


def root(records: Sequence[bytes]) -> bytes:
    """The Merkle root over content hashes, as in RFC 6962, section 2.1: 32 bytes. At least one (ValueError)."""
    if not records:
        raise ValueError("there is nothing to commit to.")
    if len(records) == 1:
        return hashlib.sha256(b"\0" + records[0]).digest()
    left = 1 << (len(records) - 1).bit_length() - 1  # the largest power of two below the number of leaves
    return hashlib.sha256(b"\1" + root(records[:left]) + root(records[left:])).digest()
