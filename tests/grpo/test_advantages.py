import itertools

import hypothesis.extra.numpy as arrays
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlswarm_jax.grpo.advantages import group_advantages, judged, overlong_penalties

EPS = 1e-6
some = settings(deadline=None, max_examples=20)  # the first example compiles
# in steps of 2**-20: XLA flushes denormal numbers to zero, which no reward is near
rewards_34 = arrays.arrays(np.float32, (3, 4), elements=st.integers(0, 2**20).map(lambda n: n / 2**20))


def by_hand(rewards_PG, how):
    """Reward minus the group's mean, over its standard deviation (of the population), in float64."""
    found = np.zeros(rewards_PG.shape)
    for p, group in enumerate(rewards_PG.astype(np.float64)):
        mean = sum(group) / len(group)
        deviation = (sum((r - mean) ** 2 for r in group) / len(group)) ** 0.5
        found[p] = [(r - mean) / (deviation + EPS if how == "std" else 1) for r in group]
    return found


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("how", ["std", "none"])
@some
@given(rewards_PG=rewards_34)
def test_an_advantage_is_the_distance_from_the_groups_mean(how, as_array, rewards_PG):
    found = group_advantages(as_array(rewards_PG), how=how)
    assert found.dtype == jnp.float32 and found.shape == rewards_PG.shape
    # a float32 mean is off by 1e-7, which a tiny deviation magnifies
    np.testing.assert_allclose(found, by_hand(rewards_PG, how), rtol=0, atol=1e-3 if how == "std" else 1e-6)


@pytest.mark.parametrize("how", ["std", "none", "leave_one_out", "pass_at_k"])
@pytest.mark.parametrize("size", [4, 8])
@some
@given(reward=st.floats(-10, 10, width=32))
def test_equal_rewards_give_zeros_whatever_they_are(size, how, reward):
    for rewards_PG in (np.full((1, size), reward, np.float32), jnp.full((1, size), reward, jnp.float32)):
        assert not np.any(group_advantages(rewards_PG, how=how))


@pytest.mark.parametrize("how", ["std", "none"])
@some
@given(rewards_PG=arrays.arrays(np.float32, (3, 4), elements=st.integers(0, 8).map(float)), shift=st.integers(-64, 64))
def test_what_all_completions_get_alike_does_not_matter(how, rewards_PG, shift):
    plain, shifted = (group_advantages(r, how=how) for r in (rewards_PG, rewards_PG + np.float32(shift)))
    np.testing.assert_allclose(plain, shifted, rtol=0, atol=1e-5)


@some
@given(rewards_PG=rewards_34, factor=st.sampled_from([2.0, 64.0]))
def test_without_scaling_advantages_are_in_the_units_of_rewards(rewards_PG, factor):
    np.testing.assert_allclose(
        group_advantages(rewards_PG * np.float32(factor), how="none"),
        factor * group_advantages(rewards_PG, how="none"),
        rtol=1e-6,
    )


@some
@given(rewards_PG=rewards_34)
def test_a_group_is_judged_by_itself(rewards_PG):
    together = group_advantages(rewards_PG)
    for p in range(3):
        np.testing.assert_allclose(together[p], group_advantages(rewards_PG[p : p + 1])[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("gap", [1e-2, 1.0, 50.0])
def test_two_completions_can_only_be_called_better_and_worse(gap):
    # Why a group of two is a poor choice: scaled, the size of a difference is lost.
    found = group_advantages(np.array([[gap, 0.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(found, [[1, -1], [0, 0]], atol=1e-3)


@some
@given(rewards_PG=rewards_34)
def test_leave_one_out_compares_with_the_mean_of_the_others(rewards_PG):
    found = group_advantages(rewards_PG, how="leave_one_out")
    for p, g in itertools.product(range(3), range(4)):
        others = [float(r) for other, r in enumerate(rewards_PG[p]) if other != g]
        np.testing.assert_allclose(found[p, g], rewards_PG[p, g] - sum(others) / 3, rtol=0, atol=1e-6)


def best_of(rewards, k):
    """By going through all choices of k: what each is worth, and of each completion the mean over those it is in."""
    choices = list(itertools.combinations(range(len(rewards)), k))
    best = np.array([max(rewards[g] for g in choice) for choice in choices], np.float64)
    worth = (best - best.mean()) / (best.std() + EPS)
    return [np.mean([w for w, choice in zip(worth, choices, strict=True) if g in choice]) for g in range(len(rewards))]


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@some
@example(rewards_G=np.array([0, 0.25, 0.25, 0.25, 0.25, 0.25], np.float32))
@given(rewards_G=arrays.arrays(np.float32, 6, elements=st.integers(0, 4).map(lambda n: n / 4)))
def test_pass_at_k_is_the_mean_over_all_choices_of_k(k, rewards_G):
    found = group_advantages(rewards_G[None], how="pass_at_k", pass_k=k)[0]
    np.testing.assert_allclose(found, best_of(rewards_G.tolist(), k), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("right", "size", "k"), [(1, 8, 4), (3, 8, 2), (2, 16, 8)])
def test_of_right_and_wrong_it_is_the_formula_of_the_paper(right, size, k):
    """arXiv:2508.10751: with R the probability that one of k is right, (1 - R) / sigma for those that are right."""
    from math import comb

    wrong = size - right
    rate = 1 - comb(wrong, k) / comb(size, k)
    sigma = (rate * (1 - rate)) ** 0.5
    positive, negative = (1 - rate) / sigma, (1 - rate - comb(wrong - 1, k - 1) / comb(size - 1, k - 1)) / sigma
    rewards_1G = np.array([[1.0] * right + [0.0] * wrong], np.float32)
    found = group_advantages(rewards_1G, how="pass_at_k", pass_k=k)[0]
    np.testing.assert_allclose(found, [positive] * right + [negative] * wrong, rtol=1e-4)


def test_the_best_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="the best of 5 is asked for, of groups of 4"):
        group_advantages(np.zeros((1, 4), np.float32), how="pass_at_k", pass_k=5)


class TestOverlong:
    def test_length_costs_from_the_buffer_on_in_a_straight_line_to_the_end(self):
        """DAPO's figures: 16,384 tokens are free, and 4,096 more the way down to -1."""
        found = overlong_penalties([1, 16_384, 18_432, 20_479, 20_480], 20_480, 0.2)
        np.testing.assert_allclose(found, [0, 0, -0.5, -4095 / 4096, -1], rtol=1e-6)
        assert not overlong_penalties([1, 20_480], 20_480, 0.0).any()

    def test_it_is_part_of_the_reward_that_is_compared(self):
        how = {"advantage": "none", "pass_k": 4, "max_new_tokens": 10}
        found = judged([1.0, 1.0, 0.0, 0.0], [5, 10, 8, 9], overlong_buffer=0.2, **how)
        shaped = np.array([1.0, 0.0, 0.0, -0.5])
        np.testing.assert_allclose(found, shaped - shaped.mean(), atol=1e-6)
        np.testing.assert_allclose(judged([1.0, 0.0], [5, 10], overlong_buffer=0.0, **how), [0.5, -0.5])
