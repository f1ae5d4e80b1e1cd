"""What can be asked of a run, by name: small pieces of JSON, the same in the server and in an export."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlswarm_jax.chain.ledger import Ledger
from rlswarm_jax.page.accounts import accounts, kept
from rlswarm_jax.page.folder import Folder, Member
from rlswarm_jax.page.learning import learning
from rlswarm_jax.page.lineage import lessons, lineage
from rlswarm_jax.page.now import now
from rlswarm_jax.page.rounds import kept_rounds, round_view
from rlswarm_jax.page.trust import network, trust

STATIC = Path(__file__).parent / "static"
MAX_ANSWER = 1 << 20  # bytes of JSON
AUTHOR = re.compile("([0-9a-f]{66})?")
Given = Mapping[str, str]


class AskedWrongError(ValueError):
    """What was asked for is not there; the message says what is."""


def answer(folder: Folder, name: str, given: Given, ledger: Ledger | None = None) -> bytes:
    """A view as JSON. ledger: as the chain has it, of a run that goes on. Raises AskedWrongError."""
    if name not in VIEWS and name != "ledger":
        raise AskedWrongError(f"there is no view {name[:40]!r}.")
    if name == "ledger":
        found = accounts(folder, ledger or kept(folder), _number(given, "before", None))
    else:
        found = VIEWS[name](folder, given)
    return bounded(found)


def bounded(found: Any) -> bytes:
    """Raises AskedWrongError for what is too long to be sent."""
    raw = json.dumps(found, separators=(",", ":"), allow_nan=False, default=str).encode()
    if len(raw) > MAX_ANSWER:
        raise AskedWrongError(f"the answer has {len(raw):,} bytes, at most {MAX_ANSWER:,} are sent.")
    return raw


def member(folder: Folder, given: Given) -> Member:
    found = folder.member(_number(given, "node", 0) or 0)
    if found is None:
        raise AskedWrongError("there is no such node here, or it has not finished a round yet.")
    return found


def _rounds(folder: Folder, given: Given) -> Any:
    found = member(folder, given)
    kept_here, played = kept_rounds(folder, found), found.course.rounds
    last = max([*kept_here[-1:], *played[-1:]], default=0)
    return round_view(folder, found, _number(given, "round", last) or 0)


def _lessons(folder: Folder, given: Given) -> Any:
    author = given.get("author", "")
    if not AUTHOR.fullmatch(author):
        raise AskedWrongError("an author is a public key, 66 hexadecimal digits.")
    return lessons(folder, member(folder, given), author, _number(given, "before", None))


def _number(given: Given, name: str, otherwise: int | None) -> int | None:
    text = given.get(name, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise AskedWrongError(f"{name} is a whole number.")
    return int(text)


VIEWS: Mapping[str, Callable[[Folder, Given], Any]] = {
    "now": lambda folder, given: now(folder),
    "learning": lambda folder, given: learning(folder),
    "lineage": lambda folder, given: lineage(folder),
    "lessons": _lessons,
    "round": _rounds,
    "trust": lambda folder, given: trust(folder),
    "network": lambda folder, given: network(folder),
}
