"""Every field of a config has a range, and what is out of it is refused in one sentence that names it."""

import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType

import ml_collections
import pytest

from configs import common, fields, tiny
from configs.fields import Field, FieldError, above, real, whole
from rlswarm_jax.errors import UsageError
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import sweep

NAMES = sorted(path.stem for path in Path(common.__file__).parent.glob("[a-z]*.py"))
NAMES = [name for name in NAMES if name not in ("common", "fields", "sweeps")]
TABLES = [(common, common.FIELDS), (tiny, tiny.FIELDS)]
NUMBERS = [
    (table, name)
    for _, table in TABLES
    for name, field in table.items()
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]
SENTENCE = re.compile(r"config\.[\w.\[\]]+ is[^\n]*; expected [^\n]+\.")


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"configs.{name}")


def with_value(table: fields.Fields, name: str, value: object) -> ml_collections.ConfigDict:
    """A config made by hand: its fields take values of any type."""
    written = fields.make(table).to_dict()
    inner = written
    *sections, leaf = name.split(".")
    for section in sections:
        inner = inner[section]
    inner[leaf] = value
    return ml_collections.ConfigDict(written)


def refusal(name: str, value: object, table: fields.Fields = common.FIELDS) -> str:
    with pytest.raises(UsageError) as raised:
        cli.check(with_value(table, name, value), table)
    assert SENTENCE.fullmatch(str(raised.value)), raised.value
    assert f"config.{name}" in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_its_table(name):
    module = module_of(name)
    table = getattr(module, "FIELDS", common.FIELDS)
    for variant in ("", "smoke"):
        cli.check(module.get_config(variant), table)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(module_of(name), "get_sweep")])
def test_a_config_s_sweep_can_be_played(name, tmp_path):
    planned = sweep.plan([f"--config={module_of(name).__file__}", f"--workdir={tmp_path}"])
    points = module_of(name).get_sweep().points
    assert {run.point for run in planned.runs} == set(points) and len({run.workdir for run in planned.runs}) > 1


@pytest.mark.parametrize(("table", "name"), NUMBERS, ids=[name for _, name in NUMBERS])
def test_no_number_is_without_bounds(table, name):
    for value in (math.nan, math.inf, -math.inf, -1, -5.0, 2**70, 10**400, 1e300, True, "1", None, [1]):
        if value != table[name].default:  # -1: as the loss has it
            refusal(name, value, table)


