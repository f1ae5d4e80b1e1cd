"""The command line that all experiments share: a config file, overrides of its fields, a folder to work in."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from configs import common, fields

LOCAL_CHAINS = common.LOCAL_CHAINS


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is the one sentence they get (exit code 2)."""


class TransientError(UsageError):
    """The same command may succeed later: a port is taken, a disk full, a folder in use."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """config: locked, with the overrides applied. workdir: where the run writes. resume: go on with what is there.

    checkpoint: the folder of a run, for an experiment that looks at one. words: what was said of the config.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    resume: bool
    checkpoint: Path | None = None
    words: tuple[str, ...] = ()


def parse(argv: Sequence[str]) -> Arguments:
    """Reads `--config FILE[:variant] [--config.field=value ...] [--workdir DIR] [--resume] [--checkpoint DIR]`.

    Raises UsageError that names the wrong argument, and for an unknown config field its nearest neighbour.
    """
    values = flags.FlagValues()
    # the flag finds its overrides in `sys_argv` itself
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=["experiment", *argv])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("resume", False, "", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "", flag_values=values)
    try:
        rest = values(["experiment", *argv])
        if rest[1:]:
            raise UsageError(f"unexpected argument {rest[1]!r}; fields are set as --config.field=value.")
        if values.config is None:
            raise UsageError("which experiment? Give --config configs/quickstart.py (--help explains).")
        workdir = Path(values.workdir or Path("runs") / values.config.name)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(_sentence(error)) from None
    checkpoint = Path(values.checkpoint) if values.checkpoint else None
    return Arguments(values.config, workdir, values.resume, checkpoint, _of_config(argv))


def _of_config(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments but for those that say where a run writes: with these it can be started anew."""
    words, rest = [], iter(argv)
    for word in rest:
        name, _, value = word.lstrip("-").partition("=")
        if name in ("workdir", "checkpoint"):
            if not value:
                next(rest, None)
        elif name not in ("resume", "noresume"):
            words.append(word)
    return tuple(words)


def check(config: ml_collections.ConfigDict, table: fields.Fields = common.FIELDS) -> None:
    """Raises UsageError that names the field which cannot be what it is: by itself, or beside another."""
    try:
        fields.check(config, table)
        if table is common.FIELDS:
            common.check_together(config)
    except fields.FieldError as error:
        raise UsageError(str(error)) from None


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
    except KeyboardInterrupt:  # before there was anything to report, or a second time
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _sentence(error: Exception) -> str:
    """What a person needs of the libraries' errors, which quote themselves and end in a traceback's last line."""
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        field, near = re.search(r"\w+", text), re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean {near[1]!r}?" if near else "."
        return f"the config has no field {field[0] if field else text!r}{hint}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, OSError):
        return f"cannot load the config: {lines[-1].split('] ', 1)[-1]}."
    if any("Traceback" in line for line in lines):
        return lines[-1].split("Error: ", 1)[-1]
    return " ".join(lines)
