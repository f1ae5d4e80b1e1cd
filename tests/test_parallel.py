"""What eight devices compute is compared here; they compute it in a process of their own, `on_eight_devices`."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlswarm_jax import parallel
from rlswarm_jax.grpo import learner
from tests.grpo import tiny

STEPS = 3
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # it compiles in half the time
}


def batches():
    """Eight rows, the last two without a token: of eight devices two have nothing to do."""
    for seed in range(STEPS):
        batch = tiny.make_batch(seed=seed, rows=8, known="mixed")
        batch.completion_lengths_B[-2:] = 0
        yield batch


def train(step):
    """Three steps, each waited for: forced host devices abort when many collectives queue up."""
    state, found = learner.init_state(tiny.params(), tiny.LEARNER), []
    for batch in batches():
        state, metrics = jax.device_get(step(state, batch))
        found.append(metrics)
    return state.params, found


def pmapped():
    """A step as it would be written with `jax.pmap`: the batch split by hand, sums exchanged with `psum`."""
    optimizer = learner.make_optimizer(tiny.LEARNER)

    def one_device(state, batch):
        (loss, sums), gradient = jax.value_and_grad(learner.loss_sums, has_aux=True)(
            state.params, batch, tiny.CONFIG, tiny.LEARNER
        )
        loss, tokens, gradient = jax.lax.psum((loss, sums["tokens"], gradient), "devices")
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = learner.TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return state, {"loss": loss / tokens, "tokens": tokens, "grad_norm": optax.global_norm(gradient)}

    lifted = jax.pmap(one_device, axis_name="devices", in_axes=(None, 0), out_axes=None)
    return lambda state, batch: lifted(state, jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch))


def on_eight_devices(path):
    micro = dataclasses.replace(tiny.LEARNER, microbatch_rows=2)
    found = {
        "one": train(learner.make_train_step(tiny.CONFIG, tiny.LEARNER)),
        "two, in microbatches": train(learner.make_train_step(tiny.CONFIG, micro, mesh=parallel.local_mesh(2))),
        "eight": train(learner.make_train_step(tiny.CONFIG, tiny.LEARNER, mesh=parallel.local_mesh())),
        "pmap": train(pmapped()),
        "sizes": [parallel.local_mesh(n).size for n in (None, 1, 3, 8)],
        "gradients": [gradient_of_a_sum(n) for n in (1, 8)],
    }
    Path(path).write_bytes(pickle.dumps(found))


def gradient_of_a_sum(num_devices):
    """Of `sum(w * x)` with respect to the replicated `w`, which is `sum(x)`."""

    def fn(w, x_B):
        return jax.lax.psum(jax.grad(lambda w: (w * x_B).sum())(w), parallel.AXIS)

    return float(jax.jit(parallel.data_parallel(fn, parallel.local_mesh(num_devices)))(jnp.float32(2), np.arange(8.0)))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "found.pickle"
    subprocess.run(
        [sys.executable, "-c", f"from tests import test_parallel; test_parallel.on_eight_devices({str(path)!r})"],
        check=True,
        env=os.environ | ENVIRONMENT,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("several", ["two, in microbatches", "eight", "pmap"])
def test_several_devices_learn_what_one_learns(found, several):
    params, metrics = found["one"]
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, tiny.params())), strict=True)) > 2e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found[several][0], params)
    for there, here in zip(found[several][1], metrics, strict=True):
        for name, value in there.items():
            np.testing.assert_allclose(value, here[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_one_device_learns_what_the_definition_says(found):
    """So that the above cannot agree on a wrong thing: the first step's loss and gradient, from NumPy."""
    with tiny.optimizations(False):
        batch = next(batches())
        expected = tiny.grpo(tiny.params(), batch)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tiny.gradients(tiny.params(), batch))))
    for name, value in (expected | {"grad_norm": norm}).items():
        np.testing.assert_allclose(found["one"][1][0][name], value, rtol=1e-5, err_msg=name)


def test_the_gradient_of_a_replicated_value_is_summed_over_devices_once(found):
    assert found["gradients"] == [28.0, 28.0]


def test_a_mesh_has_as_many_devices_as_asked_for(found):
    assert found["sizes"] == [8, 1, 3, 8]
    here = jax.local_device_count()
    with pytest.raises(ValueError, match=rf"{here + 1} devices are asked for, this process has {here}"):
        parallel.local_mesh(here + 1)
