import ast
import hashlib
import json
import struct
import tracemalloc
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rlswarm_jax
from rlswarm_jax.records import schema
from rlswarm_jax.records.schema import RecordError
from tests.records import samples

VALID = schema.encode(samples.record())
replace = msgspec.structs.replace


def cause(raw: bytes) -> str:
    """Why bytes are refused."""
    with pytest.raises(RecordError) as caught:
        schema.decode(raw)
    assert caught.value.cause in schema.CAUSES and caught.value.cause in str(caught.value)
    return caught.value.cause


def as_lists(struct: msgspec.Struct):
    """What msgpack, another implementation, is to make of a record: arrays of fields in their order."""
    if isinstance(struct, msgspec.Struct):
        return [as_lists(getattr(struct, field)) for field in struct.__struct_fields__]
    return [as_lists(item) for item in struct] if isinstance(struct, list) else struct


def repacked(change) -> bytes:
    """The valid record's arrays after `change`, packed by another implementation of MessagePack."""
    return msgpack.packb(change(msgpack.unpackb(VALID)), use_bin_type=True)


def with_field(index, value):
    return lambda fields: [*fields[:index], value, *fields[index + 1 :]]


@settings(deadline=None)
@given(samples.records)
def test_a_valid_record_survives_the_wire_and_has_one_encoding(record):
    raw = schema.encode(record)
    assert schema.decode(raw) == record
    assert schema.encode(schema.decode(raw)) == raw
    assert raw == msgpack.packb(
        as_lists(record), use_bin_type=True
    )  # the foreign encoder's bytes are the canonical ones


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), samples.logprobs), min_size=1, max_size=20))
def test_tokens_and_logprobs_keep_every_bit(pairs):
    tokens, logprobs = map(list, zip(*pairs, strict=True))
    packed = samples.completion(tokens, logprobs)
    read = (
        schema.decode(schema.encode(samples.record(groups=[samples.group([packed, packed])]))).groups[0].completions[0]
    )
    assert read.tokens_T.tolist() == tokens and read.tokens_T.dtype == np.int32
    assert struct.pack(f"<{len(logprobs)}f", *read.logprobs_T) == struct.pack(f"<{len(logprobs)}f", *logprobs)


@settings(deadline=None, max_examples=40)
@given(samples.records, st.data())
def test_damaged_bytes_are_refused_or_say_something_else_canonically(record, data):
    """One flipped bit, cut off or added bytes: never the same record, never another error than RecordError."""
    raw = schema.encode(record)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1), "bit")
    flipped = bytearray(raw)
    flipped[bit // 8] ^= 1 << bit % 8
    cut = raw[: data.draw(st.integers(0, len(raw) - 1), "length")]
    extended = raw + data.draw(st.binary(min_size=1, max_size=9), "more")
    for damaged in (bytes(flipped), cut, extended):
        try:
            read = schema.decode(damaged)
        except RecordError as error:
            assert error.cause in ("undecodable", "another version", "not canonical")
        else:
            assert damaged == bytes(flipped), "a cut or extended record was read"
            assert read != record and schema.encode(read) == damaged


def test_no_single_bit_of_a_record_can_be_flipped_unnoticed():
    record, seen = schema.decode(VALID), {schema.content_hash(VALID)}
    for bit in range(8 * len(VALID)):
        damaged = bytearray(VALID)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            read = schema.decode(bytes(damaged))
        except RecordError:
            continue
        assert read != record and schema.encode(read) == bytes(damaged)
        seen.add(schema.content_hash(bytes(damaged)))
    assert len(seen) > 100  # ids and text, say, may be other ids and another text: a record of another name


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\x9b")
def test_random_bytes_are_undecodable_and_nothing_worse(raw):
    other = schema._version_of(raw) not in (None, schema.VERSION, schema.ANNOUNCING)
    assert cause(raw) == ("another version" if other else "undecodable")


@given(st.binary(max_size=60), st.integers(0, len(VALID)), st.integers(0, 60))
def test_random_bytes_spliced_into_a_record_raise_nothing_but_record_errors(noise, start, length):
    raw = VALID[:start] + noise + VALID[start + length :]
    try:
        assert schema.encode(schema.decode(raw)) == raw
    except RecordError as error:
        assert error.cause in ("undecodable", "another version", "not canonical")


def test_a_record_is_named_by_its_bytes():
    assert schema.content_hash(VALID) == hashlib.sha256(VALID).digest()


@pytest.mark.parametrize(
    "raw",
    [
        VALID.replace(b"\xa5tests", b"\xd9\x05tests"),  # str 8 where fixstr is shorter
        VALID.replace(b"\xa5tests", b"\xda\x00\x05tests"),  # str 16
        VALID.replace(b"\xc4\x21", b"\xc5\x00\x21", 1),  # bin 16
        b"\xdc\x00\x0d" + VALID[1:],  # array 16
        b"\x9d\xcc\x04" + VALID[2:],  # uint 8
        b"\x9d\xd3" + struct.pack(">q", 4) + VALID[2:],  # int 64
        b"\x9d\xcb" + struct.pack(">d", 4.0) + VALID[2:],  # a float that is whole
        VALID.replace(b"\xcb" + struct.pack(">d", 1.0), b"\xca" + struct.pack(">f", 1.0)),  # float 32
        VALID.replace(b"\xcb" + struct.pack(">d", 1.0), b"\x01"),  # an integer for a float
    ],
)
def test_a_longer_form_of_the_same_record_is_not_canonical(raw):
    assert raw != VALID
    with pytest.raises(RecordError, match=r"not canonical|got `float`"):
        schema.decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        VALID + b"\x00",
        VALID + VALID,
        repacked(lambda fields: dict(zip(schema.Record.__struct_fields__, fields, strict=True))),
        repacked(lambda fields: [*fields, None]),
        repacked(lambda fields: fields[:-1]),
        repacked(with_field(1, b"tests")),  # bytes for text
        repacked(with_field(1, None)),
        repacked(with_field(3, -1)),
        repacked(with_field(3, 2**32)),
        repacked(with_field(3, "3")),
        repacked(with_field(3, True)),
        repacked(with_field(11, {})),
        repacked(with_field(11, [VALID])),
        repacked(with_field(11, msgpack.Timestamp(0, 0))),
        repacked(with_field(11, msgpack.ExtType(1, b"x"))),
        json.dumps("tests").encode(),
    ],
)
def test_other_shapes_are_undecodable(raw):
    assert cause(raw) == "undecodable"


