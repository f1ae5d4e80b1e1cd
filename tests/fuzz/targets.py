"""What reads the bytes of strangers, as functions of any bytes: each raises where a promise is broken, and only then.

`benchmarks.fuzz` gives them a million inputs each; test_fuzz.py those of the corpus.
"""

import contextlib
from collections.abc import Callable

import msgspec
from google.protobuf.message import DecodeError
from libp2p.pubsub.pb import rpc_pb2

from rlswarm_jax.game.prompts import Budgets, View
from rlswarm_jax.game.quote import quote, unquote
from rlswarm_jax.identity import author_of
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import CRITIQUE, REVISE, Envelope, RecordError
from rlswarm_jax.swarm import exchange, frames, greeting, showing
from rlswarm_jax.swarm.frames import MalformedError
from rlswarm_jax.tasks import Problem
from tests.game.adversarial import settings_of
from tests.records.samples import ALICE

TOPIC = frames.topic_of("tests")
RESERVED = ("", "<", "<|:;~!#", "|[{ ")
PROBLEM = Problem("", 0, "1 + 1", "1+1", ("2",))
SETTINGS = tuple(settings_of(Budgets(24, 24)).values())
REFUSED = msgspec.DecodeError, RecursionError, UnicodeDecodeError  # as all that decode expect
REQUESTS = (exchange._requests, exchange._replies, showing._requests, showing._replies, greeting._hellos)


def text_of(data: bytes) -> str:
    """Any bytes as a text that a record may have."""
    return data.decode("utf-8", errors="replace")


def decoder(data: bytes) -> None:
    with contextlib.suppress(RecordError):
        assert schema.encode(schema.decode(data)) == data


def envelope(data: bytes) -> None:
    """As it comes; and as what somebody has signed, which gets past the signature if they say that they are Alice."""
    with contextlib.suppress(RecordError):
        assert open_envelope(data).raw == data
    signed = msgspec.msgpack.encode(Envelope(data, ALICE.sign(data)))
    with contextlib.suppress(RecordError):
        opened = open_envelope(signed)
        assert opened.record.author == ALICE.author and opened.hash == schema.content_hash(data)


def of_exchange(data: bytes) -> None:
    """A frame, and what it may be: a request or reply for records, weights or rules."""
    buffer = bytearray(data)
    with contextlib.suppress(MalformedError):
        while (frame := frames.take_frame(buffer, 1024)) is not None:
            assert len(frame) <= 1024
    for reader in REQUESTS:
        with contextlib.suppress(*REFUSED):
            said = reader.decode(data)
            assert reader.decode(msgspec.msgpack.encode(said)) == said
            for address in getattr(said, "addresses", []):
                found = exchange.parse_address(address)
                assert found is None or author_of(found.peer_id.to_bytes())


def pubsub(data: bytes) -> None:
    buffer = bytearray(data)
    with contextlib.suppress(MalformedError):
        while (frame := frames.take_frame(buffer, frames.MAX_FRAME_BYTES)) is not None:
            _of_rpc(frame)
    with contextlib.suppress(MalformedError):
        _of_rpc(data)


def _of_rpc(frame: bytes) -> None:
    rpc = rpc_pb2.RPC()
    try:
        rpc.ParseFromString(frame)
    except DecodeError:
        return
    for message in rpc.publish:
        if frames.well_formed(message, TOPIC):
            author = author_of(message.from_id)
            assert author is not None
            frames.signature_holds(message)
        with contextlib.suppress(RecordError):
            inline, announced = frames.content(message)
            if announced is None:
                frames.check_record(inline, "tests", ALICE.author)
    if rpc.HasField("control"):
        bounded = frames.bounded_control(rpc.control, TOPIC)
        assert all(entry.topicID == TOPIC for kind in (bounded.ihave, bounded.graft, bounded.prune) for entry in kind)
        assert all(entry.backoff <= 3600 for entry in bounded.prune)


def prompts(data: bytes) -> None:
    """Others' texts in the prompts of both families; and any text as what a model says, and as a prompt."""
    which, counts, *rest = (*data[:2], data[2:]) if len(data) > 2 else (0, 0, data)
    setting, stage = SETTINGS[which % len(SETTINGS)], (CRITIQUE, REVISE)[which >> 7]
    texts = [text_of(part) for part in rest[0].split(b"\xff")][:5]
    answers = tuple(texts[: 1 + counts % 3]) or ("",)
    votes = tuple(range(len(answers))) if counts >> 7 else ()
    view = View(answers, votes, tuple(texts[len(answers) :]))
    tokens = setting.format.encode(PROBLEM, setting.tokenizer, stage, view)
    control = {token for token in tokens} & set(setting.tokenizer.backend.get_added_tokens_decoder())
    assert sum(token in control for token in tokens) == setting.control
    for text in texts:
        named = setting.format.named(text, range(1, 4))
        assert named is None or named in range(4)
        setting.format.answer(text), setting.format.derived(text), setting.format.keeps(text)
        setting.format.said(stage, text)
        for prompt in (text, [{"role": "system", "content": ""}, {"role": "user", "content": text}]):
            with contextlib.suppress(ValueError):
                setting.format.family.parse(stage, prompt)


def quoting(data: bytes) -> None:
    flags, text = (data[0], text_of(data[1:])) if data else (0, "")
    reserved = RESERVED[flags % len(RESERVED)]
    quoted = quote(text, reserved, ascii_only=bool(flags & 128))
    assert unquote(quoted) == text and not {*reserved} & {*quoted}
    with contextlib.suppress(ValueError):
        unquote(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decoder": decoder,
    "envelope": envelope,
    "exchange": of_exchange,
    "pubsub": pubsub,
    "prompts": prompts,
    "quoting": quoting,
}
