"""A key that gives its place to another one: what it signs, and what follows from it for those who hear it.

The statement stands in each record of the new key, which signs it there: nobody is given a place that they did not
take, and it is not to be had for another author, nor in another swarm.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from rlswarm_jax.identity import Identity, verify
from rlswarm_jax.records.schema import MAX_ROTATIONS, Announcing, Record, RecordError, Rotation

_SAID = "rlswarm_jax rotation 1"
_rotations = msgspec.msgpack.Decoder(Rotation)


def announce(old: Identity, new: bytes, swarm: str, from_round: int) -> Rotation:
    """What a key says last: in a swarm, from a round on, the author `new` speaks in its place."""
    return Rotation(old.author, from_round, old.sign(_statement(swarm, new, from_round)))


def of(record: Record) -> list[tuple[bytes, bytes, int]]:
    """The keys that a record's author had before, oldest first: each with the one after it, and from which round on."""
    if not isinstance(record, Announcing):
        return []
    authors = [*(one.old for one in record.rotations), record.author]
    return [(*pair, one.from_round) for pair, one in zip(pairwise(authors), record.rotations, strict=True)]


def check(record: Record) -> None:
    """Raises RecordError("false rotation") unless each key of a record gave its place to the next one."""
    if isinstance(record, Announcing) and not _holds(record.rotations, record.author, record.swarm):
        raise RecordError("false rotation", "a key before its author's did not sign that, or comes twice")


def usable(rotations: Sequence[Rotation], author: bytes, swarm: str) -> tuple[Rotation, ...]:
    """As many of the latest as lead to an author in a swarm: others were signed for another one."""
    for start in range(max(0, len(rotations) - MAX_ROTATIONS), len(rotations)):
        if _holds(rotations[start:], author, swarm):
            return tuple(rotations[start:])
    return ()


def to_text(rotation: Rotation) -> str:
    """For a line of a key file."""
    return msgspec.msgpack.encode(rotation).hex()


def from_text(text: str) -> Rotation:
    """Raises ValueError for what `to_text` did not write."""
    return _rotations.decode(bytes.fromhex(text))


def _statement(swarm: str, new: bytes, from_round: int) -> bytes:
    return msgspec.msgpack.encode([_SAID, swarm, new, from_round])


def _holds(rotations: Sequence[Rotation], author: bytes, swarm: str) -> bool:
    authors = [*(one.old for one in rotations), author]
    if len(set(authors)) < len(authors):
        return False
    said = [(one, _statement(swarm, new, one.from_round)) for one, new in zip(rotations, authors[1:], strict=True)]
    return all(verify(one.old, one.signature, statement) for one, statement in said)
