"""Audits as a part of the round: who is checked, what is told, and what follows."""

import dataclasses

import msgspec
import numpy as np
import pytest

from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Audit, Gather, Learn, Publish, Replay, Sample
from rlswarm_jax.game.player import Player
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.journal import Journal
from rlswarm_jax.records.audits import Case, shown_for
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, NOT_PRODUCED, PRODUCED, REVISE, STAGES, Verdict
from rlswarm_jax.records.trust import FIRST, Audited, Offender, Trust
from tests.game.hand_driver import (
    ALICE,
    BOB,
    GROUP_SIZE,
    ME,
    answer,
    half_right,
    make_game,
    play,
    play_together,
    record_of,
    signed,
    three_stages,
)

ALL = dict.fromkeys((ME, ALICE, BOB), half_right)


def verdict(finding, record, index=0):
    return Verdict(record, index, finding, 9, 30.0, 0.5)


def against(record, author=ALICE, finding=NOT_PRODUCED, round_=1):
    """The trust of a node that has found this out."""
    return Trust().find([Audited(author.author, verdict(finding, record.hash))], round_)


def test_records_of_the_round_before_are_checked_once_their_round_is_over():
    game = make_game(auditors=2)
    said = [signed(record_of(who), who) for who in (ALICE, BOB)]
    played = play(game, arrived=said)
    assert played.one(Audit).cases == []  # nobody knows yet by which beacon
    later = play(game, played.state)
    assert {case.record for case in later.one(Audit).cases} == {one.hash for one in said}
    assert later.effects.index(later.one(Audit)) > later.effects.index(later.one(Learn))
    assert play(game, later.state).one(Audit).cases == []
    assert later.metrics["audit/cases"] == 2 and play(make_game(), played.state).all(Audit) == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_replayed_is_what_its_author_was_asked_with_the_keys_it_had(stage):
    together = play_together(ALL)
    alice, game = together[ALICE], three_stages(ME)
    (sample,) = [e for e, of in zip(alice.all(Sample), STAGES, strict=True) if of == stage]
    sheets = together[ME].state.sheets
    for position, group in enumerate(alice.records[stage].groups):
        found = turns.claim(game, sheets, alice.said[stage], group.index, turns.NO_CHAIN)
        assert found.prompt == sample.prompts[position]
        assert np.array_equal(found.keys, sample.keys_PGM[position])
        assert found.completions == [c.tokens_T.tolist() for c in group.completions]
    assert turns.claim(game, sheets, alice.said[stage], 99, turns.NO_CHAIN) is None
    for fields in ({"temperature": 0.5}, {"tokenizer_fingerprint": "another"}, {"group_size": 2}):
        assert turns.claim(dataclasses.replace(game, **fields), sheets, alice.said[stage], 0, turns.NO_CHAIN) is None
    if stage != ANSWER:
        assert turns.claim(game, {}, alice.said[stage], 0, turns.NO_CHAIN) is None


def test_a_node_replays_completions_of_its_own_with_the_weights_that_it_will_learn_with():
    played = play(make_game(rechecks=5))
    replay, sample = played.one(Replay), played.one(Sample)
    sampled, drawn = played.results[played.effects.index(sample)], set()
    for claimed, logprobs in zip(replay.claimed, replay.logprobs, strict=True):
        p = sample.prompts.index(claimed.prompt)
        (g,) = (g for g in range(GROUP_SIZE) if sample.keys_PGM[p, g].tolist() == claimed.keys[0])
        assert (claimed.completions, logprobs) == ([sampled[p][g].tokens], sampled[p][g].logprobs)
        drawn.add((p, g))
    assert len(drawn) == 5 and len({p for p, _ in drawn}) > 1
    assert played.effects.index(replay) < played.effects.index(played.one(Learn))
    assert played.metrics["audit/own_produced"] == 5 and play(make_game()).all(Replay) == []
    assert len(play(make_game(rechecks=99)).one(Replay).claimed) == 3 * GROUP_SIZE


