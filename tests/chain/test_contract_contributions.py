"""Rewards, votes and published weights: bounded, once, and only after one's own commitment."""

import pytest
from eth_abi import encode
from eth_utils import keccak

from benchmarks.evm import Chain
from tests.chain.test_contract_peers import attestation

SIGNED = "submitReward(uint256,uint256,int256,string)"
UNSIGNED = "submitReward(uint256,uint256,uint256,string)"
MOST = 1_000_000
WINDOW = 3
CLAIM = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


@pytest.fixture(scope="module")
def deployed():
    """Six peers that registered in round 0, of whom four have committed in the current round, 1; and one claimer."""
    chain = Chain(nodes=12, window=WINDOW, maxReward=MOST)
    chain.register(*chain.nodes[:10])
    chain.send(chain.nodes[11].address, "registerPeer", CLAIM)
    chain.next_round()
    for one in chain.nodes[:4]:
        chain.commit(one, 1)
    return chain


@pytest.fixture
def chain(deployed):
    with deployed.undone():
        yield deployed


def ascending(*nodes) -> list[str]:
    return sorted((one.address for one in nodes), key=lambda address: int(address, 16))


def has_submitted(chain, round_: int, stage: int, key: str, whose: str) -> bool:
    """Encoded by hand: where an overload takes an address, web3 would look any other text up as a name."""
    selector = keccak(text=f"hasSubmittedRoundStageReward(uint256,uint256,{key})")[:4]
    data = selector + encode(["uint256", "uint256", key], [round_, stage, whose])
    return bool(int.from_bytes(chain.web3.eth.call({"to": chain.coordinator.address, "data": data})))


def total(chain, one) -> int:
    return chain.call("getTotalRewards", [one.peer_id])[0]


# --- rewards


@pytest.mark.parametrize("call", ["reward", SIGNED, UNSIGNED])
def test_a_reward_is_on_record_for_its_peer_round_and_stage(chain, call):
    one = chain.nodes[0]
    text = () if call == "reward" else (one.peer_id,)
    receipt = chain.send(one.address, call, 1, 0, 500, *text)
    assert chain.events(receipt, "RewardSubmitted") == [
        {"account": one.address, "roundNumber": 1, "stageNumber": 0, "reward": 500, "peerId": one.peer_id}
    ]
    assert chain.events(receipt, "CumulativeRewardsUpdated") == [
        {"account": one.address, "peerId": one.peer_id, "totalRewards": 500}
    ]
    other = chain.nodes[1].address
    assert chain.call("getRoundStageReward", 1, 0, [one.address, other]) == [500, 0]
    for stage, has in ((0, True), (1, False), (3, False)):
        assert has_submitted(chain, 1, stage, "address", one.address) == has
        assert has_submitted(chain, 1, stage, "string", one.peer_id) == has
    assert total(chain, one) == 500
    for again in (SIGNED, UNSIGNED):
        assert chain.refusal(one.address, again, 1, 0, 1, one.peer_id) == "RewardAlreadySubmitted"


def test_rewards_of_either_sign_add_up_over_stages_and_rounds(chain):
    one = chain.nodes[0]
    chain.next_round()
    chain.commit(one, 2)
    amounts = {(1, 0): -MOST, (1, 1): MOST, (1, 2): -7, (2, 0): 0}
    for (round_, stage), amount in amounts.items():
        chain.send(one.address, "reward", round_, stage, amount)
    for (round_, stage), amount in amounts.items():
        assert chain.call("getRoundStageReward", round_, stage, [one.address]) == [amount]
    assert total(chain, one) == sum(amounts.values())
    assert chain.call("hasSubmittedRoundStageReward(uint256,uint256,address)", 2, 0, one.address)  # though it is zero


@pytest.mark.parametrize("amount", [MOST + 1, -MOST - 1, 2**255 - 1, -(2**255)])
def test_rewards_are_bounded(chain, amount):
    """The original took any number."""
    one = chain.nodes[0]
    assert chain.refusal(one.address, "reward", 1, 0, amount) == "RewardOutOfBounds"
    assert chain.refusal(one.address, SIGNED, 1, 0, amount, one.peer_id) == "RewardOutOfBounds"
    unsigned = amount % 2**256
    assert chain.refusal(one.address, UNSIGNED, 1, 0, unsigned, one.peer_id) == "RewardOutOfBounds"


