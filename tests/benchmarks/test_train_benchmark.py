import json
import subprocess
import sys

import pytest

from benchmarks import grpo_iteration, train_sides, train_step
from rlswarm_jax import assets
from rlswarm_jax.qwen.config import read_config


@pytest.mark.parametrize("name", sorted({*train_step.ROWS.split(","), *grpo_iteration.ROWS.split(",")}))
def test_a_row_is_what_its_name_says(name):
    row = train_sides.parse_row(name)
    assert row.name == name
    texts = row.texts(97)
    assert len(texts) == (row.groups or 5) * row.group
    assert {advantage for *_, advantage in texts} == {-1.0, 1.0}
    if not row.is_live:
        assert {(len(prompt), len(completion)) for prompt, completion, _ in texts} == {(row.prompt, row.new_tokens)}


def test_a_step_s_arithmetic_is_that_of_its_matrices():
    """Of 100 slots in sequences of 50: each product by hand, from the config's own numbers."""
    config = read_config(assets.SPOILED)
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    products = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
    layer = sum(2 * 100 * rows * columns for rows, columns in products) + 2 * (2 * 100 * 50 * q)
    expected = 3 * (config.num_layers * layer + 2 * 100 * d * v)
    assert train_step.step_flops(config, 100, 50) == expected


def test_a_ratio_is_that_of_medians_and_ours_knows_its_share_of_text():
    row = train_sides.parse_row("tiny-1x8-16+12")
    turns = [
        {"wall": w, "process": 2 * w, "peak_mb": 10 * w, "grad_norm": 1.0, "versions": {}} for w in (1.0, 9.0, 2.0)
    ]
    slow = [turn | {"wall": 4 * turn["wall"]} for turn in turns]
    rates = {"wall": 1e9, "process": 1e9}
    found = list(
        train_step.lines(row, {"ours": turns, "torch": slow}, read_config(assets.SPOILED), rates, dtype="float32")
    )
    ours = next(line for line in found if line["config"]["side"] == "ours" and line["config"]["clock"] == "wall")
    assert ours["value"] == 2000.0 and ours["versus"] == "torch" and ours["ratio"] == 0.25
    assert ours["measured"]["text"] == pytest.approx((15 + 8 * 12) / 112, rel=0.01)
    assert ours["measured"]["tokens_per_s"] == 8 * 28 / 2 and ours["measured"]["peak_mb"] == 90


@pytest.mark.slow
def test_ours_alone_runs():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step", "--smoke"], capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["benchmark"] for line in found] == ["matmul"] * 2 + ["train step"] * 2
    assert all(line["value"] > 0 for line in found)
