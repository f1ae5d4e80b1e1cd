"""What a node wishes on its chain is done once, whatever happens to the node, its endpoint and the chain."""

import itertools
import random
import sqlite3
from pathlib import Path

import pytest

from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.errors import FileDamaged
from rlswarm_jax.chain.outbox import Outbox
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.identity import simulated
from tests.chain.client_world import (
    ACCOUNT,
    CLAIMS,
    COMMITMENT,
    ME,
    OTHER_ACCOUNT,
    SETTINGS,
    World,
    make_world,
    settle,
    wish_all,
    wish_settlement,
)
from tests.chain.local_chain import CHAIN_ID

DONE = ("Settled", "WeightsPublished")
FIRST = 1  # the nonce after that of the registration


@pytest.fixture
def world():
    return make_world()


def assert_done_once(world: World, client: Coordinator, spent: int = 2) -> None:
    """One event each; one nonce each, none of them failed; and the outbox knows."""
    assert [len(world.events(name)) for name in DONE] == [1, 1]
    assert world.chain.transactions(ACCOUNT)[FIRST:] == [(FIRST + n, True) for n in range(spent)]
    assert {wish.state for wish in client.wishes()} == {"done"}
    hashes = {wish.hash for wish in client.wishes()}
    assert len(hashes) == 2 and all(world.chain.request("eth_getTransactionReceipt", [one]) for one in hashes)


@pytest.mark.parametrize("confirmations", [0, 2])
def test_a_settlement_and_weights_reach_the_chain(world, tmp_path, confirmations):
    client = world.client(tmp_path, settings=SETTINGS._replace(confirmations=confirmations))
    wish_all(client, world)
    settle(client, world)
    assert_done_once(world, client)
    (settled,), (published,) = (world.events(name) for name in DONE)
    assert (settled["round"], settled["commitment"], settled["claims"]) == (world.round, COMMITMENT, CLAIMS)
    assert settled["winners"] == (OTHER_ACCOUNT.lower(),) and not client.problems
    assert (published["round"], published["weights"], published["uri"]) == (world.round, b"w" * 32, "ipfs://weights")


def test_a_wish_is_done_when_enough_blocks_are_on_top_of_it(world, tmp_path):
    client = world.client(tmp_path, settings=SETTINGS._replace(confirmations=2))
    wish_settlement(client, world)
    seen = []
    for _ in range(4):
        client.step()
        seen.append(client.wishes()[0].state)
        world.chain.mine()
    assert seen == ["signed", "mined", "mined", "done"]
    assert client.wishes()[0].block == world.height + 1 and client.idle()
    for before in ("done", "mined"):  # whichever it was when a reorganisation undid it
        assert client.wishes()[0].state == before
        world.chain.rewind(world.height, keep=False)
        client.step()
        assert client.wishes()[0].state == "signed" and client.wishes()[0].hash is None and not client.idle()
        world.chain.mine()
        client.step()


def test_what_can_go_at_once_goes_at_once_with_nonces_in_a_row(tmp_path):
    world = make_world(rounds=3)
    client = world.client(tmp_path, settings=SETTINGS._replace(in_flight=3))
    for round_, beacon in enumerate(world.beacons()):
        client.settle(round_, beacon, COMMITMENT, CLAIMS, [])
    client.step()
    assert [nonce for nonce, _ in fees(world)] == [FIRST + n for n in range(3)]  # the fourth waits for room
    settle(client, world)
    assert world.chain.transactions(ACCOUNT)[FIRST:] == [(FIRST + n, True) for n in range(4)]


def test_the_same_wish_twice_is_one(world, tmp_path):
    client = world.client(tmp_path)
    wish_all(client, world)
    assert not client.settle(world.round, world.beacon, COMMITMENT, (999, 0, 0), [])  # the first word counts
    assert client.settle(world.round + 1, world.beacon, COMMITMENT, CLAIMS, [])  # another round
    assert client.counts() == {"waiting": 3}


def test_wishes_for_another_contract_lie_there_and_hold_nothing_up(world, tmp_path):
    """An outbox of a version before: its wishes are of kinds that nobody sends any more."""
    outbox = Outbox(tmp_path / "outbox.sqlite", ACCOUNT, CHAIN_ID)
    outbox.want("0x" + "12" * 20, "commit", 0, 0, {"root": "00"})
    outbox.close()
    client = world.client(tmp_path)
    wish_settlement(client, world)
    settle(client, world)
    assert client.counts() == {"done": 1} and client.idle() and not client.problems
    assert [(wish.kind, wish.state) for wish in client.wishes()] == [("commit", "waiting"), ("settle", "done")]


