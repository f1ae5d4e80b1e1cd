"""Signing records and checking what arrives."""

import dataclasses
import functools

import msgspec

from rlswarm_jax.identity import Identity, verify
from rlswarm_jax.records import schema
from rlswarm_jax.records.schema import Envelope, Record, RecordError

_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
MAX_ENVELOPE_BYTES = schema.MAX_RECORD_BYTES + 128


@dataclasses.dataclass(frozen=True)
class SignedRecord:
    """A record whose form, bounds and signature were checked. `raw` are the bytes that travel."""

    raw: bytes
    hash: bytes
    record: Record


def seal(record: Record, identity: Identity) -> bytes:
    """The signed bytes of a record; equal for equal records, since the signature is deterministic."""
    payload = schema.encode(record)
    return msgspec.msgpack.encode(Envelope(payload, identity.sign(payload)))


@functools.lru_cache(maxsize=128)  # pure: in a simulation every node opens the same bytes
def open_envelope(raw: bytes) -> SignedRecord:
    """Decodes, bounds and verifies. Raises RecordError("undecodable" | "not canonical" | "bad signature")."""
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise RecordError("undecodable", f"{len(raw)} bytes, at most {MAX_ENVELOPE_BYTES} are read")
    try:
        envelope = _envelope_decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RecordError("undecodable", str(error)) from None
    if msgspec.msgpack.encode(envelope) != raw:
        raise RecordError("not canonical", "the envelope is not in its one encoding")
    record = schema.decode(envelope.payload)
    if not verify(record.author, envelope.signature, envelope.payload):
        raise RecordError("bad signature", "the author's key did not sign these bytes")
    return SignedRecord(raw, schema.content_hash(envelope.payload), record)
