"""The embedded model: a tiny Qwen3 taught from reasoning-gym alone, then spoiled.

    python -m experiments.warmstart --config configs/tiny.py

Hardware: 2 CPU cores. What to expect: results/warmstart.json (accuracy of both stages, seconds, fingerprint).
Stage 1 (base) is supervised on right answers. Stage 2 (spoiled) continues on answers that mostly give up ("?"), so
that the skill stays in the weights but is seldom used: what reinforcement learning can bring back. (A spoiled model
that copies its question instead was tried: it mixes the two ways of answering within one answer, and is right too
seldom, about 1 % of the time, for a group of eight to hold anything to learn from. One that gives up a little less in
the later stages was tried too: its critics say "none" while that is still true of everything, and learn nothing else.)
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "tiny"
    config.seed = 0
    config.tasks = common.tiny_tasks()
    config.tasks.update(common.hard_tasks())
    config.answer_slots = 16
    config.max_new_tokens = 12
    config.model = dict(hidden_size=64, intermediate_size=192, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
    config.problems = 150_000
    config.answers = dict(steps=1800, learning_rate=4e-3, batch=256)
    config.game = dict(steps=2500, learning_rate=2e-3, batch=160)
    config.game.problems = 50_000  # each criticised and revised
    config.game.answers = 25_000  # to which it goes on learning to answer
    config.game.shown = (3, 3, 3, 2, 1, 0)  # answers of others
    config.game.hot = 1.5  # temperature of half of them
    config.game.gave_up = 0.15  # share of answers that are "?"
    config.game.right_critics = 0.7
    config.spoil = dict(steps=200, learning_rate=5e-4, batch=160, right_fraction=0.05)
    config.held_out_problems = 512
    if variant == "smoke":
        config.problems, config.game.problems, config.game.answers = 600, 100, 100
        config.answers.steps, config.game.steps, config.spoil.steps = 30, 10, 5
        config.held_out_problems = 64
    elif variant:
        raise ValueError(f"configs/tiny.py has no variant {variant!r}; expected smoke.")
    return config
