"""Every piece of the loss and every preset, its value and its gradient, against the papers' equations by hand."""

import ast
import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from rlswarm_jax import parallel
from rlswarm_jax.grpo import objective
from rlswarm_jax.grpo.objective import OWN, PRESETS, Objective
from tests.grpo import reference, tiny

B, C = 9, 6
BASE = Objective(max_new_tokens=C, external_min_prob=1e-3)
FIELDS = {field.name for field in dataclasses.fields(Objective)}


def preset(name, **changes):
    """As a config has it."""
    config = common.swarm("test")
    config.learn.loss, config.learn.external_correction = name, "behaviour"
    learn = objective.resolved(config.learn) | {"external_min_prob": 1e-3, "max_new_tokens": C} | changes
    return Objective(**{key: value for key, value in learn.items() if key in FIELDS})


PIECES = {  # each against the default
    "clip_low": {"clip_low": 0.6},
    "clip_high": {"clip_high": 0.6},
    "dual_clip": {"dual_clip": 1.3},
    "no dual clip": {"dual_clip": 0.0},
    "cispo": {"surrogate": "cispo"},
    "sapo": {"surrogate": "sapo", "tau_positive": 2.0, "tau_negative": 5.0},
    "no bound": {"surrogate": "none"},
    "sequence": {"ratio": "sequence", "clip_low": 0.1, "clip_high": 0.1},
    "sequence, cispo": {"ratio": "sequence", "surrogate": "cispo", "clip_high": 0.1},
    "sequences": {"aggregation": "sequences"},
    "constant": {"aggregation": "constant"},
    **{f"{kl}, {how}": {"kl": kl, "kl_weight": 0.3, "aggregation": how} for kl, how in zip(
        ("k1", "k2", "k3"), ("tokens", "sequences", "constant"), strict=True)},
    "entropy bonus": {"entropy_bonus": 0.2},
    "entropy bonus by sequence": {"entropy_bonus": 0.2, "aggregation": "sequences"},
    "entropy floor": {"entropy_top": 0.4},
    "no correction": {"correction": "none"},
    "whole completions corrected": {"correction": "sequence"},
    "floor and cap": {"correction_floor": 0.9, "correction_cap": 1.1},
    "peers' masked": {"external_correction": "mask", "correction_floor": 0.7, "correction_cap": 1.3},
    "peers' masked by completion": {"external_correction": "mask", "correction": "sequence"},
    "all of peers'": {"external_min_prob": 0.0},
}  # fmt: skip
CASES = {**{name: preset(name) for name in PRESETS}, **{n: dataclasses.replace(BASE, **c) for n, c in PIECES.items()}}


@functools.cache
def inputs(seed=0):
    """Log-probs and entropies of now, and a batch of all kinds of rows; what is masked is not a number."""
    rng = np.random.default_rng(seed)
    lengths_B = np.array([6, 3, 0, 1, 5, 6, 2, 4, 6])
    mask_BC = np.arange(C) < lengths_B[:, None]
    now_BC = -rng.uniform(0.05, 4, (B, C))
    now_BC[5, 1] = np.log(1e-4)  # a peer's, of whose tokens a sixth is unlikely: all of it is left out
    old_BC, reference_BC = (now_BC + rng.uniform(-1.4, 1.4, (B, C)) for _ in range(2))
    behaviour_BC = old_BC + rng.uniform(-1.2, 1.2, (B, C))
    batch = tiny.padded(
        tokens_BT=np.zeros((B, C), np.int32),
        prompt_lengths_B=np.ones(B, np.int32),
        completion_lengths_B=lengths_B.astype(np.int32),
        advantages_B=np.array([1.5, -0.8, 1.0, -1.2, 0.6, 1.0, 0.0, -2.0, 0.9]),
        old_logprobs_BC=np.where(mask_BC, old_BC, np.nan),
        old_known_B=np.arange(B) != 4,
        external_B=np.isin(np.arange(B), [1, 3, 5, 8]),
        behaviour_logprobs_BC=np.where(mask_BC, behaviour_BC, np.nan),
        behaviour_known_B=np.arange(B) != 7,
        reference_logprobs_BC=np.where(mask_BC, reference_BC, 0.5),
        entropy_floor_B=np.full(B, 1.2),
    )
    return np.where(mask_BC, now_BC, -1.0), rng.uniform(0, 3, (B, C)), batch


