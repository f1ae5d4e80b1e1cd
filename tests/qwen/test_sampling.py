import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from rlswarm_jax import qwen, randomness
from rlswarm_jax.qwen import draw, model, sampling
from tests.grpo import tiny
from tests.qwen import make_golden

ROOT = Path(__file__).parents[2]
NAME = "qwen3_tied"
TAU = 1e-4
TEMPERATURE = 0.7
NEW_TOKENS = 12
SLOTS, PADDED_SLOTS = 16, 29
ROWS = 8
GROUP = 8
EOS = tuple(range(3, 103, 7))
LENGTHS = (16, 1, 5, 11, 2)

full_logits = jax.jit(qwen.logits, static_argnums=1)


@functools.cache
def policy(name):
    return qwen.load(make_golden.FIXTURES / name)


@functools.cache
def shallow():
    """A policy of one layer, for what does not depend on depth: it compiles faster."""
    full = policy(NAME)
    params = full.params | {"layers": full.params["layers"][:1]}
    return dataclasses.replace(full, config=dataclasses.replace(full.config, num_layers=1), params=params)


def prompts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 103, n).tolist() for n in lengths]


def keys_of(num_prompts, group, author="me"):
    return np.array([[randomness.key_data("sample", author, p, g) for g in range(group)] for p in range(num_prompts)])


PROMPTS = prompts_of(LENGTHS)
KEYS_PGM = keys_of(len(PROMPTS), GROUP)


@functools.cache
def sampler(name):
    return sampling.make_sampler(
        policy(name).config, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, eos_token_ids=EOS
    )


@dataclasses.dataclass
class Flat:
    """Completions `[P, G]` as rows R = P * G."""

    tokens_RT: np.ndarray
    logprobs_RT: np.ndarray
    lengths_R: np.ndarray
    ended_R: np.ndarray

    def __getitem__(self, rows):
        return Flat(*(x[rows] for x in self))

    def __iter__(self):
        return iter((self.tokens_RT, self.logprobs_RT, self.lengths_R, self.ended_R))


def flat(out):
    names = ("tokens_PGT", "logprobs_PGT", "lengths_PG", "ended_PG")
    arrays = (np.asarray(getattr(out, name)) for name in names)
    return Flat(*(x.reshape(-1, *x.shape[2:]) for x in arrays))


def exactly(prompts, keys_PGM):
    out = sampling.sample_exact(sampler(NAME), policy(NAME).params, prompts, keys_PGM, prompt_slots=SLOTS, rows=ROWS)
    return flat(out)


@functools.cache
def exact():
    return exactly(PROMPTS, KEYS_PGM)


@functools.cache
def fast(name, slots):
    tile = sampling.make_tile(PROMPTS, KEYS_PGM, prompt_slots=slots)
    return flat(sampler(name)(policy(name).params, tile))


@functools.cache
def margins_RT():
    """Margins of the decisions of `exact()`."""
    return replay(exact_logits(), KEYS_PGM.reshape(-1, 2), TEMPERATURE)[1]


@functools.cache
def exact_logits():
    return forward(policy(NAME).params, policy(NAME).config, PROMPTS, exact())


