"""Rounds of three nodes who answer, criticise each other and revise."""

import collections
import dataclasses
import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import randomness
from rlswarm_jax.game.effects import Evaluate, Gather, Learn, Pin, Publish, Sample, Score, decode_result, encode_result
from rlswarm_jax.game.prompts import NONE
from rlswarm_jax.game.rewards import Rewards
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.records import schema
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE, STAGES
from rlswarm_jax.tasks import Mixture, Problem
from rlswarm_jax.tasks.base import fold
from tests.game.hand_driver import (
    ALICE,
    BOB,
    GROUP_SIZE,
    MALLORY,
    ME,
    Speaker,
    half_right,
    play,
    play_together,
    signed,
    three_stages,
)
from tests.game.test_round import plain, with_group

ALL = dict.fromkeys((ME, ALICE, BOB), Speaker())
PLAYED = play_together(ALL)
GAME = three_stages()
SHARED = (0, 1)


def says(text: str):
    return lambda p, g, right: text


def spoken(who, stage: str, index: int, round_: int = 1) -> int:
    """Which of their completions others read, by hand."""
    fields = (GAME.beacon(round_), "speaks", who.author, stage, index)
    return randomness.seed("pool", *fields) % GROUP_SIZE


def group_of(played, stage: str, index: int):
    return next(group for group in played.records[stage].groups if group.index == index)


def word(who, stage: str, index: int) -> str:
    """What others read of somebody."""
    return group_of(PLAYED[who], stage, index).completions[spoken(who, stage, index)].text


def everything_for(listener) -> dict[str, list]:
    """What a node hears of the others, in time."""
    others = [who for who in ALL if who is not listener]
    return {stage: [PLAYED[who].said[stage] for who in others] for stage in STAGES}


# --- the course of a round


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_round_has_as_many_stages_as_the_game(count):
    stages = STAGES[:count]
    for who, played in play_together(ALL, stages=stages, shared=2).items():
        course = [Pin] + [Sample, Publish, Gather] * count + [Score, Learn]
        assert [type(effect) for effect in played.effects] == course
        assert [e.stage for e in played.all(Gather)] == [e.record.stage for e in played.all(Publish)] == list(stages)
        assert [len(played.records[stage].groups) for stage in stages] == [3, 2, 2][:count]
        assert {group.stage for group in played.learned} == set(stages) and played.unused == {}
        assert played.metrics["records/published"] == count
        assert all(record.author == who.author for record in played.records.values())


def test_some_problems_are_everybody_s_and_the_others_one_s_own():
    games = [three_stages(who) for who in ALL]
    for index in range(3):
        asked = {game.problem(game.author, 1, index) for game in games}
        assert len(asked) == (1 if index in SHARED else 3)
        assert {game.problem(ME.author, 1, index) for game in games} == {GAME.problem(ME.author, 1, index)}
    assert len({GAME.problem(ME.author, round_, 0).seed for round_ in range(9)}) == 9
    assert three_stages(seed=6).problem(ME.author, 1, 0) != GAME.problem(ME.author, 1, 0)


def test_shared_problems_have_noise_of_one_s_own_in_every_stage():
    keys = [
        tuple(key)
        for played in PLAYED.values()
        for sample in played.all(Sample)
        for key in sample.keys_PGM.reshape(-1, 2).tolist()
    ]
    assert len(keys) == len(set(keys)) == 3 * (3 + 2 + 2) * GROUP_SIZE


def test_critics_read_the_others_answers_and_revisers_their_own_first():
    for me, played in PLAYED.items():
        others = [who for who in ALL if who is not me]
        critic, reviser = played.shown(three_stages(me), CRITIQUE), played.shown(three_stages(me), REVISE)
        assert set(critic) == set(reviser) == set(SHARED)
        for index in SHARED:
            assert sorted(critic[index].answers) == sorted(word(who, ANSWER, index) for who in others)
            assert critic[index].critiques == critic[index].votes == () or set(critic[index].votes) == {0}
            own, *answers = reviser[index].answers
            assert own == word(me, ANSWER, index)
            assert sorted(answers) == sorted(word(who, ANSWER, index) for who in others)
            said = [word(who, CRITIQUE, index).rpartition("#")[0] for who in others]
            assert sorted(reviser[index].critiques) == sorted(said)