def of(o, seed=0):
    """Only what such a loss is given."""
    now_BC, entropy_BC, batch = inputs(seed)
    if not o.kl_weight:
        batch = batch.replace(reference_logprobs_BC=None)
    return now_BC, entropy_BC, batch.replace(entropy_floor_B=batch.entropy_floor_B if o.entropy_top < 1 else None)


def summed(now_BC, entropy_BC, batch, o):
    return jax.value_and_grad(objective.loss_sums, argnums=(0, 1), has_aux=True)(now_BC, entropy_BC, batch, o)


def divided(total):
    (loss, sums), gradients = total
    return jax.tree.map(lambda g: g / sums["divisor"], gradients), jax.device_get(objective.means(loss, sums))


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradient_are_what_the_equations_say(name):
    o = CASES[name]
    with jax.enable_x64(True):
        (slopes_BC, slopes_H_BC), metrics = divided(summed(*of(o), o))
    wanted_BC, wanted_H_BC, wanted = reference.written_out(*of(o), o)
    np.testing.assert_allclose(slopes_BC, wanted_BC, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(slopes_H_BC, wanted_H_BC, rtol=1e-6, atol=1e-9)
    for key, value in wanted.items():
        np.testing.assert_allclose(metrics[key], value, rtol=2e-6, err_msg=key)


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_makes_a_difference(name):
    """So that none of them can be lost on the way."""
    found, usual = (reference.written_out(*of(o), o)[:2] for o in (CASES[name], BASE))
    assert np.abs(np.subtract(found, usual)).max() > 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_tiles_give_the_loss_and_the_gradient_of_the_whole_batch(name):
    """Of different widths, 1e-12 in float64: what the sum is divided by is the whole batch's."""
    o = CASES[name]
    now_BC, entropy_BC, batch = of(o)
    short = np.flatnonzero(batch.completion_lengths_B <= 3)
    tiles = (short, 3), (np.setdiff1d(np.arange(B), short), C)

    def tile(rows, width):
        one = jax.tree.map(lambda x: x[rows, :width] if x.ndim == 2 else x[rows], batch)
        return now_BC[rows, :width], entropy_BC[rows, :width], one

    with jax.enable_x64(True):
        (whole_BC, _), metrics = divided(summed(*of(o), o))
        parts = [summed(*tile(*at), o) for at in tiles]
        sums = functools.reduce(parallel.add, [total for total, _ in parts])
        found = jax.device_get(objective.means(*sums))
    assert found.keys() == metrics.keys()
    for key, value in found.items():
        np.testing.assert_allclose(value, metrics[key], rtol=1e-12, err_msg=key)
    for (rows, width), (_, (slopes_BC, _)) in zip(tiles, jax.device_get(parts), strict=True):
        np.testing.assert_allclose(
            slopes_BC / float(sums[1]["divisor"]), whole_BC[rows, :width], rtol=1e-12, atol=1e-15
        )


def test_where_sampler_and_trainer_agree_the_default_is_bit_for_bit_one_ratio_to_who_sampled():
    """What the loss was before the three policies were told apart: no default run learns anything else by it."""
    now_BC, entropy_BC, batch = of(BASE)
    now_BC, rng = np.float32(now_BC), np.random.default_rng(0)
    close_BC = now_BC + np.float32(1e-6) * rng.standard_normal((B, C), np.float32)
    batch = batch.replace(
        advantages_B=np.float32(batch.advantages_B), old_known_B=np.zeros(B, bool), behaviour_logprobs_BC=close_BC
    )
    mask_BC = np.array([[t < n for t in range(C)] for n in batch.completion_lengths_B])
    mask_BC[5] = False  # a peer's, unlikely
    known_BC = mask_BC & batch.behaviour_known_B[:, None]

    def before(now_BC):
        ratio_BC = jnp.exp(now_BC - jnp.where(known_BC, close_BC, jax.lax.stop_gradient(now_BC)))
        clipped_BC = jnp.clip(ratio_BC, 0.8, 1.28)
        advantages_B1 = batch.advantages_B[:, None]
        lower_BC = jnp.minimum(ratio_BC * advantages_B1, clipped_BC * advantages_B1)
        return -jnp.where(mask_BC, lower_BC, 0.0).sum()

    loss, gradient = jax.jit(jax.value_and_grad(before))(now_BC)
    (found, _), (slopes_BC, _) = summed(now_BC, np.float32(entropy_BC), batch, BASE)
    assert np.asarray(gradient).any() and (np.asarray(gradient) == slopes_BC).all() and loss == found


class TestRatio:
    NOW, OLD = np.array([[-1.0, -2.0, -0.5, -3.0]]), np.array([[-1.0, -1.5, -2.5, -0.25]])

    def test_a_stale_tokens_weight_is_exactly_exp_of_the_difference(self):
        found = objective.log_ratio(jnp.asarray(self.NOW), jnp.asarray(self.OLD))
        np.testing.assert_allclose(np.exp(found), np.exp([[0, -0.5, 2, -2.75]]), rtol=1e-6)

    def test_the_gradient_flows_through_the_current_log_probs_alone(self):
        now, old = jax.grad(lambda *a: jnp.exp(objective.log_ratio(*a)).sum(), argnums=(0, 1))(
            jnp.asarray(self.NOW), jnp.asarray(self.OLD)
        )
        np.testing.assert_allclose(now, np.exp(self.NOW - self.OLD), rtol=1e-6)
        assert not old.any()

    def test_a_completions_ratio_does_not_grow_with_its_length(self):
        """A mean, not a sum: twenty times the same token has the ratio of one."""
        for length in (1, 20):
            logs = jnp.full((1, length), 0.1)
            found = objective.sequence_ratio(logs, jnp.ones((1, length), bool))
            np.testing.assert_allclose(found, np.full((1, length), math.exp(0.1)), rtol=1e-6)

    @pytest.mark.parametrize("name", PRESETS)
    @pytest.mark.parametrize("claim", [-50.0, -1e3, -3e38, 0.0])
    def test_whatever_is_claimed_of_a_log_prob_the_gradient_stays_finite(self, name, claim):
        now_BC, entropy_BC, batch = of(preset(name, external_correction="mask"))
        for field in ("old_logprobs_BC", "behaviour_logprobs_BC"):
            batch = batch.replace(**{field: np.full((B, C), claim, np.float32)})
        (loss, sums), gradients = summed(np.float32(now_BC), np.float32(entropy_BC), batch, preset(name))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, sums, gradients)))


