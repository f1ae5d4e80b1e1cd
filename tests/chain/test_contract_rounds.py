"""Rounds that anyone advances by rule, and beacons that follow from the chain alone."""

import pytest
from eth_utils import keccak

from benchmarks.evm import Chain

MIN, MAX = 60, 600
ROOT = b"\x01" * 32
WORDS = [bytes([word]) * 32 for word in (2, 3, 4)]


@pytest.fixture(scope="module")
def deployed():
    chain = Chain(nodes=5, minSeconds=MIN, maxSeconds=MAX, quorum=2, window=3)
    chain.register(*chain.nodes)
    chain.tester.mine_blocks(2)
    return chain


@pytest.fixture
def chain(deployed):
    with deployed.undone():
        yield deployed


def status(chain) -> dict:
    fields = chain.coordinator.get_function_by_name("status").abi["outputs"][0]["components"]
    return dict(zip([field["name"] for field in fields], chain.call("status"), strict=True))


def word(number: int) -> bytes:
    return number.to_bytes(32)


def block_hash(chain, number: int) -> bytes:
    return bytes(chain.web3.eth.get_block(number).hash)


# --- who advances, and when


def test_nobody_advances_before_the_minimum_time_even_with_a_quorum(chain):
    anyone = chain.funded[7]
    for one in chain.nodes:
        chain.commit(one, 0)
    assert not status(chain)["advanceable"]
    for call in ("advanceRound", "updateStageAndRound"):
        assert chain.refusal(anyone, call) == "TooEarly"
    chain.pass_time(MIN)
    assert status(chain)["advanceable"] and chain.refusal(anyone, "advanceRound") is None


def test_anyone_advances_after_the_minimum_time_with_a_quorum(chain):
    anyone = chain.funded[7]
    chain.commit(chain.nodes[0], 0)
    chain.pass_time(MIN)
    assert status(chain)["needed"] == 2 and chain.refusal(anyone, "advanceRound") == "TooEarly"
    chain.commit(chain.nodes[1], 0)
    receipt = chain.send(anyone, "advanceRound")
    assert chain.events(receipt, "RoundAdvanced") == [{"newRoundNumber": 1}]
    now = status(chain)
    block = chain.web3.eth.get_block(receipt.blockNumber)
    assert (now["round"], now["stage"], now["commitments"]) == (1, 0, 0)
    assert (now["started"], now["anchor"]) == (block.timestamp, block.number)
    assert chain.call("currentRound") == 1


def test_anyone_advances_after_the_maximum_time_with_nobody_there(chain):
    """The original stood still when its one key did."""
    anyone = chain.funded[7]
    for expected in (1, 2, 3):
        chain.pass_to(MAX - 1)
        assert chain.refusal(anyone, "advanceRound") == "TooEarly"
        chain.pass_to(MAX)
        chain.send(anyone, "advanceRound")
        assert chain.call("currentRound") == expected


def test_the_quorum_is_two_thirds_of_the_round_before_or_the_fixed_number(chain):
    for one in chain.nodes:
        chain.commit(one, 0)
    chain.next_round()
    assert status(chain)["needed"] == 4  # of 5, rounded up
    for count, one in enumerate(chain.nodes[:4], 1):
        chain.pass_time(MIN)
        assert status(chain)["advanceable"] == (count > 4)
        chain.commit(one, 1)
    assert status(chain)["advanceable"]
    chain.next_round()
    assert status(chain)["needed"] == 3
    chain.next_round()
    assert status(chain)["needed"] == 2  # nobody: the fixed number


def test_late_commitments_and_claims_make_no_quorum(chain):
    claimer = chain.funded[8]
    chain.send(claimer, "registerPeer", "a claim")
    chain.next_round()
    for one in chain.nodes:
        chain.commit(one, 0)
    chain.pass_time(MIN)
    assert status(chain)["commitments"] == 0 and not status(chain)["advanceable"]
    assert chain.refusal(claimer, "commit", 1, chain.tag(1), ROOT, *WORDS) == "NotRegistered"


