"""Key biases as large as those of published Qwen2.5 models, through caches that round."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import qwen
from rlswarm_jax.qwen import cache, key_bias, model, sampling
from rlswarm_jax.qwen import config as qwen_config
from rlswarm_jax.qwen.packed import pack
from rlswarm_jax.qwen.verdict import TAU, Verdict, key_bias_norm, make_replay, rounding, verdicts
from tests.qwen import test_sampling as base
from tests.qwen import variants

NORM = 400.0
SLOTS, NEW_TOKENS, GROUP, NUM_PROMPTS = 16, 12, 16, 4
ROPES = ("qwen2-no-gqa", "qwen2-yarn", "qwen2-linear")


@functools.cache
def config_of(name):
    return qwen_config.from_hf(variants.CONFIGS[name])


def turned(config, x_XH, positions_X):
    """Rotary embedding in float64, as a product of complex numbers."""
    half = config.head_dim // 2
    scaling = config.rope_scaling
    angles = np.asarray(positions_X, np.float64)[..., None] * np.asarray(
        model.rope_frequencies(config.rope_theta, config.head_dim, scaling), np.float64
    )
    z = (x_XH[..., :half] + 1j * x_XH[..., half:]) * np.exp(1j * angles) * (scaling.attention_factor if scaling else 1)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("name", ROPES)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**20), st.integers(0, 100))
def test_scores_of_the_bias_are_those_of_the_whole_keys(name, seed, now):
    """q R(b), for slots counted from the start and for slots counted back from a token, in float64."""
    config, rng = config_of(name), np.random.default_rng(seed)
    heads, group, slots = config.num_kv_heads, config.num_heads // config.num_kv_heads, 9
    bias_KH = rng.standard_normal((heads, config.head_dim)) * 100
    q_BKQTH = rng.standard_normal((2, heads, group, 1, config.head_dim))
    at_KH, now_KH = (
        np.asarray(key_bias.rotated(config, jnp.float32(bias_KH), jnp.full((2, 1), place)))[..., 0]
        for place in (0, now)
    )
    whole_KSH = turned(config, bias_KH[:, None], np.arange(slots)[None])
    np.testing.assert_allclose(
        key_bias.scores(config, jnp.float32(q_BKQTH), at_KH, jnp.arange(slots)),
        np.einsum("bkqth,ksh->bkqts", q_BKQTH, whole_KSH),
        rtol=0,
        atol=5e-3,
    )
    whole_KSH = turned(config, bias_KH[:, None], now - np.arange(slots)[None])
    np.testing.assert_allclose(
        key_bias.scores(config, jnp.float32(q_BKQTH), now_KH, -jnp.arange(slots)),
        np.einsum("bkqth,ksh->bkqts", q_BKQTH, whole_KSH),
        rtol=0,
        atol=5e-3,
    )


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**20), st.sampled_from(["int8", "bfloat16"]))
def test_what_is_rounded_is_as_small_as_without_a_bias(seed, dtype):
    """A key's error is that of its own product, however large the bias: 1/254 of its largest entry, or 2^-9 of each."""
    config, rng = config_of("qwen2-no-gqa"), np.random.default_rng(seed)
    keys_BKHS = rng.standard_normal((1, config.num_kv_heads, config.head_dim, 7)).astype(np.float32)
    shift_BKHS = np.asarray(
        key_bias.rotated(
            config, NORM * jnp.float32(rng.standard_normal((config.num_kv_heads, config.head_dim))), jnp.arange(7)[None]
        )
    )
    kept = cache.store(
        (keys_BKHS + shift_BKHS) - shift_BKHS, np.zeros((1, config.num_kv_heads, 7, config.head_dim), np.float32), dtype
    )
    scale = 1.0 if kept.key_scales_BKS is None else np.asarray(kept.key_scales_BKS)[:, :, None]
    error = np.abs(np.asarray(kept.keys_BKHS, np.float32) * scale - keys_BKHS)
    of_bias = 2.0**-22 * np.abs(shift_BKHS).max()
    bound = np.abs(keys_BKHS).max(axis=2, keepdims=True) / 254 if dtype == "int8" else np.abs(keys_BKHS) * 2.0**-8
    assert np.all(error <= bound * (1 + 1e-3) + of_bias)


