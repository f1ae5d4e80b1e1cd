"""What a run came to: report.md with plots next to it, and the same tables in the terminal.

    python -m experiments.report runs/quickstart            writes runs/quickstart/report.md and prints it
    python -m experiments.report runs/seed-0 runs/seed-1    writes each one's report, prints them side by side

Each DIR is the folder of a run, with its summary.json and metrics.jsonl. The report says what was learned on
held-out problems, from whom, and what it cost. Side by side, runs that differ in nothing but their seed also
get the mean ± standard deviation of their gains.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlswarm_jax.errors import UsageError
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.reporting.report import print_summary, write_report
from rlswarm_jax.reporting.results import load
from rlswarm_jax.reporting.sections import comparison


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
        print_table(comparison(runs), console, ("wall time", "external", "before", "rounds"))
    for path in paths:
        console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
