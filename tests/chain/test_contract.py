"""The coordinator contract: who a peer is, what it can settle, what it costs. Rounds: test_contract_rounds.py."""

import hashlib
import json
from pathlib import Path

import coincurve
import pytest
from eth_abi import encode
from eth_account import Account as Signer
from eth_utils import keccak
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks import gas
from benchmarks.evm import COMMITMENT, NOBODY, Chain, account, ascending
from rlswarm_jax.chain import contracts
from rlswarm_jax.identity import peer_id, simulated

MOST, WINDOW = 1_000_000, 3
NO_CLAIMS = (0, 0, 0)
TABLE = Path(__file__).parents[2] / "results" / "gas.json"
quick = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def deployed():
    """Ten peers of round 0, and two nodes that are none, in round 1."""
    chain = Chain(nodes=12, window=WINDOW, maxReward=MOST)
    chain.register(*chain.nodes[:10])
    chain.next_round()
    return chain


@pytest.fixture
def chain(deployed):
    with deployed.undone():
        yield deployed


def refusal(chain, one, round_=1, tag=None, commitment=COMMITMENT, claims=NO_CLAIMS, winners=()):
    """Of a settlement."""
    tag = chain.tag(round_) if tag is None else tag
    return chain.refusal(one.address, "settle", round_, tag, commitment, list(claims), list(winners))


def peer(chain, one):
    return chain.call("peerOf", one.address)


# --- peers


def test_a_key_registers_itself_and_no_other(chain):
    one, other = chain.nodes[10:]
    for x, y in ((other.x, other.y), (one.x, one.y ^ 1), (one.x ^ 1, one.y), (one.y, one.x), (0, 0)):
        assert chain.refusal(one.address, "register", x, y) == "InvalidKey"
    peers = chain.call("status").peers
    receipt = chain.send(one.address, "register", one.x, one.y)
    assert chain.events(receipt, "Registered") == [{"account": one.address, "x": one.x, "y": one.y}]
    assert tuple(peer(chain, one)) == (True, 1, 0, 0, 0) and tuple(peer(chain, other)) == (False, 0, 0, 0, 0)
    assert chain.call("status").peers == peers + 1
    assert chain.refusal(one.address, "register", one.x, one.y) == "AlreadyRegistered"


def test_the_account_of_a_node_is_ethereum_s_and_its_peer_id_follows_from_the_event(chain):
    """The fixture's own arithmetic, against a foreign implementation."""
    one = account(simulated(3, 3))
    assert one.address == Signer.from_key(one.identity.expose_secret()).address
    (event,) = chain.events(chain.send(chain.owner, "registerFor", [chain.signed(one)]), "Registered")
    assert peer_id(coincurve.PublicKey.from_point(event["x"], event["y"]).format()) == one.peer_id


def test_anyone_may_send_a_signed_registration_and_nobody_can_change_it(chain):
    one, other, relay = *chain.nodes[10:], chain.funded[5]
    x, y, payout, deadline, v, r, s = chain.signed(one, other.address)
    for forged in (
        (x, y, relay, deadline, v, r, s),  # another payout address
        (x, y, payout, deadline + 1, v, r, s),
        (other.x, other.y, payout, deadline, v, r, s),
        (x, y ^ 1, payout, deadline, v, r, s),
        (x, y, payout, deadline, v ^ 1, r, s),
        (x, y, payout, deadline, 0, bytes(32), bytes(32)),
    ):
        assert chain.refusal(relay, "registerFor", [forged]) == "InvalidSignature"
    for elsewhere in ({"chainId": 1}, {"verifyingContract": relay}, {"version": "1"}, {"name": "another"}):
        assert chain.refusal(relay, "registerFor", [chain.signed(one, **elsewhere)]) == "InvalidSignature"
    receipt = chain.send(relay, "registerFor", [chain.signed(one, other.address), chain.signed(other)])
    assert [event["account"] for event in chain.events(receipt, "Registered")] == [one.address, other.address]
    assert chain.events(receipt, "PayoutSet") == [{"account": one.address, "payout": other.address}]
    assert chain.call("payoutOf", one.address) == other.address and chain.call("payoutOf", other.address) == NOBODY
    assert peer(chain, one).since == 1


