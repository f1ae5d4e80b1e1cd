"""What a person sees of a sweep: one table on a terminal, a line now and then elsewhere."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rlswarm_jax.files import METRICS_FILE
from rlswarm_jax.reporting.blocks import Table, fitted
from rlswarm_jax.reporting.results import duration, load_summary
from rlswarm_jax.running.sweep import BEGUN, BROKEN, ELSEWHERE, FINISHED, HAD, RUNNING, Planned

EVERY = 1.0  # seconds
States = Mapping[str, str]  # of runs by name


def overview(runs: Sequence[Planned], states: States) -> Table:
    """A row for each point: what it changes, and how many of its runs are how far."""
    shown = [state for state in (FINISHED, HAD, RUNNING, BEGUN, ELSEWHERE, BROKEN) if state in states.values()]
    rows = [["point", "changes", "runs", *shown]]
    for point in dict.fromkeys(run.point for run in runs):
        own = [run for run in runs if run.point == point]
        counts = [sum(states[run.name] == state for run in own) for state in shown]
        changes = " ".join(f"{field}={value}" for field, value in own[0].changes.items())
        rows.append([point, changes, str(len(own)), *(str(count or "") for count in counts)])
    return rows


def rounds_done(run: Planned) -> int:
    """As the end of its metrics says."""
    try:
        with (run.workdir / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            return json.loads(file.read().splitlines()[-1])["round"] + 1
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or a line that is being written
        return 0


def seconds_left(runs: Sequence[Planned], states: States, took: Mapping[str, float], jobs: int) -> float | None:
    """Until all are finished, so many at once, from what finished ones took: those of their point, else all.

    None while none is finished.
    """
    if not took:
        return None
    left = 0.0
    for run in runs:
        if states[run.name] not in (FINISHED, HAD, BROKEN):
            own = [took[other.name] for other in runs if other.point == run.point and other.name in took]
            done = rounds_done(run) / max(run.config.rounds, 1) if states[run.name] in (RUNNING, BEGUN) else 0.0
            left += fmean(own or took.values()) * max(1 - done, 0.0)
    return left / jobs


class SweepView:
    """`with` it, `update` it now and then. states: of all runs, which it follows."""

    def __init__(self, runs: Sequence[Planned], states: States, jobs: int, console: Console):
        self._runs, self._states, self._jobs, self._console = runs, states, jobs, console
        self._took = {run.name: self._seconds(run) for run in runs if states[run.name] == FINISHED}
        self._live, self._shown = Live(console=console, auto_refresh=False), 0.0

    def __enter__(self) -> "SweepView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown = 0.0
        self.update()
        if self._console.is_terminal:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Prints above what is shown."""
        self._console.print(sentence, highlight=False, soft_wrap=True, markup=False)

    def finished(self, run: Planned) -> None:
        self._took[run.name] = self._seconds(run)
        if not self._console.is_terminal:
            self.say(f"{run.name} finished in {duration(self._took[run.name])}; {self._so_far()}")

    def update(self) -> None:
        if self._console.is_terminal and time.monotonic() > self._shown + EVERY:
            self._shown = time.monotonic()
            table = overview(self._runs, self._states)
            running = [run for run in self._runs if self._states[run.name] == RUNNING]
            at_work = "  ".join(f"{run.name} {rounds_done(run)}/{run.config.rounds}" for run in running)
            parts = fitted(table, table[0]), Text(self._so_far()), Text(at_work, style="dim")
            self._live.update(Group(*parts), refresh=True)

    def _seconds(self, run: Planned) -> float:
        return load_summary(run.workdir).wall_seconds

    def _so_far(self) -> str:
        done = sum(state in (FINISHED, HAD) for state in self._states.values())
        left = seconds_left(self._runs, self._states, self._took, self._jobs)
        return f"{done} of {len(self._runs)}" + (f", {duration(left)} left" if left else "")
