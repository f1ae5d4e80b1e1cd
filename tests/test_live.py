"""Three live processes, a hostile peer among them, and the simulator: the same bits."""

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from libp2p.pubsub.pb import rpc_pb2
from wandb.proto import wandb_internal_pb2

from rlswarm_jax.files import ALONE
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.reporting.results import load, mean
from rlswarm_jax.running import arguments as cli
from tests.metric_names import complaint, undocumented
from tests.records.samples import record
from tests.small import LOCAL, SHAPES, SHARED
from tests.swarm.hostile_peer import HostilePeer, framed
from tests.waits import wait_for

CHECKOUT = Path(__file__).parent.parent
NODES, ROUNDS, SEED = 3, 5, 4
ARGUMENTS = [
    f"--config.swarm.nodes={NODES}",
    f"--config.rounds={ROUNDS}",
    f"--config.seed={SEED}",
    *SHAPES,
    "--config.sampling.exact=True",
    "--config.sampling.exact_rows=8",
    "--config.swarm.deadline=0.0",  # a stage waits for all, for ever
    "--config.simulation.deadline=1e9",
    "--config.audit.auditors=0",  # when a live node's verdicts come is chance, and they are part of what it signs
    "--config.audit.rechecks=0",
    "--config.chain.endpoint=none",  # its beacons are the hashes of blocks, and of their times
]


def start(variant: str, workdir: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.run", f"--config=configs/quickstart.py:{variant}"]
    command += [*ARGUMENTS, *arguments, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def attack(workdir: Path) -> int:
    """Sends what must change nothing to node 0 as soon as it listens; returns how many records were forged."""
    file = workdir / "node-0" / "node.json"
    wait_for(file.exists, "node 0 listens")
    told = json.loads(file.read_text())
    peer = HostilePeer(Identity(b"\x66" * 32), told["addresses"][0], swarm=told["swarm"])
    own = simulated(SEED, 1).author
    forged = [seal(record(peer.identity, author=own, round=r, swarm="rlswarm"), peer.identity) for r in range(3)]
    sent = [peer.message(b"\0" + raw) for raw in forged]
    sent += [peer.message(b"\0garbage"), peer.message(b"\1garbage")]
    sent += [peer.message(b"\0" + seal(record(peer.identity, swarm="another"), peer.identity))]
    for message in sent:
        peer.send(framed(rpc_pb2.RPC(publish=[message])))
    peer.send(b"\x05\xff\xff\xff\xff\xff")  # not a frame: this ends the connection
    time.sleep(1.0)  # not a proof: leaves the node a moment to read what was written before the peer is gone
    peer.close()
    return len(forged)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, int]:
    live, simulation = tmp_path_factory.mktemp("live") / "run", tmp_path_factory.mktemp("simulated") / "run"
    process = start("simulate-smoke", simulation)  # first: the nodes find compiled what it compiles
    process.communicate(timeout=400)
    assert process.returncode == 0
    process = start("smoke", live, "--config.wandb.mode=offline", "--config.swarm.alone=True")
    forged = attack(live)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said + "".join(log.read_text() for log in live.glob("node-*/log.txt"))
    return live, simulation, forged


def journal(path: Path, node: int) -> list[tuple]:
    """What happened to a node: all but when."""
    with sqlite3.connect(f"file:{path / 'journal.sqlite'}?mode=ro", uri=True) as db:
        wanted = "SELECT round, step, kind, result FROM journal WHERE node = ? AND round > 1 ORDER BY round, step"
        return db.execute(wanted, (node,)).fetchall()


def test_live_equals_simulated_bit_for_bit_with_a_hostile_peer_beside(runs):
    live, simulation, _ = runs
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (live, simulation))
    assert ours["status"] == theirs["status"] == "finished"
    assert ours["weights"] == theirs["weights"] and len(set(ours["weights"].values())) == NODES
    for field in ("held_out_accuracy", "rounds_done", "learned_from", "received_from", "samples"):
        assert ours[field] == theirs[field], field
    assert sum(row["learn/updates"] for row in read_rows(live / "metrics.jsonl")) > NODES
    for row in read_rows(live / "metrics.jsonl"):  # both of the shared problems were criticised and revised by all
        assert row["critique/groups"] == row["revise/groups"] == SHARED
        assert row["groups/received"] == (NODES - 1) * (LOCAL + SHARED + SHARED)
        assert not any(name.startswith("groups/unused/") for name in row)
    for node in range(NODES):
        found, wanted = journal(live / f"node-{node}", 0), journal(simulation, node)
        kinds = [kind for _, _, kind, _ in found]
        assert {"Sample", "Score", "Publish", "Gather", "Learn"} <= set(kinds)
        assert found == wanted  # problems, completions, log-probs, signed bytes, scores, what was learned from


