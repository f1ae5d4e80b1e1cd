import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import randomness
from rlswarm_jax.qwen import draw
from rlswarm_jax.qwen.draw import Draw
from tests.qwen import test_sampling as base

V, ROWS = 17, 6
CUT = -1e29  # what is below has been cut off


def random_keys(seed, count):
    return np.random.default_rng(seed).integers(0, 2**32, (count, 2), np.uint32)


@functools.partial(jax.jit, static_argnums=(3, 4))
def drawn(logits_RV, keys_RM, t_R, temperature, how):
    return draw.draw(logits_RV, randomness.wrap(keys_RM), t_R, temperature, how)


def softmax(logits_RV):
    return scipy.special.softmax(np.asarray(logits_RV, np.float64), axis=-1)


def kept_by(logits_RV, how):
    """Which tokens stay, row by row and token by token, in float64; and which are too near a bound to say."""
    kept_RV, unsure_RV = np.ones(logits_RV.shape, bool), np.zeros(logits_RV.shape, bool)
    for row, kept_V, unsure_V in zip(logits_RV.astype(np.float64), kept_RV, unsure_RV, strict=True):
        if how.top_k:
            kept_V &= [(row > x).sum() < how.top_k for x in row]
        if how.top_p < 1:
            p = np.where(kept_V, np.exp(row - row[kept_V].max()), 0)
            p /= p.sum()
            above = np.array([p[row > x].sum() for x in row])
            unsure_V |= kept_V & (np.abs(above - how.top_p) < 1e-5)
            kept_V &= above < how.top_p
        if how.min_p:
            p = np.exp(row - row.max())
            unsure_V |= kept_V & (np.abs(p - how.min_p) < 1e-6 * how.min_p)
            kept_V &= p >= how.min_p
    return kept_RV, unsure_RV


def logits_of(seed, grid):
    """Random logits; on a grid many are equal."""
    logits_RV = 2 * np.random.default_rng(seed).standard_normal((ROWS, V)).astype(np.float32)
    return np.round(logits_RV) if grid else logits_RV


hows = st.builds(
    Draw,
    top_k=st.sampled_from([0, 1, 2, 5, V - 1, V, 3 * V]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
)


class TestTruncation:
    @settings(deadline=None, max_examples=80)
    @given(st.integers(0, 2**20), st.booleans(), hows)
    def test_top_k_top_p_and_min_p_apply_one_after_the_other(self, seed, grid, how):
        logits_RV = logits_of(seed, grid)
        cut_RV = np.asarray(draw.truncated(jnp.asarray(logits_RV), how))
        kept_RV, unsure_RV = kept_by(logits_RV, how)
        np.testing.assert_array_equal((cut_RV > CUT)[~unsure_RV], kept_RV[~unsure_RV])
        np.testing.assert_array_equal(cut_RV[cut_RV > CUT], logits_RV[cut_RV > CUT])
        best_R = logits_RV.argmax(axis=-1)
        assert np.all(cut_RV[np.arange(ROWS), best_R] == logits_RV[np.arange(ROWS), best_R])

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**20), hows)
    def test_it_keeps_what_hugging_face_keeps(self, seed, how):
        torch = pytest.importorskip("torch")
        from transformers.generation import logits_process as hf

        logits_RV = logits_of(seed, grid=False)
        scores = torch.from_numpy(logits_RV)
        if how.top_k:
            scores = hf.TopKLogitsWarper(how.top_k)(None, scores)
        if how.top_p < 1:
            scores = hf.TopPLogitsWarper(how.top_p)(None, scores)
        if how.min_p:
            scores = hf.MinPLogitsWarper(how.min_p)(None, scores)
        _, unsure_RV = kept_by(logits_RV, how)
        cut_RV = np.asarray(draw.truncated(jnp.asarray(logits_RV), how))
        np.testing.assert_array_equal((cut_RV > CUT)[~unsure_RV], torch.isfinite(scores).numpy()[~unsure_RV])

    def test_equals_stay_or_go_together(self):
        logits_RV = jnp.array([[0.0, 3.0, 1.0, 3.0, 1.0, 1.0]])
        for how, kept in (
            (Draw(top_k=1), [1, 3]),
            (Draw(top_k=3), [1, 2, 3, 4, 5]),
            (Draw(top_p=0.1), [1, 3]),
            (Draw(top_p=0.95), [1, 2, 3, 4, 5]),
            (Draw(min_p=1.0), [1, 3]),
        ):
            assert np.flatnonzero(draw.truncated(logits_RV, how)[0] > CUT).tolist() == kept

    @pytest.mark.parametrize(
        "how", [Draw(top_k=V), Draw(top_k=10**6), Draw(top_p=1.0), Draw(min_p=0.0), Draw()], ids=str
    )
    def test_what_cuts_nothing_changes_nothing(self, how):
        logits_RV = jnp.asarray(logits_of(0, grid=False))
        np.testing.assert_array_equal(draw.truncated(logits_RV, how), logits_RV)

    @pytest.mark.parametrize(
        "out_of_range",
        [{"top_k": -1}, {"top_p": 0.0}, {"top_p": -0.1}, {"top_p": 1.01}, {"min_p": -0.1}, {"min_p": 1.01}],
        ids=str,
    )
    def test_what_is_out_of_range_is_refused(self, out_of_range):
        with pytest.raises(ValueError, match=r"top_k must be >= 0, top_p in \(0, 1\] and min_p in \[0, 1\]"):
            Draw(**out_of_range)


