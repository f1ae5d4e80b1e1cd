"""A bootnode: nodes find each other at it, and those that cannot reach each other hear each other through it.

    python -m experiments.run --config configs/bootnode.py                                listens on port 4001
    python -m experiments.run --config configs/bootnode.py --config.swarm.name=mine \\
        --config.swarm.announce="['/dns4/boot.example.org/tcp/4001']"                     of a swarm, with a name

It has no model and plays no rounds, so it is nobody's peer to wait for; it keeps its key in its folder, and the same
command starts it again. It prints what others join with. docs/reach.md has the rest.

Hardware: any machine that others can reach; 100 MB of memory.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("bootnode")
    config.driver = "bootnode"
    config.rounds = 0
    config.swarm.nodes = 1
    config.swarm.host, config.swarm.port = "any", 4001
    config.chain.endpoint = "none"
    common.apply(config, variant, common.smoke)
    return config