def test_stages_and_rounds_that_are_not_there_get_no_rewards(chain):
    """The original's check of past rounds let stage number three through."""
    one = chain.nodes[0]
    chain.next_round()
    chain.commit(one, 2)
    for round_, stage, error in (
        (1, 3, "InvalidStageNumber"),
        (1, 2**255, "InvalidStageNumber"),
        (2, 1, "InvalidStageNumber"),  # to come
        (3, 0, "InvalidRoundNumber"),
        (2**255, 0, "InvalidRoundNumber"),
    ):
        assert chain.refusal(one.address, "reward", round_, stage, 1) == error
        assert chain.refusal(one.address, SIGNED, round_, stage, 1, one.peer_id) == error
    assert chain.refusal(one.address, "reward", 1, 2, 1) is None  # a past round's last
    assert chain.refusal(one.address, "getRoundStageReward", 1, 3, [one.address]) == "InvalidStageNumber"


def test_there_is_no_reward_without_a_commitment_of_the_same_round(chain):
    one, idle = chain.nodes[0], chain.nodes[5]
    assert chain.refusal(idle.address, "reward", 1, 0, 1) == "NotCommitted"
    assert chain.refusal(idle.address, SIGNED, 1, 0, 1, idle.peer_id) == "NotCommitted"
    assert chain.refusal(one.address, "reward", 0, 0, 1) == "NotCommitted"  # that of another round does not do
    assert chain.refusal(chain.nodes[10].address, "reward", 1, 0, 1) == "NotRegistered"


def test_nobody_submits_under_another_s_peer_id(chain):
    one, other = chain.nodes[:2]
    for name in (other.peer_id, CLAIM, "", "nobody's"):
        assert chain.refusal(one.address, SIGNED, 1, 0, 1, name) == "InvalidVoterPeerId"
        assert chain.refusal(one.address, "submitWinners", 1, [other.peer_id], name) == "InvalidVoterPeerId"


def test_rewards_and_votes_have_a_window_of_rounds(chain):
    one, other = chain.nodes[:2]
    for _ in range(WINDOW):
        chain.next_round()
    assert chain.refusal(one.address, "reward", 1, 0, 1) is None
    assert chain.refusal(one.address, "vote", 1, [other.address]) is None
    chain.next_round()
    for call, values in (("reward", (1, 0, 1)), ("vote", (1, [other.address]))):
        assert chain.refusal(one.address, call, *values) == "InvalidRoundNumber"
    assert chain.refusal(chain.nodes[11].address, SIGNED, 1, 0, 1, CLAIM) == "InvalidRoundNumber"


# --- votes


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("call", ["vote", "submitWinners"])
def test_a_vote_counts_for_each_winner(chain, call, count):
    voter, winners = chain.nodes[0], chain.nodes[1 : 1 + count]
    in_order = {one.address: one.peer_id for one in winners}
    expected = [in_order[address] for address in ascending(*winners)]
    # the original's call takes them in any order, peer ids as text
    values = (1, ascending(*winners)) if call == "vote" else (1, list(in_order.values())[::-1], voter.peer_id)
    receipt = chain.send(voter.address, call, *values)
    assert chain.events(receipt, "WinnerSubmitted") == [
        {"account": voter.address, "peerId": voter.peer_id, "roundNumber": 1, "winners": expected}
    ]
    assert chain.call("getVoterVotes", 1, voter.peer_id) == expected
    for one in chain.nodes[:10]:
        won = int(one in winners)
        assert chain.call("getPeerVoteCount", 1, one.peer_id) == chain.call("getTotalWins", one.peer_id) == won
    assert chain.call("getVoterVoteCount", voter.peer_id) == chain.call("uniqueVoters") == 1
    assert chain.call("uniqueVotedPeers") == count
    assert chain.refusal(voter.address, "vote", 1, ascending(chain.nodes[9])) == "WinnerAlreadyVoted"


