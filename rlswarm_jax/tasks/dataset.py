"""Problems from a data set: rows with a question and an answer, and a check that compares answers."""

import dataclasses
import datetime
import decimal
import hashlib
import json
import logging
import math
import string
from collections.abc import Iterable, Mapping
from typing import Any

from rlswarm_jax import randomness
from rlswarm_jax.tasks import cells
from rlswarm_jax.tasks import rows as tables
from rlswarm_jax.tasks.base import Problem, Split, TaskError, fold, split_of
from rlswarm_jax.tasks.checks import CHECKS, Check, last_boxed

VERSION = 2
ALL = "all"
_NONE = Check(0.0, lambda gold, answer: False, lambda gold: True, lambda gold: True, fold)

log = logging.getLogger("rlswarm_jax.tasks")


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    r"""What a config says of a data set; "" is for there being none.

    path, split, subset, revision: where its rows are, as `rows.read` takes them.
    held_out_path, held_out_split: where its held-out rows are; without either one row in eight is held out.
    question, answer, compact: columns. Messages with a `content`, a text or parts of type "text", are joined to one.
    columns: those that a problem keeps in `data`, or "all".
    template: the question, with `$column` where the text of a column belongs.
    answer_after: the answer is what follows the last such mark in its column ("####" for GSM8K).
    answer_boxed: the answer is in the last `\boxed{}` of its column (MATH).
    check: exact, numeric or math (see `checks`), or none where there is nothing to compare.
    seconds: most that one check may take; 0: as the check has it.
    """

    path: str
    split: str = "train"
    subset: str = ""
    revision: str = ""
    held_out_path: str = ""
    held_out_split: str = ""
    question: str = "question"
    answer: str = "answer"
    compact: str = ""
    columns: tuple[str, ...] | str = ()
    template: str = ""
    answer_after: str = ""
    answer_boxed: bool = False
    check: str = "exact"
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows by split, and those left out: for the question of a row before them, or because it is held out as well."""

    train: int
    held_out: int
    repeated: int
    in_both: int


@dataclasses.dataclass(frozen=True)
class _Row:
    question: str
    compact: str
    answers: tuple[str, ...]
    data: Mapping[str, Any]
    place: str
    number: int


class DatasetTask:
    """A data set as a `Task`: a seed picks a row. Raises TaskError for options or rows that cannot be.

    Training and held-out problems have no question and no compact form in common. Where the data has held-out rows of
    its own, training rows that repeat one of them are left out; else the hash of a row's compact form decides, and
    not the task's name, so that tasks over the same rows hold out the same ones.
    """

    def __init__(self, name: str, options: Mapping[str, Any]):
        self.options = _read_options(name, options)
        self._check = _NONE if self.options.check == "none" else CHECKS[self.options.check]
        self.name = name
        self.seconds = self._check.seconds and (self.options.seconds or self._check.seconds)
        self._rows, self.counts = _load(self.options, self._check)
        unread = [row for rows in self._rows.values() for row in rows if not _is_read(row, self._check)]
        self.unread = len(unread)
        if self.counts.in_both:
            log.warning("task %r: %d training rows are left out, being held out too", name, self.counts.in_both)
        if unread:
            first = min(unread, key=lambda row: row.number)
            log.warning(
                "task %r: check %r cannot read %d of %d accepted answers, so to these only the same text is right; "
                "the first is %r (%s).",
                *(name, self.options.check, len(unread), self.counts.train + self.counts.held_out),
                *(first.answers[0][:60], f"{first.place} {first.number}"),
            )
        described = f"{name} {VERSION} {self.options.check} {self.seconds} {self._check.versions()} {_hash(self._rows)}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]

    def problem(self, seed: int, split: Split = "train") -> Problem:
        found = self._rows[split]
        if not found:
            raise TaskError(f"task {self.name!r} has no {split} problems, {self.options.path!r} is too small.")
        row = found[randomness.seed("problem", self.name, seed) % len(found)]
        verifiable = self._check is not _NONE
        return Problem(self.name, seed, row.question, row.compact, row.answers, split, verifiable, row.data or None)

    def score(self, problem: Problem, answer_text: str) -> float:
        return float(any(self._check.right(answer, answer_text) for answer in problem.answers))

    def canonical(self, answer_text: str) -> str:
        return self._check.canonical(answer_text)


def _read_options(name: str, options: Mapping[str, Any]) -> DatasetOptions:
    defaults = {field.name: field.default for field in dataclasses.fields(DatasetOptions)} | {"path": ""}
    unknown = sorted(set(options) - set(defaults))
    if unknown or "path" not in options:
        wrong = f"an option {unknown[0]!r}" if unknown else "no path"
        raise TaskError(f"task {name!r} has {wrong}; the options of a data set are {', '.join(defaults)}.")
    given = {"answer": "", **options} if options.get("check") == "none" else dict(options)
    for field, value in given.items():
        kinds = {"columns": (str, tuple, list), "seconds": (int, float)}.get(field, (type(defaults[field]),))
        if not isinstance(value, kinds):
            raise TaskError(f"task {name!r} has {field}={value!r}, a {type(value).__name__} where none can be.")
    if isinstance(given.get("columns"), list):
        given["columns"] = tuple(given["columns"])
    chosen = DatasetOptions(**given)
    wrong = ""
    if not 0 <= chosen.seconds < math.inf:
        wrong = f"seconds={chosen.seconds}; expected a number from 0"
    elif chosen.check not in (*CHECKS, "none"):
        wrong = f"check {chosen.check!r}; expected {', '.join(CHECKS)} or none"
    elif chosen.check != "none" and not chosen.answer:
        wrong = "no column for the answer; say which, or check='none'"
    elif chosen.held_out_split and tables.is_file(chosen.held_out_path or chosen.path):
        wrong = f"held_out_split={chosen.held_out_split!r} of a file, which has no splits; say its held_out_path"
    if wrong:
        raise TaskError(f"task {name!r} has {wrong}.")
    return chosen


# --- rows


def _load(options: DatasetOptions, check: Check) -> tuple[dict[Split, list[_Row]], Counts]:
    table = tables.read(options.path, options.split, options.subset, options.revision)
    train, repeated = _distinct(_rows(table, options, check))
    parts: dict[Split, list[_Row]] = {"train": [], "held_out": []}
    if options.held_out_path or options.held_out_split:
        path, split = options.held_out_path or options.path, options.held_out_split or options.split
        table = tables.read(path, split, options.subset, options.revision)
        parts["held_out"], more = _distinct(_rows(table, options, check))
        repeated += more
        taken = {text for row in parts["held_out"] for text in _contents(row)}
        parts["train"] = [row for row in train if taken.isdisjoint(_contents(row))]
    else:
        for row in train:
            parts[split_of("dataset", fold(row.compact))].append(row)
    in_both = len(train) - len(parts["train"]) if options.held_out_path or options.held_out_split else 0
    return parts, Counts(len(parts["train"]), len(parts["held_out"]), repeated, in_both)


def _is_read(row: _Row, check: Check) -> bool:
    return not row.answers or any(map(check.reads, row.answers))


def _contents(row: _Row) -> tuple[str, str]:
    """What a model can know a row by."""
    return fold(row.question), fold(row.compact)


def _distinct(rows: Iterable[_Row]) -> tuple[list[_Row], int]:
    found: dict[str, _Row] = {}
    count = 0
    for row in rows:
        count += 1
        found.setdefault(fold(row.question), row)
    return list(found.values()), count - len(found)


def _rows(table: tables.Table, options: DatasetOptions, check: Check) -> Iterable[_Row]:
    for number, columns in table.rows:
        try:
            question = _question(columns, options)
            compact = _text(columns, options.compact) if options.compact else question
            answers = _answers(columns, options, check) if options.answer else ()
            kept = columns if options.columns == ALL else {name: _column(columns, name) for name in options.columns}
        except ValueError as error:
            raise TaskError(f"{table.place} {number}: {error}.") from None
        yield _Row(question, compact, answers, kept, table.place, number)


def _question(columns: tables.Columns, options: DatasetOptions) -> str:
    if not options.template:
        return _text(columns, options.question)
    template = string.Template(options.template)  # names alone are replaced: no attributes, no items, no calls
    if not template.is_valid():
        raise ValueError(f"the template {options.template!r} has a $ that names no column (write $$ for the sign)")
    return template.substitute({name: _text(columns, name) for name in template.get_identifiers()})


def _answers(columns: tables.Columns, options: DatasetOptions, check: Check) -> tuple[str, ...]:
    """As the row has it, then how else a person would write the same number."""
    text = _text(columns, options.answer)
    if options.answer_after:
        _, mark, text = text.rpartition(options.answer_after)
        if not mark:
            raise ValueError(f"{options.answer!r} has no {options.answer_after!r} that an answer could follow")
    if options.answer_boxed:
        boxed = last_boxed(text)
        if boxed is None:
            raise ValueError(f"{options.answer!r} has no \\boxed{{}} that an answer could be in")
        text = boxed
    text = text.strip()
    answers = cells.spellings(text, cells.is_number(columns[options.answer]))
    if not any(map(check.readable, answers)):
        raise ValueError(f"check {options.check!r} can compare nothing with the answer {text[:60]!r}")
    return answers


def _column(columns: tables.Columns, name: str) -> Any:
    if name not in columns:
        raise ValueError(f"there is no column {name!r}; there are {', '.join(map(repr, columns))}")
    return columns[name]


def _text(columns: tables.Columns, name: str) -> str:
    value = _column(columns, name)
    try:
        return cells.text(value)
    except ValueError as error:
        raise ValueError(f"{name!r} {error}") from None


def _hash(rows: Mapping[Split, list[_Row]]) -> str:
    content = hashlib.sha256()
    for split, found in rows.items():
        for row in found:
            fields = [split, row.question, row.compact, row.answers, row.data]
            content.update(json.dumps(fields, sort_keys=True, default=_plain).encode())
    return content.hexdigest()


def _plain(value: Any) -> str:
    """What JSON has no form for, as a text that is the same on every machine."""
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TaskError(
        f"a column holds a {type(value).__name__}, which a problem cannot keep; say which columns it keeps."
    )
