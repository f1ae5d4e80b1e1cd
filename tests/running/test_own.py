"""Nodes of one simulation with models, tokenizers and settings of their own."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from configs import quickstart
from rlswarm_jax import assets, qwen
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.engines import Engines
from rlswarm_jax.journal import Journal
from rlswarm_jax.running import build, simulated

PLAIN, SKILLED, SMALL = range(3)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Three nodes: the usual one, one of other weights that learns faster, and one of a layer and another tokenizer."""
    small = tmp_path_factory.mktemp("small")
    base = qwen.load(assets.BASE)
    params = base.params | {"layers": base.params["layers"][:1]}
    qwen.save(dataclasses.replace(base, params=params, config=dataclasses.replace(base.config, num_layers=1)), small)
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    about = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": 96, "content": "never said"} | about)
    (small / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = quickstart.get_config("simulate-smoke")
    config.swarm.nodes, config.rounds, config.game.stages, config.chain.endpoint = 3, 4, 1, "none"
    config.evaluation.problems = config.evaluation.rows = 16
    config.checkpoint_every = 1
    config.simulation.own = (
        ((SKILLED, SMALL), {"model.path": "embedded:base", "learn.learning_rate": 1e-3}),
        ((SMALL,), {"model.path": str(small), "swarm.external_groups": 2, "sampling.temperature": 1.5}),
    )
    return config


@pytest.fixture(scope="module")
def made(config):
    return build.build(config, simulated.identities(config))


class Run:
    def __init__(self, config, made, folder, start):
        made.engine.set_states(start)
        self.reports, self.journal = [], Journal(folder / "journal.sqlite", together=64)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        options = dict(checkpoints=self.checkpoints, checkpoint_every=1, metrics_offset=lambda: len(self.reports))
        self.simulation = simulated.make_simulation(config, made, self.journal, self.reports.append, **options)

    def end(self):
        self.journal.close()
        self.checkpoints.close()


@pytest.mark.slow
def test_nodes_that_differ_learn_from_each_other_and_a_stopped_run_of_them_ends_with_the_same_bits(
    config, made, tmp_path
):
    assert isinstance(made.engine, Engines)
    sizes = [sum(x.size for x in jax.tree.leaves(made.engine.weights(node))) for node in range(3)]
    assert sizes[PLAIN] == sizes[SKILLED] > sizes[SMALL]
    start = [jax.device_get(made.engine.state(node)) for node in range(3)]

    def weights():
        return [jax.device_get(jax.tree.leaves(made.engine.weights(node))) for node in range(3)]

    (tmp_path / "whole").mkdir()
    whole = Run(config, made, tmp_path / "whole", start)
    whole.simulation.run()
    whole.end()
    expected = weights()

    def total(node, name):
        return sum(report.metrics.get(name, 0.0) for report in whole.reports if report.node == node)

    accuracy = [total(node, "held_out/accuracy") for node in range(3)]
    assert accuracy[SKILLED] > accuracy[PLAIN]  # each has its own weights
    assert all(total(node, "groups/received_with_advantage") > 0 for node in range(3))
    assert total(PLAIN, "learn/rows_external") > 0 and total(SMALL, "learn/rows_external") > 0
    assert max(r.metrics["groups/external"] for r in whole.reports if r.node == SMALL) <= 2
    games = [node.game for node in whole.simulation.nodes]
    assert games[SMALL].tokenizer_fingerprint != games[PLAIN].tokenizer_fingerprint
    assert games[SMALL].mixture is games[PLAIN].mixture

    for events in (20, 41):
        (folder := tmp_path / str(events)).mkdir()
        stopped, countdown = Run(config, made, folder, start), itertools.count(events, -1)
        stopped.simulation.run(lambda countdown=countdown: next(countdown) == 0)
        assert not stopped.simulation.finished
        stopped.checkpoints.close()
        stopped.journal._db.close()  # killed: what is in no checkpoint is lost, with the last rows of the journal
        resumed = Run(config, made, folder, start)
        kept = resumed.simulation.restore() or 0
        resumed.simulation.run()
        assert stopped.reports[:kept] + resumed.reports == whole.reports
        for ours, theirs in zip(weights(), expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        resumed.end()
