"""The records under a commitment are found by its root alone."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.audit import commit
from rlswarm_jax.audit.cover import TRIES, Cover, Undecided, cover, roots
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import STAGES
from tests.records.samples import ALICE, record


def said(rounds: int, stages=STAGES) -> list[SignedRecord]:
    """Unsigned, which is nothing to a root."""
    return [one(round_, stage) for round_ in range(rounds) for stage in stages]


def one(round_: int, stage: str) -> SignedRecord:
    return SignedRecord(b"", f"{round_} {stage}".encode().ljust(32), record(ALICE, round=round_, stage=stage))


def root_of(records) -> bytes:
    return commit.root([signed.hash for signed in records])


@given(st.integers(1, 130))
def test_the_roots_of_all_prefixes_are_those_of_the_recursive_definition(count):
    hashes = [bytes([i % 256, i // 256]) * 16 for i in range(count)]
    assert list(roots(hashes)) == [commit.root(hashes[:end]) for end in range(1, count + 1)]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.data())
def test_some_rounds_in_a_row_are_found_without_those_that_were_left(count, data):
    records = said(count)
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start + 1, count))
    unfinished = data.draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from(STAGES[1:])))
    left = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
    here = [s for s in records if s.record.stage < unfinished.get(s.record.round, "z")]
    chosen = [s for s in here if s.record.round in range(start, end) and s.record.round not in {*left, *unfinished}]
    if chosen:
        found = cover(here, root_of(chosen), len(STAGES))
        assert [s.hash for s in found.records] == [s.hash for s in chosen] and not found.torn
        last = chosen[-1].record.round
        assert [s.hash for s in found.left_out] == [s.hash for s in here if s.record.round <= last and s not in chosen]


def test_rounds_that_were_left_and_rounds_that_were_not_finished_may_both_be_between():
    here = [signed for signed in said(9) if (signed.record.round, signed.record.stage) != (2, "revise")]
    for left in ({4, 6}, {4}):
        chosen = [signed for signed in here if signed.record.round not in {2, *left}]
        assert cover(here, root_of(chosen), len(STAGES)) == Cover(chosen, [s for s in here if s not in chosen])


def test_a_slow_node_may_have_left_many_rounds_each_time_it_went_to_where_the_others_were():
    """In a game of one stage each of them looks whole; but after each it jumped, as it did after some it finished."""
    here = [one(round_, "answer") for round_ in range(18) if round_ % 3 != 2]
    chosen = [signed for signed in here if signed.record.round not in (1, 4, 7, 13)]
    assert cover(here, root_of(chosen), 1).records == chosen
    others = [signed for signed in here if signed.record.round not in (0, 3, 6, 9)]  # after these it did not jump
    assert cover(here, root_of(others), 1) is None


@pytest.mark.parametrize("gone", range(9))
def test_a_record_left_out_of_its_round_is_found_too(gone):
    records = said(3)
    found = cover(records, root_of(records[:gone] + records[gone + 1 :]), len(STAGES))
    assert found.torn == [records[gone]]


def test_other_choices_and_orders_have_no_cover():
    records = said(4)
    others = ([records[1], records[0]], records[::-1], [*records[:3], *records[:3]], [one(9, "answer")])
    assert all(cover(records, root_of(chosen), len(STAGES)) is None for chosen in others)
    assert cover([], bytes(32), len(STAGES)) is None


def test_the_search_is_bounded_and_finds_a_long_commitment_at_once(monkeypatch):
    records = said(400)
    assert len(cover(records, root_of(records), len(STAGES)).records) == 1200
    tried = itertools.count()
    node = "rlswarm_jax.audit.cover.roots"
    monkeypatch.setattr(node, lambda hashes: (bytes([next(tried) % 2]) for _ in hashes))
    with pytest.raises(Undecided):
        cover(records, random.Random(0).randbytes(32), len(STAGES))
    assert next(tried) <= TRIES + len(records)
