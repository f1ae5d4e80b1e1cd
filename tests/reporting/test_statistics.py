"""Paired statistics against SciPy's other ways to the same, enumeration, and what they promise of made-up worlds."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rlswarm_jax.reporting import statistics

D_N = np.array([3.1, -0.4, 2.2, 5.0, 1.3, 0.2, 4.1, -1.7])


def test_a_paired_difference_is_the_two_samples_test():
    a_N = np.random.default_rng(1).normal(size=8)
    found = statistics.paired(a_N + D_N - a_N)
    assert found.p_t == pytest.approx(stats.ttest_rel(a_N + D_N, a_N).pvalue)
    assert found.mean == pytest.approx(D_N.sum() / 8) and found.n == 8
    assert found.sd == pytest.approx(np.sqrt(((D_N - D_N.mean()) ** 2).sum() / 7))


def test_wilcoxons_p_is_the_share_of_signs_that_say_as_much():
    """Of all 2^8 ways to give the ranks signs, those whose sum is as far from the middle."""
    ranks_N = stats.rankdata(np.abs(D_N))
    sums = [sum(np.array(signs) * ranks_N) for signs in itertools.product((0, 1), repeat=8)]
    middle, own = ranks_N.sum() / 2, ranks_N[D_N > 0].sum()
    share = np.mean([abs(total - middle) >= abs(own - middle) for total in sums])
    assert statistics.paired(D_N).p_wilcoxon == pytest.approx(share)


def bca(d_N: np.ndarray, resamples: int = 40_000) -> tuple[float, float]:
    """Efron 1987, written from the paper, with noise of its own."""
    n, rng = len(d_N), np.random.default_rng(7)
    means = np.sort(d_N[rng.integers(0, n, (resamples, n))].mean(axis=1))
    bias = stats.norm.ppf(np.mean(means < d_N.mean()))
    left_out = np.array([np.delete(d_N, i).mean() for i in range(n)])
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975]) + bias
    low, high = np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return low, high


@pytest.mark.parametrize("skewed", [False, True], ids=["even", "skewed"])
def test_the_interval_is_efrons(skewed):
    d_N = np.exp(D_N) if skewed else D_N
    found = statistics.paired(d_N)
    low, high = bca(d_N)
    noise = 0.03 * (high - low)
    assert found.low == pytest.approx(low, abs=noise) and found.high == pytest.approx(high, abs=noise)


def test_units_signs_and_order_change_nothing_else():
    found, other = statistics.paired(D_N), statistics.paired(-1000 * D_N[::-1])
    noise = 0.03 * (other.high - other.low)  # of the resampling, which is another for the mirrored order
    assert (other.low, other.high) == pytest.approx((-1000 * found.high, -1000 * found.low), abs=noise)
    assert (other.p_t, other.p_wilcoxon) == pytest.approx((found.p_t, found.p_wilcoxon))
    assert statistics.paired(D_N) == statistics.paired(np.roll(D_N, 3))
    moved = statistics.paired(D_N + 50)
    rounding = 0.01 * (found.high - found.low)  # which resampled means equal the sample's own
    assert (moved.low, moved.high) == pytest.approx((found.low + 50, found.high + 50), abs=rounding)


def test_how_often_the_interval_holds_the_truth():
    """About 90 in 100 with 8 seeds, as the guide says, and more with more."""
    rng = np.random.default_rng(3)

    def covered(n, worlds=150):
        found = [statistics.paired(rng.normal(1.0, 2.0, n)) for _ in range(worlds)]
        return np.mean([one.low <= 1.0 <= one.high for one in found])

    assert 0.84 <= covered(8) <= 0.96  # 3 standard errors about 0.90
    assert covered(32) >= 0.88


def test_where_there_is_nothing_to_say_nothing_is_said():
    with pytest.raises(ValueError):
        statistics.paired([])
    one, few, same = statistics.paired([2.0]), statistics.paired([1.0, 2.0, 4.0]), statistics.paired([0.1 + 0.2] * 8)
    assert one.mean == 2.0 and np.isnan([one.sd, one.low, one.high, one.p_t, one.p_wilcoxon]).all()
    assert np.isnan([few.low, few.high]).all() and few.p_t > 0
    assert same.sd == 0 and same.low == same.high == same.mean and np.isnan([same.p_t, same.p_wilcoxon]).all()


def test_a_band_is_students_interval():
    low, high = statistics.mean_interval(D_N.tolist())
    assert (low, high) == pytest.approx(stats.ttest_1samp(D_N, 0).confidence_interval(0.95))
    assert np.isnan(statistics.mean_interval([1.0])).all()


def test_oscillation_is_of_the_noise_and_not_of_the_slope():
    rounds, rng = np.arange(4000), np.random.default_rng(0)
    assert statistics.oscillation(0.3 * rounds) == pytest.approx(0, abs=1e-9)
    noisy = 0.01 * rounds + rng.normal(0, 0.5, 4000)
    assert statistics.oscillation(noisy) == pytest.approx(0.5 * np.sqrt(0.9), rel=0.05)
    wave = 2 * np.sin(2 * np.pi * rounds / 10)  # whose mean over 10 rounds is 0
    assert statistics.oscillation(wave) == pytest.approx(2 / np.sqrt(2), rel=0.01)
    assert np.isnan(statistics.oscillation(np.zeros(10))) and statistics.oscillation(np.zeros(12)) == 0
