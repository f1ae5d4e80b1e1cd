"""Four nodes, each a process with its key, libp2p host and tiny Qwen, learn what none had; a chain has the ledger.

    make run
    python -m experiments.run --config configs/quickstart.py [--config.seed=1]
    python -m experiments.run --config configs/quickstart.py:simulate    the same nodes in one process
    python -m experiments.run --config configs/quickstart.py:spoiled     all three stages; spoiled skills brought back
    python -m experiments.run --config configs/quickstart.py:smoke       that, in a minute (simulate-smoke too)

Hardware: 2 CPU cores, no GPU.
Measured (rendered: quickstart):
  held-out accuracy 0.0 % -> 100.0 %: +100.0 ± 0.1 points over 5 seeds, +99.8 with the worst
  alone that samples as much as one: 94.2 ± 12.8 %
  alone that samples as much as all: 100.0 ± 0.1 %
  76 ± 2 s a run on AMD EPYC, 2 cores
  commit f6095d3f06cc
  runs differ by seed and by chance beacons

The model was taught to spell words of three to five letters backwards, and gets none of six letters right. What one
node finds by chance all learn from. Beside it nodes alone are played, for the report to compare: one that samples as
much as one of the four, and one that samples as much as all. Temperature and learning rate were chosen on simulated
runs of seeds 0, 1 and 100 to 103, problems and rounds live: when something right is found first is luck, and now and
then it is too late. Live, the chain's beacons make other problems of a seed each time.

It has two of the game's three stages: a model that never got six letters right does not learn in so few rounds to
revise such answers.
"""

import ml_collections

from configs import common, fields

TOGETHER = {
    "model.path": "embedded:base",
    "tasks": {"six_letters": {"dataset": "spell_backward", "min_word_len": 6, "max_word_len": 6, "weight": 1.0}},
    "game.stages": 2,
    "swarm.local_groups": 14,
    "swarm.external_groups": 0,  # but for those that fill places of its own which teach nothing
    "sampling.temperature": 2.0,  # one completion of some thousands is right; at 1 none
    "learn.learning_rate": 5e-4,
    "rounds": 200,
    "evaluation.every": 40,
}


def spoiled(config: ml_collections.ConfigDict) -> None:
    """What the table of fields has: three stages, and a model that was spoiled (configs/tiny.py) and recovers."""
    for name in TOGETHER:
        fields.put(config, name, common.FIELDS[name].default)
    config.evaluation.every = 30


def smoke(config: ml_collections.ConfigDict) -> None:
    """Six rounds, in which only the spoiled model learns anything."""
    spoiled(config)
    common.smoke(config)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("quickstart")
    config.swarm.alone = True
    for name, value in TOGETHER.items():
        fields.put(config, name, value)
    common.apply(config, variant, common.simulate, spoiled, smoke)
    return config
