"""What happened to a node, written down before it acts on it: SQLite in WAL mode.

Each effect's result is one row. A generator fed the rows of its round goes on where the process was killed, and
what it published before the kill is there as the exact bytes.
"""

import contextlib
import secrets
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


class JournalError(RuntimeError):
    """The journal cannot be written or does not fit the run; the message says what to do."""


class Entry(NamedTuple):
    """node: index in the process. step: of the effect in its round. at: seconds on the driver's clock."""

    node: int
    round: int
    step: int
    kind: str
    result: bytes
    at: float


_COLUMNS = ", ".join(Entry._fields)


class Journal:
    """Append-only but for `truncate` and `prune`. A row is safe from SIGKILL once `write` has returned.

    durable: kinds of rows that are safe from a loss of power, too (an fsync each). together: so many rows are written
    at a time, for whoever computes again what is lost: those are safe once `offset` has been asked for.
    Every method raises JournalError if the file is locked, damaged, or its disk full.
    """

    def __init__(self, path: Path, durable: Collection[str] = (), together: int = 1):
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS journal (id INTEGER PRIMARY KEY AUTOINCREMENT, node INTEGER, round INTEGER,"
                " step INTEGER, kind TEXT, result BLOB, at REAL, UNIQUE (node, round, step))"
            )
            if not self.id:
                self._db.execute(f"PRAGMA user_version={secrets.randbelow(2**31 - 1) + 1}")
        except sqlite3.Error as error:
            raise JournalError(f"cannot open the journal {path}: {error}.") from None
        self._path, self._durable, self._together, self._begun = path, frozenset(durable), together, 0

    @property
    def id(self) -> int:
        """A random number that tells this journal from any other."""
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def write(self, entry: Entry) -> None:
        """Adds a row. Raises JournalError, too, if the step is there already."""
        if self._durable:
            self._execute(f"PRAGMA synchronous={'FULL' if entry.kind in self._durable else 'NORMAL'}")
        if self._together > 1:
            if not self._begun:
                self._execute("BEGIN")
            self._begun += 1
        self._execute(f"INSERT INTO journal ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", entry)
        if self._begun >= self._together:
            self._commit()

    def read(self, node: int, from_round: int) -> list[Entry]:
        """A node's rows from a round on, in order."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM journal WHERE node = ? AND round >= ? ORDER BY round, step",
            (node, from_round),
        )
        return [Entry(*row) for row in rows]

    def last(self, node: int, kind: str) -> list[Entry]:
        """A node's rows of a kind in the newest round that has any, in order."""
        newest = "(SELECT max(round) FROM journal WHERE node = ? AND kind = ?)"
        where = f"WHERE node = ? AND kind = ? AND round = {newest} ORDER BY step"
        rows = self._execute(f"SELECT {_COLUMNS} FROM journal {where}", (node, kind, node, kind))
        return [Entry(*row) for row in rows]

    @property
    def offset(self) -> int:
        """The id of the last row."""
        self._commit()
        return self._execute("SELECT coalesce(max(id), 0) FROM journal")[0][0]

    def truncate(self, offset: int) -> None:
        """Forgets what was written after a checkpoint's offset: a simulation computes it again, bit for bit."""
        self._execute("DELETE FROM journal WHERE id > ?", (offset,))

    def prune(self, node: int, before_round: int, records_before: int | None = None) -> None:
        """Forgets rounds that a checkpoint has made unnecessary, so that the disk stays bounded.

        records_before: the same for the records of all nodes in them, which may be needed for longer, and for the
        beacons that they were made under.
        """
        kinds = "" if records_before is None else " AND kind NOT IN ('Publish', 'Gather', 'Hear')"
        self._execute(f"DELETE FROM journal WHERE node = ? AND round < ?{kinds}", (node, before_round))
        if records_before is not None:
            self._execute("DELETE FROM journal WHERE node = ? AND round < ?", (node, records_before))

    def shrink(self) -> None:
        """Gives the disk what pruned rows took; for a moment it takes as much as is left once more."""
        self._commit()
        self._execute("VACUUM")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._commit()
        self._db.close()

    def _commit(self) -> None:
        if self._begun:
            self._begun = 0
            self._execute("COMMIT")

    def _execute(self, statement: str, values: tuple = ()) -> list[tuple]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"cannot use the journal {self._path}: {error}.") from None


def look(path: Path, kinds: Collection[str]) -> list[Entry]:
    """Rows of some kinds in the journal of a node that may be running, in the order in which they were written.

    Nothing is changed but, where a process wrote or was killed there, SQLite's own files beside it. Raises JournalError
    if it is not there, locked or damaged.
    """
    with _reading(path) as db:
        marks = ", ".join("?" * len(kinds))
        rows = db.execute(f"SELECT {_COLUMNS} FROM journal WHERE kind IN ({marks}) ORDER BY id", tuple(kinds))
        return [Entry(*row) for row in rows]


def look_at(path: Path, node: int, rounds: range, kinds: Collection[str] = ()) -> list[Entry]:
    """The rows of some rounds of a node, all or those of some kinds, in order; else as `look`."""
    with _reading(path) as db:
        of_kinds = f" AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        where = f"WHERE node = ? AND round >= ? AND round < ?{of_kinds} ORDER BY round, step"
        rows = db.execute(f"SELECT {_COLUMNS} FROM journal {where}", (node, rounds.start, rounds.stop, *kinds))
        return [Entry(*row) for row in rows]


def newest(path: Path) -> list[Entry]:
    """Of each node its last row, without its result; else as `look`."""
    with _reading(path) as db:
        columns = _COLUMNS.replace("result", "x''")
        last = "(SELECT max(id) FROM journal GROUP BY node)"
        return [Entry(*row) for row in db.execute(f"SELECT {columns} FROM journal WHERE id IN {last} ORDER BY node")]


def first(path: Path, kind: str) -> dict[int, Entry]:
    """By node, the first row of a kind that is there; else as `look`."""
    with _reading(path) as db:
        where = "id IN (SELECT min(id) FROM journal WHERE kind = ? GROUP BY node)"
        return {row[0]: Entry(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM journal WHERE {where}", (kind,))}


def count(path: Path, node: int, round_: int, kind: str) -> int:
    """How many rows of a kind a round has; else as `look`."""
    with _reading(path) as db:
        where = "node = ? AND round = ? AND kind = ?"
        return db.execute(f"SELECT count(*) FROM journal WHERE {where}", (node, round_, kind)).fetchone()[0]


def kept(path: Path, kind: str) -> dict[int, list[int]]:
    """By node, the rounds of which a row of a kind is there, in order; else as `look`."""
    found: dict[int, list[int]] = {}
    with _reading(path) as db:
        for node, round_ in db.execute(
            "SELECT DISTINCT node, round FROM journal WHERE kind = ? ORDER BY node, round", (kind,)
        ):
            found.setdefault(node, []).append(round_)
    return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal as it is at one moment. Raises JournalError if it is not there, locked or damaged."""
    if not path.is_file():
        raise JournalError(f"there is no journal {path}: name the folder of a node.")
    # nobody has it open, so it needs no locks: they would be files beside it
    quiet = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?{quiet}", uri=True)) as db:
            db.execute("BEGIN")
            yield db
    except sqlite3.Error as error:
        raise JournalError(f"cannot read the journal {path}: {error}.") from None


def has_said_something(path: Path) -> bool:
    """Whether a node signed a record that this journal holds. One that cannot be read may hold any."""
    try:
        return bool(look(path, ["Publish"]))
    except JournalError:
        return True
