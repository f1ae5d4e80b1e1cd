"""What a config says of a chain, and what it meets there: one sentence for whatever the user can mend."""

import contextlib
import json
import socket

import pytest
import requests

from configs import common
from rlswarm_jax.chain.deployment import set_bootnodes
from rlswarm_jax.chain.devnet import CHAIN_ID
from rlswarm_jax.chain.errors import FileDamaged
from rlswarm_jax.chain.local import LocalChain
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.errors import TransientError, UsageError
from rlswarm_jax.identity import load_or_create, simulated
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.running import account
from rlswarm_jax.swarm.mailbox import Mailbox
from tests.chain import fake_endpoint

ME = simulated(0, 1)
ADDRESS = f"/ip4/127.0.0.1/tcp/4001/p2p/{simulated(0, 2).peer_id}"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with LocalChain("devnet", tmp_path_factory.mktemp("chain"), 2, [ADDRESS]) as running:
        yield running


def config_of(chain: LocalChain, **fields):
    config = common.swarm("tests")
    config.chain.update(
        {"endpoint": chain.url, "contract": chain.contract, "id": CHAIN_ID, "confirmations": 0} | fields
    )
    return config


@contextlib.contextmanager
def connected(config, tmp_path):
    found = account.connect(config, ME, tmp_path)
    try:
        yield found
    finally:
        if found:
            found.close()


def test_a_config_names_its_chain_or_none(chain, tmp_path, monkeypatch):
    assert account.connect(config_of(chain, endpoint="none"), ME, tmp_path) is None
    monkeypatch.setenv("RPC_OF_THE_TEST", chain.url)
    with connected(config_of(chain, endpoint="$RPC_OF_THE_TEST"), tmp_path) as found:
        assert found.status().beacon and account.bootnodes(found) == [ADDRESS]
    with pytest.raises(UsageError, match="the environment has no RPC_OF_NOBODY"):
        account.connect(config_of(chain, endpoint="$RPC_OF_NOBODY"), ME, tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": 5}, "serves chain 7498867, but the swarm is on chain 5"),
        ({"contract": "0x" + "12" * 20}, "there is no contract at 0x1212"),
    ],
)
def test_a_wrong_chain_or_contract_is_one_sentence(chain, tmp_path, fields, said):
    with pytest.raises(UsageError, match=said):
        account.connect(config_of(chain, **fields), ME, tmp_path)
    (tmp_path / "again").mkdir()
    with connected(config_of(chain), tmp_path / "again"):
        pass  # nothing of the failed try holds it up


def test_an_endpoint_that_is_down_is_waited_for_later(chain, tmp_path, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with connected(config_of(chain, endpoint=url), tmp_path) as found:
            assert found and account.bootnodes(found) == []
    assert "The node begins without it" in caplog.text


def test_an_endpoint_that_limits_how_much_it_is_asked_is_waited_for(chain, tmp_path, caplog, monkeypatch):
    """HTTP 200 with a JSON-RPC error, for a while and for long: a starting node does not end by it."""
    limited, asked = [2], []

    def respond(handler, body):
        asked.append(limited[0])
        limited[0] -= 1
        if limited[0] >= 0:
            error = {"code": -32005, "message": "request rate limited"}
            return fake_endpoint.answer(handler, json.dumps({"id": json.loads(body)["id"], "error": error}).encode())
        return fake_endpoint.answer(handler, requests.post(chain.url, data=body, timeout=10).content)

    with fake_endpoint.serve(respond) as url:
        with connected(config_of(chain, endpoint=url), tmp_path) as found:
            assert found and account.bootnodes(found) == [ADDRESS] and len(asked) > 3
        assert not caplog.text
        monkeypatch.setattr(account, "PATIENCE", 0.0)
        limited[0] = 10**6
        with connected(config_of(chain, endpoint=url), tmp_path) as found:
            assert found
    assert "asked too much: request rate limited" in caplog.text and "The node begins without it" in caplog.text


def test_an_endpoint_that_denies_a_node_is_named_with_its_status_and_tried_again(chain, tmp_path, caplog):
    with (
        fake_endpoint.serve(lambda handler, _: fake_endpoint.answer(handler, b"<html>denied</html>", 403)) as url,
        connected(config_of(chain, endpoint=url), tmp_path) as found,
    ):
        assert found and "HTTP 403, Forbidden" in caplog.text


def test_a_payout_address_that_this_node_cannot_change_is_refused_at_its_start(chain, tmp_path):
    one, two = ("0x" + byte * 20 for byte in ("ab", "cd"))
    with connected(config_of(chain, payout=one), tmp_path) as found:
        found.register(payout=one)
        while not found.idle():
            found.step()
    for payout in (two, ""):
        with pytest.raises(UsageError, match="which alone can turn them"):
            account.connect(config_of(chain, payout=payout), ME, tmp_path)
    with connected(config_of(chain, payout=one), tmp_path) as found:
        assert found


def test_another_process_that_has_the_outbox_is_waited_for(chain, tmp_path):
    with connected(config_of(chain), tmp_path), pytest.raises(TransientError, match="in use by another process"):
        account.connect(config_of(chain), ME, tmp_path)


def test_bootnodes_that_are_no_addresses_are_left_out(chain, tmp_path):
    owner = load_or_create(chain.directory / "owner.key")
    named = [ADDRESS, "rm -rf /", f"/dns/x/tcp/1/p2p/{'Q' * 46}", "/ip4/127.0.0.1/tcp/1"]
    set_bootnodes(Endpoint(chain.url), owner, CHAIN_ID, chain.contract, named)
    with connected(config_of(chain), tmp_path) as found:
        assert account.bootnodes(found) == [ADDRESS]
    set_bootnodes(Endpoint(chain.url), owner, CHAIN_ID, chain.contract, [ADDRESS])


def test_an_outbox_that_cannot_be_written_ends_the_node_in_one_sentence(chain, tmp_path):
    mailbox = Mailbox(Inbox("tests", ME.author, 4, STAGES))
    config = config_of(chain)
    kept = account.kept(config, account.connect(config, ME, tmp_path), mailbox)
    with pytest.raises(TransientError, match="disk"), kept as keeper:
        assert keeper.wait(-1, 30.0, lambda: False)
        raise FileDamaged("cannot use the chain outbox: disk is full.")
    with connected(config, tmp_path) as again:  # its thread is gone, and its outbox free
        assert again.wishes()[0].kind == "register"


@pytest.mark.parametrize(
    ("coins", "wei"), [(0.0, 0), (0.1, 10**17), (1.0, 10**18), (0.07, 7 * 10**16), (1e-05, 10**13), (1e9, 10**27)]
)
def test_coins_are_what_people_write(coins, wei):
    assert account.wei(coins) == wei
