"""One node alone brings back a skill of the embedded model, which was taught it and then spoiled (configs/tiny.py).

    python -m experiments.run --config configs/solo.py [--config.seed=1]
    python -m experiments.run --config configs/solo.py:smoke

Hardware: 2 CPU cores, no GPU.

It has nobody to criticise, so it plays the first stage only, in one process, without a chain: the quickest way to try a
loss, a task or a model. What a node alone comes to beside a swarm: docs/does-sharing-help.md, point 8-0.
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
