"""What a node commits to: the Merkle root over the content hashes of its records, as in RFC 6962, section 2.1."""

import hashlib
from collections.abc import Sequence


def root(records: Sequence[bytes]) -> bytes:
    """32 bytes. records: content hashes in the order of publication; at least one (ValueError)."""
    if not records:
        raise ValueError("there is nothing to commit to.")
    if len(records) == 1:
        return hashlib.sha256(b"\0" + records[0]).digest()
    left = 1 << (len(records) - 1).bit_length() - 1  # the largest power of two below the number of leaves
    return hashlib.sha256(b"\1" + root(records[:left]) + root(records[left:])).digest()


def proof(records: Sequence[bytes], position: int) -> list[bytes]:
    """RFC 6962's audit path (section 2.1.1) of the record at a position: 32 bytes each, from its sibling to the root.

    Raises ValueError for a position where there is none.
    """
    if not 0 <= position < len(records):
        raise ValueError(f"there is no record at position {position} of {len(records)}.")
    if len(records) == 1:
        return []
    left = 1 << (len(records) - 1).bit_length() - 1
    if position < left:
        return [*proof(records[:left], position), root(records[left:])]
    return [*proof(records[left:], position - left), root(records[:left])]


def covered(records: Sequence[bytes], first: bytes, count: int, tree: bytes) -> list[bytes]:
    """Of an author's records, in the order of publication, what a commitment covers; nothing if not all of it is here.

    first, count, tree: the commitment's first leaf, their number and its root.
    """
    begin = records.index(first) if first in records else len(records)
    found = list(records[begin : begin + count])
    return found if len(found) == count > 0 and root(found) == tree else []
