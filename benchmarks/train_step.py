"""How fast a GRPO train step is, against the same loss in plain torch, with the memory that either takes.

    python -m benchmarks.train_step --peer-python ~/torch/bin/python           # needs torch and transformers there
    python -m benchmarks.train_step --rows tiny-32x8-16+12,0.5b-4x4-64+64 --turns 5
    python -m benchmarks.train_step --smoke                                    # ours alone, the tiny model
    bash benchmarks/gpu.sh                                                     # on a GPU: ours alone, in bfloat16

A minute for the small rows; 0.5b takes some, and 16 GB. Prints one JSON line a row, side and clock. A row is
MODEL-GROUPSxCOMPLETIONS-PROMPT+NEW TOKENS; the live one has such groups as a quickstart's node learns from in a round.
Both sides load one checkpoint and compute the same loss of the same completions (their gradients' norms must agree):
torch pads them to the longest and takes the head at completions alone, ours packs them into sequences with each prompt
once (rlswarm_jax/grpo/tiles.py). Each is alone in a process, with the same threads; they take turns.

`value` is ms a step, the median over the turns, by the wall clock and by the process clock, which adds up the threads'
time and stands a busy machine better. `ratio` of ours is its time over torch's. `measured` has the tokens of all texts
a second (a prompt counted for each of its completions, for both sides), the process's peak memory, weights included,
and of ours `text`, the share of slots that hold text, `of_matmul`, the rate at which the arithmetic of the packed slots
is done over that of a large product of the same dtype, and `mfu`, the model's arithmetic of all texts (a prompt counted
for each of its completions) over what the device's maker states, where that is known.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_sides import Row, parse_row
from benchmarks.worker import ROOT, Failed, Worker
from rlswarm_jax import assets, speed
from rlswarm_jax.grpo import tiles
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen.config import QwenConfig, read_config

ROWS = (
    "tiny-0x7-0+11,tiny-1x8-16+12,tiny-8x8-16+12,tiny-32x8-16+12,10m-8x8-64+64,50m-4x8-64+64,"
    "0.5b-4x4-64+64,0.5b-1x8-512+512"
)
SMALL = 0.05  # seconds; a turn repeats what is quicker
SIDE = 2048  # of the large matmul
Turns = list[dict[str, Any]]  # of a side: seconds by both clocks, the process's peak, and versions
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def in_turns(sides: dict[str, str], checkpoint: Path, row: Row, turns: int) -> dict[str, Turns]:
    """What each turn of each side took. sides: and their interpreters."""
    workers, versions, repeats, norms = {}, {}, {}, []
    for side, python in sides.items():
        workers[side] = Worker(python, "train_sides.py", side, str(checkpoint), row.name)
        versions[side] = workers[side].hear()["versions"]
        norms.append(workers[side].ask(1)["grad_norm"])
        repeats[side] = 1 + int(SMALL / workers[side].ask(1)["wall"])
    if not any(side.endswith("-iteration") for side in sides):  # which sample what they learn from
        np.testing.assert_allclose(norms, norms[0], rtol=1e-3, err_msg="the sides compute something else")
    found: dict[str, Turns] = {side: [] for side in sides}
    for _ in range(turns):
        for side, worker in workers.items():
            found[side].append(worker.ask(repeats[side]) | {"versions": versions[side]})
    for worker in workers.values():
        worker.close()
    return found


def lines(
    row: Row, found: dict[str, Turns], config: QwenConfig, matmul: dict[str, float], dtype: str
) -> Iterator[dict[str, Any]]:
    """A JSON line's fields for each side and clock."""
    texts = row.texts(config.vocab_size)
    tokens = sum(len(prompt) + len(completion) for prompt, completion, _ in texts)
    for clock in CLOCKS:
        seconds = {side: statistics.median(turn[clock] for turn in turns) for side, turns in found.items()}
        for side, turns in found.items():
            measured = {"tokens_per_s": tokens / seconds[side], "peak_mb": max(turn["peak_mb"] for turn in turns)}
            if side == "ours":
                shares = packed(row, texts, config.hidden_size)
                rate = step_flops(config, shares["slots"], shares["width"]) / seconds[side]
                measured |= {"text": shares["text"], "of_matmul": rate / matmul[clock]}
                if peak := speed.peak_flops(jax.devices()[0].device_kind):
                    lengths = [len(prompt) + len(completion) for prompt, completion, _ in texts]
                    measured["mfu"] = speed.train_flops(config, lengths) / seconds[side] / peak
            peer = next((other for other in found if not other.startswith("ours")), None)
            against = (
                {"versus": peer, "ratio": round(seconds[side] / seconds[peer], 2)} if peer and side != peer else {}
            )
            yield {
                "benchmark": "grpo iteration" if side.endswith("-iteration") else "train step",
                "config": {"row": row.name, "side": side, "dtype": dtype, "clock": clock},
                "value": float(f"{1e3 * seconds[side]:.3g}"),
                "unit": "ms",
                **against,
                "measured": {name: float(f"{value:.3g}") for name, value in measured.items()},
                "versions": {"python": platform.python_version()} | turns[0]["versions"],
            }


