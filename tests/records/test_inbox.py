import collections
import dataclasses
import itertools
import sys

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.identity import simulated
from rlswarm_jax.records import envelope, inbox, schema
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.shelf import Shelf
from tests.records.samples import ALICE, BOB, CAROL, ME, record, sealed


def make_inbox(**fields) -> Inbox:
    return Inbox("tests", ME.author, max_staleness=2, stages=("answer", "critique"), **fields)


def holdings(box: Inbox):
    """All that an inbox can hand out or decide from: everything but its counts."""
    return {f.name: getattr(box, f.name).copy() for f in dataclasses.fields(box) if f.name not in _FIXED}


_FIXED = ("swarm", "owner", "max_staleness", "stages", "rounds", "favoured", "counts")


def taken(box: Inbox, round_: int = 99):
    return [signed.raw for signed in box.take(round_, "critique")]


def test_a_record_is_handed_over_once():
    box = make_inbox()
    signed = box.offer(sealed(ALICE), 3)
    assert signed is not None and (signed.raw, signed.record.author) == (sealed(ALICE), ALICE.author)
    assert box.counts == {"received": 1}
    assert taken(box, 2) == []  # not before its round
    assert taken(box, 3) == [sealed(ALICE)]
    assert taken(box, 3) == [] and taken(box, 4) == []


def test_a_late_record_is_handed_over_later_and_counts_as_spoken():
    box = make_inbox()
    box.offer(sealed(ALICE), 3)
    assert taken(box, 3) == [sealed(ALICE)]
    box.offer(sealed(BOB), 5)  # of round 3, while this node is in 5
    assert box.authors(3, "answer") == {ALICE.author, BOB.author}
    assert taken(box, 5) == [sealed(BOB)]


def test_who_is_passed_by_has_spoken_and_nothing_is_held_of_it():
    box = make_inbox()
    for round_ in (4, 3):
        box.pass_by(ALICE.author, round_)
    box.offer(sealed(ALICE, round=2), 3)
    box.offer(sealed(BOB, round=3), 3)
    box.pass_by(BOB.author, 2)
    assert box.latest_rounds() == {ALICE.author: 4, BOB.author: 3} and box.speakers() == {ALICE.author, BOB.author}
    assert (box.latest_round(ALICE.author, -1), box.latest_round(CAROL.author, -1)) == (4, -1)
    assert taken(box, 4) == sorted([sealed(ALICE, round=2), sealed(BOB, round=3)], key=by_hash)
    assert box.authors(4, "answer") == set()
    other = make_inbox()
    other.restore(box.save())
    assert holdings(other) == holdings(box)
    for now, known in ((6, {ALICE.author: 4}), (7, {})):
        box.expire(now)
        assert box.latest_rounds() == known


def by_hash(raw: bytes) -> bytes:
    return envelope.open_envelope(raw).hash


def test_an_early_record_waits_for_its_round():
    box = make_inbox()
    box.offer(sealed(ALICE, round=4), 3)
    box.offer(sealed(BOB, round=3), 3)
    assert taken(box, 3) == [sealed(BOB, round=3)]
    assert taken(box, 4) == [sealed(ALICE, round=4)]


def test_a_second_copy_is_a_counted_duplicate_before_and_after_it_was_handed_over():
    box = make_inbox()
    box.offer(sealed(ALICE), 3)
    assert box.offer(sealed(ALICE), 3) is None
    assert taken(box) == [sealed(ALICE)]
    assert box.offer(sealed(ALICE), 3) is None
    assert taken(box) == [] and box.evidence == {}
    assert box.counts == {"received": 1, "duplicate": 2}


def test_two_records_of_one_slot_are_kept_as_evidence_and_handed_over_together_once():
    first, second = sealed(ALICE), sealed(ALICE, policy_version=9)
    for order in ((first, second), (second, first)):
        box = make_inbox()
        box.offer(sealed(BOB), 3)
        assert [box.offer(raw, 3) is None for raw in order] == [False, True]
        assert box.counts["equivocation"] == 1
        (slot, pair), *others = box.evidence.items()
        assert slot == (ALICE.author, 3, "answer") and set(pair) == {first, second} and not others
        assert set(taken(box)) == {sealed(BOB), first, second}
        assert box.offer(order[0], 3) is None and box.offer(order[1], 3) is None and taken(box) == []


