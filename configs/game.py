"""Does it help to hear others? Four nodes answer, criticise and revise; then the game is played on held-out problems.

    python -m experiments.run --config configs/game.py [--config.seed=1]
    python -m experiments.evaluate --config configs/game.py --checkpoint runs/game
    python -m experiments.run --config configs/game.py:novotes     the reviser is not shown how critics voted
    python -m experiments.run --config configs/game.py:control     only answers, with as many samples to learn from
    python -m experiments.run --config configs/game.py:simulate    in one process (smoke: a minute, for tests)

Hardware: 2 CPU cores, no GPU.
Measured (rendered: game):
  not measured yet

Half of the problems are sums, which the embedded model gets right some of the time only, even un-spoiled: there
answers differ, and there is something to learn from others. It starts un-spoiled, because it has been taught all three
stages; the learning rate is a tenth of the quickstart's: at 1e-4 it already forgets more than it learns.
"""

import ml_collections

from configs import common


def control(config: ml_collections.ConfigDict) -> None:
    """All that the other stages would learn from are answers here."""
    config.game.stages = 1
    config.swarm.local_groups += 2 * config.game.shared


def novotes(config: ml_collections.ConfigDict) -> None:
    config.game.show_votes = False


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("game")
    config.model.path = "embedded:base"
    config.tasks.chain_sum.weight = 2.0
    config.swarm.local_groups, config.game.shared = 4, 4
    config.swarm.external_groups = 8
    config.learn.learning_rate = 3e-5
    config.rounds = config.evaluation.every = 100
    common.apply(config, variant, control, novotes, common.simulate, common.smoke)
    return config
