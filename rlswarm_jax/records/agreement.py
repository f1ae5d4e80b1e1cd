"""The rules by which a node plays, as readable parts: what they hash to, how two nodes' differ, and what to do then.

A part is called as the config's field that decides it, as far as one does. What others say of theirs is untrusted.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping

Terms = Mapping[str, str]
# parts that bind only those who share a tokenizer: who has another one reads the text, and encodes it anew
TOKENIZER, END_TOKENS = OF_TOKENS = ("model.tokenizer", "model.end_tokens")
RECORDS, PROMPTS, CHAIN, CHAIN_ID, NO_CHAIN = "records", "model.prompts", "chain.contract", "chain.id", "none"
MAX_PARTS, MAX_NAME, MAX_VALUE = 64, 128, 256  # in number, and characters
_SHOWN, _SHOWN_CHARACTERS = 4, 80
_VALUE = re.compile(r"[A-Za-z0-9_.+-]{1,64}")  # that may stand in a command as it is
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}", re.ASCII)
_WORDS = {
    RECORDS: "run the same version of rlswarm_jax",
    PROMPTS: "set config.model.prompts and thinking, config.game.answer_tokens, critique_tokens and personas as theirs",
    END_TOKENS: "use a checkpoint whose files name the same end tokens",
}


def agreement_of(rules: Terms) -> bytes:
    """32 bytes: half of the SHA-256 over the parts that bind everybody, and of that over those `OF_TOKENS`."""
    halves: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name, value in rules.items():
        halves[name in OF_TOKENS][name] = value
    return b"".join(hashlib.sha256(json.dumps(half, sort_keys=True).encode()).digest()[:16] for half in halves)


def differences(ours: Terms, theirs: Terms) -> list[str]:
    """The parts, by name, in which two nodes differ so that they cannot use what the other one says."""
    of_tokens = set(OF_TOKENS) if ours.get(TOKENIZER) != theirs.get(TOKENIZER) else set()
    names = dict.fromkeys([*ours, *theirs])
    return [name for name in names if name not in of_tokens and ours.get(name) != theirs.get(name)]


def is_newer(theirs: str, ours: str) -> bool:
    """Whether a version of records, such as 4.1, comes after another; what is none comes after nothing."""
    found = [_VERSION.fullmatch(text) for text in (theirs, ours)]
    numbers = [tuple(map(int, one[0].split("."))) if one else () for one in found]
    return numbers[0] > numbers[1] > ()


def clipped(rules: Terms) -> dict[str, str]:
    """The parts as they travel: bounded."""
    parts = [(name[:MAX_NAME], value[:MAX_VALUE]) for name, value in rules.items()]
    return dict(parts[:MAX_PARTS])


def shown(ours: Terms, theirs: Terms, names: list[str]) -> str:
    """How they differ, for one line of a log."""
    implied = {CHAIN_ID, "seed"} if CHAIN in names else set()  # whose absence says nothing more
    names = [name for name in names if name not in implied or (name in ours and name in theirs)]
    parts = [f"{_readable(name)} {_readable(theirs.get(name))} (here {_readable(ours.get(name))})" for name in names]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


def to_set(ours: Terms, theirs: Terms, names: list[str]) -> str:
    """What to set, in the config of who has `ours`, to play by `theirs`."""
    flags, words = [], []
    for name in names:
        value = theirs.get(name, "")
        if name in (CHAIN, CHAIN_ID, "seed") and CHAIN in names:
            continue
        if name.startswith("tasks"):
            words.append("set config.tasks as theirs")
        elif name in _WORDS:
            words.append(_WORDS[name])
        elif name not in ours or name not in theirs:
            words.append("run the same version of rlswarm_jax")
        elif _VALUE.fullmatch(value):
            flags.append(f"--config.{name}={value}")
        else:
            flags.append(f"--config.{name}={shlex.quote(_readable(value))}")
    if CHAIN in names:
        flags = _of_chain(theirs) + flags
    return "; ".join([*([f"set {' '.join(flags)}"] if flags else []), *dict.fromkeys(words)])


def _of_chain(theirs: Terms) -> list[str]:
    contract, number, seed = theirs.get(CHAIN, ""), theirs.get(CHAIN_ID, ""), theirs.get("seed", "")
    if contract == NO_CHAIN:
        seeds = [f"--config.seed={seed}"] if _VALUE.fullmatch(seed) else []
        return ["--config.chain.endpoint=none", *seeds]
    if not (re.fullmatch("0x[0-9a-f]{40}", contract) and re.fullmatch("[0-9]{1,20}", number)):
        return ["--config.chain.endpoint=..."]
    return [
        "--config.chain.endpoint=... (an endpoint of that chain)",
        *(f"--config.chain.contract={contract}", f"--config.chain.id={number}"),
    ]


def _readable(text: str | None) -> str:
    """What a stranger says, cut, and without what a terminal would obey."""
    if text is None:
        return "nothing"
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) or "''"
    return escaped if len(escaped) <= _SHOWN_CHARACTERS else f"{escaped[: _SHOWN_CHARACTERS - 3]}..."
