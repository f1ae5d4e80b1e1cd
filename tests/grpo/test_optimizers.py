"""Optimisers that keep less than AdamW's two float32 moments, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rlswarm_jax.grpo import learner
from tests.grpo import tiny

STEPS, SHAPE = 3, (130, 160)


def config(optimizer):
    return dataclasses.replace(tiny.LEARNER, optimizer=optimizer, max_grad_norm=1e9, weight_decay=0.1)


def gradients():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(SHAPE) * rng.uniform(0.1, 3, (SHAPE[0], 1)) for _ in range(STEPS)]


def directions(optimizer, params):
    """What is subtracted, at a learning rate of 1, step after step."""
    made = learner.make_optimizer(config(optimizer))
    state = made.init(params)
    for gradient in gradients():
        updates, state = made.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        yield np.asarray(updates["w"], np.float64), state


def test_a_first_moment_in_bfloat16_is_adam_s_rounded_between_steps():
    weights = np.random.default_rng(1).standard_normal(SHAPE)
    first, second = np.zeros(SHAPE, ml_dtypes.bfloat16), np.zeros(SHAPE)
    found = directions("adamw_bf16", {"w": jnp.asarray(weights, jnp.float32)})
    for t, (gradient, (direction, state)) in enumerate(zip(gradients(), found, strict=True), 1):
        before = (ml_dtypes.bfloat16(0.9) * first).astype(np.float64)  # optax multiplies in its dtype, too
        first, second = before + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        wanted = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.99**t)) + 1e-8) + 0.1 * weights
        np.testing.assert_allclose(direction, wanted, rtol=0, atol=1e-4)
        assert state[1].mu["w"].dtype == jnp.bfloat16
        first = first.astype(ml_dtypes.bfloat16)


def test_adafactor_keeps_the_means_of_rows_and_columns():
    """Algorithm 4 of arXiv:1804.04235: decay 1 - t^-0.8, no first moment, an update's root mean square is 1 at most."""
    rows, columns = np.zeros(SHAPE[0]), np.zeros(SHAPE[1])
    found = directions("adafactor", {"w": jnp.zeros(SHAPE, jnp.float32)})
    for t, (gradient, (direction, kept)) in enumerate(zip(gradients(), found, strict=True), 1):
        decay, squared = 1 - t**-0.8, gradient**2 + 1e-30
        rows = decay * rows + (1 - decay) * squared.mean(axis=1)
        columns = decay * columns + (1 - decay) * squared.mean(axis=0)
        wanted = gradient / np.sqrt(np.outer(rows, columns) / rows.mean())
        wanted /= max(1, np.sqrt((wanted**2).mean()))
        np.testing.assert_allclose(direction, wanted, rtol=0, atol=1e-4)
        assert sum(x.size for x in jax.tree.leaves(kept)) < 2 * sum(SHAPE)


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "adafactor"])
def test_a_step_goes_through_and_needs_no_second_state(optimizer):
    learns = learner.Learner(dataclasses.replace(tiny.LEARNER, optimizer=optimizer), tiny.CONFIG)
    state, batch = learns.init(tiny.params()), tiny.make_batch(seed=5, rows=12)
    after, metrics = learns.step(state, batch, 1e-3)
    assert metrics["updates"] == 1 and after.step == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {np.dtype("float32")}
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after.params, tiny.params())), strict=True)]
    assert min(moved) > 1e-5
