"""What an audit goes by: the records in nodes' journals, the rounds on the chain, and a judge of what answers earn."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rlswarm_jax.audit.played import records as kept_records
from rlswarm_jax.audit.worth import Item, Judge
from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.files import JOURNAL_FILE
from rlswarm_jax.game.effects import Gather, Publish
from rlswarm_jax.journal import JournalError, look
from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.tasks.verifier import Verifier


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Signed records by content hash. since: of those whose journal it is, the round from which on it is whole."""

    records: dict[bytes, SignedRecord]
    since: dict[bytes, int]


def read_journals(nodes: Sequence[Path]) -> Evidence:
    """All records that these nodes published or heard. What is no signed record is left out.

    Raises JournalError if a journal is not there, locked or damaged.
    """
    records: dict[bytes, SignedRecord] = {}
    since: dict[bytes, int] = {}
    for node in nodes:
        path = node / JOURNAL_FILE
        entries, first = look(path, [Publish.__name__, Gather.__name__])
        try:
            published = {raw for entry in entries if entry.kind == Publish.__name__ for raw in kept_records(entry)}
            gathered = {raw for entry in entries if entry.kind == Gather.__name__ for raw in kept_records(entry)}
        except JournalError as error:
            raise JournalError(f"{path}: {error}") from None
        for raw in [*published, *gathered]:
            with contextlib.suppress(RecordError):
                signed = open_envelope(raw)
                records[signed.hash] = signed
                if raw not in gathered:
                    since[signed.record.author] = min(first, since.get(signed.record.author, first))
    return Evidence(records, since)


def read_chain(rpc: Rpc, contract: str, first_block: int) -> list[ledger.Round]:
    """All rounds of a coordinator, from its events since its deployment, or a block before. Raises ChainError."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ledger.events_of(rpc, contract, Path(directory) / "events.sqlite", first_block) as index,
    ):
        return ledger.rounds(index)


def make_judge(verifier: Verifier) -> Judge:
    """Scores one by one, so that it is known which failed; what takes workers has all of them at once."""

    def judge(items: Sequence[Item]) -> list[float | None]:
        verifier.begin(items)
        scored = [verifier.score([item]) for item in items]
        return [None if found.failures else found.scores[0] for found in scored]

    return judge
