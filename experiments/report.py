"""What a run came to: report.md with plots next to it, and the same tables in the terminal.

    python -m experiments.report runs/quickstart            writes runs/quickstart/report.md and prints it
    python -m experiments.report runs/seed-0 runs/seed-1    writes each one's report, prints them side by side

Each DIR is the folder of a run, with its summary.json and metrics.jsonl. The report says what was learned on
held-out problems, from whom, and what it cost. Side by side, runs that differ in nothing but their seed also
get the mean ± standard deviation of their gains.
"""

import argparse
import collections
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.cli import UsageError
from experiments.folder import write_whole
from experiments.ledger import ledger_sections, write_ledger
from experiments.plots import plot
from experiments.results import (
    MISSING,
    UNIMPORTANT,
    Run,
    Summary,
    command,
    duration,
    flatten,
    interval,
    load,
    mean,
    mean_sd,
    overrides,
    percent,
    points,
)
from experiments.sections import Section, Table, markdown_table

SPOILED = (
    "The embedded model was taught these tasks and then spoiled: a gain here is a spoiled skill brought back by "
    "reinforcement learning, not knowledge gained; the un-spoiled base gets {}."
)

# --- the report, for Markdown and terminal alike


def title(summary: Summary) -> str:
    """A run in a line."""
    nodes = "1 node" if summary.nodes == 1 else f"{summary.nodes} nodes"
    rounds = f"{summary.rounds or max(summary.rounds_done.values(), default=0)} rounds"
    return f"{summary.name}, seed {summary.seed}: {nodes}, {rounds}, {summary.status}"


def sections(run: Run) -> list[Section]:
    """The report's contents, in order."""
    exchange = [_exchange(run), _received(run), _records(run)] if len(run.authors) > 1 else []
    return [
        _learned(run),
        _tasks(run),
        *([_game(run)] if run.summary.game else []),
        *exchange,
        *(ledger_sections(run.summary.ledger, {}) if run.summary.ledger else []),
        _cost(run),
        _reproduce(run),
    ]


def _learned(run: Run) -> Section:
    summary, after, n = run.summary, run.after, run.summary.held_out_problems
    before, base = summary.held_out_accuracy.before, summary.held_out_accuracy.base
    start, end = summary.before, mean(after.values())
    rows = [["node", "rounds", "before (95 % Wilson)", "after (95 % Wilson)", "gain"]]
    for i, name in enumerate(run.names):
        old, new = before.get(name), after[name]
        done = str(summary.rounds_done[name])
        rows.append([f"{i} {name}", done, interval(old, n), interval(new, n), points(old, new)])
    if summary.nodes > 1:
        rows.append(["mean over nodes", "", percent(start), percent(end), points(start, end)])
    if base is not None:
        rows.append(["un-spoiled base", "", "", interval(base, n), ""])
    gain = "not measured after learning" if end is None else f"{percent(end)} after, {points(start, end)} points"
    text = [f"Greedy accuracy on {n:,} held-out problems: {percent(start)} before, {gain}."]
    text += [SPOILED.format(percent(base))] if base is not None else []
    if any((summary.held_out_accuracy.after or {}).get(name) is None for name in run.names):
        last = max((r for name in run.names for r, _ in run.measured(name)), default=0)
        missed = f"Not all nodes reached round {summary.rounds}" if summary.rounds else "It ran until it was stopped"
        text += [f"{missed}; the latest figures are of round {last}."]
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


GAME = {
    "game/first": "first answers that are right",
    "game/vote": "votes of the critics that are right",
    "game/revised": "revised answers that are right",
    "critique/reward/mean": "critiques that name a best answer",
    "critique/chance": "what critiques at random would name",
}


def _game(run: Run) -> Section:
    rows = [["on the problems that all nodes share", "first tenth", "last tenth", "gain"]]
    for name, (start, end) in run.summary.game.items():
        rows.append([GAME.get(name, name), percent(start), percent(end), points(start, end)])
    text = (
        "Nodes answer, criticise what others answered, and revise. Sampled in training, mean over nodes and rounds; "
        "experiments.evaluate measures the same on held-out problems."
    )
    return Section("The game", text, rows, ["game.png"] if run.rows else [])


def _exchange(run: Run) -> Section:
    samples = run.summary.samples
    text = (
        f"{percent(run.summary.external_fraction)} of the samples trained on came from peers: "
        f"{samples.get('trained_external', 0):,.0f}, beside {samples.get('trained_local', 0):,.0f} of a "
        f"node's own; the nodes sampled {samples.get('generated', 0):,.0f}. "
        "A row is a learner, a column the author of the groups it learned from."
    )
    strangers = [f"{i} is {name}." for i, name in enumerate(run.authors) if name not in run.names]
    table = _by_author(run, "learner", run.summary.learned_from)
    return Section("From whom", " ".join([text, *strangers]), table, ["learned_from.png"])


def _by_author(run: Run, who: str, counts: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each node, a column for each author."""
    rows = [[who, *(str(i) for i in range(len(run.authors))), "sum"]]
    for i, name in enumerate(run.names):
        own = counts.get(name, {})
        cells = ["" if author == name else f"{own.get(author, 0):,.0f}" for author in run.authors]
        rows.append([f"{i} {name}", *cells, f"{sum(own.values()):,.0f}"])
    return rows


def _received(run: Run) -> Section:
    table = _by_author(run, "receiver", run.summary.received_from)
    return Section("Records received", "By author, valid and in time; columns as above.", table)


def _records(run: Run) -> Section:
    records = run.summary.records
    counts = {"records published": records.published, "records received": records.received}
    counts |= {f"records rejected: {cause}": n for cause, n in records.rejected.items()}
    counts |= {f"groups left unused: {cause}": n for cause, n in records.unused_groups.items()}
    text = "" if len(counts) > 2 else "No record was rejected, no group left unused."
    counts |= {f"network: {name.replace('_', ' ')}": n for name, n in run.summary.network.items()}
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


def write_report(workdir: Path) -> Path:
    """Writes report.md, its plots and its ledger into a run's folder; returns report.md's path. Raises UsageError."""
    run = load(workdir)
    parts = [f"# {title(run.summary)}\n"]
    for section in sections(run):
        parts += [f"## {section.title}\n"]
        parts += [f"{section.text}\n"] if section.text else []
        parts += [markdown_table(section.table)] if section.table else []
        parts += [f"![{Path(image).stem.replace('_', ' ')}]({image})\n" for image in section.images]
        parts += [f"```bash\n{section.code}\n```\n"] if section.code else []
    plot(run)
    if run.summary.ledger:
        write_ledger(workdir, run.summary.ledger, {})
    path = workdir / "report.md"
    write_whole(path, "\n".join(parts))
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
        return error.code if isinstance(error, UsageError) else 2
    if len(runs) == 1:
        print_summary(workdirs[0], console)
    else:
        print_table(comparison(runs), console)
    for path in paths:
        console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
