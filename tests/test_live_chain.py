"""A live swarm on a development network of its own, which is killed in the middle: everything comes to be on it."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from rlswarm_jax.audit import commit
from rlswarm_jax.chain import calls, devnet
from rlswarm_jax.chain.events import EventIndex
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.publish.model import hash_of
from rlswarm_jax.publish.queue import Queue
from rlswarm_jax.records.envelope import open_envelope
from tests.small import SHAPES

CHECKOUT = Path(__file__).parent.parent
NODES, ROUNDS, KILLED_AT = 2, 40, 6


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "run"
    command = [sys.executable, "-m", "experiments.run", "--config=configs/quickstart.py:smoke", f"--workdir={folder}"]
    command += [*SHAPES, f"--config.swarm.nodes={NODES}", f"--config.rounds={ROUNDS}", "--config.chain.every=2"]
    command += ["--config.evaluation.every=100", "--config.checkpoint_every=4"]
    command += [f"--config.publish.to={folder.parent}/published/{{node}}", "--config.publish.every=8"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    rows = folder / "node-0" / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and len(rows.read_text().splitlines()) >= KILLED_AT):
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children():
        if "rlswarm_jax.chain.devnet" in child.cmdline():
            child.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said + "".join(log.read_text() for log in folder.glob("node-*/log.txt"))
    assert "the chain is there again" in said
    assert re.search(r"others join with: .* --config.chain.endpoint=http://127.* --config.chain.contract=0x", said)
    return folder


@pytest.fixture(scope="module")
def events(run, tmp_path_factory) -> EventIndex:
    contract = json.loads((run / "chain" / "coordinator.json").read_text())["contract"]
    with devnet.running(run / "chain") as network:
        index = EventIndex(Endpoint(network.url), contract, tmp_path_factory.mktemp("index") / "events.sqlite")
        assert index.pull()
    return index


def published(run: Path, node: int) -> list[bytes]:
    """Content hashes in the order in which a node said it."""
    with sqlite3.connect(f"file:{run / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT result FROM journal WHERE kind = 'Publish' ORDER BY round, step").fetchall()
    return [open_envelope(msgspec.msgpack.decode(raw)).hash for (raw,) in rows]


def test_everything_that_was_published_is_committed_to_once(run, events):
    for node in range(NODES):
        said = published(run, node)
        assert len(said) == 3 * ROUNDS
        account = calls.account_of(_author(run, node)).lower()
        made = [e for e in events.entries("Settled") if e.fields["account"].lower() == account]
        assert len(made) >= 3 and [e.round for e in made] == sorted({e.round for e in made})
        at, state = 0, None
        for entry in made:
            root, first, last, count, before, after, _ = entry.fields["commitment"].values()
            covered = said[at : at + count]
            ends = [covered[0], covered[-1]]
            assert [bytes.fromhex(one[2:]) for one in (root, first, last)] == [commit.root(covered), *ends]
            assert before == (state or before) != after  # one chain of states
            at, state = at + count, after
        assert at == len(said)
    assert len({entry.fields["commitment"]["config"] for entry in events.entries("Settled")}) == 1


def _author(run: Path, node: int) -> bytes:
    with sqlite3.connect(f"file:{run / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
        (raw,) = db.execute("SELECT result FROM journal WHERE kind = 'Publish' LIMIT 1").fetchone()
    return open_envelope(msgspec.msgpack.decode(raw)).record.author


def test_records_were_made_under_the_beacons_of_the_chain(run, events):
    beacons = {bytes.fromhex(e.fields["beacon"][2:])[:8]: e.round for e in events.entries("BeaconFinalized")}
    for node in range(NODES):
        with sqlite3.connect(f"file:{run / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
            rows = db.execute("SELECT result FROM journal WHERE kind = 'Publish' ORDER BY round, step").fetchall()
        under = [beacons[open_envelope(msgspec.msgpack.decode(raw)).record.beacon] for (raw,) in rows]
        assert under == sorted(under) and len(set(under)) >= 3
    rows = read_rows(
        run / "metrics.jsonl"
    )  # nodes change it together: but for the time of the kill they read each other
    unused = sum(n for row in rows for name, n in row.items() if name.startswith("groups/unused/"))
    assert unused < 0.2 * sum(row["groups/received"] for row in rows)


def test_claims_and_votes_are_on_it_too(run, events):
    settled = events.entries("Settled")
    accounts = {calls.account_of(_author(run, n)).lower() for n in range(NODES)}
    assert {e.fields["account"].lower() for e in settled if e.fields["claims"][0] > 0} == accounts
    assert all(claim >= 0 for e in settled for claim in e.fields["claims"])
    votes = [e for e in settled if e.fields["winners"]]
    assert votes and all(e.round > 0 for e in votes)
    assert all({one.lower() for one in e.fields["winners"]} <= accounts - {e.fields["account"].lower()} for e in votes)


def test_samples_were_checked_once_a_round_of_the_chain_and_nobody_was_accused(run):
    for node in range(NODES):
        rows = read_rows(run / f"node-{node}" / "metrics.jsonl")

        def total(name: str, rows=rows) -> float:
            return sum(row.get(f"audit/{name}", 0.0) for row in rows)

        assert total("tokens") > 0 and total("found/produced") + total("found/undecided") >= 1  # few bits in a group
        assert total("own_tokens") > 0 and max(row["audit/own_gap"] for row in rows) < 1
        assert total("found/not produced") == total("distrusted") == total("own_not produced") == 0
        assert total("found/withheld") == 0
        assert 3 <= total("cases") <= len({row["chain/round"] for row in rows})


def test_published_weights_are_those_of_the_records_and_on_the_chain_in_order(run, events):
    """At the end the last ones; of those before as many as the chain had rounds for."""
    for node in range(NODES):
        with sqlite3.connect(f"file:{run / f'node-{node}' / 'journal.sqlite'}?mode=ro", uri=True) as db:
            rows = db.execute("SELECT result FROM journal WHERE kind = 'Publish'").fetchall()
        records = [open_envelope(msgspec.msgpack.decode(raw)).record for (raw,) in rows]
        named = {record.round: record.weights.hex() for record in records}
        sent = Queue(run / f"node-{node}").sent()
        assert sent[-1].round == ROUNDS - 1 or sent[-1].weights == named.get(ROUNDS - 1)
        followed = [one for one in sent if one.round + 1 in named]  # it may have left a round to come to the others
        assert followed and all(one.weights == named[one.round + 1] for one in followed)
        places = {one.uri: Path(one.uri.removeprefix("file://")) for one in sent}
        assert all(hash_of(places[one.uri]).hex() == one.weights for one in sent) and len(places) == len(sent)
        account = calls.account_of(_author(run, node)).lower()
        made = [e for e in events.entries("WeightsPublished") if e.fields["account"].lower() == account]
        settled = {e.round for e in events.entries("Settled") if e.fields["account"].lower() == account}
        told = [(e.fields["weights"][2:], e.fields["uri"]) for e in made]
        assert told[-1] == (sent[-1].weights, sent[-1].uri) and len(set(told)) == len(told)
        order = [(one.weights, one.uri) for one in sent]
        assert [order.index(one) for one in told] == sorted(order.index(one) for one in told)
        assert [e.round for e in made] == sorted({e.round for e in made}) and {e.round for e in made} <= settled
        assert sent[-1].uri in (run / "ledger.md").read_text()


def test_the_report_shows_the_ledger(run, events):
    report = (run / "report.md").read_text()
    (first,) = [e for e in events.entries("RoundAdvanced") if e.round == 1]
    assert first.hash[:8] in report and first.hash in (run / "ledger.md").read_text()
    rewarded = sum(sum(e.fields["claims"]) for e in events.entries("Settled"))
    totals = json.loads((run / "ledger.json").read_text())["totals"]
    assert sum(one["reward"] for one in totals.values()) == rewarded
