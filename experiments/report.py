"""What runs came to: one run's report, or several side by side, point by point.

    python -m experiments.report runs/quickstart             writes runs/quickstart/report.md and prints it
    python -m experiments.report runs/sapo                   a sweep: its points, and how they differ by seed
    python -m experiments.report runs/A runs/B               any runs: grouped by the settings that they differ in
    python -m experiments.report runs/sapo --save results/sapo.json     ... and keeps what tables are made of
    python -m experiments.report results/sapo.json           the same tables and curves, from that alone

  --at 100,200        also after so many rounds           --baseline POINT    that the others are compared with
  --points a,b        these alone, in this order          --save FILE         keeps all of them, whatever is shown
  --out DIR           where report.md, report.html and the curves go (default: the sweep's folder, else runs/report)

Each DIR is the folder of a run, of a point's seeds, or of a sweep. One run's report says what was learned on held-out
problems, from whom, and what it cost. Of several it has mean ± standard deviation over seeds, paired differences with
bootstrap intervals, and curves with bands; report.html has all of it in one file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import SUMMARY_FILE, SWEEP_FILE
from rlswarm_jax.reporting import comparison, outcomes, render
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.reporting.report import print_summary, write_report

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("runs/report")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser("python -m experiments.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("paths", metavar="DIR", type=Path, nargs="+", help="folder of a run or a sweep; a saved file")
    parser.add_argument("--save", metavar="FILE", type=Path, help="where outcomes are kept")
    parser.add_argument("--at", metavar="R,R", default="", help="horizons, in rounds")
    parser.add_argument("--points", metavar="A,B", default="", help="that are shown")
    parser.add_argument("--baseline", metavar="POINT", default="", help="that others are compared with")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where reports of several runs go")
    own, console = parser.parse_args(argv), Console()
    try:
        if len(own.paths) == 1 and not own.save and (own.paths[0] / SUMMARY_FILE).exists():
            paths = [write_report(own.paths[0])]
            print_summary(own.paths[0], console)
        else:
            paths = _side_by_side(own, console)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, UsageError) else 2
    for path in paths:
        console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return 0


def _side_by_side(own: argparse.Namespace, console: Console) -> list[Path]:
    at, found = _rounds(own.at), outcomes.find(own.paths, render.commit(ROOT))
    out = own.out or (own.paths[0] if (own.paths[0] / SWEEP_FILE).exists() else OUT)
    shown = outcomes.only(found, own.points.split(",")) if own.points else found
    sections = comparison.sections(shown, at, own.baseline)
    paths = comparison.write(shown, out, sections)
    for section in sections:
        console.print(f"\n{section.title}", style="bold cyan", highlight=False, markup=False)
        print_table(section.table, console, section.optional)
    if own.save:
        outcomes.save(own.save, found)
        paths.append(own.save)
    return paths


def _rounds(text: str) -> list[int]:
    words = text.split(",") if text else []
    if not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"--at is {text!r}; expected rounds by commas, such as 100,200.")
    return [int(word) for word in words]


if __name__ == "__main__":
    sys.exit(main())
