"""JSON-RPC over HTTP to an endpoint that nobody vouches for: bounded in bytes and seconds, and checked for shape.

Anything with the same `request` will do in its place: the tests use a chain in their own process.
"""

import contextlib
import email.utils
import http.client
import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
import urllib3

from rlswarm_jax.chain.answers import parse_answer, waiting
from rlswarm_jax.chain.errors import (
    AnswerTooLarge,
    Busy,
    ChainError,
    EndpointDown,
    MalformedAnswer,
    Refused,
    WrongStatus,
)

MAX_ANSWER_BYTES = 4 << 20
_BUSY = {408, 425, 429}  # and all from 500 on
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # zlib's `wbits` for what some servers compress unasked
_LOCAL = {"127.0.0.1", "::1", "localhost"}


class Rpc(Protocol):
    """What a chain is asked through."""

    def request(self, method: str, params: list) -> Any:
        """The `result` of a JSON-RPC call. Raises EndpointDown, MalformedAnswer, Refused."""
        ...


class _Session(requests.Session):
    """Looks at no redirection: it would read all of its body, unbounded, and stumble over where it points."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


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
        self._session, self._lock, self._id = _Session(), threading.Lock(), 0
        self._session.trust_env = host not in _LOCAL  # no proxy stands between a machine and itself
        self._session.headers["Accept-Encoding"] = "identity"  # an answer is as large as it is on the wire

    def __repr__(self) -> str:
        return f"Endpoint({self.host})"

    def request(self, method: str, params: list) -> Any:
        """The `result` of a JSON-RPC call.

        Raises EndpointDown (Busy), MalformedAnswer (AnswerTooLarge, WrongStatus), Refused.
        """
        with self._lock:
            self._id += 1
            question = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
            status, headers, body = self._post(json.dumps(question).encode())
            if not 200 <= status < 300:
                self._complain(status, headers, body, method)
            return parse_answer(body, method, self._id)

    def close(self) -> None:
        self._session.close()

    def _post(self, question: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and body of the answer."""
        until, wait = self._clock() + self._seconds, min(self._seconds, 5.0)
        headers = {"Content-Type": "application/json"}
        try:
            with self._session.post(
                self._url, data=question, headers=headers, timeout=(wait, wait), stream=True, allow_redirects=False
            ) as response:
                status, coding, body = response.status_code, response.headers.get("Content-Encoding", ""), b""
                # of a status that says enough by itself, the body need not be readable
                broken = () if 200 <= status < 300 else (ChainError, urllib3.exceptions.HTTPError, OSError)
                with contextlib.suppress(*broken):
                    body = self._read(response.raw, coding, until)
                return status, response.headers, body
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            kind = type(error).__name__  # its text may hold the whole address
            raise EndpointDown(f"the chain endpoint {self.host} does not answer ({kind}).") from None
        except ValueError as error:  # of an address or a header that urllib3 cannot make sense of
            raise MalformedAnswer(f"the chain endpoint {self.host} breaks HTTP ({type(error).__name__}).") from None

    def _read(self, raw: urllib3.HTTPResponse, coding: str, until: float) -> bytes:
        chunks, size = [], 0
        for chunk in self._decoded(self._chunks(raw, until), coding.strip().lower()):
            chunks.append(chunk)
            size = self._bounded(size + len(chunk))
        return b"".join(chunks)

    def _bounded(self, size: int) -> int:
        if size > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(f"the chain endpoint {self.host} sent more than {MAX_ANSWER_BYTES} bytes.")
        return size

    def _chunks(self, raw: urllib3.HTTPResponse, until: float) -> Iterator[bytes]:
        size = 0  # on the wire: what follows after a compressed answer's end counts, too
        while chunk := raw.read1(1 << 16, decode_content=False):  # what is there: a trickle meets the clock, too
            size = self._bounded(size + len(chunk))
            yield chunk
            if self._clock() > until:
                raise EndpointDown(f"the chain endpoint {self.host} took more than {self._seconds:g} s to answer.")

    def _decoded(self, chunks: Iterator[bytes], coding: str) -> Iterator[bytes]:
        """A body of a content coding, in pieces that are small whatever they were compressed to."""
        if coding in ("", "identity"):
            yield from chunks
            return
        if coding not in _WINDOWS:
            named = "".join(c for c in coding[:20] if c.isalnum() or c in ",- ")
            raise MalformedAnswer(f"the chain endpoint {self.host} sent the coding {named!r}, which nobody asked for.")
        inflate, first = zlib.decompressobj(_WINDOWS[coding]), True
        try:
            for chunk in chunks:
                if first and coding == "deflate" and not _is_zlib(chunk):
                    inflate = zlib.decompressobj(-15)  # some servers leave zlib's frame away
                first = False
                while chunk:
                    yield inflate.decompress(chunk, 1 << 16)
                    chunk = inflate.unconsumed_tail
            if not first and not inflate.eof:
                raise MalformedAnswer(f"the chain endpoint {self.host} sent a {coding} answer that is cut.")
        except zlib.error:
            raise MalformedAnswer(f"the chain endpoint {self.host} sent an answer that is no {coding}.") from None

    def _complain(self, status: int, headers: Any, body: bytes, method: str) -> None:
        """Raises what a status says; an error within the body says more, where it is one of JSON-RPC's."""
        named = ", ".join(filter(None, [f"HTTP {status}", http.client.responses.get(status)]))
        if status in _BUSY or status > 500:
            seconds = _seconds(headers.get("Retry-After", ""))
            raise Busy(f"the chain endpoint {self.host} is busy ({named}).", seconds)
        if status == 413:
            raise AnswerTooLarge(f"the chain endpoint {self.host} refuses so large a question or answer ({named}).")
        try:
            parse_answer(body, method, self._id)
        except Refused as error:
            raise Refused(method, error.code, f"{error.words} ({named})", error.data) from None
        except Busy as error:
            raise Busy(f"{str(error)[:-2]}, {named}).", error.seconds) from None
        except MalformedAnswer:
            pass
        if status == 500:
            raise Busy(f"the chain endpoint {self.host} is busy ({named}).")
        if 300 <= status < 400:
            raise WrongStatus(f"the chain endpoint {self.host} {self._target(headers)} ({named}): use that address.")
        raise WrongStatus(
            f"the chain endpoint {self.host} does not serve this node ({named}): check its address and its key."
        )

    def _target(self, headers: Any) -> str:
        """Where a redirection points to, with no more of the address than may be shown."""
        try:
            parts = urlsplit(headers.get("Location", ""))
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or not all(c.isalnum() or c in ".-:" for c in host):
            return "points to another of its paths"
        return f"points to {parts.scheme[:8] or 'another address'}://{host[:100]}{f':{port}' if port else ''}"


def _is_zlib(start: bytes) -> bool:
    """Whether this begins as zlib's frame does (RFC 1950, 2.2)."""
    return len(start) >= 2 and start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0


def _seconds(retry_after: str) -> float:
    """That a Retry-After header asks to wait for: a number, or a date."""
    try:
        return waiting(float(retry_after))
    except ValueError:
        pass
    try:
        return waiting(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


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


class Patient:
    """An endpoint that is asked again while it says that it is busy, for so many seconds, ever less often.

    sleep: takes seconds; it may be cut short by whoever ends the program.
    """

    def __init__(
        self,
        rpc: Rpc,
        seconds: float,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self._rpc, self._seconds, self._rng = rpc, seconds, rng or random.Random()
        self._clock, self._sleep = clock, sleep

    def __repr__(self) -> str:
        return repr(self._rpc)

    def request(self, method: str, params: list) -> Any:
        """As the endpoint's; Busy is raised only when it lasted."""
        until, backoff = self._clock() + self._seconds, Backoff(self._rng)
        while True:
            try:
                return self._rpc.request(method, params)
            except Busy as error:
                delay = max(backoff.failed(), error.seconds)
                if self._clock() + delay > until:
                    raise
                self._sleep(delay)
