"""The command line that all experiments share: a config file, overrides of its fields, a folder to work in."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is the one sentence they get (exit code 2)."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """config: locked, with the overrides applied. workdir: where the run writes. resume: go on with what is there."""

    config: ml_collections.ConfigDict
    workdir: Path
    resume: bool


def parse(argv: Sequence[str]) -> Arguments:
    """Reads `--config FILE[:variant] [--config.field=value ...] [--workdir DIR] [--resume]`.

    Raises UsageError that names the wrong argument, and for an unknown config field its nearest neighbour.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the experiment: FILE.py or FILE.py:variant", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run (default runs/<config name>)", flag_values=values)
    flags.DEFINE_bool("resume", False, "go on with the unfinished run in the folder", flag_values=values)
    try:
        rest = values(["experiment", *argv])
        config = values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(_first_sentence(error)) from None
    if rest[1:]:
        raise UsageError(f"unexpected argument {rest[1]!r}; fields are set as --config.field=value.")
    if config is None:
        raise UsageError("which experiment? Give --config configs/quickstart.py (--help explains).")
    workdir = Path(values.workdir or Path("runs") / config.name)
    return Arguments(config, workdir, values.resume)


def main(run: Callable[[Arguments], int], help_text: str) -> None:
    """Runs an experiment as a program. What the user did wrong ends in one sentence and exit code 2."""
    if {"-h", "--help", "--helpfull"} & set(sys.argv[1:]):
        print(help_text.strip())
        sys.exit(0)
    try:
        sys.exit(run(parse(sys.argv[1:])))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__
