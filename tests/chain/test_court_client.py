"""A node's side of a court: what it believes, what it pays, and what it says where that cannot be."""

import logging
from types import SimpleNamespace

import pytest
from eth_abi import encode

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.court import Court, Terms
from rlswarm_jax.chain.deployment import Rules, deploy, deploy_court, terms
from rlswarm_jax.chain.errors import MalformedAnswer, NoContract, Reverted
from rlswarm_jax.identity import simulated
from tests.chain.client_world import ME, OTHER, SETTINGS, make_world, original_world, wish_settlement
from tests.chain.local_chain import CHAIN_ID, encode_call

OWNER = simulated(1, 0)
STAKE = 10**16
TERMS = Terms(STAKE, STAKE // 2, STAKE // 40, claims=4, voting=2, delay=5, size=1, quorum=1)


@pytest.fixture
def world():
    return make_world()


def court_of(world, given: Terms = TERMS) -> str:
    world.chain.fund(calls.account_of(OWNER.author))
    world.chain.instant = True
    made = deploy_court(world.chain, OWNER, CHAIN_ID, world.contract, given, sleep=lambda seconds: None)
    world.chain.instant = False
    return made.address


def test_a_stake_comes_to_the_court_once_however_often_it_is_wished(world, tmp_path):
    address = court_of(world)
    client = world.client(tmp_path, court=address)
    assert client.court.connect() == TERMS
    assert [client.court.stake(STAKE) for _ in range(3)] == [True, False, False]
    before = balance(world, client.account)
    for _ in range(5):
        client.step()
        world.chain.mine()
    assert client.court.peer(client.account)[:3] == (STAKE, 1, 0) and client.counts() == {"done": 1}
    assert STAKE < before - balance(world, client.account) < 2 * STAKE  # and some gas
    client.close()


def test_a_challenge_of_who_has_lost_its_stake_to_another_waits_for_nothing(world, tmp_path):
    client = world.client(tmp_path, court=court_of(world))
    client.court.stake(STAKE)
    for _ in range(5):
        client.step()
        world.chain.mine()
    staked, lost = client.account, calls.account_of(OTHER.author)
    fates = []
    for accused in (lost, staked):
        wish = SimpleNamespace(kind="challenge", round=1, arguments={"accused": accused})
        fates.append(client.court.fate(wish, "NotStaked", current=2))
    assert fates == ["dropped", "later"]  # of the two sides it may be the challenger's that is still to come
    client.close()


def balance(world, account: str) -> int:
    return int(world.chain.request("eth_getBalance", [account, "latest"]), 16)


def test_a_stake_is_offered_again_with_its_coins_at_a_higher_price(world, tmp_path):
    """After blocks that had no room for it, and a mempool that lost it."""
    client = world.client(tmp_path, court=court_of(world))
    client.court.stake(STAKE)
    client.step()
    world.chain.forget()
    world.chain.mine(4)
    client.step()
    world.chain.mine()
    assert client.court.peer(client.account).stake == STAKE
    client.close()


def test_coins_that_lack_for_a_stake_hold_up_no_settlement(world, tmp_path, caplog):
    much = TERMS._replace(stake=10**20, bond=10**20)
    client = world.client(tmp_path, court=court_of(world, much))
    client.court.stake(10**20)
    wish_settlement(client, world)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            client.step()
            world.chain.mine()
    assert {wish.kind: wish.state for wish in client.wishes()} == {"stake": "waiting", "settle": "done"}
    assert client.problems["InsufficientFunds"] == 1 and "send it some. The stake waits for it." in caplog.text
    world.chain.fund(client.account, 2 * 10**20)
    for _ in range(4):
        client.step()
        world.chain.mine()
    assert client.court.peer(client.account).stake == 10**20
    client.close()


def test_a_court_that_is_none_or_another_coordinator_s_is_an_error_that_says_so(world, tmp_path):
    address = court_of(world)
    world.chain.instant = True
    elsewhere = deploy(world.chain, OWNER, CHAIN_ID, Rules(0, 1, 1, 3, 10**6), sleep=lambda seconds: None).address
    for court, contract, said in (
        (calls.account_of(OTHER.author), world.contract, "there is no court at"),
        (world.contract, world.contract, "there is no court at"),
        (address, elsewhere, f"is that of the coordinator at {world.contract}, not of {elsewhere}"),
    ):
        client = world._replace(contract=contract).client(tmp_path, court=court)
        with pytest.raises(NoContract, match=said):
            client.connect()
        client.step()
        assert client.problems["NoContract"] == 1
        client.close()
    with pytest.raises(ValueError, match="is no address"):
        world.client(tmp_path / "new", court="0x12")


def test_no_court_is_made_for_an_original_s_coordinator_or_of_terms_that_make_no_sense(world):
    world.chain.fund(calls.account_of(OWNER.author))
    with pytest.raises(NoContract, match="takes no commitments, so no court can judge them"):
        deploy_court(world.chain, OWNER, CHAIN_ID, original_world(world).contract, TERMS)
    with pytest.raises(ValueError, match="a court's claims is 3; it must be from 4 to"):
        deploy_court(world.chain, OWNER, CHAIN_ID, world.contract, TERMS._replace(claims=3))


CASE = "(address,uint32,uint32,uint32,address,uint32,uint32,uint8,bytes32,address[],uint8[])"
SOMEBODY = "0x" + "11" * 20


@pytest.mark.parametrize(
    ("state", "members", "votes"),
    [(1, [SOMEBODY], []), (1, [SOMEBODY], [4]), (0, [], []), (5, [], []), (1, [SOMEBODY] * 16, [0] * 16)],
    ids=["no vote of a member", "unknown vote", "no state", "unknown state", "too many"],
)
def test_a_case_that_cannot_be_is_a_malformed_answer(world, tmp_path, state, members, votes):
    client = world.client(tmp_path, court=court_of(world))
    values = SOMEBODY, 0, 0, 0, SOMEBODY, 5, 0, state, bytes(32), members, votes
    honest, asked = world.chain._handlers()["eth_call"], encode_call("caseAt(uint256)", (1,)).hex()
    answer = "0x" + encode([CASE], [values]).hex()
    world.chain.answers["eth_call"] = lambda params: answer if params[0]["data"][2:] == asked else honest(params)
    with pytest.raises(MalformedAnswer):
        client.court.case(1)
    with pytest.raises(Reverted, match="NoSuchCase"):
        client.court.case(2)
    client.close()


@pytest.mark.parametrize("nodes", range(3, 12))
def test_the_terms_of_a_local_court_fit_its_swarm_and_the_contract(nodes):
    found = terms(10**18, nodes)
    assert found.size % 2 and found.size <= nodes - 2 and 2 * found.quorum > found.size
    assert 2 * found.fee * found.size <= found.bond < found.stake and found.claims > Rules().window


def test_a_court_is_one_account_s_without_a_node(world):
    one = Court(eth.connect(world.chain), court_of(world), world.contract, calls.account_of(ME.author))
    assert one.peer(one.account).stake == 0 and one.credit(one.account) == 0 and not one.payable(one.account, 0)
    assert one.open_cases() == [] and SETTINGS.max_gas > 10**6
