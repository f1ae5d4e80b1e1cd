"""The records under a commitment are found by its root alone."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.audit import commit
from rlswarm_jax.audit.cover import TRIES, Cover, cover, roots
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
@given(st.integers(1, 8), st.dictionaries(st.integers(0, 7), st.sampled_from(STAGES[1:])), st.data())
def test_rounds_in_a_row_are_found_whole_or_not(count, unfinished, data):
    here = [s for s in said(count) if s.record.stage < unfinished.get(s.record.round, "z")]
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start + 1, count))
    chosen = [s for s in here if s.record.round in range(start, end)]
    before = [s for s in here if s.record.round < start]
    found = cover(here, root_of(chosen))
    assert found == Cover(chosen, before) and not found.holes


@pytest.mark.parametrize("gone", range(9))
def test_a_record_left_out_of_its_round_is_found_too(gone):
    records = said(3)
    assert cover(records, root_of(records[:gone] + records[gone + 1 :])).holes == [records[gone]]


def test_a_round_left_out_between_others_is_found_too():
    records = said(5)
    chosen = records[3:6] + records[9:]
    found = cover(records, root_of(chosen))
    assert found == Cover(chosen, [*records[:3], *records[6:9]]) and found.holes == records[6:9]


def test_other_choices_and_orders_have_no_cover():
    records = said(4)
    others = ([records[1], records[0]], records[::-1], [*records[:3], *records[:3]], [one(9, "answer")])
    assert all(cover(records, root_of(chosen)) is None for chosen in others)
    assert cover([], bytes(32)) is None


def test_the_search_is_bounded_and_finds_a_long_commitment_at_once(monkeypatch):
    records = said(400)
    assert len(cover(records, root_of(records)).records) == 1200
    tried = itertools.count()
    node = "rlswarm_jax.audit.cover.roots"
    monkeypatch.setattr(node, lambda hashes: (bytes([next(tried) % 2]) for _ in hashes))
    assert cover(records, random.Random(0).randbytes(32)) is None
    assert next(tried) <= len(records) * (400 + 1) // 2 + TRIES + 3 * len(records)
