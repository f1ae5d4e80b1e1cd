"""What a person does with a coordinator from the command line, and what they are told when it cannot be."""

import json
import re
import shlex
import subprocess
import sys
import threading

import pytest

from experiments import chain as command
from experiments import court as court_command
from rlswarm_jax.chain import calls
from rlswarm_jax.identity import create, load_or_create, simulated
from tests.chain import fake_endpoint
from tests.chain.local_chain import CHAIN_ID, LocalChain

OWNER, NODE = simulated(5, 0), simulated(5, 1)
BOOTNODE = f"/ip4/10.0.0.1/tcp/4001/p2p/{NODE.peer_id}"
PAYOUT = "0x5FbDB2315678afecb367f032d93F642f64180aa3"


@pytest.fixture(scope="module")
def network():
    chain = LocalChain(instant=True)
    chain.fund(calls.account_of(OWNER.author))
    with fake_endpoint.serve(fake_endpoint.speak(chain, threading.Lock())) as url:
        yield url


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    create(folder / "owner.key", OWNER)
    create(folder / "node.key", NODE)
    return folder


@pytest.fixture
def say(network, keys, capsys):
    """Runs a command in which {rpc}, {chain}, {owner} and {node} stand for what the tests have; (code, out, err)."""

    def run(line, of=command, **more):
        given = {"rpc": network, "chain": CHAIN_ID, "owner": keys / "owner.key", "node": keys / "node.key"}
        words = shlex.split(line.format(**(given | more)))
        try:
            code = of.main(words)
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert OWNER.expose_secret().hex() not in said.out + said.err
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def contract(network, keys):
    words = f"deploy --rpc {network} --chain-id {CHAIN_ID} --key {keys / 'owner.key'} --min-seconds 7 --quorum 2"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.chain", *words.split()], capture_output=True, text=True, check=True
    )
    given = re.search(
        rf"--config\.chain\.endpoint={network} --config\.chain\.contract=(0x[0-9a-fA-F]{{40}}) "
        rf"--config\.chain\.id={CHAIN_ID}\n",
        done.stdout,
    )
    assert given and f"contract {given[1]} on chain {CHAIN_ID}" in done.stdout and "gas" in done.stdout
    assert re.search(r"sent the coordinator's deployment: transaction 0x[0-9a-f]{64}", done.stderr)  # while it waits
    return given[1]


ONLINE = "--rpc {rpc} --chain-id {chain} --contract {contract}"


def test_a_key_is_made_once_and_its_account_shown(say, tmp_path):
    first, again = (say(f"account --key {tmp_path / 'new.key'}") for _ in range(2))
    assert first == again and first[0] == 0
    assert calls.account_of(load_or_create(tmp_path / "new.key").author) in first[1]
    assert (tmp_path / "new.key").stat().st_mode & 0o777 == 0o600


def test_the_contract_that_was_deployed_has_the_rules_that_were_asked_for(say, contract):
    code, out, _ = say(f"status {ONLINE}", contract=contract)
    assert code == 0
    for fact in (
        "round 0 began",
        "0 of 2 settlements",
        "0 peers",
        "rules min_seconds 7, max_seconds 300, quorum 2, window 64, max_reward 1,000,000,000,000",
    ):
        assert fact in out
    assert re.search(r"beacon 0x[0-9a-f]{64}\n", out)


def test_an_upgrade_is_named_beside_the_bootnodes_and_cancelled(say, contract):
    boot, up = (f"{what} {ONLINE} --key {{owner}}" for what in ("bootnodes", "upgrade"))
    for line, said, bootnodes in (
        (f"{up} --records 5.1 --round 40", "records 5.1 from round 40 on", 0),
        (f"{boot} {BOOTNODE}", "1 bootnodes", 1),
        (f"{up} --records 6 --round 50", "records 6 from round 50 on", 1),
        (f"{up}", "no upgrade is named", 1),
        (f"{boot}", "0 bootnodes", 0),
    ):
        code, out, _ = say(line, contract=contract)
        assert code == 0 and said in out
        shown = say(f"status {ONLINE}", contract=contract)[1]
        assert shown.count(f"bootnode {BOOTNODE}") == shown.count("bootnode") == bootnodes
        named = {"records 5.1 from round 40 on", "records 6 from round 50 on"} & set(shown.splitlines())
        assert len(named) == (1 if "records" in line or "5.1" in said or line == f"{boot} {BOOTNODE}" else 0)
    for wrong in ("--records five --round 9", "--records 5.1", "--records 5.1 --round -4"):
        code, _, err = say(f"{up} {wrong}", contract=contract)
        assert code == 2 and "name the version as its nodes tell it" in err
    code, _, err = say(f"upgrade {ONLINE} --key {{node}} --records 5.1 --round 9", contract=contract)
    assert code == 2 and "does not own the coordinator" in err


def test_bootnodes_are_replaced_shown_and_cleared(say, contract):
    line = f"bootnodes {ONLINE} --key {{owner}}"
    for addresses, said in (
        (BOOTNODE, "1 bootnodes"),
        (BOOTNODE, "the list was this one already"),
        ("", "0 bootnodes"),
    ):
        code, out, _ = say(f"{line} {addresses}", contract=contract)
        assert code == 0 and said in out
        assert (f"bootnode {BOOTNODE}" in say(f"status {ONLINE}", contract=contract)[1]) == bool(addresses)
    code, _, err = say(f"bootnodes {ONLINE} --key {{node}} {BOOTNODE}", contract=contract)
    assert code == 2 and "does not own the coordinator" in err
    code, _, err = say(f"{line} /ip4/10.0.0.1/tcp/1", contract=contract)
    assert code == 2 and "as a node prints it when it starts" in err


