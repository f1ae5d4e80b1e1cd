import hashlib

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.identity import verify
from rlswarm_jax.records import envelope, schema
from rlswarm_jax.records.envelope import open_envelope, seal
from rlswarm_jax.records.schema import RecordError
from tests.records import samples
from tests.records.samples import ALICE, BOB

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SEALED = samples.sealed()
PAYLOAD, SIGNATURE = msgpack.unpackb(SEALED)


def packed(payload: bytes, signature: bytes) -> bytes:
    return msgpack.packb([payload, signature], use_bin_type=True)


def cause(raw: bytes) -> str:
    with pytest.raises(RecordError) as caught:
        open_envelope(raw)
    return caught.value.cause


@settings(deadline=None, max_examples=30)
@given(samples.records, st.sampled_from([ALICE, BOB]))
def test_what_is_sealed_opens_to_the_same_record(record, author):
    record = msgspec.structs.replace(record, author=author.author)
    raw = seal(record, author)
    signed = open_envelope(raw)
    assert (signed.record, signed.raw) == (record, raw)
    assert signed.hash == hashlib.sha256(schema.encode(record)).digest()
    assert raw == seal(record, author)  # deterministic: sealing again cannot contradict what was sent


def test_the_signature_covers_the_canonical_bytes():
    assert schema.encode(samples.record()) == PAYLOAD
    assert verify(ALICE.author, SIGNATURE, PAYLOAD)
    assert packed(PAYLOAD, SIGNATURE) == SEALED


def test_a_forged_record_does_not_open():
    other = schema.encode(samples.record(round=4))
    of_bob = schema.encode(samples.record(BOB))
    assert cause(packed(other, SIGNATURE)) == "bad signature"  # another payload under the signature
    assert cause(packed(PAYLOAD, BOB.sign(PAYLOAD))) == "bad signature"  # in another's name
    assert cause(packed(of_bob, ALICE.sign(of_bob))) == "bad signature"
    assert cause(packed(PAYLOAD, bytes(64))) == "bad signature"
    assert cause(packed(PAYLOAD, b"\xff" * 64)) == "bad signature"


def test_an_author_that_is_no_point_of_the_curve_is_a_bad_signature():
    for author in (bytes(33), b"\x02" + b"\xff" * 32, b"\x04" + ALICE.author[1:], b"\xff" * 33):
        payload = schema.encode(samples.record(author=author))
        assert cause(packed(payload, ALICE.sign(payload))) == "bad signature"


def test_a_malleated_signature_does_not_open():
    """(r, n - s) is as true as (r, s): were it let in, one record would have two envelopes."""
    high = ORDER - int.from_bytes(SIGNATURE[32:])
    assert cause(packed(PAYLOAD, SIGNATURE[:32] + high.to_bytes(32))) == "bad signature"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 8 * len(SEALED) - 1))
def test_no_bit_of_an_envelope_can_be_flipped(bit):
    damaged = bytearray(SEALED)
    damaged[bit // 8] ^= 1 << bit % 8
    assert cause(bytes(damaged)) in ("undecodable", "another version", "not canonical", "bad signature")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_as_undecodable(raw):
    assert cause(raw) == "undecodable"
    assert cause(packed(raw, SIGNATURE)) in ("undecodable", "another version")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (SEALED + b"\x00", "undecodable"),
        (SEALED[:-1], "undecodable"),
        (msgpack.packb({"payload": PAYLOAD, "signature": SIGNATURE}), "undecodable"),
        (msgpack.packb([PAYLOAD, SIGNATURE, 1]), "undecodable"),
        (packed(PAYLOAD, SIGNATURE[:-1]), "undecodable"),
        (packed(PAYLOAD, SIGNATURE + b"\x1b"), "undecodable"),
        (b"\xdc\x00\x02" + SEALED[1:], "not canonical"),
        (SEALED.replace(b"\xc4\x40", b"\xc5\x00\x40"), "not canonical"),
        (packed(PAYLOAD.replace(b"\xa5tests", b"\xd9\x05tests"), SIGNATURE), "not canonical"),
        (b"\x91" * 1_000_000, "undecodable"),
        (bytes(envelope.MAX_ENVELOPE_BYTES + 1), "undecodable"),
    ],
)
def test_an_envelope_has_one_encoding_within_bounds(raw, expected):
    assert cause(raw) == expected


def test_too_many_bytes_are_refused_unread():
    with pytest.raises(RecordError, match="undecodable: 1048705 bytes, at most 1048704 are read"):
        open_envelope(SEALED.ljust(envelope.MAX_ENVELOPE_BYTES + 1, b"\0"))


def test_a_non_canonical_payload_is_refused_even_with_its_author_s_signature():
    loose = PAYLOAD.replace(b"\xa5tests", b"\xd9\x05tests")
    assert cause(packed(loose, ALICE.sign(loose))) == "not canonical"


def test_the_largest_record_fits_its_envelope():
    spare = schema.MAX_RECORD_BYTES - len(schema.encode(samples.record(groups=[])))
    groups = [samples.group([samples.completion(text="x" * (spare // 17 - 40))] * 17)]
    record = samples.record(groups=groups)
    assert len(schema.encode(record)) > schema.MAX_RECORD_BYTES - 1000
    assert open_envelope(seal(record, ALICE)).record == record
