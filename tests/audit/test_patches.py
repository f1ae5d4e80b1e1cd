"""A patch gives every bit of the weights it leads to, whatever they are, or says what is wrong with it."""

import itertools
import tracemalloc
import zlib

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.audit import patches
from rlswarm_jax.audit.patches import PatchError, apply, encode, header
from rlswarm_jax.qwen import tensors_hash
from tests.qwen.test_naming import same

DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
ODD = {2: [0x8000, 0x7FC1, 0xFFFF, 0x7F80, 0x0001], 4: [0x80000000, 0x7FC00123, 0xFFFFFFFF, 0x7F800000, 0x00000001]}
WHOLE, SPARSE = 1, 2
SHAPE = st.lists(st.integers(1, 40), max_size=2).map(tuple)


def drawn(dtype="F32", seed=0, **shapes):
    rng = np.random.default_rng(seed)
    shapes = shapes or {"norm": (9,), "embed": (40, 16), "up": (24, 16)}
    return {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}


def changed(old, entries, seed=1):
    """Another one: at some entries in the order of names, their bits off by a rounding or anything at all."""
    rng, start, new = np.random.default_rng(seed), 0, {name: array.copy() for name, array in old.items()}
    for name in sorted(new):
        bits = new[name].reshape(-1).view(f"<u{new[name].itemsize}")
        for at in (e - start for e in entries if start <= e < start + bits.size):
            to = rng.choice([int(bits[at]) ^ 1, int(bits[at]) ^ 3, *ODD[bits.itemsize]])
            bits[at] = to if to != bits[at] else bits[at] ^ 2
        start += bits.size
    return new


def total(tensors):
    return sum(array.size for array in tensors.values())


