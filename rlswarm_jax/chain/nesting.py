"""JSON from elsewhere that nests too deeply: decoders recurse, up to a limit that py-evm raises beyond the stack."""

import re

MAX_DEPTH = 64  # no request or answer of Ethereum's JSON-RPC has so much
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)  # strings and brackets; in linear time


def is_deep(body: bytes) -> bool:
    """Whether JSON nests deeper than `MAX_DEPTH`; in linear time."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in _TOKENS.finditer(body):
        depth += 1 if token[0] in (b"[", b"{") else -1 if token[0] in (b"]", b"}") else 0
        if depth > MAX_DEPTH:
            return True
    return False