def perturbed(scale, seed):
    """The weights of `policy(NAME)`, each off by a random share of itself."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: w * (1 + scale * rng.standard_normal(w.shape, np.float32)), host_params())


@functools.cache
def host_params():
    return jax.device_get(policy(NAME).params)


def forward(params, config, prompts, out):
    """Logits `[R, T, V]` that predict each completion token, by the full forward on prompt + completion."""
    group = len(out.tokens_RT) // len(prompts)
    width = max(map(len, prompts)) + out.tokens_RT.shape[1]
    texts = np.zeros((len(out.tokens_RT), width), np.int32)
    starts = np.array([len(prompts[r // group]) for r in range(len(texts))])
    for r, row in enumerate(texts):
        row[: starts[r]] = prompts[r // group]
        row[starts[r] : starts[r] + out.tokens_RT.shape[1]] = out.tokens_RT[r]
    logits_RSV = np.asarray(full_logits(params, config, texts))
    steps = starts[:, None] - 1 + np.arange(out.tokens_RT.shape[1])
    return np.take_along_axis(logits_RSV, steps[:, :, None], axis=1)


def written(out):
    """`[R, T]` bool, true where a completion has a token."""
    return np.arange(out.tokens_RT.shape[1]) < out.lengths_R[:, None]


@functools.partial(jax.jit, static_argnums=(1, 2))
def noise_of(keys_RM, time, count):
    """Gumbel noise `[R, T, count]` of every token."""
    keys_R = jax.random.wrap_key_data(keys_RM, impl="threefry2x32")
    keys_RT = jax.vmap(lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(time)))(keys_R)
    draw = jax.vmap(lambda key: jax.random.gumbel(key, (count,), jnp.float32, mode="high"))
    return jax.vmap(draw)(keys_RT)


def replay(logits_RTV, keys_RM, temperature):
    """Tokens `[R, T]` that keys draw from given logits, and how far the nearer of the two decisions was from
    going another way. Written from the specification, in float64 NumPy, but for the Threefry draws."""
    rows, time, vocab = logits_RTV.shape
    size = int(np.ceil(vocab**0.5))
    chunks = int(np.ceil(vocab / size))
    padded = np.full((rows, time, chunks * size), -np.inf)
    padded[..., :vocab] = logits_RTV.astype(np.float64) / temperature
    padded = padded.reshape(rows, time, chunks, size)
    noise = np.asarray(noise_of(keys_RM, time, chunks + size), np.float64)

    def decide(scores):
        second, first = np.sort(scores, axis=-1)[..., -2:].transpose(2, 0, 1)
        return scores.argmax(axis=-1), first - second

    chunk, chunk_margin = decide(scipy.special.logsumexp(padded, axis=-1) + noise[..., :chunks])
    inside = np.take_along_axis(padded, chunk[..., None, None], axis=2)[:, :, 0]
    token, token_margin = decide(inside + noise[..., chunks:])
    return chunk * size + token, np.minimum(chunk_margin, token_margin)


def assert_agree(one, other, margins_RT, tau):
    """Log-probs agree to tau up to the first differing token, which was a decision by less than tau.

    Returns the number of rows that differ.
    """
    differ_RT = one.tokens_RT != other.tokens_RT
    same_RT = np.cumsum(differ_RT, axis=1) == 0
    np.testing.assert_allclose(one.logprobs_RT[same_RT], other.logprobs_RT[same_RT], rtol=0, atol=tau)
    for row in np.flatnonzero(differ_RT.any(axis=1)):
        first = differ_RT[row].argmax()
        assert margins_RT[row, first] < tau, (row, first)
    whole = same_RT.all(axis=1)
    np.testing.assert_array_equal(one.lengths_R[whole], other.lengths_R[whole])
    np.testing.assert_array_equal(one.ended_R[whole], other.ended_R[whole])
    return int((~whole).sum())


def assert_bit_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class TestCachedDecoding:
    @pytest.mark.parametrize(
        ("name", "sampled"),
        [
            (NAME, exact),
            (NAME, lambda: fast(NAME, SLOTS)),
            (NAME, lambda: fast(NAME, PADDED_SLOTS)),
            ("qwen2_tied", lambda: fast("qwen2_tied", SLOTS)),
        ],
        ids=["exact", "fast", "padded", "qwen2"],
    )
    def test_logprobs_are_those_of_the_full_forward(self, name, sampled):
        out = sampled()
        logits_RTV = forward(policy(name).params, policy(name).config, PROMPTS, out)
        expected_RTV = scipy.special.log_softmax(logits_RTV.astype(np.float64) / TEMPERATURE, axis=-1)
        expected_RT = np.take_along_axis(expected_RTV, out.tokens_RT[..., None], axis=-1)[..., 0]
        assert out.logprobs_RT.dtype == np.float32 and out.ended_R.any()
        np.testing.assert_allclose(out.logprobs_RT, np.where(written(out), expected_RT, 0), rtol=0, atol=1e-5)

    def test_every_token_is_the_one_its_key_draws(self):
        tokens_RT, _ = replay(exact_logits(), KEYS_PGM.reshape(-1, 2), TEMPERATURE)
        decided_RT = written(exact()) & (margins_RT() >= TAU)
        assert decided_RT.sum() > 0.99 * written(exact()).sum() > 100
        np.testing.assert_array_equal(exact().tokens_RT[decided_RT], tokens_RT[decided_RT])


class TestExactMode:
    def test_a_completion_does_not_depend_on_its_company(self):
        everything = exact()
        for p, g in ((0, 0), (1, 7), (3, 2)):
            alone = exactly(PROMPTS[p : p + 1], KEYS_PGM[p : p + 1, g : g + 1])
            assert_bit_equal(alone, everything[[p * GROUP + g]])
        smaller_group = exactly(PROMPTS, KEYS_PGM[:, :3])
        assert_bit_equal(smaller_group, everything[[p * GROUP + g for p in range(len(PROMPTS)) for g in range(3)]])
        reversed_order = exactly(PROMPTS[::-1], KEYS_PGM[::-1, ::-1])
        assert_bit_equal(reversed_order, everything[::-1])

    @pytest.mark.slow
    def test_eight_devices_give_the_bits_of_one(self, tmp_path):
        script = """
