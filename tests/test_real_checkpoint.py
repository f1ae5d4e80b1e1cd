"""A checkpoint with a chat template plays end to end: nothing but the path (and its budgets) changes."""

import json
import shutil
from pathlib import Path

from rlswarm_jax.metrics import read_rows
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import simulated
from tests.grpo import tiny

CHAT_CHECKPOINT = Path(__file__).parent / "qwen" / "fixtures" / "qwen3_tied"


def test_a_chat_model_plays_through_its_own_template(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(CHAT_CHECKPOINT, checkpoint)
    fields = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 2048}))
    arguments = [
        "--config=configs/quickstart.py:simulate-smoke",
        f"--config.model.path={checkpoint}",
        "--config.sampling.max_prompt_tokens=1500",  # its tokenizer is by character
        "--config.game.answer_tokens=24",
        "--config.game.critique_tokens=24",
        "--config.sampling.max_new_tokens=8",
        "--config.rounds=1",
        "--config.swarm.nodes=2",
        "--config.swarm.local_groups=1",
        "--config.swarm.external_groups=1",
        "--config.game.shared=1",
        "--config.sampling.group_size=2",
        "--config.learn.microbatch_rows=4",
        "--config.evaluation.problems=4",
        "--config.evaluation.rows=4",
        f"--workdir={tmp_path / 'run'}",
    ]
    with tiny.optimizations(False):
        assert simulated.run(cli.parse(arguments)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["held_out_accuracy"]["base"] is None
    assert summary["records"] == {"published": 6, "received": 6, "rejected": {}, "unused_groups": {}}
    assert "spoiled" not in (tmp_path / "run" / "report.md").read_text()
    # every peer's group of all three stages was understood: problem and prompt rebuilt, text and ids in agreement
    assert [row["groups/received"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [3.0] * 2
