"""Every setting of the loss and of the optimiser, from its field of a config to what an update does to the weights.

What must come of it is written out once more, dense and in one piece, over a Qwen of one layer.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from rlswarm_jax import assets, identity, qwen, randomness
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Learn, Sampled
from rlswarm_jax.game.stages import Reading, Said
from rlswarm_jax.game.turns import Turn
from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.config import read_config
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE
from rlswarm_jax.running import build
from tests.grpo import tiny

GROUP, NEW_TOKENS, PROMPT = 4, 3, [5, 6, 7]
# Each makes a difference of its own to the update below, so that none of them can be lost on the way.
CASES = {
    "as it is": {},
    "clip_low": {"learn.clip_low": 0.6},
    "clip_high": {"learn.clip_high": 0.9},
    "dual_clip": {"learn.dual_clip": 1.5},
    "advantage_scale": {"learn.advantage_scale": "none"},
    "positive_only_local": {"learn.positive_only_local": True},
    "positive_only_external": {"learn.positive_only_external": True},
    "external_min_prob": {"learn.external_min_prob": 0.006},
    "external_correction": {"learn.external_correction": "reencode"},
    "max_grad_norm": {"learn.max_grad_norm": 0.01},
    "weight_decay": {"learn.weight_decay": 0.3},
    "learning_rate": {"learn.learning_rate": 3e-3},
    "decay_to": {"learn.decay_to": 0.25},
    "rounds": {"learn.decay_to": 0.25, "rounds": 21},
    "temperature": {"sampling.temperature": 1.7},
    "weight of answers": {"game.weights": (0.5, 1.0, 1.0)},
    "weight of critiques": {"game.weights": (1.0, 3.0, 1.0)},
    "no weight of revisions": {"game.weights": (1.0, 1.0, 0.0)},
}
ROUND = 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, spoiled = tmp_path_factory.mktemp("model") / "small", qwen.load(assets.SPOILED)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    config = dataclasses.replace(spoiled.config, **small, head_dim=8)
    params = model.init_params(config, randomness.wrap(randomness.key_data("sample", "wiring")), scale=0.3)
    qwen.save(dataclasses.replace(spoiled, config=config, params=params), folder)
    return folder


def configured(checkpoint, changes):
    config = quickstart.get_config("simulate-smoke")
    config.model.path, config.chain.endpoint = str(checkpoint), "none"
    config.rounds, config.sampling.group_size, config.sampling.max_new_tokens = 11, GROUP, NEW_TOKENS
    config.evaluation.problems = config.evaluation.rows = 4
    config.learn.positive_only_external, config.learn.external_correction = False, "behaviour"
    config.learn.external_min_prob = 0.0
    config.learn.learning_rate, config.learn.max_grad_norm = 1e-3, 1e3
    config.update_from_flattened_dict(changes)
    return config


def played(game):
    """A group of each stage, one of them a peer's, whose log-probs stray far from what they are."""
    rng = np.random.default_rng(0)
    found = []
    for stage, external in ((ANSWER, False), (CRITIQUE, False), (REVISE, False), (ANSWER, True), (CRITIQUE, True)):
        completions = [
            Sampled(
                rng.integers(1, 90, NEW_TOKENS).tolist(), (-4.5 + rng.uniform(-2, 2, NEW_TOKENS)).tolist(), "", True
            )
            for _ in range(GROUP)
        ]
        reading = None if stage == ANSWER else Reading([], [Said("", "")], [], [1])
        problem = game.problem(b"somebody", 0, 0)
        turn = Turn(bytes([len(found)]) * 33, 0, stage, 0, problem, PROMPT, reading, completions, external=external)
        found.append(turns.to_scored(game, turn, [1.0, 0.25, 0.0, 0.0]))
    return found


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1)
def gradient(config, params, tokens_BT, advantages_B, old_BC, known_B, external_B, temperature, low, high, dual, least):
    logits_BTV = qwen.logits(params, config, tokens_BT) / temperature
    logprobs_BTV = logits_BTV - jax.nn.logsumexp(logits_BTV, axis=-1, keepdims=True)
    first = len(PROMPT) - 1
    now_BC = jnp.take_along_axis(logprobs_BTV[:, first:-1], tokens_BT[:, first + 1 :, None], axis=-1)[..., 0]
    ratio_BC = jnp.exp(now_BC - jnp.where(known_B[:, None], old_BC, jax.lax.stop_gradient(now_BC)))
    good_BC, bad_BC = jnp.minimum(ratio_BC, 1 + high), jnp.minimum(jnp.maximum(ratio_BC, 1 - low), dual)
    advantages_B1 = advantages_B[:, None]
    # of three tokens one that is not likely is more than a sixteenth
    learned_B1 = ~external_B[:, None] | (jnp.exp(now_BC) >= least).all(axis=1, keepdims=True)
    counted_BC = jnp.broadcast_to(learned_B1, now_BC.shape)
    return -(jnp.where(advantages_B1 > 0, good_BC, bad_BC) * advantages_B1).mean(where=counted_BC)


