"""A key that gives its place to another one: what others take from it, and what they don't."""

import msgspec
import pytest

from rlswarm_jax.identity import simulated
from rlswarm_jax.records import rotations, schema
from rlswarm_jax.records.envelope import open_envelope, seal
from rlswarm_jax.records.inbox import MAX_RETIRED, Inbox
from rlswarm_jax.records.rotations import announce
from rlswarm_jax.records.schema import ANNOUNCING, MAX_ROTATIONS, NOT_PRODUCED, Announcing, RecordError, Rotation
from rlswarm_jax.records.trust import FIRST, Audited, Offender, Trust, Verdict
from tests.records.samples import ME, record

A, B, C, D, EVE = (simulated(41, node) for node in range(5))


def chain(*keys, rounds=None, swarm="tests"):
    """What keys sign one after another, each for the next."""
    rounds = rounds or [10 * n for n in range(1, len(keys))]
    return [announce(old, new.author, swarm, r) for old, new, r in zip(keys, keys[1:], rounds, strict=False)]


def says(author, said, **fields):
    """A record with statements in it, and its envelope."""
    known = msgspec.structs.asdict(record(author, **fields)) | {"version": ANNOUNCING}
    made = Announcing(**known, rotations=list(said))
    payload = msgspec.msgpack.encode(made)
    return made, msgspec.msgpack.encode([payload, author.sign(payload)])


def refused(raw):
    with pytest.raises(RecordError) as caught:
        open_envelope(raw)
    return caught.value.cause


def test_a_statement_travels_in_the_new_keys_record_and_says_what_a_page_says():
    made, raw = says(B, chain(A, B))
    signed = open_envelope(raw)
    assert signed.record == made and rotations.of(made) == [(A.author, B.author, 10)] and seal(made, B) == raw
    assert rotations.of(record(B)) == []
    (said,) = made.rotations
    assert A.sign(msgspec.msgpack.encode(["rlswarm_jax rotation 1", "tests", B.author, 10])) == said.signature
    every = chain(A, B, C, D)
    assert rotations.of(open_envelope(says(D, every)[1]).record) == [
        (A.author, B.author, 10),
        (B.author, C.author, 20),
        (C.author, D.author, 30),
    ]


def test_a_record_without_one_is_what_it_was_byte_for_byte():
    plain = schema.encode(record(B))
    assert plain[0] == 0x9D and schema.decode(plain).version == 4  # MessagePack: an array of 13


@pytest.mark.parametrize(
    ("author", "said"),
    [
        (EVE, chain(A, B)),  # copied out of B's record
        (EVE, [msgspec.structs.replace(chain(EVE, EVE)[0], old=A.author)]),
        (B, chain(A, B, swarm="another")),
        (A, chain(A, A)),
        (A, chain(A, B, A)),
        (B, chain(A, B, A, B)),
        (C, [*chain(A, B), *chain(A, C)]),  # the first leads elsewhere
        (B, [msgspec.structs.replace(chain(A, B)[0], from_round=0)]),
        (B, [msgspec.structs.replace(chain(A, B)[0], old=b"\2" + b"\xff" * 32)]),
    ],
    ids=["copied", "not-signed-by-old", "another-swarm", "itself", "loop", "longer-loop", "gap", "changed", "no-point"],
)
def test_what_the_old_key_did_not_sign_for_this_author_here_is_false(author, said):
    assert refused(says(author, said)[1]) == "false rotation"


def test_more_than_a_few_none_at_all_or_the_wrong_version_are_no_record():
    keys = [simulated(42, node) for node in range(MAX_ROTATIONS + 2)]
    assert refused(says(keys[-1], chain(*keys))[1]) == "undecodable"
    assert open_envelope(says(keys[-1], chain(*keys)[1:])[1])
    assert refused(says(B, [])[1]) == "undecodable"
    for version, fields in ((4, {"rotations": chain(A, B)}), (5, {})):
        known = msgspec.structs.asdict(record(B)) | {"version": version}
        made = Announcing(**known, **fields) if fields else schema.Record(**known)
        payload = msgspec.msgpack.encode(made)
        assert refused(msgspec.msgpack.encode([payload, B.sign(payload)])) == "undecodable"


def test_of_a_key_files_statements_those_count_that_lead_to_its_author_here():
    there, here = chain(A, B, swarm="another"), chain(B, C)
    assert rotations.usable([*there, *here], C.author, "tests") == tuple(here)
    assert rotations.usable(there, B.author, "tests") == ()
    keys = [simulated(42, node) for node in range(MAX_ROTATIONS + 3)]
    assert rotations.usable(chain(*keys), keys[-1].author, "tests") == tuple(chain(*keys)[-MAX_ROTATIONS:])
    (one,) = here
    assert rotations.from_text(rotations.to_text(one)) == one
    for text in ("", "zz", "00", rotations.to_text(one)[:-2]):
        with pytest.raises(ValueError):
            rotations.from_text(text)


# --- what an inbox does


def inbox(**fields):
    return Inbox("tests", ME.author, 5, ("answer", "critique"), **fields)