@pytest.mark.parametrize("rounds", [3, shown_for(2) - 1, shown_for(2)])
def test_an_accusation_is_looked_into_for_as_long_as_the_accused_shows_its_weights(rounds):
    """A verdict takes a beacon, weights and a replay: by then the record is older than what is learned from."""
    game, said = make_game(auditors=1, rounds=99), signed(record_of(ALICE), ALICE)
    state = play(game, arrived=[said]).state
    for _ in range(rounds - 1):
        state = play(game, state).state
    assert said.hash not in state.sheets
    accusing = msgspec.structs.replace(record_of(BOB, state.round), verdicts=[verdict(NOT_PRODUCED, said.hash, 1)])
    played = play(game, state, [signed(accusing, BOB)])
    assert (Case(said.hash, 1) in played.one(Audit).cases) == (rounds < shown_for(2))


def test_who_was_found_out_is_not_waited_for_learned_from_or_shown():
    together = play_together(ALL)
    arrived = {stage: [together[who].said[stage] for who in (ALICE, BOB)] for stage in STAGES}
    game, alice = three_stages(ME, auditors=1), ALICE.author
    state = NodeState(round=1, trust=against(arrived[ANSWER][0], round_=0).tell(1))
    played = play(game, state, arrived)
    assert all(effect.without == {alice} for effect in played.all(Gather))
    assert {group.author for group in played.external} == {BOB.author}
    assert played.unused["distrusted"] == 5  # 3 answers, 2 critiques; revisions answer to a critique that was another
    shown = {h for stage in (CRITIQUE, REVISE) for group in played.records[stage].groups for h in group.parents}
    assert shown and not shown & {arrived[stage][0].hash for stage in STAGES}
    assert {sheet.author for sheet in played.state.sheets.values()} == {who.author for who in ALL}
    forgiven = play(game, NodeState(round=1, trust=against(arrived[ANSWER][0], round_=1 - FIRST).tell(1)), arrived)
    assert {group.author for group in forgiven.external} == {alice, BOB.author}


def contradicted(said, who=ALICE):
    """Another record of the same slot, as its author signs it."""
    return signed(msgspec.structs.replace(said.record, policy_version=said.record.policy_version + 1), who)


@pytest.mark.parametrize("auditors", [0, 1])
def test_who_contradicts_itself_is_distrusted_from_that_stage_on_without_an_audit(auditors):
    together = play_together(ALL)
    arrived = {stage: [together[who].said[stage] for who in (ALICE, BOB)] for stage in STAGES}
    game, alice = three_stages(ME, auditors=auditors), ALICE.author
    honest = play(game, arrived=arrived)
    assert {group.author for group in honest.external} == {alice, BOB.author}
    # her answer was read already when the second one comes, in the stage of critiques
    arrived[CRITIQUE] += [arrived[ANSWER][0], contradicted(arrived[ANSWER][0])]
    played = play(game, arrived=arrived)
    assert {group.author for group in played.external} == {BOB.author}
    assert [effect.without for effect in played.all(Gather)] == [set(), set(), {alice}]
    shown = {h for group in played.records[REVISE].groups for h in group.parents}
    assert shown and not shown & {arrived[ANSWER][0].hash, arrived[CRITIQUE][0].hash}
    assert played.state.trust.offenders == {alice: Offender(1, 1 + FIRST)}
    assert played.metrics["audit/equivocators"] == played.metrics["audit/distrusted"] == 1
    assert played.metrics[f"audit/distrusted/{alice.hex()}"] == 1 and "audit/equivocators" not in honest.metrics
    later = play(game, played.state)
    assert later.one(Learn) and all(effect.without == {alice} for effect in later.all(Gather))


