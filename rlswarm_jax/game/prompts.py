"""How a problem is put to a model, and where its answer is in what the model says."""

import dataclasses
import re
from collections.abc import Callable

from rlswarm_jax.qwen.tokenizer import Prompt, Tokenizer
from rlswarm_jax.tasks import Problem

_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_ANY = Problem("", 0, "1 + 1", "1+1", ("2",))
_SYSTEM = "Solve the problem. Think first, then give the final answer alone between <answer> and </answer>."


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """name: with its version, part of every record. render: problem to prompt. answer: completion to answer text.

    thinking: as `Tokenizer.encode` takes it.
    """

    name: str
    render: Callable[[Problem], Prompt]
    answer: Callable[[str], str]
    thinking: bool | None = None

    def encode(self, problem: Problem, tokenizer: Tokenizer) -> list[int]:
        """The prompt's token ids. Raises ValueError where they cannot be right."""
        return tokenizer.encode(self.render(problem), self.thinking)


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


def choose_format(name: str, tokenizer: Tokenizer, thinking: str = "") -> PromptFormat:
    """The format of that name; "auto" is chat where the checkpoint has a chat template, else compact.

    thinking: "on" or "off" switches Qwen3's thoughts, and is part of the format's name: who thinks has other prompts.
    Raises ValueError for an unknown name, or a switch that the format or the checkpoint does not have.
    """
    if name == "auto":
        name = "compact" if tokenizer.render_chat is None else "chat"
    if name not in FORMATS:
        raise ValueError(f"prompt format {name!r} is unknown; expected auto, {', '.join(FORMATS)}.")
    chosen = FORMATS[name]
    if not thinking:
        return chosen
    switched = dataclasses.replace(chosen, name=f"{chosen.name}-thinking-{thinking}", thinking=thinking == "on")
    tokenizer.encode(switched.render(_ANY), switched.thinking)
    return switched
