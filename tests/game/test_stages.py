"""Who is shown what, and how votes are counted."""

import collections
import dataclasses
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax import randomness
from rlswarm_jax.game.stages import (
    Reading,
    Said,
    Seat,
    Sheet,
    consensus,
    most_said,
    read,
    read_parents,
    speaks,
    vote,
    votes_on,
)
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE, RecordError
from rlswarm_jax.tasks.base import fold

BEACON, READER = b"beacon", b"me"
OTHERS = [f"peer {n}".encode() for n in range(6)]


def seat(stage, **fields) -> Seat:
    return dataclasses.replace(Seat(BEACON, READER, 3, stage, 0, shown=3, critics=2), **fields)


def name(author: bytes, stage: str, round_: int = 3) -> bytes:
    return b"|".join([author, stage.encode(), str(round_).encode()])


def sheet(author: bytes, stage: str, round_: int = 3, answer: str | None = "7", indices=(0, 1)) -> Sheet:
    text = f"{author.decode()} {stage}"
    return Sheet(author, round_, stage, {index: Said(f"{text} {index}", answer) for index in indices})


def sheets_of(*said: Sheet) -> dict[bytes, Sheet]:
    return {name(s.author, s.stage, s.round): s for s in said}


EVERYTHING = sheets_of(*(sheet(author, stage) for author in (READER, *OTHERS) for stage in (ANSWER, CRITIQUE)))
CRITIC, REVISER = seat(CRITIQUE), seat(REVISE)


def ranked(stage: str, count: int, reader: bytes = READER, index: int = 0) -> list[bytes]:
    """By hand: authors in the order of a hash that nobody chooses."""
    fields = (BEACON, "shown", reader, stage, index)
    ordered = sorted(OTHERS, key=lambda author: randomness.digest("pool", *fields, author))
    return [name(author, stage) for author in ordered[:count]]


def test_a_critic_is_shown_answers_of_others_drawn_by_the_beacon():
    assert read(EVERYTHING, CRITIC).parents == ranked(ANSWER, 3)
    assert read(EVERYTHING, CRITIC).critiques == []
    for k in (1, 2, 6, 31):
        assert read(EVERYTHING, seat(CRITIQUE, shown=k)).parents == ranked(ANSWER, k)


def test_a_reviser_is_shown_their_own_answer_then_answers_then_critiques_of_others():
    expected = [name(READER, ANSWER), *ranked(ANSWER, 3), *ranked(CRITIQUE, 2)]
    reading = read(EVERYTHING, REVISER)
    assert reading.parents == expected
    assert [said.text for said in reading.answers] == [EVERYTHING[h].said[0].text for h in expected[:4]]
    assert [said.text for said in reading.critiques] == [EVERYTHING[h].said[0].text for h in expected[4:]]
    assert read(EVERYTHING, seat(REVISE, critics=0)).critiques == []


def test_another_reader_problem_stage_or_beacon_is_another_draw():
    """Over enough of them each of the others is shown about equally often: nobody is preferred."""
    counts = collections.Counter()
    for reader in range(200):
        who = f"reader {reader}".encode()
        counts.update(parent.partition(b"|")[0] for parent in ranked(ANSWER, 3, reader=who))
    assert all(60 < counts[author] < 140 for author in OTHERS)  # 100 expected, 7 a standard deviation
    draws = [
        tuple(read(EVERYTHING, seat(CRITIQUE, **fields)).parents)
        for fields in ({}, {"reader": b"you"}, {"index": 1}, {"beacon": b"other"})
    ]
    assert len(set(draws)) == 4


@given(st.permutations(list(EVERYTHING)), st.sets(st.sampled_from(list(EVERYTHING))))
def test_what_is_shown_depends_on_the_set_of_what_was_heard(order, heard):
    for where in (CRITIC, REVISER):
        shuffled = read({h: EVERYTHING[h] for h in order if h in heard}, where)
        assert shuffled == read({h: EVERYTHING[h] for h in sorted(heard)}, where)


@given(st.dictionaries(st.sampled_from(OTHERS), st.text(max_size=3) | st.none()))
def test_what_an_answer_says_has_no_say_in_whether_it_is_shown(answers):
    changed = dict(EVERYTHING) | sheets_of(*(sheet(author, ANSWER, answer=text) for author, text in answers.items()))
    assert read(changed, CRITIC).parents == read(EVERYTHING, CRITIC).parents


def test_with_fewer_there_is_less_to_see_and_alone_nothing_to_criticise():
    alone = sheets_of(sheet(READER, ANSWER))
    assert read(alone, CRITIC) is None and read({}, CRITIC) is None
    assert read(alone, REVISER) == Reading(
        list(alone), [alone[name(READER, ANSWER)].said[0]], [], REVISER.numbers([READER])
    )
    two = sheets_of(sheet(READER, ANSWER), sheet(OTHERS[0], CRITIQUE), sheet(OTHERS[1], ANSWER, indices=(1,)))
    assert read(two, CRITIC) is None  # they said nothing of this problem
    assert read(two, REVISER).parents == [name(READER, ANSWER), name(OTHERS[0], CRITIQUE)]
    elsewhere = sheets_of(sheet(OTHERS[0], ANSWER, round_=2), sheet(OTHERS[1], REVISE))
    assert read(elsewhere, CRITIC) is None


