"""A coordinator is put on a chain as asked, or the person who asked is told in a sentence why not."""

import logging
from itertools import count

import pytest
from eth_abi import encode
from eth_utils import keccak

from rlswarm_jax.chain import anvil, calls, devnet, eth
from rlswarm_jax.chain.contracts import coordinator
from rlswarm_jax.chain.deployment import (
    Rules,
    check_rules,
    deploy,
    set_bootnodes,
)
from rlswarm_jax.chain.errors import (
    ChainError,
    EndpointDown,
    InsufficientFunds,
    NoContract,
    NotAllowed,
    NotMined,
    Refused,
    Reverted,
    WrongChain,
)
from rlswarm_jax.chain.events import find_first_block
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.chain.signing import ask_price
from rlswarm_jax.identity import simulated
from tests.chain.local_chain import CHAIN_ID, LocalChain

OWNER, STRANGER = simulated(1, 0), simulated(1, 1)
ACCOUNT = calls.account_of(OWNER.author)
RULES = Rules(min_seconds=7, max_seconds=70, quorum=3, window=9, max_reward=10**9)
NODES = [f"/ip4/10.0.0.{index}/tcp/4001/p2p/{simulated(2, index).peer_id}" for index in range(20)]


@pytest.fixture(scope="module")
def funded():
    chain = LocalChain()
    for one in (OWNER, STRANGER):
        chain.fund(calls.account_of(one.author))
    return chain, chain.height


@pytest.fixture
def chain(funded):
    """With a block for each transaction."""
    funded[0].reset(funded[1])
    funded[0].instant = True
    return funded[0]


def beacon(rpc, address, round_=0):
    return contract_of(rpc, address).view("beacon", round_)


def contract_of(rpc, address):
    return eth.Contract(eth.connect(rpc), address)


def bootnodes_of(rpc, address):
    return contract_of(rpc, address).view("getBootnodes")


def balance(rpc):
    return eth.connect(rpc).eth.get_balance(ACCOUNT)


def check(rpc, chain_id, made, bootnodes, block_hash):
    """What was deployed is what was asked for, and the first beacon is the one that the docs describe."""
    assert Rules(*contract_of(rpc, made.address).view("rules")) == RULES and bootnodes_of(rpc, made.address) == list(
        bootnodes
    )
    seed = keccak(encode(["string", "uint256", "address"], ["rlswarm_jax beacon 1", chain_id, made.address]))
    assert beacon(rpc, made.address) == keccak(seed + bytes.fromhex(block_hash[2:]))
    with pytest.raises(Reverted, match="InvalidRound"):
        beacon(rpc, made.address, 1)


@pytest.mark.parametrize("bootnodes", [(), NODES[:2], NODES])
def test_a_coordinator_is_there_with_its_rules_its_bootnodes_and_a_beacon(chain, bootnodes):
    before = balance(chain)
    made = deploy(chain, OWNER, CHAIN_ID, RULES, bootnodes)
    check(chain, CHAIN_ID, made, bootnodes, "0x" + chain.block(made.block + 1).hash.hex())
    assert before - balance(chain) == made.paid > 2_000_000 * 10**9
    receipt = eth.receipt(eth.connect(chain), made.hash)
    assert (receipt["blockNumber"], receipt["gasUsed"]) == (made.block, made.gas)
    assert chain.events(made.address, "OwnerSet") == [{"owner": ACCOUNT.lower()}]


@pytest.mark.parametrize("fees", [True, False])
def test_a_chain_that_makes_its_own_blocks_and_one_without_a_fee_market(chain, fees):
    chain.instant, chain.fees = False, fees
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) % 3 == 0:
            chain.mine()

    made = deploy(chain, OWNER, CHAIN_ID, RULES, NODES[:1], sleep=sleep)
    check(chain, CHAIN_ID, made, NODES[:1], "0x" + chain.block(made.block + 1).hash.hex())
    assert 0 < min(waits) <= max(waits) <= 2


