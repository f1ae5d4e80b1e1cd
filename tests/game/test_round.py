import collections
import dataclasses
import sys

import msgspec
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax import randomness
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import (
    Evaluate,
    Gather,
    Learn,
    Pin,
    Publish,
    Sample,
    Score,
    decode_result,
    encode_result,
)
from rlswarm_jax.game.round import MAX_NAMED, NodeState, next_round, play_round
from rlswarm_jax.identity import simulated
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.records import schema
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.teachers import Teacher, Teachers
from tests.game import hand_driver as by_hand
from tests.game.hand_driver import (
    ALICE,
    BOB,
    END,
    GROUP_SIZE,
    MALLORY,
    ME,
    WEIGHTS,
    all_wrong,
    half_right,
    make_game,
    play,
    record_of,
    signed,
)

replace = msgspec.structs.replace


def plain(value):
    """Effects as values that compare with ==."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if dataclasses.is_dataclass(value) or isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value) if isinstance(value, msgspec.Struct) else dataclasses.fields(value)
        return (type(value).__name__, *(plain(getattr(value, field.name)) for field in fields))
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def with_group(record, position, **fields):
    groups = list(record.groups)
    groups[position] = replace(groups[position], **fields)
    return replace(record, groups=groups)


def with_completion(record, position, g, **fields):
    completions = list(record.groups[position].completions)
    completions[g] = replace(completions[g], **fields)
    return with_group(record, position, completions=completions)


def as_arrays(sampled_tokens):
    return {
        "tokens": np.array(sampled_tokens, "<i4").tobytes(),
        "logprobs": np.full(len(sampled_tokens), -1, "<f4").tobytes(),
    }


# --- the course of a round

watching, seen = False, list[str]()
sys.addaudithook(lambda event, _: seen.append(event) if watching else None)


def watched(act, *arguments):
    """What the interpreter is asked to do meanwhile is in `seen`."""
    global watching
    watching = True
    try:
        return act(*arguments)
    finally:
        watching = False


def test_a_round_does_no_io():
    """Everything that touches the world is an effect: the generator itself opens, sends and runs nothing."""
    game, state = make_game(), NodeState(round=9)
    arrived = [signed(record_of(ALICE, 9), ALICE), signed(other_tokenizer(record_of(BOB, 9)), BOB)]
    play(game, arrived=arrived)  # lazy imports are over
    seen.clear()
    watched(lambda: open("/dev/null").close())
    assert seen == ["open"]
    seen.clear()
    generator, result = play_round(game, state), None
    with pytest.raises(StopIteration) as stop:
        while True:
            effect = watched(generator.send, result)
            result = by_hand.answer(game, state, effect, arrived, by_hand.half_right, ME)
            result = None if isinstance(effect, Publish) else result
    assert stop.value.value[1]["groups/received"] == 6
    forbidden = ("open", "os.", "socket.", "subprocess.", "sqlite3.", "import", "exec", "compile", "shutil.", "urllib.")
    assert [event for event in seen if event.startswith(forbidden)] == []


@pytest.mark.parametrize(
    ("round_", "before", "after"), [(0, True, False), (1, False, False), (4, True, False), (9, False, True)]
)
def test_effects_come_in_their_order(round_, before, after):
    played = play(make_game(), NodeState(round=round_))
    course = [Pin, Sample, Publish, Gather, Score, Learn]
    assert [type(e) for e in played.effects] == [Evaluate] * before + course + [Evaluate] * after
    assert played.one(Gather) == Gather(round_, "answer", make_game().beacon(round_))
    assert ("held_out/accuracy" in played.metrics, "final/accuracy" in played.metrics) == (before, after)
    assert played.state.round == round_ + 1


def test_a_last_round_that_is_due_is_evaluated_before_and_after():
    played = play(make_game(rounds=5), NodeState(round=4))
    assert [type(played.effects[0]), type(played.effects[-1])] == [Evaluate, Evaluate]


def test_a_record_is_published_before_anybody_is_heard():
    """What a node says in a round cannot depend on what its peers say in it."""
    alone = play(make_game())
    in_company = play(make_game(), arrived=[signed(record_of(ALICE), ALICE)])
    assert alone.one(Publish).record == in_company.one(Publish).record


def test_problems_and_noise_come_from_the_beacon_the_author_and_the_index():
    game = make_game()
    played = play(game)
    beacon = game.beacon(1)
    sample, record = played.one(Sample), played.one(Publish).record
    for index in range(3):
        task = game.mixture.pick(randomness.seed("problem", beacon, ME.author, "mixture", index))
        seed = randomness.seed("problem", beacon, ME.author, task, index)
        problem = game.mixture.tasks[task].problem(seed)
        assert game.problem(ME.author, 1, index) == problem and problem.split == "train"
        assert sample.prompts[index] == game.tokenizer.encode(problem.compact)
        group = record.groups[index]
        assert (group.task, group.problem_seed, group.index) == (task, seed, index)
        for g in range(GROUP_SIZE):
            key = randomness.key_data("sample", beacon, ME.author, "answer", index, g)
            assert sample.keys_PGM[index, g].tolist() == key.tolist()
    assert sample.keys_PGM.shape == (3, GROUP_SIZE, 2) and sample.keys_PGM.dtype == np.uint32


def test_no_two_rounds_authors_or_seeds_share_problems_or_noise():
    keys, seeds = [], []
    for identity, seed, round_ in ((ME, 5, 1), (ME, 5, 2), (ME, 6, 1), (ALICE, 5, 1)):
        played = play(make_game(identity, seed=seed), NodeState(round=round_), identity=identity)
        keys += played.one(Sample).keys_PGM.reshape(-1, 2).tolist()
        seeds += [group.problem_seed for group in played.one(Publish).record.groups]
    assert len(set(map(tuple, keys))) == len(keys) == 48 and len(set(seeds)) == len(seeds) == 12


def test_a_record_says_what_was_sampled():
    game = make_game()
    played = play(game, NodeState(round=1, policy_version=17))
    sampled, record = played.results[played.effects.index(played.one(Sample))], played.one(Publish).record
    schema.encode(record)
    assert (record.swarm, record.author, record.round, record.stage) == ("tests", ME.author, 1, "answer")
    assert (record.policy_version, record.temperature, record.prompt_format) == (17, 1.0, game.dialect)
    assert (record.tokenizer_fingerprint, record.weights) == (game.tokenizer.fingerprint, WEIGHTS)
    for group, completions in zip(record.groups, sampled, strict=True):
        assert group.task_fingerprint == game.mixture.tasks[group.task].fingerprint
        for found, said in zip(completions, group.completions, strict=True):
            assert (found.tokens, found.logprobs) == (said.tokens_T.tolist(), said.logprobs_T.tolist())
            assert found.text == said.text == game.tokenizer.decode(found.tokens)
            assert said.tokens_T[-1] == END


def test_no_gold_answer_travels():
    game = make_game()
    raw = schema.encode(play(game, model=by_hand.all_wrong).one(Publish).record)
    for index in range(3):
        for answer in game.problem(ME.author, 1, index).answers:
            assert len(answer) >= 2 and answer.encode() not in raw
    assert game.problem(ME.author, 1, 0).compact.encode() not in raw  # nor the prompt: the receiver rebuilds it


# --- learning alone


def test_without_peers_a_node_plays_on_alone():
    state, game = NodeState(round=1), make_game()
    for round_ in range(1, 4):
        played = play(game, state)
        assert [group.external for group in played.learned] == [False] * 3
        assert played.metrics["records/received"] == 0 and played.unused == {}
        state = played.state
        assert (state.round, state.policy_version) == (round_ + 1, round_)


def test_local_groups_carry_the_own_samples_and_rewards():
    game = make_game()
    played = play(game)
    record = played.one(Publish).record
    for index, group in enumerate(played.learned):
        said = record.groups[index].completions
        assert group.rewards == [1.0, 0.0, 0.0, 0.0]
        assert group.tokens == [c.tokens_T.tolist() for c in said]
        assert group.logprobs == [c.logprobs_T.tolist() for c in said]
        assert group.prompt == game.tokenizer.encode(game.problem(ME.author, 1, index).compact)
        assert (group.author, group.round, group.external) == (ME.author, 1, False)


@pytest.mark.parametrize("model", [by_hand.all_right, by_hand.all_wrong])
def test_groups_without_advantage_are_not_learned_from(model):
    record = record_of(ALICE, model=model)
    played = play(make_game(), arrived=[signed(record, ALICE)], model=model)
    assert played.learned == [] and played.state.pool.groups == ()
    assert played.metrics["groups/received"] == 3 and played.metrics["groups/received_with_advantage"] == 0
    assert played.metrics["reward/zero_advantage_fraction"] == 1.0
    assert played.state.policy_version == 1  # what the learner says it did


def test_the_policy_version_counts_the_updates_there_were():
    for updates, version in ((0.0, 4), (1.0, 5), (3.0, 7)):
        generator = play_round(make_game(), NodeState(round=1, policy_version=4))
        result = None
        with pytest.raises(StopIteration) as stop:
            while True:
                effect = generator.send(result)
                result = by_hand.answer(make_game(), NodeState(round=1), effect, [], by_hand.half_right, ME)
                result = {"updates": updates} if isinstance(effect, Learn) else result
                result = None if isinstance(effect, Publish) else result
        assert stop.value.value[0].policy_version == version


# --- learning from peers


def test_peers_groups_are_scored_here_and_learned_from():
    game = make_game(external_groups=9)
    played = play(game, arrived=[signed(record_of(ALICE), ALICE), signed(record_of(BOB), BOB)])
    assert {(group.author, group.external) for group in played.learned} == {
        (ME.author, False),
        (ALICE.author, True),
        (BOB.author, True),
    }
    assert len(played.external) == 6 and played.unused == {}
    for group in played.external:
        identity = ALICE if group.author == ALICE.author else BOB
        assert group.slot == (1, identity.author, "answer", group.index)
        assert group.prompt == game.tokenizer.encode(game.problem(identity.author, 1, group.index).compact)
        assert group.rewards == [1.0, 0.0, 0.0, 0.0]
        said = record_of(identity).groups[group.index].completions
        assert group.tokens == [c.tokens_T.tolist() for c in said]
        assert group.logprobs == [c.logprobs_T.tolist() for c in said]
    rebuilt = [game.problem(identity.author, 1, index) for identity in (ME, ALICE, BOB) for index in range(3)]
    said = {(problem, half_right(p % 3, g, problem.answers[0])) for p, problem in enumerate(rebuilt) for g in range(4)}
    items = played.one(Score).items
    assert set(items) == said and len(items) == len(said) == 3 * 3 * GROUP_SIZE  # each once
    assert played.metrics[f"learned_from/{ALICE.author.hex()}"] == 3


def shouting(p: int, g: int, right: str) -> str:
    """Right, but for a completion, as only a scorer that folds case and white space takes it."""
    return f" {right.upper()}" if g else f"{p}x{g}"


def with_a_canonical_one(p: int, g: int, right: str) -> str:
    return [right, right + " ", f"{p}x{g}", f"{p}y{g}"][g]


@pytest.mark.parametrize("own", [half_right, shouting])
def test_what_only_a_lenient_scorer_takes_is_learned_from_those_who_say_it_too(own):
    arrived = [signed(record_of(ALICE, model=shouting), ALICE), signed(record_of(BOB, model=half_right), BOB)]
    played = play(make_game(external_groups=9), arrived=arrived, model=own)
    found = collections.Counter(group.author for group in played.learned)
    tasks = {make_game().problem(ME.author, 1, index).task for index in range(3)}
    theirs = [make_game().problem(ALICE.author, 1, index).task for index in range(3)]
    same = sum(task in tasks for task in theirs)  # that this node answers in such a way, if it does
    assert found == {ME.author: 3, BOB.author: 3} | ({ALICE.author: same} if own is shouting and same else {})
    assert not any(group.author == ALICE.author for group in played.state.pool.groups) or own is shouting
    # what it is worth to its author, and on the chain, is what the task's scorer says
    assert all(group.rewards == ([0, 1, 1, 1] if own is shouting else [1, 0, 0, 0]) for group in played.learned
               if group.author == ME.author)  # fmt: skip


def test_beside_canonical_answers_lenient_ones_are_not_the_better_ones():
    played = play(make_game(external_groups=9), arrived=[signed(record_of(ALICE, model=with_a_canonical_one), ALICE)])
    assert [group.rewards for group in played.external] == [[1, 0, 0, 0]] * 3


@pytest.mark.parametrize(("external_groups", "silent", "most"), [(2, 0, 2), (4, 0, 3), (4, 3, 2), (6, 3, 3), (1, 3, 1)])
def test_an_author_gives_no_more_than_twice_an_even_share(external_groups, silent, most):
    """Though nobody else has anything to give. silent: others that are heard, whose groups teach nothing."""
    others = [simulated(11, 20 + node) for node in range(silent)]
    arrived = [signed(record_of(ALICE), ALICE)]
    arrived += [signed(record_of(who, model=all_wrong), who) for who in others]
    played = play(make_game(external_groups=external_groups), arrived=arrived)
    even = external_groups / (1 + silent)
    assert len(played.external) == min(3, external_groups, most) and most <= max(1, 2 * even + 1)


@pytest.mark.parametrize("external_groups", [0, 1, 2, 5, 6, 9])
def test_the_external_draw_is_bounded_and_the_rest_waits_in_the_pool(external_groups):
    arrived = [signed(record_of(ALICE), ALICE), signed(record_of(BOB), BOB)]
    played = play(make_game(external_groups=external_groups), arrived=arrived)
    assert len(played.external) == min(external_groups, 6)
    assert len(played.state.pool.groups) == 6 - len(played.external)
    later = play(make_game(external_groups=external_groups), played.state)
    assert len(later.external) == min(external_groups, 6 - len(played.external))
    slots = [group.slot for group in (*played.external, *later.external)]
    assert len(slots) == len(set(slots))  # nothing is learned from twice


def test_groups_too_old_are_not_learned_from_however_late_they_come():
    """A node that jumped ahead may be handed records from before its window."""
    game = make_game(external_groups=9)  # max_staleness 2
    records = [signed(record_of(ALICE, round_), ALICE) for round_ in (1, 2, 3, 4, 5)]
    played = play(game, NodeState(round=5), arrived=records)
    assert {group.round for group in played.external} == {3, 4, 5}
    assert played.metrics["groups/staleness_mean"] == 1.0
    waiting = Pool().add(played.external)
    later = play(game, NodeState(round=7, pool=waiting))
    assert {group.round for group in later.external} == {5} and later.state.pool.groups == ()


@pytest.mark.parametrize(
    ("own", "live"), [(half_right, 3), (all_wrong, 0), (lambda p, g, right: right * (g + p == 0), 1)]
)
@pytest.mark.parametrize("fill", [False, True])
def test_a_peer_s_group_comes_in_the_place_of_each_own_one_that_teaches_nothing(fill, own, live):
    arrived = [signed(record_of(ALICE), ALICE), signed(record_of(BOB), BOB)]
    played = play(make_game(external_groups=1, fill=fill), arrived=arrived, model=own)
    assert len(played.learned) - len(played.external) == live
    assert len(played.external) == 1 + fill * (3 - live)
    assert Teachers().seen(played.state.pool.groups + tuple(played.external)) == played.state.teachers


def test_groups_that_teach_nothing_are_learned_from_only_if_that_is_wanted():
    arrived = [signed(record_of(ALICE, model=all_wrong), ALICE)]
    for flat in (False, True):
        played = play(make_game(external_groups=9, flat=flat), arrived=arrived, model=all_wrong)
        assert len(played.learned) == 6 * flat
        assert played.state.teachers.known[ALICE.author] == Teacher(3.0, 0.0)  # of use it was not


@pytest.mark.parametrize(("least", "rounds"), [(0, {3, 4, 5}), (1, {3, 4}), (2, {3}), (3, set())])
def test_peers_groups_can_be_kept_until_they_are_old(least, rounds):
    game = make_game(external_groups=9, min_staleness=least)  # max_staleness 2
    records = [signed(record_of(ALICE, round_), ALICE) for round_ in (3, 4, 5)]
    played = play(game, NodeState(round=5), arrived=records)
    assert {group.round for group in played.external} == rounds
    assert {group.round for group in played.state.pool.groups} == {3, 4, 5} - rounds


# --- what a peer can get wrong, one at a time


def tampered(change, identity=ALICE):
    record = change(record_of(identity))
    return play(make_game(external_groups=9), arrived=[signed(record, identity), signed(record_of(BOB), BOB)])


LONG = [*([5] * 12), END]
TOKENIZER = by_hand.tokenizer()
FLAWS = {
    "another problem's seed": ("foreign problem", lambda r: with_group(r, 1, problem_seed=r.groups[0].problem_seed)),
    "a made-up seed": ("foreign problem", lambda r: with_group(r, 1, problem_seed=12345)),
    "another index": ("foreign problem", lambda r: with_group(r, 1, index=7)),
    "an index beyond all": ("foreign problem", lambda r: with_group(r, 1, index=schema.MAX_GROUPS)),
    "the largest index": ("foreign problem", lambda r: with_group(r, 1, index=2**32 - 1)),
    "a group twice": ("foreign problem", lambda r: replace(r, groups=[*r.groups[:2], r.groups[0]])),
    "an unknown task": ("unknown task", lambda r: with_group(r, 1, task="sudoku")),
    "another fingerprint": ("unknown task", lambda r: with_group(r, 1, task_fingerprint="0" * 16)),
    "parents": ("wrong parents", lambda r: with_group(r, 1, parents=[b"p" * 32])),
    "another text": ("text mismatch", lambda r: with_completion(r, 1, 2, text="right")),
    "more behind the end": (
        "text mismatch",
        lambda r: with_completion(r, 1, 3, **as_arrays([5, END, 6, END]), text=TOKENIZER.decode([5, 6])),
    ),
    "white space more": ("text mismatch", lambda r: with_completion(r, 1, 1, text="1x1 ")),
    "a completion less": ("misshapen group", lambda r: with_group(r, 1, completions=r.groups[1].completions[:-1])),
    "a completion more": ("misshapen group", lambda r: with_group(r, 1, completions=r.groups[1].completions * 2)),
    "an id beyond the vocabulary": (
        "misshapen group",
        lambda r: with_completion(r, 1, 3, **as_arrays([5, TOKENIZER.vocab_size, END]), text=TOKENIZER.decode([5])),
    ),
    "the largest id": ("misshapen group", lambda r: with_completion(r, 1, 3, **as_arrays([2**31 - 1]), text="")),
    "too many tokens": (
        "misshapen group",
        lambda r: with_completion(r, 1, 3, **as_arrays(LONG), text=TOKENIZER.decode(LONG)),
    ),
}


@pytest.mark.parametrize(("cause", "change"), FLAWS.values(), ids=FLAWS)
def test_a_flawed_group_is_left_out_and_counted_and_the_round_goes_on(cause, change):
    played = tampered(change)
    assert cause in schema.CAUSES and played.unused == {cause: 1}
    assert len([group for group in played.external if group.author == ALICE.author]) == 2  # the other two are used
    assert len([group for group in played.external if group.author == BOB.author]) == 3
    assert played.state.round == 2


@pytest.mark.parametrize(
    ("index", "unused"), [(1, {}), (3, {"foreign problem": 1}), (2**32 - 1, {"foreign problem": 1})]
)
def test_an_author_has_no_more_problems_in_a_round_than_a_node_of_this_swarm(index, unused):
    """Else it could look through four billion problems for those that suit it, or outnumber the others' groups."""
    problem = make_game().problem(ALICE.author, 1, index)
    own = {"task": problem.task, "problem_seed": problem.seed, "index": index}
    fingerprint = by_hand.mixture().tasks[problem.task].fingerprint
    assert tampered(lambda record: with_group(record, 1, task_fingerprint=fingerprint, **own)).unused == unused


