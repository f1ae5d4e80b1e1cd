"""The files of a run by name, and how a file is written so that no kill leaves half of it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlswarm_jax.errors import DiskError, UsageError

CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.jsonl"
JOURNAL_FILE, CHECKPOINT_FOLDER, NODE_FILE = "journal.sqlite", "checkpoints", "node.json"
STATUS_FILE = "status.json"  # what a live node does at this moment
PROFILE_FOLDER = "profile"
PAGE_FILE = "page.html"  # of a run that is over, complete in itself
SWEEP_FILE = "sweep.json"  # in the folder of a sweep, whose runs are in POINT/seed-N
BEST_FOLDER = "best"  # in it a folder for each node of the process, by index
ALONE_FOLDER = "alone"  # of nodes alone beside a swarm: running/alone.py
SAMPLED, TOGETHER = "sampled", "together"
ALONE = {SAMPLED: "alone that samples as much as one", TOGETHER: "alone that samples as much as all"}
WEIGHTS_FOLDER = "weights"  # a live node's latest, for those who check it
PUBLISH_FOLDER, PUBLISHED_FILE = "publish", "published.jsonl"  # weights that wait to leave, and that have left
EVIDENCE_FOLDER = "evidence"  # weights of others by which it found them out, for a court
CHAIN_FOLDER = "chain"  # in a node's: its outbox; in a swarm's: the embedded development network
FULL = (errno.ENOSPC, errno.EDQUOT)


def cannot_write(path: Path, error: OSError, hint: str = "") -> UsageError:
    """What to raise where a file cannot be written. hint: what to do, unless the disk is full."""
    full = error.errno in FULL
    return (DiskError if full else UsageError)(f"cannot write {path}: {error.strerror}{'' if full else hint}.")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one. Raises UsageError if the disk won't take it."""
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of another one when it is whole. Raises UsageError as `write_whole`."""
    partial = partial_of(path)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise cannot_write(path, error) from None


def partial_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def node_folders(directory: Path) -> list[Path]:
    """Of a swarm's run, those of its nodes in their order; of any other folder none."""
    found = [path for path in directory.glob("node-*") if path.is_dir() and path.name[len("node-") :].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[len("node-") :]))
