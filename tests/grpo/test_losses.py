import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.grpo import learner, losses
from tests.grpo import tiny

TEMPERATURE = 0.7


@functools.cache
def sampled():
    return tiny.make_batch(seed=3, rows=8)


class TestImportanceRatio:
    NOW, OLD = np.array([[-1.0, -2.0, -0.5, -3.0]]), np.array([[-1.0, -1.5, -2.5, -0.25]])

    def test_a_stale_tokens_weight_is_exactly_exp_of_the_difference(self):
        found = losses.log_ratio(jnp.asarray(self.NOW), jnp.asarray(self.OLD))
        np.testing.assert_allclose(np.exp(found), np.exp([[0, -0.5, 2, -2.75]]), rtol=1e-6)

    def test_the_gradient_flows_through_the_current_log_probs_alone(self):
        now, old = jax.grad(lambda *a: jnp.exp(losses.log_ratio(*a)).sum(), argnums=(0, 1))(
            jnp.asarray(self.NOW), jnp.asarray(self.OLD)
        )
        np.testing.assert_allclose(now, np.exp(self.NOW - self.OLD), rtol=1e-6)
        assert not old.any()

    @pytest.mark.parametrize("advantage", [1.0, -1.0])
    @pytest.mark.parametrize("old", [-50.0, -1e3, -3e38])
    def test_whatever_a_peer_claims_its_log_prob_was_the_gradient_stays_finite(self, old, advantage):
        def objective(now_BT):
            ratio_BT = jnp.exp(losses.log_ratio(now_BT, jnp.full((1, 1), old)))
            return clipped_surrogate(ratio_BT, jnp.array([advantage])).sum() + 0 * (ratio_BT**2).sum()

        value, gradient = jax.value_and_grad(objective)(jnp.full((1, 1), -1.0))
        assert np.isfinite(value) and np.isfinite(gradient)


def clipped_surrogate(ratio_BT, advantages_B, low=0.2, high=0.28, dual=3.0):
    return losses.clipped_surrogate(ratio_BT, advantages_B, clip_low=low, clip_high=high, dual_clip=dual)


class TestClippedSurrogate:
    #         ratio  advantage  objective        its slope in the ratio
    CASES = (
        (0.50, +2.0, 0.50 * 2.0, 2.0),  # got less likely, was good: bring it back
        (1.00, +2.0, 1.00 * 2.0, 2.0),
        (1.27, +2.0, 1.27 * 2.0, 2.0),
        (1.29, +2.0, 1.28 * 2.0, 0.0),  # good enough
        (9.00, +2.0, 1.28 * 2.0, 0.0),
        (0.10, -3.0, 0.80 * -3.0, 0.0),  # unlikely enough
        (0.79, -3.0, 0.80 * -3.0, 0.0),
        (0.81, -3.0, 0.81 * -3.0, -3.0),
        (1.00, -3.0, 1.00 * -3.0, -3.0),
        (2.99, -3.0, 2.99 * -3.0, -3.0),  # got more likely, was bad
        (3.01, -3.0, 3.00 * -3.0, 0.0),  # so much more that the old log-prob is not to be trusted
        (9e8, -3.0, 3.00 * -3.0, 0.0),
        (0.10, 0.0, 0.0, 0.0),
        (9.00, 0.0, 0.0, 0.0),
    )

    @pytest.mark.parametrize(("ratio", "advantage", "objective", "slope"), CASES)
    def test_the_objective_stops_rewarding_at_the_bound_on_its_side(self, ratio, advantage, objective, slope):
        def surrogate(ratio):
            return clipped_surrogate(jnp.full((1, 1), ratio), jnp.array([advantage]))[0, 0]

        found, found_slope = jax.value_and_grad(surrogate)(ratio)
        np.testing.assert_allclose((found, found_slope), (objective, slope), rtol=1e-6)

    @pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.5), (0.5, 0.1), (0.3, 0.0), (0.0, 0.3)])
    def test_the_bounds_are_one_minus_low_and_one_plus_high(self, low, high):
        ratio_BT, advantages_B = jnp.array([[100.0], [1e-3]]), jnp.array([1.0, -1.0])
        found = clipped_surrogate(ratio_BT, advantages_B, low, high)
        np.testing.assert_allclose(found, [[1 + high], [-(1 - low)]], rtol=1e-6)

    @pytest.mark.parametrize("dual", [1.5, 3.0, 10.0])
    def test_what_a_bad_token_costs_ends_at_the_dual_bound(self, dual):
        found = clipped_surrogate(jnp.array([[100.0], [1.4]]), jnp.array([-1.0, -1.0]), dual=dual)
        np.testing.assert_allclose(found, [[-dual], [-1.4]], rtol=1e-6)

    def test_every_token_of_a_completion_has_its_completions_advantage(self):
        ratio_BT = np.random.default_rng(0).uniform(0.9, 1.1, (3, 4))
        found = clipped_surrogate(jnp.asarray(ratio_BT), jnp.array([1.0, -2.0, 0.5]), 0.2, 0.2)
        np.testing.assert_allclose(found, ratio_BT * [[1.0], [-2.0], [0.5]], rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 1e-4, 0.1, 0.9]))