def test_votes_in_a_prompt_are_those_of_the_critics_shown():
    for me, played in PLAYED.items():
        for index, view in played.shown(three_stages(me), REVISE).items():
            named = collections.Counter()
            for critic in ALL:
                if critic is not me:
                    vote = group_of(PLAYED[critic], CRITIQUE, index).vote
                    shown = PLAYED[critic].shown(three_stages(critic), CRITIQUE)[index].answers
                    named.update([shown[vote - 1]] if vote else [])
            assert view.votes == tuple(named[text] for text in view.answers)


def test_a_critic_s_vote_is_what_most_of_their_critiques_name():
    for who, played in PLAYED.items():
        for index, view in played.shown(three_stages(who), CRITIQUE).items():
            right = GAME.problem(who.author, 1, index).answers[0]
            truth = view.answers.index(right) + 1 if right in view.answers else NONE
            assert group_of(played, CRITIQUE, index).vote == truth
            assert group_of(played, ANSWER, index).vote is group_of(played, REVISE, index).vote is None


def test_parents_are_the_records_whose_words_are_shown():
    hashes = {played.said[stage].hash: (who, stage) for who, played in PLAYED.items() for stage in STAGES}
    for me, played in PLAYED.items():
        others = {who for who in ALL if who is not me}
        for index in SHARED:
            assert group_of(played, ANSWER, index).parents == []
            found = [hashes[h] for h in group_of(played, CRITIQUE, index).parents]
            assert set(found) == {(who, ANSWER) for who in others}
            found = [hashes[h] for h in group_of(played, REVISE, index).parents]
            assert found[0] == (me, ANSWER) and set(found[1:3]) == {(who, ANSWER) for who in others}
            assert set(found[3:]) == {(who, CRITIQUE) for who in others}


def test_no_more_are_shown_than_the_game_says():
    for shown, critics in ((1, 0), (2, 1), (1, 2)):
        for who, played in play_together(ALL, shown=shown, critics=critics).items():
            game = three_stages(who, shown=shown, critics=critics)
            assert all(len(view.answers) == shown for view in played.shown(game, CRITIQUE).values())
            for view in played.shown(game, REVISE).values():
                assert (len(view.answers), len(view.critiques)) == (1 + shown, critics)
            assert played.unused == {}


# --- learning


def test_peers_prompts_are_rebuilt_in_every_stage():
    asked = {
        (who.author, stage, index): prompt
        for who, played in PLAYED.items()
        for stage, sample in zip(STAGES, played.all(Sample), strict=True)
        for index, prompt in enumerate(sample.prompts)
    }
    for played in PLAYED.values():
        assert {group.stage for group in played.external} == set(STAGES)
        for group in played.learned:
            assert group.prompt == asked[group.author, group.stage, group.index]


def test_what_is_learned_is_what_one_scores_oneself():
    for group in PLAYED[ME].learned:
        if group.stage in (ANSWER, REVISE):
            assert group.rewards == [1, 0, 0, 0]
        else:  # `true_critic` tells the truth but for its first completion
            who = next(who for who in ALL if who.author == group.author)
            view = PLAYED[who].shown(three_stages(who), CRITIQUE)[group.index]
            right = GAME.problem(group.author, 1, group.index).answers[0]
            lie = NONE if right in view.answers else 1
            assert (lie == NONE) == (right in view.answers) and group.rewards == [0, 1, 1, 1]


def test_two_nodes_give_a_group_the_same_rewards():
    found = collections.defaultdict(set)
    for played in PLAYED.values():
        for group in played.learned:
            found[group.slot].add(tuple(group.rewards))
    assert len(found) == 3 * 7 - 2 and all(len(rewards) == 1 for rewards in found.values())  # two are not contested


