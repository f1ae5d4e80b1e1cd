"""The folder of a run: what is in it, and whether a run can begin or go on there."""

import copy
import fcntl
import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ml_collections

from configs import common, fields
from rlswarm_jax import identity
from rlswarm_jax.errors import TransientError, UsageError
from rlswarm_jax.files import (
    CHAIN_FOLDER,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    JOURNAL_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    cannot_write,
    node_folders,
    partial_of,
    write_whole,
)
from rlswarm_jax.identity import KeyFileError
from rlswarm_jax.journal import Journal, has_said_something
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.running.arguments import complete

# what a run may be resumed with another value of: it says where things are, not what is played; the journal itself
# refuses another key
CHANGEABLE = (
    *("swarm.bootnodes", "swarm.host", "swarm.port", "swarm.announce", "swarm.deadline", "swarm.target_peers"),
    *("swarm.key", "swarm.health", "disk"),
    *("checkpoints", "publish", "profile", "wandb.mode", "wandb.group", "wandb.tags"),
    *("audit.share", "audit.megabytes", "chain.upgrades"),
    "devices",
)


class InUseError(TransientError):
    """Another process is at work there."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keeps others from using a folder or a file at the same time, until this process ends. Raises InUseError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"another process is using {path}: stop it, or choose another.") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def opened(config: ml_collections.ConfigDict, workdir: Path, resume: bool) -> Iterator[bool]:
    """Makes the folder of a run ready and keeps others out; yields whether there is a run in it to go on with.

    Raises UsageError if it cannot be this run's.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(workdir, error, "; choose another --workdir") from None
    with lock(workdir):
        resumes = prepare_folder(config, workdir, resume)
    with lock(workdir):  # a new one, where a finished run was moved aside
        yield resumes


