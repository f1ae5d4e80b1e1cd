"""Short programs a second in the sandbox, against plain processes without one.

    python -m benchmarks.sandbox        a minute on 2 CPU cores, idle ones

Prints one JSON line a row. A program defines a function, calls it and prints a line: what a tested answer comes to.
`plain` is `subprocess.run([python, "-I", "-S", "-c", program])`, which contains nothing. Both are started by threads of
one process and take turns, so that a slow minute of the machine hits both; `ratio` is the median over the turns.

The processor time is that of all processes of a program, the kernel's work on namespaces and mounts included as far as
it is done in their name. What the sandbox takes more is, in this order: a second interpreter, which builds the root and
waits (process 1), the import of ctypes in it, without which Python cannot mount; `site` in the program's own
interpreter, which plain leaves out and programs may expect (`exit`); namespaces made, mounted, and taken down.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rlswarm_jax.machine import hardware
from rlswarm_jax.tasks import sandbox

PROGRAMS, REPEATS = 40, 9  # in a turn; turns of each side and number of workers
PROGRAM = """
def double(x):
    return 2 * x

print(double(21))
"""


def contained() -> bytes:
    return sandbox.run(PROGRAM).stdout


def plain() -> bytes:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout


def turn(side: Callable[[], bytes], workers: int) -> tuple[float, float]:
    """Programs a second, and processor milliseconds of one, the caller's share not included."""
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        said = list(pool.map(lambda _: side(), range(PROGRAMS)))
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert set(said) == {b"42\n"}
    processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return PROGRAMS / wall, 1000 * processor / PROGRAMS


def main() -> None:
    sandbox.require()
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), "linux": platform.release()}}
    sides = {"sandbox": contained, "plain": plain}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(REPEATS):
        for workers in (1, 2):
            for name, side in sides.items():
                found.setdefault((name, workers), []).append(turn(side, workers))
    for index, (measure, unit) in enumerate((("programs", "programs/s"), ("processor time", "CPU ms"))):
        for workers in (1, 2):
            ours, theirs = ([one[index] for one in found[name, workers]] for name in sides)
            row = {
                "benchmark": "sandbox",
                "config": {"measure": measure, "workers": workers, "programs": PROGRAMS, "repeats": REPEATS},
                "value": round(statistics.median(ours), 1),
                "unit": unit,
                "versus": "a process without one",
                "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
            }
            print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
