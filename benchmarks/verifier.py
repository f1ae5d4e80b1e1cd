"""What it costs to score an answer in a worker process, and what a second worker gains.

    python -m benchmarks.verifier        fifteen seconds on two CPU cores, which must have nothing else to do

Prints one JSON line a row. Trivial scorers show the overhead of an item: microseconds over those of calling the task
in place (`versus`). Scorers that compute for 5 ms, as checking a formula does, show what two workers gain over one.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from typing import Any

from rlswarm_jax.machine import hardware
from rlswarm_jax.tasks import Mixture, Problem, make_mixture
from rlswarm_jax.tasks.verifier import Item, Verifier

REPEATS = 5


class Computing:
    """A task whose scorer computes for `milliseconds` of processor time; option `quick`: to be called in place."""

    def __init__(self, name: str, options: dict[str, Any]):
        self.name, self.fingerprint = name, repr(sorted(options.items()))
        self.seconds = 0.0 if options["quick"] else 10.0
        self._end = options["milliseconds"] / 1000

    def problem(self, seed: int, split="train") -> Problem:
        return Problem(self.name, seed, "?", "?", ("1",), split)

    def score(self, problem: Problem, answer_text: str) -> float:
        end = time.process_time() + self._end
        while self._end and time.process_time() < end:
            pass
        return float(answer_text in problem.answers)

    def canonical(self, answer_text: str) -> str:
        return answer_text


def seconds(count: int, milliseconds: float, workers: int) -> float:
    """Median wall time of scoring `count` new items; workers: 0 for in place."""
    kind = f"{__spec__.name}:Computing"  # not __main__, which is another module in a worker
    tasks = {"computing": {"kind": kind, "milliseconds": milliseconds, "quick": not workers}}
    mixture: Mixture = make_mixture(tasks)
    times = []
    with Verifier(tasks, mixture, max(workers, 1)) as verifier:
        for repeat in range(REPEATS + 1):  # the first starts the workers
            items: list[Item] = [(mixture.problem(seed), f"{repeat}") for seed in range(count)]
            started = time.perf_counter()
            scored = verifier.score(items)
            times.append(time.perf_counter() - started)
            assert scored.scores == [float(repeat == 1)] * count and not scored.failures
    return statistics.median(times[1:])


def rows() -> Iterator[dict[str, Any]]:
    def row(name: str, count: int, milliseconds: float, workers: int, value: float, unit: str, **compared: Any):
        config = {"items": count, "milliseconds": milliseconds, "workers": workers, "cores": os.cpu_count()}
        return {"benchmark": f"verifier: {name}", "config": config, "value": value, "unit": unit, **compared}

    none: dict[str, Any] = {"versus": None, "ratio": None}
    count = 5_000
    in_place = seconds(count, 0, 0)
    yield row("trivial scorers, in place", count, 0, 0, round(count / in_place), "items/s", **none)
    for workers in (1, 2):
        taken = seconds(count, 0, workers)
        compared = {"versus": "in place", "ratio": round(in_place / taken, 4)}
        yield row("trivial scorers", count, 0, workers, round(count / taken), "items/s", **compared)
        overhead = (taken - in_place) / count * 1e6
        yield row("overhead of an item", count, 0, workers, round(overhead, 1), "us", **none)
    count = 400
    one, two = seconds(count, 5, 1), seconds(count, 5, 2)
    yield row("5 ms scorers", count, 5, 1, round(count / one, 1), "items/s", **none)
    compared = {"versus": "1 worker", "ratio": round(one / two, 2)}
    yield row("5 ms scorers", count, 5, 2, round(count / two, 1), "items/s", **compared)


def main() -> None:
    versions = {"python": platform.python_version(), "msgspec": importlib.metadata.version("msgspec")}
    for row in rows():
        print(json.dumps(row | {"hardware": hardware(), "versions": versions}), flush=True)


if __name__ == "__main__":
    main()
