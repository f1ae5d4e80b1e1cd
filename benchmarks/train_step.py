"""How fast a GRPO train step on the embedded model is, and the matmul trick that it owes some of that to.

    python -m benchmarks.train_step                  # all cores, 20 to 60 seconds
    taskset -c 0 python -m benchmarks.train_step     # one

Prints one JSON line a row. What is compared is measured in turns and the medians are taken. Each row comes by the
wall clock and by the process clock, which adds up the threads' time and stands a busy machine better.

The train step's tokens are those of the batch, prompts and padding included. `ratio` is its share of the rate that a
large float32 matmul reaches here, counting the floating-point operations of the model's matmuls alone. A weight
gradient's `ratio` is how many times as long it takes if x keeps its three axes (rlswarm_jax/qwen/model.py flattens).

The live batch has as many rows, of such lengths, as a quickstart's node learns from in a round (docs/design.md). It is
learned from in tiles, and beside it padded, as 60 rows of 108 tokens; `text` is the share of slots that are text, and
`ratio` the time in tiles over that time.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlswarm_jax import assets, qwen
from rlswarm_jax.grpo import learner, tiles
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen import model

PROMPT, NEW_TOKENS = 16, 12  # tokens of a row, as in the quickstart
LONGEST = 108  # tokens of the longest row that the quickstart has room for
SIDE = 2048  # of the large matmul
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
Times = dict[str, float]  # seconds by each clock


def train_step_rows() -> Iterator[dict[str, Any]]:
    policy = qwen.load(assets.SPOILED)
    config = learner.LearnerConfig(learning_rate=1e-3, clip_low=0.2, clip_high=0.28, dual_clip=3.0, temperature=1.0)
    step = again_and_again(learner.Learner(config, policy.config), policy.params)
    square = jnp.asarray(np.random.default_rng(0).standard_normal((SIDE, SIDE)), jnp.float32)
    matmul = jax.jit(partial(jnp.matmul, precision="highest"))
    batches = {rows: make_batch(rows, policy.config.vocab_size) for rows in (64, 256)}
    runs: dict[Any, Callable[[], Any]] = {rows: partial(step, batch) for rows, batch in batches.items()}
    times = in_turns(runs | {"matmul": partial(matmul, square, square)}, turns=15)
    for clock in CLOCKS:
        best = 2 * SIDE**3 / times["matmul"][clock]
        yield row("matmul", {"side": SIDE, "clock": clock}, best / 1e9, "GFLOP/s")
        for rows in batches:
            about = {"model": "embedded", "rows": rows, "tokens_per_row": PROMPT + NEW_TOKENS, "clock": clock}
            seconds = times[rows][clock]
            rate = step_flops(policy.config, rows) / seconds
            yield row("train step", about, rows * (PROMPT + NEW_TOKENS) / seconds, "tokens/s")
            yield row("train step", about, rate / 1e9, "GFLOP/s", "matmul", rate / best)


def live_batch_rows() -> Iterator[dict[str, Any]]:
    policy, rng = qwen.load(assets.SPOILED), np.random.default_rng(0)
    config = learner.LearnerConfig(
        learning_rate=1e-3, clip_low=0.2, clip_high=0.28, dual_clip=3.0, temperature=1.0, external_min_prob=1e-4
    )
    rows = []
    for length in (*rng.integers(12, 29, 26), *rng.integers(30, 100, 6)):
        prompt, completion = (rng.integers(2, 97, n).tolist() for n in (length - 6, 6))
        rows.append(tiles.Row(prompt, completion, float(rng.choice([-1.0, 1.0])), [-1.0] * 6, bool(rng.random() < 0.6)))
    sides = {
        "tiles": tiles.tiles(rows, tiles.shapes(LONGEST, NEW_TOKENS)),
        "padded": [tiles.tile(rows, tiles.Shape(60, LONGEST, NEW_TOKENS))],
    }
    step = again_and_again(learner.Learner(config, policy.config), policy.params)
    times = in_turns({name: partial(step, parts) for name, parts in sides.items()}, turns=15)
    for clock in CLOCKS:
        for name, parts in sides.items():
            slots = sum(part.tokens_BT.size for part in parts)
            text = sum(len(one.prompt) + len(one.completion) for one in rows) / slots
            about = {"model": "embedded", "as": name, "tiles": len(parts), "text": round(text, 2), "clock": clock}
            seconds = times[name][clock]
            versus = ("padded", seconds / times["padded"][clock]) if name == "tiles" else (None, None)
            yield row("live batch", about, 1e3 * seconds, "ms", *versus)


def again_and_again(learns: learner.Learner, params: qwen.Params) -> Callable[[Any], learner.Metrics]:
    """Steps from where the last one went."""
    state = learns.init(params)

    def step(parts: Any) -> learner.Metrics:
        nonlocal state
        state, metrics = learns.step(state, parts, 1e-3)
        return metrics

    return step


def weight_gradient_rows() -> Iterator[dict[str, Any]]:
    """Of the embedded model's MLP at both batch sizes, and of a wider one."""
    for rows, tokens, d, f in ((64, 28, 64, 192), (256, 28, 64, 192), (16, 128, 256, 1024)):
        rng = np.random.default_rng(0)
        shapes = ((rows, tokens, d), (rows, tokens, f), (d, f))
        x_BTD, y_BTF, w_DF = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

        def gradient(product, x, y, w):
            return jax.vjp(partial(product, x), w)[1](y)[0]

        three = partial(jax.jit(partial(gradient, partial(jnp.matmul, precision="highest"))), x_BTD, y_BTF, w_DF)
        flat = partial(jax.jit(partial(gradient, model._matmul)), x_BTD, y_BTF, w_DF)
        np.testing.assert_allclose(three(), flat(), rtol=0, atol=1e-2)
        times = in_turns({"three": three, "flat": flat}, turns=40)
        for clock in CLOCKS:
            about = {"shape_BTD": [rows, tokens, d], "shape_DF": [d, f], "clock": clock}
            seconds = times["flat"][clock]
            ratio = times["three"][clock] / seconds
            yield row("weight gradient", about, 1e3 * seconds, "ms", "x with three axes", ratio)


