"""The folder of a run, simulated, of a local swarm or of a single node, as the page reads it: nothing is changed."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rlswarm_jax import journal, status
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import (
    CONFIG_FILE,
    JOURNAL_FILE,
    METRICS_FILE,
    NODE_FILE,
    STATUS_FILE,
    SUMMARY_FILE,
    node_folders,
)
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, JournalError
from rlswarm_jax.page.rows import Course, Log
from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import STAGES, RecordError

PUBLISH, GATHER = "Publish", "Gather"
SILENT = 30.0  # seconds without a sign of life, after which a run whose end nobody wrote down counts as stopped


@dataclasses.dataclass(frozen=True)
class Member:
    """A node whose folder this is. index: in the run. inner: in its journal and metrics. author: b"" if unknown."""

    index: int
    inner: int
    directory: Path
    author: bytes
    course: Course

    @property
    def name(self) -> str:
        return self.course.name

    @property
    def journal(self) -> Path:
        return self.directory / JOURNAL_FILE


class Folder:
    """`refresh` before it is looked at. Raises UsageError if it is the folder of no run."""

    def __init__(self, directory: Path):
        self.directory, self.over = directory, False  # over: whoever looks knows that it is
        self.config = _config(directory)
        self.summary: dict[str, Any] | None = None
        self._logs: dict[Path, Log] = {}
        self._authors: dict[tuple[Path, int], bytes] = {}
        self._summary_at = 0.0
        self.members: list[Member] = []

    @property
    def homes(self) -> list[Path]:
        """Where journals are: of each node of a swarm, or the folder itself."""
        return node_folders(self.directory) or [self.directory]

    @property
    def kind(self) -> str:
        if self.config.get("driver") == "simulate":
            return "simulated"
        return "swarm" if node_folders(self.directory) else "node"

    @property
    def stages(self) -> tuple[str, ...]:
        return STAGES[: int(self.config.get("game", {}).get("stages", 1))]

    def refresh(self) -> bool:
        """Takes what is new; whether there is anything."""
        new, homes = False, self.homes
        for home in homes:
            log = self._logs.setdefault(home, Log(home / METRICS_FILE))
            new |= log.refresh()
        new |= self._read_summary()
        if new or not self.members:
            self.members = list(self._find(homes))
        return new

    def _read_summary(self) -> bool:
        path = self.directory / SUMMARY_FILE
        with contextlib.suppress(OSError):
            at = path.stat().st_mtime
            if at != self._summary_at:
                self._summary_at = at
                self.summary = _json(path)
                return True
            return False
        gone, self.summary, self._summary_at = self.summary is not None, None, 0.0
        return gone

    def _find(self, homes: Iterable[Path]) -> Iterable[Member]:
        for home in homes:
            for inner, course in sorted(self._logs[home].courses.items()):
                number = home.name.removeprefix("node-")
                index = inner if home == self.directory else int(number)
                yield Member(index, inner, home, self._author(home, inner, course), course)

    def _author(self, home: Path, inner: int, course: Course) -> bytes:
        if (home, inner) not in self._authors:
            with contextlib.suppress(JournalError):
                for node, entry in journal.first(home / JOURNAL_FILE, PUBLISH).items():
                    for signed in records_of(entry):
                        self._authors[home, node] = signed.record.author
        return self._authors.get((home, inner), b"")

    # --- who is who

    @property
    def names(self) -> dict[str, str]:
        """By author, in hex, of the nodes and of whoever was heard; only a node's own are surely told apart."""
        found = {member.author.hex(): member.name for member in self.members if member.author}
        for member in self.members:
            for prefix in ("learned_from/", "received_from/"):
                for author in member.course.names(prefix):
                    if author not in found:
                        with contextlib.suppress(ValueError):
                            found[author] = friendly_name(bytes.fromhex(author))
        return found

    def member(self, index: int) -> Member | None:
        return next((member for member in self.members if member.index == index), None)

    def of_author(self, author: bytes) -> Member | None:
        return next((member for member in self.members if member.author == author), None)

    # --- journals

    def entries(self, member: Member, rounds: range, *kinds: str) -> list[Entry]:
        """Rows of some rounds; none where the journal is gone, or cut off behind a checkpoint."""
        try:
            return journal.look_at(member.journal, member.inner, rounds, kinds)
        except JournalError:
            return []

    def published(self, member: Member, round_: int) -> list[SignedRecord]:
        """What a node has said in a round, as far as its journal has it."""
        return [one for entry in self.entries(member, range(round_, round_ + 1), PUBLISH) for one in records_of(entry)]

    def heard(self, member: Member, rounds: range) -> list[SignedRecord]:
        return [one for entry in self.entries(member, rounds, GATHER) for one in records_of(entry)]

    def record(self, reader: Member, author: bytes, round_: int, stage: str) -> SignedRecord | None:
        """An author's record, by its own journal or by that of one who has read it."""
        own = self.of_author(author)
        staleness = int(self.config["swarm"].get("max_staleness", 4))
        found = self.published(own, round_) if own else self.heard(reader, range(round_, round_ + staleness + 2))
        at = (author, round_, stage)
        return next((one for one in found if (one.record.author, one.record.round, one.record.stage) == at), None)

    # --- is it going on?

    def told(self, member: Member) -> status.Told | None:
        """What a live node says that it does at this moment, if its process lives."""
        return None if self.over or self.kind == "simulated" else status.read(member.directory / STATUS_FILE)

    @property
    def status(self) -> str:
        """running, finished or stopped."""
        if self.over:
            return str((self.summary or {}).get("status", "stopped"))
        alive = any(_lives(home) for home in self.homes)
        if self.summary and not alive and self._newest() <= self._summary_at + 1:
            return str(self.summary.get("status", "stopped"))
        return "running" if alive or time.time() - self._newest() < SILENT else "stopped"

    def _newest(self) -> float:
        """When any of its journals or metrics was written last."""
        at = [0.0]
        for home in self.homes:
            for name in (METRICS_FILE, JOURNAL_FILE, f"{JOURNAL_FILE}-wal"):
                with contextlib.suppress(OSError):
                    at.append((home / name).stat().st_mtime)
        return max(at)

    def signature(self) -> tuple:
        """Changes when anything here does that the page shows; a few calls of the system."""
        found = []
        for home in self.homes:
            for name in (METRICS_FILE, f"{JOURNAL_FILE}-wal", JOURNAL_FILE, NODE_FILE, STATUS_FILE):
                with contextlib.suppress(OSError):
                    one = (home / name).stat()
                    found.append((name, one.st_size, one.st_mtime_ns))
        with contextlib.suppress(OSError):
            found.append((SUMMARY_FILE, 0, (self.directory / SUMMARY_FILE).stat().st_mtime_ns))
        return tuple(found)


def records_of(entry: Entry) -> list[SignedRecord]:
    """Of a journaled Publish or Gather. What is no record is left out: the journal may be somebody else's."""
    found: list[SignedRecord] = []
    try:
        if entry.kind == GATHER:
            raws = msgspec.msgpack.decode(entry.result, type=list[bytes])
        else:
            raws = [msgspec.msgpack.decode(entry.result, type=bytes)]
    except msgspec.MsgspecError:
        return found
    for raw in raws:
        with contextlib.suppress(RecordError):
            found.append(open_envelope(raw))
    return found


def _lives(home: Path) -> bool:
    """Whether a live node's process is there, by the file that it takes away when it ends."""
    try:
        os.kill(int(_json(home / NODE_FILE)["pid"]), 0)
    except (KeyError, TypeError, ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _config(directory: Path) -> dict[str, Any]:
    """As the folder has it, else as its summary does."""
    for found in (_json(directory / CONFIG_FILE), _json(directory / SUMMARY_FILE).get("config")):
        if isinstance(found, dict) and isinstance(found.get("swarm"), dict):
            return found
    raise UsageError(f"{directory} is the folder of no run: there is no {CONFIG_FILE} of one in it.")


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is none, or something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}  # type: ignore[return-value]
