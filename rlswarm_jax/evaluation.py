"""What n sampled answers to each of P problems say of a model: pass@k, majority vote at k, and how sure that is.

Pure functions of answers and flags, without jax. Everything is an expectation over the samples that were drawn: two
reports of the same samples agree, and a larger n only makes them more precise.
"""

import collections
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlswarm_jax import randomness

MAX_SAMPLES = 1_000  # of a problem in a majority vote: numbers of subsets are floats
Rank = Callable[[str], int]


def pass_at_k(samples_P: ArrayLike, right_P: ArrayLike, k: int) -> np.ndarray:
    """Probability that among k of a problem's samples, drawn without replacement, one is right, `[P]` float64.

    samples_P, right_P: how many samples of each problem there are, and how many of those are right; a number stands
    for all problems. The unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374 eq. 1), as a
    product of k factors, so that nothing overflows. Raises ValueError unless 0 <= right <= samples and
    1 <= k <= samples.
    """
    n_P, c_P = np.broadcast_arrays(np.asarray(samples_P), np.asarray(right_P))
    if not np.all((c_P >= 0) & (c_P <= n_P)):
        raise ValueError("a problem has at least 0 right samples and at most as many as it has samples.")
    if k < 1 or np.any(n_P < k):
        raise ValueError(f"pass@{k} needs k >= 1 and at least {max(k, 1)} samples of each problem, take a smaller k.")
    all_wrong_P = np.ones(n_P.shape)
    for drawn in range(k):
        all_wrong_P = all_wrong_P * (n_P - c_P - drawn) / (n_P - drawn)  # 0 for good where none is left
    return 1 - all_wrong_P


def ranking(*fields: randomness.Field) -> Rank:
    """Ranks by which a majority vote breaks ties: of a text and these fields, such as the problem's seed."""
    return lambda answer: randomness.seed("eval", "majority", *fields, answer.encode("utf-8", "surrogatepass"))


def majority(answers: Sequence[str], rank: Rank) -> str | None:
    """The most frequent of canonical answers, of several the one of the lowest rank; their order plays no part.

    An empty answer has no vote: None where there is no other.
    """
    votes = collections.Counter(answer for answer in answers if answer)
    return min(votes, key=lambda answer: (-votes[answer], rank(answer), answer), default=None)


def majority_at_k(answers: Sequence[str], right: Sequence[bool], k: int, rank: Rank) -> float:
    """Probability that the majority of k of a problem's samples, drawn without replacement, is right.

    answers, right: canonical answer and score of each sample. Exact over all subsets, by counting: no draws. Where
    samples with the same canonical answer scored differently, the majority is right in the share of them that are.
    An empty majority is wrong. Raises ValueError unless 1 <= k <= n <= 1,000.

    With m_b samples of answer b, answer a wins j votes to at most j of each answer behind it by rank, and to less
    than j of each before it, in C(m_a, j) [x^(k-j)] prod_b sum_i C(m_b, i) x^i subsets, i up to what b may have.
    """
    n = len(answers)
    if len(right) != n or not 1 <= k <= n <= MAX_SAMPLES:
        raise ValueError(
            f"a majority of {k} needs 1 <= k <= samples <= {MAX_SAMPLES} and a score for each, "
            f"got {n} samples and {len(right)} scores."
        )
    votes = collections.Counter(answer for answer in answers if answer)
    order = sorted(votes, key=lambda answer: (rank(answer), answer))
    share = {a: float(np.mean([r for answer, r in zip(answers, right, strict=True) if answer == a])) for a in order}
    silent = _subsets(n - votes.total(), k)
    winning = 0.0
    for j in range(1, min(k, max(votes.values(), default=0)) + 1):
        before = [silent]  # by place in the order: ways to choose from those that come earlier, by how many are chosen
        for answer in order:
            before.append(np.convolve(before[-1], _subsets(votes[answer], j - 1))[: k + 1])
        behind = np.ones(1)
        for place in range(len(order) - 1, -1, -1):
            answer = order[place]
            if votes[answer] >= j and share[answer]:
                others = np.convolve(before[place], behind)
                if k - j < len(others):
                    winning += share[answer] * math.comb(votes[answer], j) * float(others[k - j])
            behind = np.convolve(behind, _subsets(votes[answer], j))[: k + 1]
    return winning / math.comb(n, k)


def _subsets(size: int, most: int) -> np.ndarray:
    """How many subsets of a set there are, by their size, up to `most`."""
    return np.array([float(math.comb(size, chosen)) for chosen in range(min(size, most) + 1)])


def wilson(accuracy: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Score interval (Wilson 1927) of a proportion measured on n problems; z for 95 %."""
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def mean_and_error(value_P: ArrayLike) -> tuple[float, float]:
    """Mean over problems of a figure such as pass@k, and its standard error.

    Problems are what was drawn independently, not their samples: the error is the standard deviation over problems
    (with P - 1) over sqrt(P), of normal theory, in which the noise of sampling answers is contained (Miller 2024,
    arXiv:2411.00640). Mean ± 1.96 errors holds the expected value of new problems in 95 % of cases if there are many
    problems; near 0 and 1 and for few problems it is too narrow. Raises ValueError for less than two problems.
    """
    values_P = np.asarray(value_P, np.float64)
    if values_P.ndim != 1 or len(values_P) < 2:
        raise ValueError(f"a standard error needs one value for each of two or more problems, got {values_P.shape}.")
    return float(values_P.mean()), float(values_P.std(ddof=1) / math.sqrt(len(values_P)))
