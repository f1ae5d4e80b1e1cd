"""When a stage ends, and whom it waited for."""

import collections
import functools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.identity import simulated
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.simulated_node import Timing
from rlswarm_jax.swarm import waiting
from rlswarm_jax.swarm.waiting import Company, quorum_time, read_by, stage_end, still_to_speak
from tests.game.hand_driver import half_right, make_game, signed
from tests.game.hand_driver import record_of as honest_record
from tests.records.samples import ALICE, BOB, CAROL, ME, sealed
from tests.table_swarm import simulation

A, B, C = (simulated(31, index).author for index in range(3))


@pytest.mark.parametrize("peers", range(1, 30))
def test_a_quorum_is_two_thirds_of_all_and_never_needs_everybody(peers):
    exact = -(-Fraction(2 * (peers + 1), 3) // 1)  # rounded up, oneself included
    for spoken in range(peers + 1):
        reached = math.isfinite(quorum_time(1.0, [2.0] * spoken, peers))
        assert reached == (spoken + 1 >= min(exact, peers)), (peers, spoken)


TIMES = st.lists(st.floats(0, 100), max_size=12)


@given(st.floats(0, 100), TIMES, st.integers(0, 12), st.floats(0.1, 1000))
def test_no_stage_outlasts_its_deadline_or_ends_before_its_quorum(own, spoken, silent, deadline):
    end = stage_end(own, spoken, len(spoken) + silent, deadline)
    quorum = quorum_time(own, spoken, len(spoken) + silent)
    assert end <= own + deadline and end >= min(quorum, own + deadline)
    assert stage_end(own, spoken, len(spoken) + silent, 0.0) == math.inf


@given(st.floats(0, 10), st.lists(st.floats(0, 10), min_size=2, max_size=9), st.floats(20, 1000))
def test_what_is_said_after_the_quorum_moves_nothing(own, spoken, late):
    """Of so many that one more is a minority."""
    before, after = (stage_end(own, times, len(spoken) + 1, 1e6) for times in (spoken, [*spoken, late]))
    assert before == after < math.inf


def test_the_grace_is_twice_the_median_of_the_quorum_s_own_times():
    assert stage_end(3.0, [5.0, 7.0], 3, 60.0) == 7.0 + 2 * 5.0
    assert stage_end(3.0, [5.0, 7.0], 3, 6.0) == 9.0  # the deadline, from when this node had spoken
    assert stage_end(0.01, [0.02, 0.03], 3, 60.0) == pytest.approx(0.03 + waiting.LEAST_GRACE)


def test_one_peer_alone_is_waited_for_three_times_as_long_as_the_own_work_took():
    assert stage_end(4.0, [], 1, 600.0) == 12.0


# --- who is read

MANY = [simulated(31, index).author for index in range(40)]


@given(st.integers(2, 40), st.integers(1, 40), st.binary(max_size=32), st.integers(0, 9))
def test_those_who_are_read_are_bounded_read_each_other_and_share_all_out(count, reads, beacon, round_):
    authors = MANY[:count]
    read = {one: read_by(one, authors, reads, beacon, round_) for one in authors}
    sizes = [len(others) for others in read.values()]
    assert max(sizes) <= reads and max(sizes) - min(sizes) <= 1  # parts of equal size
    assert max(sizes) >= min(reads, count - 1) // 2  # and no more of them than it takes
    for one, others in read.items():
        assert one not in others and others <= set(authors)
        assert all(read[other] == (others | {one}) - {other} for other in others)
    assert read_by(authors[0], reversed(authors[1:]), reads, beacon, round_) == read[authors[0]]  # a set, not an order


def test_whom_one_reads_is_drawn_anew_by_round_and_beacon_and_evenly():
    met = collections.Counter(a for round_ in range(390) for a in read_by(MANY[0], MANY, 4, b"b", round_))
    assert met.keys() == set(MANY[1:])
    expected = 390 * 4 / 39
    assert sum((n - expected) ** 2 / expected for n in met.values()) < 70  # 99.9 % of chi squared, 39 degrees
    assert read_by(MANY[0], MANY, 4, b"b", 0) != read_by(MANY[0], MANY, 4, b"c", 0)
    assert read_by(MANY[0], MANY[1:], 0, b"b", 0) == set(MANY[1:])  # 0: all


def test_who_does_not_know_an_author_still_reads_most_of_those_that_the_others_do():
    same = [len(read_by(MANY[0], MANY[1:], 7, b"b", r) & read_by(MANY[0], MANY[1:-1], 7, b"b", r)) for r in range(50)]
    assert sum(same) > 0.8 * 50 * 7 * 39 / 40


# --- standing


def kept(company: Company, author: bytes, rounds) -> bool:
    awaited = False
    for round_ in rounds:
        awaited = company.spoke(author, round_, round_)
    return awaited


def test_a_stranger_earns_being_waited_for_in_three_rounds_and_those_told_of_at_once():
    company = Company([B])
    assert [company.spoke(A, round_, round_) for round_ in range(4)] == [False, False, True, True]
    assert company.spoke(B, 0, 0)


def test_many_records_in_one_round_earn_no_more_than_one():
    company = Company([])
    assert not any(company.spoke(A, far, 5) for far in range(5, 500))
    assert not company.earned(A)


def test_who_has_been_there_half_as_long_as_the_longest_is_of_standing():
    company = Company([C])
    for author, rounds in ((A, 100), (B, 49)):
        kept(company, author, range(rounds))
    assert company.seasoned([A, B, C]) == {A, C}
    assert company.seasoned([A, B], at_most=waiting.VOTING) == {A, B}
    company.spoke(B, 49, 49)
    assert company.seasoned([A, B, C]) == {A, B, C}


def test_being_late_costs_standing_and_a_strike_fades():
    company = Company([])
    kept(company, A, range(10))
    company.late([A])
    company.late([A])
    assert [company.spoke(A, r, r) for r in (10, 11)] == [False, True]
    assert kept(company, A, range(12, 12 + 2 * waiting.FADE))
    company.late([A])
    assert company.spoke(A, 100, 100)  # owes one again, not three


def test_who_draws_out_stage_after_stage_is_late_though_it_speaks_before_they_end():
    company = Company([])
    for author in (A, B):
        kept(company, author, range(3))
    found = [company.heard({A: 1.1, B: 2.6}, 1.0) for _ in range(4)]
    assert found == [set(), set(), set(), {B}]
    assert company.earned(A) and not company.earned(B)


def test_one_that_is_late_now_and_then_is_not():
    company = Company([A])
    stages = [{A: 2.9}, *[{A: 1.0}] * 4] * 50
    assert not any(company.heard(times, 1.0) for times in stages)


def test_the_table_of_standings_is_bounded_and_keeps_those_of_standing(monkeypatch):
    monkeypatch.setattr(waiting, "MAX_STANDINGS", 8)
    company = Company([])
    kept(company, A, range(5))
    for index in range(100):
        company.spoke(simulated(33, index).author, 5, 5)
    assert company.earned(A) and len(company.standings) <= 8


# --- the same in the simulator


def simulate(tmp_path, timing: Timing, nodes: int = 4, rounds: int = 8, inject=(), **network):
    reports, path = [], tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"
    game = functools.partial(make_game, rounds=rounds, evaluate_every=1000, max_staleness=4)
    made = simulation(path, timing, nodes, game=game, reports=reports, network=network)
    for at, raw in inject:
        made.inject(raw, 0, at)
    made.run()
    assert made.finished
    return reports


def ends(reports, node: int = 0) -> list[float]:
    return [report.at for report in reports if report.node == node]


def test_a_simulated_swarm_does_not_take_the_pace_of_one_that_speaks_at_the_last_moment(tmp_path):
    calm = ends(simulate(tmp_path, Timing(deadline=60.0)))[-1]
    for share in (0.99, 0.5, 0.1):
        late = simulate(tmp_path, Timing(deadline=60.0, slowdown=(1.0, 1.0, 1.0, 60 * share)))
        assert ends(late)[-1] <= 1.35 * calm, share


@pytest.mark.parametrize(("slowdown", "in_time"), [(1.5, True), (3.0, False)])
def test_a_slower_node_is_waited_for_or_heard_a_round_later(tmp_path, slowdown, in_time):
    reports = simulate(tmp_path, Timing(deadline=60.0, slowdown=(1.0, 1.0, 1.0, slowdown)), rounds=24)
    slow = simulated(11, 3).author.hex()
    heard = [r.metrics.get(f"received_from/{slow}", 0.0) for r in reports if r.node == 0]
    taught = sum(r.metrics.get(f"learned_from/{slow}", 0.0) for r in reports if r.node == 0)
    assert taught > 0 and (heard == [1.0] * 24) == in_time


def test_a_simulated_stage_waits_for_all_where_there_is_no_deadline(tmp_path):
    reports = simulate(tmp_path, Timing(deadline=0.0, slowdown=(1.0, 1.0, 1.0, 30.0)), rounds=2)
    assert all(report.metrics["records/received"] == 3.0 for report in reports)


def test_what_strangers_say_ends_no_simulated_stage(tmp_path):
    stranger = simulated(99, 0)
    raws = [signed(honest_record(stranger, round_, half_right), stranger).raw for round_ in range(8)]
    calm = simulate(tmp_path, Timing())
    told = simulate(tmp_path, Timing(), inject=[(0.01, raw) for raw in raws])
    assert ends(calm) == ends(told)


def test_one_that_is_further_is_not_waited_for():
    """Its record of this round was lost; it will not say it again."""
    box = Inbox("tests", ME.author, 2, STAGES)
    for who, round_, stage in ((ALICE, 4, "answer"), (BOB, 3, "answer")):
        box.offer(sealed(who, round=round_, stage=stage), 3)
    awaited = [ALICE.author, BOB.author, CAROL.author]
    assert still_to_speak(awaited, box, 3, "answer") == {CAROL.author}
    assert still_to_speak(awaited, box, 3, "critique") == {BOB.author, CAROL.author}
