"""The rounds of a run, from metrics.jsonl as it grows: in columns, so that thousands of rounds are a few megabytes."""

import array
import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

KEPT = {
    *("reward/mean", "critique/reward/mean", "revise/reward/mean", "game/first", "game/vote", "game/revised"),
    *("reward/zero_advantage_fraction", "critique/best", "critique/first", "held_out/accuracy", "final/accuracy"),
    *("learn/loss", "learn/tokens", "learn/updates", "learn/rows_external", "learn/rows_local", "learn/entropy"),
    *("learn/clip_fraction", "learn/grad_norm", "groups/external", "groups/local", "groups/received"),
    *("groups/received_with_advantage", "records/received", "records/published", "records/equivocations"),
    *("peers/connected", "peers/given_up", "chain/round", "chain/waiting", "wall_seconds", "sample/completions"),
}
PREFIXES = (
    *("held_out/accuracy/", "final/accuracy/", "learned_from/", "received_from/", "records/rejected/"),
    *("groups/unused/", "network/", "audit/"),
)
MOST_COLUMNS = 512  # of a node: keys are free, and each may be the name of one
CHUNK = 1 << 22  # bytes that are read at a time
Row = dict[str, Any]
_decode = msgspec.json.Decoder(Row).decode


@dataclasses.dataclass
class Taught:
    """Of one author's groups that a node learned from: how many, the sum of their mean rewards, and of which stage."""

    groups: int = 0
    reward: float = 0.0
    stages: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class Course:
    """One node's rounds, in the order in which they ended. path, spans: where each one's line is."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.rounds = array.array("q")
        self.spans: list[tuple[int, int]] = []
        self.taught: dict[str, Taught] = collections.defaultdict(Taught)  # by author, in hex
        self._columns: dict[str, array.array] = {}
        self._known: dict[str, Any] = {}  # the same by every name that has come; None of what is not kept

    def __len__(self) -> int:
        return len(self.rounds)

    def add(self, row: Row, offset: int, length: int) -> None:
        self.rounds.append(int(row["round"]))
        self.spans.append((offset, length))
        before = len(self.rounds) - 1
        for name, value in row.items():
            column = self._known.get(name, self)
            if column is self:
                column = self._begin(name, value)
            if column is not None:
                if len(column) < before:
                    column.extend([math.nan] * (before - len(column)))
                column.append(value)
        for author, _, stage, _, rewards, learned in row.get("lessons", ()):
            if author and learned and (author in self.taught or len(self.taught) < MOST_COLUMNS):
                taught = self.taught[author]
                taught.groups += 1
                taught.reward += sum(rewards) / len(rewards)
                taught.stages[stage] += 1

    def _begin(self, name: str, value: Any) -> array.array | None:
        kept = isinstance(value, int | float) and (name in KEPT or name.startswith(PREFIXES))
        if kept and len(self._columns) < MOST_COLUMNS:
            self._columns[name] = array.array("d")
        if len(self._known) < 4 * MOST_COLUMNS:
            self._known[name] = self._columns.get(name)
        return self._columns.get(name)

    def column(self, name: str) -> list[tuple[int, float]]:
        """(round, value) wherever there is one."""
        values = np.array(self._columns.get(name, ()))
        rounds = np.array(self.rounds[: len(values)])
        there = ~np.isnan(values)
        return list(zip(rounds[there].tolist(), values[there].tolist(), strict=True))

    def last(self, name: str) -> float | None:
        """The latest value."""
        return next((v for v in reversed(self._columns.get(name, ())) if not math.isnan(v)), None)

    def total(self, name: str) -> float:
        return float(np.nansum(np.array(self._columns.get(name, ()))))

    def names(self, prefix: str) -> list[str]:
        """What columns are called behind a prefix, in order."""
        return sorted(name.removeprefix(prefix) for name in self._columns if name.startswith(prefix))

    def totals(self, prefix: str) -> dict[str, float]:
        return {name: self.total(prefix + name) for name in self.names(prefix)}

    def row(self, place: int) -> Row:
        """One line again, whole. Raises OSError or ValueError where the file is another one by now."""
        offset, length = self.spans[place]
        with self.path.open("rb") as file:
            file.seek(offset)
            return _decode(file.read(length))

    def place(self, round_: int) -> int | None:
        """Of the line of a round; of two, the later."""
        return next((at for at in range(len(self.rounds) - 1, -1, -1) if self.rounds[at] == round_), None)


class Log:
    """A metrics.jsonl that is being written. courses: by the node's index there."""

    def __init__(self, path: Path):
        self.path, self.skipped = path, 0
        self.courses: dict[int, Course] = {}
        self._offset, self._file = 0, 0

    def refresh(self) -> bool:
        """Takes the lines that are new; whether there are any. One that was cut back is read again from its begin."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        if found.st_size < self._offset or (self._file and found.st_ino != self._file):
            self.courses, self._offset, self.skipped = {}, 0, 0
        self._file = found.st_ino
        if found.st_size == self._offset:
            return False
        before = self._offset
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while whole := _whole(file.read(CHUNK), file.readline):
                for line in whole.splitlines(keepends=True):
                    self._take(line)
        return self._offset > before

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\n"):  # it is being written
            return
        offset, self._offset = self._offset, self._offset + len(line)
        try:
            row = _decode(line)
            index = int(row["node"])
            course = self.courses.get(index)
            if course is None:
                course = self.courses[index] = Course(str(row["name"]), self.path)
            course.add(row, offset, len(line))
        except (ValueError, KeyError, TypeError):
            self.skipped += 1


def _whole(chunk: bytes, rest_of_line: Any) -> bytes:
    return chunk if not chunk or chunk.endswith(b"\n") else chunk + rest_of_line()


# --- curves, thinned

MOST_POINTS = 240
RECENT = 10  # rounds that a figure which jumps from round to round is the mean of, wherever it is shown
Curve = Sequence[tuple[int, float]]


def thinned(curve: Curve, most: int = MOST_POINTS) -> list[list[float]]:
    """At most so many [round, value]: of more, means over equal spans of rounds, each at its last round."""
    if len(curve) <= most:
        return [[r, _short(v)] for r, v in curve]
    first, last = curve[0][0], curve[-1][0]
    width = (last - first + 1) / most
    bins: dict[int, list[tuple[int, float]]] = collections.defaultdict(list)
    for r, v in curve:
        bins[int((r - first) / width)].append((r, v))
    return [[found[-1][0], _short(sum(v for _, v in found) / len(found))] for _, found in sorted(bins.items())]


def recent(curve: Curve, most: int = MOST_POINTS) -> list[list[float]]:
    """At most so many [round, mean of the ten rounds up to it], the last round among them."""
    values = np.cumsum([0.0, *(v for _, v in curve)])
    first = np.maximum(0, np.arange(len(curve)) + 1 - RECENT)
    means = (values[1:] - values[first]) / (np.arange(len(curve)) + 1 - first)
    step = max(1, -(-len(curve) // most))
    return [[curve[at][0], _short(float(means[at]))] for at in range((len(curve) - 1) % step, len(curve), step)]


def averaged(curves: Iterable[Curve]) -> list[tuple[int, float]]:
    """Mean over the curves that have a round, in order of rounds."""
    found: dict[int, list[float]] = collections.defaultdict(list)
    for curve in curves:
        for r, v in curve:
            found[r].append(v)
    return [(r, sum(values) / len(values)) for r, values in sorted(found.items())]


def summed(totals: Iterable[Mapping[str, float]]) -> dict[str, float]:
    counts: collections.Counter[str] = collections.Counter()
    for one in totals:
        counts.update(one)
    return dict(sorted(counts.items()))


def _short(value: float) -> float:
    """Five digits are what a screen shows."""
    return float(f"{value:.5g}")