def test_a_deadline_holds_to_its_second(chain):
    chain.pass_time(100)
    now = chain.web3.eth.get_block("latest").timestamp
    for deadline, error in ((1, "SignatureExpired"), (now - 1, "SignatureExpired"), (now, None)):
        signed = chain.signed(chain.nodes[10], deadline=deadline)
        assert chain.refusal(chain.owner, "registerFor", [signed]) == error


def test_whoever_is_registered_by_now_is_passed_over_and_spoils_no_batch(chain):
    one, other = chain.nodes[10:]
    early = chain.signed(one, other.address, deadline=1)
    chain.register(one)
    receipt = chain.send(chain.owner, "registerFor", [early, chain.signed(other)])
    assert [event["account"] for event in chain.events(receipt, "Registered")] == [other.address]
    assert chain.call("payoutOf", one.address) == NOBODY
    assert chain.refusal(chain.owner, "registerFor", [early] * 100) is None
    assert chain.refusal(chain.owner, "registerFor", [early] * 101) == "TooMany"


def test_earnings_cannot_be_turned_away_with_the_node_s_key(chain):
    """By a call, nor by a registration signed before or after."""
    one, safe, thief = chain.nodes[10], chain.nodes[0].address, chain.nodes[1].address
    assert chain.refusal(thief, "setPayout", one.address, thief) == "OnlyPayout"
    receipt = chain.send(one.address, "setPayout", one.address, safe)
    assert chain.events(receipt, "PayoutSet") == [{"account": one.address, "payout": safe}]
    assert chain.refusal(one.address, "setPayout", one.address, thief) == "OnlyPayout"
    chain.send(thief, "registerFor", [chain.signed(one, thief)])
    assert peer(chain, one).registered and chain.call("payoutOf", one.address) == safe
    chain.send(safe, "setPayout", one.address, NOBODY)  # the account's own again, to name the next
    chain.send(one.address, "setPayout", one.address, thief)
    assert chain.call("payoutOf", one.address) == thief


# --- settlements


def test_a_settlement_says_it_all_at_once_and_is_made_once(chain):
    one, *winners = chain.nodes[:4]
    receipt = chain.settle(one, 1, (500, -7, 0), *winners)
    (event,) = chain.events(receipt, "Settled")
    names = ("root", "first", "last", "count", "stateBefore", "stateAfter", "config")
    assert event == {
        "account": one.address,
        "round": 1,
        "commitment": dict(zip(names, COMMITMENT, strict=True)),
        "claims": [500, -7, 0],
        "winners": ascending(*winners),
    }
    said = encode(
        ["bytes32[3]", "uint256", "bytes32[3]", "int64[3]"], [COMMITMENT[:3], 4, COMMITMENT[4:], [500, -7, 0]]
    )
    assert chain.call("settlementOf", 1, one.address) == keccak(said)
    assert chain.call("settlementOf", 1, winners[0].address) == bytes(32)
    assert tuple(peer(chain, one)) == (True, 0, 0, 1, 493)
    assert [tuple(peer(chain, each)) for each in winners] == [(True, 0, 1, 0, 0)] * 3
    assert refusal(chain, one, claims=(1, 1, 1)) == "AlreadySettled"
    chain.settle(winners[0], 1, NO_CLAIMS, one)
    chain.next_round()
    chain.settle(one, 2, (-1000, 0, 0))
    assert tuple(peer(chain, one)) == (True, 0, 1, 1, -507)  # a round without votes is none voted in


def test_there_is_no_settlement_of_a_stranger_nor_to_nothing(chain):
    assert refusal(chain, chain.nodes[10]) == "NotRegistered"
    root, first, last, count, *rest = COMMITMENT
    for empty in ((bytes(32), first, last, count, *rest), (root, first, last, 0, *rest)):
        assert refusal(chain, chain.nodes[0], commitment=empty) == "InvalidCommitment"
    assert refusal(chain, chain.nodes[0], commitment=(root, first, last, 1, *rest)) is None


