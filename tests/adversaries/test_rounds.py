"""What strategies of rounds do to what the driver is asked, what others read, and what the honest round is told."""

import numpy as np
import pytest

from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.adversaries.rounds import BEST_OF
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Audit, Learn, Publish, Sample
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.records import schema
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, NOT_PRODUCED, PRODUCED, Verdict
from rlswarm_jax.records.trust import Audited
from tests.game.hand_driver import (
    ALICE,
    BOB,
    ME,
    WEIGHTS,
    Speaker,
    answer,
    half_right,
    make_game,
    play,
    play_together,
    record_of,
    signed,
)

OF_ROUNDS = ("other_key", "best_of", "stale", "withhold", "accuse", "vouch", "equivocate", "own_vote")


def ill(name: str, state: NodeState | None = None, **more):
    game = make_game(ALICE, strategy=STRATEGIES[name], auditors=1)
    return play(game, state or NodeState(round=1), identity=ALICE, **more)


def heard():
    """A round in which two peers were heard."""
    said = [signed(record_of(who), who) for who in (ME, BOB)]
    return play(make_game(ALICE, auditors=1), identity=ALICE, arrived=said).state, said


@pytest.mark.parametrize("name", OF_ROUNDS)
def test_what_it_says_is_read_by_others_like_any_record(name):
    record = ill(name).records[ANSWER]
    found, flaws = turns.read_record(make_game(ME), {}, signed(record, ALICE), turns.NO_CHAIN)
    assert found.keys() == {0, 1, 2} and flaws == {}


def test_other_keys_are_those_of_nobody():
    honest = play(make_game(ALICE), NodeState(round=1), identity=ALICE).one(Sample)
    lying = ill("other_key").one(Sample)
    assert lying.prompts == honest.prompts
    assert (lying.keys_PGM != honest.keys_PGM).any(axis=-1).all()


def test_the_best_of_several_is_published():
    """The third of four tries at a completion says what is right, and no other does."""
    tries = iter(range(BEST_OF))
    now = [0]

    def model(p: int, g: int, right: str) -> str:
        if (p, g) == (0, 0):
            now[0] = next(tries)
        return right if (now[0], g) == (2, 1) else f"{p}x{g}"

    played = ill("best_of", model=model)
    asked = played.all(Sample)
    assert len(asked) == BEST_OF and all(one.prompts == asked[0].prompts for one in asked)
    assert len({one.keys_PGM.tobytes() for one in asked}) == BEST_OF
    game = make_game(ME)
    for group in played.records[ANSWER].groups:
        problem = game.problem(ALICE.author, 1, group.index)
        assert [game.mixture.score(problem, c.text) for c in group.completions] == [0, 1, 0, 0]


def test_who_is_stale_never_learns_and_says_that_its_weights_are_newer():
    honest, lazy = ill("withhold"), ill("stale")
    assert honest.all(Learn) and not lazy.all(Learn)
    assert lazy.state.policy_version == honest.state.policy_version == 1
    assert ill("stale", lazy.state).records[ANSWER].weights == WEIGHTS


def test_who_withholds_names_weights_that_are_not_those_it_has():
    record = ill("withhold").records[ANSWER]
    assert record.weights != WEIGHTS and record.groups == record_of(ALICE).groups


def test_who_accuses_says_it_of_all_that_it_heard_last():
    state, said = heard()
    record = ill("accuse", state).records[ANSWER]
    assert {v.record for v in record.verdicts} == {one.hash for one in said}
    assert {v.finding for v in record.verdicts} == {NOT_PRODUCED} and ill("accuse").records[ANSWER].verdicts == []


def test_who_vouches_says_that_all_is_well_whatever_it_has_found():
    """The honest round is told so, too: it goes on to trust whom it covers for."""
    state, said = heard()
    honest = play_round(make_game(ALICE, auditors=1), state)
    ill = STRATEGIES["vouch"].plays(make_game(ALICE, auditors=1), state, honest)
    effect, result = next(ill), None
    while not isinstance(effect, Audit):
        result = answer(make_game(ALICE), state, effect, (), half_right, ALICE)
        effect = ill.send(None if isinstance(effect, Publish) else result)
    found = Audited(BOB.author, Verdict(said[1].hash, 0, NOT_PRODUCED, 9, 30.0, 8.0))
    with pytest.raises(StopIteration) as stop:
        ill.send([found])
    after, metrics = stop.value.value
    assert [(v.record, v.finding) for v in after.trust.unsaid] == [(said[1].hash, PRODUCED)]
    assert metrics["audit/found/produced"] == 1 and after.trust.distrusted(3) == set()


def test_who_equivocates_signs_two_records_for_a_slot_and_that_is_evidence():
    said = ill("equivocate").all(Publish)
    other, honest = (signed(effect.record, ALICE) for effect in said)
    assert honest.record == play(make_game(ALICE, auditors=1), NodeState(round=1), identity=ALICE).records[ANSWER]
    box = Inbox("tests", ME.author, max_staleness=2, stages=(ANSWER,))
    assert box.offer(other.raw, 1) is not None and box.offer(honest.raw, 1) is None
    assert box.counts["equivocation"] == 1


def test_who_votes_for_their_own_answer_is_read_by_nobody():
    """A critic is never shown their own: the record says what no seat of the game shows."""
    played = play_together(
        dict.fromkeys((ME, ALICE, BOB), Speaker()), own={ALICE: {"strategy": STRATEGIES["own_vote"]}}
    )
    critique = played[ALICE].records[CRITIQUE]
    own = schema.content_hash(schema.encode(played[ALICE].records[ANSWER]))
    assert all(group.parents[0] == own and group.vote == 1 for group in critique.groups)
    for who in (ME, BOB):
        assert played[who].unused == {"wrong parents": 2.0}
        assert not [g for g in played[who].external if g.author == ALICE.author and g.stage == CRITIQUE]


def test_a_strategy_is_pure():
    """The same round played again asks for the same."""
    for name in OF_ROUNDS:
        first, again = (ill(name).all(Sample) for _ in range(2))
        assert all(np.array_equal(a.keys_PGM, b.keys_PGM) for a, b in zip(first, again, strict=True))
