"""JSON-RPC over HTTP to an endpoint that nobody vouches for: bounded in bytes and seconds, and checked for shape.

Anything with the same `request` will do in its place: the tests use a chain in their own process.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
import urllib3

from rlswarm_jax.chain.errors import AnswerTooLarge, EndpointDown, MalformedAnswer, Refused
from rlswarm_jax.chain.nesting import is_deep

MAX_ANSWER_BYTES = 4 << 20
_MAX_WORDS = 300
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_LOCAL = {"127.0.0.1", "::1", "localhost"}


class Rpc(Protocol):
    """What a chain is asked through."""

    def request(self, method: str, params: list) -> Any:
        """The `result` of a JSON-RPC call. Raises EndpointDown, MalformedAnswer, Refused."""
        ...


class Endpoint:
    """One HTTP endpoint; calls from several threads wait for each other.

    seconds: for a whole answer, and to connect.
    """

    def __init__(self, url: str, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname if parts.scheme in ("http", "https") else None, parts.port
        except ValueError:  # its text has a part of the address
            host, port = None, None
        if not host:
            raise ValueError("the address of a chain endpoint begins with http:// or https:// and names a host.")
        self.host = f"{host}:{port}" if port else host
        self._url, self._seconds, self._clock = url, seconds, clock
        self._session, self._lock, self._id = requests.Session(), threading.Lock(), 0
        self._session.trust_env = host not in _LOCAL  # no proxy stands between a machine and itself
        self._session.headers["Accept-Encoding"] = "identity"  # an answer is as large as it is on the wire

    def __repr__(self) -> str:
        return f"Endpoint({self.host})"

    def request(self, method: str, params: list) -> Any:
        """The `result` of a JSON-RPC call. Raises EndpointDown, MalformedAnswer (AnswerTooLarge), Refused."""
        with self._lock:
            self._id += 1
            question = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
            return parse_answer(self._post(json.dumps(question).encode()), method, self._id)

    def close(self) -> None:
        self._session.close()

    def _post(self, body: bytes) -> bytes:
        until, wait = self._clock() + self._seconds, min(self._seconds, 5.0)
        headers = {"Content-Type": "application/json"}
        try:
            with self._session.post(
                self._url, data=body, headers=headers, timeout=(wait, wait), stream=True, allow_redirects=False
            ) as response:
                if response.status_code in _BUSY:
                    raise EndpointDown(f"the chain endpoint {self.host} is busy (HTTP {response.status_code}).")
                return self._read(response.raw, until)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            kind = type(error).__name__  # its text may hold the whole address
            raise EndpointDown(f"the chain endpoint {self.host} does not answer ({kind}).") from None
        except ValueError as error:  # of an address or a header that urllib3 cannot make sense of
            raise MalformedAnswer(f"the chain endpoint {self.host} breaks HTTP ({type(error).__name__}).") from None

    def _read(self, raw: urllib3.HTTPResponse, until: float) -> bytes:
        chunks, size = [], 0
        while chunk := raw.read1(1 << 16, decode_content=False):  # what is there: a trickle meets the clock, too
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise AnswerTooLarge(f"the chain endpoint {self.host} sent more than {MAX_ANSWER_BYTES} bytes.")
            if self._clock() > until:
                raise EndpointDown(f"the chain endpoint {self.host} took more than {self._seconds:g} s to answer.")
        return b"".join(chunks)


def parse_answer(body: bytes, method: str, id_: int) -> Any:
    """The result within the bytes of an answer. Raises MalformedAnswer, or Refused if the answer is an error."""
    try:
        answer = json.loads(body) if not is_deep(body) else None
    except (ValueError, RecursionError):
        raise MalformedAnswer(f"the chain endpoint's answer to {method} is not JSON.") from None
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"the chain endpoint's answer to {method} is not a JSON-RPC object.")
    if answer.get("error") is not None:
        raise _refusal(method, answer["error"])
    if answer.get("id") != id_ or "result" not in answer:
        raise MalformedAnswer(f"the chain endpoint's answer to {method} belongs to no question of ours.")
    return answer["result"]


def _refusal(method: str, error: Any) -> Refused:
    if not isinstance(error, dict):
        raise MalformedAnswer(f"the chain endpoint's error for {method} is not a JSON-RPC error.")
    code, words, data = error.get("code"), error.get("message"), error.get("data")
    if isinstance(data, dict):  # some servers wrap the revert's data once more
        data = data.get("data", data.get("result"))
    code = code if isinstance(code, int) and abs(code) < 1 << 31 else 0
    printable = "".join(c if c.isprintable() else " " for c in words[:_MAX_WORDS]) if isinstance(words, str) else ""
    return Refused(method, code, printable or "no reason given", _revert_data(data))


def _revert_data(data: Any) -> bytes | None:
    if not isinstance(data, str) or len(data) > 1 << 14:
        return None
    try:
        return bytes.fromhex(data[data.find("0x") + 2 :]) if "0x" in data else None  # "Reverted 0x...", says Nethermind
    except ValueError:
        return None


class Backoff:
    """Seconds to wait after each failure in a row: doubling from `first` up to `most`, less up to half by `rng`.

    The jitter keeps a swarm's nodes from coming back to an endpoint all at once.
    """

    def __init__(self, rng: random.Random, first: float = 1.0, most: float = 60.0):
        self._rng, self._first, self._most, self.failures = rng, first, most, 0

    def failed(self) -> float:
        """How long to wait now."""
        delay = min(self._most, self._first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return delay * self._rng.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        self.failures = 0
