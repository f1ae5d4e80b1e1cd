"""RFC 6962's tree hash, by its definition, level by level: not as rlswarm_jax computes it."""

import hashlib


def root(leaves: list[bytes]) -> bytes:
    level = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\1" + b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]
