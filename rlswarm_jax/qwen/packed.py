"""Completions of several prompts in few sequences: a prompt once, and behind it what is said to it."""

from collections.abc import Sequence

import numpy as np
from flax import struct


@struct.dataclass
class Packed:
    """Completions, of which several share a sequence: those of one prompt stand behind it, and do not see each other.

    tokens_BT, positions_BT: of the texts, int32, zeros behind them. prompts_BT: which prompt of the sequence a token
    belongs to, from 1. rows_BT: which completion, from 1; 0: the prompt itself. before_RC: int32, in `[B * T]` the
    place in front of each of a completion's tokens. tokens_RC: these.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    prompts_BT: np.ndarray
    rows_BT: np.ndarray
    before_RC: np.ndarray
    tokens_RC: np.ndarray


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[np.ndarray],
    sequences: Sequence[Sequence[int]],
    *,
    width: int,
    together: int,
    new_tokens: int,
) -> Packed:
    """sequences: by number, the completions that share one; each has room for `together` and is `width` wide."""
    tokens_BT, positions_BT, prompts_BT, rows_BT = np.zeros((4, len(sequences), width), np.int32)
    before_RC, tokens_RC = np.zeros((2, len(sequences) * together, new_tokens), np.int32)
    for b, numbers in enumerate(sequences):
        end, prompt, shown = 0, 0, None
        for row, i in enumerate(numbers):
            size, start = len(prompts[i]), end
            if prompts[i] != shown:
                shown, prompt, end, start = prompts[i], prompt + 1, end + size, end + size
                tokens_BT[b, end - size : end] = shown
                positions_BT[b, end - size : end] = np.arange(size)
                prompts_BT[b, end - size : end] = prompt
                last = end - 1  # of the prompt
            end += len(completions[i])
            own = slice(start, end)
            tokens_BT[b, own], prompts_BT[b, own], rows_BT[b, own] = completions[i], prompt, row + 1
            positions_BT[b, own] = size + np.arange(end - start)
            r = b * together + row
            tokens_RC[r, : end - start] = completions[i]
            before_RC[r, : end - start] = b * width + np.array([last, *range(start, end - 1)])
    return Packed(tokens_BT, positions_BT, prompts_BT, rows_BT, before_RC, tokens_RC)


def sequences_of(
    prompts: Sequence[Sequence[int]], completions: Sequence[np.ndarray], width: int, together: int
) -> list[list[int]]:
    """Numbers of completions, in their order: those that share a sequence."""
    found: list[list[int]] = []
    used = 0
    for i, (prompt, tokens_T) in enumerate(zip(prompts, completions, strict=True)):
        follows = bool(found) and prompts[found[-1][-1]] == prompt
        more = len(tokens_T) + (0 if follows else len(prompt))
        if found and used + more <= width and len(found[-1]) < together:
            found[-1].append(i)
            used += more
        else:
            found.append([i])
            used = len(prompt) + len(tokens_T)
    return found
