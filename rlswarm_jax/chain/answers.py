"""What an endpoint's JSON says: a result, an error of the call's, or that it is asked too much."""

import json
import math
import re
from typing import Any

from rlswarm_jax.chain.errors import Busy, ChainError, MalformedAnswer, Refused
from rlswarm_jax.chain.nesting import is_deep

MAX_WAITING = 300.0  # seconds that an endpoint may ask to wait for
_MAX_WORDS = 300
# of EIP-1474 and of providers, for a limit on requests
_BUSY_CODES = {429, -32005, -32007, -32016, -32029, -32090, -32097}
_BUSY_WORDS = re.compile(
    r"rate.{0,12}(limit|exceed|exhaust)|too many (concurrent )?(requests|connections)|requests? (limit|count|quota)"
    r"|requests? per (second|min|day)|compute units|throughput|throttl|quota|over ?capacity|exceeded .*capacity"
    r"|overload|slow down|\bbusy\b|(temporarily|service) unavailable|(try|retry)( again)? (later|in \d)"
)
# what an endpoint refuses to give at once, whatever its code: less must be asked for
_TOO_MUCH = re.compile(
    r"range|results|more than|too (large|big|wide|many (logs|blocks|events))|response size|query|timed? ?out"
)


def parse_answer(body: bytes, method: str, id_: int) -> Any:
    """The result within the bytes of an answer.

    Raises MalformedAnswer; if the answer is an error, Refused, or Busy where that says to come back later.
    """
    try:
        answer = json.loads(body) if not is_deep(body) else None
    except (ValueError, RecursionError):
        raise MalformedAnswer(f"the chain endpoint's answer to {method} is not JSON.") from None
    if isinstance(answer, list) and len(answer) == 1:  # some servers answer an error as if to a batch
        (answer,) = answer
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"the chain endpoint's answer to {method} is not a JSON-RPC object.")
    if answer.get("error") is not None:
        raise _failure(method, answer["error"])
    if answer.get("id") != id_ or "result" not in answer:
        if "result" not in answer and is_busy(
            method, _code(answer), _words(answer)
        ):  # of what stands before the server
            raise _busy(method, answer)
        raise MalformedAnswer(f"the chain endpoint's answer to {method} belongs to no question of ours.")
    return answer["result"]


def is_busy(method: str, code: int, words: str) -> bool:
    """Whether an error means that too much was asked in too short a time, rather than that the call is wrong."""
    words = words.lower()
    if "revert" in words or code == 3:  # a contract may say anything
        return False
    if _BUSY_WORDS.search(words):
        return True
    return code in _BUSY_CODES and not (method == "eth_getLogs" and _TOO_MUCH.search(words))


def waiting(seconds: float) -> float:
    """What an endpoint asks for, in bounds."""
    return min(max(seconds, 0.0), MAX_WAITING) if math.isfinite(seconds) else 0.0


def _failure(method: str, error: Any) -> ChainError:
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        raise MalformedAnswer(f"the chain endpoint's error for {method} is not a JSON-RPC error.")
    data = error.get("data")
    if isinstance(data, dict):  # some servers wrap the revert's data once more
        data = data.get("data", data.get("result"))
    found = Refused(method, _code(error), _words(error) or "no reason given", _revert_data(data))
    return _busy(method, error) if not found.data and is_busy(method, found.code, found.words) else found


def _busy(method: str, error: dict) -> Busy:
    data = error.get("data")
    rate = data.get("rate") if isinstance(data, dict) else None
    asked = rate.get("backoff_seconds") if isinstance(rate, dict) else None
    seconds = waiting(float(asked)) if isinstance(asked, (int, float)) and abs(asked) < 1e9 else 0.0
    words, code = _words(error) or "too many requests", _code(error)
    return Busy(f"the chain endpoint is asked too much: {words} (code {code}, for {method}).", seconds)


def _code(error: dict) -> int:
    code = error.get("code")
    return code if isinstance(code, int) and abs(code) < 1 << 31 else 0


def _words(error: dict) -> str:
    words = error.get("message")
    return "".join(c if c.isprintable() else " " for c in words[:_MAX_WORDS]) if isinstance(words, str) else ""


def _revert_data(data: Any) -> bytes | None:
    if not isinstance(data, str) or len(data) > 1 << 14:
        return None
    try:
        return bytes.fromhex(data[data.find("0x") + 2 :]) if "0x" in data else None  # "Reverted 0x...", says Nethermind
    except ValueError:
        return None
