"""What a run needs of its machine: disk, device, memory, weights, sandbox, each looked at by itself (see `doctor`)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import ml_collections

from rlswarm_jax.launch import visible_gpus
from rlswarm_jax.running.findings import FINE, LOOK, UNKNOWN, WRONG, Finding

MACHINE_SECONDS = 50.0
PROBE_BYTES = 32 << 20  # written to the disk, to see how fast it is
SLOW_DISK = 20e6  # bytes a second, below which a checkpoint holds a round up
LEAST_ROOM = 2 << 30  # bytes, beside what is known to be written
Value = TypeVar("Value")
SPARE = 0.94  # of a device's memory, as the memory plan has it


class Once(Generic[Value]):
    """A value that several checks need, computed by the first that asks; the others wait for it."""

    def __init__(self, compute: Callable[[], Value]):
        self._compute, self._lock = compute, threading.Lock()
        self._found: list[Value] = []

    def __call__(self) -> Value:
        with self._lock:
            if not self._found:
                self._found.append(self._compute())
            return self._found[0]


def look_at_machine(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `running.machine_probe` says, in a process of its own: this one takes no device. {"error": ...} if none."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if config.driver == "live" and config.swarm.devices == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "rlswarm_jax.running.machine_probe"]
    given = config.to_json_best_effort()
    try:
        done = subprocess.run(
            command, input=given, env=environment, capture_output=True, text=True, timeout=MACHINE_SECONDS
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"jax did not start within {MACHINE_SECONDS:.0f} s"}
    except (ValueError, IndexError):
        return {"error": (done.stderr.strip().splitlines() or ["jax ended without a word"])[-1]}


def disk(config: ml_collections.ConfigDict, workdir: Path, machine: Callable[[], dict[str, Any]]) -> Finding:
    place = next(path for path in (workdir, *workdir.absolute().parents) if path.is_dir())
    if not os.access(place, os.W_OK):
        return Finding(WRONG, f"{place} cannot be written to", "choose another --workdir")
    free = shutil.disk_usage(place).free
    try:
        speed = _speed(place, min(PROBE_BYTES, free // 4))
    except OSError as error:
        return Finding(WRONG, f"{place} takes nothing: {error.strerror}", "make room, or choose another --workdir")
    nodes = config.swarm.nodes if config.driver == "live" else 1
    known = machine().get("state", 0) * (config.checkpoints.keep + 1) + config.audit.megabytes * 2**20
    wanted = nodes * known + LEAST_ROOM
    said = f"{free / 1e9:.1f} GB free, about {wanted / 1e9:.1f} GB wanted; {speed / 1e6:.0f} MB/s written through"
    if free < wanted:
        return Finding(WRONG, said, "make room, or lower config.checkpoints.keep or config.audit.megabytes")
    if speed < SLOW_DISK:
        return Finding(LOOK, said, "a slow disk holds up rounds: raise config.checkpoint_every, or use a local disk")
    return Finding(FINE, said)


def _speed(place: Path, size: int) -> float:
    """Bytes a second that are on the disk when they are said to be."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=place) as file:
        began = time.perf_counter()
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return file.tell() / (time.perf_counter() - began)


def device(config: ml_collections.ConfigDict, machine: Callable[[], dict[str, Any]]) -> Finding:
    found = machine()
    if "devices" not in found:
        return Finding(WRONG, found["error"], "docs/real-models.md has how to install jax for this machine's devices")
    said = f"{found['backend']}: {len(found['devices'])} x {found['devices'][0]}"
    cards = visible_gpus()
    wants_gpu = config.driver != "live" or config.swarm.devices == "gpu"
    if found["backend"] == "cpu" and cards and wants_gpu:
        return Finding(LOOK, f"{said}, beside {len(cards)} NVIDIA GPU(s)", "docs/real-models.md has jax for them")
    return Finding(FINE, said)


def memory(machine: Callable[[], dict[str, Any]]) -> Finding:
    found = machine()
    if "peak" not in found:
        return Finding(UNKNOWN, found.get("why", found.get("error", "")), "see what --plan says")
    said = f"{found['peak'] / 1e9:.2f} GB at the peak, of {found['limit'] / 1e9:.2f} GB"
    if found["peak"] > SPARE * found["limit"]:
        return Finding(WRONG, said, "--plan has it part by part; configs/cards.py has settings for small cards")
    return Finding(FINE, said)


def weights(config: ml_collections.ConfigDict) -> Finding:
    from rlswarm_jax import qwen  # noqa: F401 - what is slow to load, before the hub is asked
    from rlswarm_jax.qwen.weights import resolve
    from rlswarm_jax.running.build import model_path

    path = model_path(config)
    try:
        there = cached(path) or (resolve(path) if Path(path).expanduser().is_dir() else None)
    except ValueError as error:
        return Finding(WRONG, str(error))
    if there is None:
        name = path.partition("@")[0]
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            return Finding(WRONG, f"there is no model directory {path}", "check config.model.path")
        return Finding(LOOK, f"{path} is not on this machine", f"its first start fetches it; now: hf download {name}")
    files = sorted(there.glob("*.safetensors"))
    if not files or not (there / "config.json").is_file():
        return Finding(WRONG, f"{there} has no config.json or no *.safetensors", "check config.model.path")
    return Finding(FINE, f"{path}: {sum(file.stat().st_size for file in files) / 1e9:.2f} GB")


def cached(name: str) -> Path | None:
    """A hub's snapshot that is on this machine already."""
    if Path(name).expanduser().is_dir() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = name.partition("@")
    found = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def sandbox(config: ml_collections.ConfigDict) -> Finding:
    from rlswarm_jax.tasks.sandbox import probe

    needs = [name for name, one in dict(config.tasks).items() if dict(one).get("kind") == "code"]
    found = probe()
    if found.active:
        return Finding(FINE, found.reason)
    if not needs:
        return Finding(FINE, f"programs cannot be run here, and no task has any ({found.reason})")
    return Finding(WRONG, found.reason, f"docs/sandbox.md says what it takes; or leave out {', '.join(needs)}")
