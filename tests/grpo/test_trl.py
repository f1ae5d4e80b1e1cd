"""Losses and their gradients in the log-probs equal TRL's, stored (by `make_golden.py`) and live where it installs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax.grpo import objective
from rlswarm_jax.grpo.objective import Objective
from tests.grpo import make_golden, tiny
from tests.grpo.make_golden import LENGTHS, LOSSES, MOST, B, C


@functools.cache
def golden():
    return dict(np.load(make_golden.PATH))


def ours(name):
    """Loss and gradient."""
    given, settings = make_golden.given(), LOSSES[name][0]
    batch = tiny.padded(
        tokens_BT=np.zeros((B, C), np.int32),
        prompt_lengths_B=np.ones(B, np.int32),
        completion_lengths_B=LENGTHS,
        advantages_B=given["advantages_B"],
        old_logprobs_BC=given["old_BC"],
        old_known_B=np.ones(B, bool),
    )
    o = Objective(**settings, correction="none", max_new_tokens=MOST)
    if settings.get("kl_weight"):
        batch = batch.replace(reference_logprobs_BC=given["reference_BC"])
    if name == "corrected":
        batch = batch.replace(behaviour_logprobs_BC=given["behaviour_BC"], behaviour_known_B=np.ones(B, bool))
        o = Objective(**settings, correction="token", correction_cap=2.0, max_new_tokens=MOST)
    if name == "high entropy":
        mask_BC = np.arange(C) < LENGTHS[:, None]
        floor = np.quantile(given["entropy_BC"][mask_BC], 0.6)
        batch = batch.replace(entropy_floor_B=np.full(B, floor))
    with jax.enable_x64(True):
        (loss, sums), gradient_BC = jax.jit(jax.value_and_grad(objective.loss_sums, has_aux=True), static_argnums=3)(
            given["now_BC"], jnp.asarray(given["entropy_BC"]), batch, o
        )
        return float(loss / sums["divisor"]), np.asarray(gradient_BC / sums["divisor"])


def check(name, loss, gradient_BC):
    found, found_BC = ours(name)
    assert abs(loss) > 1e-3 and np.abs(gradient_BC).max() > 1e-3
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(found_BC, gradient_BC, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_trl(name):
    check(name, golden()[f"{name}/loss"], golden()[f"{name}/gradient_BC"])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_live_trl(name):
    pytest.importorskip("trl")
    check(name, *make_golden.theirs(name))
