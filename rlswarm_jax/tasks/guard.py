"""Runs a command that no death of its parent outlives, and that takes along whatever it started.

    python -I -S guard.py COMMAND [ARGUMENT ...]        stdin is a pipe from the parent, its life line

Where the life line ends, or the command does, the command, all its descendants and the guard are killed: on Linux
also those in sessions of their own, elsewhere those of the guard's process group, which it must lead. It is a process
of its own because the command may be stuck where it hears nothing. Only the standard library: it starts in no time.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(command: list[str]) -> None:
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command come to the guard, not to init
    ended, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is told
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, guard)
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if 0 in ready and not os.read(0, 4096):
            break
        if ended in ready and os.read(ended, 4096) and child in _reaped():
            break
    while children := _children():
        for pid in children:
            with contextlib.suppress(PermissionError):  # it became somebody else
                os.kill(pid, signal.SIGKILL)  # not yet reaped: the number is nobody else's
        os.waitpid(-1, 0)
    os.killpg(0, signal.SIGKILL)


def _become(command: list[str], guard: int) -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it was killed before it could be followed
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(command[0], command)


def _reaped() -> set[int]:
    found = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            found.add(pid)
    return found


def _children() -> list[int]:
    """Living or not; none where the system does not tell."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
