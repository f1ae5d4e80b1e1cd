"""What fits the card people have: a model, how it is trained, and how much at a time, by the card's memory.

    python -m experiments.run --config configs/cards.py:16gb --plan --memory 16GB      what takes how much of it
    python -m experiments.run --config configs/cards.py:16gb                           a node that trains so

Variants: 8gb, 12gb, 16gb (the one without a name), 24gb, 80gb. Questions and answers have 512 tokens at most. The
plan is computed from shapes alone (docs/real-models.md has all sizes and cards); none was measured on a card yet.

Hardware: one NVIDIA GPU with that much memory, compute capability 8 or more.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("cards")
    config.driver = "node"
    config.rounds = 0
    config.swarm.nodes, config.swarm.local_groups = 1, 4
    config.chain.endpoint = "none"
    config.tasks = {"chain_sum": {"weight": 1.0}}
    config.game.stages = 1
    config.sampling.max_prompt_tokens = config.sampling.max_new_tokens = 512
    config.sampling.dtype = config.learn.dtype = "bfloat16"
    config.evaluation.problems, config.evaluation.rows = 64, 16
    config.learn.learning_rate, config.learn.microbatch_rows = 1e-6, 4  # of two texts each
    if not any(f"{size}gb" in variant.split("-") for size in CARDS):
        CARDS[16](config)
    common.apply(config, variant, *(_named(f"{size}gb", card) for size, card in CARDS.items()), common.smoke)
    return config


def whole(path: str):
    """All weights are trained."""

    def card(config: ml_collections.ConfigDict) -> None:
        config.model.path = path

    return card


def adapter(path: str, merge: bool = True):
    """An adapter of rank 16 is."""

    def card(config: ml_collections.ConfigDict) -> None:
        config.model.path = path
        config.lora.rank, config.lora.alpha, config.lora.merge = 16, 32.0, merge
        config.learn.learning_rate = 1e-5

    return card


CARDS = {
    8: adapter("Qwen/Qwen3-0.6B"),
    12: adapter("Qwen/Qwen2.5-1.5B-Instruct"),
    16: whole("Qwen/Qwen2.5-0.5B-Instruct"),
    24: adapter("Qwen/Qwen2.5-7B-Instruct", merge=False),
    80: whole("Qwen/Qwen2.5-3B-Instruct"),
}


def _named(name: str, card):
    card.__name__ = name
    return card