@pytest.mark.parametrize(
    "fields", [{"prompt_format": "chat-1"}, {"prompt_format": ""}, {"stage": "critique"}, {"stage": ""}], ids=repr
)
def test_another_prompt_format_or_stage_leaves_the_whole_record_out(fields):
    played = tampered(lambda record: replace(record, **fields))
    assert played.unused == {"unknown prompt": 3}
    assert {group.author for group in played.external} == {BOB.author}


def test_a_record_without_groups_is_received_and_nothing_more():
    played = tampered(lambda record: replace(record, groups=[]))
    assert played.unused == {} and played.metrics["records/received"] == 2 and len(played.external) == 3


def test_copied_rollouts_fail_for_their_copier():
    """Another author's record, signed by the copier as its own: the problems are not the copier's."""
    copied = replace(record_of(ALICE), author=MALLORY.author)
    played = play(make_game(external_groups=9), arrived=[signed(copied, MALLORY), signed(record_of(ALICE), ALICE)])
    assert played.unused == {"foreign problem": 3}
    assert {group.author for group in played.external} == {ALICE.author}


def test_copied_rollouts_under_the_copier_s_own_problems_earn_nothing():
    own = record_of(MALLORY)
    groups = [
        replace(mine, completions=theirs.completions)
        for mine, theirs in zip(own.groups, record_of(ALICE).groups, strict=True)
    ]
    played = play(make_game(external_groups=9), arrived=[signed(replace(own, groups=groups), MALLORY)])
    assert played.metrics["groups/received"] == 3 and played.metrics["groups/received_with_advantage"] == 0
    assert played.external == []