import sys
import jax, numpy as np
from rlswarm_jax.qwen import sampling
from tests.qwen import test_sampling as t

for device in (jax.devices()[0], jax.devices()[5]):
    params = jax.device_put(t.policy(t.NAME).params, device)

    def sample(params, tile):
        out = t.sampler(t.NAME)(params, jax.device_put(tile, device))
        assert out.logprobs_PGT.devices() == {device}
        return out

    out = sampling.sample_exact(
        sample, params, t.PROMPTS, t.KEYS_PGM, prompt_slots=t.SLOTS, rows=t.ROWS
    )
    np.savez(f"{sys.argv[1]}/{device.id}.npz", *t.flat(out))
"""
        environment = os.environ | tiny.devices(8)
        subprocess.run([sys.executable, "-c", script, tmp_path], check=True, env=environment, cwd=ROOT, timeout=120)
        for device in (0, 5):
            there = np.load(tmp_path / f"{device}.npz")
            assert_bit_equal([there[f"arr_{n}"] for n in range(4)], exact())


class TestFastMode:
    def test_fast_and_exact_agree_to_tau(self):
        assert_agree(fast(NAME, SLOTS), exact(), margins_RT(), TAU)

    def test_padding_changes_nothing_beyond_tau(self):
        assert_agree(fast(NAME, PADDED_SLOTS), exact(), margins_RT(), TAU)

    def test_weights_off_by_a_little_flip_only_tokens_with_a_margin_as_little(self):
        off = perturbed(1e-3, seed=1)
        off_logits_RTV = forward(off, policy(NAME).config, PROMPTS, exact())
        delta = np.abs(exact_logits() - off_logits_RTV)[written(exact())].max() / TEMPERATURE
        tile = sampling.make_tile(PROMPTS, KEYS_PGM, prompt_slots=SLOTS)
        out = flat(sampler(NAME)(off, tile))
        assert assert_agree(out, exact(), margins_RT(), 2 * delta) >= 2
        with pytest.raises(AssertionError):
            assert_agree(out, exact(), margins_RT(), TAU)


class TestNoise:
    def test_the_same_key_gives_the_same_completion_and_another_key_another(self):
        keys_PGM = np.array([KEYS_PGM[0, [0, 1, 2, 0, 3, 1, 4, 0]]])
        out = exactly(PROMPTS[:1], keys_PGM)
        rows = [(out.tokens_RT[r].tobytes(), out.logprobs_RT[r].tobytes()) for r in range(8)]
        assert rows[0] == rows[3] == rows[7] and rows[1] == rows[5]
        assert len(set(rows)) == 5

    def test_one_prompt_asked_many_times_gets_as_many_completions(self):
        out = exactly(PROMPTS[:1] * len(PROMPTS), KEYS_PGM)
        long = [out.tokens_RT[r].tobytes() for r in range(len(out.tokens_RT)) if out.lengths_R[r] >= 4]
        assert len(set(long)) == len(long) > 15

    @pytest.mark.parametrize("vocab", [50, 151])
    def test_two_level_draws_follow_the_softmax_and_the_full_gumbel_max(self, vocab):
        logits_V = 1.5 * np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)

        @jax.jit
        @jax.vmap
        def draw_both(key):
            one, other = jax.random.split(key)
            full = jnp.argmax(logits_V + jax.random.gumbel(other, (vocab,)))
            return draw.two_level_gumbel(logits_V, one)[0], full

        keys_RM = np.random.default_rng(vocab).integers(0, 2**32, (100_000, 2), np.uint32)
        counts, full_counts = (np.bincount(x, minlength=vocab) for x in draw_both(randomness.wrap(keys_RM)))
        assert len(counts) == vocab
        assert chi_square_p(counts, scipy.special.softmax(logits_V.astype(np.float64))) > 1e-3
        assert scipy.stats.chi2_contingency([counts, full_counts]).pvalue > 1e-3

    def test_first_tokens_follow_the_models_softmax(self):
        count, temperature, prompt = 20_000, 0.8, PROMPTS[3]
        sample = sampling.make_sampler(shallow().config, max_new_tokens=1, temperature=temperature, eos_token_ids=())
        keys_PGM = np.random.default_rng(0).integers(0, 2**32, (1, count, 2), np.uint32)
        out = flat(sample(shallow().params, sampling.make_tile([prompt], keys_PGM, prompt_slots=SLOTS)))
        logits_V = np.asarray(full_logits(shallow().params, shallow().config, np.array([prompt])))[0, -1]
        probabilities = scipy.special.softmax(logits_V.astype(np.float64) / temperature)
        assert chi_square_p(np.bincount(out.tokens_RT[:, 0], minlength=103), probabilities) > 1e-3


def chi_square_p(counts, probabilities):
    """P-value of counts under probabilities; tokens expected less than 5 times are one bin together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    pool = [(counts[rare].sum(), expected[rare].sum())] if rare.any() else []
    observed, expected = zip(*zip(counts[~rare], expected[~rare], strict=True), *pool, strict=True)
    return scipy.stats.chisquare(observed, expected, sum_check=False).pvalue


