import collections
import itertools

import msgspec
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.records.pool import Pool
from tests.records.samples import scored


@settings(deadline=None)
@given(st.sets(st.integers(0, 200), max_size=20), st.integers(0, 8), st.randoms(use_true_random=False))
def test_a_draw_depends_on_the_set_and_not_on_the_order_of_adding(names, count, random):
    groups = [scored(name, round_=name % 3) for name in names]
    shuffled = random.sample(groups, len(groups))
    at_once, one_by_one = Pool().add(groups), Pool()
    for group in shuffled:
        one_by_one = one_by_one.add([group])
    assert at_once == one_by_one
    assert at_once.draw(count, b"beacon", 1) == one_by_one.draw(count, b"beacon", 1)


def test_a_draw_does_not_depend_on_what_else_was_drawn_from():
    """Removing a group that was not chosen changes nothing: each group's rank is its own."""
    pool = Pool().add(scored(name) for name in range(30))
    chosen, rest = pool.draw(5, b"beacon")
    smaller = Pool(tuple(group for group in pool.groups if group != rest.groups[7]))
    assert smaller.draw(5, b"beacon")[0] == chosen


@settings(deadline=None)
@given(st.integers(0, 12), st.lists(st.integers(0, 5), max_size=6))
def test_draws_are_without_replacement_until_the_pool_is_empty(size, counts):
    pool = Pool().add(scored(name) for name in range(size))
    seen = []
    for number, count in enumerate(counts):
        before = len(pool.groups)
        chosen, pool = pool.draw(count, number)
        assert len(chosen) == min(count, before) and len(pool.groups) == before - len(chosen)
        seen += [group.slot for group in chosen]
    assert len(seen) == len(set(seen))
    assert set(seen) | {group.slot for group in pool.groups} == {scored(name).slot for name in range(size)}


def test_what_a_group_says_has_no_part_in_the_draw():
    """Else an author could try contents until its groups are drawn, and rounding could change who is learned from."""
    pool = Pool().add(scored(name) for name in range(30))
    other = Pool().add(msgspec.structs.replace(scored(name, (0.0, 1.0)), tokens=[[name], [0]]) for name in range(30))
    assert [group.slot for group in pool.draw(5, b"x")[0]] == [group.slot for group in other.draw(5, b"x")[0]]


def test_other_fields_give_other_draws():
    pool = Pool().add(scored(name) for name in range(40))
    drawn = [
        tuple(g.slot for g in pool.draw(6, *fields)[0]) for fields in itertools.product((b"a", b"b"), (b"x", b"y"))
    ]
    assert len(set(drawn)) == 4
    assert pool.draw(6, b"a", b"x") == pool.draw(6, b"a", b"x")


def test_draws_are_uniform():
    pool = Pool().add(scored(name) for name in range(10))
    counts: collections.Counter[tuple] = collections.Counter()
    for number in range(1500):
        counts.update(group.slot for group in pool.draw(3, "uniform", number)[0])
    assert counts.total() == 4500 and len(counts) == 10
    # without replacement the counts vary by 7/9 of what independent draws would: the test is a little strict
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3
    pairs = collections.Counter(
        frozenset(group.slot for group in pool.draw(2, "pairs", number)[0]) for number in range(3000)
    )
    assert len(pairs) == 45 and scipy.stats.chisquare(list(pairs.values())).pvalue > 1e-3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_only_groups_that_teach_enter(rewards):
    pool = Pool().add([scored(1, rewards)])
    assert len(pool.groups) == (len(set(rewards)) > 1)


def test_others_enter_where_they_are_wanted():
    flat = scored(1, (0.5, 0.5))
    assert Pool().add([flat], flat=True).groups == (flat,) and Pool().add([flat]).groups == ()


def test_a_draw_can_leave_what_is_too_new_for_later():
    pool = Pool().add(scored(name, round_=name) for name in range(6))
    drawn, rest = pool.draw(9, b"x", until=2)
    assert {group.round for group in drawn} == {0, 1, 2} and {group.round for group in rest.groups} == {3, 4, 5}


def test_a_group_enters_once():
    pool = Pool().add([scored(1), scored(1)]).add([scored(1), scored(2)])
    assert [group.slot for group in pool.groups] == [scored(1).slot, scored(2).slot]


@pytest.mark.parametrize("capacity", [0, 1, 3, 10])
def test_the_oldest_go_when_it_is_full(capacity):
    pool = Pool(capacity=capacity)
    for name in (4, 1, 5, 0, 3, 2):
        pool = pool.add([scored(name, round_=name)])
        assert len(pool.groups) <= capacity
    assert [group.round for group in pool.groups] == list(range(6))[max(0, 6 - capacity) :]