class TestClip:
    #         ratio  advantage  objective        its slope in the ratio
    BOUNDS = (
        (0.50, +2.0, 0.50 * 2.0, 2.0),  # got less likely, was good: bring it back
        (1.00, +2.0, 1.00 * 2.0, 2.0),
        (1.27, +2.0, 1.27 * 2.0, 2.0),
        (1.29, +2.0, 1.28 * 2.0, 0.0),  # good enough
        (9.00, +2.0, 1.28 * 2.0, 0.0),
        (0.10, -3.0, 0.80 * -3.0, 0.0),  # unlikely enough
        (0.79, -3.0, 0.80 * -3.0, 0.0),
        (0.81, -3.0, 0.81 * -3.0, -3.0),
        (1.00, -3.0, 1.00 * -3.0, -3.0),
        (2.99, -3.0, 2.99 * -3.0, -3.0),  # got more likely, was bad
        (3.01, -3.0, 3.00 * -3.0, 0.0),  # so much more that the old log-prob is not to be trusted
        (9e8, -3.0, 3.00 * -3.0, 0.0),
        (0.10, 0.0, 0.0, 0.0),
        (9.00, 0.0, 0.0, 0.0),
    )

    @pytest.mark.parametrize(("ratio", "advantage", "value", "slope"), BOUNDS)
    def test_the_objective_stops_rewarding_at_the_bound_on_its_side(self, ratio, advantage, value, slope):
        def surrogate(ratio):
            ratio_BT = jnp.full((1, 1), ratio)
            return objective.clip(ratio_BT, ratio_BT, jnp.array([[advantage]]), BASE).objective_BT[0, 0]

        found = jax.value_and_grad(surrogate)(ratio)
        np.testing.assert_allclose(found, (value, slope), rtol=1e-6)


