"""Dynamic sampling: a node draws problems of its own again until their answers differ in worth, within bounds."""

import dataclasses

import msgspec
import numpy as np
import pytest

from rlswarm_jax.audit.played import read_round
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Publish, Sample, Score, encode_result
from rlswarm_jax.game.player import BEGIN
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.journal import Entry
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import ANSWER, CRITIQUE
from tests.game import hand_driver as by_hand
from tests.game.hand_driver import ALICE, GROUP_SIZE, ME, make_game, record_of, signed

LOCAL, SHARED, REDRAWS, ROUND = 4, 1, 2, 1
FIELDS = {"local_groups": LOCAL, "shared": SHARED, "redraws": REDRAWS}


def play(game, live, identity=ME):
    """A round in which the answers to some problems, by index, differ in worth, and to others are all wrong."""
    state, effects, results, result = NodeState(round=ROUND), [], [], None
    generator = play_round(game, state)
    prompts = {
        tuple(game.prompt(game.author, ANSWER, game.problem(game.author, ROUND, index), None)): index
        for index in range(game.local_groups * (game.redraws + 1))
    }
    while True:
        try:
            effect = generator.send(result)
        except StopIteration as stop:
            return by_hand.Played(effects, results, *stop.value)
        if isinstance(effect, Sample):
            result = []
            for prompt in effect.prompts:
                index = prompts[tuple(prompt)]
                right = game.problem(game.author, ROUND, index).answers[0]
                texts = [right if g == 0 and index in live else f"{index}x{g}" for g in range(GROUP_SIZE)]
                result.append([by_hand.sampled(game, text, index) for text in texts])
        else:
            result = by_hand.answer(game, state, effect, (), by_hand.half_right, identity)
        effects.append(effect)
        results.append(result)
        result = None if isinstance(effect, Publish) else result


def indices(record):
    return [group.index for group in record.groups]


@pytest.mark.parametrize(
    ("live", "published", "drawn"),
    [
        ({1, 2, 3}, [0, 1, 2, 3], []),  # what all nodes have is not drawn again, whatever is said of it
        ({1, 6, 3}, [0, 1, 6, 3], [1]),  # 6 is the second problem in the place of 2
        ({1, 6, 11}, [0, 1, 6, 11], [2, 1]),  # 11 is the third in that of 3
        ({0, 1}, [0, 1, 10, 11], [2, 2]),  # and that is all: the last of them is told, though it teaches nothing
    ],
)
def test_a_problem_is_drawn_again_until_its_answers_differ_in_worth(live, published, drawn):
    played = play(make_game(**FIELDS), live)
    first, *again = [len(effect.prompts) for effect in played.all(Sample)]
    assert (first, again) == (LOCAL, drawn)
    record = played.records[ANSWER]
    assert indices(record) == published
    assert sorted(group.index for group in played.learned) == sorted(set(published) & live)
    assert played.metrics["sample/redrawn"] == sum(drawn)
    assert played.metrics["sample/completions"] == (LOCAL + sum(drawn)) * GROUP_SIZE
    assert played.metrics["reward/zero_advantage_fraction"] == 1 - len(set(published) & live) / LOCAL


def test_every_draw_has_noise_of_its_own():
    played = play(make_game(**FIELDS), {1})
    keys = np.concatenate([effect.keys_PGM.reshape(-1, 2) for effect in played.all(Sample)])
    assert len(np.unique(keys, axis=0)) == len(keys) == (LOCAL + 4) * GROUP_SIZE


def test_without_it_a_round_is_what_it_was():
    """No effect more, no metric more, the same record."""
    with_none, plain = (
        play(make_game(**FIELDS | {"redraws": 0}), {1}),
        play(make_game(local_groups=LOCAL, shared=1), {1}),
    )
    assert list(map(type, with_none.effects)) == list(map(type, plain.effects))
    assert with_none.records == plain.records and with_none.metrics == plain.metrics
    assert "sample/redrawn" not in plain.metrics and len(plain.all(Score)) == 1


