"""Which size trains on which memory, and how well the plan foresees what a step takes.

    python -m benchmarks.plan [measured]      three minutes on two CPU cores; needs 3 GB and no GPU

Prints one JSON line a row. "plan": the first of `LADDER` that fits a card, with 8 texts of 512 + 512 tokens at a time:
its peak in GB, computed from shapes (`rlswarm_jax.running.plan`). "plan, measured": what the memory of a
process grows by, in GB, from when its programs are compiled until after two steps of a small model; `ratio` is to the
plan.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import ml_collections

from configs import cards
from rlswarm_jax.machine import hardware, peak_memory_mb

MODELS = ("Qwen2.5-0.5B", "Qwen3-0.6B", "Qwen2.5-1.5B", "Qwen3-1.7B", "Qwen2.5-3B", "Qwen2.5-7B")
CARDS = (8, 12, 16, 24, 80)
FULL, ADAPTER = {"lora.rank": 0}, {"lora.rank": 16}
LADDER: dict[str, dict[str, Any]] = {  # the first that fits is taken
    "all weights, AdamW": FULL,
    "all weights, AdamW, moment in bfloat16": FULL | {"learn.optimizer": "adamw_bf16"},
    "all weights, Adafactor": FULL | {"learn.optimizer": "adafactor"},
    "adapter": ADAPTER,
    "adapter, not merged": ADAPTER | {"lora.merge": False},
    "adapter, not merged, 2 at a time": ADAPTER | {"lora.merge": False, "learn.microbatch_rows": 1, "sampling.rows": 8},
}
SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
TILE = (4, 512)  # sequences and tokens


def config_of(name: str, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    config = cards.get_config("")
    config.model.path = name
    config.update_from_flattened_dict(changes)
    return config


def planned_rows() -> Iterator[dict[str, Any]]:
    from rlswarm_jax.running import plan

    for name in MODELS:
        peaks = {way: plan.peak(plan.of_config(config_of(name, changes))) for way, changes in LADDER.items()}
        for card in CARDS:
            fits = [way for way, peak in peaks.items() if peak <= card * 1e9 * (1 - plan.RESERVED)]
            way = fits[0] if fits else ""
            value = round(peaks[way] / 1e9, 2) if way else 0.0
            yield {"benchmark": "plan", "config": {"model": name, "card_gb": card, "trains": way}, "value": value}


def small():
    """Thirty million weights, a learner of them that keeps all activations, and the shape of a tile."""
    from rlswarm_jax.grpo.learner import Learner, LearnerConfig
    from rlswarm_jax.grpo.tiles import Shape
    from rlswarm_jax.qwen import sizes
    from rlswarm_jax.qwen.config import from_hf

    model = from_hf(sizes.SIZES["Qwen2.5-0.5B"] | SMALL | {"vocab_size": 32000, "num_key_value_heads": 2})
    bounds = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
    config = LearnerConfig(learning_rate=1e-3, temperature=1.0, remat="none", max_new_tokens=TILE[1] // 2, **bounds)
    return Learner(config, model), Shape(*TILE, 2, TILE[1] // 2)


def measure() -> dict[str, float]:
    """In a process of its own: GB that it grows by."""
    import jax
    import numpy as np

    from rlswarm_jax.grpo import tiles
    from rlswarm_jax.qwen.model import init_params

    learner, shape = small()
    rng = np.random.default_rng(0)
    text = [rng.integers(1, 32000, TILE[1] // 2).tolist() for _ in range(2 * TILE[0])]
    rows = [tiles.Row(p, c, 1.0, None, False) for p, c in zip(text[::2], text[1::2], strict=True)]
    init, batch = jax.jit(lambda key: init_params(learner.model, key)), tiles.tiles(rows, [shape])
    for compile_ in learner.ahead(jax.eval_shape(lambda key: learner.init(init(key)), jax.random.key(0)), batch):
        compile_()
    before = peak_memory_mb()
    state = learner.init(init(jax.random.key(0)))
    for _ in range(2):
        state, _ = learner.step(state, 2 * batch, 1e-3)
    jax.block_until_ready(state)
    return {"gb": (peak_memory_mb() - before) * 1024**2 / 1e9}


def measured_rows() -> Iterator[dict[str, Any]]:
    from rlswarm_jax import parallel
    from rlswarm_jax.running import plan

    for remat in ("none",):  # XLA's CPU compiler finds again what is to be computed again, and keeps it
        learner, shape = small()
        work = plan.Work(shape, True, 1, 1, 1, 1, "float32", "float32", True)
        wanted = plan.peak(plan.parts(learner.model, learner.config, work, parallel.DeviceConfig())) / 1e9
        command = [sys.executable, "-m", "benchmarks.plan", "measure"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["gb"]
        yield {
            "benchmark": "plan, measured",
            "config": {"weights": learner.model.num_parameters, "tile": list(TILE), "remat": remat},
            "value": round(found, 3),
            "versus": "planned",
            "ratio": round(found / wanted, 3),
        }


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure()))
        return
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), "jax": metadata.version("jax")}}
    for rows in (measured_rows(),) if sys.argv[1:] == ["measured"] else (planned_rows(), measured_rows()):
        for found in rows:
            print(json.dumps({"unit": "GB"} | found | about), flush=True)


if __name__ == "__main__":
    main()
