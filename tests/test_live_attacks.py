"""Four live processes on a chain, one of which lies: its peers find it out, and what they say of it is on the chain."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import NOT_PRODUCED, WITHHELD
from tests.small import SHAPES

CHECKOUT = Path(__file__).parent.parent
NODES, ROUNDS, LIAR = 4, 48, 3
# (who spams falls behind, and is hardly audited: tests/test_simulate.py has it)
# how a peer is found out: by a replay of what it said; by not showing its weights; by what it signed itself. By a
# replay, too, who says of others what is not so: then the contrary is what is found, and nothing is said of the liar
REPLAYED, OTHERWISE = ("best_of", "wrong", "copy", "style"), ("withhold", "accuse", "equivocate")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[*REPLAYED, *OTHERWISE, ""])
def run(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("attack") / "run"
    command = [sys.executable, "-m", "experiments.run", "--config=configs/quickstart.py:smoke", f"--workdir={folder}"]
    command += [*SHAPES, f"--config.swarm.nodes={NODES}", f"--config.rounds={ROUNDS}", "--config.chain.every=2"]
    command += [
        "--config.evaluation.every=1000",
        "--config.checkpoint_every=1000",
        "--config.audit.share=0.3",
        "--config.audit.auditors=3",
    ]
    if request.param:
        command.append(f'--config.simulation.adversaries=(({LIAR},"{request.param}"),)')
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + "".join(log.read_text() for log in folder.glob("node-*/log.txt"))
    return request.param, folder


def published(folder: Path, node: int) -> list[SignedRecord]:
    with sqlite3.connect(f"file:{folder / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT result FROM journal WHERE kind = 'Publish' ORDER BY round, step").fetchall()
    return [open_envelope(msgspec.msgpack.decode(raw)) for (raw,) in rows]


def test_all_others_find_the_liar_out_and_nobody_else(run):
    name, folder = run
    liar = published(folder, LIAR)[0].record.author.hex()
    for node in range(NODES - 1):
        rows = read_rows(folder / f"node-{node}" / "metrics.jsonl")
        distrusted = {key.removeprefix("audit/distrusted/") for row in rows for key in row if "distrusted/" in key}
        assert distrusted == ({liar} if name else set()), f"node {node} of {name}"
        assert sum(row.get("audit/own_not produced", 0) for row in rows) == 0


def test_what_was_found_is_in_records_that_are_committed_to(run):
    name, folder = run
    authors = [published(folder, node)[0].record.author for node in range(NODES)]
    said_by = {one.hash: authors[node] for node in range(NODES) for one in published(folder, node)}
    audit = [sys.executable, "-m", "experiments.audit", str(folder), f"--out={folder / 'audit'}", "--groups=0"]
    done = subprocess.run(audit, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    claims = json.loads((folder / "audit" / "claims.json").read_text())["accounts"]
    covered = {bytes.fromhex(one) for account in claims if account["right"] for one in account["records"]}
    told = [(one.hash, v) for node in range(NODES - 1) for one in published(folder, node) for v in one.record.verdicts]
    accused = {said_by[v.record] for record, v in told if record in covered and v.finding in (NOT_PRODUCED, WITHHELD)}
    expected = name in REPLAYED or name == "withhold"
    assert accused == ({authors[LIAR]} if expected else set())
    assert any(record in covered for record, _ in told)
