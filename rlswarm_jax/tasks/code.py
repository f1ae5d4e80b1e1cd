"""Programming problems: an answer is a program, and is right if it passes the tests, in a sandbox.

    config.tasks.mbpp = dict(kind="code", path="mbpp.jsonl")                 rows of MBPP, HumanEval, or with `io`
    config.tasks.programs = dict(kind="code", path="embedded:programs")      a small set of our own

docs/sandbox.md says how a verdict is reached, and what about it could be forged.
"""

import ast
import dataclasses
import hashlib
import json
import marshal
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlswarm_jax import randomness
from rlswarm_jax.tasks import harness, sandbox
from rlswarm_jax.tasks.base import Problem, Split, TaskError, split_of
from rlswarm_jax.tasks.programs import Row, Test, parse_row

VERSION = 2
MAX_ANSWER_CHARACTERS = 20_000
MAX_CANONICAL_CHARACTERS = 4_000  # of a program that is parsed to see what it says
MARGIN_SECONDS = 2 * sandbox.START_SECONDS  # to start and to end a program on a busy machine
EMBEDDED = {"embedded:programs": Path(__file__).parent.parent / "assets" / "programs.jsonl"}
HARNESS = Path(harness.__file__).read_text()
_INDENT = r"(?P<indent>[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)*)"  # in a list, or first in an item of one
_MARK = r"(?:(?P<ticks>```+)(?P<info>[^`\n]*)|(?P<tildes>~~~+)(?P<about>.*))"
_FENCE = re.compile(rf"^{_INDENT}{_MARK}$", re.MULTILINE)
_ATTRIBUTE = re.compile(r"[\w.-]+=(?:\"[^\"]*\"|'[^']*'|[^\s,{}]*)")
_PYTHON = re.compile(r"(?:python|py)(?:[23](?:\.[0-9]+)*)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CodeOptions:
    """path: of a JSONL file, or "embedded:programs". columns: our name of a field to the file's, where they differ.

    score: "all" pays for passing every test, "graded" for the fraction that is passed. seconds, memory_mb: of one
    program, by the clock and in MiB.
    """

    path: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score: str = "all"
    seconds: float = 5.0
    memory_mb: int = 512

    def __post_init__(self) -> None:
        if self.score not in ("all", "graded"):
            raise TaskError(f"score is {self.score!r}, expected 'all' or 'graded'")
        if not 0 < self.seconds <= 60 or not 64 <= self.memory_mb <= 8192:
            raise TaskError("seconds must be above 0 and at most 60, and memory_mb from 64 to 8192")


class CodeTask:
    """The problems of one file, as a `Task`. Raises TaskError if they cannot be read or this machine has no sandbox.

    forgeable: how many problems have tests whose verdict a hostile answer could forge.
    """

    def __init__(self, name: str, options: Mapping[str, Any]):
        try:
            self._options = CodeOptions(**options)
        except (TypeError, TaskError) as error:
            raise TaskError(f"task {name!r} refused its options {dict(options)}: {error}.") from None
        try:
            sandbox.require()
        except sandbox.SandboxRefused as refused:
            raise TaskError(f"task {name!r} needs a sandbox: {refused}") from None
        self.name = name
        self._rows, content = read_rows(self._options.path, self._options.columns)
        self._by_split: dict[str, list[int]] = {"train": [], "held_out": []}
        for index, row in enumerate(self._rows):
            self._by_split[split_of(name, row.text)].append(index)
        self._limits = sandbox.Limits(
            seconds=self._options.seconds,
            cpu_seconds=max(1, round(self._options.seconds)),
            memory=self._options.memory_mb * 2**20,
        )
        self.forgeable = sum(row.forgeable for row in self._rows)
        runs = max(max(1, sum(test.kind == "io" for test in row.tests)) for row in self._rows)
        self.seconds = runs * self._options.seconds + MARGIN_SECONDS
        settings = [str(getattr(self._options, field)) for field in ("score", "seconds", "memory_mb")]
        code = hashlib.sha256(HARNESS.encode()).hexdigest()
        described = [name, *settings, content, code, f"task {VERSION} sandbox {sandbox.VERSION}"]
        self.fingerprint = hashlib.sha256(" ".join(described).encode()).hexdigest()[:16]

    def problem(self, seed: int, split: Split = "train") -> Problem:
        """Raises TaskError if none of the problems belongs to that split."""
        indices = self._by_split[split]
        if not indices:
            raise TaskError(f"task {self.name!r} has no {split} problems: it is too small, add some.")
        row = self._rows[indices[randomness.seed("problem", self.name, seed) % len(indices)]]
        answers = (row.reference,) if row.reference else ()
        return Problem(self.name, seed, row.text, row.text, answers, split, data=row)

    def score(self, problem: Problem, answer_text: str) -> float:
        """Runs it. Raises SandboxRefused if that is not possible, which says nothing about the answer."""
        code = extract(answer_text)
        if not code.strip() or len(code) > MAX_ANSWER_CHARACTERS:
            return 0.0
        passed = judge(problem.data, code, self._limits)
        return sum(passed) / len(passed) if self._options.score == "graded" else float(all(passed))

    def canonical(self, answer_text: str) -> str:
        return canonical(answer_text)


def judge(row: Row, code: str, limits: sandbox.Limits) -> list[bool]:
    """Which of the tests the program passes, in their order. Raises SandboxRefused."""
    if row.tests[0].kind == "io":
        return [_reads_and_writes(test, code, limits) for test in row.tests]
    return _call(row, code, limits)


def _call(row: Row, code: str, limits: sandbox.Limits) -> list[bool]:
    """All in one process, one line each; a line that is longer than any right one is not read."""
    nonce = secrets.token_hex(16)  # says "these statements did not raise"; an answer that looks for it can find it
    order = {
        "sources": [*row.setup, code],
        "prompt": row.prompt,
        "entry_point": row.entry_point,
        "tests": [(test.kind, test.source) for test in row.tests],
        "nonce": nonce,
    }
    outcome = sandbox.run(HARNESS, marshal.dumps(_encodable(order)), limits)
    lines = outcome.stdout.decode("ascii", "replace").split("\n")[:-1]  # the last has not ended
    lines += [""] * (len(row.tests) - len(lines))
    said = zip(row.tests, lines, strict=False)
    return [line == nonce if test.kind == "assert" else test.passes(line) for test, line in said]


def _reads_and_writes(test: Test, code: str, limits: sandbox.Limits) -> bool:
    outcome = sandbox.run(code, test.source.encode(), limits)
    return outcome.ended == "itself" and outcome.code == 0 and test.passes(outcome.stdout.decode(errors="replace"))


def _encodable(value: Any) -> Any:
    """Texts without lone surrogates, which cannot be sent."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return type(value)(map(_encodable, value))


def extract(answer_text: str) -> str:
    """The program in an answer: its last closed block of Python, or of no language that is named; else all of it.

    Blocks are those of CommonMark, which a fence of as many backticks or tildes closes as opened them, but may be
    indented as much as they like: what indents the fence is no part of the program.
    """
    opened, found = None, None
    for fence in _FENCE.finditer(answer_text):
        mark, info = fence["ticks"] or fence["tildes"], (fence["info"] or fence["about"] or "").strip()
        if opened is None:
            opened = fence, mark, info
        elif not info and mark.startswith(opened[1]) and not fence["indent"].strip():
            if _is_python(opened[2]):
                found = opened[0], fence
            opened = None
    if found is None:
        return answer_text
    begin, end = found
    most = len(begin["indent"])
    lines = answer_text[begin.end() + 1 : end.start()].split("\n")
    return "\n".join(line[:most].lstrip(" \t") + line[most:] for line in lines)


def _is_python(info: str) -> bool:
    """What stands after a fence: nothing, `Python`, `python3.11 title="a.py"`, `{.python .numberLines}`, `py:a.py`."""
    words = re.split(r"[\s,:{}]+", _ATTRIBUTE.sub("", info))
    names = [word.lstrip(".") for word in words if word and not word.startswith("#")]
    return not names or any(map(_PYTHON.fullmatch, names))


def canonical(answer_text: str) -> str:
    """The program as Python would write it, without comments; as it stands if it is long or is no Python."""
    code = extract(answer_text)
    if len(code) <= MAX_CANONICAL_CHARACTERS:
        try:
            return ast.unparse(ast.parse(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    return code.strip()


def read_rows(path: str, columns: Mapping[str, str]) -> tuple[list[Row], str]:
    """The problems of a JSONL file, and the SHA-256 of what they say. Raises TaskError with file and line."""
    file = EMBEDDED.get(path, Path(path))
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}.") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise TaskError("a line must be a JSON object")
            fields |= {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}
            rows.append(parse_row(fields))
        except (ValueError, RecursionError) as error:  # TaskError and JSON's are ValueErrors
            raise TaskError(f"{path}, line {number}: {error}.") from None
    if not rows:
        raise TaskError(f"{path} has no problems in it.")
    return rows, hashlib.sha256(repr(rows).encode(errors="replace")).hexdigest()
