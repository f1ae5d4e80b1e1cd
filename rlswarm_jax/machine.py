"""The machine that a process runs on: its hardware in words, and how much memory was in use at most."""

import os
import platform
import re
import resource
import sys
from pathlib import Path


def peak_memory_mb(pid: int | None = None) -> int:
    """Of this process, resident; or of another one, as far as the system tells (else 0)."""
    if pid is not None:
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        except OSError:
            return 0
        return round(int(found[1]) / 1024) if found else 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(usage / (1024 if sys.platform == "linux" else 1024**2))


def memory_mb() -> dict[str, float]:
    """Metrics of what was in use at most: by this process, resident, and on all its accelerators."""
    import jax  # here: the parent of a swarm of processes needs none

    found = {"memory/peak_mb": float(peak_memory_mb())}
    told = [device.memory_stats() for device in jax.local_devices() if device.platform != "cpu"]
    if used := [stats["peak_bytes_in_use"] for stats in told if stats and "peak_bytes_in_use" in stats]:
        found["memory/device_peak_mb"] = round(sum(used) / 2**20, 1)
    return found


def hardware() -> str:
    """Processor, cores and accelerator, in words."""
    import jax  # here: the parent of a swarm of processes needs none

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    accelerator = "" if jax.default_backend() == "cpu" else f", {jax.devices()[0].device_kind}"
    return f"{model}, {os.cpu_count()} cores{accelerator}"
