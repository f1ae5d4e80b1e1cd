"""A checkpoint's chat template: a conversation to text. The one place that may import `transformers`."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlswarm_jax.qwen.config import read_json

log = logging.getLogger("rlswarm_jax.qwen")
Message = Mapping[str, str]  # {"role": ..., "content": ...}


class ChatRenderer(Protocol):
    """A chat template: a conversation to text. `thinking` is Qwen3's `enable_thinking`, None the template's default."""

    def __call__(self, messages: Sequence[Message], thinking: bool | None = None) -> str: ...


def read_chat(directory: Path) -> ChatRenderer | None:
    """None where a checkpoint has no template. Raises ValueError as `chat_template`."""
    template = chat_template(directory)
    return None if template is None else chat_renderer(directory, template)


def chat_template(directory: Path) -> str | None:
    """The checkpoint's own template, found where `transformers` finds it; None where it has none for plain chats.

    Files go before what `tokenizer_config.json` says, which may be null, a template or several by name.
    """
    files = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    found: Any = {path.stem: path.read_text() for path in files}
    if (directory / "chat_template.jinja").exists():
        found["default"] = (directory / "chat_template.jinja").read_text()
    where = directory / "tokenizer_config.json"
    if not found and where.exists():
        found = read_json(where).get("chat_template")
    if isinstance(found, list) and all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in found):
        found = {one["name"]: one["template"] for one in found}
    if isinstance(found, dict):
        if found and "default" not in found:
            log.warning(
                "%s has chat templates for %s but no default: it has none.", directory, ", ".join(map(str, found))
            )
        found = found.get("default")
    if not isinstance(found, str | None):
        raise ValueError(
            f"{where}: field 'chat_template' must be a template or a list of named ones, not {found!r:.80}."
        )
    return found or None


def chat_renderer(directory: Path, template: str) -> ChatRenderer:
    """A chat template with the checkpoint's tokens, ending where the assistant's turn begins."""

    @functools.cache
    def tokenizer():
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
        from transformers import PreTrainedTokenizerFast  # 10 CPU-seconds: only when a conversation is rendered

        return PreTrainedTokenizerFast.from_pretrained(str(directory))

    def render(messages: Sequence[Message], thinking: bool | None = None) -> str:
        import jinja2

        options = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
        switch = {} if thinking is None else {"enable_thinking": thinking}
        try:
            text = tokenizer().apply_chat_template(list(messages), **options, **switch)
            if switch and text == tokenizer().apply_chat_template(
                list(messages), **options, enable_thinking=not thinking
            ):
                raise ValueError(f"the chat template of {directory} has no thinking switch: leave `thinking` out.")
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template of {directory} refuses the conversation: {error}.") from None
        return text

    return render
