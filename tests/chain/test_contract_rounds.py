"""The coordinator's rounds, which anyone advances by rule, and beacons that follow from the chain alone."""

import copy

import pytest
from eth_utils import keccak
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.evm import COMMITMENT, Chain
from tests.chain.test_contract import refusal

MIN, MAX, QUORUM, WINDOW = 60, 600, 2, 3


@pytest.fixture(scope="module")
def deployed():
    chain = Chain(nodes=5, minSeconds=MIN, maxSeconds=MAX, quorum=QUORUM, window=WINDOW)
    chain.register(*chain.nodes)
    chain.tester.mine_blocks(2)
    return chain


@pytest.fixture
def chain(deployed):
    with deployed.undone():
        yield deployed


def status(chain):
    return chain.call("status")


def advance(chain, after=MAX):
    chain.pass_to(after)
    return chain.send(chain.funded[7], "advanceRound")


def word(value: bytes | int) -> bytes:
    return value.to_bytes(32) if isinstance(value, int) else value.ljust(32, b"\0")


def block_hash(chain, number: int) -> bytes:
    return bytes(chain.web3.eth.get_block(number).hash)


# --- who advances, and when


def test_anyone_advances_after_the_minimum_time_with_a_quorum(chain):
    first, second = chain.nodes[:2]
    chain.settle(first, 0)
    chain.pass_to(MIN)
    assert (status(chain).settlements, status(chain).needed, status(chain).advanceable) == (1, QUORUM, False)
    assert chain.refusal(chain.funded[7], "advanceRound") == "TooEarly"
    with chain.undone():
        chain.settle(second, 0)
        assert status(chain).advanceable
        receipt = chain.send(chain.funded[7], "advanceRound")
        assert chain.events(receipt, "RoundAdvanced") == [{"round": 1}]
        block, now = chain.web3.eth.get_block(receipt.blockNumber), status(chain)
        assert (now.round, now.settlements, now.recorded) == (1, 0, False)
        assert (now.started, now.anchor, now.peers) == (block.timestamp, block.number, len(chain.nodes))


def test_nobody_advances_before_the_minimum_time_however_many_settled(chain):
    for one in chain.nodes:
        chain.settle(one, 0)
    chain.pass_to(MIN - 1)
    assert not status(chain).advanceable and chain.refusal(chain.funded[7], "advanceRound") == "TooEarly"
    chain.pass_to(MIN)
    assert status(chain).advanceable and chain.refusal(chain.funded[7], "advanceRound") is None


def test_anyone_advances_after_the_maximum_time_with_nobody_there(chain):
    """The original stood still when its one key did."""
    for expected in (1, 2, 3):
        chain.pass_to(MAX - 1)
        assert chain.refusal(chain.funded[7], "advanceRound") == "TooEarly"
        advance(chain)
        assert status(chain).round == expected


@pytest.mark.parametrize(("settled", "needed"), [(0, 2), (1, 2), (2, 2), (3, 2), (4, 3), (5, 4)])
def test_the_quorum_is_two_thirds_of_the_round_before_or_the_fixed_number(chain, settled, needed):
    """Rounded up; whoever settled for that round later does not count."""
    for one in chain.nodes[:settled]:
        chain.settle(one, 0)
    chain.next_round()
    for one in chain.nodes[settled:]:
        chain.settle(one, 0)
    assert (status(chain).needed, status(chain).settlements) == (needed, 0)


# --- beacons


def first_seed(chain) -> bytes:
    """Of this contract on this chain: abi.encode of a string and two static words is its offset, these, its length and
    bytes."""
    text = b"rlswarm_jax beacon 1"
    address = bytes.fromhex(chain.coordinator.address[2:]).rjust(32, b"\0")
    return keccak(word(96) + word(chain.web3.eth.chain_id) + address + word(len(text)) + word(text))


