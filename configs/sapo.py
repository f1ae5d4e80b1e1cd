"""Does sharing help? Eight nodes that learn from each other, in several ways, beside nodes alone (arXiv:2509.08721).

    python -m experiments.sweep --config configs/sapo.py               all points, each with eight seeds; some hours
    python -m experiments.sweep --config configs/sapo.py:smoke         alone against half and half, two seeds
    python -m experiments.sweep --config configs/sapo.py:tune          learning rates, on seeds of their own
    python -m experiments.run   --config configs/sapo.py               one run: half of what is learned from is peers'

Hardware: 2 CPU cores. What was found: docs/does-sharing-help.md, rendered from results/sapo.json.

A split "6-2" is a node's 6 own groups and 2 of peers'. All nodes of a run are alike unless the point says otherwise, so
each point is eight samples a seed, but only seeds are independent. The seeds were named before the first run, and the
learning rate was chosen on others.
"""

from typing import Any

import ml_collections

from configs import common
from configs.sweeps import Sweep

SEEDS = range(8)
TUNING_SEEDS = (100, 101)
GROUPS = 8  # that a node may learn from in a round
RATE, RATES = "learn.learning_rate", (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
LONG = {"rounds": 1000, "evaluation.every": 100}
ALONE, HALF = "8-0", "4-4"


def split(own: int, **more: Any) -> dict[str, Any]:
    return {"swarm.local_groups": own, "swarm.external_groups": GROUPS - own} | more


ADAPTIVE = split(GROUPS) | {"swarm.fill": True, "swarm.choose": "useful"}
EPOCHS = {"learn.loss": "grpo", "learn.updates_per_round": 4}
CONTROLS = {
    # a node alone that draws as many problems as a swarm of eight at 4-4 does, until eight of them teach something
    "alone-redrawn": split(8) | {"game.redraws": 3, "swarm.nodes": 4},
    "alone-32": split(8) | {"swarm.local_groups": 32, "swarm.nodes": 4},
    "8-0-unfiltered": split(8) | {"swarm.flat": True},
    "4-4-unfiltered": split(4) | {"swarm.flat": True},
    "8-0-epochs": split(8) | EPOCHS,
    "4-4-epochs": split(4) | EPOCHS,
    "4-4-stages": split(4) | {"game.stages": 3},
}
VARIANTS = {
    "4-4-negatives": split(4) | {"learn.positive_only_external": False},
    "4-4-reward": split(4) | {"swarm.choose": "reward"},
    "4-4-variety": split(4) | {"swarm.choose": "variety"},
    "4-4-fill": split(4) | {"swarm.fill": True},
    "adaptive": ADAPTIVE,
}
STALENESS = {
    f"4-4-{correction}-{rounds}": split(4)
    | {
        "learn.external_correction": correction,
        "swarm.min_staleness": rounds,
        "swarm.max_staleness": rounds + 4,
    }
    for correction in ("reencode", "behaviour")
    for rounds in (0, 1, 4, 16)
    if (correction, rounds) != ("reencode", 0)  # that is 4-4
}
# six letters backwards, by a model that was taught words of up to five, and gets none of these right
NEW_TASK = {
    "model.path": "embedded:base",
    "tasks": {"six_letters": {"dataset": "spell_backward", "min_word_len": 6, "max_word_len": 6, "weight": 1.0}},
    "sampling.temperature": 1.5,  # at 1 nothing right is ever found by one node in 200 rounds
    "rounds": 200,
    "evaluation.every": 25,
}
NEW = {
    "new-8-0": split(8) | NEW_TASK,
    "new-4-4": split(4) | NEW_TASK,
    "new-adaptive": ADAPTIVE | NEW_TASK,
    # a node alone that samples as much as all eight do together at 8-0
    "new-alone-64": split(8) | NEW_TASK | {"swarm.local_groups": 64, "swarm.nodes": 1},
}
# of eight nodes, the last one or two; what they do is in rlswarm_jax/adversaries
ILL = {
    f"{name}-{strategy}-{count}": point | {"simulation.adversaries": [[7 - n, strategy] for n in range(count)]}
    for name, point in ((HALF, split(4)), ("adaptive", ADAPTIVE))
    for strategy in ("wrong", "copy", "spam")
    for count in (1, 2)
}
# of eight nodes, four begin with the un-spoiled model, which has the skill that the others are to find again
SKILLED = {"simulation.own": [[[4, 5, 6, 7], {"model.path": "embedded:base"}]]}
MIXED = {
    f"{name}-mixed": point | SKILLED for name, point in ((ALONE, split(8)), (HALF, split(4)), ("adaptive", ADAPTIVE))
}


def smoke(config: ml_collections.ConfigDict) -> None:
    config.rounds, config.evaluation.every = 60, 30


def tune(config: ml_collections.ConfigDict) -> None:
    config.rounds = 200


HORIZONS = (100, 200, 300)
# of docs/does-sharing-help.md: points, the first of which others are compared with, and after how many rounds
TABLES = {
    "splits": ([f"{own}-{GROUPS - own}" for own in range(GROUPS, 0, -1)], HORIZONS),
    "controls": ([ALONE, HALF, *CONTROLS], HORIZONS),
    "variants": ([HALF, *VARIANTS], HORIZONS),
    "staleness": ([HALF, *STALENESS], HORIZONS),
    "ill": ([ALONE, HALF, "adaptive", *ILL], HORIZONS),
    "new": ([*NEW], (100, 200)),
    "mixed": ([*MIXED], HORIZONS),
    "long": ([f"{own}-{GROUPS - own}-long" for own in (8, 6, 4, 2)] + ["adaptive-long"], (300, 1000)),
}
HEADLINE = HALF, ALONE, "alone-redrawn", (100, 300)  # of the README: who is ahead of whom, and of whom hardly, and when
RARITY = "new-adaptive", "new-8-0", 100  # of the README, too: who has found what whom has not, and when
CLAIMS = (  # what, a point, the one that it is to be better than, after how many rounds
    ("Nodes that learn half of it from each other are ahead of nodes alone", HALF, ALONE, 100),
    ("They still are when both have had three times as long", HALF, ALONE, 300),
    ("They are ahead of a node alone that may sample as much as all of them together", HALF, "alone-redrawn", 300),
    ("Filling the places of dead groups with peers' beats the half-and-half split", "adaptive", HALF, 300),
    (
        "The gain is not one of selection: it is there where groups that teach nothing are learned from, too",
        "4-4-unfiltered",
        "8-0-unfiltered",
        100,
    ),
    ("It is there when all that comes of peers is sixteen rounds old", "4-4-reencode-16", ALONE, 100),
    ("And when two of eight nodes say others' completions in the place of their own", "4-4-copy-2", ALONE, 100),
    (
        "A skill that no node had is learned together, by nodes that fill dead groups' places",
        "new-adaptive",
        "new-8-0",
        100,
    ),
    ("It is with half of each too, which samples half as much", "new-4-4", "new-8-0", 200),
    ("They learn it sooner than a node alone that samples as much as all of them", "new-adaptive", "new-alone-64", 100),
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("sapo")
    common.simulate(config)
    config.swarm.nodes, config.game.stages = 8, 1
    config.swarm.local_groups = config.swarm.external_groups = GROUPS // 2
    config.swarm.fill, config.swarm.choose = False, "turns"  # but for points that say so
    config.chain.endpoint = "none"
    config.learn.learning_rate = 2e-4
    config.rounds, config.evaluation.every, config.checkpoint_every = 300, 50, 100
    config.wandb.mode = "disabled"
    common.apply(config, variant, smoke, tune)
    return config


def get_sweep(variant: str = "") -> Sweep:
    if variant == "smoke":
        return Sweep({ALONE: split(8), HALF: split(4)}, seeds=SEEDS[:2], baseline=ALONE)
    if variant == "tune":
        points = {f"{own}-{GROUPS - own}-{rate:g}": split(own, **{RATE: rate}) for own in (8, 4) for rate in RATES}
        return Sweep(points, seeds=TUNING_SEEDS)
    points = {f"{own}-{GROUPS - own}": split(own) for own in range(GROUPS, 0, -1)}
    points |= CONTROLS | VARIANTS | STALENESS | ILL | NEW | MIXED
    points |= {f"{own}-{GROUPS - own}-long": split(own) | LONG for own in (8, 6, 4, 2)} | {
        "adaptive-long": ADAPTIVE | LONG
    }
    return Sweep(points, seeds=SEEDS, baseline=ALONE)
