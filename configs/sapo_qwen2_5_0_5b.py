"""SAPO on what its paper ran it on (arXiv:2509.08721): eight Qwen2.5-0.5B-Instruct, a card each, nine kinds of tasks.

    python -m experiments.sweep --config configs/sapo_qwen2_5_0_5b.py --jobs 1    its four splits, three seeds each
    python -m experiments.run --config configs/sapo_qwen2_5_0_5b.py               one of them: 4 own + 4 of peers
    python -m experiments.run --config configs/sapo_qwen2_5_0_5b.py:node --plan --memory 16GB
    python -m experiments.run --config configs/sapo_qwen2_5_0_5b.py:tpu           all eight simulated on one TPU host
    python -m experiments.run --config configs/sapo_qwen2_5_0_5b.py:node \\
        --config.swarm.bootnodes="['/ip4/...']"                                   one of them, on a machine of its own

Hardware: a machine with eight NVIDIA cards of 16 GB (computed: 11.5 GB each at the peak; 142 GB of disk), or eight with
one each, or a TPU host of eight chips with 16 GB each (computed: 9.9 GB a chip).
NOT YET MEASURED: neither time nor what comes of it; tests play it with random weights of the same layout.
To expect, if the paper holds: cumulative reward 561.79 (8 own + 0 of peers), 854.43 (6 + 2), 1093.31 (4 + 4), 945.87
(2 + 6), of one seed each.

The paper's: nodes, model, the nine datasets of reasoning-gym, 8 completions, 2,000 rounds, the splits, GRPO without KL
penalty clipped at 0.2 and 0.28, no reward for form, peers' completions taken as on-policy, the good and the bad alike.
Ours: a node answers as many problems as it learns from of its own, of the nine kinds alike (the paper's answers one of
each and draws from them); AdamW at 1e-6 (the paper's Adam has 1e-3: `:paper`); the mean over a completion's tokens,
then over completions; temperature 1; 512 new tokens; prompts; groups of the latest four rounds; sampling in bfloat16,
corrected; and an answer is right or it is not (their scorers pay parts, too: `--config.tasks.NAME.score=graded`).
"""

import ml_collections

from configs import common
from configs.sweeps import Sweep

TASKS = (
    *("base_conversion", "basic_arithmetic", "arc_1d", "bf", "propositional_logic"),
    *("fraction_simplification", "decimal_arithmetic", "calendar_arithmetic", "binary_matrix"),
)
SPLITS = ((8, 0), (6, 2), (4, 4), (2, 6))  # a node's own groups, and its peers'


def tpu(config: ml_collections.ConfigDict) -> None:
    """One process has all chips of a host, so all nodes are in it, their weights split over the chips."""
    common.simulate(config)
    config.devices.fsdp = 8


def node(config: ml_collections.ConfigDict) -> None:
    config.driver = "node"
    config.swarm.nodes = 1
    config.swarm.host, config.swarm.port = "any", 4001


def paper(config: ml_collections.ConfigDict) -> None:
    config.learn.learning_rate = 1e-3


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("sapo_qwen2_5_0_5b")
    config.model.path = "Qwen/Qwen2.5-0.5B-Instruct"
    config.tasks = {name: {"weight": 1.0, "score": "threshold"} for name in TASKS}
    config.rounds = 2000
    config.swarm.nodes, config.swarm.devices, config.swarm.deadline = 8, "gpu", 600.0
    config.swarm.local_groups = config.swarm.external_groups = 4
    config.game.stages = 1
    config.sampling.max_prompt_tokens, config.sampling.max_new_tokens = 1024, 512
    config.sampling.dtype = config.learn.dtype = "bfloat16"
    config.learn.loss, config.learn.clip_high, config.learn.kl_weight = "grpo", 0.28, 0.0
    config.learn.learning_rate, config.learn.microbatch_rows = 1e-6, 4
    config.learn.positive_only_external, config.learn.external_min_prob = False, 0.0
    config.evaluation.rows, config.evaluation.every = 64, 100
    config.checkpoint_every = 100
    config.chain.endpoint = "none"  # a study: problems follow from the seed
    common.apply(config, variant, tpu, node, paper, common.simulate, common.smoke)
    return config


def get_sweep(variant: str = "") -> Sweep:
    """The paper's four splits, of every variant. Seeds are ours: it has one."""
    points = {f"{own}-{peers}": {"swarm.local_groups": own, "swarm.external_groups": peers} for own, peers in SPLITS}
    return Sweep(points=points, seeds=(0, 1, 2), baseline="8-0")
