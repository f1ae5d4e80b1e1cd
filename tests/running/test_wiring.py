"""Every setting of the loss and of the optimiser, from its field of a config to what an update does to the weights.

What must come of it is written out once more, dense and in one piece, over a Qwen of one layer.
"""

import dataclasses
import functools
import types

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
from tests.grpo import reference, tiny

GROUP, NEW_TOKENS, PROMPT = 4, 3, [5, 6, 7]
# Each makes a difference of its own to the update below, so that none of them can be lost on the way.
CASES = {
    "as it is": {},
    "clip_low": {"learn.clip_low": 0.01},
    "clip_high": {"learn.clip_high": 50.0},
    "dual_clip": {"learn.dual_clip": 1.01},
    "advantage": {"learn.advantage": "leave_one_out"},
    "ratio and aggregation": {"learn.ratio": "sequence", "learn.aggregation": "sequences"},
    "surrogate": {"learn.loss": "cispo", "learn.aggregation": "constant"},
    "tau": {"learn.surrogate": "sapo", "learn.tau_positive": 2.0, "learn.tau_negative": 9.0},
    "kl": {"learn.kl_weight": 5.0, "learn.kl": "k2"},
    "kl to the policy before": {"learn.kl_weight": 5.0, "learn.reference_every": 1},
    "entropy": {"learn.entropy_bonus": 0.5, "learn.entropy_top": 0.4},
    "correction": {"learn.correction": "sequence"},
    "bounds of the correction": {"learn.correction_floor": 0.9, "learn.correction_cap": 1.1},
    "masked": {"learn.external_correction": "mask", "learn.correction_cap": 1.2},
    "cut off": {"learn.mask_truncated": True},
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
    config.learn.external_min_prob = config.learn.external_min_ess = 0.0
    config.learn.learning_rate, config.learn.max_grad_norm, config.learn.updates_per_round = 1e-2, 1e3, 2
    config.update_from_flattened_dict(changes)
    return config


def played(game):
    """A group of each stage, one of them a peer's, whose log-probs stray far from what they are."""
    rng = np.random.default_rng(0)
    found = []
    for stage, external in ((ANSWER, False), (CRITIQUE, False), (REVISE, False), (ANSWER, True), (CRITIQUE, True)):
        completions = []
        for g in range(GROUP):
            tokens = [*rng.integers(1, 90, NEW_TOKENS - 1).tolist(), g % 2 and rng.integers(1, 90).item()]  # some end
            completions.append(Sampled(tokens, (-4.5 + rng.uniform(-2, 2, NEW_TOKENS)).tolist(), "", g % 2 == 0))
        reading = None if stage == ANSWER else Reading([], [Said("", "")], [], [1])
        problem = game.problem(b"somebody", 0, 0)
        turn = Turn(bytes([len(found)]) * 33, 0, stage, 0, problem, PROMPT, reading, completions, external=external)
        found.append(turns.to_scored(game, turn, [1.0, 0.25, 0.0, 0.0]))
    return found


@functools.partial(jax.jit, static_argnums=0)
def now(config, params, tokens_BT, temperature):
    """Log-probs and entropies of the completions, `[B, C]` each."""
    logits_BTV = qwen.logits(params, config, tokens_BT) / temperature
    logprobs_BTV = (logits_BTV - jax.nn.logsumexp(logits_BTV, axis=-1, keepdims=True))[:, len(PROMPT) - 1 : -1]
    entropy_BC = -(jnp.exp(logprobs_BTV) * logprobs_BTV).sum(axis=-1)
    return jnp.take_along_axis(logprobs_BTV, tokens_BT[:, len(PROMPT) :, None], axis=-1)[..., 0], entropy_BC


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1)
def weighted(config, params, tokens_BT, temperature, slopes_BC, slopes_H_BC):
    logprobs_BC, entropy_BC = now(config, params, tokens_BT, temperature)
    return (slopes_BC * logprobs_BC + slopes_H_BC * entropy_BC).sum()


