"""What one process compiled, another takes from the disk, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.grpo import tiny

ROOT = Path(__file__).parents[1]
WHERE = "from rlswarm_jax import compilation; print(compilation.use_cache())"
GENERATE = """
import logging, jax
from rlswarm_jax import assets, qwen
jax.config.update("jax_log_compiles", True)
policy = qwen.load(assets.SPOILED)
qwen.generate(policy, ["abc"], max_new_tokens=4)
"""


def run(script: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """With no choice made but those of `environment`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), **environment}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True)


def test_a_second_process_compiles_nothing_again(tmp_path):
    first, second = (run(GENERATE, tmp_path).stderr for _ in range(2))
    assert "Persistent compilation cache hit for 'jit_sample'" not in first
    assert "Persistent compilation cache hit for 'jit_sample'" in second
    assert any((tmp_path / "rlswarm_jax" / "xla").iterdir())


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({}, "{home}/rlswarm_jax/xla"),
        ({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, "/elsewhere"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
    ],
)
def test_the_user_decides_where_it_is(tmp_path, environment, where):
    assert run(WHERE, tmp_path, **environment).stdout.strip() == where.format(home=tmp_path)


def test_a_user_without_a_home_has_no_cache():
    """Of a number that no passwd file has, too."""
    homeless = "import os; os.environ.pop('HOME', None); os.environ.pop('XDG_CACHE_HOME', None);"
    homeless += "import pwd; pwd.getpwuid = dict().__getitem__;"
    assert run(f"{homeless}{WHERE}", ROOT).stdout.strip() == "None"


BITS = [
    "tests/qwen/test_refill.py::TestExactly",
    "tests/test_simulate.py::test_the_order_of_arrival_does_not_matter",
]


@pytest.mark.skipif(not tiny.QUICK, reason="they run so by themselves")
def test_bits_do_not_depend_on_company_in_the_programs_that_users_run():
    """`make test` compiles quickly; what XLA makes of the same programs without that is another matter."""
    kept = {name: value for name, value in os.environ.items() if name not in tiny.QUICKLY}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *BITS], cwd=ROOT, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"{len(BITS)} passed" in done.stdout, done.stdout
