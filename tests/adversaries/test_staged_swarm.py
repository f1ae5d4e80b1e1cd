"""A simulated swarm that plays three stages, one of whose nodes contradicts itself."""

import functools
import itertools

import pytest

from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.records.trust import FIRST
from rlswarm_jax.simulated_node import Timing
from tests.game.hand_driver import three_stages
from tests.table_swarm import simulation

NODES, ROUNDS, LIAR, GONE = 4, 6, 2, 3
GAME = functools.partial(three_stages, rounds=ROUNDS, evaluate_every=1000, external_groups=4, max_staleness=3)
OWN = {LIAR: {"strategy": STRATEGIES["equivocate"]}}
NETWORK = {"jitter": 0.4}


def play(path, own=OWN, timing=None, **options):
    reports: list = []
    timing = timing or Timing(deadline=20.0)
    made = simulation(path, timing, NODES, game=GAME, own=own, reports=reports, network=NETWORK, **options)
    return made, reports


def total(reports, node: int, name: str) -> float:
    return sum(report.metrics.get(name, 0.0) for report in reports if report.node == node)


def test_who_contradicts_itself_is_distrusted_by_all_within_a_round_and_spoils_nothing_after_that(tmp_path):
    made, reports = play(tmp_path / "journal.sqlite")
    made.run()
    liar = made.nodes[LIAR].game.author
    for node in {*range(NODES)} - {LIAR}:
        offenders = made.nodes[node].state.trust.offenders
        assert offenders.keys() == {liar} and offenders[liar].until >= FIRST
        of_node = [report.metrics for report in reports if report.node == node]
        assert of_node[0]["audit/equivocators"] == 1 and all(m["audit/distrusted"] == 1 for m in of_node)
        assert total(reports, node, f"learned_from/{liar.hex()}") == 0 < total(reports, node, "groups/external")
        assert not any(m.get("groups/unused/unknown parent") for m in of_node[1:])
    assert made.nodes[LIAR].state.trust.offenders == {}  # nobody else says two things


def test_nobody_is_accused_where_nobody_contradicts_itself_even_if_one_is_killed_and_comes_back(tmp_path):
    timing = Timing(deadline=20.0, present={GONE: ((0, 2), (4, 10**6))})
    made, reports = play(tmp_path / "journal.sqlite", own={}, timing=timing)
    made.run()
    assert all(node.state.trust.offenders == {} for node in made.nodes)
    assert total(reports, 0, "records/rejected/duplicate") > 0  # it says again what it had said


@pytest.mark.parametrize("events", [17, 52])
def test_a_simulation_that_goes_on_from_a_kill_ends_with_the_same_trust(tmp_path, events):
    whole, reports = play(tmp_path / "whole.sqlite", checkpoints=Checkpoints(tmp_path / "none"), checkpoint_every=1)
    whole.run()
    stopped, first = play(tmp_path / "journal.sqlite", checkpoints=Checkpoints(tmp_path / "kept"), checkpoint_every=1)
    countdown = itertools.count(events, -1)
    stopped.run(lambda: next(countdown) == 0)
    assert not stopped.finished
    stopped.save()
    resumed, rest = play(
        tmp_path / "journal.sqlite",
        checkpoints=Checkpoints(tmp_path / "kept"),
        checkpoint_every=1,
        metrics_offset=lambda: len(first),
    )
    resumed.restore()
    resumed.run()
    for node in range(NODES):
        assert resumed.nodes[node].state.trust == whole.nodes[node].state.trust
        ended, other = ([r.metrics for r in of if r.node == node][-1] for of in (rest, reports))
        assert ended == other
