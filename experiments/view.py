"""What a person sees while a swarm runs: one table on a terminal, a line now and then elsewhere."""

import dataclasses
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.hearing import Hearing

SMOOTHING = 0.9


@dataclasses.dataclass
class _Shown:
    name: str
    round: int
    state: str = ""
    peers: int | None = None
    reward: float | None = None
    held_out: float | None = None
    received: int = 0
    published: int = 0
    learned: int = 0  # groups of peers
    usable: int = 0
    heard: int = 0
    rejected: int = 0
    hearing: Hearing = dataclasses.field(default_factory=Hearing)
    chain: str = ""  # the round of the chain; and what waits to be told, if anything does


class SwarmView:
    """`with SwarmView(...) as view: view.update(row)` for each finished round of a node. rounds: 0 for no end."""

    def __init__(self, console: Console, names: list[str], rounds: int, done: list[int]):
        self._console, self._rounds = console, rounds
        self._nodes = [_Shown(name, start) for name, start in zip(names, done, strict=True)]
        self._start_done, self._started = sum(done), 0.0  # the rate is counted from the first round's end
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._task = self._progress.add_task("rounds", total=rounds * len(names) or None, completed=sum(done), rate="")
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

    def say(self, sentence: str) -> None:
        """Prints above what is shown."""
        self._console.print(sentence, highlight=False, soft_wrap=True)

    def state(self, node: int, state: str) -> None:
        """What a node's process is doing, in a word."""
        if self._nodes[node].state != state:
            self._nodes[node].state = state
            if self._console.is_terminal:
                self._live.update(self._render())

    def update(self, row: dict[str, Any]) -> None:
        """row: as in metrics.jsonl."""
        node = self._nodes[row["node"]]
        reward = row["reward/mean"]
        node.round = row["round"] + 1
        node.reward = reward if node.reward is None else SMOOTHING * node.reward + (1 - SMOOTHING) * reward
        node.held_out = row.get("final/accuracy", row.get("held_out/accuracy", node.held_out))
        node.received += int(row["records/received"])
        node.published += int(row["records/published"])
        node.learned += int(row["groups/external"])
        node.usable += int(row["groups/received"])
        unused = sum(v for k, v in row.items() if k.startswith("groups/unused/"))
        node.heard += int(row["groups/received"] + unused)
        if said := node.hearing.on_round(row):
            self.say(f"{node.name}: {said}")
        node.rejected += int(sum(v for k, v in row.items() if k.startswith("records/rejected/")))
        node.peers = int(row["peers/connected"]) if "peers/connected" in row else None
        if "chain/round" in row:
            waiting = int(row.get("chain/waiting", 0))
            node.chain = f"{row['chain/round']:.0f}{f' ({waiting} to send)' if waiting else ''}"
        done = sum(n.round for n in self._nodes)
        self._progress.update(self._task, completed=done, rate=self._rate(done))
        if self._console.is_terminal:
            self._live.update(self._render())
        else:
            self._say_tenths(done)

    def _rate(self, done: int) -> str:
        if not self._started:
            self._start_done, self._started = done, time.monotonic()
            return ""
        seconds = time.monotonic() - self._started
        if seconds < 1:
            return ""
        per_second = (done - self._start_done) / seconds / len(self._nodes)
        if not self._rounds:
            return f"{per_second:.1f} rounds/s"
        left = (self._rounds - done / len(self._nodes)) / max(per_second, 1e-9)
        return f"{per_second:.1f} rounds/s, {int(left) // 60}:{int(left) % 60:02d} left"

    def _say_tenths(self, done: int) -> None:
        """A line for each tenth; of a run without an end, for each ten rounds."""
        of_all = self._rounds * len(self._nodes)
        tenth = 10 * done // of_all if of_all else done // (10 * len(self._nodes))
        if tenth > self._said:
            self._said = tenth
            rewards = [n.reward for n in self._nodes if n.reward is not None]
            held_out = [n.held_out for n in self._nodes if n.held_out is not None]
            self._console.print(
                (f"{10 * tenth:3d} %  " if of_all else "")
                + f"round {done // len(self._nodes)}{f' of {self._rounds}' if of_all else ''}"
                f"  reward {sum(rewards) / max(len(rewards), 1):.2f}"
                f"  held-out accuracy {sum(held_out) / max(len(held_out), 1):.2f}  {self._rate(done)}",
                soft_wrap=True,
            )

    def _render(self) -> RenderableType:
        table = Table(title=None, expand=False)
        live = any(n.state or n.peers is not None for n in self._nodes)
        columns = ["node", *(["process", "peers"] if live else [])]
        chain = any(n.chain for n in self._nodes)
        for column in (
            *columns,
            "round",
            *(["chain"] if chain else []),
            "reward",
            "held-out accuracy",
            "records in",
            "out",
            "groups learned/usable/heard",
            "rejected",
        ):
            table.add_column(column, justify="left" if column in ("node", "process") else "right")
        for n in self._nodes:
            table.add_row(
                n.name,
                *([n.state, "" if n.peers is None else str(n.peers)] if live else []),
                str(n.round),
                *([n.chain] if chain else []),
                "" if n.reward is None else f"{n.reward:.2f}",
                "" if n.held_out is None else f"{100 * n.held_out:.1f} %",
                str(n.received),
                str(n.published),
                f"{n.learned}/{n.usable}/{n.heard}",
                str(n.rejected),
            )
        return Group(table, self._progress)
