"""Gradients of the GRPO loss equal torch's on the same weights, stored and live."""

import functools

import jax
import numpy as np
import pytest

from rlswarm_jax import qwen
from rlswarm_jax.grpo import learner
from rlswarm_jax.qwen import naming
from tests.qwen import gradients, variants

TOLERANCE = 1e-4  # of each tensor's own norm

value_and_grad = jax.jit(jax.value_and_grad(learner.loss_sums, has_aux=True), static_argnums=(2, 3))


@functools.cache
def golden():
    return dict(np.load(variants.FIXTURES / "gradients.npz"))


def check(case, expected, tmp_path):
    policy = qwen.load(variants.write(case, tmp_path))
    batch = gradients.batch(case, expected["old_logprobs_BC"])
    (loss, sums), found = value_and_grad(policy.params, batch, policy.config, gradients.CONFIG)
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
    clipped = sums["clip_low"] + sums["clip_high"]
    assert clipped / sums["tokens"] == pytest.approx(expected["clipped"]) and not sums["clip_dual"]
    assert 0.2 < expected["clipped"] < 0.8
    names = set()
    for name, path, transposed in naming.layout(policy.config):
        ours = np.asarray(naming.at(found, path))
        theirs = expected[name].T if transposed else expected[name]
        assert ours.shape == theirs.shape and np.linalg.norm(theirs) > 1e-3
        assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs), name
        names.add(name)
    assert names == expected.keys() - {"loss", "clipped", "old_logprobs_BC"}


@pytest.mark.parametrize("case", gradients.CASES)
def test_gradients_are_those_of_torch(case, tmp_path):
    stored = {name.split("/")[1]: array for name, array in golden().items() if name.startswith(f"{case}/")}
    check(case, stored, tmp_path)


@pytest.mark.parametrize("case", gradients.CASES)
def test_gradients_are_those_of_live_torch(case, tmp_path):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    check(case, gradients.hf_gradients(case, variants.write(case, tmp_path / "theirs")), tmp_path / "ours")
