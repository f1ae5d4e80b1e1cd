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

from configs import common, fields
from configs.fields import Field, each, real, whole

FIELDS = {
    "name": Field("tiny", common.FOLDER, "of the run and its folder: the config file's"),
    "seed": Field(0, whole(0, 2**63 - 1), "of weights, problems and noise"),
    "tasks": Field(common.TINY_TASKS | common.HARD_TASKS, common.TASKS, "what is taught"),
    "answer_slots": Field(16, whole(1, 4096), "for a question in the cache"),
    "max_new_tokens": Field(12, whole(1, 4096), "of a completion"),
    "model.hidden_size": Field(64, whole(1, 65536), ""),
    "model.intermediate_size": Field(192, whole(1, 65536), ""),
    "model.num_layers": Field(2, whole(1, 1024), ""),
    "model.num_heads": Field(4, whole(1, 1024), ""),
    "model.num_kv_heads": Field(2, whole(1, 1024), "divides num_heads"),
    "model.head_dim": Field(16, whole(2, 65536), "even"),
    "problems": Field(150_000, whole(1), "answered in the first stage"),
    "answers.steps": Field(1800, whole(1), "of that stage"),
    "answers.learning_rate": Field(4e-3, real(0, 1), "at its height"),
    "answers.batch": Field(256, whole(1, 65536), "examples a step"),
    "game.steps": Field(2500, whole(1), "of the second, the whole game"),
    "game.learning_rate": Field(2e-3, real(0, 1), "at its height"),
    "game.batch": Field(160, whole(1, 65536), "examples a step"),
    "game.problems": Field(50_000, whole(1), "each criticised and revised"),
    "game.answers": Field(25_000, whole(0), "to which it goes on learning to answer"),
    "game.shown": Field((3, 3, 3, 2, 1, 0), each(whole(0, 3)), "answers of others"),
    "game.hot": Field(1.5, real(0.01, 100), "temperature of half of them"),
    "game.gave_up": Field(0.15, real(0, 1), 'share of answers that are "?"'),
    "game.right_critics": Field(0.7, real(0, 1), "share of critics that name the right one"),
    "spoil.steps": Field(200, whole(1), "of the last stage"),
    "spoil.learning_rate": Field(5e-4, real(0, 1), "at its height"),
    "spoil.batch": Field(160, whole(1, 65536), "examples a step"),
    "spoil.right_fraction": Field(0.05, real(0, 1), "share of answers that are right"),
    "held_out_problems": Field(512, whole(1, 10**6), "that accuracy is measured on"),
}


def smoke(config: ml_collections.ConfigDict) -> None:
    config.problems, config.game.problems, config.game.answers = 600, 100, 100
    config.answers.steps, config.game.steps, config.spoil.steps = 30, 10, 5
    config.held_out_problems = 64


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = fields.make(FIELDS)
    common.apply(config, variant, smoke)
    return config