@functools.cache
def biased(name, seed):
    """A fixture whose layers' key biases have that norm; of odd seeds, a few entries make up most of it."""
    policy, rng = base.policy(name), np.random.default_rng(seed)

    def layer(one):
        bias = rng.standard_normal(one["k_bias"].shape)
        bias *= np.where(rng.random(bias.shape) < 0.15, 8, 1) if seed % 2 else 1
        return one | {"k_bias": jnp.float32(bias * NORM / np.linalg.norm(bias))}

    params = policy.params | {"layers": [layer(one) for one in policy.params["layers"]]}
    return dataclasses.replace(policy, params=params)


def margins(config, params, out, prompts, keys_PGM):
    """Margins of all tokens that were written."""
    out = base.flat(out)
    numbers = [[r] for r in range(len(out.tokens_RT))]
    own = [prompts[r // GROUP] for (r,) in numbers]
    packed = pack(own, out.tokens_RT, numbers, width=SLOTS + NEW_TOKENS, together=1, new_tokens=NEW_TOKENS)
    run = make_replay(config, max_new_tokens=NEW_TOKENS, temperature=1.0)
    return np.asarray(run(params, packed, keys_PGM.reshape(-1, 2))[1]).min(axis=-1)[base.written(out)]


CASES = [
    (("float32", "int8"), 0),
    (("float32", "int8"), 24),
    (("float32", "bfloat16"), 0),
    pytest.param(("bfloat16", "bfloat16"), 0, marks=pytest.mark.slow),
    pytest.param(("bfloat16", "int8"), 24, marks=pytest.mark.slow),
]


class TestVerdicts:
    @pytest.mark.parametrize(("dtypes", "rows"), CASES, ids=str)
    def test_an_honest_completion_is_never_said_not_to_be_produced(self, dtypes, rows):
        name = "qwen2_tied"
        config = base.policy(name).config
        run = sampling.make_sampler(
            config, max_new_tokens=NEW_TOKENS, temperature=1.0, eos_token_ids=base.EOS, rows=rows, kv_dtype=dtypes[1]
        )
        for seed in range(2):
            params = model.prepare(biased(name, seed).params, dtypes[0], GROUP)
            prompts = base.prompts_of((16, 3, 9, 12), seed)
            keys_PGM = base.keys_of(NUM_PROMPTS, GROUP, author=str(seed))
            out = run(params, sampling.make_tile(prompts, keys_PGM, prompt_slots=SLOTS))
            tau = rounding(*dtypes, 1.0, key_bias_norm(params)).tau
            found = verdicts(margins(config, params, out, prompts, keys_PGM), tau)
            assert found.min() > Verdict.NOT_PRODUCED
            if dtypes == ("float32", "int8"):
                assert tau < 1.5 and Verdict.PRODUCED in found  # and it still decides

    def test_the_tolerance_grows_with_the_largest_bias_and_with_nothing_else(self):
        policy = biased("qwen2_tied", 0)
        assert key_bias_norm(policy.params) == pytest.approx(NORM)
        assert key_bias_norm(base.policy("qwen3_tied").params) == 0
        out = qwen.generate(policy, ["two"], max_new_tokens=4)
        found = qwen.replay(policy, "two", out.tokens_PGT[0, 0, : out.lengths_PG[0, 0]], out.keys_PGM[0, 0])
        assert (
            found.rounding.tau == pytest.approx(rounding("float32", "float32", 1.0, NORM).tau)
            and found.rounding.tau > TAU["float32", "float32"]
        )
        assert rounding("float32", "int8", 1.0).tau == TAU["float32", "int8"]
