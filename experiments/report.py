"""What a run came to: report.md with plots next to it, and the same tables in the terminal.

    python -m experiments.report runs/quickstart            writes runs/quickstart/report.md and prints it
    python -m experiments.report runs/seed-0 runs/seed-1    writes each one's report, prints them side by side

Each DIR is the folder of a run, with its summary.json and metrics.jsonl. The report says what was learned on
held-out problems, from whom, and what it cost. Side by side, runs that differ in nothing but their seed also
get the mean ± standard deviation of their gains.
"""

import argparse
import collections
import importlib
import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.cli import UsageError

Accuracy = Annotated[float, msgspec.Meta(ge=0, le=1)]
Scores = dict[str, Accuracy | None]
Table = Sequence[Sequence[str]]  # the header, then the rows
MISSING = "–"
UNIMPORTANT = ("wandb", "checkpoint_every")  # of a config: says nothing about what was learned
SPOILED = (
    "The embedded model was taught these tasks and then spoiled: a gain here is a spoiled skill brought back by "
    "reinforcement learning, not knowledge gained; the un-spoiled base gets {}."
)

# --- what a run leaves behind


class PerTask(msgspec.Struct, frozen=True):
    """Accuracy by task: mean over nodes before and after, and the un-spoiled model's."""

    before: Scores | None = None
    after: Scores | None = None
    base: Scores | None = None


class HeldOut(msgspec.Struct, frozen=True):
    """Held-out greedy accuracy, 0 to 1, by node before and after; `base` is the un-spoiled model's."""

    before: Scores
    after: Scores | None = None
    base: Accuracy | None = None
    per_task: PerTask = PerTask()


class Records(msgspec.Struct, frozen=True):
    """Counts over all nodes and rounds; rejected records and unused groups by cause."""

    published: float = 0
    received: float = 0
    rejected: dict[str, float] = {}
    unused_groups: dict[str, float] = {}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """summary.json of a run."""

    name: str
    status: Literal["finished", "stopped"]
    seed: int
    nodes: int
    rounds: int
    rounds_done: dict[str, int]
    wall_seconds: float
    held_out_problems: int
    held_out_accuracy: HeldOut
    peak_memory_mb: float | None = None
    external_fraction: float | None = None
    records: Records = Records()
    learned_from: dict[str, dict[str, float]] = {}
    samples: dict[str, float] = {}
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    hardware: str = "unknown"

    @property
    def before(self) -> float | None:
        """Mean over nodes of the held-out accuracy before learning."""
        return mean(self.held_out_accuracy.before.values())

    @property
    def after(self) -> float | None:
        """Mean over nodes of the held-out accuracy after the last round."""
        return mean((self.held_out_accuracy.after or {}).values())


@dataclass(frozen=True)
class Run:
    """A run's folder, read. rows: by node, in order of rounds. skipped: unreadable lines of metrics.jsonl."""

    workdir: Path
    summary: Summary
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    skipped: int

    @property
    def names(self) -> list[str]:
        """The nodes."""
        return list(self.summary.rounds_done)

    @property
    def authors(self) -> list[str]:
        """The nodes, then whoever else was learned from."""
        others = {author for row in self.summary.learned_from.values() for author in row}
        return [*self.names, *sorted(others - set(self.names))]

    def measured(self, name: str, metric: str = "accuracy") -> list[tuple[int, float]]:
        """(rounds learned from by then, value) wherever a node's held-out metric was measured."""
        rows, before, final = self.rows.get(name, ()), f"held_out/{metric}", f"final/{metric}"
        found = [(row["round"], row[before]) for row in rows if before in row]
        return found + [(row["round"] + 1, row[final]) for row in rows if final in row]

    @property
    def after(self) -> Scores:
        """By node: accuracy after the last round or, in a run that stopped before it, the latest there is."""
        final = self.summary.held_out_accuracy.after or {}
        return {n: self._latest(n) if final.get(n) is None else final[n] for n in self.names}

    @property
    def after_by_task(self) -> Scores:
        """The same by task, mean over nodes."""
        per_task = self.summary.held_out_accuracy.per_task
        final = (per_task.before or {}).keys() | (per_task.after or {}).keys()
        after = {task: (per_task.after or {}).get(task) for task in sorted(final)}
        return {
            task: mean(self._latest(n, f"accuracy/{task}") for n in self.names) if value is None else value
            for task, value in after.items()
        }

    def _latest(self, name: str, metric: str = "accuracy") -> float | None:
        found = self.measured(name, metric)
        return found[-1][1] if len(found) > 1 else None  # the first is from before learning