def test_weights_of_stages_are_the_groups_and_nothing_is_learned_from_one_without():
    weighed = play_together(ALL, weights=(1.0, 0.25, 0.0))[ME]
    assert {(group.stage, group.weight) for group in weighed.learned} == {(ANSWER, 1.0), (CRITIQUE, 0.25)}
    assert {group.stage for group in weighed.state.pool.groups} <= {ANSWER, CRITIQUE}  # nor does it take a place
    assert {group.weight for group in PLAYED[ME].learned} == {1.0}


def test_improvement_is_over_one_s_own_first_answer():
    weights = Rewards(improvement=0.5)
    for words, expected in ((half_right, None), (says("x"), [1.5, 0, 0, 0]), (lambda p, g, right: right, [1, 0, 0, 0])):
        played = play_together(dict.fromkeys(ALL, Speaker(words)), rewards=weights)
        for group in (group for group in played[ME].learned if group.stage == REVISE):
            who = next(who for who in ALL if who.author == group.author)
            first = words(
                group.index, spoken(who, ANSWER, group.index), right := GAME.problem(b"", 1, group.index).answers[0]
            )
            assert group.rewards == (expected or [1 if first == right else 1.5, 0, 0, 0])


def right_answers(p: int, g: int, right: str) -> str:
    return right


def derives(how: str):
    """Critics of answers that are all right, who name one; what they write is right in the first completion alone."""
    return lambda p, g, right, view: [how.format(right), "9", f"{right}0", ""][g] + "#1"


def test_a_critique_that_answers_rightly_itself_is_paid_for_that():
    """It is not contested, so that nothing else is, and whoever revises reads it."""
    speakers = dict.fromkeys(ALL, Speaker(right_answers, derives("{}")))
    for rewards, expected in ((Rewards(), []), (Rewards(derivation=0.5), [[0.5, 0, 0, 0]] * 6)):
        played = play_together(speakers, rewards=rewards)
        for me in ALL:
            assert [group.rewards for group in played[me].learned if group.stage == CRITIQUE] == expected


def test_a_peer_s_critique_that_only_a_lenient_scorer_takes_is_not_learned_from():
    speakers = dict.fromkeys(ALL, Speaker(right_answers, derives("{} ")))
    speakers[ME] = Speaker(right_answers, derives("{}"))
    played = play_together(speakers, rewards=Rewards(derivation=0.5))
    assert {group.author for group in played[ME].learned if group.stage == CRITIQUE} == {ME.author}
    assert {group.author for group in played[BOB].learned if group.stage == CRITIQUE} == {who.author for who in ALL}


def half_kept(p: int, g: int, right: str, view) -> str:
    return ["?", right, "9", "? "][g]


@pytest.mark.parametrize("keep", [True, False])
def test_who_revises_may_stand_by_the_first_answer(keep):
    """It is worth what that was, and it is what others hear."""
    for answers, first in ((right_answers, 1), (says("8 8 8"), 0)):
        played = play_together(dict.fromkeys(ALL, Speaker(answers, revise=half_kept)), stand_by=keep)
        revised = [group for group in played[ME].learned if group.stage == REVISE]
        assert [group.rewards for group in revised] == [[first if keep else 0, 1, 0, 0]] * 6
        for index in SHARED:
            said = played[BOB].state.sheets[played[ME].said[REVISE].hash].said[index]
            right = GAME.problem(b"", 1, index).answers[0]
            stood_by = answers(0, 0, right) if keep else "?"
            assert said.answer == [stood_by, right, "9", "? "][spoken(ME, REVISE, index)]


def test_a_vote_is_not_paid_for_where_an_answer_can_be_verified():
    """Two of three critics vote for a wrong answer: saying the same earns nothing, and only what is right does."""
    revise = lambda p, g, right, view: ["9", right, "8", "#8|8:9;8"][g]  # noqa: E731
    critics = {
        ME: lambda p, g, right, view: f"8 8 8#{view.answers.index('9') + 1 if '9' in view.answers else 1}",
        ALICE: lambda p, g, right, view: f"#{view.answers.index('9') + 1}",
        BOB: lambda p, g, right, view: f"8#{view.answers.index('8') + 1}",
    }
    answers = {ME: says("9"), ALICE: says("8"), BOB: says("9")}
    speakers = {who: Speaker(answers[who], critics[who], revise) for who in ALL}
    played = play_together(speakers, rewards=Rewards(consensus=0.5))
    for me in ALL:
        groups = [group for group in played[me].learned if group.stage == REVISE]
        assert len(groups) == 6 and all(group.rewards == [0, 1, 0, 0] for group in groups)
        assert played[me].metrics["revise/reward/pass_at_group"] == 1.0  # by being right: agreement is not
        assert played[me].metrics["game/vote"] == 0