def test_who_contradicts_themselves_later_is_proven_to_by_both_records_whatever_was_handed_over():
    box, second = make_inbox(), sealed(ALICE, policy_version=9)
    box.offer(sealed(ALICE), 3)
    assert taken(box) == [sealed(ALICE)]
    box.offer(second, 3)
    assert set(taken(box)) == {sealed(ALICE), second} and taken(box) == []


def test_no_copy_or_forgery_contradicts_its_author():
    """Another signature of the same words, a changed byte, another's signature: none is a second record."""
    box, honest = make_inbox(), sealed(ALICE)
    box.offer(honest, 3)
    payload, signature = msgpack.unpackb(honest)
    words, others = record(ALICE, policy_version=9), msgpack.unpackb(sealed(BOB))[1]
    forged = msgpack.packb([schema.encode(words), signature]), msgpack.packb([schema.encode(words), others])
    swapped = msgpack.packb([payload, others])
    for raw in (honest, *forged, swapped, honest[:-1] + bytes([honest[-1] ^ 1]), sealed(ALICE, swarm="other")):
        assert box.offer(raw, 3) is None
    assert box.evidence == {} and box.counts["equivocation"] == 0 and taken(box) == [honest]


def test_another_round_or_stage_is_another_slot():
    box = make_inbox()
    for fields in ({"round": 3}, {"round": 4}, {"stage": "critique"}):
        assert box.offer(sealed(ALICE, **fields), 3) is not None
    assert box.evidence == {} and len(taken(box)) == 3
    assert box.authors(3, "critique") == {ALICE.author} and box.authors(4, "critique") == set()


def test_a_stage_is_handed_what_was_said_up_to_it_however_early_the_rest_came():
    box, said = make_inbox(), {}
    for round_, stage in itertools.product((2, 3, 4), ("critique", "answer")):
        said[round_, stage] = sealed(ALICE, round=round_, stage=stage)
        assert box.offer(said[round_, stage], 3) is not None
    for at, expected in (
        ((3, "answer"), {(2, "answer"), (2, "critique"), (3, "answer")}),
        ((3, "critique"), {(3, "critique")}),
        ((4, "critique"), {(4, "answer"), (4, "critique")}),
    ):
        assert {signed.raw for signed in box.take(*at)} == {said[slot] for slot in expected}


