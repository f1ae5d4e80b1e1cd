"""What a task is: problems from seeds, and a score for an answer. Pure, versioned, never trusting a peer."""

import dataclasses
import hashlib
import importlib
import re
import traceback
from typing import Any, Literal, Protocol

Split = Literal["train", "held_out"]
HELD_OUT_ONE_IN = 8
REASON = 300  # characters


class TaskError(ValueError):
    """A task that does not exist, is misconfigured, or cannot make a problem; the message says which."""


def imported(path: str) -> Any:
    """What `module:name` is. Raises TaskError: there is no such thing, or its module, which is not ours, raised."""
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError | ValueError) and not _lines_of_modules(error):
            raise TaskError(f"expected module:function: {error}") from None
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in _lines_of_modules(error)[-1:])
        raise TaskError(f"{module} cannot be imported, it raised {reason(error)}{where}") from None
    try:
        return getattr(found, name)
    except AttributeError as error:
        raise TaskError(f"expected module:function: {error}") from None


def _lines_of_modules(error: BaseException) -> list[traceback.FrameSummary]:
    """Where modules were being imported when it was raised, but for the import system's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if frame.name == "<module>" and not frame.filename.startswith("<")]


def reason(error: BaseException) -> str:
    """What an exception says, as `printable`, even if it was made to defy that."""
    return printable("".join(traceback.format_exception_only(error)))


def printable(text: str) -> str:
    """One short line that cannot disturb a terminal."""
    return "".join(filter(str.isprintable, " ".join(text[: 4 * REASON].split())))[:REASON]


@dataclasses.dataclass(frozen=True)
class Problem:
    """question: for a person or a chat model. compact: the same for a tiny character model.

    answers: accepted answers, the canonical one first. data: what else the task needs to score it. Neither ever
    leaves the node. verifiable: whether there is anything to score an answer by.
    """

    task: str
    seed: int
    question: str
    compact: str
    answers: tuple[str, ...]
    split: Split = "train"
    verifiable: bool = True
    data: Any = dataclasses.field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash((self.task, self.seed, self.split))  # which make it: the texts need not be hashed, too


def split_of(task: str, content: str) -> Split:
    """Held-out problems are disjoint from training ones by content: the question's hash decides, not the seed."""
    first = hashlib.sha256(f"{task}\0{content}".encode()).digest()[0]
    return "held_out" if first % HELD_OUT_ONE_IN == 0 else "train"


def fold(text: str) -> str:
    """Text with white space and case folded: what two answers that say the same have in common."""
    return re.sub(r"\s+", " ", text).strip().lower()


class Task(Protocol):
    """Deterministic in its arguments. `fingerprint` changes when any problem or score could.

    seconds: most that scoring one answer may take, in a process of its own; 0 for a score that is quick and runs
    nothing but this project's own code, which is called where it is needed.
    """

    name: str
    fingerprint: str
    seconds: float

    def problem(self, seed: int, split: Split = "train") -> Problem:
        """The problem of a 63-bit seed; two seeds may give the same problem."""
        ...

    def score(self, problem: Problem, answer_text: str) -> float:
        """In [0, 1], 1 for a right answer. Any text at all gets a score; what raises or hangs is a counted failure."""
        ...

    def canonical(self, answer_text: str) -> str:
        """The same text for answers that say the same, as votes are counted; quick and total."""
        ...
