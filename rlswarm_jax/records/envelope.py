"""Signing records and checking what arrives."""

import dataclasses
import weakref

import msgspec

from rlswarm_jax.identity import Identity, verify
from rlswarm_jax.records import rotations, schema
from rlswarm_jax.records.schema import Envelope, Record, RecordError

_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
MAX_ENVELOPE_BYTES = schema.MAX_RECORD_BYTES + 128


@dataclasses.dataclass(frozen=True, order=True)
class SignedRecord:
    """A record whose form, bounds and signature were checked. `raw`, from which all follows, travels."""

    raw: bytes
    hash: bytes = dataclasses.field(compare=False)
    record: Record = dataclasses.field(compare=False)


# pure, so the same bytes are opened once for as long as anybody in this process holds what they say
_opened: "weakref.WeakValueDictionary[bytes, SignedRecord]" = weakref.WeakValueDictionary()


def seal(record: Record, identity: Identity) -> bytes:
    """The signed bytes of a record; equal for equal records, since the signature is deterministic."""
    payload = schema.encode(record)
    return msgspec.msgpack.encode(Envelope(payload, identity.sign(payload)))


def open_envelope(raw: bytes) -> SignedRecord:
    """Decodes, bounds and verifies.

    Raises RecordError("undecodable" | "not canonical" | "bad signature" | "false rotation").
    """
    known = _opened.get(raw)
    if known is None:
        known = _opened[raw] = _open(raw)
    return known


def _open(raw: bytes) -> SignedRecord:
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
    rotations.check(record)
    return SignedRecord(raw, schema.content_hash(envelope.payload), record)