def test_a_rollout_of_another_round_fails():
    played = play(make_game(external_groups=9), arrived=[signed(replace(record_of(ALICE, 2), round=1), ALICE)])
    assert played.unused == {"foreign problem": 3} and played.external == []


# --- other tokenizers


def other_tokenizer(record):
    """The same texts in another tokenizer's ids, which mean nothing here."""
    groups = [
        replace(group, completions=[replace(c, **as_arrays([900_000, 5])) for c in group.completions])
        for group in record.groups
    ]
    return replace(record, tokenizer_fingerprint="another", groups=groups)


def test_another_tokenizer_s_text_is_encoded_anew_without_logprobs():
    played = tampered(other_tokenizer)
    encoded = [group for group in played.external if group.author == ALICE.author]
    assert len(encoded) == 3 and played.unused == {}
    for group in encoded:
        said = record_of(ALICE).groups[group.index].completions
        assert group.logprobs is None
        assert group.tokens == [TOKENIZER.encode(c.text) for c in said]
        assert group.rewards == [1.0, 0.0, 0.0, 0.0]
    assert all(group.logprobs for group in played.external if group.author == BOB.author)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "misshapen group"),
        ("1234567890123", "misshapen group"),  # 13 tokens here
        ("x" * schema.MAX_TEXT, "misshapen group"),
        ("4<|endoftext|>2", "text mismatch"),  # text that would pose as the end of a sequence
        ("\N{SNOWMAN}", "text mismatch"),  # a character this tokenizer cannot say
        ("4\n2", "text mismatch"),
    ],
)
def test_text_this_tokenizer_cannot_say_is_left_out(text, cause):
    played = tampered(lambda record: with_completion(other_tokenizer(record), 1, 3, text=text))
    assert played.unused == {cause: 1}
    assert len([group for group in played.external if group.author == ALICE.author]) == 2


