"""Texts of strangers as data: bounded, and with nothing in them that acts on whoever reads."""

from typing import Any

MAX_TEXT, MAX_NAME = 2_000, 80  # characters that are shown of a completion or a prompt, and of a name


def visible(text: str) -> str:
    """Characters that act on a reader, or turn others around, by their numbers; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(text: str, most: int = MAX_TEXT) -> dict[str, Any]:
    """A text as the page takes it: `text`, and `of`, its length in characters, where it was cut."""
    if len(text) <= most:
        return {"text": visible(text)}
    return {"text": visible(text[:most]), "of": len(text)}


def named(text: Any, most: int = MAX_NAME) -> str:
    """A name, a task or a cause, in a line."""
    line = visible(str(text)[:most]).replace("\n", "\\n")
    return line + "…" * (len(str(text)) > most)
