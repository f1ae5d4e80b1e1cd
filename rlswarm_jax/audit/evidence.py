"""What an audit goes by: the records in nodes' journals, the rounds on the chain, and a judge of what answers earn."""

import contextlib
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


def read_journals(nodes: Sequence[Path]) -> dict[bytes, SignedRecord]:
    """All records that these nodes published or heard, by content hash. What is no signed record is left out.

    Raises JournalError if a journal is not there, locked or damaged.
    """
    found: dict[bytes, SignedRecord] = {}
    for node in nodes:
        path = node / JOURNAL_FILE
        entries = look(path, [Publish.__name__, Gather.__name__])
        try:
            raws = {raw for entry in entries for raw in kept_records(entry)}
        except JournalError as error:
            raise JournalError(f"{path}: {error}") from None
        for raw in raws:
            with contextlib.suppress(RecordError):
                signed = open_envelope(raw)
                found[signed.hash] = signed
    return found


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