class Counting(Tokenizer):
    """Counts what it encodes and decodes, in characters and ids."""

    def encode(self, prompt, thinking=None):
        WORK["encoded"] += len(prompt)
        return super().encode(prompt, thinking)

    def decode(self, ids):
        WORK["decoded"] += len(ids)
        return super().decode(ids)


WORK = collections.Counter[str]()


@pytest.mark.parametrize("same_tokenizer", [True, False])
@pytest.mark.parametrize("what", ["many completions", "long texts"])
def test_what_no_node_would_say_is_refused_before_it_is_tokenized(what, same_tokenizer):
    """A record holds 64 groups of 64 completions of 65,536 characters at most."""
    said, number = ("4", 64) if what == "many completions" else ("x" * schema.MAX_TEXT, GROUP_SIZE)
    completions = [schema.Completion(text=said, **as_arrays([5, 0]))] * number
    record = with_group(record_of(ALICE), 0, completions=completions)
    record = replace(record, tokenizer_fingerprint=record.tokenizer_fingerprint if same_tokenizer else "another")
    game = make_game(tokenizer=Counting(TOKENIZER.backend, TOKENIZER.vocab_size, {}))
    WORK.clear()
    _, flaws = turns.read_record(game, {}, signed(replace(record, groups=record.groups[:1]), ALICE), turns.NO_CHAIN)
    assert flaws.keys() == {0} and WORK["encoded"] == 0 and WORK["decoded"] <= 2


