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