class TestDrawing:
    @pytest.mark.parametrize("vocab", [1, 5, 103])
    def test_a_draws_log_prob_is_that_of_the_softmax(self, vocab):
        logits_RV = 3 * np.random.default_rng(vocab).standard_normal((500, vocab)).astype(np.float32)
        token_R, logprob_R = drawn(logits_RV, random_keys(vocab, 500), np.arange(500), 1.3, Draw())
        expected_RV = scipy.special.log_softmax(logits_RV.astype(np.float64) / 1.3, axis=-1)
        assert len(set(np.asarray(token_R).tolist())) > min(vocab - 1, 30)
        np.testing.assert_allclose(logprob_R, expected_RV[np.arange(500), token_R], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("how", [Draw(top_p=0.8), Draw(top_k=8, top_p=0.95, min_p=0.05)], ids=str)
    def test_draws_follow_the_truncated_distribution_and_never_leave_it(self, how):
        count, temperature = 20_000, 0.8
        logits_V = logits_of(3, grid=False)[0] / 2
        args = np.tile(logits_V, (count, 1)), random_keys(1, count), np.zeros(count, np.int32)
        token_R, logprob_R = (np.asarray(x) for x in drawn(*args, temperature, how))
        scaled_V = logits_V / np.float32(temperature)
        kept_V = kept_by(scaled_V[None], how)[0][0]
        assert 1 < kept_V.sum() < V
        p_V = np.where(kept_V, softmax(scaled_V), 0)
        p_V /= p_V.sum()
        assert kept_V[token_R].all()
        np.testing.assert_allclose(logprob_R, np.log(p_V[token_R]), rtol=0, atol=1e-5)
        counts_V = np.bincount(token_R, minlength=V)
        assert base.chi_square_p(counts_V[kept_V], p_V[kept_V]) > 1e-3

    def test_a_draw_depends_on_its_key_and_step_and_on_no_other_row(self):
        logits_RV, keys_RM = np.zeros((300, V), np.float32), np.repeat(random_keys(2, 3), 100, axis=0)
        t_R = np.tile(np.arange(100), 3)
        token_R = np.asarray(drawn(logits_RV, keys_RM, t_R, 1.0, Draw())[0])
        order = np.random.default_rng(0).permutation(300)
        shuffled_R = drawn(logits_RV, keys_RM[order], t_R[order], 1.0, Draw())[0]
        np.testing.assert_array_equal(shuffled_R, token_R[order])
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (token_R.reshape(3, 100)[one] == token_R.reshape(3, 100)[other]).mean() < 0.25
        assert base.chi_square_p(np.bincount(token_R, minlength=V), np.full(V, 1 / V)) > 1e-3

    @pytest.mark.parametrize("how", [Draw(), Draw(top_k=2, top_p=0.5, min_p=0.5)], ids=str)
    def test_greedy_takes_the_likeliest_at_its_log_prob_at_temperature_one(self, how):
        logits_RV = logits_of(4, grid=False)
        token_R, logprob_R = drawn(logits_RV, random_keys(3, ROWS), np.arange(ROWS), 0.0, how)
        np.testing.assert_array_equal(token_R, logits_RV.argmax(axis=-1))
        assert token_R.dtype == jnp.int32
        expected_R = scipy.special.log_softmax(logits_RV.astype(np.float64), axis=-1).max(axis=-1)
        np.testing.assert_allclose(logprob_R, expected_R, rtol=0, atol=1e-5)


@jax.jit
def margins_of_every_token(logits_RV, keys_RM):
    """`[R, V]` margins, and what each key draws."""
    keys_R = randomness.wrap(keys_RM)
    tokens_V = jnp.arange(logits_RV.shape[1])
    margins_RV = jax.vmap(lambda logits_V, key: jax.vmap(lambda v: draw.leads(logits_V, key, v)[0].min())(tokens_V))(
        logits_RV, keys_R
    )
    return margins_RV, jax.vmap(draw.two_level_gumbel)(logits_RV, keys_R)[0]


class TestMargins:
    def test_the_drawn_token_and_no_other_has_a_positive_margin(self):
        for vocab in (V, 103):
            logits_RV = 2 * np.random.default_rng(vocab).standard_normal((200, vocab)).astype(np.float32)
            margins_RV, token_R = margins_of_every_token(logits_RV, random_keys(vocab, 200))
            np.testing.assert_array_equal(np.asarray(margins_RV) > 0, np.arange(vocab) == np.asarray(token_R)[:, None])

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 2**20), st.floats(1e-3, 3))
    def test_logits_off_by_less_than_half_a_margin_do_not_change_its_sign(self, seed, size):
        rng = np.random.default_rng(seed)
        logits_RV, keys_RM = rng.standard_normal((200, V)).astype(np.float32), random_keys(seed, 200)
        off_RV = (logits_RV + size * rng.choice([-1, 1], (200, V))).astype(np.float32)
        margins_RV, off_margins_RV = (np.asarray(margins_of_every_token(x, keys_RM)[0]) for x in (logits_RV, off_RV))
        assert np.all(np.abs(off_margins_RV - margins_RV) <= 2 * size + 1e-4)
        safe_RV = np.abs(margins_RV) > 2 * size + 1e-4
        np.testing.assert_array_equal(np.sign(off_margins_RV)[safe_RV], np.sign(margins_RV)[safe_RV])

    def test_the_greedy_margin_is_the_lead_over_the_best_other(self):
        logits_V = jnp.array([1.0, 4.0, -2.0, 3.5])
        assert [float(draw.greedy_margin(logits_V, v)) for v in range(4)] == [-3.0, 0.5, -6.0, -0.5]
