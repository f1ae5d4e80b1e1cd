"""Configs for real hardware fit the cards that they name, and play end to end on random weights of the layout."""

import dataclasses
import json
import shutil
import zlib

import pytest

from configs import gsm8k_qwen2_5_0_5b as gsm8k
from configs import sapo_qwen2_5_0_5b as sapo
from rlswarm_jax.game import prompts
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import plan, simulated, sweep
from rlswarm_jax.tasks import Mixture, make_mixture
from tests.grpo import tiny
from tests.qwen import make_golden

TINY = [  # as the configs are, but for how much
    "--config.sampling.max_new_tokens=6",
    "--config.sampling.group_size=4",
    "--config.rounds=2",
    "--config.evaluation.problems=4",
    "--config.evaluation.rows=4",
    "--config.wandb.mode=disabled",
]
SOLUTION = "{0} apples and 2 make <<{0}+2={1}>>{1}.\n#### {1:,}"


@pytest.mark.parametrize(
    ("config", "card", "peak"),
    [
        (sapo.get_config("node"), "16GB", 11.5),
        (sapo.get_config("tpu"), "16GB", 9.9),
        (gsm8k.get_config(), "16GB", 11.5),
        (gsm8k.get_config("lora"), "8GB", 4.5),
    ],
    ids=["sapo-node", "sapo-tpu", "gsm8k", "gsm8k-lora"],
)
def test_they_fit_the_cards_that_they_name(config, card, peak, capsys):
    cli.check(config)
    assert plan.run(config, card) == 0
    said = float(capsys.readouterr().out.partition(" GB at the peak")[0].split()[-1])
    assert said == pytest.approx(peak, abs=0.06)
    header = gsm8k.__doc__ if "gsm8k" in config.tasks else sapo.__doc__
    assert f"computed: {peak} GB" in header and "NOT YET MEASURED" in header


def test_the_splits_are_the_papers(tmp_path):
    planned = sweep.plan([f"--config={sapo.__file__}:tpu", f"--workdir={tmp_path}"])
    splits = {run.point: (run.config.swarm.local_groups, run.config.swarm.external_groups) for run in planned.runs}
    assert splits == {"8-0": (8, 0), "6-2": (6, 2), "4-4": (4, 4), "2-6": (2, 6)}
    assert len(planned.runs) == 12 and planned.sweep.baseline == "8-0" and len(sapo.TASKS) == 9
    config = sapo.get_config()
    assert (config.swarm.nodes, config.rounds, config.sampling.group_size) == (8, 2000, 8)
    assert sapo.get_config("paper").learn.learning_rate == 1e-3


@pytest.fixture
def checkpoint(tmp_path):
    """A Qwen2 with seven heads on one, as the 0.5B has them, which Hugging Face wrote; with a chat template."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(make_golden.FIXTURES / "qwen2_tied", folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(make_golden.FIXTURES / make_golden.CHAT / name, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 2048}))
    return folder


def played(tmp_path, checkpoint, config, *changed):
    """Rows of a run in which random weights are taken to answer, and some of what they say to be right."""
    words = [f"--config=configs/{config}", f"--config.model.path={checkpoint}", *TINY, *changed]
    arguments = cli.parse([*words, f"--workdir={tmp_path / 'run'}"])
    with pytest.MonkeyPatch.context() as patch, tiny.optimizations(False):
        chat = dataclasses.replace(prompts.FAMILIES["chat"], answer=lambda text: text)
        patch.setitem(prompts.FAMILIES, "chat", chat)
        patch.setattr(Mixture, "score", lambda self, problem, text: float(zlib.crc32(text.encode()) % 2))
        assert simulated.run(arguments) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    return list(read_rows(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
def test_sapo_is_played_by_nodes_that_learn_from_each_other(tmp_path, checkpoint):
    changed = [
        "--config.sampling.max_prompt_tokens=2000",  # the tokenizer is by character
        "--config.swarm.nodes=2",
        "--config.swarm.local_groups=3",
        "--config.swarm.external_groups=3",
        "--config.learn.microbatch_rows=2",
    ]
    rows = played(tmp_path, checkpoint, "sapo_qwen2_5_0_5b.py:simulate", *changed)
    assert [(row["round"], row["groups/received"]) for row in rows] == [(0, 3.0), (0, 3.0), (1, 3.0), (1, 3.0)]
    assert all(row["learn/updates"] == 1 and row["groups/external"] >= 1 for row in rows)
    assert not any(name.startswith("groups/unused") for row in rows for name in row)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["files", "files-lora"])
def test_gsm8k_is_learned_from_files(tmp_path, checkpoint, variant):
    for name, start in (("train", 2), ("test", 1200)):
        lines = [
            {"question": f"How many apples are {n} and 2?", "answer": SOLUTION.format(n, n + 2)}
            for n in range(start, start + 9)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = [
        f"--config.tasks.gsm8k.path={tmp_path / 'train.jsonl'}",
        f"--config.tasks.gsm8k.held_out_path={tmp_path / 'test.jsonl'}",
        "--config.swarm.local_groups=4",
    ]
    rows = played(tmp_path, checkpoint, f"gsm8k_qwen2_5_0_5b.py:{variant}", *changed)
    assert [row["learn/updates"] for row in rows] == [1, 1] and all(row["groups/local"] >= 1 for row in rows)
    assert rows[-1]["final/problems"] == 4


def test_a_solution_of_gsm8k_ends_with_its_number(tmp_path):
    for name in ("train", "test"):
        line = {"question": f"{name}?", "answer": SOLUTION.format(1000, 1002)}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    task = gsm8k.get_config("files").tasks.to_dict()["gsm8k"]
    files = {"path": str(tmp_path / "train.jsonl"), "held_out_path": str(tmp_path / "test.jsonl")}
    mixture = make_mixture({"gsm8k": task | files})
    problem = mixture.problem(0)
    assert problem.question == "train?" and mixture.held_out(1)[0].question == "test?"
    assert [mixture.score(problem, text) for text in ("1002", "1,002", "$1002", "2", "")] == [1, 1, 1, 0, 0]
