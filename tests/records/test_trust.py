"""Whom a node does not trust, and why: by what it found itself, never by what others say."""

import msgspec

from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED, UNDECIDED, WITHHELD, Verdict
from rlswarm_jax.records.trust import FIRST, MOST_SAID, REPEATED, SILENT, Audited, Trust, contradictory
from tests.records.samples import ALICE, CAROL, record, sealed

ME, BOB, EVE = b"m" * 33, b"b" * 33, b"e" * 33
HASH = b"h" * 32


def verdict(finding, record=HASH, index=0):
    return Verdict(record, index, finding, 9, 30.0, 0.5)


def says(*verdicts):
    return record(ALICE, verdicts=list(verdicts))


def found(trust, finding, author=BOB, round_=10, record=HASH):
    return trust.find([Audited(author, verdict(finding, record))], round_)


def test_who_did_not_sample_what_they_said_is_distrusted_for_a_time_that_doubles():
    trust = found(Trust(), NOT_PRODUCED)
    assert trust.distrusted(10) == trust.distrusted(10 + FIRST - 1) == {BOB} and trust.distrusted(10 + FIRST) == set()
    trust = found(trust, NOT_PRODUCED, round_=50, record=b"2" * 32)
    assert trust.distrusted(50 + 2 * FIRST - 1) == {BOB} and trust.distrusted(50 + 2 * FIRST) == set()


def test_two_records_for_one_stage_of_a_round_prove_that_their_author_contradicts_itself():
    def said(*raws):
        return contradictory([open_envelope(raw) for raw in raws])

    honest = [sealed(ALICE), sealed(ALICE), sealed(ALICE, round=4), sealed(ALICE, stage="critique"), sealed(CAROL)]
    assert said(*honest) == set() == said()
    assert said(*honest, sealed(ALICE, policy_version=9)) == {ALICE.author}
    trust = found(Trust().expose({BOB}, 10), NOT_PRODUCED, round_=12)
    assert trust.distrusted(11) == {BOB} and trust.distrusted(12 + 2 * FIRST - 1) == {BOB}  # an offence like any other
    assert Trust().expose({BOB}, 10) == msgspec.structs.replace(found(Trust(), NOT_PRODUCED), found={}, unsaid=[])


def test_nobody_is_distrusted_for_what_others_say_or_what_cannot_be_decided():
    trust = Trust().hear([says(verdict(NOT_PRODUCED))], {HASH}, 9)
    trust = found(found(trust, UNDECIDED), PRODUCED, author=EVE, record=b"2" * 32)
    assert trust.distrusted(10) == set()


def test_an_accusation_is_looked_into_once_and_the_accused_does_not_look_into_their_own():
    trust = Trust().hear([says(verdict(NOT_PRODUCED))], {HASH}, 9)
    assert trust.to_repeat({HASH: BOB}, ME, 10) == [Case(HASH, 0)]
    assert trust.to_repeat({HASH: ME}, ME, 10) == trust.to_repeat({}, ME, 10) == []
    assert found(trust, PRODUCED).to_repeat({HASH: BOB}, ME, 10) == []
    praised = Trust().hear([says(verdict(PRODUCED))], {HASH}, 9)
    assert praised.to_repeat({HASH: BOB}, ME, 10) == []
    accused_by_himself = Trust().hear([says(verdict(NOT_PRODUCED))], {HASH}, 9)
    assert accused_by_himself.to_repeat({HASH: ALICE.author}, ME, 10) == []


def test_a_false_accuser_is_treated_like_a_false_author_and_so_is_who_covers_for_one():
    trust = found(Trust().hear([says(verdict(NOT_PRODUCED))], {HASH}, 9), PRODUCED)
    assert trust.distrusted(10) == {ALICE.author}
    another = trust.hear([says(verdict(NOT_PRODUCED, b"2" * 32))], {HASH, b"2" * 32}, 9)
    assert another.to_repeat({b"2" * 32: BOB}, ME, 11) == []  # their word sends nobody anywhere any more
    trust = found(Trust().hear([says(verdict(PRODUCED))], {HASH}, 9), NOT_PRODUCED)
    assert trust.distrusted(10) == {ALICE.author, BOB}
    late = found(Trust(), NOT_PRODUCED).hear([says(verdict(PRODUCED))], {HASH}, 11)
    assert late.distrusted(10) == {ALICE.author, BOB}  # also if it is heard after it was found
    assert late.hear([says(verdict(PRODUCED))], {HASH}, 11).offenders[ALICE.author].until > 11 + FIRST - 1
    trust = found(Trust().hear([says(verdict(WITHHELD))], {HASH}, 9), PRODUCED)
    assert trust.distrusted(10) == set()  # the way there may be blocked for one alone


def test_silence_is_an_offence_when_it_is_repeated():
    trust = Trust()
    for n in range(SILENT - 1):
        trust = found(trust, WITHHELD, record=bytes([n]) * 32)
    assert trust.distrusted(10) == set()
    assert found(trust, WITHHELD, record=b"l" * 32).distrusted(10) == {BOB}
    trust = found(found(trust, PRODUCED, record=b"p" * 32), WITHHELD, record=b"l" * 32)
    assert trust.distrusted(10) == set()  # an answer in between


def test_what_was_found_is_said_once():
    trust = found(Trust(), PRODUCED)
    assert trust.unsaid == [verdict(PRODUCED)] and trust.tell(16).unsaid == []


def test_what_others_say_is_bounded_and_goes_with_the_records_that_it_is_about():
    known = {bytes([n, m]) + bytes(30) for n in range(40) for m in range(16)}
    many = [says(*[verdict(NOT_PRODUCED, bytes([n, m]) + bytes(30)) for m in range(16)]) for n in range(40)]
    trust = Trust().hear(many, known, 9)
    assert len(trust.said) == MOST_SAID
    assert len(trust.to_repeat(dict.fromkeys(known, BOB), ME, 10)) == REPEATED
    assert Trust().hear(many, set(), 9).said == {} == trust.hear([], set(), 9).said


def test_it_is_a_value_that_can_be_kept():
    trust = found(Trust().hear([says(verdict(NOT_PRODUCED))], {HASH}, 9), PRODUCED)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(trust), type=Trust) == trust