# --- kill -9


class Killed(BaseException):
    """Nothing in the client catches it, as nothing catches SIGKILL."""


class Switch:
    """Kills at the n-th of the instants it is asked at.

    every: at questions that change nothing, too. Without, only where the disk or the chain has just changed: what
    a restart finds is the same at all instants from there to the next change.
    """

    def __init__(self, instant: int, every: bool):
        self.left, self.every, self.name = instant, every, ""

    def __call__(self, name: str) -> None:
        changed = (name.startswith("after") and not name.startswith("after eth_")) or "eth_sendRaw" in name
        if not self.every and not changed:
            return
        self.left -= 1
        if self.left == -1:
            self.name = name
            raise Killed(name)


class WatchedDatabase:
    """A connection that asks the switch before and after each statement that writes."""

    def __init__(self, db: sqlite3.Connection, switch: Switch):
        self._db, self._switch = db, switch

    def execute(self, statement: str, values=()):
        if statement.startswith("SELECT"):
            return self._db.execute(statement, values)
        self._switch(f"before {statement[:40]}")
        found = self._db.execute(statement, values)
        if not statement.startswith(("BEGIN", "ROLLBACK")):
            self._switch(f"after {statement[:40]}")
        return found

    def close(self) -> None:
        self._db.close()


def watched(world: World, directory: Path, switch: Switch) -> Coordinator:
    client = world.client(directory)
    client._outbox._db = WatchedDatabase(client._outbox._db, switch)
    world.chain.hook = switch
    return client


@pytest.mark.parametrize(
    ("every", "instant_blocks"),
    [
        (False, False),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [(False, True), (True, False), (True, True)]),
    ],
)
def test_a_kill_at_any_instant_loses_and_doubles_nothing(tmp_path, instant_blocks, every):
    """Between any two statements to the disk, and before and after any question to the endpoint."""
    world = make_world()
    world.chain.instant = instant_blocks
    instants = []
    for instant in itertools.count():
        directory = tmp_path / str(instant)
        directory.mkdir()
        switch = Switch(instant, every)
        client = watched(world, directory, switch)
        try:
            wish_all(client, world)
            settle(client, world)
        except Killed:
            pass
        world.chain.hook = lambda name: None
        client.close()  # the kernel does that: locks go, what was not committed is rolled back
        if instant % 2 or "sendRaw" in switch.name:
            world.chain.mine()  # meanwhile
        again = world.client(directory)
        wish_all(again, world)  # the node plays its journal again
        settle(again, world)
        assert_done_once(world, again)
        again.close()
        world.chain.forget()
        world.chain.rewind(world.height, keep=False)
        if not switch.name:
            break
        instants.append(switch.name)
    seen = set(instants)
    assert {"before eth_sendRawTransaction", "after eth_sendRawTransaction"} <= seen
    assert any("INSERT OR IGNORE INTO transactions" in name for name in seen) and len(instants) > (100 if every else 25)


# --- a dead endpoint


def test_an_endpoint_that_is_away_costs_time_and_nothing_else(world, tmp_path):
    client = world.client(tmp_path)
    world.chain.down = True
    wish_all(client, world)
    delays = [client.step() for _ in range(20)]
    assert client.problems == {"EndpointDown": 20} and client.counts() == {"waiting": 2}
    assert all(low <= delay <= 2 * low for delay, low in zip(delays, [0.5, 1, 2, 4, 8, 16, 30, 30], strict=False))
    assert max(delays) <= 60 and min(delays[6:]) >= 30
    world.chain.down = False
    settle(client, world)
    assert_done_once(world, client)


@pytest.mark.parametrize("seed", range(3))
def test_an_endpoint_that_fails_every_other_call_loses_and_doubles_nothing(world, tmp_path, seed):
    rng, client = random.Random(seed), world.client(tmp_path)

    def fail(name: str) -> None:
        world.chain.down = name.startswith("before") and rng.random() < 0.3

    wish_all(client, world)
    world.chain.hook = fail
    for _ in range(30):
        client.step()
        world.chain.mine()
    world.chain.hook, world.chain.down = (lambda name: None), False
    settle(client, world)
    assert_done_once(world, client)


