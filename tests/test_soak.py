"""A day of a node's life, its time compressed: real rounds, journal, checkpoints, metrics; no model, and no sockets."""

import gc
import time

import numpy as np
import psutil
import pytest

from rlswarm_jax import disk
from rlswarm_jax.metrics import MetricsLog
from tests.test_node import Live, Wire, play, short_waits  # noqa: F401

ROUNDS, SECONDS = 1200, 72.0  # of a day, and of each


@pytest.mark.slow
def test_after_a_day_nothing_has_grown_but_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.tasks.verifier.QUICK", 256)  # answers that are known: full after the warm-up
    wire, told, true = Wire(), [], time.time
    nodes = [
        Live(tmp_path / str(i), wire, i, named=range(2), stages=3, rounds=ROUNDS, every=20 if i == 0 else 10**6)
        for i in range(2)
    ]
    first, _second = nodes
    log, process = MetricsLog(tmp_path / "0" / "metrics.jsonl"), psutil.Process()
    monkeypatch.setattr(time, "time", lambda: true() + SECONDS * first.player.state.round)

    def on_round(report) -> None:
        log.write({"node": 0, "round": report.round, **report.metrics})
        for node in nodes:  # what the tests themselves keep
            node.reports.clear()
            del node.end.sent[:-6], node.end.asked[:]
        if report.round % 25 == 0:
            gc.collect()
            taken = disk.taken(tmp_path / "0")
            told.append(
                {
                    "rss_mb": process.memory_info().rss / disk.MB,
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                    "disk_mb": (taken["journal"] + taken.get("checkpoints", 0)) / disk.MB,
                }
            )

    first.node._on_round = on_round
    began = true()
    play(*nodes, seconds=900)
    assert time.time() - began > 24 * 3600 - SECONDS * 60
    after = told[len(told) // 2 :]
    for name, room in {"rss_mb": 16.0, "descriptors": 2.0, "threads": 2.0, "disk_mb": 2.0}.items():
        values = np.array([one[name] for one in after])
        slope = np.polyfit(np.arange(len(values)), values, 1)[0]
        assert slope * len(values) < room, f"{name} grew from {values[:3]} to {values[-3:]}"
