"""The benchmark of patches runs, in small, and prints what the renderer reads."""

import msgspec
import pytest

from benchmarks import patches
from rlswarm_jax.reporting import figures


@pytest.mark.slow
def test_patches_are_measured_by_rate_and_dtype(monkeypatch):
    small = {"BEFORE": 2, "UPDATES": 1, "RATES": (1e-6, 1e-3), "SECONDS": 0, "COPIES": 1}
    for name, value in small.items():
        monkeypatch.setattr(patches, name, value)
    found = [*patches.policies()]
    rows = [patches.row(dtype, rate, versions) for dtype in patches.DTYPES for rate, versions in found]
    little, much, *_ = rows[2:]
    assert 0 < little["measured"]["changed"] < much["measured"]["changed"] < 100
    assert 0 < little["value"] < much["value"] < rows[1]["value"] == 100
    table = figures.patches_block(msgspec.convert(rows, list[figures.Benchmark])).table
    assert [row[:2] for row in table[1:3]] == [["float32", "1e-6"], ["float32", "1e-3"]]
    assert table[2][3] == "whole"