def test_what_a_pool_forgets_is_handed_in_again_as_the_same_bytes(world, tmp_path):
    client = world.client(tmp_path, settings=SETTINGS._replace(bump_blocks=99))
    wish_settlement(client, world)
    client.step()
    (first,) = world.chain.pending()
    for _ in range(3):
        world.chain.forget()
        world.chain.mine()
        client.step()
        assert world.chain.pending() == [first]
    settle(client, world)
    assert world.chain.transactions(ACCOUNT)[FIRST:] == [(FIRST, True)]


# --- reorganisations


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
@pytest.mark.parametrize("kept", [True, False], ids=["pool keeps", "pool forgets"])
def test_a_reorganisation_undoes_nothing_for_good(world, tmp_path, depth, kept):
    """Of blocks that count as settled (two deep), too: deeper than anybody should see."""
    client = world.client(tmp_path)
    wish_all(client, world)
    settle(client, world)
    world.chain.rewind(max(world.chain.height - depth, world.height), keep=kept)
    world.chain.mine(1)
    settle(client, world, 20)
    world.chain.mine(3)
    settle(client, world)
    assert_done_once(world, client)


def test_a_beacon_that_a_reorganisation_undid_abandons_its_round(tmp_path):
    world = make_world(rounds=1)
    client = world.client(tmp_path)
    client.settle(world.round, bytes(4) + world.beacon[4:], COMMITMENT, CLAIMS, [])
    client.publish_weights(world.round, b"w" * 32, "u")
    client.step()
    settled, weights = client.wishes()
    assert (settled.state, settled.reason) == ("waiting", "WrongBeacon")  # the next reorganisation might bring it back
    settle(client, world)
    settled, weights = client.wishes()
    assert (settled.state, settled.reason) == ("refused", "WrongBeacon") and weights.state == "dropped"
    assert client.problems == {"WrongBeacon": 1, "Dropped": 1} and world.chain.count(ACCOUNT) == FIRST


# --- somebody else uses the key


def test_a_nonce_that_another_program_took_is_given_up_only_when_that_is_settled(world, tmp_path):
    client = world.client(tmp_path)
    wish_settlement(client, world)
    client.step()
    world.chain.forget()
    foreign = world.chain.transact(ME.expose_secret(), OTHER_ACCOUNT, nonce=FIRST, fee=9 * 10**9)
    world.chain.mine()
    for _ in range(SETTINGS.confirmations):
        client.step()
        (wish,) = client.wishes()
        assert (wish.state, wish.nonce) == ("signed", FIRST)  # until then a reorganisation could bring it in
        assert not world.chain.pending()
        world.chain.mine()
    settle(client, world)
    (wish,) = client.wishes()
    assert (wish.state, wish.nonce) == ("done", FIRST + 1) and len(world.events("Settled")) == 1
    assert world.chain.transactions(ACCOUNT)[FIRST:] == [(FIRST, True), (FIRST + 1, True)] and foreign


def test_a_reorganisation_that_drops_the_other_program_s_transaction_gives_the_nonce_back(world, tmp_path):
    client = world.client(tmp_path)
    wish_settlement(client, world)
    client.step()
    world.chain.forget()
    world.chain.transact(ME.expose_secret(), OTHER_ACCOUNT, nonce=FIRST, fee=9 * 10**9)
    world.chain.mine()
    client.step()
    world.chain.rewind(world.height, keep=False)
    world.chain.mine()
    settle(client, world)
    (wish,) = client.wishes()
    assert wish.nonce == FIRST and world.chain.transactions(ACCOUNT)[FIRST:] == [(FIRST, True)]


# --- prices


def fees(world: World) -> list[tuple[int, int]]:
    """Nonce and most wei per gas of what is in the pool."""
    builder = world.chain._backend.chain.get_transaction_builder()
    return [(tx.nonce, tx.max_fee_per_gas) for tx in map(builder.decode, world.chain.pending())]


def test_what_waits_too_long_is_offered_at_a_higher_price_with_the_same_nonce(world, tmp_path, caplog):
    client = world.client(tmp_path, settings=SETTINGS._replace(bump_blocks=2, max_fee=5 * 10**9))
    wish_settlement(client, world)
    offered = []
    for _ in range(40):
        client.step()
        ((nonce, fee),) = fees(world)
        offered.append(fee)
        assert nonce == FIRST
        stuck, world.chain._pool = world.chain._pool, {}
        world.chain.mine()
        world.chain._pool = stuck
    steps = sorted(set(offered))
    assert steps == list(dict.fromkeys(offered)) and len(steps) > 3  # only ever up
    assert all(b * 10 >= a * 11 for a, b in itertools.pairwise(steps)) and steps[-1] <= 5 * 10**9  # up to the limit
    assert (
        len([one for one in caplog.records if one.levelname == "WARNING"]) == 1 and "this node's limit" in caplog.text
    )
    settle(client, world)
    assert len(world.events("Settled")) == 1 and world.chain.count(ACCOUNT) == FIRST + 1


