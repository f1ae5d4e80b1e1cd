"""What may come from a peer's stream: bounded frames, and what a message and a control message must be like.

Imports libp2p, which takes seconds: import it where the network is started.
"""

from typing import Annotated

import coincurve
import msgspec
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from msgspec import Meta

from rlswarm_jax.identity import author_of
from rlswarm_jax.records.envelope import MAX_ENVELOPE_BYTES, SignedRecord, open_envelope
from rlswarm_jax.records.schema import Hash, RecordError

INLINE, ANNOUNCEMENT = b"\x00", b"\x01"  # the first byte of a message says what follows
MAX_FRAME_BYTES = 1 << 20
MAX_DATA_BYTES = (1 << 16) + 1
MAX_ENTRIES, MAX_IDS = 64, 1024  # in one frame; message ids apart
_READ_BYTES = 1 << 16


class Announcement(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A record too large to be inline: SHA-256 and length of its envelope."""

    hash: Hash
    size: Annotated[int, Meta(gt=0, le=MAX_ENVELOPE_BYTES)]


_announcements = msgspec.msgpack.Decoder(Announcement)


class MalformedError(ValueError):
    """A frame that no correct peer sends."""


def topic_of(swarm: str) -> str:
    return f"/rlswarm_jax/{swarm}/records/1"


def take_frame(buffer: bytearray, max_bytes: int) -> bytes | None:
    """The next length-prefixed frame, taken out of the buffer; None if it has not all come. Raises MalformedError."""
    length, start = 0, 0
    while True:
        if start == len(buffer):
            return None
        length |= (buffer[start] & 0x7F) << (7 * start)
        start += 1
        if length > max_bytes or start > 4:
            raise MalformedError(f"a frame of more than {max_bytes} bytes")
        if not buffer[start - 1] & 0x80:
            break
    if len(buffer) < start + length:
        return None
    frame = bytes(buffer[start : start + length])
    del buffer[: start + length]
    return frame


async def read_frame(stream: INetStream, buffer: bytearray, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The next frame of a stream; `buffer` keeps what came after it. Raises MalformedError and the stream's errors.

    Reads much at once: the library takes the length byte by byte, each time through all its layers.
    """
    while (frame := take_frame(buffer, max_bytes)) is None:
        chunk = await stream.read(_READ_BYTES)
        if not chunk:
            raise StreamEOF("the stream ended within a frame")
        buffer += chunk
    return frame


def well_formed(msg: rpc_pb2.Message, topic: str) -> bool:
    """Whether a message is for our topic alone, from a key that its sender's id holds, and of bounded size."""
    return (
        list(msg.topicIDs) == [topic]
        and len(msg.from_id) == 39
        and author_of(msg.from_id) is not None
        and msg.key in (b"", msg.from_id[2:])
        and len(msg.seqno) == 8
        and 0 < len(msg.data) <= MAX_DATA_BYTES
    )


def signature_holds(msg: rpc_pb2.Message) -> bool:
    """StrictSign, for keys that are in the peer id: what the library checks, without rebuilding ids and keys."""
    bare = rpc_pb2.Message(data=msg.data, topicIDs=msg.topicIDs, from_id=msg.from_id, seqno=msg.seqno)
    payload = PUBSUB_SIGNING_PREFIX.encode() + bare.SerializeToString()
    try:
        return coincurve.PublicKey(msg.from_id[-33:]).verify(msg.signature, payload)
    except ValueError:  # no signature in DER
        return False


def content(msg: rpc_pb2.Message) -> tuple[bytes, Announcement | None]:
    """The record that a message carries, or what it announces. Raises RecordError("undecodable")."""
    if msg.data[:1] == INLINE:
        return msg.data[1:], None
    if msg.data[:1] != ANNOUNCEMENT:
        raise RecordError("undecodable", "neither a record nor an announcement of one")
    try:
        return b"", _announcements.decode(msg.data[1:])
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError("undecodable", str(error)) from None


def bounded_control(control: rpc_pb2.ControlMessage, topic: str) -> rpc_pb2.ControlMessage:
    """What of a control message concerns our topic. Raises MalformedError if there is more than anyone has to say."""
    lists = (control.ihave, control.iwant, control.graft, control.prune, control.idontwant)
    ids = sum(len(entry.messageIDs) for kind in (control.ihave, control.iwant, control.idontwant) for entry in kind)
    if sum(map(len, lists)) > MAX_ENTRIES or ids > MAX_IDS:
        raise MalformedError("too many entries in a control message")
    return rpc_pb2.ControlMessage(
        ihave=[entry for entry in control.ihave if entry.topicID == topic],
        iwant=control.iwant,
        graft=[entry for entry in control.graft if entry.topicID == topic],
        prune=[
            rpc_pb2.ControlPrune(topicID=topic, backoff=min(entry.backoff, 3600))
            for entry in control.prune
            if entry.topicID == topic
        ],
    )


def check_record(raw: bytes, swarm: str, author: bytes) -> SignedRecord:
    """A record of this swarm that `author` sent as its own. Raises RecordError."""
    signed = open_envelope(raw)
    if signed.record.swarm != swarm:
        raise RecordError("wrong swarm", f"it is for {signed.record.swarm!r}")
    if signed.record.author != author:
        raise RecordError("foreign sender", "it was sent by someone else than its author")
    return signed
