"""Does it help to hear others? Four nodes answer, criticise and revise; then the game is played on held-out problems.

    python -m experiments.run --config configs/game.py [--config.seed=1]
    python -m experiments.evaluate --config configs/game.py --checkpoint runs/game
    python -m experiments.run --config configs/game.py:novotes     the reviser is not shown how critics voted
    python -m experiments.run --config configs/game.py:control     only answers, with as many samples to learn from
    python -m experiments.run --config configs/game.py:live        a process for each node (smoke: a minute, for tests)

Hardware: 2 CPU cores, no GPU.
Measured (rendered: game):
  not measured yet

Half of the problems are sums, which the embedded model gets right some of the time only, even un-spoiled: there
answers differ, and there is something to learn from others.
"""

import ml_collections

from configs import common


def control(config: ml_collections.ConfigDict) -> None:
    """All that the other stages would learn from are answers here."""
    config.game.stages = 1
    config.swarm.local_groups += 2 * config.game.shared


def novotes(config: ml_collections.ConfigDict) -> None:
    config.game.show_votes = False


def live(config: ml_collections.ConfigDict) -> None:
    config.driver = "live"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("game")
    common.simulate(config)
    config.tasks.chain_sum.weight = 2.0
    config.swarm.local_groups, config.game.shared = 4, 4
    config.rounds, config.evaluation.every = 200, 100
    config.learn.decay_to = 0.1
    config.game.weights = (1.0, 1.0, 2.0)  # revising is learned last: it takes answers and critiques worth reading
    common.apply(config, variant, control, novotes, live, common.smoke)
    return config
