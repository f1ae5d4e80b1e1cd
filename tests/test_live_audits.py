"""Three live processes, one of which does not sample as it says: its peers find it out over libp2p, and only it."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax.identity import friendly_name
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED, Record
from tests.small import SHAPES

CHECKOUT = Path(__file__).parent.parent
NODES, ROUNDS, LIAR = 3, 16, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audits") / "run"
    command = [sys.executable, "-m", "experiments.run", "--config=configs/quickstart.py:smoke", f"--workdir={folder}"]
    command += [*SHAPES, f"--config.swarm.nodes={NODES}", f"--config.rounds={ROUNDS}", "--config.chain.endpoint=none"]
    command += [f'--config.simulation.adversaries=(({LIAR},"other_key"),)', "--config.evaluation.every=100"]
    command += ["--config.checkpoint_every=1000"]  # or its journal would forget what was said at first
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + "".join(log.read_text() for log in folder.glob("node-*/log.txt"))
    return folder


def published(run: Path, node: int) -> list[Record]:
    with sqlite3.connect(f"file:{run / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT result FROM journal WHERE kind = 'Publish' ORDER BY round, step").fetchall()
    return [open_envelope(msgspec.msgpack.decode(raw)).record for (raw,) in rows]


def total(run: Path, node: int, name: str) -> float:
    return sum(row.get(name, 0.0) for row in read_rows(run / f"node-{node}" / "metrics.jsonl"))


def test_both_others_find_the_liar_out_and_nobody_else(run):
    authors = [published(run, node)[0].author for node in range(NODES)]
    for node in {*range(NODES)} - {LIAR}:
        rows = read_rows(run / f"node-{node}" / "metrics.jsonl")
        distrusted = [row["audit/distrusted"] for row in rows]
        assert max(distrusted) == distrusted[-1] == 1
        since = distrusted.index(1)
        learned = [row.get(f"learned_from/{authors[LIAR].hex()}", 0) for row in rows]
        assert sum(learned[since + 1 :]) == 0 < sum(row.get("groups/external", 0) for row in rows[since + 1 :])
        assert total(run, node, "audit/found/withheld") == 0
        assert total(run, node, "audit/own_not produced") == 0 and total(run, node, "audit/own_gap") < ROUNDS
        assert total(run, node, "audit/bytes_fetched") > 0
        said = (run / f"node-{node}" / "log.txt").read_text()
        accused = [line for line in said.splitlines() if "not sampled with the weights and keys" in line]
        assert accused and all(friendly_name(authors[LIAR]) in line for line in accused)
    assert total(run, LIAR, f"audit/found/{NOT_PRODUCED}") == 0  # it finds nothing to say of the others


def test_verdicts_are_told_in_signed_records_and_say_what_they_are_of(run):
    records = {node: published(run, node) for node in range(NODES)}
    by_hash = {open_record: record for node in records for open_record, record in _hashed(run, node)}
    verdicts = [(node, v) for node in records for record in records[node] for v in record.verdicts]
    accusations = [v for _, v in verdicts if v.finding == NOT_PRODUCED]
    assert accusations and {by_hash[v.record].author for v in accusations} == {records[LIAR][0].author}
    assert all(by_hash[v.record].author != records[node][0].author for node, v in verdicts)
    assert all(v.tokens > 0 for _, v in verdicts if v.finding in (PRODUCED, NOT_PRODUCED))


def _hashed(run: Path, node: int) -> list[tuple[bytes, Record]]:
    with sqlite3.connect(f"file:{run / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT result FROM journal WHERE kind = 'Publish'").fetchall()
    signed = [open_envelope(msgspec.msgpack.decode(raw)) for (raw,) in rows]
    return [(one.hash, one.record) for one in signed]


def test_the_report_says_so(run):
    report = (run / "report.md").read_text()
    section = report.split("## Audits\n", 1)[1].split("\n## ", 1)[0]
    assert "Somebody did not sample as they said." in section and len(section.splitlines()) > NODES
