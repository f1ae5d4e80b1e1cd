"""Figures of evaluation against counting all subsets, and against scipy."""

import collections
import itertools
import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import evaluation
from rlswarm_jax.evaluation import majority, majority_at_k, mean_and_error, pass_at_k, ranking, wilson

texts = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=9)


# --- pass@k


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for k in range(1, n + 1):
        shares = [
            statistics.fmean(min(subset) < right for subset in itertools.combinations(range(n), k))
            for right in range(n + 1)
        ]
        assert pass_at_k(n, np.arange(n + 1), k) == pytest.approx(shares, abs=1e-12)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), min_size=1, max_size=5), st.data())
def test_pass_at_k_of_many_samples_is_hypergeometric(drawn, data):
    n_P = np.array([n for n, _ in drawn])
    c_P = np.array([int(n * share) for n, share in drawn])
    k = data.draw(st.integers(1, min(n_P.min(), 300)))
    assert pass_at_k(n_P, c_P, k) == pytest.approx(scipy.stats.hypergeom.sf(0, n_P, c_P, k), abs=1e-9)


def test_pass_at_1_is_the_accuracy_and_small_ones_do_not_vanish():
    assert pass_at_k([10, 20], [3, 5], 1) == pytest.approx([0.3, 0.25], abs=1e-15)
    assert pass_at_k(10**6, 1, 100) == pytest.approx(1e-4, rel=1e-9)
    assert pass_at_k(3, [0, 1, 2, 3], 3).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), ([4, 8], [1, 1], 5)])
def test_pass_at_k_refuses_what_makes_no_sense(n, c, k):
    with pytest.raises(ValueError, match="sample"):
        pass_at_k(n, c, k)


# --- majority


@given(texts, st.integers(0, 10), st.randoms())
def test_the_majority_is_a_most_frequent_answer_in_whatever_order_they_came(answers, seed, random):
    found = majority(answers, ranking("test", seed))
    shuffled = list(answers)
    random.shuffle(shuffled)
    assert majority(shuffled, ranking("test", seed)) == found
    said = [answer for answer in answers if answer]
    assert found in statistics.multimode(said) if said else found is None


def test_ties_fall_either_way_by_content_and_seed():
    wins = collections.Counter(majority(["x", "y \ud800", ""], ranking("test", seed)) for seed in range(400))
    assert set(wins) == {"x", "y \ud800"}
    assert scipy.stats.binomtest(wins["x"], 400).pvalue > 1e-3


def test_answers_of_the_same_rank_still_have_an_order():
    assert majority(["b", "a"], lambda _: 0) == majority(["a", "b"], lambda _: 0) == "a"


@settings(deadline=None)
@given(texts, st.data())
def test_majority_at_k_is_the_mean_over_all_subsets(answers, data):
    """A subset's majority is right in the share of its own samples that scored, if they did not all score alike."""
    n = len(answers)
    right = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    places = data.draw(st.permutations("abcd"))

    def of(subset: tuple[int, ...]) -> float:
        votes = [sum(answers[i] == text for i in subset) for text in places]
        if not max(votes):
            return 0.0
        winner = places[votes.index(max(votes))]
        return statistics.fmean(right[i] for i in subset if answers[i] == winner)

    expected = statistics.fmean(map(of, itertools.combinations(range(n), k)))
    assert majority_at_k(answers, right, k, places.index) == pytest.approx(expected, abs=1e-12)


def test_majority_at_1_is_the_accuracy_and_at_n_the_majority_of_all():
    answers = ["1"] * 5 + ["2"] * 3 + [""] * 2
    for right_text, of_one, of_all in (("1", 0.5, 1.0), ("2", 0.3, 0.0), ("", 0.0, 0.0)):
        right = [bool(answer) and answer == right_text for answer in answers]
        rank = ranking("test")
        assert majority_at_k(answers, right, 1, rank) == pytest.approx(of_one, abs=1e-15)
        assert majority_at_k(answers, right, 10, rank) == pytest.approx(of_all, abs=1e-15)


def test_the_majority_of_many_samples_agrees_with_drawing_subsets():
    rng = np.random.default_rng(0)
    answers = [f"{number}" for number in rng.zipf(1.4, 400) % 50]
    right = [answer == "2" for answer in answers]
    rank = ranking("test")
    drawn = [majority([answers[i] for i in rng.choice(400, 17, replace=False)], rank) == "2" for _ in range(4000)]
    expected = majority_at_k(answers, right, 17, rank)
    assert 0.01 < expected < 0.99
    assert scipy.stats.binomtest(sum(drawn), 4000, expected).pvalue > 1e-3


def test_the_most_samples_do_not_overflow():
    answers = ["1"] * 600 + ["2"] * 400
    right = [answer == "1" for answer in answers]
    expected = scipy.stats.hypergeom.sf(20, 1000, 600, 41)
    assert majority_at_k(answers, right, 41, ranking()) == pytest.approx(expected, rel=1e-9)
    half = majority_at_k(["1"] * 500 + ["2"] * 500, [True] * 500 + [False] * 500, 499, ranking())
    assert half == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(("n", "flags", "k"), [(3, 3, 4), (3, 3, 0), (3, 2, 1), (0, 0, 1), (1001, 1001, 1)])
def test_majority_at_k_refuses_what_makes_no_sense(n, flags, k):
    with pytest.raises(ValueError, match="majority"):
        majority_at_k(["1"] * n, [True] * flags, k, ranking())


# --- how sure


@given(st.data())
def test_wilson_interval_is_scipys(data):
    n = data.draw(st.integers(1, 5000))
    right = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_error_of_a_mean_covers_what_new_problems_would_show():
    """Problems of different difficulty, 8 samples each: 95 % of intervals hold the true mean, by simulation."""
    rng, k, runs = np.random.default_rng(0), 4, 2000
    pass_4 = 1 - math.exp(math.lgamma(2 + k) - math.lgamma(2) + math.lgamma(4) - math.lgamma(4 + k))
    held = 0
    for _ in range(runs):  # a problem's chance of a right answer is Beta(2, 2), of k wrong ones B(2, 2 + k) / B(2, 2)
        right_P = rng.binomial(8, rng.beta(2, 2, 200))
        mean, error = mean_and_error(pass_at_k(8, right_P, k))
        assert error == pytest.approx(scipy.stats.sem(pass_at_k(8, right_P, k)))
        held += abs(mean - pass_4) < 1.96 * error
    assert scipy.stats.binomtest(held, runs, 0.945).pvalue > 1e-3


@pytest.mark.parametrize("values", [[], [0.5], [[0.5, 0.5]]])
def test_one_problem_has_no_error(values):
    with pytest.raises(ValueError, match="two or more"):
        mean_and_error(values)


def test_no_jax():
    """Reports are read where there is none."""
    program = f"import sys; import {evaluation.__name__}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
