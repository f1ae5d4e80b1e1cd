"""The process that runs scorers for `rlswarm_jax.tasks.verifier`, one answer after the other.

A verifier starts it and calls `main` with the number of a socket to itself.

A message is its length in bytes (uint32, little-endian) and msgpack. The first is a `Setup`, answered by `Started`;
then each `Ask` by a `Scored`. Nothing but the socket connects the two: what scorers print goes nowhere.
"""

import ast
import contextlib
import functools
import logging
import math
import numbers
import os
import resource
import socket
import struct
import time
from pathlib import Path
from typing import Any

import msgspec

from rlswarm_jax.tasks import Mixture, Split, make_mixture
from rlswarm_jax.tasks.base import TaskError, printable, reason

MEMORY = 4 << 30  # bytes of address space that scorers may take beyond what their tasks need
MAX_MESSAGE = 64 << 20  # bytes
PROBLEMS = 4_096  # kept
_HEAD = struct.Struct("<I")


class Setup(msgspec.Struct, array_like=True, frozen=True):
    """tasks: a config's, as a Python literal, which keeps tuples apart from lists. fingerprint: of their mixture."""

    tasks: str
    fingerprint: str


class Started(msgspec.Struct, array_like=True, frozen=True):
    """wrong: why nothing can be scored; empty if all is well."""

    wrong: str


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """token: to be said again. answer: UTF-8 with surrogates, any text there is."""

    token: bytes
    task: str
    seed: int
    split: Split
    answer: bytes


class Scored(msgspec.Struct, array_like=True, frozen=True):
    """score: None where there is none, and then `wrong` says why."""

    token: bytes
    score: float | None
    wrong: str


def send(connection: socket.socket, message: msgspec.Struct) -> None:
    """Raises OSError."""
    body = msgspec.msgpack.encode(message)
    connection.sendall(_HEAD.pack(len(body)) + body)


def receive(connection: socket.socket, limit: int, deadline: float | None = None) -> bytes:
    """The body of the next message, of at most `limit` bytes. deadline: on the monotonic clock.

    Raises TimeoutError, and ConnectionError (or another OSError) if no such message will ever come.
    """
    (size,) = _HEAD.unpack(_exactly(connection, _HEAD.size, deadline))
    if size > limit:
        raise ConnectionError(f"a message of {size} bytes was announced, at most {limit} are taken.")
    return _exactly(connection, size, deadline)


def _exactly(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    got = bytearray()
    while len(got) < size:
        if deadline is not None:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError("no whole message came in time.")
            connection.settimeout(left)
        piece = connection.recv(size - len(got))
        if not piece:
            raise ConnectionError("the other side is gone.")
        got += piece
    return bytes(got)


def as_score(value: Any) -> float:
    """What a scorer returned, as a float. Raises ValueError if it is no number in [0, 1]."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"a score must be a number from 0 to 1, got {value!r:.80}")
    return number


def main(fd: int) -> None:
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)  # what scorers start has no say here
    logging.getLogger("rlswarm_jax").setLevel(logging.ERROR)  # the verifier's process has said what tasks warn of
    setup = msgspec.msgpack.decode(receive(connection, MAX_MESSAGE), type=Setup)
    try:
        mixture = make_mixture(ast.literal_eval(setup.tasks))
        wrong = "" if mixture.fingerprint == setup.fingerprint else "its tasks have another fingerprint there than here"
    except TaskError as error:
        wrong = printable(str(error))
    send(connection, Started(wrong))
    if not wrong:
        _confine()
        with contextlib.suppress(ConnectionError):  # the verifier is gone: so is this
            _serve(connection, mixture)


def _confine() -> None:
    """No more output, no core files, and bounded memory from here on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # not on macOS
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))


def _serve(connection: socket.socket, mixture: Mixture) -> None:
    @functools.lru_cache(PROBLEMS)
    def problem(task: str, seed: int, split: Split):
        return mixture.tasks[task].problem(seed, split)

    while True:
        ask = msgspec.msgpack.decode(receive(connection, MAX_MESSAGE), type=Ask)
        answer = ask.answer.decode("utf-8", "surrogatepass")
        try:
            score = as_score(mixture.score(problem(ask.task, ask.seed, ask.split), answer))
            scored = Scored(ask.token, score, "")
        except MemoryError:
            os._exit(1)  # whoever took it, in this process or by this answer: another try in a new one will tell
        except BaseException as error:  # here scorers that are not ours run, on answers from anywhere
            scored = Scored(ask.token, None, reason(error))
        send(connection, scored)