@quick
@example([MOST, -MOST, 0])
@example([0, 0, MOST + 1])
@example([0, -MOST - 1, 0])
@example([-(2**63), 0, 0])
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-MOST - 2, MOST + 2), min_size=3, max_size=3))
def test_claims_are_bounded(deployed, claims):
    wrong = max(map(abs, claims)) > MOST
    assert refusal(deployed, deployed.nodes[0], claims=claims) == ("RewardOutOfBounds" if wrong else None)


def test_no_sum_of_claims_overflows():
    chain = Chain(nodes=1, maxReward=2**63 - 1)
    chain.register(chain.nodes[0])
    chain.next_round()
    for round_ in (0, 1):
        chain.settle(chain.nodes[0], round_, [-(2**63 - 1)] * 3)
    assert peer(chain, chain.nodes[0]).total == -6 * (2**63 - 1)


@quick
@given(st.lists(st.integers(0, 11), max_size=10), st.booleans())
@example([3, 3], True)
@example(list(range(1, 9)), True)
@example(list(range(1, 10)), True)
@example([], True)
def test_votes_are_up_to_eight_ascending_and_never_for_oneself(deployed, places, in_order):
    addresses = [deployed.nodes[place].address for place in places]
    winners = sorted(addresses, key=str.lower) if in_order else addresses
    ascend = winners == sorted(set(winners), key=lambda one: int(one, 16))
    valid = len(winners) <= 8 and 0 not in places and ascend
    assert refusal(deployed, deployed.nodes[0], winners=winners) == (None if valid else "InvalidVote")


def test_votes_count_between_those_who_were_registered_before_the_round(chain):
    """Others have no effect, and are not in the event; nor does the settlement fail for them."""
    voter, other, late, stranger = *chain.nodes[:2], *chain.nodes[10:]
    chain.register(late)
    (event,) = chain.events(chain.settle(voter, 1, NO_CLAIMS, other, late, stranger), "Settled")
    assert event["winners"] == [other.address]
    (event,) = chain.events(chain.settle(late, 1, NO_CLAIMS, voter), "Settled")
    assert event["winners"] == []
    assert (peer(chain, voter).votes, peer(chain, late).votes) == (1, 0)
    assert [peer(chain, one).wins for one in (other, late, stranger, voter)] == [1, 0, 0, 0]
    assert not peer(chain, stranger).registered
    chain.next_round()
    chain.settle(late, 0, NO_CLAIMS, voter)  # a past round's is late, too
    assert peer(chain, voter).wins == 0
    chain.settle(late, 2, NO_CLAIMS, voter)
    chain.settle(voter, 2, NO_CLAIMS, late)
    assert peer(chain, late).wins == peer(chain, voter).wins == 1


def test_settlements_are_taken_for_a_window_of_rounds(chain):
    """A node that was away for a while loses nothing; what is older, and what is to come, is refused."""
    one = chain.nodes[0]
    for _ in range(WINDOW):
        chain.next_round()
    for round_ in (0, WINDOW + 2, 2**255):
        assert refusal(chain, one, round_, tag=bytes(4)) == "InvalidRound"
    for round_ in range(1, WINDOW + 2):
        assert refusal(chain, one, round_, tag=chain.tag(round_ - 1)) == "WrongBeacon"
        chain.settle(one, round_)
    assert peer(chain, one).total == 0 and chain.call("status").settlements == 1


# --- weights


def test_weights_are_on_record_once_for_a_round_that_was_settled(chain):
    one, second, idle = chain.nodes[:3]
    for each in (one, second):
        chain.settle(each, 1)
    digest, uri = b"\x07" * 32, "ipfs://weights"
    receipt = chain.send(one.address, "publishWeights", 1, digest, uri)
    event = {"account": one.address, "round": 1, "weights": digest, "uri": uri}
    assert chain.events(receipt, "WeightsPublished") == [event]
    assert chain.call("weightsOf", 1, one.address) == digest and chain.call("weightsOf", 0, one.address) == bytes(32)
    for sender, values, error in (
        (one, (1, b"\x08" * 32, uri), "AlreadyPublished"),
        (second, (1, bytes(32), uri), "InvalidCommitment"),
        (second, (1, digest, "x" * 257), "TextTooLong"),
        (second, (2, digest, uri), "NotSettled"),
        (idle, (1, digest, uri), "NotSettled"),
    ):
        assert chain.refusal(sender.address, "publishWeights", *values) == error
    for _ in range(WINDOW + 1):
        chain.next_round()
    chain.send(second.address, "publishWeights", 1, digest, "x" * 256)  # a model is published when its training is over