def load_summary(workdir: Path) -> Summary:
    """Raises UsageError where there is no summary.json, or one that is not of a run."""
    path = workdir / "summary.json"
    try:
        return msgspec.convert(json.loads(path.read_bytes()), Summary)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: no run has ended in {workdir}.") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"{path} is not the summary of a run: {error}.") from None


def load(workdir: Path) -> Run:
    """Reads a run's folder; lines of metrics.jsonl that are not a node's round are skipped and counted."""
    summary, path = load_summary(workdir), workdir / "metrics.jsonl"
    rows: dict[str, dict[int, Mapping[str, Any]]] = collections.defaultdict(dict)
    skipped = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows[row["name"]][int(row["round"])] = row
        except (ValueError, KeyError, TypeError):
            skipped += 1
    return Run(workdir, summary, {name: [own[r] for r in sorted(own)] for name, own in rows.items()}, skipped)


# --- figures, and how they are written


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def mean_sd(values: Sequence[float], form: str = "+.1f") -> str:
    """Mean, and the sample's standard deviation where there is more than one value."""
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{spread}"


def wilson(accuracy: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Score interval (Wilson 1927) of a proportion measured on n problems; z for 95 %."""
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def points(before: float | None, after: float | None) -> str:
    """Gain in percentage points, signed."""
    return MISSING if before is None or after is None else f"{100 * (after - before):+.1f}"


def duration(seconds: float) -> str:
    """For people: seconds up to two minutes, then minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:,} min {rest} s"


def _interval(accuracy: float | None, n: int) -> str:
    if accuracy is None or not n:
        return percent(accuracy)
    low, high = wilson(accuracy, n)
    return f"{percent(accuracy)} ({100 * low:.1f}–{100 * high:.1f})"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def overrides(summary: Summary) -> dict[str, Any] | None:
    """Fields in which a run differs from its config file (and variant); None where there is no such file."""
    file, _, variant = summary.name.partition("-")
    try:
        defaults = importlib.import_module(f"configs.{file}").get_config(variant)
    except (ImportError, ValueError):
        return None
    defaults = flatten(json.loads(defaults.to_json_best_effort()))
    return {name: value for name, value in flatten(summary.config).items() if defaults.get(name) != value}


def command(summary: Summary) -> str:
    """What to type to run it again."""
    file, _, variant = summary.name.partition("-")
    changed = overrides(summary)
    words = [f"python -m experiments.run --config configs/{file}.py{':' if variant else ''}{variant}"]
    for name, value in ({"seed": summary.seed} if changed is None else changed).items():
        words.append(shlex.quote(f"--config.{name}={tuple(value) if isinstance(value, list) else value}"))
    return " ".join(words)


# --- the report, for Markdown and terminal alike


@dataclass(frozen=True)
class Section:
    """A piece of the report; whatever is empty is left out."""

    title: str
    text: str = ""
    table: Table = ()
    images: Sequence[str] = ()
    code: str = ""


def title(summary: Summary) -> str:
    """A run in a line."""
    nodes = "1 node" if summary.nodes == 1 else f"{summary.nodes} nodes"
    return f"{summary.name}, seed {summary.seed}: {nodes}, {summary.rounds} rounds, {summary.status}"


def sections(run: Run) -> list[Section]:
    """The report's contents, in order."""
    exchange = [_exchange(run), _records(run)] if run.summary.nodes > 1 else []
    return [_learned(run), _tasks(run), *exchange, _cost(run), _reproduce(run)]


