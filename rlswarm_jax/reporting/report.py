"""A run's report: report.md with plots next to it, and the same tables in the terminal."""

import contextlib
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import PAGE_FILE, write_whole
from rlswarm_jax.page.export import export
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.reporting.blocks import markdown_table, print_table
from rlswarm_jax.reporting.ledger import write_ledger
from rlswarm_jax.reporting.plots import plot
from rlswarm_jax.reporting.results import load
from rlswarm_jax.reporting.sections import nothing_to_learn, sections, title


def write_report(workdir: Path) -> Path:
    """Writes report.md, its plots and its ledger into a run's folder; returns report.md's path. Raises UsageError."""
    run = load(workdir)
    parts = [f"# {title(run.summary)}\n"]
    with contextlib.suppress(UsageError):  # of a summary without its config there is none
        shown = export(Folder(workdir), workdir / PAGE_FILE)
        parts += [f"Who taught whom, with the texts: [{shown.name}]({shown.name}).\n"]
    for section in sections(run):
        parts += [f"## {section.title}\n"]
        parts += [f"{section.text}\n"] if section.text else []
        parts += [markdown_table(section.table)] if section.table else []
        parts += [f"![{Path(image).stem.replace('_', ' ')}]({image})\n" for image in section.images]
        parts += [f"```bash\n{section.code}\n```\n"] if section.code else []
    plot(run)
    if run.summary.ledger:
        write_ledger(workdir, run.summary.ledger)
    path = workdir / "report.md"
    write_whole(path, "\n".join(parts))
    return path


def print_summary(workdir: Path, console: Console) -> None:
    """Prints a run's report, without its plots, and what was learned at its end. Raises UsageError."""
    run = load(workdir)
    console.print()
    console.rule(Text(title(run.summary), style="bold"))
    if said := nothing_to_learn(run):
        console.print(Text(f"\n{said}", style="bold yellow"))
    found, most = sections(run), 2 if run.alone else 1  # what matters most comes last, where people look
    for section in [*found[most:], *found[:most][::-1]]:
        console.print(Text(f"\n{section.title}", style="bold cyan"))
        if section.text:
            console.print(Text(section.text))
        if section.table and 6 * len(section.table[0]) + 12 > console.width and not section.optional:
            console.print(Text("(a table too wide for this terminal: see report.md)", style="dim"))
        elif section.table:
            print_table(section.table, console, section.optional)
        if section.code:
            console.print(Text(section.code), soft_wrap=True)