def test_a_node_without_funds_is_registered_and_the_ledger_shows_it(say, contract, tmp_path):
    code, out, _ = say(
        f"sign-registration --chain-id {{chain}} --contract {{contract}} --key {{node}} --payout {PAYOUT}",
        contract=contract,
    )
    assert code == 0 and NODE.expose_secret().hex() not in out
    signed = tmp_path / "node.json"
    signed.write_text(out)
    account = calls.account_of(NODE.author)
    for said in (f"{account} is registered\n", f"{account} was registered already\n"):
        code, out, _ = say(f"relay {ONLINE} --key {{owner}} {signed}", contract=contract)
        assert code == 0 and said in out
    code, out, _ = say(f"ledger {ONLINE} --dir {tmp_path / 'ledger'}", contract=contract)
    assert code == 0 and "0 votes of 1 peer," in re.sub(r"\s+", " ", out)
    (peer,) = json.loads((tmp_path / "ledger" / "ledger.json").read_text())["peers"]
    assert (peer["account"], peer["kind"], peer["payout"]) == (account, "proven", PAYOUT)
    signed.write_text(json.dumps(json.loads(signed.read_text()) | {"deadline": 1}))
    code, _, err = say(f"relay {ONLINE} --key {{owner}} {signed}", contract=contract)
    assert code == 2 and "is not signed by its key as it stands" in err


def test_a_url_comes_from_the_environment_and_is_never_shown(say, network, contract, monkeypatch):
    monkeypatch.setenv("SECRET_URL", network + "/hunter2")
    code, out, err = say("deploy --rpc '$SECRET_URL' --chain-id {chain} --key {owner}")
    assert code == 0 and "--config.chain.endpoint='$SECRET_URL'" in out and "hunter2" not in out + err
    code, out, err = say("deploy --rpc {rpc}/hunter2 --chain-id {chain} --key {owner}")
    assert code == 0 and "--config.chain.endpoint=URL" in out and "hunter2" not in out + err
    for url in (
        "http://127.0.0.1:9/hunter2",
        "http://user:hunter2@127.0.0.1:9",
        "http://user:hunter2/x@host",
        "ftp://127.0.0.1/hunter2",
        "http://[hunter2",
    ):
        monkeypatch.setenv("SECRET_URL", url)
        for rpc in ("'$SECRET_URL'", url):
            code, out, err = say(f"status --rpc {rpc} --chain-id {{chain}} --contract {contract}")
            assert code == 2 and "endpoint" in err and "hunter2" not in out + err
    monkeypatch.delenv("SECRET_URL")
    assert say("deploy --rpc '$SECRET_URL' --chain-id 1 --key {owner}")[0] == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("deploy --rpc {rpc} --chain-id 1 --key {owner}", "the endpoint serves chain"),
        ("deploy --rpc {rpc} --chain-id {chain} --key {node}", "has 0.000000 coins"),
        ("deploy --rpc {rpc} --chain-id {chain} --key {owner} --max-seconds 1", "max_seconds is 1, below min_seconds"),
        ("deploy --rpc {rpc} --chain-id {chain} --key {owner} --bootnodes here", "the bootnode 'here' is no address"),
        ("deploy --rpc {rpc} --chain-id {chain} --key nowhere.key", "there is no key file nowhere.key"),
        ("deploy --rpc http://127.0.0.1:9 --chain-id 1 --key {owner}", "127.0.0.1:9 does not answer"),
        ("status --rpc {rpc} --chain-id {chain} --contract 0x12", "'0x12' is no address"),
        ("status --rpc {rpc} --chain-id {chain} --contract " + PAYOUT, "there is no coordinator at"),
        ("ledger --rpc {rpc} --chain-id {chain} --dir x --contract " + PAYOUT, "there is no contract at"),
        ("relay --rpc {rpc} --chain-id {chain} --contract " + PAYOUT + " --key {owner} {owner}", "no signed registr"),
        ("relay --rpc {rpc} --chain-id {chain} --contract " + PAYOUT + " --key {owner} x.json", "cannot read x.json"),
        (
            "sign-registration --chain-id 1 --contract " + PAYOUT + " --key {node} --hours inf",
            "--hours is inf; it must",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(say, tmp_path, monkeypatch, line, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = say(line)
    assert (code, out) == (2, "") and sentence in err
    assert err.startswith("error: ") and err.endswith(".\n") and err.count("\n") == 1 and len(err) < 300


def test_a_court_is_made_and_a_stake_shown_asked_for_and_not_given_back_too_soon(say, contract):
    code, said, error = say(
        f"deploy {ONLINE} --key {{owner}} --stake 0.5 --size 3 --quorum 2", contract=contract, of=court_command
    )
    court = re.search(r"--config\.chain\.court=(0x[0-9a-fA-F]{40}) --config\.chain\.stake=0\.5\n", said)
    assert (code, bool(court)) == (0, True), error
    stake = f"--court {court[1]} {ONLINE} --key {{node}}"
    code, said, _ = say(f"show {stake}", contract=contract, of=court_command)
    assert code == 0 and "has a stake of 0.000000 coins, and 0.000000 coins to collect" in said
    for what, why in (("quit", "NotStaked"), ("withdraw", "TooEarly"), ("collect", "NothingToCollect")):
        code, _, error = say(f"{what} {stake}", contract=contract, of=court_command)
        assert code == 2 and error == f"error: the contract refused the call: {why}.\n"
    code, _, error = say(f"deploy {ONLINE} --key {{owner}} --stake 1 --claims 7", contract=contract, of=court_command)
    assert code == 2 and "a court's claims is 7; it must be from 65 to" in error
    code, _, error = say(f"show --court {PAYOUT} {ONLINE} --key {{node}}", contract=contract, of=court_command)
    assert code == 2 and "there is no court at" in error