@pytest.mark.parametrize("which", [0, 1])
def test_a_report_has_the_line_to_start_the_same_again(runs, which):
    line = re.search(r"```bash\n(.*)\n```", (runs[which] / "report.md").read_text())[1]
    again = cli.parse(shlex.split(line)[3:]).config
    assert json.loads(again.to_json_best_effort()) == json.loads((runs[which] / "config.json").read_text())


def test_nodes_alone_were_played_beside_it_with_as_many_samples_as_one_and_as_all(runs):
    swarm = load(runs[0])
    assert set(swarm.alone) == {"sampled", "together"}
    of_a_node = swarm.summary.samples["generated"] / NODES
    for kind, one in swarm.alone.items():
        assert one.summary.status == "finished" and one.summary.rounds_done == {one.names[0]: ROUNDS}
        assert one.summary.external_fraction == 0 and not one.summary.ledger
        assert one.summary.config["learn"] == swarm.summary.config["learn"]
        assert one.summary.samples["generated"] == of_a_node * (NODES if kind == "together" else 1)
    report = (runs[0] / "report.md").read_text()
    after = [f"{100 * mean(one.after.values()):.1f} %" for one in (swarm, *swarm.alone.values())]
    for label, accuracy in zip(["this swarm", *ALONE.values()], after, strict=True):
        assert f"| {label} | {accuracy} |" in re.sub(" +", " ", report)
    assert (runs[0] / "alone.png").stat().st_size > 10_000


def test_every_metric_of_real_rounds_is_in_the_docs(runs):
    names = {name for path in runs[:2] for row in read_rows(path / "metrics.jsonl") for name in row}
    assert {"learn/rows_external", "network/bytes_in", "virtual_seconds"} <= names
    assert not undocumented(names), complaint(undocumented(names))


def test_what_the_hostile_peer_sent_is_counted_by_cause(runs):
    live, _, forged = runs
    summary = json.loads((live / "summary.json").read_text())
    rejected = summary["records"]["rejected"]
    assert rejected["bad signature"] == forged and rejected["wrong swarm"] == 1
    assert rejected["undecodable"] >= 2 and summary["network"]["malformed"] >= 1
    assert "rejected: bad signature" in (live / "report.md").read_text()