def test_metrics_tell_how_often_the_words_on_shared_problems_are_right():
    for me, played in PLAYED.items():
        game = three_stages(me)
        right = {index: game.problem(me.author, 1, index).answers[0] for index in SHARED}
        for name, stage in (("game/first", ANSWER), ("game/revised", REVISE)):
            found = [word(me, stage, index) == right[index] for index in SHARED]
            assert played.metrics[name] == sum(found) / 2
        views = played.shown(game, CRITIQUE)
        disputed = [i for i in SHARED if 0 < views[i].answers.count(right[i]) < 2]
        firsts = [views[i].answers[0] == right[i] for i in disputed]  # which is also the first of what most say
        found = {
            name: played.metrics.get(f"critique/{name}") for name in ("best", "chance", "first", "majority", "none")
        }
        expected = {"best": 0.75, "chance": pytest.approx(1 / 3), "none": 0.0}
        assert found == expected | dict.fromkeys(("first", "majority"), sum(firsts) / len(firsts))
        assert played.metrics["critique/contested"] == len(disputed) / 2
        assert played.metrics["critique/reward/mean"] == 0.75 * len(disputed) / 2
        assert played.metrics["revise/reward/mean"] == 0.25
        assert played.metrics["reward/mean"] == 0.25 and played.metrics["critique/groups"] == 2


# --- fewer


def test_alone_a_node_plays_all_stages_with_what_there_is():
    played = play(GAME)
    assert [type(e) for e in played.effects] == [
        Pin,
        Sample,
        Publish,
        Gather,
        Publish,
        Gather,
        Sample,
        Publish,
        Gather,
        Score,
        Learn,
    ]
    assert [len(played.records[stage].groups) for stage in STAGES] == [3, 0, 2]
    own = {
        index: (played.records[ANSWER].groups[index].completions[spoken(ME, ANSWER, index)].text,) for index in SHARED
    }
    assert {index: view.answers for index, view in played.shown(GAME, REVISE).items()} == own
    assert {group.stage for group in played.learned} == {ANSWER, REVISE} and played.unused == {}
    assert played.metrics["critique/groups"] == 0 and "critique/reward/mean" not in played.metrics


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("speaker", "listener"), itertools.permutations(ALL, 2))
def test_a_lost_record_costs_no_more_than_itself_and_what_answers_to_it(stage, speaker, listener):
    """Whatever is lost on its way to one node, all play on; what that node can't understand it counts."""
    lost = stage, speaker, listener
    played = play_together(ALL, lambda *said: None if said == lost else said[0])
    for who in ALL:
        assert [len(played[who].records[s].groups) for s in STAGES] == [3, 2, 2]
        others = 0 if who is not listener else {ANSWER: 6, CRITIQUE: 2, REVISE: 0}[stage]
        assert played[who].unused == ({"unknown parent": others} if others else {})
    view = played[listener].shown(three_stages(listener), REVISE)[0]
    assert (len(view.answers), len(view.critiques)) == {
        # without the answer, the third one's critique of it is not understood either
        ANSWER: (2, 1),
        CRITIQUE: (3, 1),
        REVISE: (3, 2),
    }[stage]


def test_a_late_answer_is_not_shown_to_critics_but_to_revisers():
    late = play_together(ALL, lambda stage, a, b: CRITIQUE if (stage, a, b) == (ANSWER, BOB, ME) else stage)[ME]
    for index in SHARED:
        assert late.shown(GAME, CRITIQUE)[index].answers == (word(ALICE, ANSWER, index),)
        assert len(late.shown(GAME, REVISE)[index].answers) == 3
    assert late.unused == {}


