"""Four nodes, each a process with its key, libp2p host and tiny Qwen, learn from each other; a chain has the ledger.

    make run
    python -m experiments.run --config configs/quickstart.py [--config.seed=1]
    python -m experiments.run --config configs/quickstart.py:simulate    the same nodes in one process
    python -m experiments.run --config configs/quickstart.py:smoke       a minute, for tests (simulate-smoke too)

Hardware: 2 CPU cores, no GPU.
Measured (rendered: quickstart):
  held-out accuracy 1.0 % -> 89.9 %: +88.9 ± 1.0 points over 5 seeds, +87.7 with the worst
  153 ± 5 s a run on AMD EPYC, 2 cores
  commit c00f206995e0, before changes of evaluation.every, learn.advantage_scale, learn.clip_high,
    learn.clip_low, learn.learning_rate, model.path, rounds, sampling.temperature,
    swarm.external_groups, swarm.local_groups, tasks.chain_sum.max_digits,
    tasks.chain_sum.max_terms, tasks.chain_sum.min_digits, tasks.chain_sum.min_terms,
    tasks.chain_sum.weight, tasks.number_sorting.max_decimals, tasks.number_sorting.max_numbers,
    tasks.number_sorting.max_value, tasks.number_sorting.min_decimals,
    tasks.number_sorting.min_numbers, tasks.number_sorting.min_value, tasks.number_sorting.weight,
    tasks.spell_backward.max_word_len, tasks.spell_backward.min_word_len,
    tasks.spell_backward.weight
  runs differ by seed and by chance beacons

The embedded model was taught to spell words of three to five letters backwards, and gets none of six letters right.
What a node finds by chance now and then, all of them learn from. Beside them nodes alone are played (`swarm.alone`).
"""

import ml_collections

from configs import common

SIX_LETTERS = {"dataset": "spell_backward", "min_word_len": 6, "max_word_len": 6, "weight": 1.0}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("quickstart")
    config.model.path = "embedded:base"
    config.tasks = ml_collections.ConfigDict({"six_letters": SIX_LETTERS})
    config.sampling.temperature = 1.5  # at 1 it takes several times as long until one of them finds anything
    config.learn.learning_rate = 5e-4
    config.swarm.local_groups, config.swarm.external_groups, config.swarm.fill = 8, 0, True
    config.swarm.alone = True
    config.rounds, config.evaluation.every = 120, 10
    common.apply(config, variant, common.simulate, smoke)
    return config


def smoke(config: ml_collections.ConfigDict) -> None:
    """Of what the model knows, so that there is something to learn in so few rounds."""
    common.smoke(config)
    config.tasks = common.tiny_tasks()
    config.swarm.alone = False
