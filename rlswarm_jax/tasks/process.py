"""A worker process as its verifier sees it: started, asked, killed with all that it started."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from rlswarm_jax.tasks.base import Problem, printable, reason
from rlswarm_jax.tasks.worker import Ask, Scored, Setup, Started, receive, send

MAX_REPLY = 4_096  # bytes
START_SECONDS = 120.0  # to import and to make the tasks, on a busy machine
END_SECONDS = 5.0  # after which a guard that does not end is killed itself
WORKER = "import sys; sys.path[:0] = sys.argv[2:]; from rlswarm_jax.tasks import worker; worker.main(int(sys.argv[1]))"
# one core and no accelerator for each, and sets in the same order in all
GIVEN = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
GIVEN |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "0"}
Reply = TypeVar("Reply")


class WorkerProcess:
    """All but `end` is for one thread. Raises OSError if there cannot be a process."""

    def __init__(self) -> None:
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
        command = [sys.executable, "-s", "-P", "-c", WORKER]
        with contextlib.ExitStack() as opened:
            self._errors = opened.enter_context(tempfile.TemporaryFile())  # what it writes until it is ready
            self._connection, theirs = map(opened.enter_context, socket.socketpair())
            self._process = subprocess.Popen(
                [*guard, *command, str(theirs.fileno()), *_path()],
                env=os.environ | GIVEN,  # a reward may need any of it: a judge's key, a proxy, where models are kept
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
            self._opened = opened.pop_all()

    def start(self, setup: Setup) -> str:
        """Waits until it is ready; returns why it never will be, or nothing. Raises OSError if it does not say."""
        try:
            started = self._exchange(setup, Started, START_SECONDS)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConnectionError(self._said() or reason(error)) from None
        return printable(started.wrong)

    def score(self, problem: Problem, answer_text: str, seconds: float) -> tuple[float | None, str]:
        """The score or, where there is none, None and why.

        Raises TimeoutError; OSError or MsgspecError where it ended or said nonsense. Then it is of no more use.
        """
        token = secrets.token_bytes(8)  # nothing that was said earlier passes for the reply
        answer = answer_text.encode("utf-8", "surrogatepass")
        scored = self._exchange(Ask(token, problem.task, problem.seed, problem.split, answer), Scored, seconds)
        if scored.token != token or not (scored.score is None or 0 <= scored.score <= 1):
            raise ConnectionError("it said what it was not asked")
        return scored.score, printable(scored.wrong)

    def end(self) -> None:
        """Has it killed, and wakes up the thread that waits for it."""
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)  # a guard that was stopped has work to do
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # its life line
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def reap(self) -> None:
        """Returns when it is dead, after `end`; may be called again."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # the guard is stuck: what left its group is out of reach
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._opened.close()

    def _exchange(self, message: msgspec.Struct, reply: type[Reply], seconds: float) -> Reply:
        deadline = time.monotonic() + seconds
        self._connection.settimeout(seconds)
        send(self._connection, message)
        return msgspec.msgpack.decode(receive(self._connection, MAX_REPLY, deadline), type=reply)

    def _said(self) -> str:
        """The last line that it wrote."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode(errors="replace").splitlines()
        return next(filter(None, map(printable, reversed(lines))), "")


def _path() -> list[str]:
    """Where a worker finds the same modules as this process: a task's may lie in the working directory."""
    return list(dict.fromkeys([*map(os.path.abspath, sys.path), str(Path(__file__).parents[2])]))
