"""Who is registered is found out soon, and at a rate that made-up keys cannot raise."""

import itertools

import pytest

from rlswarm_jax.chain.errors import EndpointDown
from rlswarm_jax.chain.registrations import ASKED, ASKED_AT_FIRST, MOST, REMEMBERED, Registrations


class Chain:
    """Answers from a table, and notes who was asked for."""

    def __init__(self, since: dict[bytes, int], first: float = 10.0):
        self.since, self.asked, self.now = since, [], 0.0
        self.found = Registrations(self._ask, first, lambda: self.now)

    def _ask(self, author: bytes) -> int | None:
        self.asked.append(author)
        return self.since.get(author)

    def look(self, *authors: bytes, seconds: float = 0.0) -> list[bytes]:
        """Who was asked for in a look, after so many seconds."""
        self.now += seconds
        before = len(self.asked)
        self.found.look(authors)
        return self.asked[before:]


def keys(count: int, name: bytes = b"k") -> list[bytes]:
    return [b"%s%d" % (name, number) for number in range(count)]


def test_nobody_knows_before_the_first_look_and_then_who_was_asked_for():
    chain = Chain({b"a": 3, b"b": 5})
    assert chain.found.members() is None
    chain.look(b"a", b"b", b"c")
    assert chain.found.members() == {b"a", b"b"}
    assert chain.found.before(4) == {b"a"} and chain.found.before(3) == frozenset()


def test_a_newcomer_is_asked_for_in_the_very_next_look_whoever_is_asked_about_again():
    chain, strangers = Chain({b"new": 1}), keys(3 * ASKED)
    chain.look(*strangers)
    assert chain.look(*strangers, b"new", seconds=10.0)[0] == b"new"  # all of the others are due
    assert chain.found.members() == {b"new"}


def test_a_thousand_keys_are_asked_for_a_few_at_a_time_the_most_important_first():
    chain, strangers = Chain({}), keys(1000)
    assert chain.look(*strangers) == strangers[:ASKED_AT_FIRST]
    assert chain.look(*strangers) == strangers[ASKED_AT_FIRST : ASKED_AT_FIRST + ASKED]


def test_a_no_is_asked_about_again_after_ever_longer_and_becomes_a_yes():
    chain, times = Chain({}), []
    for _ in range(3600):
        if chain.look(b"x", seconds=1.0):
            times.append(chain.now)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert waits[:6] == [10, 20, 40, 80, 160, 320] and set(waits[6:]) == {MOST}
    chain.since[b"x"] = 7
    chain.look(b"x", seconds=MOST)
    assert chain.found.members() == {b"x"}


def test_a_yes_that_no_longer_holds_is_corrected():
    chain = Chain({b"x": 2})
    chain.look(b"x")
    chain.since.clear()
    assert not chain.look(b"x", seconds=MOST - 1) and chain.found.members() == {b"x"}
    chain.look(b"x", seconds=1.0)
    assert chain.found.members() == frozenset()


def test_doubt_makes_everything_due():
    chain = Chain({b"x": 2})
    chain.look(b"x", b"y")
    chain.since |= {b"y": 3}
    chain.found.doubt()
    assert sorted(chain.look(b"x", b"y")) == [b"x", b"y"]
    assert chain.found.members() == {b"x", b"y"}


def test_what_was_answered_before_the_endpoint_failed_is_kept():
    answers = {b"a": 1}

    def ask(author: bytes) -> int:
        if author not in answers:
            raise EndpointDown("away")
        return answers[author]

    found = Registrations(ask, 10.0, lambda: 0.0)
    for _ in range(2):
        with pytest.raises(EndpointDown):
            found.look([b"a", b"b"])
    assert found.members() is None  # the first look is not done
    answers[b"b"] = 2
    found.look([b"a", b"b"])
    assert found.members() == {b"a", b"b"}


def test_what_is_remembered_is_bounded_and_strangers_displace_no_member():
    chain = Chain({b"member": 1})
    chain.look(b"member")
    for number in range(2 * REMEMBERED // ASKED):
        chain.look(*keys(ASKED, b"%d-" % number))
    assert len(chain.found._answers) == REMEMBERED and chain.found.members() == {b"member"}