def test_a_stage_manager_advances_early_and_only_while_the_owner_lets_it(chain):
    manager, role = chain.funded[6], chain.call("STAGE_MANAGER_ROLE")
    assert not chain.call("hasRole", role, chain.owner)  # nobody is one unless it is granted
    assert chain.refusal(manager, "updateStageAndRound") == "TooEarly"
    assert chain.refusal(manager, "grantRole", role, manager) == "OnlyOwner"
    receipt = chain.send(chain.owner, "grantRole", role, manager)
    assert chain.events(receipt, "RoleGranted") == [{"role": role, "account": manager, "sender": chain.owner}]
    for expected in ([0, 1], [0, 2], [1, 0]):
        assert chain.call("updateStageAndRound", sender=manager) == expected
        chain.send(manager, "updateStageAndRound")
    chain.tester.mine_blocks(2)
    chain.send(manager, "advanceRound")
    receipt = chain.send(chain.owner, "revokeRole", role, manager)
    assert chain.events(receipt, "RoleRevoked") == [{"role": role, "account": manager, "sender": chain.owner}]
    chain.tester.mine_blocks(2)
    assert chain.refusal(manager, "advanceRound") == "TooEarly"


def test_stages_share_the_minimum_time_and_the_last_ends_by_the_round_s_rule(chain):
    anyone = chain.funded[7]
    for one in chain.nodes[:2]:
        chain.commit(one, 0)
    started = status(chain)["started"]
    for stage in (1, 2):
        chain.tester.time_travel(started + MIN * stage // 3 - 1)
        assert chain.refusal(anyone, "updateStageAndRound") == "TooEarly"
        chain.tester.time_travel(started + MIN * stage // 3)
        receipt = chain.send(anyone, "updateStageAndRound")
        assert chain.events(receipt, "StageAdvanced") == [{"roundNumber": 0, "newStage": stage}]
        assert chain.call("currentStage") == stage < chain.call("stageCount")
    chain.tester.time_travel(started + MIN)
    chain.send(anyone, "updateStageAndRound")
    assert (chain.call("currentRound"), chain.call("currentStage")) == (1, 0)
    chain.pass_time(MAX)
    chain.send(anyone, "updateStageAndRound")  # from its first stage: the round has taken too long
    assert (chain.call("currentRound"), chain.call("currentStage")) == (2, 0)


# --- beacons


def test_every_beacon_follows_from_the_one_before_the_commitments_and_a_later_block(chain):
    """By the formula, from what the chain shows."""
    tag_text = b"rlswarm_jax beacon 1"
    address = bytes.fromhex(chain.coordinator.address[2:]).rjust(32, b"\0")
    # abi.encode of a string first: its offset, then the two static words, then its length and bytes
    head = word(96) + word(chain.web3.eth.chain_id) + address
    seed = keccak(head + word(len(tag_text)) + tag_text.ljust(32, b"\0"))
    anchor, accumulator = status(chain)["anchor"], bytes(20)
    assert anchor == chain.deployed.blockNumber
    for round_ in range(4):
        expected = keccak(seed + block_hash(chain, anchor + 1))
        assert chain.call("beacon", round_) == status(chain)["beacon"] == expected
        commitment = keccak(ROOT + b"".join(WORDS))
        for place, one in enumerate(chain.nodes[: 2 * (round_ % 2)]):
            receipt = chain.commit(one, round_)
            finalized = chain.events(receipt, "BeaconFinalized")
            assert finalized == ([{"round": round_, "beacon": expected}] if place == 0 else [])
            account = bytes.fromhex(one.address[2:]).rjust(32, b"\0")
            accumulator = keccak(accumulator.ljust(32, b"\0") + account + word(round_) + commitment)[:20]
        assert chain.call("accumulator") == accumulator
        anchor = chain.next_round().blockNumber
        assert chain.call("beacon", round_) == expected  # on record for good
        seed = keccak(expected + accumulator.ljust(32, b"\0"))


def test_a_beacon_is_not_to_be_had_before_its_block_and_never_stops_the_chain(chain):
    one = chain.nodes[0].address
    chain.send(chain.owner, "grantRole", chain.call("STAGE_MANAGER_ROLE"), one)
    chain.send(one, "advanceRound")
    assert chain.refusal(one, "beacon", 1) == "BeaconNotReady" and status(chain)["beacon"] == bytes(32)
    assert chain.refusal(one, "commit", 1, bytes(4), ROOT, *WORDS) == "BeaconNotReady"
    assert chain.refusal(one, "advanceRound") == "BeaconNotReady"  # not even a manager
    receipt = chain.send(one, "finalizeBeacon")  # no more than a block, for a chain that makes none by itself
    assert not chain.events(receipt, "BeaconFinalized") and not chain.events(receipt, "BeaconPostponed")
    receipt = chain.send(one, "finalizeBeacon")
    assert chain.events(receipt, "BeaconFinalized") == [{"round": 1, "beacon": chain.call("beacon", 1)}]
    assert status(chain)["recorded"]
    chain.send(one, "advanceRound")
    assert chain.refusal(one, "beacon", 3) == "InvalidRoundNumber"


def test_nobody_chooses_a_beacon_by_a_late_commitment(chain):
    """What was committed after the round began does not move its beacon, although its block is known by then."""
    chain.pass_time(MAX)
    chain.send(chain.funded[7], "advanceRound")
    chain.tester.mine_blocks(2)
    before = chain.call("beacon", 1)
    chain.commit(chain.nodes[0], 0)
    assert chain.call("beacon", 1) == before
    chain.send(chain.funded[7], "finalizeBeacon")
    assert chain.call("beacon", 1) == before


def test_a_beacon_whose_block_is_forgotten_is_postponed(chain):
    one = chain.nodes[0]
    chain.next_round()
    tag = chain.tag(1)
    chain.tester.mine_blocks(257)
    assert chain.refusal(one.address, "beacon", 1) == "BeaconNotReady" and status(chain)["beacon"] == bytes(32)
    assert chain.refusal(one.address, "commit", 1, tag, ROOT, *WORDS) == "BeaconNotReady"
    receipt = chain.send(one.address, "finalizeBeacon")
    (event,) = chain.events(receipt, "BeaconPostponed")
    assert event == {"round": 1, "blockNumber": receipt.blockNumber + 1}
    chain.tester.mine_blocks(2)
    assert chain.tag(1) != tag
    assert chain.refusal(one.address, "commit", 1, tag, ROOT, *WORDS) == "WrongBeacon"
    seed = keccak(chain.call("beacon", 0) + bytes(32))
    assert chain.call("beacon", 1) == keccak(seed + block_hash(chain, receipt.blockNumber + 1))
    chain.commit(one, 1)


def test_a_round_that_nobody_played_ends_though_its_beacon_is_lost(chain):
    chain.next_round()
    chain.tester.mine_blocks(257)
    chain.pass_time(MAX)
    chain.send(chain.funded[7], "advanceRound")
    assert chain.call("beacon", 1) == keccak(keccak(chain.call("beacon", 0) + bytes(32)) + bytes(32))
    chain.tester.mine_blocks(2)
    assert chain.call("beacon", 2) == keccak(
        keccak(chain.call("beacon", 1) + bytes(32)) + block_hash(chain, status(chain)["anchor"] + 1)
    )


def test_a_recorded_beacon_stays_however_long_the_round(chain):
    chain.next_round()
    chain.commit(chain.nodes[0], 1)
    beacon = chain.call("beacon", 1)
    chain.tester.mine_blocks(300)
    chain.send(chain.funded[7], "finalizeBeacon")
    assert chain.call("beacon", 1) == beacon
    chain.commit(chain.nodes[1], 1)


# --- commitments


def test_a_commitment_says_its_four_hashes_and_is_made_once(chain):
    one = chain.nodes[0]
    receipt = chain.commit(one, 0)
    (event,) = chain.events(receipt, "Committed")
    assert event == {
        "account": one.address,
        "round": 0,
        "root": ROOT,
        "stateBefore": WORDS[0],
        "stateAfter": WORDS[1],
        "configHash": WORDS[2],
    }
    assert chain.call("commitmentOf", 0, one.address) == keccak(ROOT + b"".join(WORDS))
    for root in (ROOT, b"\x09" * 32):
        assert chain.refusal(one.address, "commit", 0, chain.tag(0), root, *WORDS) == "AlreadyCommitted"
    other = chain.nodes[1].address
    assert chain.refusal(other, "commit", 0, chain.tag(0), bytes(32), *WORDS) == "EmptyHash"


def test_commitments_are_taken_for_a_window_of_rounds(chain):
    """A node that was away for a while loses nothing; what's older, and what's to come, is refused."""
    one = chain.nodes[0]
    for _ in range(4):
        chain.next_round()
    assert chain.refusal(one.address, "commit", 0, chain.tag(0), ROOT, *WORDS) == "InvalidRoundNumber"
    assert chain.refusal(one.address, "commit", 5, chain.tag(4), ROOT, *WORDS) == "InvalidRoundNumber"
    for round_ in (1, 2, 3, 4):
        chain.commit(one, round_)


def test_a_commitment_to_a_beacon_that_was_undone_is_refused(chain):
    """The same transaction, replayed on the other side of a reorganisation."""
    chain.pass_time(MAX)
    one = chain.nodes[0]
    with chain.undone():
        chain.send(chain.funded[7], "advanceRound")
        chain.tester.mine_blocks(2)
        undone = chain.tag(1)
    chain.tester.mine_blocks(1)
    chain.send(chain.funded[8], "advanceRound")
    chain.tester.mine_blocks(2)
    assert chain.tag(1) != undone
    assert chain.refusal(one.address, "commit", 1, undone, ROOT, *WORDS) == "WrongBeacon"
    chain.next_round()
    assert chain.refusal(one.address, "commit", 1, undone, ROOT, *WORDS) == "WrongBeacon"  # nor when it is past
    chain.commit(one, 1)


# --- what nobody can do


def test_rules_that_make_no_sense_cannot_be_deployed(chain):
    for bad in (
        {"minSeconds": 9, "maxSeconds": 8},
        {"minSeconds": 0, "maxSeconds": 0},
        {"window": 0},
        {"maxReward": 2**63},
    ):
        assert chain.deployment_refusal(**bad) == "InvalidRules", bad
    assert chain.deployment_refusal(minSeconds=0, maxSeconds=1, window=1, maxReward=2**63 - 1) is None


def test_the_code_cannot_be_replaced_nor_the_owner(chain):
    for who in (chain.owner, chain.funded[9]):
        assert chain.refusal(who, "upgradeToAndCall", chain.funded[9], b"") == "UUPSUnauthorizedCallContext"
        assert chain.refusal(who, "initialize", who) == "InvalidInitialization"
    assert chain.refusal(chain.owner, "proxiableUUID") == "UUPSUnauthorizedCallContext"
    assert chain.events(chain.deployed, "Initialized") == [{"version": 1}]
    assert chain.call("rules") == (MIN, MAX, 2, 3, 1_000_000)


def test_a_swarm_may_have_no_owner_and_goes_on_by_its_rules():
    chain = Chain(nodes=1, owner="0x" + 40 * "0", minSeconds=0, maxSeconds=5)
    chain.register(chain.nodes[0])
    assert chain.events(chain.deployed, "RoleGranted") == []
    assert chain.refusal(chain.funded[0], "grantRole", chain.call("OWNER_ROLE"), chain.funded[0]) == "OnlyOwner"
    chain.tester.mine_block()
    chain.commit(chain.nodes[0], 0)
    chain.send(chain.nodes[0].address, "advanceRound")
    assert chain.call("currentRound") == 1


# --- bootnodes


def test_bootnodes_are_kept_by_their_manager_and_bounded(chain):
    manager, anyone = chain.owner, chain.funded[9]
    for call, values in (("addBootnodes", (["a"],)), ("removeBootnode", (0,)), ("clearBootnodes", ())):
        assert chain.refusal(anyone, call, *values) == "OnlyBootnodeManager"
    receipt = chain.send(manager, "addBootnodes", ["/ip4/1", "/ip4/2", "/ip4/3"])
    assert chain.events(receipt, "BootnodesAdded") == [{"manager": manager, "count": 3}]
    assert chain.refusal(manager, "removeBootnode", 3) == "InvalidBootnodeIndex"
    receipt = chain.send(manager, "removeBootnode", 0)
    assert chain.events(receipt, "BootnodeRemoved") == [{"manager": manager, "index": 0}]
    assert chain.call("getBootnodes") == ["/ip4/3", "/ip4/2"]
    chain.send(manager, "addBootnodes", ["x" * 256] + 61 * ["x"])
    assert chain.call("getBootnodesCount") == 64
    assert chain.refusal(manager, "addBootnodes", ["x"]) == "TooManyBootnodes"
    receipt = chain.send(manager, "clearBootnodes")
    assert chain.events(receipt, "AllBootnodesCleared") == [{"manager": manager}]
    assert chain.call("getBootnodes") == []
    assert chain.refusal(manager, "addBootnodes", ["x" * 257]) == "BootnodeTooLong"


def test_the_owner_hands_over_its_role(chain):
    role, heir = chain.call("OWNER_ROLE"), chain.funded[9]
    assert role == keccak(text="OWNER_ROLE")
    chain.send(chain.owner, "grantRole", role, heir)
    chain.send(heir, "revokeRole", role, chain.owner)
    assert chain.refusal(chain.owner, "grantRole", role, chain.owner) == "OnlyOwner"
    assert chain.call("hasRole", role, heir) and not chain.call("hasRole", role, chain.owner)