def wandb_records(raw: bytes):
    """The records of a .wandb file: a 7-byte header, then the log format of LevelDB (blocks of 32 KiB)."""
    assert raw[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found = wandb_internal_pb2.Record()
            found.ParseFromString(parts)
            yield found
            parts = b""


def wandb_steps(raw: bytes) -> int:
    return sum(found.WhichOneof("record_type") == "history" for found in wandb_records(raw))


def test_each_node_leaves_a_whole_wandb_run_in_one_group(runs):
    live, _, _ = runs
    groups, names = set(), set()
    for node in range(NODES):
        (file,) = (live / f"node-{node}" / "wandb").glob("offline-run-*/*.wandb")
        assert wandb_steps(file.read_bytes()) == ROUNDS
        for found in wandb_records(file.read_bytes()):
            if found.WhichOneof("record_type") == "run":
                groups.add(found.run.run_group)
                names.add(found.run.display_name)
    assert groups == {f"quickstart-smoke-{SEED}"} and len(names) == NODES


def test_a_node_s_folder_and_the_swarm_s_hold_what_is_promised(runs):
    live, _, _ = runs
    for node in range(NODES):
        folder = live / f"node-{node}"
        assert (folder / "node.key").stat().st_mode & 0o777 == 0o600
        assert not (folder / "node.json").exists()  # nobody listens there any more
        assert len(read_rows(folder / "metrics.jsonl")) == ROUNDS
    rows = read_rows(live / "metrics.jsonl")
    assert [(row["round"], row["node"]) for row in rows] == [(r, n) for r in range(ROUNDS) for n in range(NODES)]
    for node in range(NODES):  # a peer's address is passed on once it was reached there, which may take a round
        assert max(row["peers/connected"] for row in rows if row["node"] == node) >= NODES - 1
    summary = json.loads((live / "summary.json").read_text())
    assert summary["network"]["bytes_in"] > 0 and summary["network"]["bytes_out"] > 0


def test_who_is_who_is_said_before_jax_loads(tmp_path):
    """The parent loads neither jax nor libp2p."""
    heavy = ("jax", "libp2p", "trio", "wandb")
    code = f"import sys, rlswarm_jax.running.live; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# a node that has begun, and would play for ever
PLAYS = """
import sys, time
from pathlib import Path
from rlswarm_jax.running import folder, node

def play(*_):
    with folder.stop_on_signal() as stopping:
        print("plays", flush=True)
        while not stopping:
            time.sleep(0.01)
    return 130

node.play = play
sys.exit(node.main(Path(sys.argv[1])))
"""


def test_a_node_stops_when_whoever_started_it_is_gone(tmp_path):
    """How that is told is shown in tests/test_launch.py: the pipe to it ends."""
    (tmp_path / "config.json").write_text("{}")
    pipe, command = subprocess.PIPE, [sys.executable, "-c", PLAYS, str(tmp_path)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe)
    assert process.stdout.readline() == b"plays\n"
    process.stdin.close()
    try:
        assert process.wait(15) == 130  # of itself, before it is killed
    finally:
        process.kill()


@pytest.mark.slow
def test_ctrl_c_stops_all_and_the_same_command_goes_on(tmp_path):
    workdir = tmp_path / "run"
    process = start("smoke", workdir)
    files = [workdir / f"node-{node}" / "metrics.jsonl" for node in range(NODES)]
    wait_for(lambda: all(file.exists() for file in files) and any(map(read_rows, files)), "a round is over", 120.0)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, 15)  # the parent alone, as a supervisor does
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume goes on" in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive and (workdir / "report.md").exists()
    assert json.loads((workdir / "summary.json").read_text())["status"] == "stopped"
    for node in (workdir / f"node-{node}" for node in range(NODES)):
        newest = max(int(path.name) for path in (node / "checkpoints").iterdir())
        assert newest in (read_rows(node / "metrics.jsonl")[-1]["round"] + d for d in (1, 2))  # may have gone further
    process = start("smoke", workdir, "--resume")
    process.communicate(timeout=400)
    assert process.returncode == 0
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished"
    for node in range(NODES):
        rounds = [row["round"] for row in read_rows(workdir / f"node-{node}" / "metrics.jsonl")]
        assert rounds == sorted(set(rounds)) and rounds[-1] == ROUNDS - 1


@pytest.mark.slow
def test_a_killed_node_is_restarted_and_comes_to_the_end_with_the_others(tmp_path):
    workdir = tmp_path / "run"
    process = start("smoke", workdir, "--config.swarm.deadline=30.0", "--config.wandb.mode=offline")
    rows = workdir / "node-1" / "metrics.jsonl"
    wait_for(lambda: rows.exists() and read_rows(rows), "a round is over", 120.0)
    wandb = workdir / "node-1" / "wandb"
    wait_for(lambda: [*wandb.glob("offline-run-*/*.wandb")], "it is being told", 60.0)
    os.kill(json.loads((workdir / "node-1" / "node.json").read_text())["pid"], 9)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert "node 1 killed by SIGKILL; it is restarted" in said
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished" and all(summary["held_out_accuracy"]["after"].values())
    rounds = [row["round"] for row in read_rows(rows)]
    assert rounds == sorted(set(rounds)) and rounds[0] == 0 and rounds[-1] == ROUNDS - 1
    assert read_rows(rows)[-1]["records/received"] >= NODES - 1
    steps = [wandb_steps(file.read_bytes()) for file in wandb.glob("offline-run-*/*.wandb")]
    assert len(steps) == 2 and max(steps) == len(rounds)  # the second one is whole