# --- one person with a hundred keys, or one key that never tires


def by(author: int, index: int = 0, round_: int = 0):
    """A group of an author's."""
    return msgspec.structs.replace(scored(index, round_=round_), author=author.to_bytes(33))


@pytest.mark.parametrize(("tireless", "modest"), [(1, 3), (30, 3)])
def test_an_author_s_share_of_what_is_drawn_is_one_of_the_authors_however_much_is_offered(tireless, modest):
    """The tireless offer four groups each, the others one."""
    offered = [by(author, index) for author in range(tireless) for index in range(4)]
    pool = Pool(capacity=10**6).add([*offered, *(by(tireless + n) for n in range(modest))])
    authors, counts = tireless + modest, collections.Counter[int]()
    for number in range(8 * authors):
        chosen, _ = pool.draw(1, "share", number)
        counts.update(int.from_bytes(group.author) for group in chosen)
    assert scipy.stats.chisquare([counts[author] for author in range(authors)]).pvalue > 1e-3


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40), st.integers(0, 30), st.integers(1, 4))
def test_authors_take_turns_and_give_no_more_than_they_may(offered, count, most):
    """By hand: whoever gave one more than another did so because the other had no more to give."""
    pool = Pool().add(by(author, index) for author, index in offered)
    chosen, rest = pool.draw(count, b"beacon", most=most)
    had = collections.Counter(group.author for group in pool.groups)
    gave = collections.Counter(group.author for group in chosen)
    may = {author: min(most, had[author]) for author in had}
    assert len(chosen) == min(count, sum(may.values())) and len(rest.groups) == len(pool.groups) - len(chosen)
    for author in had:
        assert gave[author] <= may[author]
        assert gave[author] == may[author] or gave[author] >= max(gave.values(), default=0) - 1
    assert pool.draw(count, b"beacon", most=10)[0] == pool.draw(count, b"beacon")[0]


def test_who_fills_the_pool_crowds_out_only_themselves():
    honest = [by(author, index, round_=0) for author in range(3) for index in range(2)]
    flood = [by(9, index, round_=round_) for round_ in range(1, 5) for index in range(100)]
    pool = Pool(capacity=20).add(honest)
    for at in range(0, len(flood), 7):
        pool = pool.add(flood[at : at + 7])
    assert len(pool.groups) == 20 and {group.slot for group in honest} < {group.slot for group in pool.groups}
    assert min(group.round for group in pool.groups if group.author == flood[0].author) == 4  # of its own, the newest


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=30), st.data())
def test_what_a_full_pool_keeps_depends_on_the_set_that_was_added(names, data):
    groups = [by(*name) for name in sorted(names)]
    pool, order = Pool(capacity=8), data.draw(st.permutations(groups))
    for group in order:
        pool = pool.add([group])
    assert pool == Pool(capacity=8).add(groups)
    held = collections.Counter(group.author for group in pool.groups)
    lost = {group.author for group in groups} if len(groups) > 8 else set()
    lost = {author for author in lost if sum(g.author == author for g in groups) > held[author]}
    assert all(held[author] >= max(held.values()) - 1 for author in lost)  # who lost one had as many as anybody


def test_a_pool_is_a_value():
    pool = Pool().add([scored(1), scored(2)])
    pool.draw(1, b"x"), pool.add([scored(3)]), pool.expire(9)
    assert pool == Pool().add([scored(2), scored(1)])


def test_expired_rounds_leave():
    pool = Pool().add(scored(name, round_=name) for name in range(6))
    assert [group.round for group in pool.expire(4).groups] == [4, 5]
    assert pool.expire(0) == pool and pool.expire(6).groups == ()


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.lists(st.floats(0, 1), min_size=2, max_size=4)), st.integers(0, 9))
def test_bytes_bring_back_the_same_pool(groups, capacity):
    pool = Pool(capacity=capacity).add(scored(name, rewards, name) for name, rewards in groups.items())
    assert Pool.from_bytes(pool.to_bytes()) == pool
    assert Pool.from_bytes(pool.to_bytes()).to_bytes() == pool.to_bytes()


def test_bytes_keep_a_group_without_logprobs():
    group = msgspec.structs.replace(scored(1), logprobs=None)
    assert Pool.from_bytes(Pool((group,)).to_bytes()).groups == (group,)
