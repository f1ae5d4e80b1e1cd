"""Runs of a sweep as local processes, each with its share of the machine."""

import collections
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from rlswarm_jax import errors, launch
from rlswarm_jax.errors import DONE, INTERRUPTED, MAY_PASS, MEND, TransientError
from rlswarm_jax.running import folder
from rlswarm_jax.running.sweep import BEGUN, BROKEN, ELSEWHERE, FINISHED, NEW, RUNNING, Planned
from rlswarm_jax.running.sweep_view import SweepView

POLL = 0.2  # seconds
AGAIN = 5.0  # ... until a folder is looked at again that another process uses
TRIES = 2  # of a run that ends for another reason than that something is to be mended

Command = Callable[[Planned], list[str]]


@dataclass
class _Child:
    run: Planned
    slot: int
    process: subprocess.Popen[bytes]
    log_offset: int


def command(run: Planned) -> list[str]:
    """Of its process, which ends with this one."""
    return [sys.executable, "-m", "rlswarm_jax.running.start", *run.words, f"--workdir={run.workdir}", "--resume"]


def cores() -> list[int]:
    """That this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cards(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that runs can have."""
    if environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [card for card in environment["CUDA_VISIBLE_DEVICES"].split(",") if card not in ("", "-1")]
    return launch.visible_gpus()


def jobs() -> int:
    """Runs at once, unless one says otherwise: one for each card, or else for each core."""
    return len(cards(os.environ)) or len(cores())


def last_error(run: Planned) -> str:
    """With which the last try of a run that is not finished ended; nothing if it was stopped, or never tried."""
    said = launch.last_line(run.log)
    return said if re.match(r"error: |[\w.]+(Error|Exception): ", said) else ""


def share(slot: int, jobs: int, of: Sequence[int]) -> list[int]:
    """The cores of one of so many that run at once: neighbours, and none without any."""
    first, end = slot * len(of) // jobs, (slot + 1) * len(of) // jobs
    return list(of[first:end]) or [of[slot % len(of)]]


class Local:
    """`play` runs them, `jobs` at once; the fates of all are in `states`, and `errors` has why some are broken."""

    def __init__(self, runs: Sequence[Planned], jobs: int, console: Console, command: Command = command):
        self._command, self._jobs = command, jobs
        self.states = {run.name: run.state() for run in runs}
        self.errors: dict[str, tuple[int, str]] = {}
        self._waiting = collections.deque(run for run in runs if self.states[run.name] in (NEW, BEGUN))
        self._children: list[_Child] = []
        self._tried = collections.Counter[str]()
        self._not_before: dict[str, float] = {}
        self._view = SweepView(runs, self.states, jobs, console)

    def play(self) -> int:
        """Until all are finished or Ctrl-C, which they answer by saving; returns an exit code."""
        told = False
        with folder.stop_on_signal("stopping: every run saves what it has ...") as stopping, self._view:
            try:
                while self._waiting or self._children:
                    if stopping and not told:
                        told = True
                        self._waiting.clear()
                        for child in self._children:  # once: a second signal would end it without saving
                            launch.send(os.kill, child.process.pid, signal.SIGTERM)
                    self._reap()
                    self._fill()
                    self._view.update()
                    time.sleep(POLL)
            finally:  # also where a second Ctrl-C ends the waiting
                for child in self._children:
                    launch.send(os.killpg, child.process.pid, signal.SIGKILL)
                    child.process.wait()
        if stopping or not {NEW, BEGUN}.isdisjoint(self.states.values()):  # one alone may be stopped, too
            return INTERRUPTED
        codes = {code for code, _ in self.errors.values()}
        return DONE if not codes else MEND if codes == {MEND} else errors.BROKEN

    def _fill(self) -> None:
        """Starts what is waiting where there is room."""
        free = [slot for slot in range(self._jobs) if all(child.slot != slot for child in self._children)]
        for _ in range(len(self._waiting)):
            if not free:
                return
            run = self._waiting.popleft()
            if time.monotonic() < self._not_before.get(run.name, 0.0):
                self._waiting.append(run)
            elif folder.in_use(run.workdir):  # by another sweep, or what an earlier one left behind
                self.states[run.name] = ELSEWHERE
                self._not_before[run.name] = time.monotonic() + AGAIN
                self._waiting.append(run)
            elif run.state() == FINISHED:  # by another
                self.states[run.name] = FINISHED
                self.errors.pop(run.name, None)
                self._view.finished(run)
            else:
                self._start(run, free.pop(0))

    def _start(self, run: Planned, slot: int) -> None:
        own, environment = share(slot, self._jobs, cores()), dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", str(len(own)))
        if found := cards(environment):
            environment["CUDA_VISIBLE_DEVICES"] = found[slot % len(found)]
            if self._jobs > len(found):
                environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if not hasattr(os, "sched_setaffinity"):
            environment.setdefault("PJRT_NPROC", str(len(own)))
        try:
            run.log.parent.mkdir(parents=True, exist_ok=True)
            with run.log.open("ab") as log:
                offset = log.tell()
                # its stdin is its life line: it ends with this process, however that dies. It leads a session of its
                # own, so that Ctrl-C reaches this process alone
                process = subprocess.Popen(
                    self._command(run),
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise TransientError(f"cannot start {run.name}, which logs to {run.log}: {error.strerror}.") from None
        if hasattr(os, "sched_setaffinity"):
            launch.send(lambda pid, _: os.sched_setaffinity(pid, own), process.pid, 0)  # its threads will inherit it
        self._children.append(_Child(run, slot, process, offset))
        self._tried[run.name] += 1
        self.states[run.name] = RUNNING

    def _reap(self) -> None:
        for child in list(self._children):
            if (code := launch.reap(child.process)) is None:
                continue
            self._children.remove(child)
            assert child.process.stdin
            child.process.stdin.close()
            run = child.run
            self.states[run.name] = run.state()
            if self.states[run.name] == FINISHED:
                self.errors.pop(run.name, None)
                self._view.finished(run)
            elif code != INTERRUPTED:
                self._broken(run, code, launch.reason(run.log, child.log_offset, code))

    def _broken(self, run: Planned, code: int, why: str) -> None:
        if code == MAY_PASS and folder.in_use(run.workdir):  # another was quicker
            self._waiting.append(run)
            return
        again = code != MEND and self._tried[run.name] < TRIES
        self._view.say(f"{run.name}: {why}{'; once more at the end' if again else f' (log: {run.log})'}")
        self.errors[run.name] = code, why
        if again:
            self._waiting.append(run)
        else:
            self.states[run.name] = BROKEN
