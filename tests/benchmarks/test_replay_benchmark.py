"""The replay benchmark runs, in small, and prints what the renderer reads."""

import msgspec

from benchmarks import replay
from rlswarm_jax.reporting import figures


def test_honest_computations_are_measured_and_cheats_exposed(monkeypatch):
    for name, value in {"PROBLEMS": 8, "UPDATES": 1, "LATER": 2, "ROWS": 16, "DTYPES": replay.DTYPES[:1]}.items():
        monkeypatch.setattr(replay, name, value)
    bench = replay.Bench()
    params = bench.learn(replay.UPDATES)
    rows = [*replay.honest_rows(bench, params), *replay.exposed_rows(bench, params, ["float32"])]
    found = msgspec.convert(rows, list[figures.Benchmark])
    exposing = {b.config["wrong"]: b.config["exposing"] for b in found if b.benchmark == "tokens to expose"}
    assert exposing["nothing"] == 0 < exposing["key"]
    assert "key" in {row[0] for row in figures.replay_block(found).table}