def _learned(run: Run) -> Section:
    summary, after, n = run.summary, run.after, run.summary.held_out_problems
    before, base = summary.held_out_accuracy.before, summary.held_out_accuracy.base
    start, end = summary.before, mean(after.values())
    rows = [["node", "rounds", "before (95 % Wilson)", "after (95 % Wilson)", "gain"]]
    for i, name in enumerate(run.names):
        old, new = before.get(name), after[name]
        done = str(summary.rounds_done[name])
        rows.append([f"{i} {name}", done, _interval(old, n), _interval(new, n), points(old, new)])
    if summary.nodes > 1:
        rows.append(["mean over nodes", "", percent(start), percent(end), points(start, end)])
    if base is not None:
        rows.append(["un-spoiled base", "", "", _interval(base, n), ""])
    gain = "not measured after learning" if end is None else f"{percent(end)} after, {points(start, end)} points"
    text = [f"Greedy accuracy on {n:,} held-out problems: {percent(start)} before, {gain}."]
    text += [SPOILED.format(percent(base))] if base is not None else []
    if any((summary.held_out_accuracy.after or {}).get(name) is None for name in run.names):
        last = max((r for name in run.names for r, _ in run.measured(name)), default=0)
        text += [f"Not all nodes reached round {summary.rounds}; the latest figures are of round {last}."]
    images = ["held_out.png", "reward.png"] if run.rows else []
    return Section("What was learned", " ".join(text), rows, images)


def _tasks(run: Run) -> Section:
    per_task = run.summary.held_out_accuracy.per_task
    rows = [["task", "before", "after", "gain"] + ["un-spoiled base"] * bool(per_task.base)]
    for task, after in run.after_by_task.items():
        before = (per_task.before or {}).get(task)
        base = [percent(per_task.base.get(task))] if per_task.base else []
        rows.append([task, percent(before), percent(after), points(before, after), *base])
    text = "Held-out greedy accuracy" + (", mean over nodes." if run.summary.nodes > 1 else ".")
    return Section("By task", text, rows)


def _exchange(run: Run) -> Section:
    samples, rows = run.summary.samples, [["learner", *(str(i) for i in range(len(run.authors))), "sum"]]
    for i, name in enumerate(run.names):
        groups = run.summary.learned_from.get(name, {})
        counts = ["" if author == name else f"{groups.get(author, 0):,.0f}" for author in run.authors]
        rows.append([f"{i} {name}", *counts, f"{sum(groups.values()):,.0f}"])
    text = (
        f"{percent(run.summary.external_fraction)} of the samples trained on came from peers: "
        f"{samples.get('trained_external', 0):,.0f}, beside {samples.get('trained_local', 0):,.0f} of a "
        f"node's own; the nodes sampled {samples.get('generated', 0):,.0f}. "
        "A row is a learner, a column the author of the groups it learned from."
    )
    strangers = [f"{i} is {name}." for i, name in enumerate(run.authors) if name not in run.names]
    return Section("From whom", " ".join([text, *strangers]), rows, ["learned_from.png"])


def _records(run: Run) -> Section:
    records = run.summary.records
    counts = {"records published": records.published, "records received": records.received}
    counts |= {f"records rejected: {cause}": n for cause, n in records.rejected.items()}
    counts |= {f"groups left unused: {cause}": n for cause, n in records.unused_groups.items()}
    text = "" if len(counts) > 2 else "No record was rejected, no group left unused."
    return Section("Records", text, [["", "count"], *([name, f"{n:,.0f}"] for name, n in counts.items())])


def _cost(run: Run) -> Section:
    summary = run.summary
    memory = MISSING if summary.peak_memory_mb is None else f"{summary.peak_memory_mb:,.0f} MB"
    rows = [["", ""], ["wall time", duration(summary.wall_seconds)], ["peak memory", memory]]
    rows.append(["hardware", summary.hardware])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())])
    return Section("Cost", "", rows)


def _reproduce(run: Run) -> Section:
    text = [] if overrides(run.summary) is not None else ["The fields of its config are in summary.json."]
    if run.skipped:
        text += [f"Unreadable lines of metrics.jsonl, skipped: {run.skipped}."]
    if not run.rows:
        text += ["There are no curves: metrics.jsonl is missing or empty."]
    code = command(run.summary)
    if run.summary.status == "stopped":
        code += f" --workdir {shlex.quote(str(run.workdir))} --resume   # goes on where it stopped"
    return Section("Reproduce", " ".join(text), code=code)


