"""Bytes that strangers may send, read as a node reads them: nothing but the named errors comes of any.

    pip install atheris        coverage-guided mutation (libFuzzer), Linux; not in the lock: nothing else takes it
    nice python -m benchmarks.fuzz TARGET [--runs 1000000] [--minutes 60] [--corpus DIR]

TARGET is one of `TARGETS` in tests/fuzz/targets.py. It begins with what tests/fuzz/corpus has for it. One JSON line:
executions, the slowest by processor time (the least of five tries, the garbage collector off, as it is anybody's), and
the most memory that one took at once, by tracemalloc on each thousandth. What fails a check ends it, and lies in DIR,
beside all that reached something new.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from rlswarm_jax.machine import hardware

CORPUS = Path(__file__).parent.parent / "tests" / "fuzz" / "corpus"
READERS = [f"rlswarm_jax.{room}" for room in ("records", "swarm", "game", "identity")]  # whose branches guide it
SAMPLE = 1000  # one of so many is looked at for its memory
SUSPECT = 5.0  # milliseconds from which on one is tried again


def milliseconds(act: Callable[[bytes], None], data: bytes, tries: int = 1) -> float:
    times = []
    for _ in range(tries):
        begun = time.thread_time_ns()
        act(data)
        times.append(time.thread_time_ns() - begun)
    return min(times) / 1e6


def mebibytes(act: Callable[[bytes], None], data: bytes) -> float:
    """That it takes at once, beyond what is there."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        act(data)
        return (tracemalloc.get_traced_memory()[1] - before) / (1 << 20)
    finally:
        tracemalloc.stop()


class Counted:
    """Runs the target, and remembers the worst; ends the process after so many."""

    def __init__(self, name: str, act: Callable[[bytes], None], runs: int, minutes: float):
        self.name, self._act, self._runs, self._done, self._minutes = name, act, runs, 0, minutes
        self._slowest, self._largest, self._bytes, self._began = 0.0, 0.0, 0, time.monotonic()

    def __call__(self, data: bytes) -> None:
        self._done += 1
        took = milliseconds(self._act, data)
        if took > max(self._slowest, SUSPECT):
            took = milliseconds(self._act, data, 5)
        self._slowest, self._bytes = max(self._slowest, took), max(self._bytes, len(data))
        if self._done % SAMPLE == 0:
            self._largest = max(self._largest, mebibytes(self._act, data))
        if self._done == self._runs or time.monotonic() - self._began > 60 * self._minutes:
            print(json.dumps(self.row()), flush=True)
            os._exit(0)

    def row(self) -> dict:
        versions = {name: importlib.metadata.version(name) for name in ("atheris", "msgspec", "libp2p", "tokenizers")}
        return {
            "benchmark": f"fuzz: {self.name}",
            "config": {"target": self.name, "engine": "atheris", "longest_bytes": self._bytes},
            "value": self._done,
            "unit": "executions",
            "measured": {
                "slowest_ms": round(self._slowest, 3),
                "largest_mib": round(self._largest, 3),
                "memory_sampled": self._done // SAMPLE,
                "minutes": round((time.monotonic() - self._began) / 60, 1),
            },
            "hardware": hardware(),
            "versions": {"python": platform.python_version(), **versions},
        }


def fuzz(name: str, runs: int, minutes: float, folder: Path, longest: int) -> None:
    import atheris

    with atheris.instrument_imports(include=READERS):
        from tests.fuzz.targets import TARGETS
    if name not in TARGETS:
        sys.exit(f"error: the target {name!r} is unknown; expected one of {', '.join(TARGETS)}.")
    gc.disable()
    options = [sys.argv[0], str(folder), str(CORPUS / name), f"-max_len={longest}", f"-artifact_prefix={folder}/"]
    atheris.Setup([*options, "-rss_limit_mb=4096", "-timeout=60"], Counted(name, TARGETS[name], runs, minutes))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("target", help="one of TARGETS")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which it ends in any case")
    parser.add_argument("--longest", type=int, default=16_384, help="bytes of an input")
    parser.add_argument("--corpus", type=Path, help="where what is found is kept; else it is forgotten")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = given.corpus or Path(folder)
        found.mkdir(parents=True, exist_ok=True)
        fuzz(given.target, given.runs, given.minutes, found, given.longest)


if __name__ == "__main__":
    main()
