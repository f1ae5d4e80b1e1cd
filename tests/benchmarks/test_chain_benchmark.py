"""The chain benchmark runs, in small, and prints what the renderer reads."""

import msgspec
import pytest

from benchmarks import chain
from rlswarm_jax.reporting import figures


@pytest.mark.slow
def test_both_networks_are_measured_at_both_lengths(monkeypatch):
    small = {"CLIENTS": (1, 2), "BLOCKS": (3, 12), "TRANSACTIONS": 6, "CALLS": 3, "POLLING": 4, "SECONDS": 1}
    for name, value in small.items():
        monkeypatch.setattr(chain, name, value)
    rows = [row | {"hardware": "any"} for row in chain.rows()]
    found = msgspec.convert(rows, list[figures.Benchmark])
    sent = [b for b in found if b.config["measure"] == "transactions"]
    assert {(b.config["clients"], b.config["blocks"]) for b in sent} == {(1, 3), (2, 3), (1, 12), (2, 12)}
    assert all(b.value > 0 for b in sent)
    assert sum(b.config["measure"] == "eth_call" for b in found) == 2 and found[-1].config["measure"] == "polling"