def comparison(runs: Sequence[Run]) -> list[list[str]]:
    """Runs side by side, with the config fields they differ in; mean ± sd where only the seed differs."""
    configs = [{"name": r.summary.name, **flatten(r.summary.config), "seed": r.summary.seed} for r in runs]
    fields = dict.fromkeys(f for config in configs for f in config if f.split(".")[0] not in UNIMPORTANT)
    differing = [f for f in fields if len({json.dumps(config.get(f)) for config in configs}) > 1]
    if set(differing) - {"name", "seed"}:
        differing = [f for f in differing if f != "name"]
    families: dict[str, list[Run]] = collections.defaultdict(list)
    for run, config in zip(runs, configs, strict=True):
        families[" ".join(f"{f}={config.get(f)}" for f in differing if f != "seed")].append(run)
    rows = [["run", "settings", "seed", "rounds", "before", "after", "gain", "external", "wall time"]]
    for settings, members in families.items():
        gains = []
        for run in members:
            summary, before, after = run.summary, run.summary.before, mean(run.after.values())
            done = f"{min(summary.rounds_done.values(), default=0)} of {summary.rounds}"
            cells = [percent(before), percent(after), points(before, after)]
            cells += [percent(summary.external_fraction), duration(summary.wall_seconds)]
            rows.append([str(run.workdir), settings, str(summary.seed), done, *cells])
            gains += [100 * (after - before)] if before is not None and after is not None else []
        if len(gains) > 1:
            rows.append([f"mean ± sd of {len(gains)}", settings, "", "", "", "", mean_sd(gains), "", ""])
    return rows if any(row[1] for row in rows[1:]) else [[row[0], *row[2:]] for row in rows]


# --- Markdown and terminal


def markdown_table(table: Table) -> str:
    """A Markdown table; under a header, all columns but the first to the right."""
    rule = [":--", *["--:" if any(table[0]) else ":--"] * (len(table[0]) - 1)]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table[0], rule, *table[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def write_report(workdir: Path) -> Path:
    """Writes report.md and its plots into a run's folder; returns report.md's path. Raises UsageError."""
    run = load(workdir)
    parts = [f"# {title(run.summary)}\n"]
    for section in sections(run):
        parts += [f"## {section.title}\n"]
        parts += [f"{section.text}\n"] if section.text else []
        parts += [markdown_table(section.table)] if section.table else []
        parts += [f"![{Path(image).stem.replace('_', ' ')}]({image})\n" for image in section.images]
        parts += [f"```bash\n{section.code}\n```\n"] if section.code else []
    plot(run)
    path = workdir / "report.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def print_summary(workdir: Path, console: Console) -> None:
    """Prints a run's report, without its plots. Raises UsageError."""
    run = load(workdir)
    console.print()
    console.rule(Text(title(run.summary), style="bold"))
    for section in sections(run):
        console.print(Text(f"\n{section.title}", style="bold cyan"))
        if section.text:
            console.print(Text(section.text))
        if section.table and 6 * len(section.table[0]) + 12 > console.width:
            console.print(Text("(a table too wide for this terminal: see report.md)", style="dim"))
        elif section.table:
            print_table(section.table, console)
        if section.code:
            console.print(Text(section.code), soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """The same table in a terminal, gains in colour."""
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(table[0]))
    for i, column in enumerate(table[0]):
        left = i == 0 or column == "settings" or not any(table[0])
        shown.add_column(Text(column), justify="left" if left else "right", overflow="fold")
    for row in table[1:]:
        shown.add_row(*(Text(cell, style={"+": "green", "-": "red"}.get(cell[:1], "")) for cell in row))
    console.print(shown)


# --- plots

STYLE = {"axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 11, "font.size": 9.5}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888"}
STYLE |= {"axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False}
STYLE |= {"figure.dpi": 150, "figure.constrained_layout.use": True}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")


def plot(run: Run) -> None:
    """Writes held_out.png, reward.png and, for a swarm, learned_from.png."""
    import matplotlib  # half a second: only where it is used

    with matplotlib.rc_context(STYLE):
        if run.rows:
            _plot_held_out(run)
            _plot_reward(run)
        if run.summary.nodes > 1:
            _plot_learned_from(run)


def _axes(heading: str, quantity: str, top: float):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 3.8))
    axes = figure.add_subplot(title=heading, xlabel="round", ylabel=quantity, ylim=(0, 1.03 * top))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _pen(i: int) -> tuple[str, str]:
    """A node's colour and line style."""
    return COLOURS[i % len(COLOURS)], ("-", ":", "-.")[i // len(COLOURS) % 3]


def _save(figure, axes, path: Path) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, handlelength=1.4)
    figure.savefig(path)


