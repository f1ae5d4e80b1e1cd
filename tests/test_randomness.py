import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from rlswarm_jax import randomness

DOMAINS: tuple[randomness.Domain, ...] = ("problem", "sample", "eval", "pool", "network")
fields = st.one_of(st.binary(max_size=40), st.text(max_size=40), st.integers())


def specified_digest(domain, *fields):
    """The formula of version 1: SHA-256(domain || length of field 1, uint32 LE || field 1 || ...)."""
    message = domain.encode("utf-8")
    for field in fields:
        if isinstance(field, int):
            field = f"{field:d}"
        if isinstance(field, str):
            field = field.encode("utf-8")
        message += len(field).to_bytes(4, "little") + field
    return hashlib.sha256(message).digest()


@given(st.sampled_from(DOMAINS), st.lists(fields, max_size=5))
def test_everything_follows_from_the_specified_digest(domain, fields):
    first = specified_digest(domain, *fields)
    word = int.from_bytes(first[:8], "little")
    assert randomness.digest(domain, *fields) == first
    assert randomness.seed(domain, *fields) == word // 2
    assert randomness.key_data(domain, *fields).tolist() == [word % 2**32, word // 2**32]
    assert randomness.uniform(domain, *fields) == (word // 2**11) / 2.0**53


def test_the_bytes_of_version_1_do_not_change():
    # printf 'sample\x06\x00\x00\x00beacon\x01\x00\x00\x007' | sha256sum
    assert randomness.VERSION == 1
    assert (
        randomness.digest("sample", "beacon", 7).hex()
        == "49dbe792f817be08aa0a783b4b369c00d734e4bc97d48a8c4ab895cc036c0a5d"
    )


@given(st.binary(max_size=12), st.sets(st.integers(0, 12), max_size=4), st.sets(st.integers(0, 12), max_size=4))
def test_moving_a_field_boundary_changes_the_digest(blob, cuts, other_cuts):
    def split(cuts):
        edges = [0, *sorted(min(c, len(blob)) for c in cuts), len(blob)]
        return [blob[a:b] for a, b in itertools.pairwise(edges)]

    assume(split(cuts) != split(other_cuts))
    assert randomness.digest("pool", *split(cuts)) != randomness.digest("pool", *split(other_cuts))


def test_an_empty_field_is_not_no_field():
    assert len({randomness.digest("eval", *fields) for fields in ([], [b""], [b"", b""])}) == 3


@given(st.lists(fields, max_size=3))
def test_domains_share_nothing(fields):
    assert len({randomness.digest(domain, *fields) for domain in DOMAINS}) == len(DOMAINS)


@pytest.mark.parametrize("field", [1.0, None, True, (1,), np.int64(1), bytearray(b"1")], ids=repr)
def test_a_field_without_a_canonical_form_is_refused(field):
    with pytest.raises(TypeError, match=type(field).__name__):
        randomness.digest("sample", "beacon", field)


@given(st.integers(0, 2**80), st.integers(0, 2**80))
def test_seeds_beyond_32_bits_give_keys_of_their_own(seed, other):
    assume(seed != other)
    for a, b in ((seed, other), (seed, seed + 2**32), (seed, -seed - 1)):
        assert randomness.key_data("sample", a).tolist() != randomness.key_data("sample", b).tolist()


def test_wrap_gives_threefry_keys_whatever_the_default_generator():
    data_KM = np.stack([randomness.key_data("sample", i) for i in range(3)])
    with jax.default_prng_impl("rbg"):
        keys = randomness.wrap(jnp.asarray(data_KM))
    assert keys.shape == (3,) and jax.random.key_impl(keys) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(keys), data_KM)


@given(st.sampled_from(DOMAINS), st.lists(fields, max_size=5), st.integers(0, 40))
def test_many_uniforms_follow_from_the_same_digest(domain, fields, count):
    stream = hashlib.shake_256(specified_digest(domain, *fields)).digest(8 * count)
    words = [int.from_bytes(stream[8 * n : 8 * n + 8], "little") for n in range(count)]
    assert randomness.uniforms(count, domain, *fields).tolist() == [(word // 2**11) / 2.0**53 for word in words]
    more = randomness.uniforms(count + 3, domain, *fields)
    assert more[:count].tolist() == randomness.uniforms(count, domain, *fields).tolist()


def test_uniform_is_uniform_and_never_one():
    draws = [randomness.uniform("network", i) for i in range(5000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert scipy.stats.kstest(draws, "uniform").pvalue > 1e-3