def test_what_answers_to_something_that_comes_a_stage_later_waits_for_it():
    late = play_together(ALL, lambda stage, a, b: REVISE if (stage, a, b) == (ANSWER, BOB, ME) else stage)[ME]
    for index in SHARED:
        assert late.shown(GAME, CRITIQUE)[index].answers == (word(ALICE, ANSWER, index),)
        (critique,) = late.shown(GAME, REVISE)[index].critiques
        assert critique == word(BOB, CRITIQUE, index).rpartition("#")[0]  # Alice's was about Bob's answer, too
    assert late.unused == {} and len(late.external) == 2 * 7 - 1  # in the end all are understood


def test_what_comes_early_is_kept_and_not_shown_before_its_time():
    """A node whose deadline has passed is a stage further: its critiques come while others still wait for answers."""
    in_time = {stage: everything_for(ME)[stage] for stage in (ANSWER, CRITIQUE)}
    early = {ANSWER: [*in_time[CRITIQUE], *in_time[ANSWER]]}
    played, expected = play(GAME, arrived=early), play(GAME, arrived=in_time)
    assert played.learned == expected.learned and played.state == expected.state
    assert plain(played.all(Publish)) == plain(expected.all(Publish)) and played.unused == {}
    earlier_still = {ANSWER: [*in_time[CRITIQUE], PLAYED[ALICE].said[ANSWER]], CRITIQUE: [PLAYED[BOB].said[ANSWER]]}
    played = play(GAME, arrived=earlier_still)  # one of the critiques came two stages before what it is about
    assert played.unused == {} and len(played.external) == 2 * 5 - 1


def test_what_comes_a_round_later_is_understood_and_scored_as_in_its_own():
    late = {(CRITIQUE, ALICE, ME), (REVISE, BOB, ME), (ANSWER, BOB, ME)}
    run = play_together(ALL, lambda *said: None if said in late else said[0])
    assert run[ME].unused == {"unknown parent": 2}  # of Alice's revisions, which answer to Bob too
    told = [run[who].said[stage] for stage, who, _ in late]
    second = play(GAME, run[ME].state, {CRITIQUE: told})
    assert second.unused == {} and second.metrics["groups/staleness_mean"] == 1.0
    own = {group.slot: group for who in (ALICE, BOB) for group in run[who].learned if not group.external}
    expected = [own[slot] for slot in own if (slot[2], slot[1]) in {(stage, who.author) for stage, who, _ in late}]
    found = sorted(second.external, key=lambda group: group.slot)
    assert [(g.slot, g.prompt, g.tokens, g.rewards) for g in found] == [
        (g.slot, g.prompt, g.tokens, g.rewards) for g in sorted(expected, key=lambda group: group.slot)
    ]


def test_what_was_said_is_remembered_as_long_as_it_may_be_learned_from():
    state = NodeState(round=1)
    for _ in range(5):
        state = play(GAME, state).state
        rounds = {sheet.round for sheet in state.sheets.values()}
        assert rounds == {r for r in range(1, state.round) if r >= state.round - GAME.max_staleness}
        assert len(state.sheets) == 3 * len(rounds)


# --- what a peer can get wrong in the later stages, one at a time; more of parents is in test_stages.py


def heard_with(stage: str, change, who=ALICE):
    """ME hears everything, but of one peer's stage a changed record under their signature."""
    arrived = {s: list(records) for s, records in everything_for(ME).items()}
    others = [r for r in arrived[stage] if r.record.author != who.author]
    arrived[stage] = [*others, signed(change(PLAYED[who].records[stage]), who)]
    # revisions that answer to the changed record would be counted as well
    return play(dataclasses.replace(GAME, stages=STAGES[: STAGES.index(stage) + 1]), arrived=arrived)


