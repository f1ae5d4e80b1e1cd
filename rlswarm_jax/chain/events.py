"""What a contract's events say, kept in SQLite, whatever the chain's last blocks do.

`pull` asks for events by ranges of blocks, and remembers hashes of blocks it has read up to. When one of them is no
longer the chain's, everything after the newest that still is gets forgotten and is read again. What is on file is
always the events of one chain: the one that ends in the block that `position` names.
"""

import json
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlswarm_jax.chain import eth
from rlswarm_jax.chain.calls import MAX_ROUND, check_number, checksum
from rlswarm_jax.chain.errors import AnswerTooLarge, FileDamaged, MalformedAnswer, NoContract, Refused, WrongChain
from rlswarm_jax.chain.rpc import Rpc

if TYPE_CHECKING:
    from web3.types import EventData

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS blocks (number INTEGER PRIMARY KEY, hash TEXT);
CREATE TABLE IF NOT EXISTS events (
    block INTEGER, log_index INTEGER, hash TEXT, name TEXT, round INTEGER, fields TEXT, PRIMARY KEY (block, log_index));
CREATE INDEX IF NOT EXISTS by_round ON events (name, round);
"""
_SHORT = 10_000  # blocks of a chain that is read whole
_ROUND_FIELDS = ("round", "roundNumber", "newRoundNumber")


def find_first_block(rpc: Rpc, address: str) -> int:
    """A block from which on all of a contract's events are: its deployment's, searched for on a long chain.

    Raises NoContract, EndpointDown, MalformedAnswer; Refused by an endpoint that has no old state.
    """
    chain = eth.connect(rpc).eth
    address, low, high = checksum(address), 0, chain.get_block("latest")["number"]
    if high < _SHORT:
        return 0
    if not chain.get_code(address):
        raise NoContract(f"there is no contract at {address} on this chain: check the address.")
    while low < high:
        middle = (low + high) // 2
        if chain.get_code(address, middle):
            high = middle
        else:
            low = middle + 1
    return low


class Entry(NamedTuple):
    """An event. hash: of its transaction. round: None if it is of no round. Bytes in `fields` are text: 0x and hex."""

    block: int
    log_index: int
    hash: str
    name: str
    round: int | None
    fields: dict[str, Any]


class EventIndex:
    """The events of one contract from a block on. Safe to call from several threads; `pull` by one of them.

    depth: blocks whose hashes are remembered; a reorganisation below them has everything read again. span: blocks asked
    for at once, halved where an endpoint refuses. Raises ValueError for an address that is none, FileDamaged.
    """

    def __init__(self, rpc: Rpc, address: str, path: Path, first_block: int = 0, depth: int = 256, span: int = 2000):
        self._w3 = eth.connect(rpc)
        self._contract = eth.Contract(self._w3, address)
        self.address, self._path, self._first, self._depth = self._contract.address, path, first_block, depth
        self._span, self._most, self._lock = span, span, threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # it can be read again
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise FileDamaged(f"cannot open the index of events {path}: {error}. It may be deleted.") from None
        if self._remember("contract", self.address) != self.address:
            self.close()
            raise FileDamaged(f"the index of events {path} is of another contract: give this one a new path.")

    @property
    def position(self) -> tuple[int, str] | None:
        """Number and hash of the block up to which events are on file; None before the first."""
        found = self._run("SELECT number, hash FROM blocks ORDER BY number DESC LIMIT 1")
        return found[0] if found else None

    def pull(self, ranges: int = 16) -> bool:
        """Reads on, at most this many ranges of blocks; whether it has reached the newest block.

        May be stopped and killed at any point. Raises EndpointDown, MalformedAnswer, Refused (not even a single
        block's events), WrongChain (begun anew): what was read until then is on file.
        """
        genesis = eth.block_hash(self._w3, 0)
        if genesis is None or self._remember("genesis", genesis) != genesis:
            raise WrongChain(f"the endpoint's chain is not the one that {self._path} was read from: delete that file.")
        head = self._w3.eth.get_block("latest")["number"]
        self._roll_back()
        for _ in range(ranges):
            position = self.position
            start = position[0] + 1 if position else self._first
            if start > head:
                return True
            self._read(start, head)
        position = self.position
        return position is not None and position[0] >= head

    def entries(self, name: str, round: int | None = None) -> list[Entry]:
        """Events of a name, of one round or of all, in the chain's order."""
        where, values = ("", ()) if round is None else (" AND round = ?", (round,))
        rows = self._run(
            f"SELECT block, log_index, hash, name, round, fields FROM events WHERE name = ?{where}"
            " ORDER BY block, log_index",
            (name, *values),
        )
        return [Entry(*row)._replace(fields=json.loads(row[5])) for row in rows]

    def rounds(self) -> list[int]:
        """All rounds that any event is of, ascending."""
        return [row[0] for row in self._run("SELECT DISTINCT round FROM events WHERE round IS NOT NULL ORDER BY round")]

    def close(self) -> None:
        self._db.close()

    # --- within

    def _roll_back(self) -> None:
        """Forgets what was read from blocks that the chain no longer has."""
        remembered = self._run("SELECT number, hash FROM blocks ORDER BY number DESC")
        for number, hash_ in remembered:
            if eth.block_hash(self._w3, number) == hash_:
                if number < remembered[0][0]:
                    self._forget_after(number)
                return
        if remembered:
            self._forget_after(-1)

    def _forget_after(self, number: int) -> None:
        self._write(
            [("DELETE FROM events WHERE block > ?", (number,)), ("DELETE FROM blocks WHERE number > ?", (number,))]
        )

    def _read(self, start: int, head: int) -> None:
        """One range. The last block has the same hash before and after: so the events in between are of its chain."""
        last = min(start + self._span - 1, head)
        before = eth.block_hash(self._w3, last)
        if before is None:
            raise MalformedAnswer(f"the chain endpoint has lost block {last}: it may be catching up; try again.")
        try:
            logs = self._contract.logs(start, last)
        except (Refused, AnswerTooLarge):
            if last == start:
                raise
            self._span = max(1, (last - start + 1) // 2)
            return
        if eth.block_hash(self._w3, last) != before:
            return  # reorganised meanwhile: the next pull sees by its hashes how far
        self._span = min(self._most, self._span * 2)
        self._keep(logs, last, before, head)

    def _keep(self, logs: "list[EventData]", last: int, hash_: str, head: int) -> None:
        hashes = {log["blockNumber"]: log["blockHash"].to_0x_hex() for log in logs} | {last: hash_}
        if any(hashes[log["blockNumber"]] != log["blockHash"].to_0x_hex() for log in logs):
            raise MalformedAnswer("the chain endpoint answered events of two blocks of the same number.")
        statements: list[tuple[str, tuple]] = []
        for log in logs:
            fields, slot = log["args"], (log["blockNumber"], log["logIndex"])
            round_ = next((fields[one] for one in _ROUND_FIELDS if one in fields), None)
            if round_ is not None:
                check_number(f"round in {log['event']}", round_, MAX_ROUND)
            values = (
                *slot,
                log["transactionHash"].to_0x_hex(),
                log["event"],
                round_,
                json.dumps(fields, default=_plain),
            )
            statements.append(("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?)", values))
        recent = sorted(hashes.items())[-self._depth :]
        statements += [("INSERT OR REPLACE INTO blocks VALUES (?, ?)", pair) for pair in recent]
        # of those too deep to change, one stays: what is below it is never read again
        old = "SELECT max(number) FROM blocks WHERE number <= ?"
        statements.append((f"DELETE FROM blocks WHERE number < ({old})", (head - self._depth,)))
        self._write(statements)

    def _remember(self, name: str, value: str) -> str:
        self._run("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
        return self._run("SELECT value FROM about WHERE name = ?", (name,))[0][0]

    def _run(self, statement: str, values: tuple = ()) -> list[tuple]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise FileDamaged(f"cannot use the index of events {self._path}: {error}. It may be deleted.") from None

    def _write(self, statements: list[tuple[str, tuple]]) -> None:
        """All of them or none."""
        with self._lock:
            try:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    for statement, values in statements:
                        self._db.execute(statement, values)
            except sqlite3.Error as error:
                raise FileDamaged(f"cannot use the index of events {self._path}: {error}. It may be deleted.") from None


def _plain(value: Any) -> str:
    """Bytes, for JSON."""
    return "0x" + value.hex()
