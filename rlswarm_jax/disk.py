"""How much of the disk a node's folder takes, part by part, and what goes first where that is more than it may be."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rlswarm_jax import files
from rlswarm_jax.journal import JournalError
from rlswarm_jax.metrics import MetricsError

log = logging.getLogger("rlswarm_jax.node")
LOG_FILE, LOG_BYTES = "log.txt", 4 << 20  # of a log, and of the one before it
ENOUGH = 0.9  # of the quota: what is let go is enough for a while
MB = 1 << 20
WANDB = "wandb"
PARTS = {  # by the beginning of a path's first name; anything else is "other"
    files.JOURNAL_FILE: "journal",
    files.CHECKPOINT_FOLDER: "checkpoints",
    files.BEST_FOLDER: "checkpoints",
    files.WEIGHTS_FOLDER: "weights",
    files.EVIDENCE_FOLDER: "weights",
    files.PUBLISH_FOLDER: "publish",
    files.CHAIN_FOLDER: "chain",
    files.METRICS_FILE: "metrics",
    files.PROFILE_FOLDER: "traces",
    LOG_FILE: "logs",
    WANDB: "wandb",
}


def taken(folder: Path) -> dict[str, int]:
    """Bytes on the disk, by part; what goes while this looks is left out."""
    found: dict[str, int] = {}
    for entry in _scan(folder):
        part = next((part for name, part in PARTS.items() if entry.name.startswith(name)), "other")
        found[part] = found.get(part, 0) + _size(entry)
    return found


def _scan(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _size(entry: os.DirEntry) -> int:
    """Of a file, or all in a folder; a link is its own few bytes."""
    try:
        told = entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            return sum(map(_size, _scan(Path(entry.path))))
        return told.st_blocks * 512
    except OSError:
        return 0


class Quota:
    """A node's. megabytes: 0 for none. steps: what goes, in that order, by name: each is called until there is room,
    and lets go of what it can. What no step lets go of stays: the key, the newest checkpoint and what came since.
    """

    def __init__(self, folder: Path, megabytes: int, steps: Mapping[str, Callable[[], object]]):
        self._folder, self._limit, self._steps = folder, megabytes * MB, steps
        self._said = False

    def keep(self) -> dict[str, float]:
        """Makes room if it must; metrics of what is taken then. Raises nothing that a disk can cause."""
        found = taken(self._folder)
        if self._limit and sum(found.values()) > self._limit:
            found = self._make_room(found)
        metrics = {f"disk/{part}": round(size / MB, 3) for part, size in sorted(found.items())}
        if self._limit:
            metrics["disk/over"] = round(max(0, sum(found.values()) - self._limit) / MB, 3)
        return metrics

    def _make_room(self, found: dict[str, int]) -> dict[str, int]:
        before = sum(found.values())
        for name, let_go in self._steps.items():
            try:
                let_go()
            except (OSError, MetricsError, JournalError) as error:
                log.warning("cannot make room on the disk of %s: %s", name, error)
            found = taken(self._folder)
            if sum(found.values()) <= ENOUGH * self._limit:
                break
        now, limit = sum(found.values()), self._limit
        if now < before:
            log.info("%.1f of %.1f MB were let go on the disk, up to %s", (before - now) / MB, before / MB, name)
        if now > limit and not self._said:
            log.warning(
                "this node takes %.1f MB of the disk, and nothing more can go; raise config.disk.megabytes (%.0f), or "
                "lower config.checkpoints.keep or config.audit.megabytes",
                now / MB,
                limit / MB,
            )
        self._said = now > limit
        return found


def rotate(path: Path) -> None:
    """Of a log that another process appends to: what is there becomes the one before, and it goes on empty."""
    if path.exists() and path.stat().st_size > LOG_BYTES:
        shutil.copyfile(path, files.partial_of(path))
        files.partial_of(path).replace(path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)


def drop_log(folder: Path) -> None:
    """The older one."""
    (folder / f"{LOG_FILE}.1").unlink(missing_ok=True)


def drop_traces(folder: Path) -> None:
    shutil.rmtree(folder / files.PROFILE_FOLDER, ignore_errors=True)


def drop_wandb(folder: Path) -> None:
    """Of Weights & Biases, the runs of earlier processes; the present one writes still."""
    home = folder / WANDB
    present = (home / "latest-run").resolve()
    for path in home.glob("*run-*"):
        if path.is_dir() and not path.is_symlink() and path.resolve() != present:
            shutil.rmtree(path, ignore_errors=True)
