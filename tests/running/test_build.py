"""From a config to what a driver is given: a new setting touches the config's table and the place that uses it."""

import dataclasses

import pytest

from configs import common, quickstart
from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.engine import EngineConfig
from rlswarm_jax.errors import UsageError
from rlswarm_jax.game.rules import Game
from rlswarm_jax.grpo.learner import LearnerConfig
from rlswarm_jax.qwen.draw import Draw
from rlswarm_jax.running import build


@dataclasses.dataclass(frozen=True)
class Small:
    first: int
    second: int = 2


def fields_of(*kinds: type) -> set[str]:
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def test_fields_come_from_the_section_that_has_them():
    assert build.made_of(Small, [{"first": 1, "other": 5}, {"second": 7}]) == Small(1, 7)
    assert build.made_of(Small, [{"first": 1}]) == Small(1, 2)
    assert build.made_of(Small, [{"first": 1, "second": 3}], second=4) == Small(1, 4)
    with pytest.raises(TypeError, match=r"Small\.first is in 2 sections"):
        build.made_of(Small, [{"first": 1}, {"first": 1}])
    with pytest.raises(TypeError, match="first"):
        build.made_of(Small, [{}])


@pytest.mark.parametrize(
    ("kind", "section", "of"),
    [
        (LearnerConfig, "learn", lambda config, made: build.make_learner_config(config)),
        (EngineConfig, "sampling", build.make_engine_config),
        (EngineConfig, "learn", build.make_engine_config),
        (Game, "game", lambda config, made: build.make_game(config, made.tokenizer, made.eos_token_ids)),
    ],
)
def test_a_new_setting_arrives_with_a_line_in_the_table_and_one_where_it_is_used(monkeypatch, kind, section, of):
    """Both are made here, and nothing else knows of it: two places change."""
    config = quickstart.get_config("simulate-smoke")
    made = build.described(config)
    with config.unlocked():
        config[section].gradient_noise = 0.25
    more = dataclasses.make_dataclass(
        kind.__name__, [("gradient_noise", float, dataclasses.field(default=0.0))], bases=(kind,), frozen=True
    )
    monkeypatch.setattr(build, kind.__name__, more)
    assert of(config, made).gradient_noise == 0.25


def test_each_node_of_a_simulation_has_the_strategy_that_the_config_says():
    config = quickstart.get_config("simulate")
    config.simulation.adversaries = ((1, "wrong"), (3, "spam"))
    found = [build.strategy(config, node) for node in range(4)]
    assert found == [None, STRATEGIES["wrong"], None, STRATEGIES["spam"]]
    config.driver = "node"  # a node by itself: they are about others
    assert build.strategy(config, 1) is None
    config.swarm.adversary = "copy"
    assert build.strategy(config, 0) is STRATEGIES["copy"]


def test_no_setting_of_sampling_and_learning_gets_lost():
    """Each is a field of what uses it, by its own name."""
    used = fields_of(EngineConfig, LearnerConfig, Game)
    names = [name.partition(".")[::2] for name in common.FIELDS]
    assert {leaf for section, leaf in names if section in ("sampling", "learn")} - {"loss"} <= used
    cut_off = {leaf for section, leaf in names if section == "evaluation"}
    assert fields_of(Draw) <= cut_off


def test_values_arrive_where_they_are_used():
    """By another config than the default in each field of these sections: nothing falls back to a default."""
    config = quickstart.get_config("simulate-smoke")
    made = build.described(config)
    changed = {
        **{"group_size": 6, "temperature": 0.9, "exact": True, "exact_rows": 7, "rows": 9, "dtype": "bfloat16"},
        **{"learning_rate": 0.01, "decay_to": 0.5, "weight_decay": 0.1, "max_grad_norm": 2.0, "clip_low": 0.1},
        **{"clip_high": 0.3, "dual_clip": 4.0, "advantage": "none", "positive_only_external": False},
        **{"positive_only_local": True, "external_correction": "behaviour", "external_min_prob": 0.1},
        **{"updates_per_round": 3, "microbatch_rows": 5},
    }
    for name, value in changed.items():
        section = config.sampling if name in config.sampling else config.learn
        assert section[name] != value, name
        section[name] = value
    config.learn.dtype, config.learn.remat, config.learn.optimizer = "bfloat16", "dots", "adafactor"
    learner, engine = build.make_learner_config(config), build.make_engine_config(config, made)
    assert (learner.dtype, learner.remat, learner.optimizer) == ("bfloat16", "dots", "adafactor")
    known = dataclasses.asdict(learner) | dataclasses.asdict(engine)
    assert {name: known[name] for name in changed} == changed
    assert learner.decay_rounds == config.rounds and learner.adam_b2 == 0.99
    assert engine.kv_dtype == "bfloat16" and engine.stages[0] == (config.swarm.local_groups, 0)


def test_a_game_has_its_own_name_for_the_swarm_and_the_config_s_for_the_rest():
    config = quickstart.get_config("simulate-smoke")
    config.swarm.max_staleness, config.game.critics, config.sampling.group_size = 9, 2, 5
    game = build.described(config)
    assert (game.swarm, game.max_staleness, game.critics, game.group_size) == (config.swarm.name, 9, 2, 5)
    assert game.author == b""


# --- what nodes of a simulation have of their own


def test_what_a_node_has_of_its_own_is_in_its_config_and_in_no_other():
    config = quickstart.get_config("simulate")
    config.simulation.own = (((1, 2), {"learn.learning_rate": 1, "swarm.reads": 2}), ((2,), {"swarm.reads": 3}))
    found = [build.with_own(config, build.own_fields(config, node)) for node in range(3)]
    assert [one.swarm.reads for one in found] == [0, 2, 3]
    assert [one.learn.learning_rate for one in found] == [5e-4, 1, 1]
    assert found[0] is config and config.swarm.reads == 0
    config.driver = "node"
    assert build.own_fields(config, 1) == {}


def test_what_all_must_have_the_same_is_no_nodes_own():
    """The terms that nodes tell each other (`Rules.terms`), what belongs to the process, and the simulation's."""
    config = quickstart.get_config("simulate-smoke")
    game = build.described(config)
    agreed = {name for name in game.terms if name in common.FIELDS}
    assert len(agreed) > 10 and not agreed & set(common.OWN_FIELDS)
    for name in (*sorted(agreed), "simulation.loss", "rounds", "tasks", "swarm.nodes", "model.thinking"):
        config.simulation.own = (((0,), {name: common.FIELDS[name].default}),)
        with pytest.raises(UsageError, match=rf"config\.simulation\.own has {name}, which all must have the same"):
            build.check(config)
    for own, sentence in [
        ({"learn.learning_rte": 1e-3}, "did you mean config.learn.learning_rate"),
        ({"learn.learning_rate": -1.0}, r"config.learn.learning_rate is -1.0; expected"),
    ]:
        config.simulation.own = (((0,), own),)
        with pytest.raises(UsageError, match=sentence):
            build.check(config)
    config.simulation.own = (((4,), {}),)
    with pytest.raises(UsageError, match=r"config\.simulation\.own names node 4 of 4"):
        build.check(config)
