"""A single node that joins others, serves as a bootnode for more, and runs until it is stopped (Ctrl-C).

    python -m experiments.run --config configs/node.py                         starts a swarm, and prints its address
    python -m experiments.run --config configs/node.py --workdir runs/second \\
        --config.swarm.bootnodes="['/ip4/127.0.0.1/tcp/4001/p2p/16Uiu2...']"   joins it
    python -m experiments.run --config configs/node.py:smoke                   six rounds

For other machines to reach it: --config.swarm.host=any --config.swarm.port=4001. Its key is made once, in the
folder of the run (node.key); the same command with --resume goes on after a stop. Nodes understand each other if they
play by the same rules (docs/operate.md): paste the line that a running node, or `make run`, prints.

Several machines, or a TPU pod, can be one node: docs/real-models.md says how.

Hardware: a CPU core for the embedded model.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("node")
    config.driver = "node"
    config.rounds = 0  # until it is stopped
    config.swarm.nodes = 1
    config.chain.endpoint = "none"  # nobody starts one for it; docs/chain.md says how to join a swarm that has one
    common.apply(config, variant, common.smoke)
    return config