def test_a_transaction_that_the_endpoint_calls_too_cheap_is_replaced(world, tmp_path):
    client = world.client(tmp_path)
    world.chain.transact(ME.expose_secret(), OTHER_ACCOUNT, nonce=FIRST, fee=3 * 10**9)  # another program was first
    wish_settlement(client, world)
    for _ in range(12):
        client.step()
    ((nonce, fee),) = fees(world)
    assert nonce == FIRST and fee * 10 >= 3 * 10**9 * 11
    settle(client, world)
    assert len(world.events("Settled")) == 1 and world.chain.count(ACCOUNT) == FIRST + 1


def test_a_chain_without_a_fee_market_gets_legacy_transactions(world, tmp_path):
    world.chain.fees = False
    client = world.client(tmp_path)
    wish_settlement(client, world)
    settle(client, world)
    (transaction,) = world.chain.block(world.height + 1).transactions
    assert transaction.gas_price == 2 * 10**9 and transaction.type_id is None


def test_a_chain_without_fees_needs_no_funds(world, tmp_path):
    world.chain.fees = False
    world.chain.answers |= {"eth_gasPrice": lambda params: "0x0", "eth_getBalance": lambda params: "0x0"}
    sent: list[str] = []
    world.chain.answers["eth_sendRawTransaction"] = lambda params: sent.append(params[0])
    client = world.client(tmp_path)
    wish_settlement(client, world)
    client.step()
    assert len(sent) == 1 and not client.problems
    builder = world.chain._backend.chain.get_transaction_builder()
    assert builder.decode(bytes.fromhex(sent[0][2:])).gas_price == 0


def test_an_account_without_funds_says_so_and_goes_on_once_it_has_some(tmp_path, caplog):
    world = make_world()
    poor = world.client(tmp_path, identity=simulated(0, 7))
    poor.register()
    for _ in range(3):
        poor.step()
        world.chain.mine()  # which changes what it would take
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1
    assert poor.problems == {"InsufficientFunds": 3} and poor.counts() == {"waiting": 1}
    world.chain.fund(poor.account)
    settle(poor, world)
    assert [e["account"] for e in world.chain.events(world.contract, "Registered")][-1] == poor.account.lower()


def test_an_endpoint_cannot_make_a_node_pay_more_than_its_limits(world, tmp_path):
    world.chain.answers["eth_maxPriorityFeePerGas"] = lambda params: hex(10**18)
    client = world.client(tmp_path, settings=Settings(max_fee=3 * 10**9, max_tip=10**9))
    wish_settlement(client, world)
    client.step()
    builder = world.chain._backend.chain.get_transaction_builder()
    (sent,) = map(builder.decode, world.chain.pending())
    assert sent.max_fee_per_gas <= 3 * 10**9 and sent.max_priority_fee_per_gas <= 10**9


# --- the file


def test_one_process_at_a_time(world, tmp_path):
    first = world.client(tmp_path)
    with pytest.raises(FileDamaged, match="in use by another process"):
        world.client(tmp_path)
    first.close()
    world.client(tmp_path).close()


def test_an_outbox_is_of_one_account_and_chain(tmp_path):
    Outbox(tmp_path / "o", ACCOUNT, 1).close()
    with pytest.raises(FileDamaged, match="another account"):
        Outbox(tmp_path / "o", OTHER_ACCOUNT, 1)
    with pytest.raises(FileDamaged, match="another chain"):
        Outbox(tmp_path / "o", ACCOUNT, 2)
    (tmp_path / "broken").write_bytes(b"no database" * 500)
    with pytest.raises(FileDamaged, match="broken"):
        Outbox(tmp_path / "broken", ACCOUNT, 1)


def test_what_ended_long_ago_is_forgotten_but_for_the_registration(tmp_path):
    outbox = Outbox(tmp_path / "o", ACCOUNT, 1)
    outbox.want("c", "register", 0, 0, {})
    for round_ in range(10):
        outbox.want("c", "advance", round_, 0, {})
    for wish in outbox.wishes()[:-2]:
        outbox.end(wish, "done", "")
    outbox.prune("c", 9)
    assert [(wish.kind, wish.round) for wish in outbox.wishes()] == [("register", 0), ("advance", 8), ("advance", 9)]
