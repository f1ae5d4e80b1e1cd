"""Writes measured figures into the README, docs/ and the configs' docstrings, so that none is ever typed.

    python -m experiments.render                     fills the blocks from results/
    python -m experiments.render --check             changes nothing; exit code 1 if a block is stale
    python -m experiments.render --collect quickstart runs/seed-0 runs/seed-1 ...
                                                     merges finished runs into results/quickstart.json
    python -m experiments.render --evaluations game runs/game-0 runs/game-control-0 ...
                                                     merges their evaluation.json into results/game.json
    python -m experiments.render --trials reviser runs/a runs/b ...
                                                     what runs with other fields came to into results/reviser.json

In Markdown a block stands between `<!-- rendered: NAME -->` and `<!-- /rendered -->`. In a config's docstring
it is the indented lines after `Measured (rendered: NAME):`. NAME is warmstart, gas, gas/day, gas/court,
benchmarks/chain, benchmarks/decode, benchmarks/replay, benchmarks/roc, benchmarks (all other
results/benchmarks/*.jsonl), why (sentences for the README), reviser, an experiment of configs/ such as quickstart
(results/NAME.json; NAME/line is that in one line), or of a study such as sapo a table of its points (sapo/splits) or
what may be claimed (sapo/claims), or attacks/answers and attacks/votes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlswarm_jax.errors import UsageError
from rlswarm_jax.reporting.render import collect, collect_evaluations, collect_trials, render

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser("python -m experiments.render", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="only say whether a block is stale")
    parser.add_argument("--collect", metavar="NAME", help="merge finished runs into results/NAME.json")
    parser.add_argument("--trials", metavar="NAME", help="merge how runs ended into results/NAME.json")
    parser.add_argument("workdirs", metavar="DIR", type=Path, nargs="*", help="folders of the runs to collect")
    parser.add_argument("--evaluations", metavar="NAME", help="merge evaluations of runs into results/NAME.json")
    arguments = parser.parse_args(argv)
    if bool(arguments.collect or arguments.evaluations or arguments.trials) != bool(arguments.workdirs):
        parser.error("--collect NAME goes with the folders of its runs: --collect quickstart runs/seed-0 ...")
    try:
        if arguments.evaluations:
            print(f"wrote {collect_evaluations(root, arguments.evaluations, arguments.workdirs)}")
            return 0
        if arguments.trials:
            print(f"wrote {collect_trials(root, arguments.trials, arguments.workdirs)}")
            return 0
        if arguments.collect:
            print(f"wrote {collect(root, arguments.collect, arguments.workdirs)}")
            return 0
        stale = render(root, arguments.check)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.check and stale:
        print(f"{stale[0].relative_to(root)} is stale: run python -m experiments.render", file=sys.stderr)
        return 1
    for path in stale:
        print(f"rendered {path.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