def prepare_folder(config: ml_collections.ConfigDict, workdir: Path, resume: bool) -> bool:
    """Makes the folder ready; returns whether there is a run in it to go on with. Raises UsageError.

    A run that said nothing yet, because its first start failed, is none: another config may begin there.
    """
    stored = workdir / CONFIG_FILE
    wanted = json.loads(config.to_json_best_effort())
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        earlier = _stored_config(stored)
        if earlier is not None and status(workdir) == "finished":
            moved = workdir.with_name(f"{workdir.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
            workdir.rename(moved)
            print(f"the finished run there was moved to {moved}")
            workdir.mkdir()
            earlier = None
        if earlier is None and any(path.name not in (KEY_FILE, partial_of(stored).name) for path in workdir.iterdir()):
            raise UsageError(f"{workdir} holds files but no run: choose another --workdir.")
        if earlier is not None and not _has_begun(workdir):
            _clear(workdir, earlier)
            earlier = None
        if earlier is None:
            if not os.access(workdir, os.W_OK):
                raise PermissionError(13, "Permission denied")
            write_whole(stored, json.dumps(wanted, indent=2) + "\n")
            return False
    except OSError as error:
        raise cannot_write(workdir, error, "; choose another --workdir") from None
    if not resume:
        raise UsageError(f"{workdir} holds an unfinished run: add --resume to go on, or choose another --workdir.")
    differing = first_difference(_brought_up_to_date(earlier, wanted), wanted)
    if differing:
        raise UsageError(f"the run in {workdir} has another config.{differing}: choose another --workdir.")
    write_whole(stored, json.dumps(wanted, indent=2) + "\n")
    return True


def read_config(directory: Path) -> ml_collections.ConfigDict:
    """Of a node's or a run's folder, as it is written there, with the defaults of what versions before did not have.

    Raises UsageError if there is none.
    """
    path = directory / CONFIG_FILE
    try:
        found = json.loads(path.read_text())
        complete(found)
        return ml_collections.ConfigDict(found).lock()
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: name the folder of a node that has run.") from None
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{path} is not the config of a node.") from None


def state(config: ml_collections.ConfigDict, workdir: Path) -> tuple[str, str | None]:
    """Of the run that a folder is for: "new", "begun" or "finished", and the field in which a run there is another.

    Raises UsageError if something else is there.
    """
    earlier = _stored_config(workdir / CONFIG_FILE)
    if earlier is None or not _has_begun(workdir):
        return "new", None
    wanted = json.loads(config.to_json_best_effort())
    differs = first_difference(_brought_up_to_date(earlier, wanted, say=lambda sentence: None), wanted)
    return "finished" if status(workdir) == "finished" else "begun", differs


def in_use(workdir: Path) -> bool:
    """Whether another process is at work there."""
    try:
        with lock(workdir):
            return False
    except InUseError:
        return True
    except FileNotFoundError:
        return False


def _stored_config(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not JSON of a config; choose another --workdir.")
    return found


def _brought_up_to_date(
    earlier: dict[str, Any], wanted: dict[str, Any], say: Callable[[str], object] = print
) -> dict[str, Any]:
    """A config that another version stored, with this one's fields; says what is new and what is gone."""
    found = copy.deepcopy(earlier)
    if new := complete(found):
        defaults = ", ".join(f"config.{name} {fields.value_of(found, name)!r}" for name in new)
        say(f"this run began with a version that did not have these fields, whose defaults hold: {defaults}")
    if gone := [name for name in fields.unknown(found, common.FIELDS) if not fields.has(wanted, name)]:
        for name in gone:
            fields.drop(found, name)
        say(f"this run began with fields that are no more, and have no effect: {', '.join(gone)}")
    return json.loads(json.dumps(found))  # its tuples are lists in a file


def _nodes(workdir: Path) -> list[Path]:
    """The folders of a run: its own, and those of its nodes in their order."""
    return [workdir, *node_folders(workdir)]


def _has_begun(workdir: Path) -> bool:
    """Whether a node of the run has said anything, which it must not contradict, or learned, which would be lost."""
    for node in _nodes(workdir):
        metrics, journal = node / METRICS_FILE, node / JOURNAL_FILE
        if (metrics.exists() and metrics.stat().st_size) or (journal.exists() and has_said_something(journal)):
            return True
        if any(path.name.isdecimal() for path in (node / CHECKPOINT_FOLDER).glob("*")):
            return True
    return False


def _clear(workdir: Path, earlier: dict[str, Any]) -> None:
    """What a start that failed has left and another config cannot use: it begins in an empty folder, but for its keys.

    Of the keys those go that anyone can derive from the earlier seed: another seed has others.
    """
    folders = _nodes(workdir)
    for node in folders:
        if (node / JOURNAL_FILE).exists():
            journal = Journal(node / JOURNAL_FILE)  # it keeps its id, by which a key knows it
            journal.truncate(0)
            journal.close()
    for index, node in enumerate(folders[1:]):
        key, derived = node / KEY_FILE, identity.simulated(earlier.get("seed", 0), index)
        with suppress(KeyFileError):
            if key.exists() and identity.load_or_create(key).author == derived.author:
                key.unlink()
    if fields.has(earlier, "chain.endpoint") and earlier["chain"]["endpoint"] in common.LOCAL_CHAINS:
        for node in folders:
            shutil.rmtree(node / CHAIN_FOLDER, ignore_errors=True)


def status(workdir: Path) -> str | None:
    """As the summary of the run there says; None if it has none."""
    try:
        return json.loads((workdir / SUMMARY_FILE).read_text())["status"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def earlier_seconds(workdir: Path) -> float:
    rows = read_rows(workdir / METRICS_FILE) if (workdir / METRICS_FILE).exists() else []
    return max((row["wall_seconds"] for row in rows), default=0.0)


def first_difference(ours: Any, theirs: Any, path: str = "", but: Collection[str] = CHANGEABLE) -> str | None:
    """The first field in which two configs differ, but for some."""
    if path in but:
        return None
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            found = first_difference(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name, but)
            if found:
                return found
        return None
    return None if ours == theirs else path


@contextmanager
def stop_on_signal(answer: str = "stopping after what is being computed ...") -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of the first; a second one stops at once.

    Whoever has lost the terminal goes on without it, unless hang-ups were ignored or answered otherwise already.
    """
    received: list[int] = []

    def handler(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print(f"\n{answer}", file=sys.stderr, flush=True)

    handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: handler, signal.SIGTERM: handler}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        handlers[signal.SIGHUP] = _leave_terminal
    previous = {number: signal.signal(number, act) for number, act in handlers.items()}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _leave_terminal(number: int, _: object) -> None:
    """What is written to one that is gone would be an error; a log has it all."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if os.isatty(stream) or _is_gone(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _is_gone(stream: int) -> bool:
    """A terminal that has hung up says that it is none, and is a device of characters still."""
    try:
        return stat.S_ISCHR(os.fstat(stream).st_mode)
    except OSError:
        return False
