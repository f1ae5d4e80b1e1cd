"""How long loading a checkpoint takes and how much memory, against a NumPy copy of its bytes and the usual libraries.

    python -m benchmarks.load        two to five minutes on two CPU cores, 1 GB in the temporary directory

Prints one JSON line a row. The checkpoint has the shape of Qwen2.5-0.5B: 988 MB of bfloat16, random, in the page cache.
Every load is a process of its own; the kinds take turns, and the medians are taken. `numpy tobytes` and `numpy array`
copy each tensor out of the mapped file as it lies, the second into huge pages, which some virtual machines are slow to
give; `ratio` is to the first. `ours` also checks, names and transposes (and widens, to float32), and its arrays are
jax's, as are those of `safetensors.flax`.

Memory is how far the peak of what is resident, pages of mapped files included, lies above what was there before, as
a multiple of the arrays that come out of it.
"""

import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from rlswarm_jax import qwen
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen import config as qwen_config
from rlswarm_jax.qwen import model, naming, tensors, weights

TURNS = 5
CONFIG = qwen.QwenConfig(
    model_type="qwen2",
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qkv_bias=True,
    qk_norm=False,
    max_position_embeddings=32768,
)


def copied(copy: Callable[[np.ndarray], Any]) -> Callable[[Path], Any]:
    return lambda directory: [copy(stored.map()) for stored in tensors.find_tensors(directory).values()]


def ours(dtype: Any) -> Callable[[Path], Any]:
    return lambda directory: weights.load_params(directory, qwen_config.read_config(directory), dtype)


def library(name: str) -> Callable[[Path], Any]:
    def load(directory: Path) -> Any:
        import safetensors.flax
        import safetensors.numpy

        return getattr(safetensors, name).load_file(directory / tensors.SINGLE)

    return load


COPY = "numpy tobytes"
KINDS: dict[str, Callable[[Path], Any]] = {
    COPY: copied(lambda array: np.frombuffer(array.tobytes(), np.uint8)),
    "numpy array": copied(np.array),
    "ours": ours(jnp.bfloat16),
    "ours, to float32": ours(np.float32),
    "safetensors.numpy": library("numpy"),
    "safetensors.flax": library("flax"),
}


def write_checkpoint(directory: Path) -> None:
    """Random bits below infinity, straight into the file."""
    shapes = {
        name: shape[::-1] if transposed else shape
        for name, path, transposed in naming.layout(CONFIG)
        for shape in [naming.at(model.param_shapes(CONFIG), path)]
    }
    rng = np.random.default_rng(0)

    def read(name: str) -> np.ndarray:
        return rng.integers(0, 0x7F00, shapes[name], np.uint16).view(ml_dtypes.bfloat16)

    tensors.write_file(directory / tensors.SINGLE, {name: ("BF16", shape) for name, shape in shapes.items()}, read)
    (directory / "config.json").write_text(json.dumps(qwen_config.to_hf(CONFIG)))


def measure(kind: str, directory: Path) -> dict[str, float]:
    """One load in this process."""
    jax.block_until_ready(jnp.ones(3) + 1)  # jax's own start
    load, before = KINDS[kind], resident("VmRSS")
    wall, process = time.perf_counter(), time.process_time()
    loaded = jax.block_until_ready(load(directory))
    wall, process = time.perf_counter() - wall, time.process_time() - process
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    return {"wall": wall, "process": process, "memory": (resident("VmHWM") - before) / size}


def resident(field: str) -> int:
    """Bytes, from Linux's account of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def rows() -> Iterator[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch))
        megabytes = Path(scratch, tensors.SINGLE).stat().st_size / 1e6
        for _ in range(TURNS):
            for kind in KINDS:
                command = [sys.executable, "-m", "benchmarks.load", kind, scratch]
                found[kind].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    medians = {kind: {of: statistics.median(m[of] for m in all_) for of in all_[0]} for kind, all_ in found.items()}
    for of, unit in (("wall", "s"), ("process", "s"), ("memory", "x")):
        for kind, median in medians.items():
            named = {"of": kind, "megabytes": round(megabytes), "runs": TURNS}
            yield {
                "benchmark": "load, peak memory" if of == "memory" else "load",
                "config": named if of == "memory" else named | {"clock": of},
                "value": float(f"{median[of]:.3g}"),
                "unit": unit,
                "versus": None if kind == COPY else COPY,
                "ratio": None if kind == COPY else float(f"{median[of] / medians[COPY][of]:.3g}"),
            }


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
        return
    versions = {package: metadata.version(package) for package in ("jax", "numpy", "safetensors")}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for found in rows():
        print(json.dumps(found | about), flush=True)


if __name__ == "__main__":
    main()
