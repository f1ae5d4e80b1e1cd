import json
import sys

import psutil
import pytest

from configs import quickstart
from rlswarm_jax.files import CONFIG_FILE, SUMMARY_FILE
from rlswarm_jax.reporting.results import flatten
from rlswarm_jax.running import alone, folder, simulated
from tests.waits import wait_for

OWN = {"driver", "name", "swarm.nodes", "game.stages", "swarm.local_groups", "swarm.external_groups", "swarm.alone"}
OWN |= {"audit.auditors", "audit.rechecks", "chain.endpoint", "wandb.mode"}


def swarm(**fields):
    config = quickstart.get_config()
    config.swarm.alone = True
    config.update_from_flattened_dict(fields)
    return config


# 6 problems are answered, 2 of them criticised and revised
@pytest.mark.parametrize(("stages", "sampled"), [(1, 6), (2, 8), (3, 10)])
def test_they_sample_as_much_as_one_node_of_the_swarm_or_as_all_and_differ_in_nothing_else(stages, sampled):
    changes = {"game.stages": stages, "swarm.local_groups": 6, "game.shared": 2, "swarm.external_groups": 3}
    config = swarm(**changes)
    found = alone.configs(config)
    assert {kind: one.swarm.local_groups for kind, one in found.items()} == {
        "sampled": sampled,
        "together": 4 * sampled,
    }
    theirs = flatten(json.loads(config.to_json_best_effort()))
    for one in found.values():
        ours = flatten(json.loads(one.to_json_best_effort()))
        assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} <= OWN
        assert one.swarm.external_groups == 0 and one.swarm.nodes == one.game.stages == 1 and not one.swarm.alone


def test_no_more_than_a_record_has_room_for():
    assert alone.groups(swarm(**{"swarm.nodes": 40})) == {"sampled": 16, "together": 64}


def test_who_is_done_is_not_played_again(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(simulated, "run", lambda arguments: played.append(arguments.workdir.name) or 0)
    monkeypatch.setattr(alone.os, "nice", lambda by: by)
    for kind, config in alone.configs(swarm()).items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / CONFIG_FILE).write_text(config.to_json_best_effort())
    (tmp_path / "together" / SUMMARY_FILE).write_text(json.dumps({"status": "finished"}))
    assert alone.main(tmp_path) == 0 and played == ["sampled"]


def test_they_end_with_the_swarm_that_is_stopped(tmp_path, monkeypatch):
    waits = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
    monkeypatch.setattr(alone, "command", lambda directory: waits)
    with alone.beside(swarm(), tmp_path, {}) as done:
        log = tmp_path / "alone" / "log.txt"
        wait_for(lambda: "begun" in log.read_text(), "it has begun")
        (process,) = psutil.Process().children()
        assert not done()
        assert folder.read_config(tmp_path / "alone" / "sampled").swarm.nodes == 1
    assert not process.is_running()


def test_what_they_say_is_kept_and_their_end_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "command", lambda directory: [sys.executable, "-c", "print('all done')"])
    with alone.beside(swarm(), tmp_path, {}) as done:
        wait_for(done, "it ends by itself")
    assert (tmp_path / "alone" / "log.txt").read_text() == "all done\n"


def test_without_the_field_there_is_nobody(tmp_path):
    with alone.beside(swarm(**{"swarm.alone": False}), tmp_path, {}) as done:
        assert done() and not [*tmp_path.iterdir()]
