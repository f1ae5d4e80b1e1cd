"""The formula against XLA's own count of a model's operations, and what is made of it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rlswarm_jax import speed
from rlswarm_jax.qwen import model
from tests.grpo import tiny

BASE = dataclasses.replace(
    tiny.CONFIG,
    hidden_size=256,
    intermediate_size=768,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=4096,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [16, 256])
def test_a_third_of_it_is_what_a_forward_pass_takes(tied, tokens):
    """Nothing is compiled; norms, rotations and softmax are the difference."""
    config = dataclasses.replace(BASE, tie_word_embeddings=tied)
    params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
    lowered = jax.jit(lambda p, t: model.logits(p, config, t)).lower(params, jnp.zeros((1, tokens), jnp.int32))
    counted = lowered.cost_analysis()["flops"]
    assert counted == pytest.approx(speed.train_flops(config, [tokens]) / 3, rel=0.07)


def test_a_batch_is_the_sum_of_its_texts():
    one, two = (speed.train_flops(BASE, [n]) for n in (10, 20))
    assert speed.train_flops(BASE, [10, 20, 10]) == 2 * one + two and speed.train_flops(BASE, []) == 0
    assert two > 2 * one  # attention


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_what_jax_calls_a_device(kind, peak):
    assert speed.peak_flops(kind) == peak


def test_a_round_s_speeds_are_quotients_and_what_did_not_happen_has_none():
    metrics = {"sample/tokens": 600.0, "learn/updates": 1.0, "learn/text_tokens": 80.0, "learn/flops": 4e9}
    found = speed.of_round(metrics, 3.0, 0.5, 1e12)
    assert found == {
        "speed/sampled": 200.0,
        "speed/learned": 160.0,
        "speed/learn_flops": 8e9,
        "speed/mfu": pytest.approx(0.008),
    }
    assert "speed/mfu" not in speed.of_round(metrics, 3.0, 0.5, None)
    assert speed.of_round(metrics | {"learn/updates": 0.0}, 0.0, 0.5, 1e12) == {}
