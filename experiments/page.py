"""Shows a run as a page: who taught whom, what was learned, and what can be checked.

    python -m experiments.page runs/quickstart                   of a run that goes on or is over; prints the address
    python -m experiments.page --config configs/quickstart.py    of the run in that config's folder
    python -m experiments.page runs/quickstart --export FOLDER   the same as a file, for any browser or static host

DIR is the folder of a simulated swarm, a local swarm or a single node; nothing in it is changed. The page is served to
this machine alone, and shows what is public: records, metrics, and what the chain has. What it computes again (a
reward, a vote, a claim, a verdict) takes the game: the config in DIR may name modules of tasks, which are imported, so
let it be your own. --export writes FOLDER/index.html, complete in itself, with as many rounds as its size allows.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlswarm_jax.errors import UsageError
from rlswarm_jax.page.export import ALL, export
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.server import NICE, listen, serve

CONFIG_FLAG = "--config"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        given, directory = _read(words)
        if given.export:
            print(f"page: {export(Folder(directory), given.export / 'index.html', ALL, _prompts(directory))}")
            return 0
        Folder(directory)
        with listen(given.port) as listening:
            print(f"page: http://127.0.0.1:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
            with contextlib.suppress(OSError):
                os.nice(NICE)
            serve(directory, listening)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, UsageError) else 2
    return 0


def _prompts(directory: Path) -> Callable[[int, int], Any]:
    """Those of a node's round, as its model saw them."""
    from rlswarm_jax.running.again import CANNOT, Again  # and with it jax

    again = Again(directory)

    def made(node: int, round_: int) -> Any:
        try:
            return again.answer({"what": "prompts", "node": node, "round": round_})
        except CANNOT:
            return None

    return made


def _read(words: list[str]) -> tuple[argparse.Namespace, Path]:
    """The arguments, and the folder that they name."""
    parser = argparse.ArgumentParser("python -m experiments.page", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", help="of a run")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="to listen on; by default any that is free")
    parser.add_argument("--export", metavar="FOLDER", type=Path, help="where the page is written, instead of served")
    parser.add_argument(
        "--config", metavar="FILE", help="whose run it is, in the place of DIR (and --config.FIELD=VALUE)"
    )
    of_config = [word for word in words if word.startswith(f"{CONFIG_FLAG}.")]
    given = parser.parse_args([word for word in words if word not in of_config])
    if (given.folder is None) == (given.config is None):
        raise UsageError("name the folder of a run, or --config FILE.")
    if given.folder is not None:
        return given, given.folder
    from rlswarm_jax.running.arguments import parse

    return given, parse([CONFIG_FLAG, given.config, *of_config]).workdir


if __name__ == "__main__":
    sys.exit(main())
