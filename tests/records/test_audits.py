"""Who checks whom, and what of theirs."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.records.audits import Case, drawn, place

authors = st.sets(st.binary(min_size=33, max_size=33), min_size=1, max_size=12)


def records_of(authors, each=3):
    return {bytes([n]) + author[1:]: author for author in authors for n in range(each)}


@given(authors, st.binary(max_size=32), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_everybody_checks_as_many_as_check_them_and_never_themselves(nodes, beacon, auditors):
    records = records_of(nodes)
    checked = collections.Counter()
    for node in nodes:
        cases = drawn(node, {h: a for h, a in records.items() if a != node}, beacon, auditors)
        whose = [records[case.record] for case in cases]
        assert len(set(whose)) == len(whose) == min(auditors, len(nodes) - 1) and node not in whose
        checked.update(whose)
    assert all(checked[node] == min(auditors, len(nodes) - 1) for node in nodes)


def test_the_beacon_decides_who_and_what_and_which_group():
    nodes = [bytes([n]) * 33 for n in range(8)]
    records = records_of(nodes[1:], each=5)
    found = {drawn(nodes[0], records, bytes([n]), 1)[0].record for n in range(99)}
    assert {records[record] for record in found} == set(nodes[1:])  # anybody of the others
    assert len(found) > 20  # any of their records
    counts = collections.Counter(place(Case(record, beacon=b"b"), 4) for record in records)
    assert set(counts) == set(range(4))


def test_who_knows_one_author_less_checks_the_one_before_that():
    nodes = [bytes([n]) * 33 for n in range(5)]
    (case,) = drawn(nodes[0], {h: a for h, a in records_of(nodes[1:]).items()}, b"b", 1)
    checked = next(a for h, a in records_of(nodes[1:]).items() if h == case.record)
    rest = {h: a for h, a in records_of(nodes[1:]).items() if a != checked}
    both = drawn(nodes[0], records_of(nodes[1:]), b"b", 2)
    assert drawn(nodes[0], rest, b"b", 1)[0] == both[1]
    assert drawn(nodes[0], {}, b"b", 1) == []