class TestPeers:
    """What index a peer may claim: of each place one problem, of those that may be drawn there."""

    def heard(self, claimed, **fields):
        """Groups of a peer's record that a node can use, by index, where the peer claims to have drawn these."""
        game, theirs = make_game(**FIELDS | fields), make_game(ALICE, **FIELDS)
        made = record_of(ALICE, ROUND, local_groups=LOCAL)
        groups = []
        for index in claimed:
            problem = theirs.problem(ALICE.author, ROUND, index)
            fingerprint = theirs.mixture.tasks[problem.task].fingerprint
            at = {"index": index, "problem_seed": problem.seed, "task": problem.task, "task_fingerprint": fingerprint}
            groups.append(msgspec.structs.replace(made.groups[0], **at))
        record = msgspec.structs.replace(made, groups=groups, prompt_format=game.dialect)
        found, flaws = turns.read_record(game, {}, signed(record, ALICE), {b"": b""})
        return sorted(found), sorted(flaws.items())

    def test_the_problems_that_were_drawn_last(self):
        assert self.heard([0, 5, 10, 3]) == ([0, 3, 5, 10], [])

    def test_one_for_each_place(self):
        assert self.heard([0, 1, 5, 9, 2]) == ([0, 1, 2], [(2, "foreign problem"), (3, "foreign problem")])

    def test_none_of_those_that_all_have(self):
        assert self.heard([4, 8, 0]) == ([0], [(0, "foreign problem"), (1, "foreign problem")])

    def test_none_beyond_the_last_draw(self):
        assert self.heard([13, 14, 2**32 - 1, 11]) == ([11], [(n, "foreign problem") for n in range(3)])

    def test_none_at_all_where_the_game_has_no_such_draws(self):
        assert self.heard([0, 5, 2], redraws=0) == ([0, 2], [(1, "foreign problem")])

    def test_nor_in_other_stages(self):
        game = make_game(**FIELDS, stages=(ANSWER, CRITIQUE))
        assert [game.place(CRITIQUE, index) for index in (0, 1, 4, 5)] == [0, None, None, None]

    def test_nodes_that_draw_again_so_often_tell_those_that_do_not_so(self):
        ours, theirs = make_game(**FIELDS), make_game(**FIELDS | {"redraws": 0})
        assert ours.agreement != theirs.agreement

    def test_a_peer_that_draws_again_is_learned_from(self):
        """Its record, as its round made it, in another node's round."""
        said = play(make_game(ALICE, **FIELDS), {1, 6, 11}, ALICE).said[ANSWER]
        game = make_game(**FIELDS, external_groups=9)
        heard = by_hand.play(
            dataclasses.replace(game, redraws=REDRAWS), NodeState(round=ROUND), [said], by_hand.all_right
        )
        assert sorted(group.index for group in heard.external) == [1, 6, 11] and not heard.unused


def test_its_journal_says_what_every_draw_was_scored():
    """A round read again from its rows, as the reports do."""
    game = make_game(**FIELDS)
    played = play(game, {1, 6, 11})
    rows = [Entry(0, ROUND, 0, BEGIN, b"", 0.0)]
    for step, (effect, result) in enumerate(zip(played.effects, played.results, strict=True), 1):
        rows.append(Entry(0, ROUND, step, type(effect).__name__, encode_result(effect, result), 0.0))
    found, scores = read_round(game, ROUND, rows)
    assert [turn.index for turn in found.turns] == [0, 1, 6, 11]
    wanted = {
        item: score
        for turn in found.turns
        for item in turns.to_score(game, turn)
        for score in [game.mixture.score(*item)]
    }
    assert wanted.items() <= scores.items()
    assert [signed_.hash for signed_ in found.own] == [
        open_envelope(played.results[played.effects.index(played.one(Publish))]).hash
    ]
