"""The folder of a run: what is in it, and whether a run can begin or go on there."""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_collections

from experiments.cli import TransientError, UsageError
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.metrics import read_rows

CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.jsonl"
JOURNAL_FILE, CHECKPOINT_FOLDER, NODE_FILE = "journal.sqlite", "checkpoints", "node.json"
# what a run may be resumed with another value of: it says where things are, not what is played; the journal itself
# refuses another key
CHANGEABLE = (
    *("swarm.bootnodes", "swarm.host", "swarm.port", "swarm.deadline", "swarm.target_peers", "swarm.key"),
    "wandb.mode",
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
        raise UsageError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir.") from None
    with lock(workdir):
        resumes = prepare_folder(config, workdir, resume)
    with lock(workdir):  # a new one, where a finished run was moved aside
        yield resumes


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one. Raises UsageError if the disk won't take it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.") from None


def prepare_folder(config: ml_collections.ConfigDict, workdir: Path, resume: bool) -> bool:
    """Makes the folder ready; returns whether there is a run in it to go on with. Raises UsageError."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        stored = workdir / CONFIG_FILE
        wanted = json.loads(config.to_json_best_effort())
        earlier = json.loads(stored.read_text()) if stored.exists() else None
        finished = earlier is not None and _status(workdir) == "finished"
        if finished:
            aside = workdir.with_name(f"{workdir.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
            workdir.rename(aside)
            print(f"the finished run there was moved to {aside}")
            workdir.mkdir()
            earlier = None
        if earlier is None:
            if any(path.name != KEY_FILE for path in workdir.iterdir()):
                raise UsageError(f"{workdir} holds files but no run: choose another --workdir.")
            if not os.access(workdir, os.W_OK):
                raise PermissionError(13, "Permission denied")
            write_whole(stored, json.dumps(wanted, indent=2) + "\n")
            return False
    except OSError as error:
        raise UsageError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UsageError(f"{workdir / CONFIG_FILE} is not JSON; choose another --workdir.") from None
    if not resume:
        raise UsageError(f"{workdir} holds an unfinished run: add --resume to go on, or choose another --workdir.")
    differing = first_difference(earlier, wanted)
    if differing:
        raise UsageError(f"the run in {workdir} has another config.{differing}: choose another --workdir.")
    write_whole(stored, json.dumps(wanted, indent=2) + "\n")
    return True


def _status(workdir: Path) -> str | None:
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
    """Collects SIGINT and SIGTERM instead of dying of the first; a second one stops at once."""
    received: list[int] = []

    def handler(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print(f"\n{answer}", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