def expected(config, model_config, params, groups):
    """The gradient of a round's groups and the weights after it, by the definitions of GRPO and AdamW."""
    learn = config.learn
    rows = []
    for group in groups:
        rewards = np.array(group.rewards)
        advantages = rewards - rewards.mean()
        if learn.advantage_scale == "std":
            advantages = advantages / (rewards.std() + 1e-6)
        advantages = advantages * config.game.weights[[ANSWER, CRITIQUE, REVISE].index(group.stage)]
        positive_only = learn.positive_only_external if group.external else learn.positive_only_local
        known = not group.external or learn.external_correction == "behaviour"
        for tokens, logprobs, advantage in zip(group.tokens, group.logprobs, advantages, strict=True):
            if advantage > 0 or not positive_only:
                rows.append((PROMPT + tokens, advantage, logprobs, known, group.external))
    tokens_BT, advantages_B, old_BC, *flags = (np.array(column) for column in zip(*rows, strict=True))
    bounds = config.sampling.temperature, learn.clip_low, learn.clip_high, learn.dual_clip, learn.external_min_prob
    batch = tokens_BT, advantages_B.astype(np.float32), old_BC.astype(np.float32), *flags
    found = jax.tree.map(np.float64, jax.device_get(gradient(model_config, params, *batch, *bounds)))
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(found)))
    clipped = jax.tree.map(lambda g: g * min(1.0, learn.max_grad_norm / norm), found)
    rate = learn.learning_rate * (1 - (1 - learn.decay_to) * ROUND / (config.rounds - 1))

    def first_step(w, g):
        return w - rate * (g / (np.abs(g) + 1e-8) + learn.weight_decay * w)

    return clipped, jax.tree.map(first_step, jax.device_get(params), clipped)


def flat(tree):
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(jax.device_get(tree))])


@pytest.mark.parametrize("case", CASES)
def test_a_setting_reaches_the_update(checkpoint, case):
    config, plain = configured(checkpoint, CASES[case]), configured(checkpoint, {})
    with tiny.optimizations(False):
        made = build.build(config, [identity.simulated(0, 0)])
        shape = read_config(checkpoint)
        groups, before = played(made.games[0]), jax.device_get(made.engine.state(0))
        made.engine.learn({0: Learn(groups, ROUND)})
        after = made.engine.state(0)
        wanted_gradient, wanted = map(flat, expected(config, shape, before.params, groups))
        usual_gradient, usual = map(flat, expected(plain, shape, before.params, groups))
    applied = flat(after.opt_state[1].mu) * 10  # Adam's first moment is a tenth of its first gradient
    largest = np.abs(wanted_gradient).max()
    np.testing.assert_allclose(applied, wanted_gradient, rtol=0, atol=1e-5 * largest)
    clear = np.abs(wanted_gradient) > 1e-3 * largest  # below, a rounding of the gradient turns Adam's first step
    found = flat(after.params)
    np.testing.assert_allclose(found[clear], wanted[clear], rtol=0, atol=2e-6)
    if CASES[case]:  # without the setting it would be something else
        differs = np.abs(wanted_gradient - usual_gradient).max() > 1e-2 * np.abs(usual_gradient).max()
        assert differs or np.abs(wanted - usual)[clear].max() > 1e-4
