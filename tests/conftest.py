"""Tests run on the CPU, never reach for the network, and compile no program twice, unless the environment says so."""

import atexit
import os
import shutil
import sys
import tempfile

PYTHON_RECURSION, PY_EVM_RECURSION = 1000, 100_000
LONGEST = [  # begun first, so that all workers end at about the same time; of two neighbours one starts processes
    *("test_live.py", "qwen/test_replay.py", "test_live_chain.py", "test_simulate.py"),
    *("running/test_single_node.py", "test_engine.py", "test_kill.py", "qwen/test_sampling.py"),
    *("test_compilation.py", "qwen/test_refill.py", "experiments/test_run.py", "test_parallel.py"),
]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the processes that tests start inherit it
    cache = tempfile.mkdtemp(prefix="rlswarm-xla-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_collection_modifyitems(items) -> None:
    first = {f"tests/{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.nodeid.partition("::")[0], len(first)))


def pytest_runtest_setup(item) -> None:
    """py-evm raises Python's limit on recursion when it is imported, and needs that; no node imports it.

    Why that is not for the other tests is in rlswarm_jax/chain/library.py.
    """
    sys.setrecursionlimit(PY_EVM_RECURSION if item.nodeid.startswith("tests/chain/") else PYTHON_RECURSION)