def row(
    name: str, config: dict[str, Any], value: float, unit: str, versus: str | None = None, ratio: float | None = None
) -> dict[str, Any]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "benchmark": name,
        "config": config | {"threads": threads},
        "value": float(f"{value:.3g}"),
        "unit": unit,
        "versus": versus,
        "ratio": ratio and round(ratio, 2),
    }


def make_batch(rows: int, vocab_size: int) -> learner.Batch:
    rng = np.random.default_rng(0)
    return learner.Batch(
        tokens_BT=rng.integers(0, vocab_size, (rows, PROMPT + NEW_TOKENS)).astype(np.int32),
        prompt_lengths_B=np.full(rows, PROMPT, np.int32),
        completion_lengths_B=np.full(rows, NEW_TOKENS, np.int32),
        advantages_B=rng.choice([-1.0, 1.0], rows).astype(np.float32),
        old_logprobs_BC=np.full((rows, NEW_TOKENS), -4.0, np.float32),
        old_known_B=np.ones(rows, bool),
    )


def step_flops(config: qwen.QwenConfig, rows: int) -> int:
    """Of the matmuls of one step, forward and, twice that, backward. Multiplying and adding are two operations."""
    tokens, d, width = PROMPT + NEW_TOKENS, config.hidden_size, config.num_heads * config.head_dim
    weights = d * 2 * (width + config.num_kv_heads * config.head_dim) + 3 * d * config.intermediate_size
    layer = 2 * tokens * weights + 4 * tokens**2 * width
    return 3 * rows * (config.num_layers * layer + 2 * NEW_TOKENS * d * config.vocab_size)


def in_turns(runs: Mapping[Any, Callable[[], Any]], turns: int) -> dict[Any, Times]:
    """Median times of each run. A turn runs everything, each for about 50 ms."""
    repeats = {}
    for name, run in runs.items():
        jax.block_until_ready(run())
        started = time.perf_counter()
        jax.block_until_ready(run())
        repeats[name] = 1 + int(0.05 / (time.perf_counter() - started))
    found: dict[Any, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            started_at = {clock: read() for clock, read in CLOCKS.items()}
            for _ in range(repeats[name]):
                jax.block_until_ready(run())
            for clock, read in CLOCKS.items():
                found[name][clock].append((read() - started_at[clock]) / repeats[name])
    return {name: {clock: statistics.median(all_) for clock, all_ in by.items()} for name, by in found.items()}


def main() -> None:
    versions = {package: metadata.version(package) for package in ("jax", "optax", "numpy")}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for rows in (train_step_rows(), live_batch_rows(), weight_gradient_rows()):
        for found in rows:
            print(json.dumps(found | about), flush=True)


if __name__ == "__main__":
    main()