ILL = {
    "too many groups": {"groups": [samples.group()] * (schema.MAX_GROUPS + 1)},
    "too many completions": {"groups": [samples.group([samples.completion()] * (schema.MAX_GROUP_SIZE + 1))]},
    "one completion": {"groups": [samples.group([samples.completion()])]},
    "too many tokens": {"groups": [samples.group([samples.completion([1] * (schema.MAX_TOKENS + 1))] * 2)]},
    "no tokens": {"groups": [samples.group([samples.completion([])] * 2)]},
    "too long a text": {"groups": [samples.group([samples.completion(text="x" * (schema.MAX_TEXT + 1))] * 2)]},
    "too many bytes": {"groups": [samples.group([samples.completion(text="x" * schema.MAX_TEXT)] * 17)]},
    "more log-probs than tokens": {"groups": [samples.group([samples.completion([1], [-1.0, -1.0])] * 2)]},
    "fewer log-probs than tokens": {"groups": [samples.group([samples.completion([1, 2], [-1.0])] * 2)]},
    "half a token": {"groups": [samples.group([schema.Completion(b"\0" * 6, b"\0" * 6, "")] * 2)]},
    "a negative token": {"groups": [samples.group([samples.completion([1, -1])] * 2)]},
    "a positive log-prob": {"groups": [samples.group([samples.completion([1, 2], [-1.0, 1e-6])] * 2)]},
    "a NaN log-prob": {"groups": [samples.group([samples.completion([1, 2], [-1.0, np.nan])] * 2)]},
    "an infinite log-prob": {"groups": [samples.group([samples.completion([1, 2], [-1.0, -np.inf])] * 2)]},
    "a short parent": {"groups": [samples.group(parents=[b"x" * 31])]},
    "too many parents": {"groups": [samples.group(parents=[b"x" * 32] * (schema.MAX_GROUPS + 1))]},
    "a negative seed": {"groups": [samples.group(problem_seed=-1)]},
    "too large a seed": {"groups": [samples.group(problem_seed=2**63)]},
    "a seed beyond MessagePack": {"groups": [samples.group(problem_seed=2**64)]},
    "another version": {"version": schema.VERSION + 1},
    "version 0": {"version": 0},
    "a version to come": {"version": schema.ANNOUNCING + 1},
    "a long name": {"swarm": "x" * 65},
    "a lone surrogate": {"swarm": "\ud800"},
    "a surrogate in a text": {"groups": [samples.group([samples.completion(text="\udfff")] * 2)]},
    "a short author": {"author": b"x" * 32},
    "a long author": {"author": b"x" * 34},
    "a negative round": {"round": -1},
    "too large a round": {"round": 2**32},
    "temperature 0": {"temperature": 0.0},
    "temperature -0": {"temperature": -0.0},
    "a negative temperature": {"temperature": -1.0},
    "temperature NaN": {"temperature": float("nan")},
    "temperature inf": {"temperature": float("inf")},
    "temperature -inf": {"temperature": float("-inf")},
}


