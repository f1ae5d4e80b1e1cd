"""A round in which somebody speaks under another key than before."""

import msgspec

from rlswarm_jax.game.effects import Gather
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.rotations import announce, of
from rlswarm_jax.records.schema import ANNOUNCING
from rlswarm_jax.records.trust import FIRST, Offender, Trust
from tests.game.hand_driver import ALICE, BOB, MALLORY, make_game, play


def said_by(identity, *before, round_=1):
    """The honest record of a node that had other keys before, as it arrives."""
    game = make_game(identity, rotations=tuple(before))
    played = play(game, NodeState(round=round_), identity=identity)
    return open_envelope(played.results[[type(e).__name__ for e in played.effects].index("Publish")])


def test_a_node_with_a_new_key_says_so_in_each_record_and_is_learned_from_as_ever():
    said = announce(MALLORY, ALICE.author, "tests", 1)
    signed, plain = said_by(ALICE, said), said_by(ALICE)
    assert signed.record.version == ANNOUNCING and of(signed.record) == [(MALLORY.author, ALICE.author, 1)]
    fields = msgspec.structs.asdict(signed.record)
    assert fields.pop("rotations") == [said] and fields | {"version": 4} == msgspec.structs.asdict(plain.record)
    heard = [signed, said_by(BOB)]
    played, as_ever = (play(make_game(), arrived=records) for records in (heard, [plain, said_by(BOB)]))
    assert {group.author for group in played.external} == {ALICE.author, BOB.author}
    assert {group.author for group in as_ever.external} == {ALICE.author, BOB.author}
    assert played.metrics["peers/rotated"] == 1 and "peers/rotated" not in as_ever.metrics


def test_whoever_was_distrusted_is_under_the_new_key_from_that_stage_on():
    state = NodeState(round=1, trust=Trust(offenders={MALLORY.author: Offender(1, 1 + FIRST)}))
    heard = [said_by(ALICE, announce(MALLORY, ALICE.author, "tests", 1)), said_by(BOB)]
    played = play(make_game(), state, arrived=heard)
    assert {group.author for group in played.external} == {BOB.author}
    assert played.unused == {"distrusted": 3} and played.metrics["audit/distrusted"] == 2
    later = play(make_game(), played.state)
    assert [effect.without for effect in later.all(Gather)] == [{MALLORY.author, ALICE.author}]


def test_an_honest_swarm_learns_nothing_of_a_key_given_to_two():
    heard = [said_by(who, announce(MALLORY, who.author, "tests", 1)) for who in (ALICE, BOB)]
    played = play(make_game(), arrived=heard)
    assert not played.external
    assert played.state.trust.distrusted(2) == {MALLORY.author, ALICE.author, BOB.author}
