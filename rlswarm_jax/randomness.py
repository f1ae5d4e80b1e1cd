"""Randomness, version 1: every random number is a pure function of named fields (part of the wire format).

Nothing is drawn from a hidden stream. A key or a seed is SHA-256 over a domain and its length-prefixed
fields, so a peer that knows the fields can recompute the draw, and no two draws can share noise by accident.
"""

import hashlib
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import jax

VERSION = 1
Domain = Literal["problem", "sample", "eval", "pool", "network"]
Field = bytes | str | int
_FIELDS = (bytes, str, int)


def digest(domain: Domain, *fields: Field) -> bytes:
    """SHA-256 of the domain and the fields, 32 bytes.

    A field is prefixed by its length in bytes (uint32, little-endian); text is UTF-8, an integer its decimal
    text. Raises TypeError on any other type (a float has no canonical form).
    """
    parts = [domain.encode()]
    for field in fields:
        if type(field) not in _FIELDS and (isinstance(field, bool) or not isinstance(field, bytes | str | int)):
            raise TypeError(f"a randomness field must be bytes, str or int, got {type(field).__name__}")
        raw = field if isinstance(field, bytes) else str(field).encode()
        parts += len(raw).to_bytes(4, "little"), raw
    return hashlib.sha256(b"".join(parts)).digest()


def seed(domain: Domain, *fields: Field) -> int:
    """A 63-bit non-negative seed for libraries that want an integer."""
    return int.from_bytes(digest(domain, *fields)[:8], "little") >> 1


def key_data(domain: Domain, *fields: Field) -> np.ndarray:
    """The two 32-bit words of a key, `[2]` uint32: the digest's first 8 bytes, little-endian."""
    return np.frombuffer(digest(domain, *fields)[:8], "<u4").astype(np.uint32)


def wrap(key_data_M: "jax.Array") -> "jax.Array":
    """Key data `[..., 2]` uint32 as typed Threefry keys `[...]` (never `jax.random.key(int)`: it cuts to 32 bits)."""
    import jax  # here: tasks need seeds, not arrays

    return jax.random.wrap_key_data(key_data_M, impl="threefry2x32")


def uniform(domain: Domain, *fields: Field) -> float:
    """One uniform number in [0, 1) with 53 random bits, on the host."""
    return (int.from_bytes(digest(domain, *fields)[:8], "little") >> 11) / 2**53


def uniforms(count: int, domain: Domain, *fields: Field) -> np.ndarray:
    """So many uniform numbers in [0, 1), `[count]` float64; the first are the same for every count.

    Of SHAKE-256 over the digest, in place of a digest for each.
    """
    words = np.frombuffer(hashlib.shake_256(digest(domain, *fields)).digest(8 * count), "<u8")
    return (words >> np.uint64(11)) / 2.0**53
