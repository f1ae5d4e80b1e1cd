"""What one or two of eight nodes can do to the others, by what stands against them: attack x defence.

    python -m experiments.sweep --config configs/attacks.py --dry-run     # what there is to do
    python -m experiments.sweep --config configs/attacks.py:smoke         # two seeds of two points
    python -m experiments.sweep --config configs/attacks.py               # all of it, or what is left of it
    python -m experiments.report runs/attacks --save results/attacks.json

Hardware: 2 CPU cores, a minute a run. What was found: docs/attacks.md, rendered from results/attacks.json.

The model is the one that was not spoiled, sampled at a temperature at which it is often wrong: the spoiled one says
next to nothing else than "?" for a dozen rounds, and what everybody says proves nothing (docs/audit.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from configs import common
from configs.sweeps import Sweep

SEEDS = range(5)
NODES = 8
# what a node may leave away: that it scores by itself is no choice, since nothing about correctness travels
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {"swarm.flat": True, "learn.positive_only_external": False, "learn.external_min_prob": 0.0},
    "scoring": {},
    "audits": {"audit.auditors": 1},
}
NOBODY = "nobody"
# in a game of one stage; and of three, where there are critics
SYBIL = "sybil"
ANSWERS = (
    *("other_key", "best_of", "wrong", "copy", "spam", "style", "lengthen", "free_ride"),
    *("stale", "equivocate", "withhold", "accuse", SYBIL),
)
VOTES = ("lazy", "collude", "own_vote")
COUNTS = (1, 2)
STAGES: dict[str, Any] = {"game.stages": 3}
# who comes back under a fresh key when it has been found out, and lies on
ROUNDS, LASTS = 30, 6  # rounds of a run, and of a key
KEYS = ROUNDS // LASTS


def name(attack: str, count: int, defence: str) -> str:
    return f"{attack}-{count}-{defence}" if count else f"{attack}-{defence}"


def points(attacks: Sequence[str], nobody: str, more: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each attack by one and by two, and of nobody, with each defence."""
    cases = [(nobody, 0), *((attack, count) for attack in attacks for count in COUNTS)]
    found: dict[str, dict[str, Any]] = {}
    for attack, count in cases:
        found |= {name(attack, count, how): fields(attack, count, how) | dict(more) for how in DEFENCES}
    return found


def fields(attack: str, count: int, defence: str) -> dict[str, Any]:
    if attack == SYBIL:
        return DEFENCES[defence] | one_key_after_another(count)
    ill = [[NODES - 1 - n, attack] for n in range(count)]
    return DEFENCES[defence] | ({"simulation.adversaries": ill} if ill else {})


def one_key_after_another(count: int) -> dict[str, Any]:
    """As many nodes at any time as elsewhere, of which the last are so many attackers, each with its next key."""
    keys = [(NODES - count + n, n % KEYS) for n in range(count * KEYS)]
    return {
        "swarm.nodes": NODES - count + len(keys),
        "simulation.adversaries": [[node, "other_key"] for node, _ in keys],
        "simulation.present": [[node, [[LASTS * turn, LASTS * (turn + 1)]]] for node, turn in keys],
    }


# of docs/attacks.md: attacks, and what a swarm is called in which there is none
TABLES = {"answers": (ANSWERS, NOBODY), "votes": (VOTES, f"{NOBODY}-staged")}


def smoke(config: ml_collections.ConfigDict) -> None:
    config.rounds = 6
    config.evaluation.every, config.evaluation.problems = 6, 64


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("attacks")
    common.simulate(config)
    config.swarm.nodes, config.game.stages = NODES, 1
    config.swarm.fill, config.swarm.choose = False, "turns"
    config.model.path, config.sampling.temperature = "embedded:base", 2.0
    config.chain.endpoint = "none"
    config.learn.learning_rate = 5e-4
    config.rounds = config.evaluation.every = config.checkpoint_every = ROUNDS
    config.wandb.mode = "disabled"
    common.apply(config, variant, smoke)
    return config


def get_sweep(variant: str = "") -> Sweep:
    every = points(ANSWERS, NOBODY, {}) | points(VOTES, f"{NOBODY}-staged", STAGES)
    baseline = name(NOBODY, 0, "scoring")
    if variant == "smoke":
        few = (baseline, name("other_key", 1, "audits"))
        return Sweep({point: every[point] for point in few}, seeds=SEEDS[:2], baseline=baseline)
    return Sweep(every, seeds=SEEDS, baseline=baseline)
