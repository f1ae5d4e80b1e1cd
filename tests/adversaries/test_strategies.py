"""What ill-meaning nodes say is well-formed, is what their strategy promises, and teaches nobody anything false."""

import dataclasses

import pytest

from configs import common
from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.game import turns
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.records import schema
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.schema import ANSWER, CRITIQUE
from tests.game.hand_driver import (
    ALICE,
    BOB,
    ME,
    Speaker,
    make_game,
    play,
    play_together,
    signed,
    three_stages,
)


def told(name: str, **fields):
    """A node's record of one stage, as others are told, and what another node reads in it."""
    game = make_game(ALICE, strategy=STRATEGIES[name])
    state = NodeState(round=1, **fields)
    record = play(game, state, identity=ALICE).records[ANSWER]
    return record, turns.read_record(make_game(ME), {}, signed(record, ALICE), turns.NO_CHAIN)


def honest():
    return play(make_game(ALICE), NodeState(round=1), identity=ALICE).records[ANSWER]


def test_the_config_names_the_strategies_that_there_are():
    assert set(common.STRATEGIES) == STRATEGIES.keys()


def test_wrong_answers_are_wrong_readable_and_as_likely_as_honest_ones():
    record, (found, flaws) = told("wrong")
    assert flaws == {} and found.keys() == {0, 1, 2}
    likely = {p for group in honest().groups for c in group.completions for p in c.logprobs_T.tolist()}
    game = make_game(ME)
    for turn in found.values():
        texts = [s.text for s in turn.completions]
        assert len(set(texts)) > 1 and all(game.mixture.score(turn.problem, text) < 1 for text in texts)
        assert {p for s in turn.completions for p in s.logprobs} <= likely
    # nobody learns from them: all earn the same
    assert play(game, NodeState(round=1), arrived=[signed(record, ALICE)]).external == []
    assert len(play(game, NodeState(round=1), arrived=[signed(honest(), ALICE)]).external) == 2


def test_a_copy_is_a_peers_completions_under_another_problem():
    ours = make_game(ALICE, external_groups=0)
    theirs = play(make_game(BOB), NodeState(round=1), identity=BOB)
    pool = play(ours, NodeState(round=1), arrived=[theirs.said[ANSWER]], identity=ALICE).state.pool
    assert len(pool.groups) == 3
    game = dataclasses.replace(ours, strategy=STRATEGIES["copy"])
    copied = play(game, NodeState(round=2, pool=pool), identity=ALICE).records[ANSWER]
    source = {tuple(c.text for c in group.completions): group for group in theirs.records[ANSWER].groups}
    for group in copied.groups:
        before = source[tuple(c.text for c in group.completions)]
        assert [c.logprobs for c in group.completions] == [c.logprobs for c in before.completions]
        assert group.problem_seed == game.problem(ALICE.author, 2, group.index).seed != before.problem_seed
    _, flaws = turns.read_record(make_game(ME), {}, signed(copied, ALICE), turns.NO_CHAIN)
    assert flaws == {}


def test_who_has_nobody_to_copy_is_honest():
    record, _ = told("copy", pool=Pool())
    assert record == honest()


def test_spam_fills_the_record_and_only_what_has_the_games_form_is_read():
    record, (found, flaws) = told("spam")
    assert len(record.groups) == schema.MAX_GROUPS
    assert max(len(group.completions) for group in record.groups) == schema.MAX_GROUP_SIZE
    assert found.keys() == {0, 1, 2}  # the places that an author has
    assert set(flaws.values()) == {"foreign problem"} and len(flaws) == schema.MAX_GROUPS - 3
    game = make_game(ME)
    assert all(game.mixture.score(t.problem, s.text) < 1 for t in found.values() for s in t.completions)
    played = play(game, NodeState(round=1), arrived=[signed(record, ALICE)])
    assert played.external == [] and played.unused == {"foreign problem": schema.MAX_GROUPS - 3.0}


def test_spam_of_long_completions_still_fits_into_a_record():
    game = make_game(ALICE, strategy=STRATEGIES["spam"], max_new_tokens=512)
    record = play(game, NodeState(round=1), identity=ALICE).records[ANSWER]
    assert 0.5 * schema.MAX_RECORD_BYTES < len(schema.encode(record)) <= schema.MAX_RECORD_BYTES


@pytest.mark.parametrize("name", ["wrong", "copy", "spam"])
def test_in_all_stages_what_is_said_is_read_by_others_as_its_author_means_it(name):
    """Later stages answer to the lie, and it teaches nobody. (Who copies has nobody to copy in its first round.)"""
    all_ = dict.fromkeys((ME, ALICE, BOB), Speaker())
    played = play_together(all_, own={ALICE: {"strategy": STRATEGIES[name]}})
    for who in (ME, BOB):
        assert played[who].unused.keys() <= {"foreign problem"}, played[who].unused
        sheets, ours = played[who].state.sheets, three_stages(who)
        assert sheets.keys() == played[ALICE].state.sheets.keys()
        assert all(sheets[h].said == played[ALICE].state.sheets[h].said for h in sheets)
        # a critique that names another one is now and then right by that: it is worth what it is worth here
        teachers = {group.author for group in played[who].external if group.stage != CRITIQUE}
        assert teachers == {BOB.author, ME.author, *([ALICE.author] if name == "copy" else [])} - {ours.author}


def test_a_wrong_critic_votes_for_something_else_than_it_found():
    all_ = dict.fromkeys((ME, ALICE, BOB), Speaker())
    true = play_together(all_)[ALICE].records[CRITIQUE]
    lying = play_together(all_, own={ALICE: {"strategy": STRATEGIES["wrong"]}})[ALICE].records[CRITIQUE]
    votes = [(a.vote, b.vote) for a, b in zip(true.groups, lying.groups, strict=True)]
    assert len(votes) == 2 and all(a != b and b is not None for a, b in votes)