def packed(row: Row, texts, hidden_size: int) -> dict[str, float]:
    """Slots, their width, and the share that holds text, as the learner has them."""
    rows = [tiles.Row(*one, None, external=False) for one in texts]
    longest = max(max(len(one.prompt) + len(one.completion) for one in rows), 108 if row.is_live else 0)
    most = max(len(one.completion) for one in rows)
    sequences = int(os.environ.get("TRAIN_SEQUENCES", 0))
    parts = tiles.tiles(rows, tiles.shapes(longest, most, sequences, hidden_size=hidden_size))
    slots = sum(part.tokens_XT.size for part in parts)
    return {"slots": slots, "width": parts[0].tokens_XT.shape[1], "text": tiles.filled(parts)}


def step_flops(config: QwenConfig, slots: float, width: float) -> float:
    """Of the matmuls of one step, forward and, twice that, backward. Multiplying and adding are two operations."""
    d, heads = config.hidden_size, config.num_heads * config.head_dim
    weights = d * 2 * (heads + config.num_kv_heads * config.head_dim) + 3 * d * config.intermediate_size
    layer = 2 * weights + 4 * width * heads
    return 3 * slots * (config.num_layers * layer + 2 * d * config.vocab_size)


def matmul_rate(dtype: str) -> dict[str, float]:
    """FLOP/s of a large product by each clock."""
    square = jnp.asarray(np.random.default_rng(0).standard_normal((SIDE, SIDE)), dtype)
    product = jax.jit(partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32))
    jax.block_until_ready(product(square, square))
    spent: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
    for _ in range(9):
        began = {clock: read() for clock, read in CLOCKS.items()}
        jax.block_until_ready(product(square, square))
        for clock, read in CLOCKS.items():
            spent[clock].append(read() - began[clock])
    return {clock: 2 * SIDE**3 / statistics.median(times) for clock, times in spent.items()}


def checkpoint_of(model: str, directory: Path) -> Path:
    if model == "tiny":
        return assets.SPOILED
    if not (directory / model).exists():
        command = [sys.executable, "-m", "benchmarks.train_sides", "checkpoint", directory / model, model]
        subprocess.run(command, check=True, cwd=ROOT)
    return directory / model


def measure(rows: Sequence[Row], sides: dict[str, str], turns: int, dtype: str) -> Iterator[dict[str, Any]]:
    matmul = matmul_rate(dtype)
    for clock, rate in matmul.items():
        about = {"benchmark": "matmul", "config": {"side": SIDE, "dtype": dtype, "clock": clock}}
        yield about | {
            "value": float(f"{rate / 1e9:.3g}"),
            "unit": "GFLOP/s",
            "versions": {"jax": metadata.version("jax")},
        }
    with tempfile.TemporaryDirectory(prefix="train-") as directory:
        for row in rows:
            path = checkpoint_of(row.model, Path(directory))
            yield from lines(row, in_turns(sides, path, row, turns), read_config(path), matmul, dtype)


def parse_args(name: str, doc: str | None, rows: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peer-python", metavar="PATH", help="an interpreter with the peer's packages")
    parser.add_argument("--rows", default=rows, help=f"comma-separated; default: {rows}")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours while learning")
    parser.add_argument("--sequences", type=int, default=0, help="of a tile of ours; default: as the learner chooses")
    parser.add_argument("--smoke", action="store_true", help="ours alone, the tiny model, one turn")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, ours: str, peer: str, smoke: str) -> None:
    rows = [parse_row(name) for name in (smoke if args.smoke else args.rows).split(",")]
    sides = {ours: sys.executable} | ({peer: args.peer_python} if args.peer_python and not args.smoke else {})
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    os.environ |= {
        "TRAIN_DTYPE": args.dtype,
        "TRAIN_SEQUENCES": str(args.sequences),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    try:
        for line in measure(rows, sides, 1 if args.smoke else args.turns, args.dtype):
            line["config"] |= {"threads": threads} | ({"sequences": args.sequences} if args.sequences else {})
            print(json.dumps(line | {"hardware": hardware()}), flush=True)
    except Failed as reason:
        raise SystemExit(f"a side ended: {reason}; what it said is above.") from None


def main(argv: Sequence[str] | None = None) -> None:
    run(parse_args("train_step", __doc__, ROWS, argv), "ours", "torch", "tiny-1x8-16+12")


if __name__ == "__main__":
    main()
