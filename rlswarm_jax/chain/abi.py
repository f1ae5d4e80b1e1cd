"""The contracts' interfaces as bytes: calls, answers, events, errors by name; ours and the original's."""

from functools import cache
from typing import Any, NamedTuple

import eth_abi
from eth_abi.exceptions import DecodingError
from eth_utils import function_signature_to_4byte_selector, keccak
from eth_utils.abi import abi_to_signature, collapse_if_tuple

from rlswarm_jax.chain.contracts import coordinator, original
from rlswarm_jax.chain.errors import MalformedAnswer


class Event(NamedTuple):
    """indexed, plain: (name, type) of its topics and of its data, in order."""

    name: str
    indexed: tuple[tuple[str, str], ...]
    plain: tuple[tuple[str, str], ...]


@cache
def _errors() -> dict[bytes, str]:
    named = [abi_to_signature(entry) for entry in _entries("error")]
    return {function_signature_to_4byte_selector(one): one for one in (*named, "Error(string)", "Panic(uint256)")}


def _entries(kind: str) -> list[Any]:
    """The original's first: of what both have, ours is the one that counts."""
    return [entry for entry in (*original(), *coordinator()["abi"]) if entry["type"] == kind]


@cache
def events() -> dict[bytes, Event]:
    """The contracts' events by their first topic."""
    found = {}
    for entry in _entries("event"):
        fields = [(one["name"], collapse_if_tuple(one), one["indexed"]) for one in entry["inputs"]]
        indexed, plain = (tuple((n, t) for n, t, i in fields if i is wanted) for wanted in (True, False))
        found[keccak(text=abi_to_signature(entry))] = Event(entry["name"], indexed, plain)
    return found


def topic(name: str) -> bytes:
    """The first topic of an event."""
    return next(topic for topic, event in events().items() if event.name == name)


def encode_call(signature: str, arguments: tuple) -> bytes:
    """The bytes of a call by a function's full signature: bare names are ambiguous where there are overloads."""
    return function_signature_to_4byte_selector(signature) + eth_abi.encode(_types(signature), arguments)


def decode(types: list[str], data: bytes) -> tuple:
    """ABI-encoded values; text that is not UTF-8 gets replacement characters. Raises MalformedAnswer.

    Anybody may have written the text that a contract hands out, so its bytes are read first, and as text afterwards.
    """
    try:
        values = eth_abi.decode([one.replace("string", "bytes") for one in types], data)
    except (DecodingError, OverflowError):
        raise MalformedAnswer(f"the chain endpoint's answer is not of the type ({', '.join(types)}).") from None
    # a struct of text and bytes stays bytes: which is which is for its reader
    texts = ["string" in one and "bytes" not in one for one in types]
    return tuple(_text(value) if text else value for text, value in zip(texts, values, strict=True))


def decode_event(topics: tuple[bytes, ...], data: bytes) -> tuple[str, dict[str, Any]] | None:
    """An event's name and fields; None if it is none of ours. Raises MalformedAnswer if it is cut or padded."""
    event = events().get(topics[0]) if topics else None
    if event is None:
        return None
    if len(topics) != 1 + len(event.indexed):
        raise MalformedAnswer(f"the chain endpoint's event {event.name} has {len(topics)} topics.")
    fields = {name: decode([kind], topic)[0] for (name, kind), topic in zip(event.indexed, topics[1:], strict=True)}
    values = decode([kind for _, kind in event.plain], data)
    return event.name, fields | {name: value for (name, _), value in zip(event.plain, values, strict=True)}


def error_name(data: bytes) -> tuple[str, str]:
    """The name of the error in a revert's data, and its arguments as text."""
    signature = _errors().get(data[:4])
    if signature is None:
        return "unknown error", "0x" + data[:4].hex()
    try:
        values = decode(_types(signature), data[4:])
    except MalformedAnswer:
        values = ()
    return signature.partition("(")[0], ", ".join(str(value)[:200] for value in values)


def _types(signature: str) -> list[str]:
    inner = signature.partition("(")[2][:-1]
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(inner):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(inner[start:at])
            start = at + 1
    return [*parts, inner[start:]] if inner else []


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return tuple(_text(one) for one in value) if isinstance(value, tuple) else value