def test_text_on_which_the_tokenizer_fails_ends_no_round():
    """A tokenizer refuses text that it turns into nothing, or into ids the model has no embedding for."""
    alphabet = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95}
    silent = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=alphabet, merges=[]))
    silent.decoder = tokenizers.decoders.Fuse()
    tokenizer = Tokenizer(silent, 95, {})
    for text in ("\N{SNOWMAN}" * 3, "\n"):
        with pytest.raises(ValueError):
            tokenizer.encode(text)
        record = with_completion(other_tokenizer(record_of(ALICE)), 1, 3, text=text)
        game = make_game(tokenizer=tokenizer, tokenizer_fingerprint=tokenizer.fingerprint, external_groups=9)
        played = play(game, arrived=[signed(record, ALICE)])
        assert played.unused == {"text mismatch": 1} and len(played.external) == 2


# --- chance and the journal; of the order of records and of a whole round from its journal: test_three_stages.py

PEERS = [simulated(12, node) for node in range(5)]


def test_nodes_draw_differently_from_the_same_records():
    arrived = [signed(record_of(peer), peer) for peer in PEERS]
    drawn = [
        tuple(group.slot for group in play(make_game(node, external_groups=4), None, arrived, identity=node).external)
        for node in (ME, ALICE, BOB)
    ]
    assert len(set(drawn)) == 3


