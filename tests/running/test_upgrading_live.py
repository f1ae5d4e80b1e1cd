"""A swarm goes to another version in a round of its coordinator: what a node of this one does, as a real process."""

import signal

import pytest

from rlswarm_jax import identity
from rlswarm_jax.chain.deployment import set_upgrade
from rlswarm_jax.chain.devnet import CHAIN_ID
from rlswarm_jax.chain.local import OWNER_FILE, LocalChain
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.chain.upgrade import Upgrade
from rlswarm_jax.game.rules import RECORDS_VERSION
from rlswarm_jax.metrics import read_rows
from tests.running.test_single_node import start, wait_until

pytestmark = pytest.mark.slow


def test_a_node_that_follows_ends_in_that_round_and_one_that_only_says_so_plays_on(tmp_path):
    workdir, rows = tmp_path / "node", tmp_path / "node" / "metrics.jsonl"
    with LocalChain("devnet", tmp_path / "chain", 1, []) as chain:
        owner = identity.load_or_create(chain.directory / OWNER_FILE)
        set_upgrade(Endpoint(chain.url), owner, CHAIN_ID, chain.contract, Upgrade("9.9", 2))
        here = {"endpoint": chain.url, "contract": chain.contract, "id": CHAIN_ID, "confirmations": 0, "every": 1}
        words = ["--config.rounds=0", *(f"--config.chain.{name}={value}" for name, value in here.items())]

        follows = start(workdir, *words, "--config.chain.upgrades=follow")
        said, complained = follows.communicate(timeout=240)
        assert follows.returncode == 75, said + complained
        assert f"from the coordinator's round 2 on; here is {RECORDS_VERSION}: start anew" in complained
        assert said.count("the coordinator says: from its round 2 on") == 1
        assert read_rows(rows)[-1]["chain/upgrade_round"] == 2

        again = start(workdir, *words, "--config.chain.upgrades=follow", "--resume")
        _, complained = again.communicate(timeout=240)
        assert again.returncode == 2 and f"round 2; here is {RECORDS_VERSION}: install" in complained

        played = len(read_rows(rows))
        plays_on = start(workdir, *words, "--resume")
        try:
            wait_until(lambda: len(read_rows(rows)) > played + 1 or plays_on.poll() is not None, 240)
        finally:
            plays_on.send_signal(signal.SIGINT)
            plays_on.communicate(timeout=120)
        assert plays_on.returncode == 130