def test_votes_and_rewards_of_a_round_share_a_slot_and_do_not_mix(chain):
    first, second = chain.nodes[:2]
    chain.send(first.address, "reward", 1, 0, -1)  # all bits of its field
    for voter in (second, *chain.nodes[2:4]):
        chain.send(voter.address, "vote", 1, [first.address])
    chain.next_round()
    chain.send(first.address, "reward", 1, 2, -1)
    assert [chain.call("getRoundStageReward", 1, stage, [first.address])[0] for stage in range(3)] == [-1, 0, -1]
    assert chain.call("getPeerVoteCount", 1, first.peer_id) == 3
    has = "hasSubmittedRoundStageReward(uint256,uint256,address)"
    assert [chain.call(has, 1, stage, first.address) for stage in range(3)] == [True, False, True]


def test_what_a_vote_must_be(chain):
    voter, other, third = chain.nodes[:3]
    up = ascending(other, third)
    for winners in ([], up[::-1], [up[0], up[0]], ascending(*chain.nodes[1:10]), [voter.address]):
        assert chain.refusal(voter.address, "vote", 1, winners) == "InvalidVote", winners
    for unregistered in (chain.nodes[10], chain.nodes[11]):  # unknown; only claimed
        assert chain.refusal(voter.address, "vote", 1, [unregistered.address]) == "InvalidVote"
    names = [one.peer_id for one in chain.nodes]
    for texts in (
        [],
        [names[1]] * 2,
        [names[1], names[2], names[1]],
        names[1:10],
        [names[0]],
        [names[10]],
        [CLAIM],
        [""],
    ):
        assert chain.refusal(voter.address, "submitWinners", 1, texts, names[0]) == "InvalidVote", texts
    assert chain.refusal(chain.nodes[5].address, "vote", 1, up) == "NotCommitted"
    assert chain.refusal(chain.nodes[10].address, "vote", 1, up) == "NotRegistered"
    assert chain.refusal(voter.address, "vote", 2, up) == "InvalidRoundNumber"


def test_an_empty_list_cannot_be_sent_for_ever(chain):
    """The original counted a vote for each."""
    one = chain.nodes[0]
    assert chain.refusal(one.address, "submitWinners", 1, [], one.peer_id) == "InvalidVote"
    assert chain.refusal(chain.nodes[11].address, "submitWinners", 1, [], CLAIM) == "InvalidVote"
    assert chain.call("uniqueVoters") == 0


def test_nobody_votes_or_is_voted_for_in_the_round_of_their_registration(chain):
    late, voter = chain.nodes[10], chain.nodes[0]
    chain.register(late)
    chain.commit(late, 1)
    assert chain.refusal(late.address, "vote", 1, [voter.address]) == "RegisteredTooLate"
    assert chain.refusal(voter.address, "vote", 1, [late.address]) == "RegisteredTooLate"
    assert chain.refusal(late.address, "reward", 1, 0, 1) is None
    chain.next_round()
    for one in (late, voter):
        chain.commit(one, 2)
    chain.send(late.address, "vote", 2, [voter.address])
    chain.send(voter.address, "vote", 2, [late.address])


def test_leaderboards_are_sorted_pages(chain):
    first, second, third, fourth = chain.nodes[:4]
    for voter, winners in ((first, (second, third)), (second, (third,)), (fourth, (third, first))):
        chain.send(voter.address, "vote", 1, ascending(*winners))
    chain.next_round()
    chain.commit(second, 2)
    chain.send(second.address, "vote", 2, [third.address])
    names, wins = chain.call("winnerLeaderboard", 0, 100)
    assert (names[0], wins) == (third.peer_id, [4, 1, 1]) and set(names) == {o.peer_id for o in (first, second, third)}
    names, votes = chain.call("voterLeaderboard", 0, 100)
    assert (names[0], votes) == (second.peer_id, [2, 1, 1])
    assert chain.call("winnerLeaderboard", 2, 3) == [[third.peer_id], [4]]
    assert chain.call("winnerLeaderboard", 3, 100) == [[], []]
    assert chain.call("uniqueVoters") == 3 and chain.call("uniqueVotedPeers") == 3
    rows = {row[0]: row[3:] for row in chain.call("standings", 0, 100)}
    assert rows[third.address] == (0, 4, 0, 0) and rows[second.address] == (0, 1, 2, 0)


# --- the original's clients, whose ids nothing proves