def test_published_bytes_are_journaled_as_they_were_sent():
    played = play(make_game())
    publish = played.one(Publish)
    sent = played.results[played.effects.index(publish)]
    raw = encode_result(publish, sent)
    assert msgspec.msgpack.decode(raw) == sent == by_hand.seal(publish.record, ME)
    assert decode_result(publish, raw) is None


def test_a_result_of_another_kind_of_effect_is_refused():
    played = play(make_game(), NodeState(round=0), arrived=[signed(record_of(ALICE, 0), ALICE)])
    journaled = {type(e): encode_result(e, r) for e, r in zip(played.effects, played.results, strict=True)}
    for effect in (played.one(Sample), played.one(Publish), played.one(Gather), played.one(Learn)):
        for kind, raw in journaled.items():
            if {kind, type(effect)} in ({type(effect)}, {Learn, Evaluate}, {Pin, Publish}):
                decode_result(effect, raw)
            else:
                with pytest.raises(msgspec.DecodeError):
                    decode_result(effect, raw)


# --- which round is next


@given(
    st.integers(0, 20),
    st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(0, 20), max_size=8),
    st.integers(0, 9),
)
def test_a_node_jumps_only_to_where_most_of_its_peers_are(round_, latest, silent):
    state = NodeState(round_, 5, Pool())
    voters = len(latest) + silent
    found = next_round(state, latest, voters)
    reached = [r for r in range(21) if sum(peer >= r for peer in latest.values()) > voters / 2]
    assert found == dataclasses.replace(state, round=max([round_, *reached]))