# --- the owner, and what nobody can do


def test_the_owner_names_the_bootnodes_all_at_once(chain):
    owner, anyone = chain.owner, chain.funded[9]
    for entries in (["/ip4/1", "/ip4/2", "/ip4/3"], ["x" * 256] * 32, ["/ip4/4"], []):
        receipt = chain.send(owner, "setBootnodes", entries)
        assert chain.events(receipt, "BootnodesSet") == [{"bootnodes": entries}]
        assert chain.call("getBootnodes") == entries
    assert chain.refusal(owner, "setBootnodes", ["x"] * 33) == "TooMany"
    assert chain.refusal(owner, "setBootnodes", ["x", "x" * 257]) == "TextTooLong"
    assert chain.refusal(anyone, "setBootnodes", []) == chain.refusal(anyone, "setOwner", anyone) == "OnlyOwner"
    assert chain.events(chain.send(owner, "setOwner", anyone), "OwnerSet") == [{"owner": anyone}]
    assert chain.call("owner") == anyone and chain.refusal(owner, "setBootnodes", []) == "OnlyOwner"
    chain.send(anyone, "setOwner", NOBODY)
    assert chain.call("owner") == NOBODY and chain.refusal(anyone, "setOwner", anyone) == "OnlyOwner"


def test_a_swarm_may_have_no_owner():
    chain = Chain(nodes=0, owner=NOBODY)
    assert chain.events(chain.deployed, "OwnerSet") == [{"owner": NOBODY}]
    for call, value in (("setOwner", chain.funded[0]), ("setBootnodes", ["x"])):
        assert chain.refusal(chain.funded[0], call, value) == "OnlyOwner"


def test_nobody_can_change_the_code_or_the_rules():
    """Code that can neither delegate nor destroy itself, and no call beyond those tested here."""
    artifact = contracts.coordinator()
    functions = [entry for entry in artifact["abi"] if entry["type"] == "function"]
    calls = {entry["name"] for entry in functions if entry["stateMutability"] not in ("view", "pure")}
    ours = {"register", "registerFor", "setPayout", "settle", "publishWeights", "advanceRound", "finalizeBeacon"}
    assert calls == ours | {"setOwner", "setBootnodes"}
    code, place, found = bytes.fromhex(artifact["runtime_bytecode"][2:]), 0, set()
    while place < len(code):
        found.add(code[place])
        place += 1 + max(0, code[place] - 0x5F) * (code[place] <= 0x7F)  # what is pushed is no instruction
    assert not found & {0xF0, 0xF1, 0xF2, 0xF4, 0xF5, 0xFF}  # create, call, callcode, delegatecall, selfdestruct
    assert 0xFA in found  # ecrecover's static call


# --- the artifact, and what calls cost


@pytest.mark.parametrize(
    ("artifact", "names", "most"),
    [
        (contracts.coordinator(), {"Coordinator.sol"}, 24_576 // 2),  # half of EIP-170's limit is for what comes later
        (contracts.court(), {"Coordinator.sol", "Court.sol"}, 16_384),
    ],
    ids=["coordinator", "court"],
)
def test_the_artifact_is_of_this_source_and_fits_a_chain(artifact, names, most):
    """Without a compiler at hand; `.ci/run` compares every byte."""
    sources = [Path(contracts.__file__).parent / name for name in names]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    assert artifact["sha256"] == hashes, "the source has changed: make contracts"
    assert len(artifact["runtime_bytecode"]) // 2 - 1 <= most


def test_the_table_of_gas_is_right_within_two_percent():
    table, measured = json.loads(TABLE.read_text())["gas"], gas.measure()
    assert table.keys() == measured.keys(), "rows differ: python -m benchmarks.gas --write results/gas.json"
    for row, used in measured.items():
        assert used == pytest.approx(table[row], rel=0.02), row
    assert measured["settle"] <= 92_000 and measured["deployment"] <= 2_050_000
