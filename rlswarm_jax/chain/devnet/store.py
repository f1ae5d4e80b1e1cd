"""The network on disk, in one SQLite file: py-evm's state, and for each block the JSON that clients get.

A block and the state after it are written together and synced before anyone hears of the block: a process killed at
any instant has all that it answered, and starts where it was.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eth.db.backends.base import BaseAtomicDB

from rlswarm_jax.chain.devnet.errors import INTERNAL_ERROR, DevnetError, RpcError

FILE, FORMAT = "chain.sqlite", 3
# a block and its only transaction, `sent`, of which the first block has none, and the JSON of these and of its receipt
_SCHEMA = f"""
CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash BLOB UNIQUE, sent_hash BLOB UNIQUE,
  block BLOB, sent BLOB, receipt BLOB);
PRAGMA user_version={FORMAT};
"""


class Store(BaseAtomicDB):
    """py-evm's database: what it writes stays in memory until `writing` ends. One process at a time has it open.

    Raises DevnetError if that is not so, or if the file is none of this version's.
    """

    def __init__(self, directory: Path):
        self.path, self._added = directory / FILE, dict[bytes, bytes]()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=0.0)
            self._db.executescript("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if not found and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                found = FORMAT
        except OSError as error:
            raise DevnetError(f"cannot use the folder {directory}: {error.strerror}.") from None
        except sqlite3.Error as error:
            why = "another process serves it" if "locked" in str(error) else str(error)
            raise DevnetError(f"cannot open {self.path}: {why}; use another folder.") from None
        if found != FORMAT:
            self.close()
            raise DevnetError(f"{self.path} is of format {found}, not {FORMAT}: begin in an empty folder.")

    def close(self) -> None:
        self._db.close()

    # for py-evm

    def __getitem__(self, key: bytes) -> bytes:
        if (added := self._added.get(key)) is not None:
            return added
        found = self._all("SELECT value FROM state WHERE key = ?", key)
        if not found:
            raise KeyError(key)
        return found[0][0]

    def _exists(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._added[key] = value

    def __delitem__(self, key: bytes) -> None:
        self._added.pop(key, None)  # on disk, old state stays

    @contextlib.contextmanager
    def atomic_batch(self) -> Iterator["Store"]:
        yield self

    # for the chain

    @contextlib.contextmanager
    def writing(self) -> Iterator[list[tuple]]:
        """Rows of blocks to write, with the state that is new by the end; if anything is raised, nothing was done.

        Raises RpcError if it cannot be written.
        """
        rows: list[tuple] = []
        try:
            yield rows
            with self._db:
                self._db.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", self._added.items())
        except sqlite3.Error as error:
            raise RpcError(f"cannot write {self.path}: {error}; make room and try again", INTERNAL_ERROR) from None
        finally:
            self._added.clear()

    def find(self, column: str, name: str, value: Any) -> Any:
        """The column of the block that has this value under that name; None if none has."""
        found = self._all(f"SELECT {column} FROM blocks WHERE {name} = ?", value)
        return found[0][0] if found else None

    def receipts(self, first: int, last: int) -> Iterator[bytes]:
        """Of the blocks from one number to another, both included, in order."""
        wanted = "SELECT receipt FROM blocks WHERE number BETWEEN ? AND ? AND receipt NOT NULL ORDER BY number"
        yield from (one for (one,) in self._db.execute(wanted, (first, last)))

    def _all(self, statement: str, *values: Any) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise RpcError(f"cannot read {self.path}: {error}; begin in an empty folder", INTERNAL_ERROR) from None
