"""docs/metrics.md names every metric, with its unit and what it means, and nothing that does not exist."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from rlswarm_jax.game import effects
from rlswarm_jax.game.chain import Moment
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.grpo import learner
from rlswarm_jax.identity import Identity
from rlswarm_jax.records.schema import CAUSES
from tests.game.hand_driver import (
    ALICE,
    BOB,
    ME,
    Speaker,
    all_right,
    all_wrong,
    play_together,
    record_of,
    signed,
    three_stages,
)
from tests.game.hand_driver import play as play_round_by_hand
from tests.grpo import tiny
from tests.metric_names import PAGE, complaint, documented, undocumented

ROOT = Path(__file__).parent.parent
# where metrics are made: a name is a string such as "group/name" there, and nothing else is
ROOMS = ["game/*.py", "grpo/*.py", "swarm/*.py", "records/*.py", "audit/*.py", "publish/background.py", "*.py"]
FOREIGN = {"launch.py", "compilation.py", "metrics.py", "identity.py"}  # strings with slashes that are paths
PARTS = {"accuracy/*", "rlswarm/*"}  # a name without its prefix; a topic
NAME = re.compile(r"[a-z][a-z_]*(/[a-z_ *]+)+")


def strings(node: ast.AST) -> Iterator[str]:
    """What a string may come out as; `*` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            ends = list(strings(part.value if isinstance(part, ast.FormattedValue) else part)) or ["*"]
            found = [start + end for start in found for end in ends]
        yield from found


def in_code(source: str) -> set[str]:
    tree = ast.parse(source)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    inner = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    nodes = [node for node in ast.walk(tree) if node not in texts and node not in inner]
    found = {text for node in nodes for text in strings(node) if NAME.fullmatch(text)}
    return {f"records/{name}" if name.startswith("rejected/") else name for name in found}  # as node.py does


@functools.cache
def all_in_code() -> set[str]:
    files = {file for room in ROOMS for file in (ROOT / "rlswarm_jax").glob(room) if file.name not in FOREIGN}
    assert len(files) > 30
    return {name for file in files for name in in_code(file.read_text())} - PARTS


@functools.cache
def of_rounds_by_hand() -> set[str]:
    """Of rounds with all stages, peers, failures, a chain, and a last one."""
    chain = [Moment(0, b"\1" * 32)]
    nodes = {ME: Speaker(), ALICE: Speaker(all_right), BOB: Speaker(all_wrong)}  # so that there is something to contest
    states = dict.fromkeys(nodes, NodeState(round=9))
    names = set()
    checks = {"auditors": 1, "rechecks": 1}
    played = play_together(nodes, states=states, chain=chain, chain_every=2, evaluate_every=3, **checks)
    names |= {name for one in played.values() for name in one.metrics}
    foreign = signed(record_of(Identity(b"\7" * 32)), Identity(b"\7" * 32))
    names |= set(play_round_by_hand(three_stages(ME), arrived=[foreign]).metrics)
    return {name for name in names if not name.startswith("learn/")}


@functools.cache
def of_the_learner() -> set[str]:
    """Of a step that is traced, not run."""
    learns = learner.Learner(tiny.LEARNER, tiny.CONFIG)
    state = learns.init(tiny.params())
    metrics = jax.eval_shape(lambda state, batch: learns.step(state, batch, 1e-3), state, tiny.make_batch())[1]
    return {f"learn/{name}" for name in metrics}


def test_every_metric_has_a_line():
    names = all_in_code() | of_rounds_by_hand() | of_the_learner()
    assert {"network/dropped/outbox full", "peers/given_up", "learn/grad_norm", "final/accuracy"} <= names
    assert {"records/rejected/*", "groups/unused/*", "chain/round", "chain/*", "seconds/*"} <= names
    missing = undocumented(names)
    assert not missing, complaint(missing)


def test_every_line_says_what_and_in_which_unit():
    for name, (unit, meaning) in documented().items():
        dimensionless = {"learn/loss", "learn/grad_norm", "learn/update_norm", "learn/ratio_mean"}
        dimensionless |= {"learn/importance_mean", "learn/importance_max"}
        assert (unit or name in dimensionless) and len(meaning) > 5, name


def test_no_line_is_of_a_metric_that_does_not_exist():
    """Nor of one whose name has changed."""
    fixed = {"learn/rows_local", "learn/rows_external", "node", "name", "round", "wall_seconds", "virtual_seconds"}
    fixed |= {"lessons"}
    fixed |= {f"learn/{name}" for name in ("low_ess_groups", "text_tokens", "filled_fraction", "flops", "kl")}
    fixed |= {"network/dropped/oversized"}  # libp2p's own reason
    known = all_in_code() | of_rounds_by_hand() | of_the_learner() | fixed | {"score/failed/*"}
    known |= {f"{when}/{what}" for when in ("held_out", "final") for what in ("accuracy", "problems", "accuracy/*")}
    for name in documented():
        pattern = re.compile(re.sub(r"<[^>]*>", ".+", re.escape(name)))
        assert any(pattern.fullmatch(one) for one in known), f"docs/metrics.md: nothing is called {name} any more."


def test_every_cause_and_every_effect_is_explained():
    text = PAGE.read_text()
    assert not [cause for cause in CAUSES if f"| `{cause}` |" not in text]
    timed = [name.lower() for name, kind in vars(effects).items() if kind in getattr(effects.Effect, "__args__", ())]
    assert len(timed) > 8 and not [name for name in timed if f"`{name}`" not in text]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('self.count("network/dropped/far away")', "network/dropped/far away"),
        ('watch.offend(peer, f"rejected/{error.cause}")', "records/rejected/*"),
        ('metrics["pool/authors"] = 1.0', "pool/authors"),
        ("count(f\"network/{'slow' if late else 'dead'} peers\")", "network/slow peers"),
        ('metrics |= {f"earned_by/{author}": 1.0}', "earned_by/*"),
    ],
)
def test_a_new_metric_is_found_and_named(source, name):
    """The check itself: each of these would be missing."""
    assert name in in_code(source)
    new = {"pool/authors", "earned_by/*", "network/slow peers", "network/dropped/far away"}
    assert undocumented([name]) == ([name] if name in new else [])
    assert name in complaint([name])
