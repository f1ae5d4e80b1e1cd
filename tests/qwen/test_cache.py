import itertools
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import qwen
from rlswarm_jax.qwen import cache, model
from tests.qwen import test_sampling as base

B, K, Q, T, H, S = 2, 2, 3, 2, 12, 10
DTYPES = ("float32", "bfloat16", "int8")
BFLOAT16_ROUNDING = 2.0**-8  # 8 significant bits
FLOAT32_NOISE = 1e-5


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def keys_and_values(seed, scale=1.0):
    """Vectors of very different lengths, some of them zero."""
    rng = np.random.default_rng(seed)
    keys_BKHS, values_BKSH = normal(seed, B, K, H, S), normal(seed + 1, B, K, S, H)
    lengths_2BKS = scale * 10.0 ** rng.uniform(-3, 1, (2, B, K, S)) * (rng.random((2, B, K, S)) > 0.1)
    return (keys_BKHS * lengths_2BKS[0][:, :, None]).astype(np.float32), (
        values_BKSH * lengths_2BKS[1][..., None]
    ).astype(np.float32)


def read(kv):
    """What a cache holds, in float64."""
    keys_BKHS, values_BKSH = (np.asarray(x).astype(np.float64) for x in (kv.keys_BKHS, kv.values_BKSH))
    if kv.key_scales_BKS is None:
        return keys_BKHS, values_BKSH
    return keys_BKHS * np.asarray(kv.key_scales_BKS, np.float64)[:, :, None], values_BKSH * np.asarray(
        kv.value_scales_BKS, np.float64
    )[..., None]


def attention(q_BKQTH, keys_BKHS, values_BKSH, mask):
    """Softmax attention in float64."""
    scores = np.einsum("bkqth,bkhs->bkqts", q_BKQTH.astype(np.float64), keys_BKHS.astype(np.float64))
    weights = scipy.special.softmax(np.where(mask, scores, -np.inf), axis=-1)
    return np.einsum("bkqts,bksh->bkqth", weights, values_BKSH.astype(np.float64))


def random_mask(seed, least=1):
    """`[B, 1, 1, T, S]`, every token sees at least some slots."""
    rng = np.random.default_rng(seed)
    shown = rng.random((B, 1, 1, T, S)) < 0.5
    shown[..., :least] = True
    return rng.permuted(shown, axis=-1)


seeds = st.integers(0, 2**20)


