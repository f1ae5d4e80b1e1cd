"""What a table of fields is made of: each has a default, a range and a meaning, all in one place.

A `Range` says in words what is allowed, for the sentence that refuses something else. There is none that takes any
number, so a number cannot be a field without bounds, nor be anything but finite.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

MOST = 10**9  # where nothing smaller is said; twice that is still a 32-bit number


class FieldError(ValueError):
    """A field of a config cannot be what it is; the message is one sentence that names it and says what is allowed."""


Parts = Callable[[Any], Iterator[tuple[str, Any, "Range"]]]


@dataclasses.dataclass(frozen=True)
class Range:
    """expected: what is allowed, in words. holds: whether a value is, apart from its parts, which have ranges of their
    own. parts: their names (such as "[0]"), values and ranges. secret: a refused value is not repeated.
    """

    expected: str
    holds: Callable[[Any], bool]
    parts: Parts = lambda value: iter(())
    secret: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises FieldError."""
        if not self.holds(value):
            shown = "not what it can be" if self.secret else _repr(value)
            raise FieldError(f"config.{name} is {shown}; expected {self.expected}.")
        for part, inner, allowed in self.parts(value):
            allowed.check(name + part, inner)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field whose default is not in its range cannot be defined."""

    default: Any
    range: Range
    meaning: str

    def __post_init__(self) -> None:
        self.range.check(f"({self.meaning})", self.default)


Fields = Mapping[str, Field]  # by dotted name, "learn.learning_rate"


def whole(least: int, most: int = MOST) -> Range:
    """A whole number, both ends allowed."""
    expected = f"a whole number from {_shown(least)} to {_shown(most)}"
    return Range(expected, lambda value: type(value) is int and least <= value <= most)


def real(least: float, most: float = MOST) -> Range:
    """A finite number, both ends allowed."""
    expected = f"a number from {_shown(least)} to {_shown(most)}"
    return Range(expected, lambda value: _is_real(value) and least <= value <= most)


def above(limit: float, most: float = MOST) -> Range:
    """A finite number beyond a limit."""
    expected = f"a number above {_shown(limit)} and at most {_shown(most)}"
    return Range(expected, lambda value: _is_real(value) and limit < value <= most)


def zero_or(other: Range) -> Range:
    """0 has a meaning of its own."""
    return Range(f"0 or {other.expected}", lambda value: (_is_real(value) and value == 0) or other.holds(value))


def yes_no() -> Range:
    return Range("True or False", lambda value: isinstance(value, bool))


def one_of(*choices: str) -> Range:
    words = [choice or "'' (nothing)" for choice in choices]
    return Range(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in choices)


def text(least: int = 0, most: int = 4096) -> Range:
    """Characters that a file name, a message or a prompt can hold."""
    expected = f"text of {least} to {most} characters" if least else f"text of at most {most} characters"
    return Range(expected, lambda value: _is_text(value) and least <= len(value) <= most)


def matching(pattern: str, expected: str, secret: bool = False) -> Range:
    """Text of which all matches the regular expression."""
    return such(lambda value: re.fullmatch(pattern, value, re.DOTALL) is not None, expected, secret)


def such(holds: Callable[[str], bool], expected: str, secret: bool = False) -> Range:
    """Text for which something holds."""
    return Range(expected, lambda value: _is_text(value) and holds(value), secret=secret)


def each(allowed: Range, count: int | None = None) -> Range:
    """A tuple or list, of a certain length or of any, whose elements have a range."""
    expected = f"{'a tuple' if count is None else f'a tuple of {count}'}, each {allowed.expected}"
    return Range(
        expected,
        lambda value: isinstance(value, tuple | list) and count in (None, len(value)),
        lambda value: ((f"[{i}]", inner, allowed) for i, inner in enumerate(value)),
    )


def span(expected: str) -> Range:
    """Nothing, or where something begins and where it has ended."""
    numbers, whole_ = each(whole(0)), whole(0)

    def holds(value: Any) -> bool:
        if not numbers.holds(value) or len(value) not in (0, 2):
            return False
        return not value or (all(map(whole_.holds, value)) and value[0] < value[1])

    return Range(expected, holds)


def row(*ranges: Range) -> Range:
    """A tuple or list of so many, each with its own range."""
    return Range(
        f"a tuple of {len(ranges)}",
        lambda value: isinstance(value, tuple | list) and len(value) == len(ranges),
        lambda value: ((f"[{i}]", inner, ranges[i]) for i, inner in enumerate(value)),
    )


def mapping(expected: str, values: Range, named: Mapping[str, Range] | None = None, least: int = 0) -> Range:
    """Names with values of a range; named: the ranges of some of them."""
    own = named or {}
    return Range(
        expected,
        lambda value: _is_mapping(value) and len(value) >= least and all(_is_text(name) and name for name in value),
        lambda value: ((f".{name}", value[name], own.get(name, values)) for name in value),
    )


def plain() -> Range:
    """What a JSON file can hold, every number finite and of at most 64 bits."""

    def holds(value: Any) -> bool:
        if type(value) is int:
            return -(2**63) <= value < 2**63
        return value is None or isinstance(value, bool | tuple | list) or _is_text(value) or _is_real(value)

    def parts(value: Any) -> Iterator[tuple[str, Any, Range]]:
        if _is_mapping(value):
            return options.parts(value)
        return elements.parts(value) if isinstance(value, tuple | list) else iter(())

    found = Range(
        "text, a finite number, True or False, or a list or mapping of those",
        lambda value: holds(value) or (_is_mapping(value) and options.holds(value)),
        parts,
    )
    elements, options = each(found), mapping("names with values", found)
    return found


def _is_real(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _repr(value: Any) -> str:
    """In one line, cut where it is long."""
    return f"{(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)!r:.80}"


def _shown(number: float) -> str:
    return f"{number:,}" if abs(number) >= 10_000 else f"{number:g}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and not re.search("[\ud800-\udfff]", value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | ml_collections.ConfigDict)


# --- a table and the config that it describes


def make(fields: Fields) -> ml_collections.ConfigDict:
    """A config of the defaults."""
    config = ml_collections.ConfigDict()
    for name, field in fields.items():
        put(config, name, field.default)
    return config


def put(config: Any, name: str, value: Any) -> None:
    """Sets a field of a config, or of the dicts that one was written as, to a copy of a value."""
    *sections, leaf = name.split(".")
    for section in sections:
        if section not in config:
            config[section] = type(config)()
        config = config[section]
    config[leaf] = copy.deepcopy(value)


def drop(config: Any, name: str) -> None:
    """Takes a field out of a config, or of the dicts that one was written as."""
    *sections, leaf = name.split(".")
    for section in sections:
        config = config[section]
    del config[leaf]


def check(config: ml_collections.ConfigDict, fields: Fields) -> None:
    """Raises FieldError for the first field that is not in its range, is missing, or is in no table."""
    if wrong := [*unknown(config, fields)]:
        raise FieldError(unknown_sentence(wrong[0], fields))
    for name, field in fields.items():
        field.range.check(name, value_of(config, name))


def value_of(config: Any, name: str) -> Any:
    """Raises FieldError if there is no such field."""
    for section in name.split("."):
        if not _is_mapping(config) or section not in config:
            raise FieldError(f"config.{name} is missing; configs/common.py says what it is.")
        config = config[section]
    return config


def missing(config: Any, fields: Fields) -> list[str]:
    """Fields of the table that a config does not have."""
    return [name for name in fields if not has(config, name)]


def has(config: Any, name: str) -> bool:
    try:
        value_of(config, name)
    except FieldError:
        return False
    return True


def unknown(config: Any, fields: Fields, path: str = "") -> Iterator[str]:
    """Dotted names of what a config has and the table does not."""
    for leaf in config:
        name = f"{path}{leaf}"
        if name in fields:
            continue
        if not any(other.startswith(f"{name}.") for other in fields):
            yield name
        elif _is_mapping(config[leaf]):
            yield from unknown(config[leaf], fields, f"{name}.")
        else:
            raise FieldError(f"config.{name} is {_repr(config[leaf])}; expected a section with fields of its own.")


def unknown_sentence(name: str, fields: Fields) -> str:
    """What to say of a field that is in no table."""
    near = nearest(name, fields)
    hint = f"did you mean {' or '.join(f'config.{other}' for other in near)}?" if near else "configs/common.py has all."
    return f"the config has no field {name!r}; {hint}"


def nearest(name: str, fields: Sequence[str] | Fields) -> list[str]:
    """Fields that whoever wrote `name` may have meant, wherever they are: at most three, the likeliest first."""
    from difflib import SequenceMatcher

    leaf = name.rpartition(".")[2].lower()

    def likeness(other: str) -> float:
        own = other.rpartition(".")[2].lower()
        initials = "".join(word[0] for word in own.split("_") if word)
        if leaf in (own, initials):
            return 1.0
        words = set(leaf.split("_")) <= set(own.split("_")) or set(own.split("_")) <= set(leaf.split("_"))
        return max(0.8 * words, SequenceMatcher(None, leaf, own).ratio())

    def order(other: str) -> tuple[float, float]:
        return likeness(other), SequenceMatcher(None, name, other).ratio()

    ranked = sorted(fields, key=order, reverse=True)
    best = likeness(ranked[0]) if ranked else 0.0
    return [other for other in ranked[:3] if best >= 0.7 and likeness(other) >= best - 0.05]
