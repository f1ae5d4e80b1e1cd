"""Runs a study of many runs: every point of a config's `get_sweep()` with every seed.

    python -m experiments.sweep --config configs/x.py                  on this machine, one run on each core
    python -m experiments.sweep --config configs/x.py --dry-run        says what there is to do, and does nothing
    python -m experiments.sweep --config configs/x.py --points a,b --seeds 0,1
    python -m experiments.sweep --config configs/x.py --index 3        the fourth run alone: for job arrays, TPU pods
    python -m experiments.sweep --config configs/x.py --slurm="slurm_partition=gpu timeout_min=120"

  --config FILE[:variant]       the config; get_sweep(variant) in it says points and seeds (docs/sweeps.md)
  --config.FIELD=VALUE          changes one field of all points, but where a point has a value of its own
  --workdir DIR                 where the runs are (default runs/<config name>): DIR/<point>/seed-<seed>
  --jobs N                      runs at once (default: one for each GPU, else each core); cores are shared out
  --points, --seeds             only these
  --index I, --count            only the run of this number; how many there are
  --dry-run                     points, what they change, and how far their runs are
  --have FILE                   outcomes of `experiments.report --save`; what is in there is not run again
  --slurm="NAME=VALUE ..."      submits what is not finished as an array, of N at once; options are submitit's

The same command goes on: finished runs are left alone, unfinished ones resume, broken ones are tried again. Ctrl-C
stops all of them cleanly. It ends with DIR/report.md and report.html; experiments.report makes them again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlswarm_jax.errors import DONE, UsageError
from rlswarm_jax.reporting import comparison, outcomes
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.running import slurm, start, sweep, sweeping
from rlswarm_jax.running.arguments import CODES, code_of
from rlswarm_jax.running.sweep_view import overview


def options(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Its own arguments, and the rest: those of `sweep.plan`."""
    parser = argparse.ArgumentParser("python -m experiments.sweep", description=f"{__doc__}{CODES}", allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--jobs", metavar="N", type=int, default=0)
    parser.add_argument("--points", metavar="A,B", default="")
    parser.add_argument("--seeds", metavar="0,1", default="")
    parser.add_argument("--have", metavar="FILE", type=Path, action="append", default=[])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--index", metavar="I", type=int)
    chosen.add_argument("--count", action="store_true")
    chosen.add_argument("--dry-run", action="store_true")
    chosen.add_argument("--slurm", metavar="OPTIONS")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    own, rest = options(argv)
    return code_of(lambda: _run(own, rest))


def _run(own: argparse.Namespace, rest: Sequence[str]) -> int:
    console = Console()
    had = outcomes.find(own.have)
    plan = sweep.plan(rest, had.runs)
    runs = plan.chosen(own.points, own.seeds)
    if own.count:
        print(len(runs))
        return DONE
    if own.index is not None:
        return _one(plan, runs, own.index)
    if own.jobs < 0:
        raise UsageError(f"--jobs is {own.jobs}; expected at least 1.")
    states = {run.name: run.state() for run in runs}
    if own.dry_run or not console.is_terminal:
        print_table(overview(runs, states), console)
    for run in runs:
        if said := sweeping.last_error(run) if states[run.name] in (sweep.NEW, sweep.BEGUN) else "":
            console.print(f"{run.name} broke: {said}", highlight=False, soft_wrap=True, markup=False)
    if own.dry_run:
        return DONE
    plan.record()
    if own.slurm is not None:
        left = [run for run in runs if states[run.name] in (sweep.NEW, sweep.BEGUN)]
        jobs = slurm.submit(left, rest, own.slurm, own.jobs, plan.workdir / "slurm") if left else []
        console.print(f"submitted {len(jobs)} jobs: {' '.join(jobs)}", highlight=False)
        return DONE
    code = sweeping.Local(runs, min(own.jobs or sweeping.jobs(), len(runs)), console).play()
    if any(run.state() == sweep.FINISHED for run in runs):
        found = outcomes.find([*own.have, plan.workdir])
        for path in comparison.write(found, plan.workdir, comparison.sections(found)):
            console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return code


def _one(plan: sweep.Plan, runs: Sequence[sweep.Planned], index: int) -> int:
    if not 0 <= index < len(runs):
        raise UsageError(f"--index is {index}; there are {len(runs)} runs, and the first one is 0.")
    run = runs[index]
    if (state := run.state()) in (sweep.FINISHED, sweep.HAD):
        print(f"{run.name} is finished" if state == sweep.FINISHED else f"the outcome of {run.name} is known")
        return DONE
    plan.record()
    return start.run(run.arguments)


if __name__ == "__main__":
    sys.exit(main())