class TestKeeping:
    @settings(deadline=None, max_examples=30)
    @given(seeds, st.floats(-30, 20))
    def test_an_int8_entry_is_off_by_at_most_half_its_scale(self, seed, exponent):
        keys_BKHS, values_BKSH = keys_and_values(seed, 10.0**exponent)
        kv = cache.store(keys_BKHS, values_BKSH, jnp.int8)
        assert kv.keys_BKHS.dtype == kv.values_BKSH.dtype == jnp.int8
        for given_, kept, axis in zip((keys_BKHS, values_BKSH), read(kv), (2, 3), strict=True):
            largest = np.abs(given_).max(axis=axis, keepdims=True)
            assert np.all(np.abs(kept - given_) <= largest / 254 * (1 + 1e-4) + 1e-32)
            assert np.all(kept[np.broadcast_to(largest == 0, kept.shape)] == 0)

    def test_int8_has_a_scale_for_each_token_and_head_and_a_quarter_of_the_bytes(self):
        keys_BKHS, values_BKSH = keys_and_values(0)
        kv = cache.store(keys_BKHS, values_BKSH, "int8")
        assert kv.key_scales_BKS.shape == kv.value_scales_BKS.shape == (B, K, S)
        assert kv.keys_BKHS.nbytes * 4 == keys_BKHS.nbytes

    def test_bfloat16_rounds_to_nearest_and_float32_keeps_every_bit(self):
        keys_BKHS, values_BKSH = keys_and_values(1)
        half, whole = (cache.store(keys_BKHS, values_BKSH, dtype) for dtype in DTYPES[1::-1])
        np.testing.assert_array_equal(half.keys_BKHS, keys_BKHS.astype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(half.values_BKSH, values_BKSH.astype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(whole.keys_BKHS, keys_BKHS)
        np.testing.assert_array_equal(whole.values_BKSH, values_BKSH)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_writing_changes_one_slot_to_what_storing_gives(self, dtype):
        old, new = (cache.store(*keys_and_values(seed), dtype) for seed in (2, 3))
        slot = 4
        keys_BKHS, values_BKSH = keys_and_values(3)
        wrote = cache.write(old, jnp.int32(slot), keys_BKHS[..., slot : slot + 1], values_BKSH[:, :, slot : slot + 1])
        for axis, before, after, other in zip((3, 2), read(old), read(wrote), read(new), strict=True):
            expected = np.moveaxis(before.copy(), axis, 0)
            expected[slot] = np.moveaxis(other, axis, 0)[slot]
            np.testing.assert_array_equal(np.moveaxis(after, axis, 0), expected)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_an_empty_cache_is_of_the_same_kind_with_rows_and_slots_of_its_own(self, dtype):
        full = cache.store(*keys_and_values(4), dtype)
        empty = full.empty(7, 5)
        assert empty.slots == 5 and full.slots == S
        assert empty.keys_BKHS.shape == (7, K, H, 5) and empty.values_BKSH.shape == (7, K, 5, H)
        assert jax.tree.map(lambda x: x.dtype, empty) == jax.tree.map(lambda x: x.dtype, full)
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(empty))


class TestAttending:
    @settings(deadline=None, max_examples=20)
    @given(seeds, st.sampled_from([1.0, 30.0]))
    def test_float32_is_softmax_attention(self, seed, scale):
        keys_BKHS, values_BKSH = keys_and_values(seed, scale)
        q_BKQTH, mask = normal(seed + 2, B, K, Q, T, H), random_mask(seed)
        out = model.merge([cache.store(keys_BKHS, values_BKSH, "float32").attend(q_BKQTH, mask)])
        expected = attention(q_BKQTH, keys_BKHS, values_BKSH, mask)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4 * np.abs(values_BKSH).max())

    @settings(deadline=None, max_examples=30)
    @given(seeds, st.sampled_from(["bfloat16", "int8"]))
    def test_half_precision_and_int8_stay_within_what_their_rounding_can_do(self, seed, dtype):
        """A score moves by no more than e; then a weight changes by a factor of at most exp(2 e), and the output by
        that much of the values, by the values' own error, and in bfloat16 by the rounding of the weights."""
        keys_BKHS, values_BKSH = keys_and_values(seed, 0.2)
        q_BKQTH, mask = normal(seed + 2, B, K, Q, T, H), random_mask(seed)
        out = model.merge([cache.store(keys_BKHS, values_BKSH, dtype).attend(q_BKQTH, mask)])
        error = np.abs(np.asarray(out) - attention(q_BKQTH, keys_BKHS, values_BKSH, mask))

        if dtype == "int8":
            key_errors_BKHS = np.broadcast_to(np.abs(keys_BKHS).max(axis=2, keepdims=True) / 254, keys_BKHS.shape)
            value_error, weight_error = np.abs(values_BKSH).max() / 254, 0.0
        else:
            key_errors_BKHS = np.abs(keys_BKHS) * BFLOAT16_ROUNDING
            value_error, weight_error = np.abs(values_BKSH).max() * BFLOAT16_ROUNDING, BFLOAT16_ROUNDING
        of_scores = np.einsum("bkqth,bkhs->bkqts", np.abs(q_BKQTH), key_errors_BKHS).max() + FLOAT32_NOISE
        bound = (np.expm1(2 * of_scores) + weight_error + FLOAT32_NOISE) * np.abs(values_BKSH).max() + value_error
        assert 0 < error.max() < bound * (1 + BFLOAT16_ROUNDING)

    @settings(deadline=None, max_examples=20)
    @given(seeds, st.integers(1, S - 1), st.integers(1, S - 1))
    def test_parts_merge_to_softmax_over_all_their_slots(self, seed, one, other):
        keys_BKHS, values_BKSH = keys_and_values(seed)
        q_BKQTH, mask = normal(seed + 2, B, K, Q, T, H), random_mask(seed)
        cuts = [0, *sorted({one, other}), S]
        parts = [
            model.attend_part(q_BKQTH, keys_BKHS[..., a:b], values_BKSH[:, :, a:b], mask[..., a:b])
            for a, b in itertools.pairwise(cuts)
        ]
        expected = attention(q_BKQTH, keys_BKHS, values_BKSH, mask)
        for order in (parts, parts[::-1]):
            np.testing.assert_allclose(model.merge(order), expected, rtol=0, atol=1e-5 * np.abs(values_BKSH).max())

    def test_a_part_that_shows_nothing_contributes_nothing(self):
        keys_BKHS, values_BKSH = keys_and_values(5)
        q_BKQTH = normal(6, B, K, Q, T, H)
        some = model.attend_part(q_BKQTH, keys_BKHS, values_BKSH, random_mask(5))
        dark = model.attend_part(q_BKQTH, 1e3 * keys_BKHS, 1e3 * values_BKSH, np.zeros((T, S), bool))
        np.testing.assert_array_equal(model.merge([some, dark]), model.merge([some]))
        np.testing.assert_array_equal(model.merge([dark, some]), model.merge([some]))
        assert np.isfinite(model.merge([dark])).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_a_hidden_slot_holds_does_not_matter(self, dtype):
        keys_BKHS, values_BKSH = keys_and_values(7)
        q_BKQTH, shown_S = normal(8, B, K, Q, T, H), np.arange(S) % 3 > 0
        others = keys_and_values(9, scale=100.0)
        mixed = np.where(shown_S, keys_BKHS, others[0]), np.where(shown_S[:, None], values_BKSH, others[1])
        one, two = (
            model.merge([cache.store(*kv, dtype).attend(q_BKQTH, shown_S)]) for kv in ((keys_BKHS, values_BKSH), mixed)
        )
        np.testing.assert_array_equal(one, two)