def test_a_minority_cannot_carry_a_node_away():
    state, far = NodeState(round=3), 2**31 - 1
    assert next_round(state, {b"a": far, b"b": far}, 4) == state
    assert next_round(state, {b"a": far, b"b": far, b"c": 2, b"d": 2}, 4) == state
    assert next_round(state, {b"a": far, b"b": far, b"c": 9}, 4).round == 9
    assert next_round(state, {b"a": far, b"b": 9}, 2).round == 9
    assert next_round(state, {}, 0) == state  # a node alone has nobody to follow


def test_a_round_s_metrics_name_a_bounded_number_of_authors():
    strangers = [simulated(77, index) for index in range(MAX_NAMED + 5)]
    arrived = [signed(record_of(stranger), stranger) for stranger in strangers]
    metrics = play(make_game(), arrived=arrived).metrics
    assert metrics["records/received"] == len(strangers)
    assert sum(name.startswith("received_from/") for name in metrics) == MAX_NAMED


def test_what_was_too_costly_to_score_is_left_out_and_counted():
    """Not learned from as if it were wrong."""
    game = make_game(external_groups=9)
    round_ = play_round(game, NodeState(round=1))
    effect, arrived = round_.send(None), [signed(record_of(who), who) for who in (ALICE, BOB)]
    while not isinstance(effect, Learn):
        result = by_hand.answer(game, NodeState(round=1), effect, arrived, half_right, ME)
        if isinstance(effect, Score):
            own = {item for item, whose in zip(effect.items, effect.payers, strict=True) if not whose}
            assert len(own) == 3 * GROUP_SIZE and frozenset([BOB.author]) in effect.payers
            cut = [n for n, whose in enumerate(effect.payers) if whose == {ALICE.author}]
            result = msgspec.structs.replace(result, costly=cut[:1])
        effect = round_.send(None if isinstance(effect, Publish) else result)
    assert collections.Counter(group.author for group in effect.groups) == {
        ME.author: 3,
        ALICE.author: 2,
        BOB.author: 3,
    }
    with pytest.raises(StopIteration) as stop:
        while True:
            effect = round_.send(by_hand.answer(game, NodeState(round=1), effect, (), half_right, ME))
    _, metrics = stop.value.value
    assert metrics["groups/unused/costly"] == 1.0
