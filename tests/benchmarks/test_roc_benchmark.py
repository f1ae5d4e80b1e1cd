"""The benchmark of lies runs, in small, and prints what the renderer reads."""

import msgspec
import numpy as np
import pytest

from benchmarks import replay, roc
from rlswarm_jax.audit.statistics import judge
from rlswarm_jax.qwen.verdict import Replay, Rounding
from rlswarm_jax.reporting import figures


@pytest.mark.slow
def test_lies_are_told_and_found_and_honesty_is_not(monkeypatch):
    monkeypatch.setattr(replay, "PROBLEMS", 8)
    for name, value in {"PROBLEMS": 8, "SIZES": (32, 128), "CACHES": {"float32": ["float32"]}}.items():
        monkeypatch.setattr(roc, name, value)
    monkeypatch.setattr(roc, "SHAPES", {"at once": {}})
    bench = replay.Bench()
    of = roc.Audits(bench, bench.learn(1), 2.0, "float32")
    found = msgspec.convert([*roc.lie_rows(of), *roc.honest_rows(of)], list[figures.Benchmark])
    detected = {b.config["lie"]: b.value for b in found if b.benchmark == "detected" and b.config["tokens"] == 128}
    assert detected["key of another index"] == detected["lengthened"] == 100 and len(detected) == 11
    honest = [b for b in found if b.benchmark == "honest"]
    assert honest and all(b.value == 0 and b.measured["allowance_share"] < 1 for b in honest)
    block = figures.roc_block(found)
    assert {len(row) for row in block.table} == {6} and "0 of " in block.note and "(computed " in block.note


def test_an_audit_has_exactly_so_many_tokens_and_none_is_in_two():
    rng = np.random.default_rng(0)
    replays = [
        Replay(np.full(n, -i, np.float32), rng.random((n, 2)), np.zeros(n), Rounding(1.0, 0.1))
        for i, n in enumerate(rng.integers(1, 12, 40))
    ]
    found = roc.audits(replays, 16)
    assert found and {judge(audit).tokens for audit in found} == {16}
    used = [int(-replay.logprobs_T[0]) for audit in found for replay in audit]
    assert used == sorted(set(used))


def test_eight_bits_are_at_most_255_steps_a_column():
    w = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    rounded = roc.in_8_bits(w)
    assert all(len(np.unique(column)) <= 255 for column in rounded.T)
    assert np.abs(rounded - w).max() <= np.abs(w).max() / 254 * 1.001
