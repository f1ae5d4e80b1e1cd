"""What a node wants done on its chain, written down when it happens: SQLite in WAL mode, one sender per account.

A wish is one line, however often it is wished. Its life:

    waiting --signed, with a nonce--> signed --in a block--> mined --under enough blocks--> done
       ^                                 |                                                   |
       +--- the nonce is used, for good, by something else; or it failed in its block        |
            (refused: the contract said no, for good; dropped: by a rule of ours)            |
                                   signed <--- a reorganisation freed the nonce again -------+

Wishes are of a contract; those for another than the node speaks to now, of a version before, say, just lie there.
A transaction is written down before it is sent; a wish gets another nonce only once the one before is used for good.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlswarm_jax.chain.errors import FileDamaged

OPEN = ("waiting", "signed", "mined")
ENDED = ("done", "refused", "dropped")


class Wish(NamedTuple):
    """One line. `hash`, `block`: of the transaction that did it, and where. `reason`: why it waits, or ended as it did.

    since: the block in which that reason was first met. attempts: how often it failed in a block. arguments: of its
    kind; "value", if any: wei that go with it.
    """

    id: int
    contract: str
    kind: str
    round: int
    stage: int
    arguments: dict[str, Any]
    state: str
    nonce: int | None
    hash: str | None
    block: int | None
    reason: str
    since: int
    attempts: int

    @property
    def value(self) -> int:
        return self.arguments.get("value", 0)


class Transaction(NamedTuple):
    """As it was signed: raw bytes, and what it takes to sign it again at another price.

    fee, tip: wei per gas; tip None: a legacy transaction. head: number of the newest block when it was signed.
    """

    hash: str
    wish: int
    nonce: int
    target: str
    calldata: bytes
    gas: int
    fee: int
    tip: int | None
    raw: bytes
    head: int


_WISH = ", ".join(Wish._fields)
_TRANSACTION = ", ".join(Transaction._fields)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS wishes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, contract TEXT, kind TEXT, round INTEGER, stage INTEGER, arguments TEXT,
    state TEXT, nonce INTEGER, hash TEXT, block INTEGER, reason TEXT, since INTEGER, attempts INTEGER,
    UNIQUE (contract, kind, round, stage));
CREATE INDEX IF NOT EXISTS by_state ON wishes (state);
CREATE TABLE IF NOT EXISTS transactions (
    hash TEXT PRIMARY KEY, wish INTEGER, nonce INTEGER, target TEXT, calldata BLOB, gas INTEGER, fee INTEGER,
    tip INTEGER, raw BLOB, head INTEGER);
CREATE INDEX IF NOT EXISTS by_wish ON transactions (wish, nonce);
"""


