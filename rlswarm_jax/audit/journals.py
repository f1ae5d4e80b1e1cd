"""Which nodes' rounds are in a folder: by the journals that are there, whoever may be writing them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlswarm_jax.audit.played import records
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import JOURNAL_FILE, node_folders
from rlswarm_jax.game.effects import Publish
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, JournalError, kept, look_at
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import RecordError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a node's rounds are written. directory: with config, journal and metrics. index: in the journal.

    rounds: those that are there, in order.
    """

    directory: Path
    index: int
    author: bytes
    rounds: list[int]

    @property
    def name(self) -> str:
        return friendly_name(self.author)


def find(directory: Path, node: str) -> Source:
    """A node of a swarm by its number or name. Raises UsageError or JournalError if there is none."""
    homes = node_folders(directory)
    if not homes and not (directory / JOURNAL_FILE).is_file():
        raise UsageError(f"{directory} is the folder of no node and of no swarm: there is no journal in it.")
    there = [source for home in homes or [directory] for source in _sources(home)]
    numbers = {home.name.removeprefix("node-"): home for home in homes}
    for source in there:
        number = str(source.index) if not homes else source.directory.name.removeprefix("node-")
        if node in (number, source.name) or (not node and source is there[0]):
            return source
    if not there or node in numbers:
        raise UsageError(f"the journal of {numbers.get(node, directory)} holds no round yet.")
    names = ", ".join(f"{i} {source.name}" for i, source in enumerate(there))
    raise UsageError(f"there is no node {node!r} in {directory}; there are {names}.")


def _sources(directory: Path) -> Iterator[Source]:
    path = directory / JOURNAL_FILE
    if not path.is_file():  # a node that has not begun
        return
    for index, rounds in kept(path, Publish.__name__).items():
        entries = look_at(path, index, range(rounds[-1], rounds[-1] + 1))
        yield Source(directory, index, first_record(entries).author, rounds)


def first_record(rows: Sequence[Entry]) -> Any:
    """The first record that a node has published in some rows."""
    raw = next(raw for entry in rows if entry.kind == Publish.__name__ for raw in records(entry))
    try:
        return open_envelope(raw).record
    except RecordError as error:
        raise JournalError(f"the journal is damaged: {error}.") from None
