"""What is learned from, as arrays of few shapes with few empty slots: texts packed back to back into sequences.

A prompt stands once before all its completions that fit into the sequence, each of which sees the prompt and itself
(so the gradient is that of each text by itself). A completion begins with a copy of the prompt's last token, and its
own last token is only a target: every slot of a completion predicts the token that follows there.

A batch of many tiles is one update all the same: see `learner.Learner`. On a CPU a tile of a tiny model has so few
tokens that its activations stay in the cache; of a larger one so many that its products are worth all cores.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from rlswarm_jax.grpo.learner import Batch

TOKENS = {"cpu": 1024}  # of a tile, by platform, ...
OTHERWISE = 16_384
NARROW, FEW = 128, 224  # on a CPU: of a model that is no wider a tile has so few tokens
WIDTHS, NARROWEST = 3, 112  # widths of sequences, each twice the one before, from one that is not narrower
ROOM, ROOMY = 2, 2048  # times the longest text, for completions to share a prompt; wider attention costs more than that
ROWS = 32  # completions in a sequence at most


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
    """sequences, width: of a tile, in tokens. rows: completions in a sequence at most. new_tokens: of one at most.

    last: sequences of a batch's last tile, if no more are left; 0: as many as of all others.
    """

    sequences: int
    width: int
    rows: int
    new_tokens: int
    last: int = 0

    @property
    def counts(self) -> list[int]:
        """Of sequences in a tile, the fewest first."""
        return sorted({self.last or self.sequences, self.sequences})


Piece = list[Row]  # completions of one prompt
Sequence_ = list[Piece]


def shapes(width: int, new_tokens: int, sequences: int = 0, shards: int = 1, hidden_size: int = 0) -> list[Shape]:
    """The tiles for texts of at most `width` tokens, the narrowest first.

    sequences: of each on every device; as many as a tile's tokens are enough for, where that is 0. shards: devices that
    sequences are split over. hidden_size: of the model.
    """
    platform = jax.default_backend()
    tokens = FEW if platform == "cpu" and hidden_size <= NARROW else TOKENS.get(platform, OTHERWISE)
    widest = NARROWEST if width < NARROWEST else max(width, min(ROOM * width, ROOMY))
    widths = sorted({max(NARROWEST, -(-widest >> part)) for part in range(WIDTHS)})
    found = []
    for wide in widths:
        count = sequences or max(1, tokens // wide)
        last = shards * max(1, count // 2)
        found.append(Shape(shards * count, wide, min(ROWS, wide), min(new_tokens, wide), last))
    return found


def tiles(rows: Sequence[Row], into: Sequence[Shape]) -> list[Batch]:
    """Twice as wide as the longest text if there are such; one that teaches nothing if there are no rows."""
    packed, shape = packed_into(rows, into)
    starts = range(0, max(1, len(packed)), shape.sequences)
    return [tile(packed[start : start + shape.sequences], shape) for start in starts]


def order(rows: Sequence[Row], into: Sequence[Shape]) -> list[int]:
    """In which rows are in their tiles, one after the other."""
    numbers = {id(row): number for number, row in enumerate(rows)}
    return [numbers[id(row)] for sequence in packed_into(rows, into)[0] for piece in sequence for row in piece]


def packed_into(rows: Sequence[Row], into: Sequence[Shape]) -> tuple[list[Sequence_], Shape]:
    """All rows in few sequences, those of one prompt together as far as they fit: first fit, the longest first."""
    longest = max((len(row.prompt) + len(row.completion) - 1 for row in rows), default=0)
    shape = next((shape for shape in into if shape.width >= ROOM * longest), into[-1])
    by_prompt: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.prompt), []).append(row)
    pieces: list[Piece] = []
    for group in by_prompt.values():
        pieces.append([])
        for row in group:
            if not _fits([[*pieces[-1], row]], shape):
                pieces.append([])
            pieces[-1].append(row)
    packed: list[Sequence_] = []
    for piece in sorted(pieces, key=_slots, reverse=True):
        room = next((sequence for sequence in packed if _fits([*sequence, piece], shape)), None)
        if room is None:
            packed.append([piece])
        else:
            room.append(piece)
    return packed, shape


def _slots(piece: Piece) -> int:
    return len(piece[0].prompt) - 1 + sum(len(row.completion) for row in piece)


def _fits(sequence: Sequence_, shape: Shape) -> bool:
    return sum(map(_slots, sequence)) <= shape.width and sum(map(len, sequence)) <= shape.rows


def fillers(into: Sequence[Shape]) -> list[Batch]:
    """A tile of each kind that there may be, without a single text."""
    return [tile([[]] * count, shape) for shape in into for count in shape.counts]


def filled(parts: Sequence[Batch]) -> float:
    """Share of all slots that hold text."""
    slots = sum(part.prompts_XT.size for part in parts)
    return sum(int(np.count_nonzero(part.prompts_XT)) for part in parts) / slots


def tile(packed: Sequence[Sequence_], shape: Shape) -> Batch:
    """At most `shape.sequences` of them, in as many as `shape.counts` has room for; the rest only fill the shape."""
    count = next(count for count in shape.counts if count >= len(packed))
    texts = np.zeros((5, count, shape.width), np.int32)
    tokens_XT, positions_XT, prompts_XT, rows_XT, targets_XT = texts
    of_row = (count, shape.rows)
    starts_XR, lengths_XR = np.zeros((2, *of_row), np.int32)
    advantages_XR, behaviour_XRC = np.zeros(of_row, np.float32), np.zeros((*of_row, shape.new_tokens), np.float32)
    known_XR, external_XR = np.zeros((2, *of_row), bool)
    for x, sequence in enumerate(packed):
        at = r = 0
        for number, piece in enumerate(sequence, 1):
            *before, last = piece[0].prompt
            prompts_XT[x, at : at + _slots(piece)] = number
            tokens_XT[x, at : at + len(before)] = before
            positions_XT[x, at : at + len(before)] = np.arange(len(before))
            at += len(before)
            for row in piece:
                length = len(row.completion)
                its = slice(at, at + length)
                tokens_XT[x, its] = [last, *row.completion[:-1]]
                positions_XT[x, its] = len(before) + np.arange(length)
                rows_XT[x, its], targets_XT[x, its] = r + 1, row.completion
                starts_XR[x, r], lengths_XR[x, r] = at, length
                advantages_XR[x, r], external_XR[x, r] = row.advantage, row.external
                if row.logprobs is not None:
                    behaviour_XRC[x, r, :length], known_XR[x, r] = row.logprobs, True
                at, r = at + length, r + 1
    unknown_XRC, unknown_XR = np.zeros_like(behaviour_XRC), np.zeros_like(known_XR)
    of_rows = starts_XR, lengths_XR, advantages_XR, unknown_XRC, unknown_XR, external_XR, behaviour_XRC, known_XR
    return Batch(*texts, *(x.reshape(-1, *x.shape[2:]) for x in of_rows))
