import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.grpo import corrections

some = settings(deadline=None, max_examples=25)


class TestWeights:
    PROXIMAL = jnp.array([[-1.0, -2.0, -0.5], [-1.0, -1.0, -1.0]])
    BEHAVIOUR = jnp.array([[-1.5, -1.5, -0.6], [-4.0, -1.0, jnp.nan]])
    KNOWN = jnp.array([[True, True, True], [True, True, False]])

    def weights(self, level):
        return np.exp(corrections.log_weights(self.PROXIMAL, self.BEHAVIOUR, level, self.KNOWN))

    def test_a_tokens_weight_is_how_much_likelier_the_trainer_finds_it_than_who_sampled_it(self):
        np.testing.assert_allclose(self.weights("token"), np.exp([[0.5, -0.5, 0.1], [3.0, 0.0, 0.0]]), rtol=1e-6)

    def test_a_completions_weight_is_the_product_over_its_tokens(self):
        expected = np.exp([[0.1, 0.1, 0.1], [3.0, 3.0, 0.0]])
        np.testing.assert_allclose(self.weights("sequence"), expected, rtol=1e-6)

    def test_no_gradient_flows_through_a_weight(self):
        slopes = jax.grad(lambda proximal: corrections.log_weights(proximal, self.PROXIMAL, "token", self.KNOWN).sum())
        assert not slopes(self.PROXIMAL).any()

    @pytest.mark.parametrize(
        ("masked", "expected"), [(False, [0.5, 0.5, 1.0, 1.9, 2.0, 2.0]), (True, [0.0, 0.5, 1.0, 1.9, 2.0, 0.0])]
    )
    def test_beyond_floor_and_cap_they_are_cut_off_or_masked(self, masked, expected):
        given = jnp.array([0.4, 0.5, 1.0, 1.9, 2.0, 2.1])
        found = corrections.bounded(given, 0.5, 2.0, jnp.full(6, masked))
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_they_find_an_expectation_under_the_trainer_from_what_the_sampler_drew(self):
        """Of a sampler that is somewhat off, as with coarser numbers; cut off at 2 they are still nearer than none."""
        rng = np.random.default_rng(0)
        logits, off = rng.normal(size=20), 0.4 * rng.normal(size=20)
        ours, theirs = np.exp(logits) / np.exp(logits).sum(), np.exp(logits + off) / np.exp(logits + off).sum()
        rewards = (off > 0).astype(float)  # what the sampler says too often
        drawn = rng.choice(20, 100_000, p=theirs)
        log = np.float32(np.log(ours) - np.log(theirs))[None, drawn]
        plain = np.exp(corrections.log_weights(log, np.zeros_like(log), "token", np.ones_like(log, bool)))
        cut = corrections.bounded(plain, 0.0, 2.0, np.zeros_like(log, bool))
        truth, naive = ours @ rewards, rewards[drawn].mean()
        assert naive - truth > 0.1
        assert abs((plain * rewards[drawn]).mean() - truth) < 0.01
        assert abs((cut * rewards[drawn]).mean() - truth) < 0.02


class TestEffectiveShare:
    @some
    @given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(-5, 5))
    def test_it_is_kongs_whatever_all_weights_are_multiplied_by(self, logs, shift):
        weights = np.exp(logs)
        expected = weights.sum() ** 2 / (len(logs) * (weights**2).sum())
        np.testing.assert_allclose(corrections.effective_share(np.array(logs) + shift), expected, rtol=1e-9)

    def test_equal_weights_count_all_and_one_that_outweighs_the_rest_counts_alone(self):
        assert corrections.effective_share(np.full(7, -2.0)) == pytest.approx(1)
        assert corrections.effective_share(np.array([20.0, 0, 0, 0])) == pytest.approx(1 / 4)
        assert corrections.effective_share(np.array([-1e38, 1e38])) == pytest.approx(1 / 2)
        assert corrections.effective_share(np.array([])) == 1


@some
@given(st.integers(0, 2**32), st.sampled_from([0.0, 1e-4, 0.1, 0.9]))
def test_a_peers_token_is_learned_from_if_the_policy_might_have_said_it(seed, min_prob):
    """By hand: none below the probability, nor any of a completion with more than a sixteenth of such."""
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(0, 41, 6)
    probs_BC = np.where(rng.random((6, 40)) < rng.random((6, 1)), rng.random((6, 40)), 1e-6).astype(np.float32)
    mask_BC = np.arange(40) < lengths_B[:, None]
    found_BC = np.asarray(corrections.likely_tokens(np.log(probs_BC), mask_BC, min_prob))
    for row, length in enumerate(lengths_B):
        unlikely = [bool(p < min_prob) for p in probs_BC[row, :length]]
        kept = [not one and 16 * sum(unlikely) <= length for one in unlikely]
        assert found_BC[row].tolist() == kept + [False] * (40 - length)