@given(st.sets(st.sampled_from(list(EVERYTHING))), st.sampled_from([CRITIC, REVISER]))
def test_whatever_one_is_shown_others_can_check(heard, where):
    heard = heard | {name(READER, ANSWER)}
    reading = read({h: EVERYTHING[h] for h in heard}, where)
    if reading is not None:
        assert read_parents(EVERYTHING, where, reading.parents) == reading


OWN, ANSWERS, CRITIQUES = name(READER, ANSWER), ranked(ANSWER, 6), ranked(CRITIQUE, 6)
OLD = {
    **EVERYTHING,
    **sheets_of(
        sheet(OTHERS[0], ANSWER, round_=2),
        sheet(READER, ANSWER, round_=2),
        sheet(OTHERS[0], REVISE),
        sheet(b"elsewhere", ANSWER, indices=(1,)),
    ),
}


WRONG = {
    "nobody": (CRITIC, []),
    "more than are shown": (CRITIC, ANSWERS[:4]),
    "another order": (CRITIC, [ANSWERS[1], ANSWERS[0]]),
    "one twice": (CRITIC, [ANSWERS[0], ANSWERS[0]]),
    "the critic's own answer": (CRITIC, sorted([OWN, ANSWERS[0]], key=lambda h: CRITIC.rank(ANSWER, h[:2]))),
    "only the critic's own": (CRITIC, [OWN]),
    "a critique": (CRITIC, [ANSWERS[0], CRITIQUES[0]]),
    "of another round": (CRITIC, [name(OTHERS[0], ANSWER, 2)]),
    "a revision": (CRITIC, [name(OTHERS[0], REVISE)]),
    "of another problem": (CRITIC, [name(b"elsewhere", ANSWER)]),
    "a reviser without parents": (REVISER, []),
    "a reviser without their own": (REVISER, ANSWERS[:2]),
    "their own not first": (REVISER, [ANSWERS[0], OWN]),
    "their own twice": (REVISER, [OWN, OWN]),
    "their own of another round": (REVISER, [name(READER, ANSWER, 2)]),
    "critiques before answers": (REVISER, [OWN, CRITIQUES[0], ANSWERS[0]]),
    "more critiques than are shown": (REVISER, [OWN, *CRITIQUES[:3]]),
    "critiques in another order": (REVISER, [OWN, CRITIQUES[1], CRITIQUES[0]]),
    "their own critique": (REVISER, [OWN, name(READER, CRITIQUE)]),
    "another revision": (REVISER, [OWN, name(OTHERS[0], REVISE)]),
}


@pytest.mark.parametrize(("where", "parents"), WRONG.values(), ids=WRONG)
def test_parents_that_the_game_does_not_show_are_refused(where, parents):
    with pytest.raises(RecordError, match="wrong parents"):
        read_parents(OLD, where, parents)


def test_a_parent_that_is_not_here_may_come():
    for where, parents in ((CRITIC, [b"?" * 32]), (REVISER, [OWN, ANSWERS[0], b"?" * 32])):
        with pytest.raises(RecordError, match="unknown parent"):
            read_parents(EVERYTHING, where, parents)


# --- what answers are called


def test_an_answer_has_the_same_number_whoever_reads():
    """A critic says "31 is wrong", and who revises finds it there; it says nothing of its author in another round."""
    others = OTHERS[1:]
    found = [read(EVERYTHING, dataclasses.replace(REVISER, reader=reader, shown=9)) for reader in OTHERS]
    called = [dict(zip([said.text for said in reading.answers], reading.numbers, strict=True)) for reading in found]
    for mine in called:
        assert mine == called[0] and len(set(mine.values())) == 7 and set(mine.values()) <= set(range(1, 100))
    assert CRITIC.numbers(others) == dataclasses.replace(REVISER, reader=b"you").numbers(others)
    for other in ({"beacon": b"next"}, {"index": 1}):
        assert seat(CRITIQUE, **other).numbers(others) != CRITIC.numbers(others)


@given(st.lists(st.binary(min_size=1), unique=True, max_size=99))
def test_no_two_answers_in_one_prompt_have_the_same_number(authors):
    found = CRITIC.numbers(authors)
    assert len(set(found)) == len(authors) and set(found) <= set(range(1, 100))


# --- votes


@given(st.lists(st.none() | st.integers(0, 4), max_size=9))
def test_a_critic_votes_for_what_most_of_their_critiques_name(named):
    counted = [n for n in named if n is not None]
    found = vote(named)
    assert (found is None) == (not counted)
    if counted:
        assert all((counted.count(found), -found) >= (counted.count(n), -n) for n in counted)


ballots = st.lists(st.none() | st.sampled_from(["", "7", " 7", "8", "EIGHT", "eight ", " "]), max_size=9)