@pytest.mark.parametrize("fields", ILL.values(), ids=ILL)
def test_what_is_out_of_bounds_is_neither_sent_nor_read(fields):
    record = samples.record(**fields)
    with pytest.raises(RecordError) as caught:
        schema.encode(record)
    known = fields.get("version", schema.VERSION) in (schema.VERSION, schema.ANNOUNCING)
    assert caught.value.cause == ("undecodable" if known else "another version")
    try:
        raw = msgspec.msgpack.encode(record)  # what a careless peer would send
    except (UnicodeEncodeError, OverflowError):
        return
    assert cause(raw) == ("undecodable" if known else "another version")


@pytest.mark.parametrize("version", [0, 3, 6, 127, 128, 255, 256, 65535, 65536, 2**32 - 1])
@pytest.mark.parametrize("fields", [0, 1, 12, 14, 40])
def test_a_record_of_any_other_version_is_known_for_what_it_is_whatever_else_is_in_it(version, fields):
    with pytest.raises(RecordError) as caught:
        schema.decode(msgspec.msgpack.encode([version, *[{"new": 1.5}] * fields]))
    assert (caught.value.cause, caught.value.version) == ("another version", version)


@given(st.binary(max_size=40))
def test_of_bytes_that_are_no_array_that_begins_with_a_number_nothing_is_said(raw):
    """Against a decoder of all of MessagePack."""
    try:
        first = msgspec.msgpack.decode(raw)
        number = first[0] if isinstance(first, list) and first and type(first[0]) is int and first[0] >= 0 else None
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
        number = None
    if number is not None and number < 2**32:
        assert schema._version_of(raw) == number
    elif number is None:
        assert schema._version_of(raw) is None or raw[:1] == b"\xdc" or raw[0] >> 4 == 9  # cut off later


AT_THE_LIMIT = {
    "groups": {"groups": [samples.group()] * schema.MAX_GROUPS},
    "completions": {"groups": [samples.group([samples.completion()] * schema.MAX_GROUP_SIZE)]},
    "tokens": {"groups": [samples.group([samples.completion([1] * schema.MAX_TOKENS)] * 2)]},
    "text": {"groups": [samples.group([samples.completion(text="x" * schema.MAX_TEXT)] * 2)]},
    "names": {"swarm": "é" * 64},
    "numbers": {"round": 2**32 - 1, "groups": [samples.group(problem_seed=2**63 - 1, index=2**32 - 1)]},
    "log-probs": {"groups": [samples.group([samples.completion([0, 2**31 - 1], [-0.0, -3e38])] * 2)]},
    "nothing": {"groups": []},
}


@pytest.mark.parametrize("fields", AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
def test_what_is_just_within_bounds_is_sent_and_read(fields):
    record = samples.record(**fields)
    assert schema.decode(schema.encode(record)) == record


@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf8\x88\x80\x80\x80", b"a\xc3"])
def test_text_that_is_not_utf8_is_undecodable(text):
    whole = bytes([0xA0 + len(text)]) + text
    assert cause(VALID.replace(b"\xa2ab", whole, 1)) == "undecodable"
    assert cause(VALID.replace(b"\xa5tests", whole, 1)) == "undecodable"


BOMBS = {
    "nested arrays": b"\x91" * 1_000_000,
    "nested arrays in a record": VALID[:-1] + b"\x91" * 1_000_000,
    "nested maps": b"\x81\x01" * 500_000,
    "an array of 2**32 - 1": b"\xdd\xff\xff\xff\xff",
    "groups, 2**32 - 1 of them": VALID[: VALID.index(b"\xcb") + 9] + b"\xdd\xff\xff\xff\xff" + b"\x96" * 1000,
    "a text of 2**32 - 1": b"\x9d\x04\xdb\xff\xff\xff\xff",
    "bytes of 2**32 - 1": b"\x9d\x04\xa1x\xc6\xff\xff\xff\xff",
    "a million empty arrays": b"\xdd\x00\x0f\x00\x00" + b"\x90" * 983_040,
    "over the size": VALID + b"\x00" * schema.MAX_RECORD_BYTES,
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_without_memory(raw):
    tracemalloc.start()
    try:
        assert cause(raw) == "undecodable"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_every_cause_that_is_raised_anywhere_is_a_known_cause():
    found = set()
    for path in Path(rlswarm_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RecordError":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno} names no cause"
                found.add(node.args[0].value)
    assert found == set(schema.CAUSES)  # and no cause is listed that never occurs


def test_no_record_has_room_for_a_verdict():
    """What travels is what was sampled and where it came from; correctness is for the receiver to find."""
    assert schema.Completion.__struct_fields__ == ("tokens", "logprobs", "text")
    assert schema.Group.__struct_fields__ == (
        "task",
        "task_fingerprint",
        "index",
        "problem_seed",
        "parents",
        "vote",
        "completions",
    )
    for place in (lambda f: [*f, 1.0], lambda f: with_field(11, [[*f[11][0], 1.0]])(f)):
        assert cause(repacked(place)) == "undecodable"
