"""What a person sees while a swarm runs: one table on a terminal, a line now and then elsewhere."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rlswarm_jax.running.hearing import Hearing

SMOOTHING = 0.9
COMPILING = "compiling, once, a minute or two"
REMIND = 30.0  # seconds between lines that say so, where nothing moves


@dataclasses.dataclass
class _Shown:
    index: int
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


class _Column(NamedTuple):
    """drop: columns of the largest number are the first to go where the terminal is narrow; those of 0 stay."""

    title: str
    drop: int
    cell: Callable[[_Shown], str]
    left: bool = False


def _columns(nodes: list[_Shown]) -> list[_Column]:
    live, chain = any(n.state or n.peers is not None for n in nodes), any(n.chain for n in nodes)
    return [
        _Column("node", 0, lambda n: f"{n.index} {n.name}", left=True),
        *([_Column("process", 4, lambda n: n.state, left=True)] if live else []),
        *([_Column("peers", 2, lambda n: "" if n.peers is None else str(n.peers))] if live else []),
        _Column("round", 0, lambda n: str(n.round)),
        *([_Column("chain", 6, lambda n: n.chain)] if chain else []),
        _Column("reward", 0, lambda n: "" if n.reward is None else f"{n.reward:.2f}"),
        _Column("held-out\naccuracy", 0, lambda n: "" if n.held_out is None else f"{100 * n.held_out:.1f} %"),
        _Column("records\nin", 5, lambda n: str(n.received)),
        _Column("out", 7, lambda n: str(n.published)),
        _Column("groups\nlearned/\nusable/heard", 1, lambda n: f"{n.learned}/{n.usable}/{n.heard}"),
        _Column("rejected", 3, lambda n: str(n.rejected)),
    ]


def nodes_table(nodes: list[_Shown], console: Console) -> Table:
    """A row for each node, in as many columns as the console is wide enough for; a node is told by its number."""
    columns = _columns(nodes)
    while True:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
        for node in nodes:
            table.add_row(*(column.cell(node) for column in columns))
        options = console.options.update(max_width=10 * console.width)
        fits = Measurement.get(console, options, table).maximum <= console.width
        last = max(columns, key=lambda column: column.drop)
        if fits or (not last.drop and columns[0].title == "#"):
            return table
        if last.drop:
            columns.remove(last)
        else:  # too narrow for names
            columns[0] = _Column("#", 0, lambda n: str(n.index))


@contextlib.contextmanager
def compiling(console: Console) -> Iterator[None]:
    """Says so for as long as the `with` block lasts, with a sign that moves."""
    if console.is_terminal:
        with _spinner(console):
            yield
        return
    done = threading.Event()
    try:
        _remind(console, done)
        yield
    finally:
        done.set()


def _spinner(console: Console) -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(COMPILING, total=None)
    return progress


def _remind(console: Console, done: threading.Event) -> None:
    """Says it in a line, and once in a while that it goes on."""

    def follow() -> None:
        while not done.wait(REMIND):
            say(f"still compiling, for {time.monotonic() - began:.0f} s")

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    began = time.monotonic()
    if not done.is_set():
        say(COMPILING)
        threading.Thread(target=follow, name="reminder", daemon=True).start()


class SwarmView:
    """`with SwarmView(...) as view: view.update(row)` for each finished round of a node. rounds: 0 for no end."""

    def __init__(self, console: Console, names: list[str], rounds: int, done: list[int]):
        self._console, self._rounds = console, rounds
        self._nodes = [_Shown(i, name, start) for i, (name, start) in enumerate(zip(names, done, strict=True))]
        self._start_done, self._started = sum(done), 0.0  # the rate is counted from the first round's end
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._task = self._progress.add_task("rounds", total=rounds * len(names) or None, completed=sum(done), rate="")
        self._compiling = _spinner(console)
        self._begun = threading.Event()  # a round has ended since the process began
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=False)
        self._said = -1

    def __enter__(self) -> "SwarmView":
        if self._console.is_terminal:
            self._live.start()
        else:
            _remind(self._console, self._begun)
        return self

    def __exit__(self, *_: object) -> None:
        self._begun.set()
        if self._console.is_terminal:
            self._live.update(self._render())
            self._live.stop()

    def begin(self) -> None:
        """From now on it does not compile any more."""
        self._begun.set()

    def say(self, sentence: str) -> None:
        """Prints above what is shown."""
        self._console.print(sentence, highlight=False, soft_wrap=True)

    def state(self, node: int, state: str) -> None:
        """What a node's process is doing, in a word."""
        if self._nodes[node].state != state:
            self._nodes[node].state = state
            if self._console.is_terminal:
                self._live.update(self._render())

    def catch_up(self, rows: Iterable[dict[str, Any]]) -> None:
        """Takes the rounds of an earlier process: rows as in metrics.jsonl."""
        for row in rows:
            self._take(row)
        self._live.update(self._render())

    def update(self, row: dict[str, Any]) -> None:
        """Takes a round that has just ended: a row as in metrics.jsonl."""
        self._begun.set()
        self._take(row)
        node = self._nodes[row["node"]]
        if said := node.hearing.on_round(row):
            self.say(f"{node.name}: {said}")
        done = sum(n.round for n in self._nodes)
        self._progress.update(self._task, completed=done, rate=self._rate(done))
        if self._console.is_terminal:
            self._live.update(self._render())
        else:
            self._say_tenths(done)

    def _take(self, row: dict[str, Any]) -> None:
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
        node.rejected += int(sum(v for k, v in row.items() if k.startswith("records/rejected/")))
        node.peers = int(row["peers/connected"]) if "peers/connected" in row else None
        if "chain/round" in row:
            waiting = int(row.get("chain/waiting", 0))
            node.chain = f"{row['chain/round']:.0f}{f' ({waiting} to send)' if waiting else ''}"

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
        table = nodes_table(self._nodes, self._console)
        return Group(table, self._progress if self._begun.is_set() else self._compiling)