@pytest.mark.parametrize(("table", "name"), [(t, n) for t, n in NUMBERS if isinstance(t[n].default, int)])
def test_a_whole_number_is_no_fraction(table, name):
    refusal(name, 2.5, table)
    refusal(name, 2.0, table)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("sampling.max_new_tokens", -5, 0),
        ("sampling.temperature", 0.0, 1),
        ("sampling.temperature", 1e-40, 0.01),
        ("evaluation.temperature", 1e-40, 0.0),
        ("learn.max_grad_norm", 0.0, 1e-6),
        ("evaluation.top_p", 0.0, 1.0),
        ("evaluation.top_p", 1.1, 0.5),
        ("evaluation.min_p", 1.1, 0.5),
        ("simulation.loss", 1.5, 1.0),
        ("simulation.slowdown", (1.0, 0.0), (1.0, 2)),
        ("simulation.slowdown", (1.0, math.nan), ()),
        ("simulation.slowdown", 2.0, [2.0]),
        ("simulation.slowdown", "12", (1.0, 2.0)),
        ("simulation.partitions", ((0, 5),), ((0, 5, ((0, 1), (2, 3))),)),
        ("simulation.partitions", ((0, math.inf, ()),), [[0.5, 5, [[0], [1]]]]),
        ("simulation.partitions", ((0, 5, ((0, "1"),)),), ()),
        ("game.weights", (1.0, 1.0), [0, 1, 2.5]),
        ("game.weights", (1.0, 1.0, -1.0), (0.0, 0.0, 1.0)),
        ("game.weights", (1.0, 1.0, math.nan), (1, 1, 1)),
        ("game.weights", "111", (1, 1, 1)),
        ("game.personas", "You doubt.", ("You doubt.",)),
        ("game.personas", ("",), []),
        ("game.personas", (1,), ()),
        ("game.show_votes", 1, False),
        ("swarm.bootnodes", "/ip4/1.2.3.4/tcp/1/p2p/x", ()),
        ("swarm.bootnodes", (7,), ()),
        ("swarm.peers", (None,), ()),
        ("swarm.name", "\udc80", "größer"),
        ("swarm.name", "a\0b", "a"),
        ("swarm.host", "localhost", "::1"),
        ("swarm.host", "all", "any"),
        ("swarm.announce", ("/ip4/1.2.3.4",), ("/dns4/my.home/tcp/4001", "/ip6/2a00::1/tcp/4001")),
        ("model.path", "", "embedded:base"),
        ("model.path", 3, "3"),
        ("wandb.project", "a/b", "a b"),
        ("name", "../quickstart", "my run"),
        ("name", "", "x"),
        ("chain.payout", "0x12", "0x" + "aB" * 20),
        ("chain.endpoint", "https://", "none"),
        ("tasks", {}, {"countdown": {}}),
        ("tasks", {"countdown": {"weight": 0}}, {"countdown": {"weight": 2}}),
        ("tasks", {"countdown": {"weight": math.nan}}, {"countdown": {"weight": 0.5}}),
        ("tasks", {"countdown": {"weight": True}}, {"countdown": {"kind": "reasoning"}}),
        ("tasks", {"countdown": {"weight": "2"}}, {"countdown": {"columns": ("a", "b")}}),
        ("tasks", {"countdown": {"seconds": math.inf}}, {"countdown": {"seconds": 1}}),
        ("tasks", {"countdown": {"numbers": [1, {"deep": 2**70}]}}, {"countdown": {"numbers": [1, {"deep": None}]}}),
        ("tasks", {"countdown": 1}, {"countdown": {}}),
        ("tasks", ["countdown"], {"countdown": {}}),
    ],
)
def test_beside_what_is_wrong_there_is_something_right(name, wrong, right):
    refusal(name, wrong)
    cli.check(with_value(common.FIELDS, name, right))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rounds": 0}, "config.rounds is 0; driver live takes at least 1"),
        ({"game.shared": 5}, "config.game.shared is 5 of 4 problems"),
        ({"simulation.slowdown": (1.0,) * 5}, "config.simulation.slowdown has 5 factors for 4 nodes"),
        ({"simulation.partitions": ((0, 1, ((0, 4),)),)}, "names node 4 of 4"),
        ({"simulation.partitions": ((2, 1, ()),)}, "it ends before it starts"),
        ({"chain.endpoint": "http://127.0.0.1:8545"}, "config.chain.contract is ''"),
        ({"chain.court": "0x" + "1" * 40}, "config.chain.court is given, but devnet makes its own"),
        ({"chain.stake": 1.0, "swarm.nodes": 2}, "config.chain.stake needs three nodes"),
        ({"driver": "node"}, "config.chain.endpoint devnet is started for a whole swarm"),
    ],
)
def test_fields_that_do_not_go_together_are_named(changed, says):
    config = common.swarm("test")
    with config.unlocked():
        for name, value in changed.items():
            config.update_from_flattened_dict({name: value})
    with pytest.raises(UsageError, match=re.escape(says)):
        cli.check(config)


def test_an_endpoint_that_may_hold_a_password_is_not_repeated():
    with pytest.raises(UsageError, match=r"config\.chain\.endpoint") as raised:
        cli.check(with_value(common.FIELDS, "chain.endpoint", "ws://me:secret@host"))
    assert "secret" not in str(raised.value)


def test_what_comes_back_from_a_file_is_the_same_to_the_table():
    cli.check(ml_collections.ConfigDict(json.loads(common.swarm("test").to_json_best_effort())))


def test_a_number_cannot_be_defined_without_a_range():
    with pytest.raises(TypeError):
        Field(1.0, meaning="a rate")  # type: ignore[call-arg]
    for allowed in (fields.text(), fields.yes_no(), fields.one_of("a"), fields.each(whole(0))):
        with pytest.raises(FieldError):
            Field(1, allowed, "a count")
    with pytest.raises(FieldError):
        Field(0.0, above(0), "a rate")
    for allowed in (real(0), above(-1), whole(0)):
        for value in (math.nan, math.inf, 2**70, 10**400, True):
            with pytest.raises(FieldError):
                allowed.check("x", value)


def test_a_field_added_later_is_covered():
    table = {"rate": Field(0.5, real(0, 1), "of something new")}
    cli.check(fields.make(table), table)
    assert "expected a number from 0 to 1" in refusal("rate", 1.5, table)


def test_a_config_of_ones_own_has_all_fields_and_no_others():
    added, short, flat = common.swarm("mine"), common.swarm("mine"), common.swarm("mine").to_dict()
    added.sampling.max_tokens = 5
    with pytest.raises(UsageError, match=r"no field 'sampling.max_tokens'; did you mean config.sampling.max_new_t"):
        cli.check(added)
    del short.learn["clip_low"]
    with pytest.raises(UsageError, match=r"config\.learn\.clip_low is missing"):
        cli.check(short)
    flat["learn"] = 0.1
    with pytest.raises(UsageError, match=r"config\.learn is 0\.1; expected a section"):
        cli.check(ml_collections.ConfigDict(flat))