BOB_S, MINE = ({stage: PLAYED[who].said[stage].hash for stage in STAGES} for who in (BOB, ME))
ALICE_VOTE = group_of(PLAYED[ALICE], CRITIQUE, 1).vote
OLD = play_together(ALL, states=dict.fromkeys(ALL, NodeState(round=0)))
FLAWS = {
    "made-up parents": (CRITIQUE, "unknown parent", {"parents": [b"p" * 32]}),
    "no parents": (CRITIQUE, "wrong parents", {"parents": []}),
    "an answer of another round": (CRITIQUE, "unknown parent", {"parents": [OLD[BOB].said[ANSWER].hash]}),
    "a vote for one who was not shown": (CRITIQUE, "false vote", {"vote": 3}),
    "a vote that one's critiques do not name": (CRITIQUE, "false vote", {"vote": (ALICE_VOTE + 1) % 3}),
    "no vote, though they name one": (CRITIQUE, "false vote", {"vote": None}),
    "a private problem": (CRITIQUE, "foreign problem", {"index": 2}),
    "a revision without one's own answer": (REVISE, "wrong parents", {"parents": [BOB_S[ANSWER], MINE[ANSWER]]}),
    "a vote in a revision": (REVISE, "false vote", {"vote": 0}),
    "a vote in an answer": (ANSWER, "false vote", {"vote": 0}),
}


@pytest.mark.parametrize(("stage", "cause", "change"), FLAWS.values(), ids=FLAWS)
def test_a_flawed_group_of_a_later_stage_is_left_out_and_counted(stage, cause, change):
    def changed(record):
        return with_group(record, 1, **change)

    played = heard_with(stage, changed)
    assert played.unused == {cause: 1}
    theirs = [group for group in played.external if (group.author, group.stage) == (ALICE.author, stage)]
    assert sorted(group.index for group in theirs) == [
        index for index in range(3 if stage == ANSWER else 2) if index != 1
    ]


def test_who_says_to_have_heard_less_is_believed():
    """It can't be told from somebody who has."""
    vote = ALICE_VOTE if ALICE_VOTE <= 1 else None  # of the numbers that critiques name, one is still an answer's
    played = heard_with(CRITIQUE, lambda r: with_group(r, 1, parents=r.groups[1].parents[:1], vote=vote))
    assert played.unused == {}


def test_an_answer_of_another_round_is_no_parent_even_if_it_is_known():
    state = NodeState(round=1, sheets=OLD[ME].state.sheets)
    record = with_group(PLAYED[ALICE].records[CRITIQUE], 1, parents=[OLD[BOB].said[ANSWER].hash])
    played = play(GAME, state, {ANSWER: everything_for(ME)[ANSWER], CRITIQUE: [signed(record, ALICE)]})
    assert played.unused == {"wrong parents": 1}


@pytest.mark.parametrize("who", [BOB, MALLORY])
def test_a_copied_revision_fails_for_its_copier(who):
    """It revises an answer that is not the copier's."""
    copied = msgspec.structs.replace(PLAYED[ALICE].records[REVISE], author=who.author)
    played = play(GAME, arrived=everything_for(ME) | {REVISE: [signed(copied, who)]})
    assert played.unused == {"wrong parents": 2}


# --- bounds on prompts


def test_where_others_write_more_than_fits_the_problem_is_left_out_and_the_node_plays_on():
    lengths = [len(prompt) for sample in PLAYED[ME].all(Sample)[1:] for prompt in sample.prompts]
    most = max(lengths) - 1
    played = play(dataclasses.replace(GAME, max_prompt_tokens=most), arrived=everything_for(ME))
    asked = [len(prompt) for sample in played.all(Sample)[1:] for prompt in sample.prompts]
    assert asked == [length for length in lengths if length <= most] and len(asked) < len(lengths)
    assert all(len(group.prompt) <= most for group in played.learned)
    assert set(played.unused) <= {"misshapen group"}


def test_a_peer_s_prompt_that_is_too_long_here_is_left_out():
    game = dataclasses.replace(GAME, stages=(ANSWER,), shared=0, max_prompt_tokens=1)
    theirs = play(three_stages(ALICE, stages=(ANSWER,), shared=0), identity=ALICE).said[ANSWER]
    assert play(game, arrived=[theirs]).unused == {"misshapen group": 3}