def test_a_peers_token_is_learned_from_if_the_policy_might_have_said_it(seed, min_prob):
    """By hand: none below the probability, nor any of a completion with more than a sixteenth of such."""
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(0, 41, 6)
    probs_BC = np.where(rng.random((6, 40)) < rng.random((6, 1)), rng.random((6, 40)), 1e-6).astype(np.float32)
    mask_BC = np.arange(40) < lengths_B[:, None]
    found_BC = np.asarray(losses.likely_tokens(np.log(probs_BC), mask_BC, min_prob))
    for row, length in enumerate(lengths_B):
        unlikely = [bool(p < min_prob) for p in probs_BC[row, :length]]
        kept = [not one and 16 * sum(unlikely) <= length for one in unlikely]
        assert found_BC[row].tolist() == kept + [False] * (40 - length)


def test_what_is_masked_does_not_count_not_even_if_it_is_not_a_number():
    values = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.inf, 4.0]])
    assert losses.token_sum(values, jnp.array([[True, True, False], [True, False, False]])) == 6.0


@jax.jit
def completion_logprobs(params, batch, temperature=TEMPERATURE):
    return learner.completion_logprobs(params, batch, tiny.CONFIG, temperature)


class TestCompletionLogprobs:
    @pytest.mark.parametrize("temperature", [0.7, 1.6])
    def test_they_are_the_dense_log_softmax_at_the_tokens_right_behind_the_prompt(self, temperature):
        found_BC, entropy_BC = completion_logprobs(tiny.params(), sampled(), temperature)
        table_BTV = tiny.dense(tiny.params(), sampled().tokens_BT, temperature)
        assert found_BC.shape == entropy_BC.shape == (8, tiny.NEW_TOKENS) and found_BC.dtype == np.float32
        assert len(set(sampled().prompt_lengths_B.tolist())) > 2
        assert set(sampled().completion_lengths_B.tolist()) == {1, 2, 3, 4}
        ends = 0
        for row in range(len(sampled().tokens_BT)):
            for c, at in enumerate(tiny.places(sampled(), row)):
                token, before_V = sampled().tokens_BT[row, at], table_BTV[row, at - 1]
                np.testing.assert_allclose(found_BC[row, c], before_V[token], rtol=0, atol=1e-5)
                np.testing.assert_allclose(entropy_BC[row, c], -np.sum(np.exp(before_V) * before_V), rtol=0, atol=1e-5)
                ends += token == 0
        assert 0 < ends < len(sampled().tokens_BT)

    def test_padding_is_invisible(self):
        garbage_BT = np.random.default_rng(0).integers(1, tiny.CONFIG.vocab_size, sampled().tokens_BT.shape, np.int32)
        for row, text in enumerate(garbage_BT):
            end = max(tiny.places(sampled(), row)) + 1
            text[:end] = sampled().tokens_BT[row, :end]
        assert (garbage_BT != sampled().tokens_BT).any(axis=1).sum() > 4
        plain = completion_logprobs(tiny.params(), sampled())
        found = completion_logprobs(tiny.params(), sampled().replace(tokens_XT=garbage_BT))
        written_BC = np.arange(tiny.NEW_TOKENS) < sampled().completion_lengths_B[:, None]
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one[written_BC], other[written_BC], rtol=0, atol=1e-6)


class TestChunks:
    """37 tokens over a vocabulary of 23, four tokens' logits at a time."""

    X, V, D, MAX = 37, 23, 16, 4 * 23

    @classmethod
    def inputs(cls):
        rng = np.random.default_rng(0)
        params = {"embed": rng.standard_normal((cls.V, cls.D)).astype(np.float32)}
        return params, rng.standard_normal((cls.X, cls.D)).astype(np.float32), rng.integers(0, cls.V, cls.X)

    @classmethod
    def value_and_grad(cls, max_logits):
        weights = np.random.default_rng(1).standard_normal((2, cls.X)).astype(np.float32)

        def weighted(params, states_XD, tokens_X):
            found = losses.chunked_logprobs(params, states_XD, tokens_X, 0.7, max_logits)
            return (weights * jnp.stack(found)).sum(), found

        return jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)

    def test_chunked_equals_dense_in_values_and_gradients(self):
        (_, (logprobs, entropy)), gradients = jax.jit(self.value_and_grad(self.MAX + 5))(*self.inputs())
        params, states_XD, tokens_X = self.inputs()
        logits_XV = states_XD.astype(np.float64) @ params["embed"].T / 0.7
        dense_XV = logits_XV - np.log(np.exp(logits_XV).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(logprobs, dense_XV[np.arange(self.X), tokens_X], rtol=0, atol=1e-5)
        np.testing.assert_allclose(entropy, -(np.exp(dense_XV) * dense_XV).sum(axis=1), rtol=0, atol=1e-5)
        _, dense_gradients = jax.jit(self.value_and_grad(10**9))(*self.inputs())
        tiny.assert_close(gradients, dense_gradients, 3e-6)

    def test_no_more_logits_than_asked_for_exist_forwards_or_backwards(self):
        def most_logits(max_logits):
            closed = jax.make_jaxpr(self.value_and_grad(max_logits))(*self.inputs())
            sizes = [np.prod(shape) for shape in shapes_in(closed.jaxpr) if self.V in shape and self.D not in shape]
            return max(sizes)

        assert most_logits(self.MAX) == self.MAX
        assert most_logits(10**9) == self.X * self.V
        assert most_logits(1) == self.V  # one token's logits are the least there can be


def shapes_in(jaxpr):
    """Shapes of all values of a jaxpr, those inside its loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)
