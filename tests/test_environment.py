"""What is said to whoever starts a program outside the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlswarm_jax.environment import complaint

CHECKOUT = Path(__file__).parent.parent


def find_all(name):
    return name


@pytest.mark.parametrize("module", ["experiments.run", "experiments.report", "benchmarks.records"])
def test_a_python_without_the_libraries_is_told_in_one_sentence_what_to_run(module):
    command = [sys.executable, "-I", "-S", "-c"]  # -S: without what is installed
    start = f"import sys, runpy; sys.path.insert(0, {str(CHECKOUT)!r}); sys.argv = ['-m']; runpy.run_module({module!r})"
    done = subprocess.run([*command, start], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "has no absl, coincurve, jax" in done.stderr and ".venv/bin/python -m" in done.stderr


def test_what_to_do_depends_on_what_is_there(tmp_path):
    def told(version=(3, 11), find=find_all):
        return complaint("/usr/bin/python3", version, find, str(tmp_path))

    assert told() is None
    assert "is version 3.9: run `make install`" in told((3, 9))
    assert "has no jax: run `make install`" in told(find=lambda name: None if name == "jax" else name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert "has no jax: run .venv/bin/python -m" in told(find=lambda name: None if name == "jax" else name)