def test_games_that_show_other_things_do_not_understand_each_other():
    for fields in ({"shown": 2}, {"critics": 1}, {"show_votes": False}, {"shared": 1}, {"local_groups": 4}):
        assert three_stages(**fields).dialect != GAME.dialect
        theirs = play(three_stages(ALICE, **fields), identity=ALICE).said[ANSWER]
        assert play(GAME, arrived=[theirs]).unused == {"unknown prompt": len(theirs.record.groups)}
    assert three_stages(stages=STAGES[:2]).dialect == GAME.dialect  # who plays fewer stages is understood


# --- problems that nothing can score


class OpenTask:
    """Questions without an answer that could be checked."""

    name, fingerprint, seconds = "open", "open-1", 0.0

    def problem(self, seed, split="train"):
        return Problem("open", seed, f"{seed}?", f"{seed % 997}?", ("",), split, verifiable=False)

    def score(self, problem, answer_text):
        return 0.0

    def canonical(self, answer_text):
        return fold(answer_text)


def test_without_a_verifier_only_agreement_is_paid():
    open_questions = Mixture({"open": OpenTask()}, {"open": 1.0})
    critique = lambda p, g, right, view: f"#{view.answers.index('7') + 1 if g else 0}"  # noqa: E731
    revise = lambda p, g, right, view: "7" if g else "8"  # noqa: E731
    for weights, rewards in ((Rewards(), None), (Rewards(consensus=0.5), [0, 0.5, 0.5, 0.5])):
        speakers = dict.fromkeys(ALL, Speaker(says("7"), critique, revise))
        for played in play_together(speakers, rewards=weights, mixture=open_questions).values():
            assert {(g.stage, tuple(g.rewards)) for g in played.learned} == (
                {(REVISE, tuple(rewards))} if rewards else set()
            )
            assert not any(name.startswith("game/") for name in played.metrics)  # nobody knows what is right


# --- order and the journal


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_the_order_in_which_records_are_handed_over_is_nothing(data):
    """However they are spread over the stages, their order within one is nothing."""
    records = [record for part in everything_for(ME).values() for record in part]
    when = data.draw(st.lists(st.sampled_from([*STAGES, ""]), min_size=len(records), max_size=len(records)))
    order = data.draw(st.permutations(range(len(records))))
    by_stage = {stage: [r for r, s in zip(records, when, strict=True) if s == stage] for stage in STAGES}
    shuffled = {stage: [records[i] for i in order if when[i] == stage] for stage in STAGES}
    one, other = play(GAME, arrived=by_stage), play(GAME, arrived=shuffled)
    assert one.learned == other.learned and one.state == other.state and one.metrics == other.metrics
    assert plain(one.all(Publish)) == plain(other.all(Publish)) and plain(one.all(Sample)) == plain(other.all(Sample))


@settings(deadline=None, max_examples=10)
@given(st.sets(st.tuples(st.sampled_from(STAGES), st.sampled_from([ALICE, BOB]))), st.booleans())
def test_a_journal_brings_back_the_same_round(lost, late):
    """Fed the journaled bytes of its effects' results, the generator asks for the same and ends in the same state."""
    arrived = {stage: [PLAYED[who].said[stage] for who in (ALICE, BOB) if (stage, who) not in lost] for stage in STAGES}
    arrived[REVISE] += [PLAYED[who].said[stage] for stage, who in lost] if late else []
    state = NodeState(round=1, sheets=dict(OLD[ME].state.sheets))
    game = dataclasses.replace(GAME, evaluate_every=1, rounds=2)  # before it, and after the last
    played = play(game, state, arrived)
    assert len(played.all(Evaluate)) == 2
    journal = [encode_result(effect, result) for effect, result in zip(played.effects, played.results, strict=True)]
    generator, result, asked = play_round(game, state), None, []
    with pytest.raises(StopIteration) as stop:
        while True:
            effect = generator.send(result)
            result = decode_result(effect, journal[len(asked)])
            asked.append(effect)
    assert plain(asked) == plain(played.effects)
    assert stop.value.value == (played.state, played.metrics)


def test_records_of_all_stages_travel_without_a_verdict():
    for played in PLAYED.values():
        for stage in STAGES:
            assert schema.decode(schema.encode(played.records[stage])) == played.records[stage]
