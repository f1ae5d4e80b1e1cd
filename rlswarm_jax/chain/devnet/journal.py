"""The network on disk, in one SQLite file: a journal of raw transactions, one a block, and now and then the state.

A block's row is written and synced before anyone hears of the block, so a process killed at any instant has all that
it answered. The state after a row follows from running it again; every SAVE_EVERY blocks what is new of it is saved
with the row, so a start runs at most so many. Rows also hold the JSON that clients get.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eth.db.backends.base import BaseAtomicDB
from lru import LRU

from rlswarm_jax.chain.devnet.errors import INTERNAL_ERROR, LIMIT_EXCEEDED, DevnetError, RpcError

FILE, FORMAT = "chain.sqlite", 2
SAVE_EVERY = 128  # blocks
MAX_LOGS, MAX_LOG_BYTES = 10_000, 32 * 2**20  # of one answer
_CACHED = 1 << 15  # entries of the state in memory, about 10 MB
_SCHEMA = """
CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash BLOB UNIQUE, timestamp INTEGER, raw BLOB, sent_hash BLOB UNIQUE,
  block BLOB, sent BLOB, receipt BLOB);
CREATE TABLE logs (block INTEGER, position INTEGER, address BLOB, topic0 BLOB, topic1 BLOB, topic2 BLOB, topic3 BLOB,
  answer BLOB, PRIMARY KEY (block, position)) WITHOUT ROWID;
CREATE INDEX logs_address ON logs (address, block);
CREATE INDEX logs_topic ON logs (topic0, block);
CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """A block. timestamp: seconds since 1970. raw: its transaction, as signed; None of the first block. sent: it, as
    clients see it. logs: addresses, topics (at most 4, of 32 bytes) and what clients see.
    """

    number: int
    hash: bytes
    timestamp: int
    raw: bytes | None
    sent_hash: bytes | None
    block: bytes
    sent: bytes | None
    receipt: bytes | None
    logs: tuple[tuple[bytes, tuple[bytes, ...], bytes], ...] = ()


class Journal:
    """One process at a time has it open. Raises DevnetError if that isn't so, or if the file isn't one."""

    def __init__(self, directory: Path):
        self.path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DevnetError(
                f"another process serves the development network of {directory}: use that one, or another folder."
            ) from None
        except OSError as error:
            raise DevnetError(f"cannot use the folder {directory}: {error.strerror}.") from None
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if not found and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
                found = FORMAT
        except sqlite3.Error as error:
            os.close(self._lock)
            raise DevnetError(f"cannot open {self.path}: {error}; mend it or begin in an empty folder.") from None
        if found != FORMAT:
            self.close()
            raise DevnetError(
                f"{self.path} is of format {found}, and this version reads {FORMAT}: begin in an empty folder."
            )

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def append(self, row: Row, state: dict[bytes, bytes]) -> None:
        """Writes a block, and what is new of the state before it. Raises RpcError if it can't; then nothing was."""
        *fields, logs = row
        with self._transaction():
            self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fields)
            self._db.executemany(
                "INSERT INTO logs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (row.number, position, address, *(*topics, None, None, None, None)[:4], answer)
                    for position, (address, topics, answer) in enumerate(logs)
                ],
            )
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", state.items())

    def save(self, state: dict[bytes, bytes]) -> None:
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", state.items())

    def after(self, number: int) -> list[tuple[int, bytes, bytes]]:
        """Timestamps, raw transactions and hashes of later blocks."""
        return self._all("SELECT timestamp, raw, hash FROM blocks WHERE number > ? ORDER BY number", (number,))

    def find(self, column: str, name: str, value: Any) -> Any:
        """The column of the block that has this value under that name; None if none has."""
        found = self._all(f"SELECT {column} FROM blocks WHERE {name} = ?", (value,))
        return found[0][0] if found else None

    def state(self, key: bytes) -> bytes | None:
        found = self._all("SELECT value FROM state WHERE key = ?", (key,))
        return found[0][0] if found else None

    def logs(self, first: int, last: int, addresses: list[bytes], topics: list[list[bytes]]) -> list[bytes]:
        """Answers in order. An empty list of addresses, or of one position's topics, lets all pass.

        Raises RpcError if there are more than MAX_LOGS, or they are larger than MAX_LOG_BYTES.
        """
        wanted = [(f"topic{position}", allowed) for position, allowed in enumerate(topics)]
        where, values = "block BETWEEN ? AND ?", [first, last]  # type: tuple[str, list[Any]]
        for column, allowed in [("address", addresses), *wanted]:
            if allowed:
                where += f" AND {column} IN ({', '.join('?' * len(allowed))})"
                values += allowed
        if topics:  # a filter of n topics, even if they let all pass, wants logs of at least n
            where += f" AND topic{len(topics) - 1} IS NOT NULL"
        order = f"ORDER BY block, position LIMIT {MAX_LOGS + 1}"
        sizes = self._all(f"SELECT length(answer) FROM logs WHERE {where} {order}", values)
        if len(sizes) > MAX_LOGS or sum(size for (size,) in sizes) > MAX_LOG_BYTES:
            most = f"{MAX_LOGS} results or {MAX_LOG_BYTES} bytes"
            raise RpcError(f"query returned more than {most}: ask for fewer blocks at a time", LIMIT_EXCEEDED)
        return [row[0] for row in self._all(f"SELECT answer FROM logs WHERE {where} {order}", values)]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise RpcError(
                f"cannot write {self.path}: {error}; nothing was done, make room and try again", INTERNAL_ERROR
            ) from None

    def _all(self, statement: str, values: Iterable[Any]) -> list[Any]:
        try:
            return self._db.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise RpcError(f"cannot read {self.path}: {error}; begin in an empty folder", INTERNAL_ERROR) from None


class Nodes(BaseAtomicDB):
    """What py-evm keeps: what is new since the last save in `added`, the rest on disk, where nothing is deleted."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._cache: LRU[bytes, bytes] = LRU(_CACHED)
        self.added: dict[bytes, bytes] = {}

    def __getitem__(self, key: bytes) -> bytes:
        found = self.added.get(key) or self._cache.get(key)
        if found is None:
            found = self._journal.state(key)
            if found is None:
                raise KeyError(key)
            self._cache[key] = found
        return found

    def _exists(self, key: bytes) -> bool:
        with contextlib.suppress(KeyError):
            return bool(self[key])
        return False

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.added[key] = value

    def __delitem__(self, key: bytes) -> None:
        self.added.pop(key, None)

    @contextlib.contextmanager
    def atomic_batch(self) -> Iterator["Nodes"]:
        """Writes are atomic with their block's row."""
        yield self

    def saved(self) -> None:
        self._cache.update(self.added)
        self.added = {}
