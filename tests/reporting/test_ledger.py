"""The ledger of a run is what its chain has, whole in its files and short in its report."""

import json
import threading

import msgspec
import pytest

from configs import quickstart
from experiments import render as render_command
from rlswarm_jax.chain.errors import EndpointDown, NoContract, WrongChain
from rlswarm_jax.chain.ledger import Ledger, read_ledger
from rlswarm_jax.errors import UsageError
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.reporting import ledger, report, results
from tests.chain import fake_endpoint
from tests.chain.client_world import ACCOUNT, COMMITMENT, ME, OTHER, OTHER_ACCOUNT, make_world, settle
from tests.chain.local_chain import CHAIN_ID
from tests.reporting.test_report import cells, make_run, printed, written

MINE, THEIRS = friendly_name(ME.author), friendly_name(OTHER.author)
NAUGHTY = "12D3 | `<b>`\n# title \x1b[31m" + "x" * 80


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """(what is read of a round in which two nodes took part, the wishes that made it)."""
    world, folder = make_world(), tmp_path_factory.mktemp("ledger")
    for name in "ab":
        (folder / name).mkdir()
    clients = [world.client(folder / name, identity=one) for name, one in (("a", ME), ("b", OTHER))]
    at = world.round, world.beacon, COMMITMENT
    clients[0].settle(*at, (12345, -45, 0), [OTHER.peer_id])
    clients[1].settle(*at, (900_000, 0, 0), [])
    clients[1].publish_weights(world.round, b"w" * 32, NAUGHTY)
    for client in clients:
        settle(client, world)
    wishes = {(client.account, wish.kind, wish.stage): wish.hash for client in clients for wish in client.wishes()}
    with fake_endpoint.serve(fake_endpoint.speak(world.chain, threading.Lock())) as url:
        found = read_ledger(url, world.contract.lower(), CHAIN_ID, folder / "index.sqlite")
        assert read_ledger(url, world.contract, CHAIN_ID, folder / "index.sqlite") == found
        with pytest.raises(WrongChain):
            read_ledger(url, world.contract, 1, folder / "index.sqlite")
        with pytest.raises(NoContract):
            read_ledger(url, ACCOUNT, CHAIN_ID, folder / "other.sqlite")
        height = world.chain.height
    with pytest.raises(EndpointDown):
        read_ledger(url, world.contract, CHAIN_ID, folder / "index.sqlite")
    for client in clients:
        client.close()
    assert found.block == height and found.contract == world.contract
    return msgspec.to_builtins(found), wishes


def with_ledger(workdir, found, **options):
    make_run(workdir, **options)
    path = workdir / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ledger": found}))
    return workdir


def test_a_report_shows_it_and_names_the_files_with_whole_hashes(read, tmp_path):
    found, wishes = read
    run = with_ledger(tmp_path / "run", found)
    text = written(run)
    assert cells(text, MINE)[:5] == ["proven", "1", "0.012", "not verified", "0"]
    assert cells(text, THEIRS)[:5] == ["proven", "1", "0.900", "not verified", "1"]
    advanced = found["rounds"][1]["advanced"]
    assert cells(text, "1") == ["2", "0.912", "1", f"{advanced[:8]}…{advanced[-4:]}"]
    assert "2 commitments, 3 rewards and 1 vote of 2 peers" in text and "ledger.md and ledger.json" in text
    whole = (run / "ledger.md").read_text()
    assert all(hash_ in whole for hash_ in wishes.values() if hash_) and f"votes for {THEIRS}" in whole
    assert json.loads((run / "ledger.json").read_text()) == found
    for one in (text, whole, printed(run)):
        assert "\x1b" not in one and "\n# title" not in one
    assert "The ledger by round" in printed(run)
    # what anybody wrote to the chain stays in its cell
    rows = [line for line in whole.splitlines() if "12D3" in line]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 4


def test_what_was_verified_is_shown_beside_what_is_claimed(read, tmp_path):
    """By what `experiments.audit` has left in the run's folder: of two rounds, 12,000 and 600,000 in all."""
    run = with_ledger(tmp_path / "run", read[0])
    accounts = [{"account": ACCOUNT, "verified": 2_000}, {"account": ACCOUNT, "verified": 10_000}]
    accounts += [{"account": OTHER_ACCOUNT, "verified": 600_000}]
    (run / "claims.json").write_text(json.dumps({"accounts": accounts, "wrong": False}))
    text = written(run)
    assert cells(text, MINE)[2:4] == ["0.012", "0.012"] and cells(text, THEIRS)[2:4] == ["0.900", "0.600"]
    whole = (run / "ledger.md").read_text()
    assert f"| {THEIRS} | 0.900 | 0.600 |" in whole
    (run / "claims.json").write_text("{")
    assert cells(written(run), MINE)[3] == "not verified"


def test_a_run_without_a_ledger_shows_nothing_of_one(tmp_path):
    run = make_run(tmp_path / "run")
    assert results.load_summary(run).ledger is None
    text = written(run) + printed(run)
    assert "ledger" not in text and not list(run.glob("ledger*"))


def test_a_broken_ledger_is_said_to_be_one(read, tmp_path):
    run = with_ledger(tmp_path / "run", read[0] | {"rounds": [1]})
    with pytest.raises(UsageError, match=r"is not the summary of a run: .*ledger\.rounds"):
        report.write_report(run)


def test_long_runs_and_crowds_are_shown_in_part(read):
    one = msgspec.convert(read[0], Ledger)
    rounds = [msgspec.structs.replace(one.rounds[-1], number=number) for number in range(200)]
    crowd = [msgspec.structs.replace(one.peers[1], peer_id=f"{number}", kind="claimed") for number in range(100)]
    many = msgspec.structs.replace(one, rounds=rounds, peers=[*crowd, *one.peers])
    peers, by_round = ledger.ledger_sections(many)
    shown = [row[0] for row in by_round.table]
    assert shown == ["round", "0", "1", "2", "... 185 more", *(str(number) for number in range(188, 200))]
    names = [row[0] for row in peers.table]
    assert names[1:3] == [MINE, THEIRS] and names[-1] == "and 70 more"  # who counts comes first


def test_collected_results_leave_the_ledger_to_the_chain(read, tmp_path):
    root = tmp_path / "repository"
    (root / "configs").mkdir(parents=True)
    run = with_ledger(tmp_path / "run", read[0], rounds=quickstart.get_config().rounds)
    assert render_command.main(["--collect", "quickstart", str(run)], root) == 0
    assert "ledger" not in json.loads((root / "results" / "quickstart.json").read_text())["runs"][0]
