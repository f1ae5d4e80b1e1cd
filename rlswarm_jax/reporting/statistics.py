"""How sure a difference between two recipes is, that were played with the same seeds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 9_999
LEVEL = 0.95
LEAST = 4  # differences: of fewer the bootstrap's interval is hardly more than their range


@dataclass(frozen=True)
class Paired:
    """Of differences d_N, one for each seed. low, high: bootstrap interval of their mean, 95 %. p_t, p_wilcoxon: of
    the two-sided paired t-test and signed-rank test that there is none. NaN where they are too few to say.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float


def paired(d_N: ArrayLike) -> Paired:
    """Deterministic: the same differences have the same interval. Raises ValueError for none.

    The interval is bias-corrected and accelerated (Efron 1987, BCa), of all seeds' differences. With few seeds it is
    too narrow: 8 of a normal distribution are covered 90 % of the time (tests/reporting/test_statistics.py).
    """
    d_N = np.asarray(d_N, np.float64)
    n = len(d_N)
    if not n:
        raise ValueError("there is no difference to say anything of.")
    if n == 1 or np.ptp(d_N) <= 1e-12 * np.abs(d_N).max(initial=0.0):  # no spread: no test has a value
        known = float(d_N.mean()) if n > 1 else float("nan")
        return Paired(n, float(d_N.mean()), 0.0 if n > 1 else float("nan"), known, known, *[float("nan")] * 2)
    from scipy import stats  # a second: only where it is used

    low, high = _interval(d_N) if n >= LEAST else (float("nan"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties and zeros: what is said then is an approximation
        p_wilcoxon = float(stats.wilcoxon(d_N).pvalue)
    p_t = float(stats.ttest_1samp(d_N, 0.0).pvalue)
    return Paired(n, float(d_N.mean()), float(d_N.std(ddof=1)), low, high, p_t, p_wilcoxon)


def _interval(d_N: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    # resampled in their own scale and order, so that neither unit nor order of seeds matters
    d_N = np.sort(d_N)
    found = stats.bootstrap(
        (d_N,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_interval(values_N: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean, for a band around a curve; NaN of fewer than two values."""
    n = len(values_N)
    if n < 2:
        return float("nan"), float("nan")
    from scipy import stats

    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values_N, ddof=1) / np.sqrt(n)
    return float(np.mean(values_N) - half), float(np.mean(values_N) + half)


def oscillation(rewards_R: ArrayLike, window: int = 10) -> float:
    """Standard deviation of the rewards of rounds from the mean of their own and the rounds before, `window` together.

    A steady slope adds nothing; noise of deviation s adds s sqrt(1 - 1/window). NaN of fewer rounds than
    2 more than a window.
    """
    rewards_R = np.asarray(rewards_R, np.float64)
    if len(rewards_R) < window + 1:
        return float("nan")
    means = np.convolve(rewards_R, np.full(window, 1 / window), "valid")
    return float(np.std(rewards_R[window - 1 :] - means, ddof=1))