def test_a_claimed_client_goes_on_calling_and_counts_nowhere(chain):
    claimer, one = chain.nodes[11], chain.nodes[0]
    for call, values in (
        (SIGNED, (1, 0, 10**30, CLAIM)),
        (UNSIGNED, (1, 0, 5, CLAIM)),
        ("submitWinners", (1, [one.peer_id], CLAIM)),
    ):
        receipt = chain.send(claimer.address, call, *values)
        assert chain.events(receipt, "Uncounted") == [{"account": claimer.address, "peerId": CLAIM, "roundNumber": 1}]
        assert len(receipt.logs) == 1
    has = "hasSubmittedRoundStageReward(uint256,uint256,address)"
    assert not chain.call(has, 1, 0, claimer.address)
    assert chain.call("getTotalRewards", [CLAIM]) == [0] and chain.call("getTotalWins", one.peer_id) == 0
    assert chain.call("getVoterVoteCount", CLAIM) == chain.call("uniqueVoters") == 0
    assert chain.call("getVoterVotes", 1, CLAIM) == []
    # where the original refused, it is refused still
    assert chain.refusal(claimer.address, SIGNED, 2, 0, 1, CLAIM) == "InvalidRoundNumber"
    assert chain.refusal(claimer.address, SIGNED, 1, 3, 1, CLAIM) == "InvalidStageNumber"
    assert chain.refusal(claimer.address, "submitWinners", 2, [one.peer_id], CLAIM) == "InvalidRoundNumber"
    # and it has no part in the native calls
    assert chain.refusal(claimer.address, "vote", 1, [one.address]) == "NotRegistered"


def test_an_original_client_that_registers_its_own_key_counts_once_it_commits(chain):
    """All by the original's calls, but for the commitment."""
    one, other = chain.nodes[10], chain.nodes[0]
    chain.send(one.address, "registerPeer", one.peer_id)
    chain.next_round()
    chain.commit(one, 2)
    chain.send(one.address, SIGNED, 2, 0, 3, one.peer_id)
    chain.send(one.address, "submitWinners", 2, [other.peer_id], one.peer_id)
    assert total(chain, one) == 3 and chain.call("getTotalWins", other.peer_id) == 1


# --- weights


def test_published_weights_are_on_record_once(chain):
    one, idle = chain.nodes[0], chain.nodes[5]
    digest, uri = b"\x07" * 32, "ipfs://weights"
    receipt = chain.send(one.address, "publishWeights", 1, digest, uri)
    assert chain.events(receipt, "WeightsPublished") == [
        {"account": one.address, "round": 1, "weightsHash": digest, "uri": uri}
    ]
    assert chain.call("weightsOf", 1, one.address) == digest
    second = chain.nodes[1].address
    for sender, values, error in (
        (one.address, (1, b"\x08" * 32, uri), "WeightsAlreadyPublished"),
        (second, (1, bytes(32), uri), "EmptyHash"),
        (second, (1, digest, "x" * 257), "UriTooLong"),
        (second, (2, digest, uri), "InvalidRoundNumber"),
        (idle.address, (1, digest, uri), "NotCommitted"),
        (chain.nodes[11].address, (1, digest, uri), "NotRegistered"),
    ):
        assert chain.refusal(sender, "publishWeights", *values) == error
    for _ in range(WINDOW + 1):
        chain.next_round()
    chain.send(second, "publishWeights", 1, digest, "x" * 256)  # a model is published when its training is over


def test_a_struck_peer_loses_its_part_and_no_one_else_s_record_moves(chain):
    liar, one = chain.nodes[10], chain.nodes[0]
    chain.send(liar.address, "attestPeer", attestation(chain, liar, "12D3KooW of another"))
    chain.next_round()
    for each in (liar, one):
        chain.commit(each, 2)
    chain.send(liar.address, "vote", 2, [one.address])
    chain.send(one.address, "vote", 2, [liar.address])
    assert chain.call("getVoterVotes", 2, one.peer_id) == ["12D3KooW of another"]
    chain.send(chain.owner, "strikeAttestation", liar.address)
    assert chain.refusal(liar.address, "reward", 2, 0, 1) == "NotRegistered"
    assert chain.refusal(chain.nodes[1].address, "vote", 1, [liar.address]) == "InvalidVote"
    assert chain.call("getTotalWins", one.peer_id) == 1
    assert chain.call("getVoterVotes", 2, one.peer_id) == ["12D3KooW of another"]
