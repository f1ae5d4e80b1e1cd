"""The command line that all experiments share: a config file, overrides of its fields, a folder to work in."""

import contextlib
import dataclasses
import difflib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from configs import common, fields
from rlswarm_jax.errors import BROKEN, DONE, INTERRUPTED, UsageError
from rlswarm_jax.files import FULL

FLAGS = ("config", "workdir", "resume", "checkpoint", "best", "plan", "memory", "doctor", "print-service")
BARE = "--print-service"
NEW_OBJECTS = 50_000  # before the collector looks: at 700, as Python has it, that is a twentieth of all a node computes
CODES = """
Exit codes: 0 done; 2 something to mend first, as the one sentence says; 75 something that passes by itself (a port or
a folder in use, an endpoint that is down): try again later; 1 a disk that is full or damaged, or an error of ours:
what was written before is whole; 130 stopped."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """config: locked, with the overrides applied. workdir: where the run writes. resume: go on with what is there.

    checkpoint: the folder of a run, for an experiment that looks at one. best: at its best instead of its newest.
    words: what was said of the config. plan: only say what a run would take of a device's memory, and whether that
    is in `memory`. doctor: only look at whether it can be run here. file: the config's, and its variant. service: only
    print that of "systemd" or "launchd"; "": run.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    resume: bool
    checkpoint: Path | None = None
    words: tuple[str, ...] = ()
    best: bool = False
    plan: bool = False
    memory: str = ""
    file: str = ""
    doctor: bool = False
    service: str = ""


def parse(argv: Sequence[str], table: fields.Fields = common.FIELDS) -> Arguments:
    """Reads `--config FILE[:variant] [--config.field=value ...] [--workdir DIR] [--resume] [--checkpoint DIR
    [--best]]`.

    A config has the name of its file, so that a copy has a folder of its own. Fields of the table that it lacks are
    as the table has them, which is said. Raises UsageError that names the wrong argument, and what may be meant.
    """
    argv, values = _config_first(_valued(argv)), flags.FlagValues()
    # the flag finds its overrides in `sys_argv` itself
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=["experiment", *argv])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("resume", False, "", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "", flag_values=values)
    flags.DEFINE_bool("best", False, "", flag_values=values)
    flags.DEFINE_bool("plan", False, "", flag_values=values)
    flags.DEFINE_string("memory", "", "", flag_values=values)
    flags.DEFINE_bool("doctor", False, "", flag_values=values)
    flags.DEFINE_string("print-service", "", "", flag_values=values)
    try:
        rest, config = values(["experiment", *argv]), values.config
        if config is not None:
            config.items()  # raises what went wrong with its file
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(
            _unknown_flag(argv, table) or _wrong_override(error, argv, table) or _sentence(error)
        ) from None
    if rest[1:]:
        raise UsageError(f"unexpected argument {rest[1]!r}; fields are set as --config.field=value.")
    if config is None:
        raise UsageError("which experiment? Give --config configs/quickstart.py (--help explains).")
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"the config is a {type(config).__name__}; expected the ConfigDict that get_config() returns.")
    with config.unlocked():
        for name in complete(config, table):
            print(f"the config has no {name}: its default, {table[name].default!r}, holds", file=sys.stderr)
        if "config.name" not in overrides(argv):
            config.name = _name(str(config.get("name", "")), config_flags.get_config_filename(values["config"]))
    _check_name(config.name, table)
    workdir = Path(values.workdir or Path("runs") / config.name / _of_agent())
    checkpoint = Path(values.checkpoint) if values.checkpoint else None
    file = config_flags.get_config_filename(values["config"])
    more = {"service": values["print-service"].value, "memory": values.memory, "file": file, "doctor": values.doctor}
    return Arguments(config, workdir, values.resume, checkpoint, of_config(argv), values.best, values.plan, **more)


def _config_first(argv: Sequence[str]) -> list[str]:
    """The library takes what changes a config only behind the config."""
    of_file = [index for index, word in enumerate(argv) if re.match(r"--?config(=|$)", word)]
    of_file += [index + 1 for index in of_file if "=" not in argv[index] and index + 1 < len(argv)]
    return [argv[index] for index in sorted(of_file)] + [w for index, w in enumerate(argv) if index not in of_file]


def _valued(argv: Sequence[str]) -> list[str]:
    """With what `--print-service` leaves open: it may be followed by a kind, and is systemd's where it is not."""
    found: list[str] = []
    for word in argv:
        if found[-1:] == [BARE] and not word.startswith("-"):
            found[-1] += f"={word}"
        else:
            found.append(BARE if word.lstrip("-") == BARE.lstrip("-") and word.startswith("-") else word)
    return [f"{word}=systemd" if word == BARE else word for word in found]


def _of_agent() -> str:
    """What a `wandb agent` calls the run that it starts, so that each has a folder of its own; else nothing."""
    return os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""


