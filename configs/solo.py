"""One node alone, on the training budget that a quickstart node has: the same rounds and groups, all its own.

    python -m experiments.run --config configs/solo.py [--config.seed=1]
    python -m experiments.run --config configs/solo.py:smoke

Hardware: 2 CPU cores, no GPU.
Measured (rendered: solo):
  not measured yet

It samples twice as many completions as a quickstart node (which gets half of its groups from its peers) and can
learn from as many groups a round: matched training samples, not matched generation.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("solo")
    config.swarm.nodes = 1
    config.swarm.local_groups, config.swarm.external_groups = 8, 0
    if variant == "smoke":
        common.smoke(config)
    elif variant:
        raise ValueError(f"configs/solo.py has no variant {variant!r}; expected smoke.")
    return config