def test_what_others_answer_to_either_record_of_who_contradicts_itself_is_read():
    """Bob has heard one of Alice's answers, this node the other one first."""
    together = play_together(ALL)
    bobs = {stage: together[BOB].said[stage] for stage in STAGES}
    heard_by_bob = together[ALICE].said[ANSWER]
    assert any(heard_by_bob.hash in group.parents for group in bobs[CRITIQUE].record.groups)
    other, game = contradicted(heard_by_bob), three_stages(ME)
    arrived = {ANSWER: [other, bobs[ANSWER]], CRITIQUE: [bobs[CRITIQUE]]}
    deaf = play(game, arrived=arrived)
    assert deaf.unused["unknown parent"] > 0
    arrived[CRITIQUE] += [heard_by_bob, other]
    played = play(game, arrived=arrived)
    assert "unknown parent" not in played.unused and played.state.trust.offenders.keys() == {ALICE.author}
    assert {(g.author, g.stage) for g in played.external} >= {(BOB.author, CRITIQUE)}


def test_a_contradiction_in_a_round_to_come_is_one_and_is_not_read_before_its_time():
    said = signed(record_of(ALICE, 7), ALICE)
    played = play(make_game(), arrived=[said, contradicted(said)])
    assert played.state.trust.distrusted(2) == {ALICE.author} and len(played.state.sheets) == 1  # its own


def test_a_proof_that_was_shown_in_a_round_that_is_left_counts(tmp_path):
    """Also after a restart: it is in the journal, and not shown again."""
    said, journal = signed(record_of(ALICE, 1), ALICE), Journal(tmp_path / "journal.sqlite")
    first, again = (Player(0, three_stages(ME), ME, journal) for _ in range(2))
    first.begin(0.0)
    while not isinstance(first.effect, Gather):
        first.complete(answer(first.game, first.state, first.effect, (), half_right, ME), 0.0)
    first.complete([said, contradicted(said)], 0.0)
    for entry in journal.read(0, 0):
        again.feed(entry)
    for player in (first, again):
        assert player.state.trust == Trust() and not player.bound
        player.abandon()
        assert player.state.trust.distrusted(1) == {ALICE.author}


@pytest.mark.parametrize("until", [Sample, Gather])
def test_a_verdict_is_told_once_though_the_round_in_which_it_was_is_left(tmp_path, until):
    said = verdict(PRODUCED, signed(record_of(ALICE), ALICE).hash)
    player = Player(0, three_stages(ME), ME, Journal(tmp_path / "journal.sqlite"))
    player.state = NodeState(trust=Trust(unsaid=[said]))
    player.begin(0.0)
    while not isinstance(player.effect, until):
        player.complete(answer(player.game, player.state, player.effect, (), half_right, ME), 0.0)
    player.abandon()
    assert player.state.trust.unsaid == ([said] if until is Sample else [])  # the record was published in between


def test_what_is_left_of_them_in_the_pool_goes():
    said = [signed(record_of(who), who) for who in (ALICE, BOB)]
    before = play(make_game(external_groups=0), arrived=said)
    state = dataclasses.replace(before.state, trust=against(said[0], round_=2))
    played = play(make_game(external_groups=9), state)
    assert {group.author for group in played.external} == {BOB.author}


def test_a_verdict_is_told_in_the_next_record_and_only_there():
    said = signed(record_of(ALICE), ALICE)
    state = NodeState(round=1, trust=against(said, finding=PRODUCED))
    played = play(three_stages(ME, auditors=1), state)
    told = [effect.record.verdicts for effect in played.all(Publish)]
    assert told == [[verdict(PRODUCED, said.hash)], [], []]
    assert played.state.trust.unsaid == [] == play(make_game(auditors=1), played.state).records[ANSWER].verdicts


def test_an_accusation_makes_others_look():
    said = signed(record_of(ALICE), ALICE)
    before = play(make_game(auditors=1), arrived=[said])
    accuses = msgspec.structs.replace(record_of(BOB, 2), verdicts=[verdict(NOT_PRODUCED, said.hash, 1)])
    accuses = signed(accuses, BOB)
    played = play(make_game(auditors=0, max_staleness=4), before.state, arrived=[accuses])
    assert played.all(Audit) == []
    played = play(make_game(auditors=1, max_staleness=4), before.state, arrived=[accuses])
    assert Case(said.hash, 1) in played.one(Audit).cases
