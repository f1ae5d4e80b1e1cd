"""What a cell of a table says, as text: numbers with the digits of their file, messages by what they say."""

import decimal
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]{1,3}")
_TEXT_PARTS = ("text", "input_text", "output_text")


class Written(float):
    """A number of a file that is text, with its digits as they stand there."""

    __slots__ = ("digits",)
    digits: str

    def __new__(cls, digits: str) -> "Written":
        made = super().__new__(cls, digits)
        made.digits = digits
        return made


def text(value: Any) -> str:
    """What a cell says. Raises ValueError, which says what it is instead of text, number or messages."""
    if isinstance(value, str):
        said = value
    elif is_number(value):
        said = _digits(value)
    elif isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
        said = _messages(value if isinstance(value, list) else [value])
    else:
        raise ValueError(f"is a {type(value).__name__}; expected text")
    if not said.strip():
        raise ValueError("is empty")
    try:
        said.encode()
    except UnicodeEncodeError:
        raise ValueError("has half a surrogate pair, which is no text") from None
    return said


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | decimal.Decimal) and not isinstance(value, bool)


def spellings(said: str, number: bool = False) -> tuple[str, ...]:
    """A text, and how else a person would write the number that it is, without exponent or zeros at its end.

    number: whether it is known to be one; otherwise only digits with an exponent are.
    """
    if not number and not EXPONENT.fullmatch(said):
        return (said,)
    return tuple(dict.fromkeys((said, plain(decimal.Decimal(said)))))


def plain(number: decimal.Decimal) -> str:
    """All its digits, and no more: 0.00001, 3 for 3.0, 0 for -0.0."""
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _digits(value: Any) -> str:
    """As its file has it, else as a person writes it. Raises ValueError for what no digits can say."""
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if not math.isfinite(value):
        raise ValueError(f"is {value}, no number that can be compared")
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    # a number's shortest text, float32's too, is what `str` gives
    return getattr(value, "digits", "") or plain(decimal.Decimal(str(value)))


def _messages(found: list[Any]) -> str:
    """A chat, or the parts of one message: what was said, without who said it. A call of a tool says nothing."""
    parts = [_content(one["content"]) if isinstance(one, Mapping) and "content" in one else _part(one) for one in found]
    return "\n\n".join(filter(str.strip, parts))


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"has a message whose content is a {type(content).__name__}; expected text or parts")
    return "\n".join(filter(str.strip, map(_part, content)))


def _part(part: Any) -> str:
    """Raises ValueError for an image, say: a question without it would be another one."""
    if isinstance(part, str):
        return part
    kind = part.get("type") or "text" if isinstance(part, Mapping) else type(part).__name__
    said = part.get("text") if isinstance(part, Mapping) else None
    if kind not in _TEXT_PARTS or not isinstance(said, str | None):
        raise ValueError(f"has a part of type {str(kind)[:40]!r}, which is no text: leave such rows out")
    return said or ""