def plain_attention(q_BTNH, k_BTKH, v_BTKH):
    """Causal softmax attention with every key/value head repeated for its queries."""
    group, time = q_BTNH.shape[2] // k_BTKH.shape[2], q_BTNH.shape[1]
    k_BTNH, v_BTNH = jnp.repeat(k_BTKH, group, axis=2), jnp.repeat(v_BTKH, group, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH, precision="highest") / np.sqrt(q_BTNH.shape[-1])
    scores = jnp.where(np.tri(time, dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v_BTNH, precision="highest")


class TestCausalAttention:
    qkv = normal(10, 2, 7, 6, 8), normal(11, 2, 7, 2, 8), normal(12, 2, 7, 2, 8)

    def test_it_is_jaxs_own(self):
        out, (keys_BKHS, values_BKSH) = model.attend_causally(0, *self.qkv)
        jaxs = jax.nn.dot_product_attention(*self.qkv, is_causal=True, implementation="xla")
        np.testing.assert_allclose(out, jaxs, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(keys_BKHS, self.qkv[1].transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(values_BKSH, self.qkv[2].transpose(0, 2, 1, 3))

    def test_its_gradients_are_those_of_plain_softmax_attention(self):
        weight = normal(13, *self.qkv[0].shape)

        def gradients(attend):
            return jax.jit(jax.grad(lambda qkv: (weight * jnp.sin(attend(*qkv))).sum()))(self.qkv)

        ours = gradients(lambda *qkv: model.attend_causally(0, *qkv)[0])
        for one, other in zip(ours, gradients(plain_attention), strict=True):
            assert np.abs(other).max() > 0.1
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)

    def test_the_branch_for_gpus_computes_the_same_logits(self, monkeypatch):
        policy = base.shallow()
        tokens_BT = np.array(base.prompts_of((9, 9)))
        expected = base.full_logits(policy.params, policy.config, tokens_BT)
        asked, on_xla = [], jax.nn.dot_product_attention

        def flash(*qkv, implementation, **options):
            asked.append(implementation)
            return on_xla(*qkv, implementation="xla", **options)

        monkeypatch.setattr(model, "flash_applies", lambda q_BTNH: True)
        monkeypatch.setattr(jax.nn, "dot_product_attention", flash)
        logits_BTV = jax.jit(lambda params: qwen.logits(params, policy.config, tokens_BT))(policy.params)
        np.testing.assert_allclose(logits_BTV, expected, rtol=0, atol=base.TAU)
        assert asked == ["cudnn"] * policy.config.num_layers

    @pytest.mark.parametrize(
        ("backend", "capability", "dtype", "size", "applies"),
        [
            ("gpu", "8.0", "bfloat16", 64, True),
            ("gpu", "10.0", "float16", 128, True),
            ("gpu", "7.5", "float16", 64, False),
            ("gpu", "gfx90a", "bfloat16", 64, False),
            ("gpu", "9.0", "float32", 64, False),
            ("gpu", "9.0", "bfloat16", 136, False),
            ("gpu", "9.0", "bfloat16", 12, False),
            ("cpu", "", "bfloat16", 64, False),
            ("tpu", "", "bfloat16", 64, False),
        ],
    )
    def test_flash_attention_is_for_half_precision_on_newer_gpus(
        self, monkeypatch, backend, capability, dtype, size, applies
    ):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
        assert model.flash_applies(jnp.zeros((1, 1, 2, size), dtype)) is applies