def of_config(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments but for those that say where a run writes: with these it can be started anew."""
    words, rest = [], iter(argv)
    for word in rest:
        name, _, value = word.lstrip("-").partition("=")
        if name in ("workdir", "checkpoint"):
            if not value:
                next(rest, None)
        elif name == "print-service":
            continue
        elif name not in ("resume", "noresume", "best", "nobest", "config.wandb.group", "config.wandb.tags"):
            words.append(word)
    return tuple(words)


def complete(config: ml_collections.ConfigDict | dict, table: fields.Fields = common.FIELDS) -> list[str]:
    """Gives a config, or the dicts it was written as, the fields of the table that it lacks; returns their names."""
    lacking = fields.missing(config, table)
    for name in lacking:
        fields.put(config, name, table[name].default)
    return lacking


def _name(own: str, file: str) -> str:
    """A config's name: its file's, and the variant; but another one that it gives itself, if no other file has that."""
    path, _, variant = file.partition(":")
    suffix = f"-{variant}" if variant else ""
    base = own.removesuffix(suffix)
    known = [*Path(path).parent.glob("*.py"), *Path(common.__file__).parent.glob("*.py")]
    copied = not base or base in {other.stem for other in known}
    return f"{Path(path).stem}{suffix}" if copied else own


def _check_name(name: str, table: fields.Fields) -> None:
    try:
        table["name"].range.check("name", name)
    except fields.FieldError as error:
        raise UsageError(str(error)) from None


def check(config: ml_collections.ConfigDict, table: fields.Fields = common.FIELDS) -> None:
    """Raises UsageError that names the field which cannot be what it is: by itself, or beside another."""
    try:
        fields.check(config, table)
        if table is common.FIELDS:
            common.check_together(config)
    except fields.FieldError as error:
        raise UsageError(str(error)) from None


def main(run: Callable[[Arguments], int], help_text: str, table: fields.Fields = common.FIELDS) -> None:
    """Runs an experiment as a program, and ends it with its exit code."""
    if {"-h", "-help", "--help", "--helpfull"} & set(sys.argv[1:]):
        print(f"{help_text.strip()}\n{CODES}")
        sys.exit(DONE)
    sys.exit(code_of(lambda: run(parse(sys.argv[1:], table))))


def code_of(run: Callable[[], int]) -> int:
    """The exit code of what a program does. What is foreseen ends in one sentence instead of a traceback."""
    gc.set_threshold(NEW_OBJECTS)
    try:
        return run()
    except UsageError as error:
        return _say(f"error: {error}", error.code)
    except KeyboardInterrupt:  # before there was anything to report, or a second time
        return _say("stopped", INTERRUPTED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f" {error.filename}" if error.filename else ""
        return _say(f"error: cannot write{where}: {error.strerror}; what was written before is whole.", BROKEN)


def _say(sentence: str, code: int) -> int:
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is sys.stderr:
                print(sentence, file=stream)
            stream.flush()
        except OSError:  # a log on the disk that is full: Python would end with a code of its own
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


# --- what a person needs of the libraries' errors, which quote themselves and end in a traceback's last line


def overrides(argv: Sequence[str]) -> dict[str, str]:
    """The flags that set a field, by name without dashes."""
    split = (argument.lstrip("-").partition("=") for argument in argv if argument.startswith("-"))
    return {name: value for name, _, value in split if name.startswith(("config.", "noconfig."))}


def _unknown_flag(argv: Sequence[str], table: fields.Fields) -> str | None:
    for argument in argv:
        flag = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or flag.removeprefix("no") in FLAGS or flag in overrides([argument]):
            continue
        near = [f"--{name}" for name in difflib.get_close_matches(flag, FLAGS, 1)]
        near = near or [f"--config.{name}" for name in fields.nearest(flag, table)]
        return f"there is no flag {argument.partition('=')[0]}{_hint(near)}"
    return None


def _wrong_override(error: Exception, argv: Sequence[str], table: fields.Fields) -> str | None:
    """Of a flag that sets a field which isn't there, or can't be that."""
    for flag, value in overrides(argv).items():
        name = flag.partition(".")[2]
        own = name in table or name.startswith("tasks.") or any(known.startswith(f"{name}.") for known in table)
        if not own and isinstance(error, AttributeError | KeyError):
            return fields.unknown_sentence(name, table)
        if name in table and isinstance(error, flags.IllegalFlagValueError) and f"--{flag}=" in str(error):
            return f"config.{name} is {value!r:.80}; expected {table[name].range.expected}."
    return None


def _hint(near: Iterable[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _files_like(name: str) -> list[str]:
    """Config files that may be meant by a name that is none."""
    folder = Path(name).parent if Path(name).suffix else Path("configs")
    files = {path.stem: path for path in sorted(folder.glob("*.py")) + sorted(Path("configs").glob("*.py"))}
    near = difflib.get_close_matches(Path(name).stem, files.keys() - {"__init__", "common", "fields", "sweeps"}, 1)
    return [str(files[stem]) for stem in near]


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        field, near = re.search(r"\w+", text), re.search(r'Did you mean "(\w+)"', text)
        return f"the config has no field {field[0] if field else text!r}{_hint([repr(near[1])] if near else [])}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, OSError):
        what = lines[-1].split("] ", 1)[-1]
        name = re.search("'(.+)'$", what)
        return f"cannot load the config: {what}{_hint(_files_like(name[1]) if name else [])}"
    if any("Traceback" in line for line in lines):
        return lines[-1].split("Error: ", 1)[-1]
    return " ".join(lines)
