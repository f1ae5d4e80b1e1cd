"""Evaluation stage by stage: measures against counts by hand, and the command as a user types it."""

import json

import pytest

from experiments import evaluate
from rlswarm_jax.errors import UsageError
from rlswarm_jax.exam import Outcome, Stage
from rlswarm_jax.game.turns import Critics
from rlswarm_jax.reporting import measures
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import simulated, trained
from rlswarm_jax.tasks import Problem
from tests.grpo import tiny

SMALL = [
    "--config=configs/game.py:simulate-smoke",
    "--config.swarm.nodes=2",
    "--config.rounds=2",
    "--config.checkpoint_every=2",
    "--config.evaluation.problems=8",
    "--config.evaluation.rows=8",
    "--config.swarm.local_groups=2",
    "--config.game.shared=2",
    "--config.sampling.group_size=4",
    "--config.model.path=embedded:base",
    "--config.learn.learning_rate=0.1",
]


def stage(*rows: tuple[str, list[float]]) -> Stage:
    return Stage([scores for _, scores in rows], [list(said) for said, _ in rows], [0] * len(rows))


def outcomes() -> list[Outcome]:
    """Two problems, two nodes, four completions of each."""
    first = Outcome(
        Problem("a", 1, "?", "?", ("x",)),
        stage(("xxyz", [1.0, 1.0, 0.0, 0.0]), ("yyyx", [0.0, 0.0, 0.0, 1.0])),
        majority=True,
        critique=stage(("1100", [1.0, 1.0, 0.0, 0.0]), ("1111", [1.0] * 4)),
        critics=Critics(critic=0.75, chance=0.5, first=1.0, majority=0.5, none=0.0),
        contested=Critics(critic=0.25, chance=0.5, first=0.0, majority=1.0, none=0.0),
        vote=True,
        revised=stage(("xxxx", [1.0] * 4), ("xxxy", [1.0, 1.0, 1.0, 0.0])),
        majority_revised=True,
    )
    second = Outcome(
        Problem("b", 2, "?", "?", ("x",)),
        stage(("yyyy", [0.0] * 4), ("xyyy", [1.0, 0.0, 0.0, 0.0])),
        majority=False,
        critique=stage(("0000", [0.0] * 4), ("0000", [0.0] * 4)),
        critics=Critics(critic=0.0, chance=0.25, first=0.0, majority=0.75, none=0.0),
        vote=False,
        revised=stage(("yyyy", [0.0] * 4), ("xxyy", [1.0, 1.0, 0.0, 0.0])),
        majority_revised=False,
    )
    return [first, second]


def test_measures_are_means_over_problems_of_means_over_nodes():
    found = {name: (m.mean, m.problems) for name, m in measures.measures(outcomes()).items()}
    assert found["first answer"] == (pytest.approx((3 / 8 + 1 / 8) / 2), 2)
    # of the six pairs of a node's samples, those with a right one: 5 and 3, then 0 and 3
    assert found["pass@2"] == (pytest.approx(((5 + 3) / 12 + (0 + 3) / 12) / 2), 2)
    assert found["pass@4"] == (pytest.approx((1 + 1 + 0 + 1) / 4), 2)
    assert found["majority@4"] == (pytest.approx((1 + 0 + 0 + 0) / 4), 2)  # x, y, y, y
    assert found["majority of the swarm"] == (0.5, 2)
    assert found["critic names a best answer"] == (pytest.approx((6 / 8 + 0) / 2), 2)
    assert found["critic at random"] == (pytest.approx(0.375), 2)
    assert found["always the first"] == (0.5, 2) and found["the majority of those shown"] == (0.625, 2)
    assert found["best constant critic"] == found["the majority of those shown"] and found["always none"] == (0, 2)
    # one of the two problems is contested
    assert found["contested: critic names a best answer"] == (0.25, 1) and found["contested: always the first"] == (
        0,
        1,
    )
    assert found["contested: best constant critic"] == found["contested: the majority of those shown"] == (1, 1)
    assert found["vote of the critics"] == (0.5, 2)
    assert found["revised"] == (pytest.approx((7 / 8 + 2 / 8) / 2), 2)
    assert found["revised, vote wrong (recovery)"] == (pytest.approx(2 / 8), 1)
    assert found["first answer, vote wrong"] == (pytest.approx(1 / 8), 1)
    assert found["revised, vote right"] == (pytest.approx(7 / 8), 1)


def test_the_error_is_that_of_a_mean_over_problems_and_tasks_are_told_apart():
    whole = measures.measures(outcomes())["first answer"]
    assert whole.error == pytest.approx((3 / 8 - 1 / 8) / 2)  # of two values: half their distance
    apart = measures.by_task(outcomes())
    assert list(apart) == ["all tasks", "a", "b"]
    assert apart["b"]["first answer"].mean == pytest.approx(1 / 8) and apart["b"]["first answer"].error is None
    assert list(measures.by_task(outcomes()[:1])) == ["all tasks"]


def test_a_game_of_one_stage_has_no_measures_of_the_others():
    only = [Outcome(o.problem, o.first, o.majority) for o in outcomes()]
    assert not {"revised", "vote of the critics", "critic at random"} & measures.measures(only).keys()


def test_a_run_is_evaluated_before_and_after(tmp_path, capsys):
    folder = tmp_path / "run"
    with tiny.optimizations(False):
        assert simulated.run(cli.parse([*SMALL, f"--workdir={folder}"])) == 0
    assert evaluate.run(cli.parse([*SMALL, f"--checkpoint={folder}"])) == 0
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["name"] == "game-simulate-smoke" and {"before", "after"} <= found.keys()
    assert found["after"]["all tasks"]["revised"]["problems"] == 8
    assert found["after"] != found["before"]  # weights that such a learning rate has spoiled
    said = capsys.readouterr().out
    assert "revised, vote wrong (recovery)" in said or "vote of the critics" in said


def test_a_folder_without_checkpoints_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="has no checkpoints: give --checkpoint the folder of a run"):
        trained.load_states(tmp_path, None, 1)
    with pytest.raises(UsageError, match=r"no best checkpoint of each node: .*config\.checkpoints\.best=True"):
        trained.load_states(tmp_path, None, 1, best=True)
