"""What is learned from, as arrays of few shapes: rows that teach, those of about one length together.

A tile has so few tokens that its activations stay in a CPU's cache (about twice as fast there as all rows at once), and
a batch of many tiles is one update all the same: see `learner.make_train_step`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from rlswarm_jax.grpo.learner import Batch

TOKENS = {"cpu": 896}  # of a tile, by platform, ...
OTHERWISE = 16_384
WIDTHS = 3  # each twice as wide as the one before


@dataclasses.dataclass(frozen=True)
class Row:
    """A completion. logprobs: as it was sampled, None where that is not known or not to be used."""

    prompt: Sequence[int]
    completion: Sequence[int]
    advantage: float
    logprobs: Sequence[float] | None
    external: bool


@dataclasses.dataclass(frozen=True)
class Shape:
    """rows, width: of a tile, in completions and tokens. new_tokens: of a completion at most."""

    rows: int
    width: int
    new_tokens: int


def shapes(width: int, new_tokens: int, rows: int = 0, shards: int = 1) -> list[Shape]:
    """The tiles for rows of at most `width` tokens, the narrowest first.

    rows: of each on every device; as many as a tile's tokens are enough for, where that is 0. shards: devices that rows
    are split over.
    """
    tokens = TOKENS.get(jax.default_backend(), OTHERWISE)
    widths = sorted({min(width, -(-width // (4 << part)) * 4) for part in range(WIDTHS)})
    return [Shape(shards * (rows or max(1, tokens // wide)), wide, min(new_tokens, wide)) for wide in widths]


def tiles(rows: Sequence[Row], into: Sequence[Shape]) -> list[Batch]:
    """The longest first, each in the narrowest shape that has room; one that teaches nothing if there are no rows."""
    waiting = [rows[at] for at in order(rows)]
    found: list[Batch] = []
    while waiting or not found:
        longest = len(waiting[0].prompt) + len(waiting[0].completion) if waiting else 0
        shape = next(shape for shape in into if shape.width >= longest)
        found.append(tile(waiting[: shape.rows], shape))
        waiting = waiting[shape.rows :]
    return found


def order(rows: Sequence[Row]) -> list[int]:
    """In which rows are in their tiles, one after the other."""
    return sorted(range(len(rows)), key=lambda at: -len(rows[at].prompt) - len(rows[at].completion))


def tile(rows: Sequence[Row], shape: Shape) -> Batch:
    """At most `shape.rows` of them; the rest only fill the shape."""
    count, cut = shape.rows, shape.new_tokens
    tokens_BT, behaviour_BC = np.zeros((count, shape.width), np.int32), np.zeros((count, cut), np.float32)
    prompt_lengths_B, lengths_B = np.ones(count, np.int32), np.zeros(count, np.int32)
    advantages_B, known_B, external_B = np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, bool)
    for b, row in enumerate(rows):
        text = [*row.prompt, *row.completion]
        tokens_BT[b, : len(text)] = text
        prompt_lengths_B[b], lengths_B[b] = len(row.prompt), len(row.completion)
        advantages_B[b], external_B[b] = row.advantage, row.external
        if row.logprobs is not None:
            behaviour_BC[b, : len(row.completion)], known_B[b] = row.logprobs, True
    old = np.zeros_like(behaviour_BC), np.zeros_like(known_B)
    lengths = prompt_lengths_B, lengths_B
    return Batch(tokens_BT, *lengths, advantages_B, *old, external_B, behaviour_BC, known_B)
