"""What lets a reviser keep up: four nodes begin with the spoiled model, which says "?" to nearly everything.

    python -m experiments.sweep --config configs/reviser.py                       all that was tried, with five seeds
    python -m experiments.run --config configs/reviser.py                         the game as it is by default
    python -m experiments.render --trials reviser runs/reviser/*/seed-*           into results/reviser.json

Hardware: 2 CPU cores, no GPU; two minutes a run.
Measured (rendered: reviser):
  game.derivation_reward=0.0, game.stand_by=False: revised, less first answer, -32.5 points
  game.derivation_reward=0.0, game.shared=4, game.stand_by=False: revised, less first answer, -17.3
    points
  game.derivation_reward=0.0, game.stand_by=False, game.weights=[1.0, 1.0, 3.0]: revised, less first
    answer, -12.1 points
  game.derivation_reward=0.0, game.stand_by=False, learn.learning_rate=0.0006: revised, less first
    answer, -32.9 points
  game.derivation_reward=0.0, game.shared=4, game.stand_by=False, game.weights=[1.0, 1.0, 3.0]:
    revised, less first answer, -20.2 points
  game.critics=0, game.derivation_reward=0.0, game.stand_by=False: revised, less first answer, -10.0
    points
  game.stand_by=False: revised, less first answer, -30.8 points
  default: revised, less first answer, -4.4 (-6.4 to -2.4) points
  game.weights=[1.0, 1.0, 3.0]: revised, less first answer, -3.8 points
  commit 8f62622d9cdd
"""

from typing import Any

import ml_collections

from configs import common
from configs.sweeps import Sweep

BEFORE: dict[str, Any] = {"game.stand_by": False, "game.derivation_reward": 0.0}
POINTS: dict[str, dict[str, Any]] = {
    "before": BEFORE,
    "shared": BEFORE | {"game.shared": 4},
    "weighed": BEFORE | {"game.weights": (1.0, 1.0, 3.0)},
    "faster": BEFORE | {"learn.learning_rate": 6e-4},
    "shared-weighed": BEFORE | {"game.shared": 4, "game.weights": (1.0, 1.0, 3.0)},
    "unread": BEFORE | {"game.critics": 0},
    "derived": {"game.stand_by": False},
    "default": {},
    "default-weighed": {"game.weights": (1.0, 1.0, 3.0)},
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("reviser")
    common.simulate(config)
    config.swarm.fill, config.swarm.choose = False, "turns"
    config.chain.endpoint = "none"  # a study: problems follow from the seed
    common.apply(config, variant, common.smoke)
    return config


def get_sweep(variant: str = "") -> Sweep:
    return Sweep(points=POINTS, seeds=range(5), baseline="before")
