"""What a completion earns: tables of cases, among them those in which RL Swarm paid the wrong sum."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.game.prompts import FORMATS, NONE
from rlswarm_jax.game.rewards import (
    Rewards,
    answer_reward,
    chance,
    contested,
    critique_reward,
    names_best,
    revise_reward,
)
from rlswarm_jax.records.schema import CRITIQUE

PLAIN, FORM = Rewards(), Rewards(form=0.25)
scores = st.floats(0, 1)


@pytest.mark.parametrize(
    ("score", "well_formed", "weights", "earned"),
    [
        (1.0, True, PLAIN, 1.0),
        (0.0, True, PLAIN, 0.0),
        (0.5, True, PLAIN, 0.5),
        (1.0, True, FORM, 1.25),
        (0.0, True, FORM, 0.25),
        (0.0, False, FORM, 0.0),
    ],
)
def test_what_an_answer_earns(score, well_formed, weights, earned):
    assert answer_reward(score, well_formed, weights) == earned


@pytest.mark.parametrize(
    ("named", "shown", "earned"),
    [
        (1, [1, 0], 1),
        (2, [1, 0], 0),
        (1, [0, 0.5], 0),
        (2, [0, 0.5], 1),  # the best of those shown, though not right ...
        (NONE, [0, 0.5], 1),  # ... which is true as well
        (2, [0.5, 1, 1], 1),  # any of the best
        (1, [0.5, 0.5, 0], 1),
        # where all are worth the same there is nothing to see: whatever a critic names, it would be had without reading
        (2, [1, 1], 0),
        (1, [0.5, 0.5], 0),
        (NONE, [0.5, 0.5], 0),
        (1, [1], 0),
        (1, [0], 0),
        (1, [0, 0], 0),
        (NONE, [], 0),
        (None, [1, 0], 0),
        (None, [0, 0], 0),
        (None, [], 0),
        # RL Swarm paid 20 for "None" (or "No one", or "All answers were wrong") if all of those shown were right ...
        (NONE, [1, 1, 1], 0),
        (NONE, [1, 0, 0], 0),
        # ... and 0 if all were wrong, which is told from being right by `names_best`, and not contested
        (NONE, [0, 0, 0], 0),
        # it compared answers with a list of gold answers cut to the shorter of the two: later ones counted for nothing
        (3, [0, 0, 1], 1),
        (NONE, [0, 0, 1], 0),
        (1, [0, 0, 1], 0),
        (9, [0] * 8 + [1], 1),
        # it paid 2 for naming anybody who was there, though their answer was wrong
        (2, [1, 0, 1], 0),
    ],
)
def test_what_a_critique_earns(named, shown, earned):
    assert critique_reward(named, shown, PLAIN) == earned
    assert critique_reward(named, shown, FORM) == earned + (0.25 if named is not None and len(set(shown)) > 1 else 0)


@pytest.mark.parametrize(
    ("critique", "shown", "earned"),
    [
        ("I checked it. <best>1</best>", [1, 0], 1),
        ("<best>0</best>", [0, 0.5], 1),
        ("<best>0</best>", [0, 0], 0),
        ("<best>0</best>", [1, 1], 0),
        # RL Swarm read a completion without tags whole, as who is named or as "none"
        ("1", [1, 0], 0),
        ("None", [0, 0], 0),
        ("No one", [0, 0], 0),
        ("All answers were wrong", [0, 0], 0),
        # it paid a wrong answer for being digits, and for its form
        ("<best>2</best>", [1, 0], 0),
        ("<answer>2</answer>", [0, 1], 0),
        ("<best>#### 46</best>", [1, 0], 0),
        # its tags for students were taken from anywhere
        ("<student>1</student> said <answer>46</answer>", [1, 0], 0),
        ("<best>student 1</best>", [1, 0], 0),
    ],
)
def test_what_a_critique_earns_from_its_text(critique, shown, earned):
    assert critique_reward(FORMATS["chat"].named(critique, range(1, len(shown) + 1)), shown, PLAIN) == earned


@pytest.mark.parametrize(
    ("named", "shown", "derived", "earned"),
    [
        (1, [1, 0], 1, 1.5),
        (2, [1, 0], 1, 0.5),  # it says what is right, and names what is not
        (1, [1, 0], 0, 1),
        (1, [1, 1], 1, 0.5),  # not contested: any name would do, but not any answer
        (1, [1, 1], 0, 0),
        (NONE, [0, 0], 1, 0.5),
        (None, [1, 0], 1, 0),  # who names nothing has not criticised
        (None, [1, 1], 1, 0),
        (1, [1, 0], 0.5, 1.25),
    ],
)
def test_what_a_critique_earns_that_answers_itself(named, shown, derived, earned):
    assert critique_reward(named, shown, Rewards(derivation=0.5), derived) == earned
    assert critique_reward(named, shown, PLAIN, derived) == critique_reward(named, shown, PLAIN)


@pytest.mark.parametrize(
    ("family", "critique", "derived"),
    [
        ("compact", "17#1", "17"),
        ("compact", "7 5##2", "7 5#"),  # as whoever revises is shown it
        ("compact", "#0", ""),
        ("compact", "17", ""),
        ("compact", "", ""),
        ("chat", "It is <answer>17</answer>. <best>1</best>", ""),
    ],
)
def test_a_compact_critique_answers_itself(family, critique, derived):
    assert FORMATS[family].derived(critique) == derived
    assert family == "chat" or FORMATS[family].said(CRITIQUE, critique) == derived


@pytest.mark.parametrize(
    ("family", "revision", "keeps"),
    [
        ("compact", "?", True),
        ("compact", "", False),
        ("compact", "?5", False),
        ("compact", " ?", False),
        ("chat", "?", False),
        ("chat", "<answer>?</answer>", False),
    ],
)
def test_what_says_that_the_first_answer_stands(family, revision, keeps):
    assert FORMATS[family].keeps(revision) == keeps


@given(st.lists(scores, max_size=6))
def test_a_critique_is_paid_for_the_truth_alone(shown):
    """By hand: the best have the highest score, and it is not nothing; "none" is true where nothing is right."""
    for named in range(len(shown) + 1):
        true = all(s < 1 for s in shown) if named == NONE else shown[named - 1] > 0 and shown[named - 1] >= max(shown)
        assert names_best(named, shown) == true
        assert critique_reward(named, shown, PLAIN) == (true and len(set(shown)) > 1)


@given(st.lists(scores, min_size=1, max_size=6))
def test_where_it_is_not_contested_no_group_of_critiques_has_an_advantage(shown):
    """Whatever critics say of answers that are worth the same, the group is paid alike, and nothing is learned."""
    alike = [shown[0]] * len(shown)
    said = [None, NONE, *range(1, len(alike) + 1)]
    assert not contested(alike) and {critique_reward(named, alike, FORM) for named in said} == {0.0}
    assert contested(shown) == any(one != shown[0] for one in shown)


@pytest.mark.parametrize(
    ("shown", "always_first", "always_none"),
    [
        ([1, 1, 1], True, False),
        ([0, 0, 0], False, True),
        ([1, 0], True, False),
        ([0, 1], False, False),
        ([], None, True),
    ],
)
def test_constant_critics_are_often_right_and_are_paid_for_contested_ones_alone(shown, always_first, always_none):
    if shown:
        assert names_best(1, shown) == always_first
    assert names_best(NONE, shown) == always_none
    assert critique_reward(NONE, shown, PLAIN) == 0


@given(st.permutations(range(4)), st.lists(scores, min_size=4, max_size=4))
def test_numbers_are_only_names(order, shown):
    for n in range(4):
        assert critique_reward(n + 1, [shown[i] for i in order], PLAIN) == critique_reward(order[n] + 1, shown, PLAIN)


def test_where_nothing_can_score_answers_no_critique_is_known_to_be_true():
    for named in (None, NONE, 1, 2):
        assert critique_reward(named, None, PLAIN) == 0
        assert critique_reward(named, None, FORM) == (0 if named is None else 0.25)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [([1, 0, 0], 1 / 4), ([0, 0, 0], 1 / 4), ([1, 1, 1], 3 / 4), ([0.5, 0], 2 / 3), ([], 1)],
)
def test_chance_is_the_share_of_names_that_are_paid(shown, expected):
    assert chance(shown) == pytest.approx(expected)


ALL = Rewards(form=0.25, improvement=0.5, consensus=2.0)


@pytest.mark.parametrize(
    ("score", "first", "agrees", "well_formed", "weights", "earned"),
    [
        (1, 0, False, True, PLAIN, 1),
        (0, 1, True, True, PLAIN, 0),
        (1, 0, False, True, ALL, 1 + 0.5 + 0.25),
        (1, 1, False, True, ALL, 1 + 0.25),  # it was right before: no improvement
        (0, 1, False, True, ALL, 0.25),  # getting worse is no negative reward: being wrong costs enough
        (0.75, 0.25, False, False, ALL, 0.75 + 0.25),
        (0, 0, True, True, ALL, 2 + 0.25),
        (0, 0, True, False, ALL, 2),
        (0, 0, False, False, ALL, 0),
    ],
)
def test_what_a_revision_earns(score, first, agrees, well_formed, weights, earned):
    assert revise_reward(score, first, agrees, well_formed, weights) == earned


@given(scores, scores, st.booleans(), st.booleans(), *[st.floats(0, 4)] * 3)
def test_a_better_revision_never_earns_less(score, first, agrees, well_formed, form, improvement, consensus):
    weights = Rewards(form, improvement, consensus)
    earned = revise_reward(score, first, agrees, well_formed, weights)
    assert 0 <= score <= earned <= revise_reward(1.0, first, True, True, weights)


def test_with_the_usual_weights_a_reward_is_the_score():
    for score, first, agrees, formed in itertools.product((0, 0.5, 1), (0, 0.5, 1), (False, True), (False, True)):
        assert revise_reward(score, first, agrees, formed, PLAIN) == answer_reward(score, formed, PLAIN) == score
