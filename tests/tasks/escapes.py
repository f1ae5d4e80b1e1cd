"""What the tests of the sandbox share: hostile programs, and ways to see from outside what they did."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlswarm_jax.tasks import sandbox

needs_sandbox = pytest.mark.skipif(not sandbox.probe().active, reason=str(sandbox.probe()))


def said(program: str, *, seconds: float = 5.0, **limits) -> str:
    """What it writes to both streams, in the sandbox."""
    outcome = sandbox.run(program, b"", sandbox.Limits(seconds=seconds, **limits))
    return (outcome.stdout + outcome.stderr).decode(errors="replace")


def said_outside(program: str, folder: Path, **options) -> str:
    """The same without a sandbox, in a folder of the test: only for what is harmless."""
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, **options)
    return done.stdout + done.stderr


@contextlib.contextmanager
def running(program: str, **limits):
    """The tree of processes of a program that goes on for a while: unshare, process 1, the program.

    And a list which will hold the outcome, or the error.
    """
    outcomes: list[sandbox.Outcome | sandbox.SandboxRefused] = []

    def run():
        try:
            outcomes.append(sandbox.run(program, b"", sandbox.Limits(**limits)))
        except sandbox.SandboxRefused as refused:
            outcomes.append(refused)

    sandbox.require()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield wait_for_program(psutil.Process()), outcomes
    finally:
        thread.join()


def wait_for_program(process: psutil.Process) -> list[psutil.Process]:
    """Descendants of a process, once the last of them is a program in a sandbox that sleeps: Python has loaded it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            tree = process.children(recursive=True)
            if tree[-1].cmdline()[-1] == "/program.py" and tree[-1].status() == psutil.STATUS_SLEEPING:
                return tree
        time.sleep(0.02)
    raise AssertionError("the program never began")


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still live after a while."""
    return psutil.wait_procs(processes, timeout=20)[1]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespaces_of(pid: int | str) -> dict[str, str]:
    names = ("user", "mnt", "pid", "net", "ipc", "uts")
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in names}
