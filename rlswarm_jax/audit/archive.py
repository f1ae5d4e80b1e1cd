"""The weights a node sampled with, kept so that it can show them."""

import dataclasses
import hashlib
import itertools
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from rlswarm_jax.audit import patches
from rlswarm_jax.audit.patches import PatchError
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import aside, cannot_write
from rlswarm_jax.qwen.naming import Tensors, tensors_hash
from rlswarm_jax.records.schema import U63, Hash

log = logging.getLogger("rlswarm_jax.audit")
LONGEST = 32  # patches on a whole one, before there is another whole one
MAX_CHANGES = 8  # entries that they change, over those there are
MAX_PARTS = 64  # that lead to weights
FILE = re.compile(r"(\d{8,})-(\d+)-([0-9a-f]{64})\.patch")  # the version's number, its first round, SHA-256
PARTIAL = ".partial.patch"


class Part(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A patch that is kept. hash: SHA-256 of its bytes. weights, parent: what it leads to, and from if it isn't whole.

    changed: entries that it changes; all of a whole one.
    """

    hash: Hash
    size: U63
    changed: U63
    parent: Hash | None
    weights: Hash


@dataclasses.dataclass(eq=False)
class Version:
    """Weights that are kept. first, last: rounds they were used in. link: from other ones. whole: by itself."""

    weights: bytes
    first: int
    last: int
    link: Part | None = None
    whole: Part | None = None

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.link, self.whole) if part is not None]


class Archive:
    """A node's own weights of the last `keep` rounds, as far as `max_bytes` go; while one is added, a version more.

    Versions follow each other by sparse patches where these are short. One is kept whole, too, where the patches since
    the last whole one would be more than `LONGEST`, larger than that, or too much work: so nobody takes more than two
    wholes to be shown any weights. folder: where they survive a restart; None keeps them in memory. One thread adds,
    any may ask. Raises UsageError where there can't be such a folder.

    damaged: files that were not what had been written, and were dropped. unkept: versions that the disk or `max_bytes`
    did not take.
    """

    def __init__(self, folder: Path | None, max_bytes: int, keep: int):
        self.damaged = self.unkept = 0
        self._max_bytes, self._keep, self._lock = max_bytes, keep, threading.Lock()
        self._versions: dict[bytes, Version] = {}  # by weights, as they were added
        self._files: dict[bytes, tuple[str, int]] = {}  # names and sizes, by part
        self._latest: tuple[bytes, Tensors] | None = None
        self._number = self._round = 0
        self._full = False
        self._store: _Folder | _Memory = _Memory() if folder is None else _Folder(folder)
        self._load()

    def add(self, tensors: Tensors, round_: int) -> bytes:
        """The weights' name; from now on they can be shown. Where there is no room for them, that is said once."""
        weights = tensors_hash(tensors)
        self._round, before = max(self._round, round_), self.unkept
        if self._latest and (earlier := self._versions.get(self._latest[0])):
            earlier.last = max(earlier.last, round_ - 1)
        if (known := self._versions.get(weights)) is not None:
            known.last = max(known.last, round_)
        else:
            self._write(weights, tensors, round_)
        if self._latest is None or self._latest[0] != weights:
            self._latest = weights, {name: a if a.flags.owndata else a.copy() for name, a in tensors.items()}
        self._forget()
        self._full = self.unkept > before
        return weights

    def halve(self) -> None:
        """Keeps the latest versions only, of half the bytes that it has now, this time."""
        most, self._max_bytes = self._max_bytes, sum(size for _, size in self._files.values()) // 2
        try:
            self._forget()
        finally:
            self._max_bytes = most

    def take_counts(self) -> Counter[str]:
        """What went wrong since the last call: files that were dropped, versions that were not kept."""
        counts = Counter({"audit/weights_damaged": self.damaged, "audit/weights_unkept": self.unkept})
        self.damaged = self.unkept = 0
        return +counts

    def path(self, weights: bytes, have: Collection[bytes]) -> list[Part]:
        """What leads to weights, the first part first: from some that the asker has or from nothing, whichever is less.

        At most `MAX_PARTS`; none if they can't be shown.
        """
        links: list[Part] = []
        found: list[Part] = []
        with self._lock:
            while weights not in have:
                version = self._versions.get(weights)
                if version is None:
                    return found
                if version.whole is not None and (not found or _less([version.whole, *links], found)):
                    found = [version.whole, *reversed(links)]
                if version.link is None or len(links) == MAX_PARTS or (found and not _less(links, found)):
                    return found
                links.append(version.link)
                weights = cast(bytes, version.link.parent)
        return found if found and not _less(links, found) else links[::-1]

    def read(self, part: bytes, start: int, size: int) -> bytes:
        """Bytes of the part of that hash; none where it is not kept any more, or from its end on."""
        with self._lock:
            name, end = self._files.get(part, ("", 0))
        if start >= end:
            return b""
        try:
            return self._store.read(name, start, size)
        except OSError as error:
            log.warning("cannot show weights: %s: %s.", name, error.strerror)
            return b""

    def _write(self, weights: bytes, tensors: Tensors, round_: int) -> None:
        before, old = self._latest if self._latest and self._latest[0] in self._versions else (b"", None)
        version = Version(weights, round_, round_)
        try:
            self._put(version, patches.encode(tensors, old, weights=weights, parent=before))
            if version.link is not None:
                *chain, base = self._chain(self._versions[before])
                links = [cast(Part, one.link) for one in chain] + [version.link]
                work, whole = sum(link.changed for link in links), cast(Part, base.whole)
                if len(links) > LONGEST or _size(links) > whole.size or work > MAX_CHANGES * whole.changed:
                    self._put(version, patches.encode(tensors, None, weights=weights))
        except UsageError as error:  # of the disk
            self._refuse(str(error))
        self._number += 1
        if version.parts:
            with self._lock:
                self._versions[weights] = version

    def _put(self, version: Version, patch: bytes) -> None:
        part = _part(patches.header(patch), hashlib.sha256(patch).digest(), len(patch))
        name = f"{self._number:08}-{version.first}-{part.hash.hex()}.patch"
        self._store.write(name, patch)
        self._note(version, part, name)

    def _note(self, version: Version, part: Part, name: str) -> None:
        with self._lock:
            self._files[part.hash] = name, part.size
            if part.parent is None:
                version.whole = part
            else:
                version.link = part

    def _chain(self, version: Version) -> list[Version]:
        """From this one back to one that is whole."""
        chain = [version]
        while chain[-1].whole is None:
            chain.append(self._versions[cast(bytes, cast(Part, chain[-1].link).parent)])
        return chain

    def _forget(self) -> None:
        """All that leads to no version of the last rounds; of these the oldest, while they are too large."""
        kept = [version for version in self._versions.values() if version.last > self._round - self._keep]
        kept.sort(key=lambda version: version.last)
        while True:
            needed = {one.weights: one for version in kept for one in self._chain(version)}
            if not kept or sum(_size(version.parts) for version in needed.values()) <= self._max_bytes:
                break
            if len(kept) > 1 or not self._alone(kept[0]):
                kept.pop(0)
                if not kept:
                    self._refuse(f"one version exceeds the {self._max_bytes} bytes that are kept of them.")
        for version in [version for weights, version in self._versions.items() if weights not in needed]:
            self._drop(version)

    def _alone(self, version: Version) -> bool:
        """Keeps the latest version whole in the place of what led to it, if it isn't kept so."""
        if version.whole is not None or self._latest is None or self._latest[0] != version.weights:
            return False
        try:
            self._put(version, patches.encode(self._latest[1], None, weights=version.weights))
        except UsageError as error:
            self._refuse(str(error))
            return False
        self._remove(cast(Part, version.link))
        version.link = None
        return True

    def _refuse(self, why: str) -> None:
        self.unkept += 1
        if not self._full:
            log.warning("peers that audit can't be shown all weights: %s", why)
        self._full = True

    def _drop(self, version: Version) -> None:
        with self._lock:
            del self._versions[version.weights]
        for part in version.parts:
            self._remove(part)

    def _remove(self, part: Part) -> None:
        with self._lock:
            name, _ = self._files.pop(part.hash)
        self._store.drop(name)

    def _load(self) -> None:
        """What is there from before. What leads nowhere without a damaged file goes with it."""
        for name in self._store.names():
            try:
                match = FILE.fullmatch(name)
                if match is None:
                    raise PatchError("it is of another version")
                part = self._store.part(name)
                if part.hash.hex() != match[3]:
                    raise PatchError("it is not what was written")
            except (OSError, PatchError) as error:
                log.warning("weights that were kept in %s can't be shown any more: %s.", name, error)
                self.damaged += 1
                self._store.drop(name)
                continue
            number, first = int(match[1]), int(match[2])
            version = self._versions.setdefault(part.weights, Version(part.weights, first, first))
            self._note(version, part, name)
            self._number = number + 1
        for version in list(self._versions.values()):
            if version.whole is None and cast(Part, version.link).parent not in self._versions:
                self._drop(version)
        for version, after in itertools.pairwise(self._versions.values()):
            version.last = max(version.first, after.first - 1)


class Shelves:
    """What several archives show: a node's own weights, and those of others by which it found somebody out."""

    def __init__(self, *archives: Archive):
        self._archives = archives

    def path(self, weights: bytes, have: Collection[bytes]) -> list[Part]:
        return next(filter(None, (archive.path(weights, have) for archive in self._archives)), [])

    def read(self, part: bytes, start: int, size: int) -> bytes:
        return next(filter(None, (archive.read(part, start, size) for archive in self._archives)), b"")


def at_hand(folder: Path) -> dict[bytes, Callable[[], Tensors]]:
    """What loads the weights that an archive keeps there, by name; whoever may be writing it, nothing is changed.

    Raises PatchError where it is called for what is damaged.
    """
    found: dict[bytes, Path] = {}
    for path in sorted(folder.glob("*.patch"), key=lambda path: path.name):
        with suppress(OSError, PatchError):
            if FILE.fullmatch(path.name):
                head = patches.header(path.read_bytes())
                whole = not isinstance(head, patches.Sparse)
                if whole or head.weights not in found:
                    found[head.weights] = path

    def load(weights: bytes) -> Tensors:
        if weights not in found:
            raise PatchError(f"what leads to the weights {weights.hex()[:16]} is not in {folder}")
        patch = found[weights].read_bytes()
        head = patches.header(patch)
        return patches.apply(patch, load(head.parent) if isinstance(head, patches.Sparse) else None)

    return {weights: partial(load, weights) for weights in found}


class _Folder:
    """Patches as files, each whole or not there."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"*{PARTIAL}"):  # of a write that was killed
                path.unlink()
        except OSError as error:
            raise cannot_write(folder, error) from None

    def names(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("*.patch"))

    def part(self, name: str) -> Part:
        with (self._folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
            size = file.tell()
            file.seek(0)
            return _part(patches.header(file.read(patches.PREFIX + patches.MAX_HEADER_BYTES)), found, size)

    def write(self, name: str, patch: bytes) -> None:
        with aside(self._folder / name) as unfinished:
            unfinished.write_bytes(patch)

    def read(self, name: str, start: int, size: int) -> bytes:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def drop(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink()


class _Memory:
    """The same for as long as the process lives."""

    def __init__(self) -> None:
        self._patches: dict[str, bytes] = {}

    def names(self) -> list[str]:
        return []

    def part(self, name: str) -> Part:
        raise AssertionError("unreachable")

    def write(self, name: str, patch: bytes) -> None:
        self._patches[name] = patch

    def read(self, name: str, start: int, size: int) -> bytes:
        return self._patches[name][start : start + size]

    def drop(self, name: str) -> None:
        del self._patches[name]


def _part(head: patches.Whole | patches.Sparse, name: bytes, size: int) -> Part:
    parent = head.parent if isinstance(head, patches.Sparse) else None
    return Part(name, size, head.changed, parent, head.weights)


def _size(parts: Iterable[Part]) -> int:
    return sum(part.size for part in parts)


def _less(some: Sequence[Part], others: Sequence[Part]) -> bool:
    """To send and to do."""
    work, more = (sum(part.changed for part in parts) for parts in (some, others))
    return _size(some) < _size(others) and work < more