def _plot_held_out(run: Run) -> None:
    figure, axes = _axes("Greedy accuracy on held-out problems", "accuracy, %", 100)
    n, base = run.summary.held_out_problems, run.summary.held_out_accuracy.base
    if base is not None:
        axes.axhline(100 * base, color="#333333", linestyle="--", linewidth=1.2, label="un-spoiled base")
    for i, name in enumerate(run.names):
        found, (colour, line) = run.measured(name), _pen(i)
        rounds, accuracies = [r for r, _ in found], [100 * a for _, a in found]
        axes.plot(rounds, accuracies, line, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=name)
        if n and len(run.names) <= 4:
            low, high = ([100 * wilson(a, n)[side] for _, a in found] for side in (0, 1))
            axes.fill_between(rounds, low, high, color=colour, alpha=0.1, linewidth=0)
    _save(figure, axes, run.workdir / "held_out.png")


def _plot_reward(run: Run) -> None:
    import numpy as np

    reward = "reward/mean"
    curves = {n: [(r["round"], r[reward]) for r in own if reward in r] for n, own in run.rows.items()}
    top = max([1.0, *(value for curve in curves.values() for _, value in curve)])
    figure, axes = _axes("Reward of sampled completions", "mean reward of a round", top)
    for i, name in enumerate(run.names):
        rounds, rewards = np.array(curves.get(name) or [(np.nan, np.nan)]).T
        window, (colour, line) = np.ones(2 * (len(rewards) // 40) + 1), _pen(i)
        smooth = np.convolve(rewards, window, "same") / np.convolve(np.ones_like(rewards), window, "same")
        axes.plot(rounds, rewards, color=colour, linewidth=0.6, alpha=0.25)
        axes.plot(rounds, smooth, line, color=colour, linewidth=1.8, label=name)
    _save(figure, axes, run.workdir / "reward.png")


def _plot_learned_from(run: Run) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    learned, names, authors = run.summary.learned_from, run.names, run.authors
    counts = np.array([[np.nan if a == n else learned.get(n, {}).get(a, 0) for a in authors] for n in names])
    figure = Figure(figsize=(2.6 + 0.6 * len(authors), 2.2 + 0.45 * len(names)))
    axes = figure.add_subplot(title="External groups learned from", xlabel="author", ylabel="learner")
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(1.5 * np.nanmax(counts), 1.0))
    axes.set(facecolor="#f0f0f0", xticks=range(len(authors)), yticks=range(len(names)), yticklabels=names)
    axes.set_xticklabels(authors, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(False)
    for (i, j), count in np.ndenumerate(counts):
        if i != j:
            colour = "white" if count > 0.8 * np.nanmax(counts) else "#222222"
            axes.text(j, i, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(run.workdir / "learned_from.png", bbox_inches="tight")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser("python -m experiments.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("workdirs", metavar="DIR", type=Path, nargs="+", help="the folder of a run")
    workdirs, console = parser.parse_args(argv).workdirs, Console()
    try:
        runs = [load(workdir) for workdir in workdirs]
        paths = [write_report(workdir) for workdir in workdirs]
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if len(runs) == 1:
        print_summary(workdirs[0], console)
    else:
        print_table(comparison(runs), console)
    for path in paths:
        console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