class Model:
    """The rounds of a coordinator by what its notice says, in Python."""

    def __init__(self, chain):
        self.chain, self.round, self.before, self.settled = chain, 0, 0, {0: set()}
        self.accumulator, self.seed, self.beacons = bytes(20), first_seed(chain), {}
        self.anchor = chain.deployed.blockNumber
        self.started = chain.web3.eth.get_block(self.anchor).timestamp

    def beacon(self, block: int) -> bytes | None:
        """The current round's, in that block: on record, or of a hash that is there and not forgotten."""
        if self.round in self.beacons:
            return self.beacons[self.round]
        there = self.anchor + 1 < block <= self.anchor + 1 + 256
        return keccak(self.seed + block_hash(self.chain, self.anchor + 1)) if there else None

    def lost(self, block: int) -> bool:
        return self.round not in self.beacons and block > self.anchor + 1 + 256

    def needed(self) -> int:
        return max(QUORUM, -(-2 * self.before // 3))

    def advanceable(self, now: int) -> bool:
        elapsed, quorum = now - self.started, len(self.settled[self.round]) >= self.needed()
        return elapsed >= MAX or (elapsed >= MIN and quorum)

    def check(self) -> None:
        now, head = status(self.chain), self.chain.web3.eth.get_block("latest")
        assert (now.round, now.started, now.anchor) == (self.round, self.started, self.anchor)
        assert (now.settlements, now.needed) == (len(self.settled[self.round]), self.needed())
        assert (now.advanceable, now.recorded) == (self.advanceable(head.timestamp), self.round in self.beacons)
        assert now.beacon == (self.beacon(head.number) or bytes(32))
        assert self.chain.call("accumulator") == self.accumulator
        for round_, value in self.beacons.items():
            assert self.chain.call("beacon", round_) == value

    def settle(self, place: int, back: int) -> None:
        """By the node at that place, for a round that far back."""
        target, one = self.round - back, self.chain.nodes[place]
        beacon = self.beacons.get(target) if back else self.beacon(self.chain.web3.eth.block_number)  # as views see it
        if target < 0 or place in self.settled[target]:
            return
        if beacon is None:
            assert refusal(self.chain, one, target, bytes(4)) == "BeaconNotReady"
            return
        receipt = self.chain.send(one.address, "settle", target, beacon[:4], COMMITMENT, [1, 2, 3], [])
        self.record(receipt, beacon if target == self.round else None)
        self.settled[target].add(place)
        settlement = keccak(b"".join(map(word, (*COMMITMENT, 1, 2, 3))))
        account = bytes.fromhex(one.address[2:]).rjust(32, b"\0")
        self.accumulator = keccak(word(self.accumulator) + account + word(target) + settlement)[:20]

    def record(self, receipt, beacon: bytes | None) -> None:
        """The first transaction that needs it puts it on record."""
        told = [] if beacon is None or self.round in self.beacons else [{"round": self.round, "beacon": beacon}]
        assert self.chain.events(receipt, "BeaconFinalized") == told
        if told:
            self.beacons[self.round] = beacon

    def finalize(self) -> None:
        receipt = self.chain.send(self.chain.funded[7], "finalizeBeacon")
        lost, block = self.lost(receipt.blockNumber), receipt.blockNumber
        told = [{"round": self.round, "blockNumber": block + 1}] if lost else []
        assert self.chain.events(receipt, "BeaconPostponed") == told
        self.record(receipt, self.beacon(block))
        if lost:
            self.anchor = block

    def advance(self) -> None:
        head = self.chain.web3.eth.get_block("latest")
        error = None if self.advanceable(head.timestamp) else "TooEarly"
        if not (error or self.beacon(head.number) or self.lost(head.number)):
            error = "BeaconNotReady"
        assert self.chain.refusal(self.chain.funded[7], "advanceRound") == error
        if error:
            return
        receipt = self.chain.send(self.chain.funded[7], "advanceRound")
        self.record(receipt, self.beacon(receipt.blockNumber) or keccak(self.seed + bytes(32)))
        self.seed = keccak(self.beacons[self.round] + word(self.accumulator))
        self.round, self.before = self.round + 1, len(self.settled[self.round])
        self.settled[self.round] = set()
        self.anchor = receipt.blockNumber
        self.started = self.chain.web3.eth.get_block(self.anchor).timestamp

    def follow(self, steps) -> None:
        calls = {"mine": self.chain.tester.mine_blocks, "wait": self.chain.pass_time}
        for name, *values in steps:
            (calls.get(name) or getattr(self, name))(*values)
            self.check()


A_ROUND = [("settle", 0, 0), ("settle", 1, 0), ("settle", 2, 0), ("wait", MIN), ("advance",)]


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([*A_ROUND, ("advance",), ("wait", MAX), ("advance",), ("settle", 3, 1), *A_ROUND])
@given(
    st.lists(
        st.tuples(st.just("settle"), st.integers(0, 4), st.integers(0, WINDOW))
        | st.sampled_from([("advance",), ("finalize",), ("mine", 1), ("wait", MIN), ("wait", MAX)]),
        max_size=20,
    )
)
def test_rounds_and_beacons_are_what_the_notice_says(deployed, steps):
    """The quorum, the accumulator, the beacons and who may advance, followed beside any sequence of calls."""
    with deployed.undone():
        Model(deployed).follow(steps)


def test_nothing_gets_stuck_where_a_beacon_s_block_is_forgotten(chain):
    model = Model(chain)
    model.follow([*A_ROUND, ("mine", 255)])
    forgotten = ("mine", 3)
    for steps in (
        [("mine", 1), ("settle", 0, 0)],  # of 256 blocks back: the last moment
        [("mine", 1), ("finalize",), forgotten, ("settle", 0, 0)],  # on record for good
        [forgotten, ("settle", 0, 0), ("finalize",), ("settle", 0, 0), ("mine", 1), *A_ROUND],  # a later block's
        [forgotten, ("wait", MAX), ("advance",), ("mine", 1), ("settle", 0, 1), *A_ROUND],  # a round without
    ):
        with chain.undone():
            copy.deepcopy(model, {id(chain): chain}).follow(steps)


def test_a_beacon_is_not_to_be_had_before_its_block(chain):
    advance(chain)
    for round_, error in ((1, "BeaconNotReady"), (2, "InvalidRound"), (2**255, "InvalidRound")):
        assert chain.refusal(chain.owner, "beacon", round_) == error
    assert status(chain).beacon == bytes(32)
    chain.tester.mine_blocks(2)
    assert chain.call("beacon", 1) == status(chain).beacon != bytes(32)


def test_nobody_moves_a_beacon_by_a_late_settlement(chain):
    """What was settled after the round began, although its block is known by then."""
    chain.next_round()
    before = chain.call("beacon", 1)
    chain.settle(chain.nodes[0], 0)
    chain.settle(chain.nodes[1], 1)
    assert chain.call("beacon", 1) == before


def test_what_was_made_for_a_beacon_that_was_undone_is_refused(chain):
    """The same transaction, replayed on the other side of a reorganisation."""
    one = chain.nodes[0]
    with chain.undone():
        chain.next_round()
        undone = chain.tag(1)
    chain.tester.mine_block()
    chain.next_round()
    assert chain.tag(1) != undone and refusal(chain, one, 1, undone) == "WrongBeacon"
    chain.send(chain.owner, "finalizeBeacon")
    assert refusal(chain, one, 1, undone) == "WrongBeacon"
    chain.next_round()
    assert refusal(chain, one, 1, undone) == "WrongBeacon"  # nor when it is past
    chain.settle(one, 1)


# --- the rules


def test_rules_that_make_no_sense_cannot_be_deployed(chain):
    for bad in (
        {"minSeconds": 9, "maxSeconds": 8},
        {"minSeconds": 0, "maxSeconds": 0},
        {"window": 0},
        {"maxReward": 2**63},
    ):
        assert chain.deployment_refusal(**bad) == "InvalidRules", bad
    assert chain.deployment_refusal(minSeconds=1, maxSeconds=1, window=1, maxReward=2**63 - 1) is None
    assert tuple(chain.call("rules")) == (MIN, MAX, QUORUM, WINDOW, 1_000_000)