class TestEnding:
    @pytest.mark.parametrize("out", [exact, lambda: fast(NAME, SLOTS)], ids=["exact", "fast"])
    def test_a_completion_ends_with_its_first_end_token_or_at_the_cutoff(self, out):
        out = out()
        for tokens, logprobs, length, ended in zip(
            out.tokens_RT, out.logprobs_RT, out.lengths_R, out.ended_R, strict=True
        ):
            ends = np.isin(tokens, EOS)
            assert ended == ends.any()
            assert length == (ends.argmax() + 1 if ended else NEW_TOKENS)
            assert not tokens[length:].any() and not logprobs[length:].any()
            assert np.all(logprobs[:length] < 0)
        assert 0 < out.ended_R.sum() < len(out.ended_R)

    def test_rows_that_fill_a_tile_say_nothing(self):
        tile = sampling.make_tile(PROMPTS[:1], KEYS_PGM[:1, :2], prompt_slots=SLOTS, num_prompts=ROWS)
        out = flat(sampler(NAME)(policy(NAME).params, tile))
        assert np.all(out.lengths_R[:2] > 0)
        assert not any(filler.any() for filler in out[2:])

    def test_decoding_stops_when_every_row_has_ended(self, monkeypatch):
        steps = []

        def counted(params, states_XD):
            jax.debug.callback(lambda: steps.append(1))
            return head(params, states_XD)

        head = model.head
        monkeypatch.setattr(model, "head", counted)
        sample = sampling.make_sampler(shallow().config, max_new_tokens=100, temperature=1.0, eos_token_ids=EOS)
        out = sample(shallow().params, sampling.make_tile(PROMPTS[:2], KEYS_PGM[:2, :2], prompt_slots=SLOTS))
        jax.effects_barrier()
        assert out.ended_PG.all() and len(steps) == out.lengths_PG.max() < 100


class TestGreedy:
    def test_greedy_takes_the_argmax_of_the_full_forward_at_temperature_one(self):
        config, params = shallow().config, shallow().params
        sample = sampling.make_sampler(config, max_new_tokens=NEW_TOKENS, temperature=0.0, eos_token_ids=())
        out = flat(sample(params, sampling.make_tile(PROMPTS, KEYS_PGM[:, :1], prompt_slots=SLOTS)))
        logits_RTV = forward(params, config, PROMPTS, out).astype(np.float64)
        np.testing.assert_array_equal(out.tokens_RT, logits_RTV.argmax(axis=-1))
        np.testing.assert_allclose(
            out.logprobs_RT, scipy.special.log_softmax(logits_RTV, axis=-1).max(axis=-1), rtol=0, atol=1e-5
        )


class TestTiles:
    @pytest.mark.parametrize("prompt", [[], list(range(SLOTS + 1))], ids=["empty", "too long"])
    def test_a_prompt_that_does_not_fit_is_named(self, prompt):
        with pytest.raises(ValueError, match=rf"prompt 1 has {len(prompt)} tokens; 1 to {SLOTS} fit"):
            sampling.make_tile([[1], prompt], KEYS_PGM[:2], prompt_slots=SLOTS)