def decoded(patch, old=None):
    """As the docstring of patches.py has it, an entry at a time, with another reader of MessagePack."""
    size = int.from_bytes(patch[:8], "little")
    head, body = msgpack.unpackb(patch[8 : 8 + size]), patch[-(-(8 + size) // 8) * 8 :]
    if head[0] == WHOLE:
        _, _, kind, listed = head
        found = {}
        for name, shape in listed:
            taken = int(np.prod(shape)) * DTYPES[kind].itemsize
            found[name], body = np.frombuffer(body[:taken], DTYPES[kind]).reshape(shape), body[taken:]
        return found
    _, _, _, count, gap_bytes, taken = head
    streams = []
    for length, plain in zip(taken, [gap_bytes] + [count] * (len(taken) - 1), strict=True):
        stream, body = body[:length], body[length:]
        streams.append(stream if length == plain else zlib.decompress(stream))
    found, places = {}, []
    for name in sorted(old):
        found[name] = old[name].copy()
        places += [(found[name].reshape(-1).view(f"<u{old[name].itemsize}"), i) for i in range(old[name].size)]
    gaps, planes = streams[0], streams[1:]
    at, entry, modulus = -1, 0, 256 ** len(planes)
    for byte in gaps:
        at += byte
        if byte < 255:
            at += 1
            code = sum(plane[entry] << 8 * k for k, plane in enumerate(planes))
            difference = code // 2 if code % 2 == 0 else -(code + 1) // 2
            bits, i = places[at]
            bits[i] = (int(bits[i]) + difference) % modulus
            entry += 1
    assert not body and entry == count
    return found


@pytest.fixture
def always_sparse(monkeypatch):
    monkeypatch.setattr(patches, "WORTH", 1e9)


def forged(head, body=b""):
    raw = msgpack.packb(head)
    return len(raw).to_bytes(8, "little") + raw + bytes(-len(raw) % 8) + body


def taken_apart(patch):
    size = int.from_bytes(patch[:8], "little")
    return msgpack.unpackb(patch[8 : 8 + size]), patch[-(-(8 + size) // 8) * 8 :]


def refused(patch, old, *said):
    with pytest.raises(PatchError) as error:
        apply(patch, old)
    for words in said:
        assert words in str(error.value)


class TestBits:
    @pytest.mark.parametrize("block", [7, 1 << 20])
    @pytest.mark.parametrize("dtype", DTYPES)
    @given(data=st.data())
    @settings(deadline=None, max_examples=25)
    def test_every_bit_is_given_again(self, dtype, block, data):
        shapes = data.draw(st.dictionaries(st.from_regex("[a-z.0-9]{1,6}", fullmatch=True), SHAPE, min_size=1))
        old = drawn(dtype, **shapes)
        entries = data.draw(st.sets(st.integers(0, total(old) - 1)) | st.just(set(range(total(old)))))
        new = changed(old, entries, data.draw(st.integers(0, 99)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patches, "BLOCK", block)
            for worth in (patches.WORTH, 1e9):
                patch.setattr(patches, "WORTH", worth)
                found = encode(new, old)
                assert same(apply(found, old), new)
            assert header(found).parent == tensors_hash(old) and header(found).weights == tensors_hash(new)
            assert same(decoded(found, old), new)
            assert same(apply(encode(new, None), None), new)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("entries", [[], [0], [799], [0, 254, 510, 767], range(800), [0, 256, 799]], ids=str)
    def test_gaps_of_every_length(self, dtype, entries, always_sparse):
        """Of 253, 254, 255, 256, and what a few bytes 255 take."""
        old = drawn(dtype, a=(500,), b=(30, 10))
        new = changed(old, entries)
        found = encode(new, old)
        assert header(found).changed == len(entries)
        assert same(apply(found, old), new) and same(decoded(found, old), new)

    def test_neither_side_is_touched_and_what_did_not_change_is_shared(self, always_sparse):
        old = drawn()
        before, new = {n: a.copy() for n, a in old.items()}, changed(old, [3, 5])
        found = apply(encode(new, old), old)
        assert same(old, before)
        assert [name for name in old if found[name] is not old[name]] == ["embed"]

    def test_a_long_text_of_numbers_is_read_in_pieces_to_the_same(self, always_sparse, monkeypatch):
        old = drawn("BF16", a=(3000,), b=(50, 50), c=(1,))
        new = changed(old, [*range(0, 5501, 300), *range(2990, 3010), 5500])
        expected = encode(new, old)
        for block in (1, 2, 3, 254, 255, 256, 5500):
            monkeypatch.setattr(patches, "BLOCK", block)
            assert encode(new, old) == expected and same(apply(expected, old), new)


class TestKind:
    def test_a_few_roundings_are_a_sparse_one(self):
        old = drawn("BF16", a=(300, 100))
        new = changed(old, range(0, 30_000, 100))
        patch = encode(new, old)
        assert header(patch).changed == 300 and len(patch) < 0.03 * old["a"].nbytes
        assert same(apply(patch, old), new)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_where_all_is_new_it_is_whole_and_stands_on_nothing(self, dtype):
        old, new = drawn(dtype, seed=0), drawn(dtype, seed=1)
        patch = encode(new, old)
        assert patch == encode(new, None)
        assert taken_apart(patch)[0][0] == WHOLE and same(apply(patch, None), new) and same(decoded(patch), new)
        assert len(patch) < sum(array.nbytes for array in new.values()) + 150

    def test_float32_that_moves_by_a_millionth_is_less_than_a_third(self):
        """As a step at a rate of 1e-6 moves it: all entries, by up to a few hundred roundings."""
        old = drawn("F32", a=(300, 100))
        new = {"a": old["a"] + 1e-6 * drawn("F32", seed=1, a=(300, 100))["a"]}
        patch = encode(new, old)
        assert header(patch).changed > 20_000 and len(patch) < 0.4 * old["a"].nbytes
        assert same(apply(patch, old), new)

    @pytest.mark.parametrize(
        "other",
        [{"a": (6, 4)}, {"a": (24,)}, {"a": (4, 6), "b": (2,)}, {"b": (4, 6)}],
        ids=["turned", "flat", "fewer", "other name"],
    )
    def test_of_another_layout_it_is_whole(self, other):
        old, new = drawn(**other), drawn(a=(4, 6))
        assert same(apply(encode(new, old), None), new)

    def test_nor_can_it_stand_on_another_dtype(self):
        assert same(apply(encode(drawn("BF16"), drawn("F16")), None), drawn("BF16"))

    @pytest.mark.parametrize(
        "tensors",
        [
            {},
            {"a": np.zeros((0, 3), np.float32)},
            {"a": np.zeros(2)},
            {"a": np.ones(2, np.float32), "b": np.ones(2, np.float16)},
        ],
        ids=["none", "empty", "doubles", "mixed"],
    )
    def test_what_are_no_weights(self, tensors):
        with pytest.raises(ValueError, match="of one dtype"):
            encode(tensors, None)


class TestDamage:
    """A patch that is not as it was made is refused, or leads to the same."""

    @pytest.fixture(params=["whole", "sparse", "plain streams"])
    def there(self, request, monkeypatch):
        monkeypatch.setattr(patches, "WORTH", 1e9)
        monkeypatch.setattr(patches, "NOISE", -1 if request.param == "plain streams" else 8)
        old = drawn("BF16", a=(30,), b=(20, 20))
        new = changed(old, range(0, 430, 5) if request.param == "sparse" else [7, 300])
        return encode(new, None if request.param == "whole" else old), old, new

    def check(self, patch, old, new):
        try:
            assert same(apply(patch, old), new)
        except PatchError:
            return 1
        return 0

    def test_of_any_bit(self, there):
        patch, old, new = there
        flipped = [
            patch[:i] + bytes([patch[i] ^ 1 << bit]) + patch[i + 1 :] for i in range(len(patch)) for bit in range(8)
        ]
        assert sum(self.check(one, old, new) for one in flipped) > 0.9 * len(flipped)

    def test_a_part_of_it(self, there):
        patch, old, new = there
        assert all(self.check(patch[:size], old, new) for size in range(len(patch)))

    def test_more_than_it(self, there):
        patch, old, new = there
        assert all(self.check(patch + more, old, new) for more in (b"\0", b"\xff", patch))

    @given(data=st.data())
    @settings(deadline=None, max_examples=100)
    def test_any_bytes(self, data):
        old = drawn("BF16", a=(30,))
        for patch in (data.draw(st.binary(max_size=200)), forged(data.draw(HEADS), data.draw(st.binary(max_size=80)))):
            with pytest.raises(PatchError):
                apply(patch, old)


NUMBER = st.integers(0, 70) | st.integers(0, 2**64 - 1)
NAMED = st.just(tensors_hash(drawn("BF16", a=(30,)))) | st.binary(min_size=31, max_size=33)
HEADS = st.one_of(
    st.tuples(
        st.just(WHOLE), NAMED, st.sampled_from(["F32", "BF16", "I8"]), st.lists(st.tuples(st.text(), st.lists(NUMBER)))
    ),
    st.tuples(st.just(SPARSE), NAMED, NAMED, NUMBER, NUMBER, st.lists(NUMBER, max_size=4)),
)


class TestHostile:
    """Made by hand, of a parent whose 600 entries are bfloat16."""

    OLD = drawn("BF16", a=(100,), b=(20, 25))
    PARENT = tensors_hash(OLD)

    def sparse(self, count, gaps, *planes, parent=PARENT, plain_gaps=None, more=b"", streams=None):
        body = [gaps, *planes]
        streams = [len(part) for part in body] if streams is None else streams
        return forged([SPARSE, bytes(32), parent, count, plain_gaps or len(gaps), streams], b"".join(body) + more)

    def test_honest_by_hand(self):
        """So that what follows fails for the reason it says."""
        refused(
            self.sparse(2, b"\x05\x09", b"\2\2", b"\0\0"), self.OLD, "it gives weights", "and says 0000000000000000"
        )

    def test_a_parent_that_is_another(self):
        new = changed(self.OLD, [4])
        patch = encode(new, self.OLD)
        names = tensors_hash(self.OLD).hex()[:16], tensors_hash(new).hex()[:16]
        assert header(patch).changed == 1
        refused(patch, new, f"stands on weights {names[0]}, not on {names[1]}")
        refused(patch, drawn("BF16", a=(100,)), f"stands on weights {names[0]}")
        refused(patch, None, f"stands on weights {names[0]}, which are not here")

    def test_a_parent_of_another_dtype(self):
        other = drawn("F32", a=(100,))
        refused(self.sparse(1, b"\0", b"\0", b"\0", parent=tensors_hash(other)), other, "streams of [1, 1, 1] bytes")

    @pytest.mark.parametrize(
        "count, gaps",
        [
            (1, b"\xff\xff\x5a"),
            (2, b"\xff\xff\x59\0"),
            (3, b"\0\0"),
            (1, b"\xff\xff"),
            (2, b"\0\0\0"),
            (601, bytes(601)),
        ],
        ids=["behind the last", "the next behind it", "fewer", "none", "more", "more than there are"],
    )
    def test_positions_out_of_range(self, count, gaps):
        plane = bytes(count)
        refused(self.sparse(count, gaps, plane, plane), self.OLD, "gaps")

    def test_the_last_entry_of_all_is_in_range(self):
        refused(self.sparse(1, b"\xff\xff\x59", b"\2", b"\0"), self.OLD, "it gives weights")

    @pytest.mark.parametrize(
        "streams", [[], [1], [1, 1], [1, 1, 1, 1], [2, 1, 1], [1, 0, 2], [2**63 - 1, 1, 1]], ids=str
    )
    def test_streams_that_are_not_there(self, streams):
        refused(self.sparse(1, b"\0", b"\0", b"\0", streams=streams), self.OLD, "stream")

    def test_bytes_behind_the_streams(self):
        refused(self.sparse(1, b"\0", b"\0", b"\0", more=b"\0"), self.OLD, "are not 3 in 4 bytes")

    def test_a_stream_that_takes_more_than_it_holds(self):
        refused(self.sparse(1, b"\0", b"\0\0", b"\0"), self.OLD, "takes 2 bytes for 1")

    @pytest.mark.parametrize(
        "packed",
        [zlib.compress(bytes(599)), zlib.compress(bytes(601)), zlib.compress(bytes(600))[:-1]],
        ids=["shorter", "longer", "cut"],
    )
    def test_a_stream_of_another_length(self, packed):
        plane = bytes(600)
        refused(self.sparse(600, packed, plane, plane, plain_gaps=600), self.OLD, "doesn't decompress to 600 bytes")

    @pytest.mark.parametrize(
        "packed", [zlib.compress(bytes(600)) + b"\0", zlib.compress(bytes(300)) * 2], ids=["a byte", "another"]
    )
    def test_bytes_behind_what_is_compressed(self, packed):
        plane = bytes(600)
        refused(self.sparse(600, packed, plane, plane, plain_gaps=600), self.OLD, "doesn't decompress to 600 bytes")

    def test_what_is_not_compressed(self):
        plane = bytes(600)
        refused(self.sparse(600, b"nonsense", plane, plane, plain_gaps=600), self.OLD, "can't be decompressed")

    def test_little_that_swells_takes_no_memory(self):
        """As much as 600 bytes can hold, and a hundred megabytes of zeros where it is said that they are there."""
        bomb, plane = zlib.compress(bytes(100_000_000), 9), bytes(600)
        short = zlib.compress(bytes(500_000), 9)
        assert len(short) < 600
        mine = [
            self.sparse(600, short, plane, plane, plain_gaps=600),
            self.sparse(600, bomb, plane, plane, plain_gaps=600),
            self.sparse(1, bomb, b"\0", b"\0", plain_gaps=100_000_000),
            forged([WHOLE, bytes(32), "BF16", [["a", [100_000_000]]]], bomb),
            forged([WHOLE, bytes(32), "BF16", [[chr(97 + i), [1 << 40] * 8] for i in range(26)]]),
        ]
        for patch in mine:
            tracemalloc.start()
            refused(patch, self.OLD)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 200_000

    @pytest.mark.parametrize(
        "tensors, why",
        [
            ([["b", [1]], ["a", [1]]], "not sorted"),
            ([["a", [1]], ["a", [1]]], "one is there twice"),
            ([["a", [1]], ["b", [2]]], "take 12 bytes, its body has 8"),
            ([["a", [0]], ["b", [2]]], "header"),
            ([["a\n", [1]], ["b", [1]]], "header"),
            ([["a b", [1]], ["b", [1]]], "header"),
            ([["a", [1] * 9], ["b", [1]]], "header"),
            ([["a", [-1]], ["b", [1]]], "header"),
            ([["a", [1.0]], ["b", [1]]], "header"),
            ([], "header"),
        ],
        ids=range(10),
    )
    def test_tensors_that_are_none(self, tensors, why):
        refused(forged([WHOLE, bytes(32), "F32", tensors], bytes(8)), None, why)

    @pytest.mark.parametrize(
        "head",
        [
            [WHOLE, bytes(32), "F64", [["a", [1]]]],
            [WHOLE, bytes(31), "F32", [["a", [1]]]],
            [WHOLE, bytes(32), "F32", [["a", [1]]], 0],
            [3, bytes(32), "F32", [["a", [1]]]],
            [SPARSE, bytes(32), None, 0, 0, [0, 0, 0]],
            [SPARSE, bytes(32), PARENT, -1, 0, [0, 0, 0]],
            [SPARSE, bytes(32), PARENT, 0, 0, [0] * 6],
            {"weights": bytes(32)},
            [[[[]]]],
        ],
        ids=range(9),
    )
    def test_headers_that_are_none(self, head):
        refused(forged(head, bytes(4)), self.OLD, "header can't be read")

    @pytest.mark.parametrize("size", [0, 1 << 20, (1 << 20) + 1, 1 << 63])
    def test_a_header_longer_than_the_patch_or_the_bound(self, size):
        refused(size.to_bytes(8, "little") + bytes(100), self.OLD, f"header of {size} bytes")
        assert patches.MAX_HEADER_BYTES == 1 << 20

    def test_the_header_of_the_largest_model_is_within_the_bound(self):
        """Qwen3-235B's 94 layers, each with the tensors of a dense one."""
        names = itertools.product(range(94), ["self_attn.q_proj.weight", *(f"mlp.{n}.weight" for n in range(13))])
        tensors = [[f"model.layers.{layer}.{name}", [151_936, 12_288]] for layer, name in names]
        assert len(forged([WHOLE, bytes(32), "BF16", sorted(tensors)])) < patches.MAX_HEADER_BYTES / 10
