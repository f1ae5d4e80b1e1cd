"""One node alone, that samples as much as a quickstart node: the same rounds and completions, all its own answers.

    python -m experiments.run --config configs/solo.py [--config.seed=1]
    python -m experiments.run --config configs/solo.py:smoke

Hardware: 2 CPU cores, no GPU.
Measured (rendered: solo):
  held-out accuracy 1.0 % -> 89.0 %: +88.0 ± 1.1 points over 5 seeds, +86.9 with the worst
  13 ± 6 s a run on AMD EPYC, 2 cores
  commit c00f206995e0, before changes of learn.advantage_scale, learn.clip_high, learn.clip_low

It has nobody to criticise, so it plays the first stage only. It samples as many completions a round as a quickstart
node, which spends half of them on critiques and revisions, and has no groups of peers to learn from besides.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("solo")
    common.simulate(config)
    config.swarm.nodes = config.game.stages = 1
    config.swarm.local_groups, config.swarm.external_groups = 8, 0
    config.chain.endpoint = "none"
    common.apply(config, variant, common.smoke)
    return config
