"""Rounds of the game and of the coordinator: whose beacon is in force, what is committed to, and when."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax import randomness, tasks
from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.game.chain import MOMENTS, Account, Moment, Work, amount
from rlswarm_jax.game.effects import Commit, Gather, Hear, Learn, Publish
from rlswarm_jax.game.player import Player
from rlswarm_jax.game.prompts import FORMATS
from rlswarm_jax.game.readings import Readings
from rlswarm_jax.game.rewards import Rewards
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.game.rules import Game, Rules
from rlswarm_jax.journal import Journal
from rlswarm_jax.records.agreement import differences
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.rotations import announce
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE, STAGES
from tests.game.hand_driver import (
    ALICE,
    BOB,
    END,
    ME,
    STATE_HASH,
    TASKS,
    Speaker,
    all_right,
    answer,
    half_right,
    in_force,
    make_game,
    play,
    play_together,
    three_stages,
)


def moment(number: int, salt: str = "") -> Moment:
    return Moment(number, randomness.digest("problem", "test", number, salt))


FIRST, SECOND, THIRD = (moment(number) for number in (4, 5, 6))


def under(*moments: Moment, round_: int = 1, **fields) -> NodeState:
    return NodeState(round=round_, account=Account(list(moments), **fields))


# --- whose beacon is in force


def test_without_a_chain_nobody_listens_and_records_name_no_beacon():
    played = play(make_game())
    assert not played.all(Hear) and not played.all(Commit) and played.records[ANSWER].beacon == b""


def test_problems_and_noise_follow_from_the_beacon_of_the_chain():
    game = make_game(chain_every=2)
    first, second, again = (
        play(game, NodeState(round=2), chain=[[heard]], model=all_right) for heard in (FIRST, SECOND, FIRST)
    )
    seeds = [[group.problem_seed for group in played.records[ANSWER].groups] for played in (first, second)]
    beacon = randomness.digest("problem", "beacon", FIRST.beacon, 2)  # by hand
    task = [game.mixture.pick(randomness.seed("problem", beacon, ME.author, "mixture", index)) for index in range(3)]
    by_hand = [randomness.seed("problem", beacon, ME.author, name, index) for index, name in enumerate(task)]
    assert seeds[0] == by_hand and not set(seeds[0]) & set(seeds[1])
    assert first.records[ANSWER].beacon == FIRST.beacon[:8]
    assert again.records == first.records


@pytest.mark.parametrize("round_", range(1, 7))
def test_a_new_beacon_comes_into_force_at_rounds_that_all_can_tell(round_):
    """Nodes hear of it at different instants, but between two such rounds."""
    played = play(make_game(chain_every=3), under(FIRST, round_=round_), chain=[[FIRST, SECOND]])
    expected = SECOND if round_ % 3 == 0 else FIRST
    assert played.records[ANSWER].beacon == expected.beacon[:8]


def test_whoever_hears_of_the_chain_for_the_first_time_takes_what_there_is():
    """It may have been down, or this node is new."""
    game = make_game(chain_every=4)
    without = play(game, chain=[[]])
    assert without.records[ANSWER].beacon == b"" and without.state.account.round == -1
    assert not without.state.account.work.records  # of which nobody could say that it was not prepared
    assert play(game, chain=[[FIRST, SECOND]]).records[ANSWER].beacon == SECOND.beacon[:8]


def test_while_the_chain_is_away_the_last_beacon_stays_and_problems_still_change():
    game, state, seen = make_game(chain_every=1, rounds=0), under(FIRST), []
    for _ in range(5):
        played = play(game, state, chain=[[FIRST]])
        seen += [group.problem_seed for group in played.records[ANSWER].groups]
        state = played.state
    assert state.account.round == FIRST.round and len(set(seen)) == len(seen)


def test_an_endpoint_that_is_behind_changes_nothing():
    assert under(FIRST, SECOND).account.hear([FIRST], take=True) == under(FIRST, SECOND).account
    assert under(SECOND).account.hear([FIRST], take=True).round == SECOND.round


def test_a_reorganised_beacon_is_replaced_at_once_and_takes_the_work_with_it():
    """In between two rounds at which new ones come into force, too."""
    work = Work([b"hash"], {ANSWER: 5}, {b"peer": 7})
    other = moment(SECOND.round, "after a reorganisation")
    account = Account([FIRST, SECOND], 3, STATE_HASH, work).hear([FIRST, other], take=False)
    assert account == Account([FIRST, other], 3, STATE_HASH)
    deeper = Account([FIRST, SECOND, THIRD], 3, STATE_HASH, work).hear([moment(4, "x"), moment(5, "x")], take=False)
    assert deeper.moments == [moment(4, "x"), moment(5, "x")] and not deeper.work.records


FAR, NEXT = moment(10**9, "a lie"), moment(7)


def test_one_lie_about_a_far_round_is_corrected_by_what_the_chain_says_afterwards():
    """What was made under it is forgotten, and what was committed to under it holds nothing up."""
    work = Work([b"hash"], {ANSWER: 5}, {b"peer": 7})
    lied = Account([SECOND], 5, STATE_HASH, work).hear([FAR], take=True)
    assert lied.round == FAR.round
    for take in (False, True):
        account = lied.settle(STATE_HASH).add([b"made under the lie"], []).hear([SECOND, THIRD], take)
        assert account == Account([SECOND, THIRD], THIRD.round, STATE_HASH)
        account = account.add([b"later"], []).hear([THIRD, NEXT], take=True)
        assert account.round == NEXT.round and account.due  # not only after another billion of rounds


def test_a_node_plays_on_under_the_true_beacon_after_a_lie():
    game = make_game(chain_every=2, rounds=0)
    state = play(game, under(FIRST, SECOND, round_=2), chain=[[SECOND, FAR]]).state
    assert state.account.round == FAR.round
    played = play(game, state, chain=[[SECOND, THIRD]])
    assert played.records[ANSWER].beacon == THIRD.beacon[:8]
    committed = played.one(Commit)  # to this round's records alone
    assert committed.moment == THIRD and committed.work.records == [s.hash for s in played.said.values()]


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), st.integers(0, 1000))
def test_whatever_was_said_before_two_true_words_lead_to_the_chain_s_round(lies, true):
    account = Account()
    for lie in lies:
        account = account.hear([moment(lie, "lie")], take=True)
    account = account.hear([moment(true), moment(true + 1)], take=True).hear([moment(true + 1), moment(true + 2)], True)
    assert account.moments[-2:] == [moment(true + 1), moment(true + 2)] and len(account.moments) <= MOMENTS
    assert account.committed <= true + 2


def test_only_so_many_beacons_are_remembered():
    account = Account()
    for number in range(3 * MOMENTS):
        account = account.hear([moment(number)], take=True)
    assert [m.round for m in account.moments] == list(range(2 * MOMENTS, 3 * MOMENTS))


# --- records of others


def test_who_has_the_same_beacon_learns_from_each_other():
    states = {who: under(FIRST, SECOND) for who in (ME, ALICE)}
    played = play_together(dict.fromkeys(states, half_right), states=states, chain_every=2, chain=[FIRST, SECOND])
    for who in states:
        assert not played[who].unused and {g.stage for g in played[who].external} >= {ANSWER, REVISE}


def test_a_record_under_an_earlier_beacon_is_read_under_that_one():
    """Of a peer that has not heard of the new one: its problems are its own, but what it answers is right."""
    theirs = play(make_game(ALICE, chain_every=2), under(FIRST), identity=ALICE, chain=[[FIRST]]).said[ANSWER]
    game = make_game(chain_every=2)
    knows = play(game, under(FIRST, SECOND), arrived=[theirs], chain=[[FIRST, SECOND]])
    assert not knows.unused and len(knows.external) == 2
    for state in (under(SECOND), NodeState(round=1)):
        ignorant = play(game, state, arrived=[theirs], chain=[state.account.moments] * 2)
        assert ignorant.unused == {"unknown beacon": 3} and not ignorant.external


def test_nobody_may_choose_to_play_without_the_chain():
    """Its problems could be known for ever."""
    theirs = play(make_game(ALICE), identity=ALICE).said[ANSWER]
    assert play(make_game(chain_every=2), under(FIRST), [theirs], chain=[[FIRST]] * 2).unused == {"unknown beacon": 3}


def test_a_record_under_a_beacon_that_came_in_mid_round_is_read_too():
    """Its author looked at the chain an instant later than this node, which stays with the beacon it has."""
    theirs = play(make_game(ALICE, chain_every=2), under(FIRST, SECOND), identity=ALICE, chain=[[SECOND]]).said[ANSWER]
    played = play(make_game(chain_every=2), under(FIRST), [theirs], chain=[[FIRST], [FIRST, SECOND]])
    assert not played.unused and len(played.external) == 2
    assert played.records[ANSWER].beacon == FIRST.beacon[:8] and played.state.account.round == FIRST.round
    both = play_together({ALICE: half_right, BOB: half_right}, states={w: under(FIRST, SECOND) for w in (ALICE, BOB)},
                         chain_every=2, chain=[SECOND])  # fmt: skip
    heard = {stage: [both[who].said[stage] for who in (ALICE, BOB)] for stage in STAGES}
    for known_from in range(4):  # the stage in which this node hears of the beacon; before, it keeps what it heard
        says = [[FIRST]] * (1 + known_from) + [[FIRST, SECOND]] * 3
        played = play(three_stages(chain_every=2), under(FIRST), heard, model=Speaker(), chain=says)
        assert played.unused == ({"unknown beacon": 14} if known_from == 3 else {})


# --- what is committed to, and when


def test_a_round_of_the_coordinator_gets_one_commitment_to_all_that_was_published_since_the_last():
    game, state = make_game(chain_every=2, rounds=0), NodeState(round=0)
    said: list[bytes] = []
    commits: list[Commit] = []
    for number in range(9):
        heard = [FIRST] if number < 3 else [FIRST, SECOND]  # it goes on some time after the commitment
        played = play(game, state, chain=[heard])
        said += [signed.hash for signed in played.said.values()]
        commits += played.all(Commit)
        state = played.state
        for effect in played.effects:  # what is committed to was learned from
            assert not isinstance(effect, Commit) or isinstance(played.effects[-2], Learn)
    assert [(c.moment, len(c.work.records), c.before) for c in commits] == [(FIRST, 2, b""), (SECOND, 4, STATE_HASH)]
    assert [h for c in commits for h in c.work.records] == said[:6]
    assert state.account.work.records == said[6:]


def test_a_claim_is_what_the_published_groups_earned():
    played = play(make_game(chain_every=1), under(FIRST), chain=[[FIRST]], model=half_right)
    assert played.one(Commit).work.earned == {ANSWER: 3 * 250_000}  # three groups of four, in each one is right


def test_peers_are_worth_what_their_records_earn_here():
    states = {who: under(FIRST) for who in (ME, ALICE, BOB)}
    models = {ME: half_right, ALICE: all_right, BOB: half_right}
    played = play_together(models, states=states, chain_every=2, chain=[FIRST])
    mine, alice = played[ME].one(Commit).work, played[ALICE].one(Commit).work
    assert mine.peers[ALICE.author] == sum(alice.earned.values()) and set(alice.earned) == {ANSWER, CRITIQUE, REVISE}
    assert mine.peers[BOB.author] == sum(played[BOB].one(Commit).work.earned.values())
    assert mine.best == [ALICE.author, BOB.author]


def test_after_the_last_round_the_rest_is_committed_to_in_the_next_round_of_the_coordinator():
    game = make_game(chain_every=3, rounds=2)
    state = under(FIRST, committed=FIRST.round, work=Work([b"before"]))
    played = play(game, state, chain=[[FIRST], [FIRST, SECOND]])
    assert [effect.beyond for effect in played.all(Hear)] == [None, FIRST.round]
    (commit,) = played.all(Commit)
    assert commit.moment == SECOND and commit.work.records == [b"before", played.said[ANSWER].hash]
    left = play(game, state, chain=[[FIRST], [FIRST]])  # it did not go on in time
    assert not left.all(Commit) and len(left.state.account.work.records) == 2
    alone = play(game, chain=[[]])  # nor was the chain ever there
    assert len(alone.all(Hear)) == 1 and not alone.all(Commit)


def test_a_commitment_begins_where_the_last_one_ended_or_where_the_node_began():
    game = make_game(chain_every=1, state_hash=b"\1" * 32)
    first = play(game, under(FIRST), chain=[[FIRST]])
    second = play(game, first.state, chain=[[FIRST, SECOND]])
    assert [p.one(Commit).before for p in (first, second)] == [game.state_hash, STATE_HASH]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", b"x", b"y", b"z"]), st.integers(0, 10**9)), max_size=30))
def test_work_adds_up_whatever_the_rounds(earned):
    at_once, one_by_one = Work().add([b"1", b"2"], earned), Work().add([b"1"], []).add([b"2"], [])
    for each in earned:
        one_by_one = one_by_one.add([], [each])
    assert at_once == one_by_one
    for whose in ("a", "b"):
        assert at_once.earned.get(whose, 0) == sum(n for of, n in earned if of == whose)
    assert at_once.best == sorted((a for a, n in at_once.peers.items() if n), key=lambda a: (-at_once.peers[a], a))


def test_keys_that_a_stranger_makes_crowd_out_nobody_who_is_worth_something():
    crowd = [(number.to_bytes(33, "big"), 0) for number in range(5000)]
    work = Work().add([], [(b"honest", 1), *crowd])
    assert len(work.peers) <= 1024 and work.best == [b"honest"]


def test_amounts_are_whole_millionths():
    assert amount([1.0, 0.0, 0.0]) == 333_333 and amount([1.0]) == 1_000_000 and amount([0.1 + 0.2, 0.0]) == 150_000


UNDER_A_CHAIN = {"chain_every": 2, "chain_id": 31337, "contract": "0x" + "Ab" * 20}


def test_nodes_that_agree_have_the_same_hash_and_others_have_not():
    """Whether what one of them says is of use to the other is tried, not only whether they call it the same."""
    game = make_game(**UNDER_A_CHAIN)
    same = {"seed": 9, "contract": "0x" + "aB" * 20}
    own = {
        **{"rounds": 3, "external_groups": 9, "temperature": 0.5, "max_new_tokens": 7, "chain_every": 5},
        **{"max_staleness": 3, "evaluate_every": 9, "weights": (2.0, 1.0, 1.0), "max_prompt_tokens": 64},
        **{"min_staleness": 1, "fill": True, "flat": True, "choose": "useful", "reads": 2},
        **{"auditors": 2, "rechecks": 1, "max_length_ratio": 2.0},
        **{"readings": Readings(1), "strategy": STRATEGIES["copy"]},
        **{"state_hash": b"other", "author": ALICE.author},
        **{"rotations": (announce(BOB, ALICE.author, game.swarm, 0),)},
    }
    tokens = {"tokenizer_fingerprint": "other", "eos_token_ids": (END, 5)}  # which bind those who have the same
    names = {field.name for field in dataclasses.fields(Game)} - {field.name for field in dataclasses.fields(Rules)}
    assert names == {*own, *tokens, "tokenizer"}
    assert dataclasses.replace(game, **same, **own).agreement == game.agreement and len(game.agreement) == 32
    weighted = tasks.make_mixture(
        {name: {**fields, "weight": 2.0} if n else fields for n, (name, fields) in enumerate(TASKS.items())}
    )
    others = {
        **{"group_size": 8, "local_groups": 4, "swarm": "other", "shown": 1, "stages": STAGES[:2], "shared": 1},
        **{
            "redraws": 2,
            "critics": 1,
            "show_votes": False,
            "stand_by": False,
            "chain_id": 1,
            "contract": "0x" + "cd" * 20,
        },
        **{"rewards": Rewards(form=0.5), "mixture": weighted, "prompt_format": FORMATS["chat"]},
    }
    assert {*others, "seed"} == {field.name for field in dataclasses.fields(Rules)}
    for name, value in (*others.items(), *tokens.items(), ("contract", None)):
        other = dataclasses.replace(game, **{name: value})
        assert other.agreement != game.agreement and not game.agrees(other.agreement, same_tokenizer=True)
        differ = 3 if value is None else name != "tokenizer_fingerprint"  # who has another one reads the text
        assert len(differences(game.terms, other.terms)) == differ, name
        assert game.agrees(other.agreement, same_tokenizer=False) == (name in tokens)


def test_without_a_chain_the_seed_must_be_the_same():
    ours = make_game()
    theirs = play(make_game(ALICE, seed=9), identity=ALICE).said[ANSWER]
    assert play(ours, arrived=[theirs]).unused == {"foreign problem": 3}
    assert (
        differences(ours.terms, make_game(seed=9).terms) == ["seed"] and make_game(seed=9).agreement != ours.agreement
    )


def test_another_tokenizer_may_have_other_end_tokens_and_the_same_one_may_not():
    ours, stranger = make_game(), make_game(tokenizer_fingerprint="another", eos_token_ids=(1, 2))
    assert ours.agreement != stranger.agreement and differences(ours.terms, stranger.terms) == []
    assert ours.agrees(stranger.agreement, same_tokenizer=False)
    assert not ours.agrees(stranger.agreement, same_tokenizer=True)
    told = make_game(eos_token_ids=(END, 5))
    assert differences(ours.terms, told.terms) == ["model.end_tokens"]
    assert not ours.agrees(make_game(shown=1).agreement, same_tokenizer=False)


def test_of_very_many_tasks_the_rules_say_how_many():
    class Named:
        fingerprint, seconds = "0" * 16, 0.0

    def rules(count: int) -> dict[str, str]:
        mixture = tasks.Mixture({f"t{n}": Named() for n in range(count)}, {f"t{n}": 1.0 for n in range(count)})
        return make_game(mixture=mixture).terms

    assert rules(2)["tasks.t1"] == f"weight 1.0, {'0' * 16}" and rules(24)["tasks.t23"] == rules(2)["tasks.t1"]
    assert rules(25)["tasks"].startswith("25 tasks, ") and rules(25)["tasks"] != rules(26)["tasks"]


def test_everything_published_is_in_the_commitment_of_a_game_of_three_stages():
    played = play_together({ME: half_right, ALICE: half_right}, states={w: under(FIRST) for w in (ME, ALICE)},
                           chain_every=2, chain=[FIRST])  # fmt: skip
    for who in (ME, ALICE):
        assert played[who].one(Commit).work.records == [s.hash for s in played[who].said.values()]
        assert len(played[who].all(Publish)) == 3


def test_what_was_said_in_a_round_that_is_left_is_committed_to_all_the_same(tmp_path):
    game = make_game(chain_every=1, rounds=0, evaluate_every=100, stages=STAGES[:2])
    player = Player(0, game, ME, Journal(tmp_path / "journal.sqlite"))
    player.state = NodeState(round=1)
    seen: list[tuple] = []

    def play_on(until: type) -> None:
        player.begin(0.0)
        while not isinstance(effect := player.effect, until):
            force = in_force(game, player.state, [FIRST])
            heard = isinstance(effect, Hear)
            result = [FIRST] if heard else answer(game, player.state, effect, (), half_right, ME, force)
            seen.append((effect, result))
            player.complete(result, 0.0)

    play_on(until=Gather)
    assert not player.bound
    player.abandon()
    player.state = dataclasses.replace(player.state, round=7)  # where the others are
    play_on(until=Commit)
    said = [open_envelope(result).hash for effect, result in seen if isinstance(effect, Publish)]
    assert len(said) == 3 and player.effect.work.records == said and player.bound
    with pytest.raises(AssertionError):  # whoever has published the last stage finishes the round
        player.abandon()
    again = Player(0, game, ME, Journal(tmp_path / "journal.sqlite"))
    again.state = NodeState(round=1)
    for entry in Journal(tmp_path / "journal.sqlite").read(0, 0):  # after a kill
        again.feed(entry)
    assert again.effect == player.effect
