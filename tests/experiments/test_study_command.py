"""The study in little, as a user runs it: nodes that share are ahead of nodes alone, in each of two seeds."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs import sapo
from rlswarm_jax.reporting import outcomes
from rlswarm_jax.reporting.comparison import cumulative, held_out

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
def test_half_shared_is_ahead_of_alone(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--config=configs/sapo.py:smoke", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = outcomes.by_point(outcomes.find([tmp_path]))
    assert found.keys() == {sapo.ALONE, sapo.HALF}
    for alone, half in zip(found[sapo.ALONE], found[sapo.HALF], strict=True):
        assert alone.seed == half.seed and alone.trained_external == 0 < half.trained_external
        # points; after 50 rounds of the whole study it is 6
        assert held_out(half) - held_out(alone) > 2 and cumulative(half) > cumulative(alone)
    assert "Against 8-0" in (tmp_path / "report.md").read_text()
