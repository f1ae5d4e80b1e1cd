"""The chain on disk, in one SQLite file (WAL): blocks, transactions, receipts, logs and the nodes of the state's tries.

A block and all it brings is one transaction of the database, so a process killed at any instant leaves whole blocks.
Answers are stored as the JSON that clients get. Nodes are never deleted: the state after every block stays readable.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlswarm_jax.chain.devnet.errors import INTERNAL_ERROR, LIMIT_EXCEEDED, DevnetError, RpcError

FORMAT = 1
FILE = "chain.sqlite"
MAX_LOGS, MAX_LOG_BYTES = 10_000, 32 * 2**20  # of one answer
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash BLOB UNIQUE, header BLOB, cause TEXT, answer BLOB);
CREATE TABLE transactions (hash BLOB PRIMARY KEY, block INTEGER, raw BLOB, answer BLOB, receipt BLOB) WITHOUT ROWID;
CREATE INDEX transactions_block ON transactions (block);
CREATE TABLE logs (block INTEGER, position INTEGER, address BLOB, topic0 BLOB, topic1 BLOB, topic2 BLOB, topic3 BLOB,
  answer BLOB, PRIMARY KEY (block, position)) WITHOUT ROWID;
CREATE INDEX logs_address ON logs (address, block);
CREATE INDEX logs_topic ON logs (topic0, block);
CREATE TABLE nodes (hash BLOB PRIMARY KEY, node BLOB) WITHOUT ROWID;
CREATE TABLE queue (hash BLOB PRIMARY KEY, raw BLOB) WITHOUT ROWID;
"""


Included = tuple[bytes, bytes, bytes, bytes]  # a block's transaction: hash, raw bytes, answer, receipt


class LogRow(NamedTuple):
    """topics: at most 4, of 32 bytes."""

    address: bytes
    topics: tuple[bytes, ...]
    answer: bytes


class BlockRow(NamedTuple):
    """What one block writes. cause: what made it, if no transaction."""

    number: int
    hash: bytes
    header: bytes
    cause: str | None
    answer: bytes
    transaction: Included | None
    logs: tuple[LogRow, ...]
    nodes: dict[bytes, bytes]


class Store:
    """One process at a time has it open. Raises DevnetError if that isn't so, or if the file can't be used."""

    def __init__(self, directory: Path):
        self.path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DevnetError(f"cannot use the folder {directory}: {error.strerror}.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DevnetError(
                f"another process serves the development network of {directory}: use that one, or another folder."
            ) from None
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
        except sqlite3.Error as error:
            os.close(self._lock)
            raise DevnetError(f"cannot open {self.path}: {error}; mend it or start with an empty folder.") from None
        if found not in (0, FORMAT):
            self.close()
            raise DevnetError(f"{self.path} is of format {found}, and this version reads {FORMAT}: use a new folder.")

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def meta(self, key: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def head(self) -> tuple[int, bytes, bytes] | None:
        """Number, hash and header of the newest block."""
        return self._one("SELECT number, hash, header FROM blocks ORDER BY number DESC LIMIT 1")

    def header(self, number: int) -> bytes | None:
        row = self._one("SELECT header FROM blocks WHERE number = ?", (number,))
        return row[0] if row else None

    def headers(self, first: int, last: int) -> list[bytes]:
        found = self._all("SELECT header FROM blocks WHERE number BETWEEN ? AND ? ORDER BY number", (first, last))
        return [row[0] for row in found]

    def block_hash(self, number: int) -> bytes | None:
        row = self._one("SELECT hash FROM blocks WHERE number = ?", (number,))
        return row[0] if row else None

    def number_of(self, block_hash: bytes) -> int | None:
        row = self._one("SELECT number FROM blocks WHERE hash = ?", (block_hash,))
        return row[0] if row else None

    def block(self, number: int) -> bytes | None:
        row = self._one("SELECT answer FROM blocks WHERE number = ?", (number,))
        return row[0] if row else None

    def transactions(self, block: int) -> list[bytes]:
        return [row[0] for row in self._all("SELECT answer FROM transactions WHERE block = ?", (block,))]

    def transaction(self, transaction_hash: bytes) -> bytes | None:
        row = self._one("SELECT answer FROM transactions WHERE hash = ?", (transaction_hash,))
        return row[0] if row else None

    def receipt(self, transaction_hash: bytes) -> bytes | None:
        row = self._one("SELECT receipt FROM transactions WHERE hash = ?", (transaction_hash,))
        return row[0] if row else None

    def receipts(self, block: int) -> list[bytes]:
        return [row[0] for row in self._all("SELECT receipt FROM transactions WHERE block = ?", (block,))]

    def node(self, node_hash: bytes) -> bytes | None:
        row = self._one("SELECT node FROM nodes WHERE hash = ?", (node_hash,))
        return row[0] if row else None

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

    def queue(self) -> list[bytes]:
        """The raw transactions that wait for an earlier one of their sender."""
        return [row[0] for row in self._all("SELECT raw FROM queue")]

    def queued(self, transaction_hash: bytes) -> bytes:
        """Its raw bytes. Raises KeyError if it does not wait."""
        row = self._one("SELECT raw FROM queue WHERE hash = ?", (transaction_hash,))
        if row is None:
            raise KeyError(transaction_hash)
        return row[0]

    def append(self, row: BlockRow) -> None:
        """A block, all of it or nothing. If its transaction waited, it waits no more."""
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO nodes VALUES (?, ?)", row.nodes.items())
            self._db.execute(
                "INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", (row.number, row.hash, row.header, row.cause, row.answer)
            )
            if row.transaction:
                transaction_hash, raw, answer, receipt = row.transaction
                self._db.execute(
                    "INSERT INTO transactions VALUES (?, ?, ?, ?, ?)",
                    (transaction_hash, row.number, raw, answer, receipt),
                )
                self._db.execute("DELETE FROM queue WHERE hash = ?", (transaction_hash,))
            self._db.executemany(
                "INSERT INTO logs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (row.number, position, log.address, *(log.topics + (None,) * 4)[:4], log.answer)
                    for position, log in enumerate(row.logs)
                ],
            )

    def change_queue(self, added: Iterable[tuple[bytes, bytes]] = (), removed: Iterable[bytes] = ()) -> None:
        """added: hashes and raw transactions. removed: hashes."""
        with self._transaction():
            self._db.executemany("DELETE FROM queue WHERE hash = ?", [(one,) for one in removed])
            self._db.executemany("INSERT OR REPLACE INTO queue VALUES (?, ?)", added)

    def drop_after(self, number: int) -> None:
        """Forgets all later blocks, with their transactions and logs, and whatever waits."""
        with self._transaction():
            self._db.execute("DELETE FROM blocks WHERE number > ?", (number,))
            self._db.execute("DELETE FROM transactions WHERE block > ?", (number,))
            self._db.execute("DELETE FROM logs WHERE block > ?", (number,))
            self._db.execute("DELETE FROM queue")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Raises RpcError if it can't be written; then nothing of it was."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise RpcError(
                f"the development network cannot write {self.path}: {error}; nothing was done, make room and try again",
                INTERNAL_ERROR,
            ) from None

    def _one(self, statement: str, values: Iterable[Any] = ()) -> Any:
        found = self._all(statement, values)
        return found[0] if found else None

    def _all(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise RpcError(
                f"the development network cannot read {self.path}: {error}; start again with an empty folder",
                INTERNAL_ERROR,
            ) from None
