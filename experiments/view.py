"""What a person sees while a swarm runs: one table on a terminal, a line now and then elsewhere."""

import dataclasses
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

SMOOTHING = 0.9


@dataclasses.dataclass
class _Shown:
    name: str
    round: int
    reward: float | None = None
    held_out: float | None = None
    received: int = 0
    published: int = 0
    rejected: int = 0


class SwarmView:
    """`with SwarmView(...) as view: view.update(row)` for each finished round of a node."""

    def __init__(self, console: Console, names: list[str], rounds: int, done: list[int]):
        self._console, self._rounds = console, rounds
        self._nodes = [_Shown(name, start) for name, start in zip(names, done, strict=True)]
        self._start_done, self._started = sum(done), time.monotonic()
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._task = self._progress.add_task("rounds", total=rounds * len(names), completed=sum(done), rate="")
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=False)
        self._said = -1

    def __enter__(self) -> "SwarmView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.update(self._render())
            self._live.stop()

    def update(self, row: dict[str, Any]) -> None:
        """row: as in metrics.jsonl."""
        node = self._nodes[row["node"]]
        reward = row["reward/mean"]
        node.round = row["round"] + 1
        node.reward = reward if node.reward is None else SMOOTHING * node.reward + (1 - SMOOTHING) * reward
        node.held_out = row.get("final/accuracy", row.get("held_out/accuracy", node.held_out))
        node.received += int(row["records/received"])
        node.published += int(row["records/published"])
        node.rejected += int(sum(v for k, v in row.items() if k.startswith("records/rejected/")))
        done = sum(n.round for n in self._nodes)
        self._progress.update(self._task, completed=done, rate=self._rate(done))
        if self._console.is_terminal:
            self._live.update(self._render())
        else:
            self._say_tenths(done)

    def _rate(self, done: int) -> str:
        seconds = time.monotonic() - self._started
        per_second = (done - self._start_done) / max(seconds, 1e-9) / len(self._nodes)
        left = (self._rounds - done / len(self._nodes)) / max(per_second, 1e-9)
        return f"{per_second:.1f} rounds/s, {int(left) // 60}:{int(left) % 60:02d} left"

    def _say_tenths(self, done: int) -> None:
        tenth = 10 * done // (self._rounds * len(self._nodes))
        if tenth > self._said:
            self._said = tenth
            rewards = [n.reward for n in self._nodes if n.reward is not None]
            held_out = [n.held_out for n in self._nodes if n.held_out is not None]
            self._console.print(
                f"{10 * tenth:3d} %  round {done // len(self._nodes)} of {self._rounds}"
                f"  reward {sum(rewards) / max(len(rewards), 1):.2f}"
                f"  held-out accuracy {sum(held_out) / max(len(held_out), 1):.2f}  {self._rate(done)}"
            )

    def _render(self) -> RenderableType:
        table = Table(title=None, expand=False)
        for column in ("node", "round", "reward", "held-out accuracy", "records in", "out", "rejected"):
            table.add_column(column, justify="left" if column == "node" else "right")
        for n in self._nodes:
            table.add_row(
                n.name,
                str(n.round),
                "" if n.reward is None else f"{n.reward:.2f}",
                "" if n.held_out is None else f"{100 * n.held_out:.1f} %",
                str(n.received),
                str(n.published),
                str(n.rejected),
            )
        return Group(table, self._progress)
