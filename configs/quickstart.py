"""Four nodes, each a process with its key, libp2p host and tiny Qwen, learn from each other; a chain has the ledger.

    make run
    python -m experiments.run --config configs/quickstart.py [--config.seed=1]
    python -m experiments.run --config configs/quickstart.py:simulate    the same nodes in one process
    python -m experiments.run --config configs/quickstart.py:smoke       a minute, for tests (simulate-smoke too)

Hardware: 2 CPU cores, no GPU.
Measured (rendered: quickstart):
  held-out accuracy 1.0 % -> 89.0 %: +88.0 ± 0.5 points over 5 seeds, +87.2 with the worst
  alone, samples as much: 89.0 ± 1.1 %
  alone, as much to learn from: 89.9 ± 0.8 %
  97 ± 4 s a run on Intel(R) Xeon(R) Processor, 2 cores
  commit 788287c9a9eb
  runs differ by seed and by chance beacons

The tiny model was taught its tasks and then spoiled (configs/tiny.py), so what the run shows is a skill brought
back by reinforcement learning, not knowledge gained. Beside it nodes alone are played, for the report to compare.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("quickstart")
    config.swarm.alone, config.evaluation.every = True, 30
    common.apply(config, variant, common.simulate, common.smoke)
    return config