def test_evidence_is_bounded(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_EVIDENCE", 2)
    box = make_inbox()
    for round_ in range(3, 8):
        box.offer(sealed(ALICE, round=round_), 3)
        box.offer(sealed(ALICE, round=round_, policy_version=9), 3)
    assert len(box.evidence) == 2 and box.counts["equivocation"] == 5
    pairs = {sealed(ALICE, round=n, policy_version=v) for n in (3, 4) for v in (3, 9)}
    assert set(taken(box)) == pairs  # beyond the evidence they are still not used


@pytest.mark.parametrize("crowd", [(BOB, BOB), (BOB, CAROL)], ids=["one key", "many keys"])
def test_nobody_of_standing_contradicts_themselves_unseen_behind_others_pairs(monkeypatch, crowd):
    monkeypatch.setattr(inbox, "MAX_EVIDENCE", 2)
    for favoured in (True, False):
        box = make_inbox(favoured=frozenset({ALICE.author} if favoured else ()))
        for round_, who in enumerate(crowd):
            for version in (3, 9):
                box.offer(sealed(who, round=3 + round_, policy_version=version), 3)
        assert len(taken(box)) == 4
        for version in (3, 9):
            box.offer(sealed(ALICE, policy_version=version), 3)
        proof = {sealed(ALICE), sealed(ALICE, policy_version=9)} if favoured else set()
        assert set(taken(box)) == proof and len(box.evidence) == 2


def test_strangers_hand_over_their_contradictions_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_UNKNOWN", 1)
    box = make_inbox(favoured=frozenset({ALICE.author}))
    for who, version in itertools.product((ALICE, BOB, CAROL), (3, 9)):
        box.offer(sealed(who, policy_version=version), 3)
    found = [[envelope.open_envelope(raw).record.author for raw in taken(box)] for _ in range(3)]
    assert [len(authors) for authors in found] == [4, 2, 0] and found[0].count(ALICE.author) == 2


def test_the_window_begins_max_staleness_behind():
    """A node that was away for long must hear where the others are."""
    box, now = make_inbox(), 5000
    expected = {now - 3: False, now - 2: True, now: True, now + 100_000: True, 0: False, 2**32 - 1: False}
    found = {round_: box.offer(sealed(ALICE, round=round_), now) is not None for round_ in expected}
    assert found == expected and box.counts["out of window"] == 3


def test_a_saved_inbox_is_restored_as_it_was_and_what_was_taken_stays_taken():
    box = make_inbox()
    box.offer(sealed(ALICE), 3)
    assert len(taken(box)) == 1
    box.offer(sealed(BOB), 3)
    box.offer(sealed(ALICE, policy_version=9), 3)
    again = make_inbox()
    again.restore(box.save())
    assert again == box and len(box.evidence) == 1 and box.counts["equivocation"] == 1
    proof = set(taken(box))
    assert proof == {sealed(ALICE), sealed(ALICE, policy_version=9), sealed(BOB)} == set(taken(again))
    later = make_inbox()
    later.restore(box.save())
    assert later == box and taken(later) == []
    fed = make_inbox()  # from a journal
    for raw in sorted(proof):
        fed.mark_taken(envelope.open_envelope(raw))
    assert fed.evidence.keys() == box.evidence.keys() and taken(fed) == []
    mine = make_inbox()
    mine.mark_taken(envelope.open_envelope(sealed(ALICE)))
    assert taken(mine) == [] and mine.offer(sealed(ALICE), 3) is None and mine.counts["duplicate"] == 1


def test_an_own_record_and_another_swarm_s_are_left_out():
    box = make_inbox()
    assert box.offer(sealed(ME), 3) is None and box.offer(sealed(ALICE, swarm="other"), 3) is None
    assert box.counts == {"own record": 1, "wrong swarm": 1} and taken(box) == []


def test_no_more_records_are_held_than_the_bound(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_HELD", 2)
    box = make_inbox()
    offered = [box.offer(sealed(author), 3) for author in (ALICE, BOB, CAROL)]
    assert [signed is not None for signed in offered] == [True, True, False]
    assert box.counts["overflow"] == 1 and len(taken(box)) == 2
    assert box.offer(sealed(CAROL), 3) is None  # handed over, but still remembered
    box.expire(6)
    assert box.offer(sealed(CAROL, round=6), 6) is not None


def test_no_more_bytes_are_held_than_the_bound(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_HELD_BYTES", 2 * len(sealed(ALICE)))
    box = make_inbox()
    for author in (ALICE, BOB, CAROL):
        box.offer(sealed(author), 3)
    assert sorted(taken(box)) == sorted([sealed(ALICE), sealed(BOB)]) and box.counts["overflow"] == 1


def test_expired_rounds_are_forgotten_and_cannot_come_back():
    box = make_inbox()
    box.offer(sealed(ALICE, round=3), 3)
    box.offer(sealed(BOB, round=4), 3)
    assert taken(box, 3) == [sealed(ALICE, round=3)]
    box.expire(6)  # rounds before 4
    assert set(box.records) == {(BOB.author, 4, "answer")} and box.taken == set()
    assert box.offer(sealed(ALICE, round=3), 6) is None and box.counts["out of window"] == 1
    assert taken(box) == [sealed(BOB, round=4)]


def test_evidence_outlives_its_round():
    box = make_inbox()
    box.offer(sealed(ALICE), 3)
    box.offer(sealed(ALICE, policy_version=9), 3)
    box.expire(100)
    assert list(box.evidence) == [(ALICE.author, 3, "answer")] and box.records == {}


def test_latest_rounds_are_per_author():
    box = make_inbox()
    for author, round_ in ((ALICE, 3), (ALICE, 9), (ALICE, 4), (BOB, 5)):
        box.offer(sealed(author, round=round_), 3)
    assert box.latest_rounds() == {ALICE.author: 9, BOB.author: 5}


FIRST = sealed(ALICE)
_, SIGNATURE = msgpack.unpackb(FIRST)
FORGED = msgpack.packb([msgpack.unpackb(sealed(BOB))[0], SIGNATURE])
NOT_ALICE = msgpack.packb([msgpack.unpackb(sealed(ALICE, policy_version=9))[0], SIGNATURE])


@settings(deadline=None)
@given(st.binary(max_size=80) | st.sampled_from([b"", FORGED, NOT_ALICE, FIRST[:-1], FIRST + b"\0", b"\x91" * 9000]))
def test_a_forged_or_garbage_record_changes_nothing_but_a_count(raw):
    box = make_inbox()
    box.offer(FIRST, 3)
    before = holdings(box)
    assert box.offer(raw, 3) is None
    assert holdings(box) == before
    causes = {"undecodable", "another version", "not canonical", "bad signature"}
    assert sum(box.counts[cause] for cause in causes) == 1 and box.counts.total() == 2


MESSAGES = [
    sealed(author, round=round_, stage=stage, policy_version=version)
    for author, round_, stage, version in itertools.product(
        (ALICE, BOB, CAROL), (2, 3, 4), ("answer", "critique"), (0, 1, 2)
    )
] + [sealed(ME), sealed(ALICE, swarm="other"), sealed(ALICE, round=0), NOT_ALICE, b"garbage"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(MESSAGES), max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(arriving, random):
    """Copies, contradictions and garbage among them: what is handed over is a function of the set."""
    shuffled = random.sample(arriving, len(arriving))
    boxes = [make_inbox(), make_inbox(), make_inbox()]
    for box, order in zip(boxes, (arriving, shuffled, sorted(set(arriving))), strict=True):
        for raw in order:
            box.offer(raw, 3)
    for round_ in (3, 4):
        handed_over = [box.take(round_, "critique") for box in boxes]
        assert handed_over[0] == handed_over[1] == handed_over[2]
        hashes = [signed.hash for signed in handed_over[0]]
        assert hashes == sorted(set(hashes))
        slots = [(s.record.author, s.record.round, s.record.stage) for s in handed_over[0]]
        assert all(number <= 2 for number in collections.Counter(slots).values())  # one record speaks for it, or none
    assert boxes[0].evidence.keys() == boxes[1].evidence.keys() == boxes[2].evidence.keys()
    assert boxes[0].latest_rounds() == boxes[1].latest_rounds()


def test_every_count_has_a_known_name():
    box = make_inbox()
    for raw in [*MESSAGES, *MESSAGES[:4]]:
        box.offer(raw, 3)
    assert set(box.counts) <= {"received", *schema.CAUSES}
    assert box.counts.total() == len(MESSAGES) + 4


def test_a_stage_that_is_not_played_is_not_held():
    box = make_inbox()
    assert box.offer(sealed(ALICE, round=3, stage="gossip"), 3) is None
    assert box.counts == {"unknown stage": 1} and not box.records


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(3, 3 + inbox.MAX_PER_AUTHOR + 4)))
def test_an_author_crowds_out_nobody_but_their_own_oldest_records(rounds):
    """In whatever order they come, the latest are held, so a node that was away still learns where the others are."""
    box = make_inbox()
    assert box.offer(sealed(BOB, round=3), 3)
    for round_ in rounds:
        box.offer(sealed(ALICE, round=round_), 3)
    held = sorted(round_ for author, round_, _ in box.records if author == ALICE.author)
    assert held == list(range(7, 3 + inbox.MAX_PER_AUTHOR + 4))
    assert box.authors(3, "answer") == {BOB.author}
    assert box.latest_rounds()[ALICE.author] == max(rounds)


def identities(number: int, first: int = 1000):
    return [simulated(first, index) for index in range(number)]


def test_far_records_of_many_strangers_make_room_for_near_ones(monkeypatch):
    """Keys are free: 1024 of them, each in a far round that never expires, must not close the inbox."""
    monkeypatch.setattr(inbox, "MAX_HELD", 4)
    box = make_inbox()
    for index, stranger in enumerate(identities(5)):
        box.offer(seal(record(stranger, round=1_000_000 + index), stranger), 3)
    assert len(box.records) == 4 and box.counts["overflow"] == 1
    for who in (ALICE, BOB):
        assert box.offer(sealed(who), 3) is not None
    assert box.offer(sealed(CAROL, round=4), 3) is not None  # one round ahead is near
    assert len(box.records) == 4 and box.counts["overflow"] == 4
    assert taken(box, 4) == sorted(
        (sealed(ALICE), sealed(BOB), sealed(CAROL, round=4)), key=lambda raw: envelope.open_envelope(raw).hash
    )


def test_records_of_favoured_authors_have_room_before_those_of_strangers(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_HELD", 3)
    box = make_inbox(favoured=frozenset([ALICE.author, BOB.author]))
    for stranger in identities(3):
        assert box.offer(seal(record(stranger), stranger), 3) is not None
    assert box.offer(sealed(ALICE), 3) is not None and box.offer(sealed(BOB), 3) is not None
    assert box.offer(sealed(CAROL), 3) is None  # no nearer, no more favoured than any that is held
    assert {ALICE.author, BOB.author} < box.authors(3, "answer") and len(box.records) == 3


def test_large_records_make_room_too(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_HELD_BYTES", 3 * len(sealed(ALICE)))
    box = make_inbox()
    for stranger in identities(3):
        box.offer(seal(record(stranger, round=99), stranger), 3)
    assert box.offer(sealed(ALICE), 3) is not None
    assert sum(len(held.raw) for held in box.records.values()) <= inbox.MAX_HELD_BYTES


def test_rounds_that_nobody_plays_are_out_of_window():
    box = make_inbox(rounds=10)
    assert box.offer(sealed(ALICE, round=9), 3) is not None
    assert box.offer(sealed(BOB, round=10), 3) is None and box.counts["out of window"] == 1
    endless = make_inbox()
    assert endless.offer(sealed(ALICE, round=inbox.MAX_ROUND - 1), 3) is not None
    assert endless.offer(sealed(BOB, round=inbox.MAX_ROUND), 3) is None


# --- what strangers cost


def steps(act) -> int:
    """How many functions are called, generators' steps and those written in C included."""
    counted = itertools.count()
    sys.setprofile(lambda frame, event, argument: next(counted) if event in ("call", "c_call") else None)
    try:
        act()
    finally:
        sys.setprofile(None)
    return next(counted)


@pytest.mark.parametrize("held", [100, 1000])
@pytest.mark.parametrize("full", [False, True])
def test_a_record_costs_the_same_however_many_are_held(monkeypatch, held, full):
    monkeypatch.setattr(inbox, "MAX_HELD", held if full else 10 * held)
    box = make_inbox(favoured=frozenset([BOB.author]))
    for index, stranger in enumerate(identities(held)):
        box.mark_taken(signed(stranger, round=3 + index % 2))
    box.offer(sealed(BOB, round=4), 3)  # who is favoured is sorted out once
    raw = sealed(BOB)
    envelope.open_envelope(raw)  # remembered: reading it is not what is measured
    assert steps(lambda: box.offer(raw, 3)) < 150
    assert steps(lambda: (box.authors(3, "answer"), box.latest_round(BOB.author, 0))) < 20
    assert box.holds(envelope.open_envelope(raw))


def signed(identity, **fields) -> envelope.SignedRecord:
    made = record(identity, **fields)
    raw = schema.encode(made)  # no signature: that is not what is tested
    return envelope.SignedRecord(raw, schema.content_hash(raw), made)


SLOTS = st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 5), st.sampled_from(["answer", "critique"]))


@settings(deadline=None)
@given(
    st.lists(st.tuples(SLOTS, st.integers(1, 9), st.booleans()), max_size=40), st.sets(st.sampled_from([b"a", b"b"]))
)
def test_a_shelf_says_what_walking_all_records_says(changes, spared):
    shelf = Shelf({})
    shelf.spare(spared)
    for slot, size, puts in changes:
        if puts:
            shelf.put(slot, envelope.SignedRecord(bytes(size), b"", record()))
        elif slot in shelf.records:
            shelf.drop(slot)
        held = shelf.records
        assert shelf.bytes == sum(len(one.raw) for one in held.values())
        assert shelf.last_round() == max((round_ for _, round_, _ in held), default=-1)
        sizes = {}
        for author in {slot[0] for slot in held}:
            own = sorted(slot for slot in held if slot[0] == author)
            sizes[author] = sum(len(held[slot].raw) for slot in own), len(own)
            assert shelf.of_author(author) == sizes[author][::-1]
            assert (shelf.first_of(author), shelf.last_of(author)) == (own[0], own[-1])
        assert set(shelf.authors()) == sizes.keys()
        heavy = [(-size, -number, author) for author, (size, number) in sizes.items() if author not in spared]
        assert shelf.heaviest() == (min(heavy)[2] if heavy else None)
        for round_, stage in itertools.product(range(6), ("answer", "critique")):
            assert shelf.at(round_, stage) == {a for a, r, s in held if (r, s) == (round_, stage)}
            assert set(shelf.in_round(round_)) == {slot for slot in held if slot[1] == round_}


def test_an_author_holds_an_eighth_of_the_bytes_at_most(monkeypatch):
    one = len(sealed(ALICE, round=3))
    monkeypatch.setattr(inbox, "MAX_HELD_BYTES", 24 * one)
    box = make_inbox(favoured=frozenset([ALICE.author]))
    for round_ in range(3, 13):
        assert box.offer(sealed(ALICE, round=round_), round_)
    assert sorted(round_ for _, round_, _ in box.records) == [10, 11, 12]


def test_who_holds_most_makes_room_for_who_holds_less(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_HELD", 6)
    box = make_inbox()
    for round_, stage in itertools.product((2, 3, 4), ("answer", "critique")):
        assert box.offer(sealed(ALICE, round=round_, stage=stage), 3)
    for who in (BOB, CAROL):
        assert box.offer(sealed(who), 3)
    assert collections.Counter(author for author, _, _ in box.records) == {
        ALICE.author: 4,
        BOB.author: 1,
        CAROL.author: 1,
    }
    assert (ALICE.author, 4, "critique") in box.records  # its oldest went


def test_of_strangers_so_many_records_are_taken_at_once_and_everybody_s_last_first(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_UNKNOWN", 6)
    friends, strangers = identities(3, first=50), identities(5, first=60)
    box = make_inbox(favoured=frozenset(one.author for one in friends))
    for who, round_ in itertools.product([*friends, *strangers], (1, 2, 3)):
        box.mark_taken(signed(who, round=round_))
    box.taken.clear()
    found = collections.Counter(one.record.author for one in box.take(3, "critique"))
    assert {found[one.author] for one in friends} == {3}
    assert sorted(found[one.author] for one in strangers) == [1, 1, 1, 1, 2]
    later = [one.record.author for one in box.take(3, "critique")]
    assert len(later) == 6 and not set(later) & box.favoured  # what was left waits for the next time


def test_what_is_not_wanted_stays(monkeypatch):
    box = make_inbox()
    for who in (ALICE, BOB):
        box.offer(sealed(who), 3)
    assert [one.raw for one in box.take(3, "answer", lambda author, _: author == ALICE.author)] == [sealed(ALICE)]
    assert [one.raw for one in box.take(3, "answer")] == [sealed(BOB)]
