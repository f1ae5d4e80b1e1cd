"""What a task is: problems from seeds, and a score for an answer. Pure, versioned, never trusting a peer."""

import dataclasses
import hashlib
from typing import Literal, Protocol

Split = Literal["train", "held_out"]
HELD_OUT_ONE_IN = 8


class TaskError(ValueError):
    """A task that does not exist, is misconfigured, or cannot make a problem; the message says which."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """question: for a person or a chat model. compact: the same for a tiny character model.

    answers: every accepted answer, the first one canonical; it never leaves the node.
    """

    task: str
    seed: int
    question: str
    compact: str
    answers: tuple[str, ...]

    @property
    def split(self) -> Split:
        """Held-out problems are disjoint from training ones by content: the question's hash decides, not the seed."""
        first = hashlib.sha256(f"{self.task}\0{self.compact}".encode()).digest()[0]
        return "held_out" if first % HELD_OUT_ONE_IN == 0 else "train"


class Task(Protocol):
    """Deterministic in its arguments. `fingerprint` changes when any problem or score could."""

    name: str
    fingerprint: str

    def problem(self, seed: int, split: Split = "train") -> Problem:
        """The problem of a 63-bit seed; two seeds may give the same problem."""
        ...

    def score(self, problem: Problem, answer_text: str) -> float:
        """In [0, 1]. Total: any text at all gets a score."""
        ...
