"""How a problem is put to a model, and where its answer is in what the model says."""

import dataclasses
import re
from collections.abc import Callable

from rlswarm_jax.qwen.tokenizer import Prompt, Tokenizer
from rlswarm_jax.tasks import Problem

_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_SYSTEM = "Solve the problem. Think first, then give the final answer alone between <answer> and </answer>."


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """name: with its version, part of every record. render: problem to prompt. answer: completion to answer text."""

    name: str
    render: Callable[[Problem], Prompt]
    answer: Callable[[str], str]


def _chat(problem: Problem) -> Prompt:
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": problem.question}]


def _tagged_answer(text: str) -> str:
    """What stands between the last pair of tags, nothing without one."""
    found = _ANSWER.findall(text)
    return found[-1] if found else ""


FORMATS = {
    "compact": PromptFormat("compact-1", lambda problem: problem.compact, lambda text: text),
    "chat": PromptFormat("chat-1", _chat, _tagged_answer),
}


def choose_format(name: str, tokenizer: Tokenizer) -> PromptFormat:
    """The format of that name; "auto" is chat where the checkpoint has a chat template, else compact.

    Raises ValueError for an unknown name.
    """
    if name == "auto":
        name = "compact" if tokenizer.render_chat is None else "chat"
    if name not in FORMATS:
        raise ValueError(f"prompt format {name!r} is unknown; expected auto, {', '.join(FORMATS)}.")
    return FORMATS[name]
