import hypothesis.extra.numpy as arrays
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.grpo.advantages import group_advantages

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


@pytest.mark.parametrize("how", ["std", "none"])
@pytest.mark.parametrize("size", [3, 8])
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
