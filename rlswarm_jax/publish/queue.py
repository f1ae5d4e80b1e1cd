"""What is to be published, on disk before anything is sent, and what has been: no kill loses or repeats a publication.

A publication is staged as the very files that are sent, then described; from then on it is sent until it is there, and
a line in `published.jsonl` says where. Sending the same files again changes nothing (see `targets`), so a kill between
the two costs a look. Of a node and a place only the newest waits: a hub that is away for weeks fills no disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import PUBLISH_FOLDER, PUBLISHED_FILE, cannot_write, write_whole
from rlswarm_jax.publish import targets
from rlswarm_jax.publish.targets import PublishError


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """weights: the tensors' hash, in hex. node: its index in the folder. round: the last that it had learned in.

    to: the target's address. uri: of the publication, once it is there.
    """

    weights: str
    node: int
    name: str
    round: int
    to: str
    private: bool = False
    uri: str = ""

    @property
    def key(self) -> str:
        return f"{self.node}-{self.weights[:16]}-{hashlib.sha256(self.to.encode()).hexdigest()[:8]}"


class Queue:
    """Of a folder. One process at a time sends (`folder.lock` on `root`), any may look."""

    def __init__(self, folder: Path):
        self.root, self._file = folder / PUBLISH_FOLDER, folder / PUBLISHED_FILE

    def stage(self, entry: Entry, write: Callable[[Path], None], again: bool = False) -> bool:
        """Keeps a publication until it is sent; whether it is one that was not there or sent yet, or is so `again`.

        write: makes its files in an empty folder. Raises UsageError if the disk does not take them, and as `write`.
        """
        if not again and entry.key in {one.key for one in [*self.sent(), *self.waiting()]}:
            return False
        partial = self.root / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            shutil.rmtree(self.root / entry.key, ignore_errors=True)
            partial.rename(self.root / entry.key)
        except OSError as error:
            raise cannot_write(self.root, error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        write_whole(self._described(entry), msgspec.json.encode(entry).decode() + "\n")
        for old in self.waiting():
            if (old.node, old.to) == (entry.node, entry.to) and old.key != entry.key:
                self._drop(old)
        return True

    def waiting(self) -> list[Entry]:
        """What is staged and not sent, in order of rounds."""
        found = []
        for path in sorted(self.root.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
            except (msgspec.MsgspecError, OSError):
                continue  # written whole: it is not ours, or was just sent
        return sorted(found, key=lambda one: (one.round, one.key))

    def send(self, entry: Entry) -> Entry:
        """Sends a staged publication, and writes down where it is. Raises PublishError, UsageError."""
        target = targets.read(entry.to)
        if target is None:
            raise PublishError(f"{entry.to!r} is no place for weights: expected {targets.WANTED}.")
        message = f"{entry.name} after round {entry.round}"
        uri = target.put(self.root / entry.key, entry.weights[:16], entry.private, message)
        done = msgspec.structs.replace(entry, uri=uri)
        if done not in self.sent():  # a kill came before the rest of this
            self._note(done)
        self._drop(entry)
        return done

    def sent(self) -> list[Entry]:
        """All publications in order."""
        try:
            lines = self._file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"cannot read {self._file}: {error.strerror}.") from None
        found = []
        for line in lines:
            try:
                found.append(msgspec.json.decode(line, type=Entry))
            except msgspec.MsgspecError:
                continue  # a power failure's half
        return found

    def _note(self, entry: Entry) -> None:
        line = json.dumps(msgspec.to_builtins(entry)).encode() + b"\n"
        try:
            with self._file.open("ab+", buffering=0) as file:
                cut = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"  # by a power failure
                file.write(b"\n" * bool(cut) + line)
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._file, error) from None

    def _drop(self, entry: Entry) -> None:
        self._described(entry).unlink(missing_ok=True)
        shutil.rmtree(self.root / entry.key, ignore_errors=True)

    def _described(self, entry: Entry) -> Path:
        return self.root / f"{entry.key}.json"
