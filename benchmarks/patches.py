"""How much of the weights a step changes, and what it costs to keep that and to make it again, by learning rate.

    python -m benchmarks.patches > results/benchmarks/patches.jsonl          90 CPU seconds

The embedded model's first updates of the quickstart give Adam its moments; from there the same number of updates is
made at each rate, by the real learner on real groups in float32. bfloat16 is what would be sampled with: each policy
cast. A row's value is the size of a patch over that of the weights, where a patch that saves too little is whole.

measured: *changed*, % of the entries that are not as they were before the update. *hash*, *encode* and *apply*, CPU ms
of the name of weights, of a patch (with both names known) and of applying it (checked by its name). The same of *0.5B*,
in CPU s: of copies of the same tensors, 13 million entries, and multiplied up.
"""

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import pairwise
from statistics import fmean
from typing import Any

import jax
import ml_dtypes
import numpy as np

from benchmarks.replay import Bench
from rlswarm_jax import qwen
from rlswarm_jax.audit import patches
from rlswarm_jax.machine import hardware

BEFORE, UPDATES = 25, 6  # that give Adam its moments, and that are measured
RATES = (1e-6, 3e-6, 1e-5, 1e-4, 3e-4, 1e-3)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
SECONDS = 0.3  # of processor time for each measurement
COPIES, HALF_B = 128, 494_032_768  # of the tensors side by side; entries of Qwen2.5-0.5B


def policies() -> Iterator[tuple[float, list[qwen.Tensors]]]:
    """Of each rate the float32 weights before and after each update."""
    bench = Bench()
    bench.learn(BEFORE)
    engine, played = bench.made.engine, bench.rounds_played
    state, config = jax.device_get(engine.state(0)), engine._learner_config
    for rate in RATES:
        engine.set_states([state])
        engine._learner_config = dataclasses.replace(config, learning_rate=rate)  # no program depends on it
        bench.rounds_played = played
        params = [bench.learn(BEFORE + more) for more in range(UPDATES + 1)]
        yield rate, [qwen.to_tensors(one, bench.config, "float32") for one in params]


def cpu_seconds(run: Callable[[], Any]) -> float:
    run()
    start, times = time.process_time(), 0
    while not times or time.process_time() - start < SECONDS:
        run()
        times += 1
    return (time.process_time() - start) / times


def costs(old: qwen.Tensors, new: qwen.Tensors) -> dict[str, float]:
    """In CPU seconds."""
    weights, parent = qwen.tensors_hash(new), qwen.tensors_hash(old)
    patch = patches.encode(new, old, weights=weights, parent=parent)
    return {
        "hash": cpu_seconds(lambda: qwen.tensors_hash(new)),
        "encode": cpu_seconds(lambda: patches.encode(new, old, weights=weights, parent=parent)),
        "apply": cpu_seconds(lambda: patches.apply(patch, old, parent=parent)),
    }


def row(dtype: str, rate: float, versions: list[qwen.Tensors]) -> dict[str, Any]:
    cast = [{name: array.astype(DTYPES[dtype]) for name, array in one.items()} for one in versions]
    steps, entries = [*pairwise(cast)], sum(array.size for array in cast[0].values())
    changed = [sum(int((new[name] != old[name]).sum()) for name in new) for old, new in steps]
    sizes = [len(patches.encode(new, old)) for old, new in steps]
    many = [{name: np.tile(array.reshape(-1), COPIES) for name, array in one.items()} for one in cast[-2:]]
    measured = {"changed": 100 * fmean(changed) / entries}
    measured |= {name: 1000 * seconds for name, seconds in costs(*cast[-2:]).items()}
    measured |= {f"{name} 0.5B": seconds * HALF_B / entries / COPIES for name, seconds in costs(*many).items()}
    return {
        "benchmark": "patch",
        "config": {"dtype": dtype, "rate": rate, "updates": len(steps)},
        "value": rounded(100 * fmean(sizes) / sum(array.nbytes for array in cast[0].values())),
        "unit": "% of the whole",
        "measured": {name: rounded(value) for name, value in measured.items()},
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "jax": metadata.version("jax")},
    }


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    found = [*policies()]
    for dtype in DTYPES:
        for rate, versions in found:
            print(json.dumps(row(dtype, rate, versions)), flush=True)


if __name__ == "__main__":
    main()
