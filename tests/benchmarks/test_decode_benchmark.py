"""The decode benchmark runs without torch, and its roofline counts what a step must read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import decode
from rlswarm_jax.qwen.config import from_hf
from rlswarm_jax.reporting.figures import Benchmark

CHECKOUT = Path(__file__).parents[2]


def test_a_step_reads_the_weights_once_and_a_shared_prompt_once():
    fields = {"model_type": "qwen2", "vocab_size": 11, "hidden_size": 4, "intermediate_size": 6}
    fields |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    per_token = 2 * 2 * 1 * 2  # keys and values, of 2 layers with one head of 2
    attention, mlp, norms = (4 * 4 + 4) + 2 * (4 * 2 + 2) + 4 * 4, 3 * 4 * 6, 2 * 4
    matrices = 2 * (attention + mlp + norms) + 4 + 11 * 4  # and the last norm and the head
    row = decode.Row("tiny", questions=3, group=8, prompt=10, new_tokens=4)
    tokens = 3 * 10 + 3 * 8 * 2  # on average half of the new ones are there
    for tied in (True, False):
        config = from_hf(fields | {"tie_word_embeddings": tied})
        assert decode.step_bytes(config, row, size=4) == 4 * (matrices + per_token * tokens)


def test_prompts_differ_and_have_the_length_they_say():
    prompts = decode.parse_row("tiny-64x8-16").prompts()
    assert len(set(prompts)) == 64 and {len(prompt) for prompt in prompts} == {16}
    with pytest.raises(ValueError, match=r"0\.5b-8x8-64"):
        decode.parse_row("7b-8x8-64")


@pytest.mark.slow
def test_the_smoke_run_prints_lines_that_the_renderer_reads():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.decode", "--smoke"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    rows = msgspec.convert(lines, list[Benchmark])
    assert {row.benchmark for row in rows} == {"memory read", "matrix-vector product", "decode"}
    assert [row.config["side"] for row in rows if row.benchmark == "decode"] == ["ours"]
    assert all(row.value > 0 for row in rows)
    assert set(lines[-1]["measured"]) == {
        "roofline",
        "matvec",
        "step_ms",
        "first_token_s",
        "first_call_s",
        "peak_mb",
    }
