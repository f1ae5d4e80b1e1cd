"""The chain that a local swarm starts for itself: there when nodes begin, there again after it died."""

import json
import os
import signal
import time

import pytest

from rlswarm_jax.chain import anvil, calls, devnet, eth
from rlswarm_jax.chain.court import Court
from rlswarm_jax.chain.deployment import terms
from rlswarm_jax.chain.devnet import CHAIN_ID, DevnetError
from rlswarm_jax.chain.local import LocalChain
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.identity import simulated
from tests.chain.client_world import SETTINGS, Coordinator

ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/16Uiu2HAmCnn8Gue2cszdbALkno9q6guETFEgTY2ybM3khAzWwX69"


def client(chain: LocalChain, directory) -> Coordinator:
    directory.mkdir(exist_ok=True)
    return Coordinator(
        Endpoint(chain.url), chain.contract, simulated(0, 3), directory, chain_id=CHAIN_ID, settings=SETTINGS
    )


def contract_of(chain: LocalChain) -> eth.Contract:
    return eth.Contract(eth.connect(Endpoint(chain.url)), chain.contract)


@pytest.mark.parametrize("kind", ["devnet", "anvil"])
def test_nodes_find_a_coordinator_that_has_a_beacon(kind, tmp_path):
    if kind == "anvil" and not anvil.find():
        pytest.skip("anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
    with LocalChain(kind, tmp_path / "chain", 4, [ADDRESS]) as chain:
        node = client(chain, tmp_path / "node")
        assert node.connect().ours and node.status().beacon and node.bootnodes() == [ADDRESS]
        minimum, _, quorum, *_ = contract_of(chain).view("rules")
        assert (quorum, minimum) == (3, 0)  # of four: one may be gone
        assert chain.tend() is None
        node.close()
    assert oct((tmp_path / "chain" / "owner.key").stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize("kind", ["devnet", pytest.param("anvil", marks=pytest.mark.slow)])
def test_where_nodes_have_a_stake_there_is_a_court_and_they_have_coins(kind, tmp_path):
    if kind == "anvil" and not anvil.find():
        pytest.skip("anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
    rich, poor = (calls.account_of(simulated(0, number).author) for number in range(2))
    with LocalChain(kind, tmp_path / "chain", 5, [ADDRESS], 10**18, [rich]) as chain:
        w3 = eth.connect(Endpoint(chain.url))
        court = Court(w3, chain.court, chain.contract, rich)
        assert court.connect() == terms(10**18, 5)
        assert (w3.eth.get_balance(rich), w3.eth.get_balance(poor)) == (devnet.FUNDS, 0)
        said = chain.court
    if kind == "devnet":
        with LocalChain("devnet", tmp_path / "chain", 5, [ADDRESS], 10**18, [rich]) as chain:
            assert chain.court == said


def test_it_comes_back_where_it_was_and_goes_on_in_the_next_run(tmp_path):
    with LocalChain("devnet", tmp_path / "chain", 2, [ADDRESS]) as chain:
        url, contract = chain.url, chain.contract
        os.kill(chain.pid, signal.SIGKILL)
        said, until = [], time.monotonic() + 60.0
        while len(said) < 2 and time.monotonic() < until:
            said += [sentence] if (sentence := chain.tend()) else []
            time.sleep(0.05)
        assert "ended with code -9" in said[0] and said[1] == "the chain is there again"
        assert (chain.url, chain.contract) == (url, contract)
        assert contract_of(chain).view("getBootnodes") == [ADDRESS]
    with LocalChain("devnet", tmp_path / "chain", 2, []) as chain:
        assert chain.contract == contract and contract_of(chain).view("getBootnodes") == [ADDRESS]


def test_what_cannot_go_on_is_one_sentence(tmp_path):
    (tmp_path / "coordinator.json").write_text(json.dumps({"contract": "0x" + "11" * 20}))
    with pytest.raises(DevnetError, match="anvil keeps no chain"), LocalChain("anvil", tmp_path, 2, []):
        pass
    with pytest.raises(DevnetError, match="cannot keep a chain"), LocalChain("devnet", tmp_path / ("a" * 300), 2, []):
        pass


def test_nothing_of_it_lives_on_if_it_cannot_be_set_up(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("a test's doing")

    monkeypatch.setattr("rlswarm_jax.chain.deployment.deploy", fail)
    chain = LocalChain("devnet", tmp_path, 2, [])
    with pytest.raises(RuntimeError), chain:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(chain.pid, 0)
