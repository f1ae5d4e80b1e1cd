"""What calls cost: as the table says, and below what the original's cost."""

import json
from pathlib import Path

import pytest

from benchmarks import gas

TABLE = Path(__file__).parents[2] / "results" / "gas.json"


@pytest.fixture(scope="module")
def measured():
    return gas.measure()


def test_the_committed_table_is_right_within_two_percent(measured):
    table = json.loads(TABLE.read_text())["gas"]
    assert table.keys() == measured.keys(), "rows differ: python -m benchmarks.gas --write results/gas.json"
    for row, used in measured.items():
        assert used == pytest.approx(table[row], rel=0.02), row


@pytest.mark.parametrize(
    ("row", "most"),
    [
        ("registerKey", 100_000),
        ("registerPeer, proven", 100_000),
        ("reward, first of a round", 95_000),
        ("submitReward, first of a round", 95_000),
        ("vote for one who has none yet", 130_000),
        ("submitWinners, one who has none yet", 130_000),
        ("commit", 60_000),
        ("advanceRound", 60_000),
    ],
)
def test_calls_cost_less_than_the_original_s_with_the_key_checked(measured, row, most):
    assert measured[row] <= most