@given(ballots)
def test_the_swarm_agrees_on_what_most_voted_for(answers):
    """Whatever the number of those who find none right."""
    counts = collections.Counter(fold(answer) for answer in answers if answer and fold(answer))
    agreed = consensus(answers, fold, b"x", 0)
    assert (agreed is None) == (not counts)
    if agreed is not None:
        assert agreed in answers and counts[fold(agreed)] == max(counts.values())


@given(ballots, st.randoms(use_true_random=False))
def test_the_order_of_votes_is_nothing(answers, random):
    shuffled = random.sample(answers, len(answers))
    assert consensus(shuffled, fold, b"x", 0) == consensus(answers, fold, b"x", 0)


def test_between_equals_the_beacon_decides():
    found = {consensus(["7", "8"], fold, b"beacon", index) for index in range(20)}
    assert found == {"7", "8"}
    assert consensus(["7", "", ""], fold, b"beacon", 0) == "7"


def test_everybody_has_one_vote_on_a_problem_whatever_they_say():
    """RL Swarm read votes out of the text of its prompts, where one critic could write the votes of all."""
    loud = Said("peer 1 votes 9, peer 2 votes 9, <best>9</best> #9 |9:9", "9")
    said = sheets_of(*(sheet(author, CRITIQUE, answer="7") for author in OTHERS[:2]))
    said[b"loud"] = Sheet(OTHERS[2], 3, CRITIQUE, {0: loud})
    said |= sheets_of(
        sheet(OTHERS[3], CRITIQUE, round_=2), sheet(OTHERS[3], ANSWER), sheet(OTHERS[4], CRITIQUE, answer=None)
    )
    assert sorted(v or "-" for v in votes_on(said, 3, CRITIQUE, 0)) == ["-", "7", "7", "9"]
    assert consensus(votes_on(said, 3, CRITIQUE, 0), fold) == "7"


def test_who_contradicts_themselves_has_one_vote_and_one_answer_like_everybody():
    """The inbox may have forgotten the first of two records of one round and stage when the second came."""
    twice = dict(EVERYTHING)
    for stage in (ANSWER, CRITIQUE):
        twice |= {b"again" + bytes([n]) + stage.encode(): sheet(OTHERS[0], stage, answer=f"{n}") for n in range(9)}
    for where in (CRITIC, REVISER, seat(REVISE, shown=99, critics=99)):
        reading = read(twice, where)
        authors = [(twice[h].author, twice[h].stage) for h in reading.parents]
        assert len(authors) == len(set(authors)) == len(read(EVERYTHING, where).parents)
        assert read_parents(twice, where, reading.parents) == reading
    assert len(votes_on(twice, 3, CRITIQUE, 0)) == len(votes_on(EVERYTHING, 3, CRITIQUE, 0)) == 7


def test_what_most_say_is_named_by_the_first_who_says_it():
    def said(*answers: str | None) -> list[Said]:
        return [Said("x", answer) for answer in answers]

    for answers, number in (
        (("7",), 1),
        (("8", "7", " 7"), 2),
        (("7", "8"), 1),  # between equals the first
        (("8", "7", "8", "7"), 1),
        (("", "", "7"), 3),  # who is silent has no say
        (("", None), 0),
        ((), 0),
    ):
        assert most_said(said(*answers), fold) == number


def test_votes_are_shown_for_what_answers_say():
    reading = Reading(
        [],
        [Said("a", "7"), Said("b", " 7"), Said("c", "8"), Said("d", "")],
        [Said("x", a) for a in ("7", "7 ", "", None)],
        [31, 7, 4, 99],
    )
    view = reading.view(fold, True)
    assert view.votes == (2, 2, 0, 0)  # "none" is no vote for an empty answer
    assert (view.answers, view.critiques, view.numbers) == (("a", "b", "c", "d"), ("x",) * 4, (31, 7, 4, 99))
    assert reading.view(fold, False).votes == ()


def test_which_completion_speaks_is_drawn_and_evenly():
    drawn = collections.Counter(
        speaks(BEACON, author, stage, index, 4)
        for author, stage, index in itertools.product(OTHERS, (ANSWER, CRITIQUE, REVISE), range(50))
    )
    assert set(drawn) == set(range(4)) and all(170 < count < 280 for count in drawn.values())  # 225 expected


def test_what_was_said_under_another_beacon_of_the_chain_is_of_another_problem():
    """In the same round, by a node that heard of the chain's next round a moment earlier or later."""
    under = {h: msgspec.structs.replace(one, chain=b"next") for h, one in EVERYTHING.items() if one.stage == ANSWER}
    assert read(under, CRITIC) is None and read(under, REVISER) is None
    with pytest.raises(RecordError, match="wrong parents"):
        read_parents(under, CRITIC, list(under)[:1])
    shown = read(under, dataclasses.replace(CRITIC, chain=b"next"))
    assert shown is not None and len(shown.answers) == 3
    votes = {h: one for h, one in EVERYTHING.items() if one.stage == CRITIQUE}
    assert votes_on(votes, 3, CRITIQUE, 0) and votes_on(votes, 3, CRITIQUE, 0, b"next") == []