@pytest.mark.parametrize("lost", ["the transaction", "the answer"])
def test_an_endpoint_that_goes_away_in_the_middle_costs_nothing_but_time(chain, lost):
    sends, sleeps = [], count()

    def hook(name):
        if name == f"{'before' if lost == 'the transaction' else 'after'} eth_sendRawTransaction":
            sends.append(name)
            if len(sends) == 1:
                chain.down = True
                raise EndpointDown("it went away.")

    def sleep(wait):
        if next(sleeps) == 3:
            chain.down = False

    chain.hook = hook
    made = deploy(chain, OWNER, CHAIN_ID, RULES, sleep=sleep)
    check(chain, CHAIN_ID, made, [], "0x" + chain.block(made.block + 1).hash.hex())
    assert [ok for _, ok in chain.transactions(ACCOUNT)] == [True] * 2  # the deployment, and the beacon's


def test_what_no_block_takes_is_said_with_its_hash(chain):
    chain.instant = False
    clock = count()
    with pytest.raises(
        NotMined, match=r"transaction 0x[0-9a-f]{64} \(the coordinator's deployment\) is in no block af"
    ):
        deploy(chain, OWNER, CHAIN_ID, RULES, patience=60.0, clock=lambda: next(clock), sleep=lambda wait: None)
    (raw,) = chain.pending()
    with pytest.raises(Refused, match="underpriced"):  # and trying again at once makes no second one
        deploy(chain, OWNER, CHAIN_ID, RULES._replace(quorum=4))
    assert chain.pending() == [raw]


def test_what_is_wrong_is_said_before_anything_is_paid(chain):
    poor = simulated(1, 9)
    hungry = {"eth_estimateGas": lambda params: hex(10**9)}
    for error, match, owner, chain_id, rules, answers in (
        (WrongChain, "serves chain 131277322940537, not 1: ", OWNER, 1, RULES, {}),
        (InsufficientFunds, f"{calls.account_of(poor.author)} has 0.000000 coins, and", poor, CHAIN_ID, RULES, {}),
        (ValueError, "max_seconds is 6, below min_seconds of 7", OWNER, CHAIN_ID, RULES._replace(max_seconds=6), {}),
        (ValueError, "window is 0; it must be at least 1", OWNER, CHAIN_ID, RULES._replace(window=0), {}),
        (ChainError, "asks 1,250,030,000 gas", OWNER, CHAIN_ID, RULES, hungry),
    ):
        chain.answers = answers
        with pytest.raises(error, match=match) as caught:
            deploy(chain, owner, chain_id, rules)
        assert str(caught.value).endswith(".")
    chain.answers = {}
    with pytest.raises(ChainError, match="above the limit of"):
        deploy(chain, OWNER, CHAIN_ID, RULES, settings=Settings(max_fee=1000))
    chain.down = True
    with pytest.raises(EndpointDown):
        deploy(chain, OWNER, CHAIN_ID, RULES)
    chain.down = False
    assert chain.count(ACCOUNT) == 0


@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        Rules(0, 1, 0, 1, 0),
        Rules(0, 0),
        Rules(5, 5, 0, 1, 2**63 - 1),
        Rules(6, 5),
        Rules(window=0),
        Rules(max_reward=2**63),
        Rules(2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    ],
)
def test_rules_are_refused_here_exactly_if_the_contract_would(chain, rules):
    def refused_by_the_contract():
        fields = encode(["address", "(uint32,uint32,uint32,uint32,uint64)"], [ACCOUNT, tuple(rules)])
        code = bytes.fromhex(coordinator()["bytecode"][2:])
        try:
            eth.connect(chain).eth.estimate_gas({"from": ACCOUNT, "data": code + fields})
        except Reverted as error:
            assert error.name == "InvalidRules"
            return True
        return False

    def refused_here():
        try:
            check_rules(rules)
        except ValueError:
            return True
        return False

    assert refused_here() == refused_by_the_contract()