def plain(author, round_, stage="answer"):
    return seal(record(author, round=round_, stage=stage), author)


def test_the_old_key_is_not_heard_from_that_round_on_and_before_it_as_ever():
    box = inbox()
    assert box.offer(says(B, chain(A, B), round=10)[1], 10)
    assert box.offer(plain(A, 10), 10) is None and box.offer(plain(A, 11), 10) is None
    assert box.counts["retired key"] == 2
    assert box.offer(plain(A, 9), 10) is not None and box.offer(plain(EVE, 10), 10) is not None


def test_which_came_first_makes_no_difference():
    """A stolen key that goes on speaking, heard before or after the one that took its place."""
    raws = [plain(A, 9), plain(A, 10), plain(A, 11), says(B, chain(A, B), round=10)[1]]
    held = []
    for order in (raws, raws[::-1]):
        box = inbox()
        for raw in order:
            box.offer(raw, 10)
        held.append(sorted(signed.hash for signed in box.take(11, "critique")))
    assert held[0] == held[1] and len(held[0]) == 2


def test_a_key_that_gave_its_place_away_takes_nobodys():
    box = inbox()
    box.offer(says(B, chain(A, B), round=10)[1], 10)
    assert box.offer(says(A, chain(B, A), round=20)[1], 10) is None
    assert box.counts["retired key"] == 1 and box.offer(plain(B, 21), 10) is not None


def test_what_was_retired_is_remembered_by_a_checkpoint_and_by_the_journal():
    box, again = inbox(), inbox()
    box.offer(says(B, chain(A, B), round=10)[1], 10)
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(box.save()), type=type(box.save())))
    fed = inbox()
    fed.mark_taken(open_envelope(says(B, chain(A, B), round=10)[1]))
    for one in (again, fed):
        assert one.offer(plain(A, 12), 12) is None and one.counts["retired key"] == 1


def test_keys_made_for_that_do_not_push_out_one_that_is_followed():
    box = inbox(favoured=frozenset([B.author]))
    box.offer(says(B, chain(A, B), round=10)[1], 10)
    many = simulated(43, 0)
    for number in range(MAX_RETIRED + 5):
        said = Rotation(number.to_bytes(33), 0, bytes(64))
        box._retire(says(many, [said])[0])
    assert len(box.retired) == MAX_RETIRED and box.offer(plain(A, 12), 12) is None


def test_nobody_retires_the_node_itself():
    box = inbox()
    assert box.offer(says(EVE, chain(ME, EVE), round=10)[1], 10) and not box.retired


# --- whom it is held against


def found(trust, author, round_=10):
    return trust.find([Audited(author, Verdict(b"h" * 32, 0, NOT_PRODUCED, 9, 30.0, 0.5))], round_)


def followed(trust, *records, round_=12):
    return trust.succeed(records, round_)


def test_distrust_goes_with_the_person_and_so_do_further_offences():
    trust = followed(found(Trust(), A.author), says(B, chain(A, B))[0])
    assert trust.offenders[B.author] == trust.offenders[A.author] == Offender(1, 10 + FIRST)
    assert trust.distrusted(11) == {A.author, B.author} and trust.distrusted(10 + FIRST) == set()
    twice = found(trust, B.author, round_=50)
    assert twice.offenders[B.author] == Offender(2, 50 + 2 * FIRST)
    late = found(followed(Trust(), says(C, chain(A, B, C))[0]), A.author)  # found out when it has two other keys
    assert late.distrusted(11) == {A.author, B.author, C.author}


def test_it_is_not_washed_off_by_saying_it_again_nor_grows_by_it():
    said = says(B, chain(A, B))[0]
    once = followed(found(Trust(), A.author), said)
    assert followed(once, said, says(B, chain(A, B), round=11)[0]) is once


def test_somebody_who_is_honest_gets_nothing_of_it():
    trust = followed(found(Trust(), A.author), says(B, chain(A, B))[0], record(EVE))
    assert EVE.author not in trust.distrusted(11)
    assert followed(Trust(), record(EVE)) == Trust()


def test_a_key_that_gives_its_place_to_two_contradicts_itself_whoever_is_heard_first():
    said = [says(B, chain(A, B))[0], says(C, chain(A, C))[0]]
    for order in (said, said[::-1]):
        together, one_by_one = followed(Trust(), *order), followed(followed(Trust(), order[0]), order[1])
        for trust in (together, one_by_one):
            assert trust.distrusted(13) == {A.author, B.author, C.author}
            assert trust.distrusted(12 + FIRST) == set()


def test_what_is_remembered_is_bounded_and_survives_a_checkpoint():
    trust = Trust()
    for number in range(1100):
        said = Rotation(number.to_bytes(33), 0, bytes(64))
        trust = followed(trust, says(EVE, [said])[0])
    assert len(trust.heirs) == 1024
    trust = followed(Trust(), says(B, chain(A, B))[0])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(trust), type=Trust) == trust
    loop = msgspec.structs.replace(Trust(), heirs={A.author: [B.author], B.author: [A.author]})
    assert found(loop, A.author).distrusted(11) == {A.author, B.author}
