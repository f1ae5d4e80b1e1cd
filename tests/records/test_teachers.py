import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.records import teachers
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.teachers import DISCOUNT, WORTH, Teacher, Teachers
from tests.records.samples import scored

LIVE, FLAT = (1.0, 0.0), (0.0, 0.0)


def by(author, index, rewards=LIVE, **fields):
    return msgspec.structs.replace(scored(index, rewards), author=author, **fields)


def after(*rounds):
    """rounds: of each, (author, whether its group taught something) of all that were offered."""
    found = Teachers()
    for offers in rounds:
        found = found.seen(by(author, n, LIVE if live else FLAT) for n, (author, live) in enumerate(offers))
    return found


@given(st.lists(st.lists(st.tuples(st.sampled_from((b"a", b"b")), st.booleans()), max_size=4), max_size=6))
def test_what_was_offered_is_counted_and_fades(rounds):
    found = after(*rounds)
    for author in {author for offers in rounds for author, _ in offers}:
        age = [len(rounds) - 1 - at for at in range(len(rounds))]
        groups = sum(DISCOUNT ** age[at] * (who == author) for at, offers in enumerate(rounds) for who, _ in offers)
        useful = sum(
            DISCOUNT ** age[at] * live for at, offers in enumerate(rounds) for who, live in offers if who == author
        )
        assert (found.known[author].groups, found.known[author].useful) == pytest.approx((groups, useful))


def test_the_bound_is_that_of_the_formula():
    found = after([(b"a", True), (b"a", False), (b"b", True)])
    # one more group, of average worth, and the bonus of arXiv:0805.3415 (with the total one larger, so that one is 0)
    expected = (2 / 3 + 1) / 3 + teachers.BONUS * math.sqrt(math.log(4) / 3)
    assert found.bound(b"a") == pytest.approx(expected)
    assert Teachers().bound(b"a") == 0


def test_of_two_that_are_known_well_the_more_useful_comes_first_whatever_the_beacon():
    found = after(*[[(b"a", n % 4 == 0), (b"b", n % 4 != 0)] for n in range(40)])
    pool = Pool().add(by(author, n) for author, n in itertools.product((b"a", b"b"), range(3)))
    for beacon in range(20):
        drawn, _ = pool.draw(3, beacon, worth=WORTH["useful"](found))
        assert [group.author for group in drawn] == [b"b", b"a", b"b"]  # they still take turns


def test_who_is_not_known_comes_before_those_known_to_be_poor_and_behind_no_good_ones_for_long():
    found = after(*[[(b"poor", False), (b"good", True)]] * 40)
    assert found.bound(b"poor") < found.bound(b"new")
    tried = after(*[[(b"poor", False), (b"good", True)]] * 40, *[[(b"new", False), (b"good", True)]] * 8)
    assert tried.bound(b"new") < tried.bound(b"good")


def test_a_thousand_keys_are_not_remembered():
    found = after([(bytes([n // 256, n % 256]), True) for n in range(1000)])
    assert len(found.known) == teachers.MOST
    kept = found.seen([by(b"regular", n) for n in range(3)])
    assert b"regular" in kept.known and len(kept.known) == teachers.MOST


def test_the_bytes_are_the_same_whatever_the_order_of_what_was_seen():
    groups = [by(bytes([n]), n) for n in range(9)]
    first, second = Teachers().seen(groups), Teachers().seen(groups[::-1])
    assert msgspec.msgpack.encode(first) == msgspec.msgpack.encode(second)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=Teachers) == first
    assert first.known[b"\x03"] == Teacher(1.0, 1.0)


@pytest.mark.parametrize(
    ("choose", "first"),
    [
        ("reward", lambda g: g.rewards == [1.0, 1.0, 0.0, 1.0]),
        ("variety", lambda g: len(set(map(tuple, g.tokens))) == 4),
    ],
)
def test_what_is_in_a_group_can_rank_it(choose, first):
    groups = [
        by(b"a", 0, (1.0, 1.0, 0.0, 1.0), tokens=[[1, 0]] * 4),
        by(b"b", 1, (1.0, 0.0, 0.0, 0.0), tokens=[[n, 0] for n in range(1, 5)]),
        by(b"c", 2, (1.0, 0.0, 0.0, 1.0), tokens=[[1, 0], [1, 0], [2, 0], [2, 0]]),
    ]
    for beacon in range(10):
        (drawn,), _ = Pool().add(groups).draw(1, beacon, worth=WORTH[choose](Teachers()))
        assert first(drawn)
