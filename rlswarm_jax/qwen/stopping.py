"""Stop strings, compiled to a table: where a text stands in them is a state, and every token moves it."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

MAX_STOP_BYTES = 256  # of all stop strings together: the table has a row for each, of 300 KB for Qwen's vocabulary


@dataclasses.dataclass(frozen=True)
class StopTable:
    """next_XV: `[X, V]`, the state after a token in a state; 0 is the start. found: the state of a finished text."""

    next_XV: np.ndarray
    found: int


def stop_table(strings: Sequence[str], token_bytes: Sequence[bytes]) -> StopTable:
    """The Aho-Corasick automaton of the strings' UTF-8 bytes (doi:10.1145/360825.360855), run over each token's bytes.

    So a string is found wherever it begins and ends, inside a token or across several. Raises ValueError for an empty
    string, or for more than 256 bytes of them.
    """
    if not all(strings) or sum(len(s.encode()) for s in strings) > MAX_STOP_BYTES:
        raise ValueError(f"stop strings must not be empty, nor longer than {MAX_STOP_BYTES} bytes together.")
    by_byte, found = _automaton([s.encode() for s in strings])
    states = np.repeat(np.arange(len(by_byte), dtype=np.uint16)[:, None], len(token_bytes), axis=1)
    lengths = np.array([len(raw) for raw in token_bytes])
    longest = int(lengths.max(initial=0))
    bytes_VT = np.zeros((len(token_bytes), longest), np.uint8)
    for row, raw in zip(bytes_VT, token_bytes, strict=True):
        row[: len(raw)] = np.frombuffer(raw, np.uint8)
    for position in range(longest):
        here = np.flatnonzero(lengths > position)
        states[:, here] = by_byte[states[:, here], bytes_VT[here, position]]
    return StopTable(states, found)


def cut_at_stop(text: str, strings: Sequence[str]) -> str:
    """The text before the first of the strings that it holds."""
    return text[: min((at for s in strings if (at := text.find(s)) >= 0), default=len(text))]


def _automaton(words: Sequence[bytes]) -> tuple[np.ndarray, int]:
    """Transitions `[X, 256]` of the automaton, and its only final state, which is never left."""
    children: list[dict[int, int]] = [{}]
    final: set[int] = set()
    for word in words:
        state = 0
        for byte in word:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
            state = children[state][byte]
        final.add(state)
    found = len(children)
    table = np.zeros((found + 1, 256), np.int32)
    falls_to = [0] * found
    queue = collections.deque([0])
    while queue:  # breadth first: what a state falls to is shorter, and done
        state = queue.popleft()
        if state in final or falls_to[state] in final:
            final.add(state)
        table[state] = table[falls_to[state]] if state else 0
        for byte, child in children[state].items():
            falls_to[child] = int(table[state, byte]) if state else 0
            table[state, byte] = child
            queue.append(child)
    table[np.isin(table, list(final))] = found
    table[found] = found
    return table, found