class Outbox:
    """The wishes and signed transactions of one account on one chain. Safe to call from several threads.

    Raises FileDamaged if the file is of another account or chain, in use by another process, damaged, or its disk full.
    """

    def __init__(self, path: Path, account: str, chain_id: int):
        self._path, self._lock = path, threading.Lock()
        self._held = _hold(path)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a signature lost with the power may be in a block
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            os.close(self._held)
            raise FileDamaged(f"cannot open the chain outbox {path}: {error}.") from None
        for name, value in (("account", account), ("chain", str(chain_id))):
            if self.remember(name, value) != value:
                self.close()
                raise FileDamaged(
                    f"the chain outbox {path} is of another {name} than {value}: give this one a new path."
                )

    def remember(self, name: str, value: str) -> str:
        """What was first remembered under a name: this value, if nothing was."""
        self._run("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
        return self._run("SELECT value FROM about WHERE name = ?", (name,))[0][0]

    def want(self, contract: str, kind: str, round: int, stage: int, arguments: dict, again: bool = False) -> bool:
        """Writes a wish down; whether it is new. again: one that ended undone is taken up once more."""
        values = (contract, kind, round, stage, json.dumps(arguments, sort_keys=True))
        with self._transaction() as db:
            new = db.execute(
                "INSERT OR IGNORE INTO wishes (contract, kind, round, stage, arguments, state, reason, since, attempts)"
                " VALUES (?, ?, ?, ?, ?, 'waiting', '', 0, 0)",
                values,
            ).rowcount
            if again and not new:
                new = db.execute(
                    "UPDATE wishes SET state = 'waiting', reason = '', since = 0, attempts = 0, arguments = ?"
                    " WHERE contract = ? AND kind = ? AND round = ? AND stage = ? AND state IN ('refused', 'dropped')",
                    (values[4], *values[:4]),
                ).rowcount
        return bool(new)

    def find(self, contract: str, kind: str, round: int, stage: int) -> Wish | None:
        found = self._wishes("contract = ? AND kind = ? AND round = ? AND stage = ?", (contract, kind, round, stage))
        return found[0] if found else None

    def last(self, contract: str, kind: str) -> Wish | None:
        """The newest of a kind."""
        found = self._wishes("contract = ? AND kind = ? ORDER BY id DESC LIMIT 1", (contract, kind))
        return found[0] if found else None

    def wishes(self, *states: str) -> list[Wish]:
        """All wishes in these states (in any, without), in the order in which they were wished."""
        return self._wishes(f"state IN ({_marks(states)}) ORDER BY id" if states else "TRUE ORDER BY id", states)

    def waiting(self, contract: str, most: int) -> list[Wish]:
        """The first wishes for a contract that have no transaction."""
        return self._wishes("state = 'waiting' AND contract = ? ORDER BY id LIMIT ?", (contract, most))

    def in_flight(self) -> list[Wish]:
        """Wishes that have a transaction that is not under enough blocks yet, by nonce."""
        return self._wishes("state IN ('signed', 'mined') ORDER BY nonce", ())

    def counts(self, contract: str) -> dict[str, int]:
        """How many wishes for a contract are in each state."""
        return dict(self._run("SELECT state, count(*) FROM wishes WHERE contract = ? GROUP BY state", (contract,)))

    def nonces(self, first: int) -> set[int]:
        """Nonces from `first` on that wishes hold."""
        return {row[0] for row in self._run("SELECT nonce FROM wishes WHERE nonce >= ?", (first,))}

    def transactions(self, wish: Wish) -> list[Transaction]:
        """All that were signed for a wish with its nonce, the newest last."""
        rows = self._run(
            f"SELECT {_TRANSACTION} FROM transactions WHERE wish = ? AND nonce = ? ORDER BY rowid",
            (wish.id, wish.nonce),
        )
        return [Transaction(*row) for row in rows]

    def sign(self, transaction: Transaction) -> None:
        """Writes a signed transaction down, and that its wish has its nonce. Only afterwards may it be sent."""
        with self._transaction() as db:
            marks = _marks(transaction)
            db.execute(f"INSERT OR IGNORE INTO transactions ({_TRANSACTION}) VALUES ({marks})", transaction)
            db.execute(
                "UPDATE wishes SET state = 'signed', nonce = ?, reason = '', since = 0 WHERE id = ?",
                (transaction.nonce, transaction.wish),
            )

    def mined(self, wish: Wish, transaction: str, block: int, done: bool) -> None:
        """It is in a block, and has done what it should."""
        values = ("done" if done else "mined", transaction, block, wish.id)
        self._run("UPDATE wishes SET state = ?, hash = ?, block = ?, reason = '' WHERE id = ?", values)

    def unmined(self, wish: Wish) -> None:
        """It was in a block that is gone."""
        self._run("UPDATE wishes SET state = 'signed', hash = NULL, block = NULL WHERE id = ?", (wish.id,))

    def reopen(self, count: int) -> None:
        """Takes up what was done with nonces that the chain, which counts this many, has free again."""
        lost = "state = 'done' AND nonce >= ?"
        self._run(f"UPDATE wishes SET state = 'signed', hash = NULL, block = NULL WHERE {lost}", (count,))

    def release(self, wish: Wish, reason: str, failed: bool) -> None:
        """Its nonce is used for good, not by it (or it failed): it waits for another. The signed ones stay on file."""
        self._run(
            "UPDATE wishes SET state = 'waiting', nonce = NULL, hash = NULL, block = NULL, reason = ?,"
            " since = 0, attempts = attempts + ? WHERE id = ?",
            (reason, int(failed), wish.id),
        )

    def explain(self, wish: Wish, reason: str, since: int) -> None:
        """Why it waits, and since which block."""
        self._run("UPDATE wishes SET reason = ?, since = ? WHERE id = ?", (reason, since, wish.id))

    def end(self, wish: Wish, state: str, reason: str) -> None:
        """It is over: done (the chain had it already), refused or dropped."""
        self._run("UPDATE wishes SET state = ?, reason = ? WHERE id = ?", (state, reason, wish.id))

    def prune(self, contract: str, before_round: int) -> None:
        """Forgets what has ended of earlier rounds, so that the disk stays bounded; registrations stay."""
        old = (
            f"SELECT id FROM wishes WHERE contract = ? AND round < ? AND state IN ({_marks(ENDED)})"
            " AND kind NOT IN ('register', 'payout')"
        )
        values = (contract, before_round, *ENDED)
        with self._transaction() as db:
            db.execute(f"DELETE FROM transactions WHERE wish IN ({old})", values)
            db.execute(f"DELETE FROM wishes WHERE id IN ({old})", values)

    def close(self) -> None:
        self._db.close()
        os.close(self._held)

    def _wishes(self, where: str, values: tuple) -> list[Wish]:
        rows = self._run(f"SELECT {_WISH} FROM wishes WHERE {where}", values)
        return [Wish(*row)._replace(arguments=json.loads(row[5])) for row in rows]

    def _run(self, statement: str, values: tuple = ()) -> list[tuple]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise FileDamaged(f"cannot use the chain outbox {self._path}: {error}.") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise FileDamaged(f"cannot use the chain outbox {self._path}: {error}.") from None


def _hold(path: Path) -> int:
    """A lock that dies with the process, however it dies: two senders of one account would take each other's nonces."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FileDamaged(f"cannot open the chain outbox {path}: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise FileDamaged(f"the chain outbox {path} is in use by another process: stop that one first.") from None
    return descriptor


def _marks(values: tuple) -> str:
    return ", ".join("?" * len(values))