SWARM = {"ratio": "token", "surrogate": "clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
SWARM |= {"tau_positive": 1.0, "tau_negative": 1.05, "aggregation": "tokens", "kl": "k3", "kl_weight": 0.0}
CISPO = {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0, "dual_clip": 0.0}


def rows_of(config, groups):
    """As arrays: text, advantage, behaviour log-probs and whether they are used, whether a peer's."""
    learn, rows = config.learn, []
    for group in groups:
        rewards = np.array(group.rewards)
        advantages = rewards - rewards.mean()
        advantages = advantages * GROUP / (GROUP - 1) if learn.advantage else advantages / (rewards.std() + 1e-6)
        advantages = advantages * config.game.weights[[ANSWER, CRITIQUE, REVISE].index(group.stage)]
        positive_only = learn.positive_only_external if group.external else learn.positive_only_local
        known = not group.external or learn.external_correction != "reencode"
        for tokens, logprobs, advantage in zip(group.tokens, group.logprobs, advantages, strict=True):
            if (advantage > 0 or not positive_only) and not (learn.mask_truncated and tokens[-1] != 0):
                rows.append((PROMPT + tokens, advantage, logprobs, known, group.external))
    return (np.array(column) for column in zip(*rows, strict=True))


def expected(config, model_config, params, groups):
    """Adam's first moment and the weights after the round's two updates, by the definitions."""
    learn, temperature = config.learn, config.sampling.temperature
    tokens_BT, advantages_B, behaviour_BC, known_B, external_B = rows_of(config, groups)
    own = SWARM | (CISPO if learn.loss == "cispo" else {})
    o = types.SimpleNamespace(**learn.to_dict() | {n: v if learn[n] in ("", -1) else learn[n] for n, v in own.items()})
    o.max_new_tokens = NEW_TOKENS
    proximal_BC, entropy_BC = jax.device_get(now(model_config, params, tokens_BT, temperature))
    batch = types.SimpleNamespace(
        advantages_B=advantages_B,
        completion_lengths_B=np.full(len(tokens_BT), NEW_TOKENS),
        old_logprobs_BC=proximal_BC,
        old_known_B=np.ones(len(tokens_BT), bool),
        behaviour_logprobs_BC=behaviour_BC,
        behaviour_known_B=known_B,
        external_B=external_B,
        reference_logprobs_BC=proximal_BC if o.kl_weight else None,  # of the first weights, which these are
        entropy_floor_B=np.full(len(tokens_BT), np.quantile(entropy_BC, 1 - o.entropy_top) - 1e-4)  # first tokens tie
        if o.entropy_top < 1
        else None,
    )
    rate = learn.learning_rate * (1 - (1 - learn.decay_to) * ROUND / (config.rounds - 1))
    weights = jax.tree.map(np.float64, jax.device_get(params))
    first = second = jax.tree.map(np.zeros_like, weights)
    for update in (1, 2):
        at = jax.tree.map(np.float32, weights)
        slopes = reference.written_out(*jax.device_get(now(model_config, at, tokens_BT, temperature)), batch, o)[:2]
        found = weighted(model_config, at, tokens_BT, temperature, *map(np.float32, slopes))
        found = jax.tree.map(np.float64, jax.device_get(found))
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(found)))
        clipped = jax.tree.map(lambda g, n=norm: g * min(1.0, learn.max_grad_norm / n), found)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, clipped)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, second, clipped)

        def updated(w, m, v, update=update):
            direction = m / (1 - 0.9**update) / (np.sqrt(v / (1 - 0.99**update)) + 1e-8)
            return w - rate * (direction + learn.weight_decay * w)

        weights = jax.tree.map(updated, weights, first, second)
    return first, weights


def flat(tree):
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(jax.device_get(tree))])


@pytest.mark.parametrize("case", CASES)
def test_a_setting_reaches_the_update(checkpoint, case):
    config, plain = configured(checkpoint, CASES[case]), configured(checkpoint, {})
    with tiny.optimizations(False):
        made = build.build(config, [identity.simulated(0, 0)])
        shape = read_config(checkpoint)
        groups, before = played(made.games[0]), jax.device_get(made.engine.state(0))
        metrics = made.engine.learn({0: Learn(groups, ROUND)})[0]
        after = made.engine.state(0)
        wanted_moment, wanted = map(flat, expected(config, shape, before.params, groups))
        usual_moment, usual = map(flat, expected(plain, shape, before.params, groups))
    largest = np.abs(wanted_moment).max()
    np.testing.assert_allclose(flat(after.opt_state[1].mu), wanted_moment, rtol=0, atol=1e-4 * largest)
    clear = np.abs(wanted_moment) > 1e-2 * largest  # below, a rounding of the gradient turns Adam's first step
    np.testing.assert_allclose(flat(after.params)[clear], wanted[clear], rtol=0, atol=2e-5)
    if case == "as it is":  # of the second update: at the first one no ratio is anything but 1
        assert metrics["clip_low_fraction"] > 0 and metrics["clip_high_fraction"] > 0
    if CASES[case]:  # without the setting it would be something else
        differs = np.abs(wanted_moment - usual_moment).max() > 1e-3 * np.abs(usual_moment).max()
        assert differs or np.abs(wanted - usual)[clear].max() > 1e-4