def test_bootnodes_are_replaced_by_whom_the_contract_lets(chain):
    made = deploy(chain, OWNER, CHAIN_ID, RULES, NODES[:2])

    assert set_bootnodes(chain, OWNER, CHAIN_ID, made.address, NODES[:2]) is None
    longest = [f"{index:0256}" for index in range(32)]
    for entries in (NODES[:4], NODES[5:7], longest, []):
        sent = set_bootnodes(chain, OWNER, CHAIN_ID, made.address, entries)
        assert sent.gas < 8_000_000 and bootnodes_of(chain, made.address) == list(entries)
    before = chain.count(calls.account_of(STRANGER.author))
    with pytest.raises(NotAllowed, match="does not own the coordinator at 0x"):
        set_bootnodes(chain, STRANGER, CHAIN_ID, made.address, NODES)
    with pytest.raises(NoContract, match="no coordinator at"):
        set_bootnodes(chain, OWNER, CHAIN_ID, ACCOUNT, NODES)
    for wrong in ([*longest, "one more"], ["u" * 257], [""]):
        with pytest.raises(ValueError, match=r"\.$"):
            set_bootnodes(chain, OWNER, CHAIN_ID, made.address, wrong)
    assert chain.count(calls.account_of(STRANGER.author)) == before and bootnodes_of(chain, made.address) == []


def test_the_owner_s_key_is_not_in_the_log(chain, caplog):
    caplog.set_level(logging.DEBUG)
    deploy(chain, OWNER, CHAIN_ID, RULES, NODES[:1])
    assert caplog.text.count("sent ") == 2
    assert OWNER.expose_secret().hex() not in caplog.text and repr(OWNER.expose_secret())[2:-1] not in caplog.text


def test_who_has_nothing_offers_nothing_where_the_base_fee_is_zero(chain):
    """The chain's suggested tip is a gwei."""
    poor = calls.account_of(simulated(1, 9).author)
    tips = {
        (who, base): ask_price(eth.connect(chain), who, {"baseFeePerGas": base}, 10**12, 10**12)
        for who in (poor, ACCOUNT)
        for base in (0, 7)
    }
    assert tips == {
        (poor, 0): (0, 0),
        (ACCOUNT, 0): (10**9, 10**9),
        (poor, 7): (10**9 + 14, 10**9),
        (ACCOUNT, 7): (10**9 + 14, 10**9),
    }


@pytest.mark.parametrize("network", ["devnet", "anvil"])
def test_on_a_development_network_nobody_needs_funds(network, tmp_path):
    if network == "anvil" and not anvil.find():
        pytest.skip("anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
    with anvil.running() if network == "anvil" else devnet.running(tmp_path) as running:
        rpc = Endpoint(running.url)
        made = deploy(rpc, OWNER, devnet.CHAIN_ID, RULES, NODES[:2])
        check(rpc, devnet.CHAIN_ID, made, NODES[:2], eth.block_hash(eth.connect(rpc), made.block + 1))
        assert made.paid == 0
        set_bootnodes(rpc, OWNER, devnet.CHAIN_ID, made.address, NODES[:1])
        assert bootnodes_of(rpc, made.address) == NODES[:1]
        rpc.close()


@pytest.mark.parametrize("made", [0, 1, 9_999, 123_456, 6_000_000])
def test_the_block_of_a_deployment_is_searched_for_on_a_long_chain(made):
    height, asked = 6_000_000, []

    class Long:
        def request(self, method, params):
            if method == "eth_getBlockByNumber":
                return {"number": hex(height), "hash": "0x" + "11" * 32, "timestamp": "0x1"}
            assert method == "eth_getCode"
            asked.append(params[1])
            return "0x60" if params[1] == "latest" or int(params[1], 16) >= made else "0x"

    assert find_first_block(Long(), "0x" + "ab" * 20) == made and len(asked) < 30


def test_an_endpoint_without_old_state_says_that_it_has_none():
    class Pruned:
        def request(self, method, params):
            if method == "eth_getBlockByNumber":
                return {"number": "0xfffff", "hash": "0x" + "11" * 32, "timestamp": "0x1"}
            if params[1] != "latest":
                raise Refused(method, -32000, "missing trie node")
            return "0x60"

    with pytest.raises(Refused, match="missing trie node"):
        find_first_block(Pruned(), "0x" + "ab" * 20)
