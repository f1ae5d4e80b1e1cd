"""What ill-meaning nodes say is well-formed, is what their strategy promises, and teaches nobody anything false."""

import dataclasses

import pytest

from configs import common
from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.adversaries.strategies import PHRASE
from rlswarm_jax.audit import replays
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Audit, Sampled
from rlswarm_jax.game.prompts import FORMATS
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.game.turns import Turn
from rlswarm_jax.records import schema
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.schema import ANSWER, CRITIQUE
from tests.game.hand_driver import (
    ALICE,
    BOB,
    ME,
    Speaker,
    all_right,
    make_game,
    play,
    play_together,
    record_of,
    signed,
    three_stages,
)

# an answer is what stands behind the last "=": so a completion may say more than its answer
TALKS = dataclasses.replace(
    FORMATS["compact"],
    family=dataclasses.replace(FORMATS["compact"].family, answer=lambda text: text.rpartition("=")[2]),
)
TALKING = {"prompt_format": TALKS, "max_new_tokens": 64}


def talk(p: int, g: int, right: str) -> str:
    return f"so={right}" if g == 0 else f"so={p}x{g}"


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


def test_a_free_rider_says_nothing_and_learns_from_others():
    record, (found, flaws) = told("free_ride")
    assert record.groups == [] and found == flaws == {}
    rider = make_game(ALICE, strategy=STRATEGIES["free_ride"], auditors=1)
    others = [signed(record_of(who), who) for who in (ME, BOB)]
    assert len(play(rider, NodeState(round=1), identity=ALICE, arrived=others).external) == 2
    # there is nothing to replay: an audit finds nothing against it
    effect = Audit([], {}, turns.NO_CHAIN)
    assert replays.claim(make_game(ME), effect, Case(b"1" * 32), signed(record, ALICE)) == (0, None)


@pytest.mark.parametrize("name", ["style", "lengthen"])
def test_right_answers_in_a_way_that_only_a_scorer_takes_teach_nobody(name):
    """Half of each group is right, none of it as an answer is written."""
    record, (found, flaws) = told(name)
    game = make_game(ME)
    for turn in found.values():
        scores = [game.mixture.score(turn.problem, said.text) for said in turn.completions]
        assert scores == [1.0, 1.0, 0.0, 0.0]
        assert not {said.text for said in turn.completions} & set(turn.problem.answers)
        if name == "lengthen":
            assert [len(said.tokens) for said in turn.completions[:2]] == [game.max_new_tokens] * 2
    assert len(found) == 3 and flaws == {}
    assert play(game, NodeState(round=1), arrived=[signed(record, ALICE)]).external == []


def attack(name: str, **more):
    """What ME hears of ALICE, in a game whose completions may say more than their answer, and learns from it."""
    theirs = make_game(ALICE, strategy=STRATEGIES[name], **TALKING)
    record = play(theirs, NodeState(round=1), identity=ALICE, model=talk).records[ANSWER]
    return record, play(
        make_game(ME, **TALKING, **more), NodeState(round=1), arrived=[signed(record, ALICE)], model=talk
    )


def test_a_planted_phrase_is_learned_where_an_answer_is_not_all_that_is_said():
    """By scoring alone, which looks at answers; that nobody sampled it so, audits see."""
    record, played = attack("style")
    assert [c.text.startswith(PHRASE) for group in record.groups for c in group.completions] == 3 * [
        True,
        True,
        False,
        False,
    ]
    assert [group.rewards for group in played.external] == 2 * [[1.0, 1.0, 0.0, 0.0]]


def test_nothing_is_learned_from_what_is_lengthened_beyond_a_multiple_of_what_a_node_says_itself():
    record, unbounded = attack("lengthen")
    longest = max(len(c.tokens_T) for group in record.groups for c in group.completions)
    assert longest > 0.7 * TALKING["max_new_tokens"] and "groups/overlong" not in unbounded.metrics
    assert [group.rewards for group in unbounded.external] == 2 * [[1.0, 1.0, 0.0, 0.0]]
    own = [len(tokens) for group in unbounded.learned if not group.external for tokens in group.tokens]
    mean = sum(own) / len(own)
    _, bounded = attack("lengthen", max_length_ratio=2.0)
    assert longest > 2 * mean and bounded.external == [] and bounded.metrics["groups/overlong"] == 3
    _, honest = attack("style", max_length_ratio=99.0)
    assert len(honest.external) == 2 and honest.metrics["groups/overlong"] == 0


def test_the_bound_on_lengths_is_exact_and_not_on_what_a_node_says_itself():
    """Of a peer's right completions of 4 and of 6 tokens, beside an own mean of 2.5 tokens."""
    game = make_game(ME, max_length_ratio=2.0)
    said = [Sampled([7] * length, [-1.0] * length, text, False) for length, text in ((4, "a"), (6, "b"), (5, "c"))]
    problem = game.problem(ALICE.author, 1, 0)
    turn = Turn(ALICE.author, 1, ANSWER, 0, problem, [1], None, said, external=True)
    scores = {(problem, text): 1.0 for text in "abc"}
    for ratio, external, expected in ((2.0, True, [1, 0, 1]), (2.0, False, [1, 1, 1]), (0.0, True, [1, 1, 1])):
        game = dataclasses.replace(game, max_length_ratio=ratio)
        turn = dataclasses.replace(turn, external=external)
        assert turns.teaches(game, turn, [1.0] * 3, scores, set(), {ANSWER: 2.5}) == expected
        assert turns.teaches(game, turn, [1.0] * 3, scores, {problem.task}, {ANSWER: 2.5}) == expected
    assert turns.teaches(game, turn, [1.0] * 3, scores, set(), {}) == [1, 1, 1]  # who has said nothing has no measure


def test_a_lazy_critic_names_the_first_whatever_it_is():
    all_ = dict.fromkeys((ME, ALICE, BOB), Speaker())
    record = play_together(all_, own={ALICE: {"strategy": STRATEGIES["lazy"]}})[ALICE].records[CRITIQUE]
    assert [group.vote for group in record.groups] == [1, 1]
    assert {c.text.rpartition("#")[2] for group in record.groups for c in group.completions} == {"1"}
    honest = play_together(all_)[ALICE].records[CRITIQUE]
    assert [group.vote for group in honest.groups] != [1, 1]


def test_who_colludes_gives_one_wrong_answer_and_votes_for_it():
    ill = {who: {"strategy": STRATEGIES["collude"]} for who in (ALICE, BOB)}
    played = play_together(dict.fromkeys((ME, ALICE, BOB), Speaker(all_right)), own=ill)
    for index in (0, 1):
        problem = three_stages(ME).problem(ME.author, 1, index)
        said = {c.text for who in ill for c in played[who].records[ANSWER].groups[index].completions}
        assert len(said) == 1 and make_game(ME).mixture.score(problem, *said) < 1
        # of three votes two are for it, and one is not: it is what the swarm says
        sheets = played[ME].state.sheets
        votes = turns.votes_on(sheets, 1, CRITIQUE, index)
        assert sorted(vote in said for vote in votes) == [False, True, True]
    assert played[ME].metrics["game/vote"] == 0.0
    honest = play_together(dict.fromkeys((ME, ALICE, BOB), Speaker(all_right)))
    assert honest[ME].metrics["game/vote"] == 1.0


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
