"""A live swarm with stakes, one of whose four nodes does not sample as it says: it is found out, judged, and pays.

Each is a process of its own, on a chain of the swarm's own with a court beside its coordinator.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from rlswarm_jax import identity
from rlswarm_jax.chain import calls, devnet, eth
from rlswarm_jax.chain.court import FOUND_GUILTY, GUILTY, OPEN, UNDECIDED, Case, Court, Peer
from rlswarm_jax.chain.deployment import terms
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.metrics import read_rows
from tests.small import SHAPES

CHECKOUT = Path(__file__).parent.parent
NODES, ROUNDS, LIAR = 4, 90, 3
STAKE = 10**18

pytestmark = pytest.mark.slow


class Ended(NamedTuple):
    """What the court has of each node, by its number, and of the cases; accounts are nodes."""

    accounts: dict[str, int]
    peers: list[Peer]
    credits: list[int]
    cases: list[Case]
    payable: set[tuple[int, int]]  # of nodes and rounds


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("court") / "run"
    command = [sys.executable, "-m", "experiments.run", "--config=configs/quickstart.py:smoke", f"--workdir={folder}"]
    command += [*SHAPES, f"--config.swarm.nodes={NODES}", f"--config.rounds={ROUNDS}", "--config.chain.every=2"]
    command += [f'--config.simulation.adversaries=(({LIAR},"other_key"),)', "--config.chain.stake=1"]
    command += ["--config.evaluation.every=1000", "--config.audit.share=0.3"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + "".join(log.read_text() for log in folder.glob("node-*/log.txt"))
    return folder


@pytest.fixture(scope="module")
def ended(run) -> Ended:
    said = json.loads((run / "chain" / "coordinator.json").read_text())
    keys = [identity.load_or_create(run / f"node-{node}" / "node.key") for node in range(NODES)]
    accounts = {calls.account_of(key.author): node for node, key in enumerate(keys)}
    with devnet.running(run / "chain") as network:
        w3 = eth.connect(Endpoint(network.url), devnet.CHAIN_ID)
        court = Court(w3, said["court"], said["contract"], next(iter(accounts)))
        assert court.connect() == terms(STAKE, NODES)
        cases = [court.case(number + 1) for number in range(court._contract.view("counts")[0])]
        peers, credits = ([of(account) for account in accounts] for of in (court.peer, court.credit))
        payable = {(accounts[one.accused], one.round) for one in cases if court.payable(one.accused, one.round)}
    return Ended(accounts, peers, credits, cases, payable)


def test_the_liar_is_judged_by_nodes_that_are_no_side_and_nobody_else_is_accused(ended):
    assert ended.cases and {ended.accounts[case.accused] for case in ended.cases} == {LIAR}
    assert {ended.accounts[case.challenger] for case in ended.cases} <= {*range(NODES)} - {LIAR}
    judged = [case for case in ended.cases if case.state == FOUND_GUILTY]
    for case in judged:
        assert case.until > case.opened and not {case.accused, case.challenger} & {*case.members}
        assert GUILTY in case.votes
    assert judged and {case.state for case in ended.cases} <= {FOUND_GUILTY, UNDECIDED, OPEN}


def test_the_liar_has_lost_its_stake_and_the_others_have_kept_theirs_and_were_paid(ended):
    assert [peer.stake for peer in ended.peers] == [0 if node == LIAR else STAKE for node in range(NODES)]
    assert ended.credits[LIAR] == 0 and not ended.payable
    first = min((case for case in ended.cases if case.state == FOUND_GUILTY), key=lambda case: case.number)
    rules = terms(STAKE, NODES)
    won = (STAKE - rules.fee * first.votes.count(GUILTY)) // 2
    assert ended.credits[ended.accounts[first.challenger]] >= rules.bond + won
    for member, vote in zip(first.members, first.votes, strict=True):
        assert vote != GUILTY or ended.credits[ended.accounts[member]] >= rules.fee


def test_each_honest_node_has_found_the_liar_out_by_itself(run):
    for node in {*range(NODES)} - {LIAR}:
        rows = read_rows(run / f"node-{node}" / "metrics.jsonl")
        assert sum(row.get("audit/found/not produced", 0) for row in rows) > 0
        assert max(row["audit/distrusted"] for row in rows) == 1
    every = [row for path in run.glob("node-*/metrics.jsonl") for row in read_rows(path)]
    assert all(sum(row.get(f"chain/{what}", 0) for row in every) > 0 for what in ("challenged", "voted"))