class TestPresets:
    def test_the_default_is_what_it_was_before_there_were_others(self):
        """GRPO's advantages, DAPO's bounds and mean over tokens, dual-clip PPO's bound, and nothing besides."""
        learn = objective.resolved(common.swarm("test").learn)
        expected = {"advantage": "std", "ratio": "token", "surrogate": "clip", "aggregation": "tokens"}
        expected |= {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "overlong_buffer": 0.0}
        expected |= {"kl_weight": 0.0, "entropy_bonus": 0.0, "entropy_top": 1.0, "mask_truncated": False}
        assert {name: learn[name] for name in expected} == expected

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_field_of_ones_own_stands_beside_any_of_them(self, name):
        config = common.swarm("test")
        config.learn.loss, plain = name, OWN | PRESETS[name]
        for field in OWN:
            value = {"": {"advantage": "none", "ratio": "sequence", "surrogate": "sapo", "aggregation": "constant"}}
            config.learn[field] = value[""].get(field, "k2") if config.learn[field] == "" else 0.5
            assert objective.resolved(config.learn)[field] == config.learn[field]
            config.learn[field] = common.FIELDS[f"learn.{field}"].default
        assert {field: objective.resolved(config.learn)[field] for field in OWN} == plain

    def test_each_says_only_what_fields_there_are(self):
        for name, own in PRESETS.items():
            assert own.keys() <= OWN.keys(), name
            for field, value in (OWN | own).items():
                common.FIELDS[f"learn.{field}"].range.check(field, value)

    def test_a_new_loss_is_one_line_of_one_file(self, monkeypatch):
        """A preset, and a bound of its own: the config's check takes it, and it is what is trained with."""

        def doubled(ratio_BT, logprobs_BT, advantages_B1, o):
            return objective.Surrogate(2 * ratio_BT * advantages_B1)

        monkeypatch.setitem(objective.SURROGATES, "doubled", doubled)
        monkeypatch.setitem(PRESETS, "mine", {"surrogate": "doubled", "aggregation": "sequences"})
        config = common.swarm("test")
        config.learn.loss = "mine"
        for name in ("loss", "surrogate"):
            common.FIELDS[f"learn.{name}"].range.check(name, {"loss": "mine", "surrogate": "doubled"}[name])
        assert objective.resolved(config.learn)["surrogate"] == "doubled"
        mine, plain = preset("mine"), dataclasses.replace(preset("mine"), surrogate="none")
        (loss, _), _ = summed(*of(mine), mine)
        (half, _), _ = summed(*of(plain), plain)
        np.testing.assert_allclose(loss, 2 * half, rtol=1e-6)

    def test_the_config_loads_no_jax_for_the_default(self):
        """A parent says who is who before jax loads: the table must not ask the losses for their names."""
        tree = ast.parse(inspect.getsource(common))
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
        assert not [node for node in imported if "grpo" in ast.unparse(node)]
