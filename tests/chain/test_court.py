"""The court: what a challenge costs whom, and that each way to misuse it fails or costs what it is said to."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from eth_abi import encode
from eth_utils import keccak
from scipy.stats import hypergeom

from benchmarks import gas
from benchmarks.evm_court import (
    ABSTAIN,
    FOUND_GUILTY,
    FOUND_NOT_GUILTY,
    GUILTY,
    NOT_GUILTY,
    OPEN,
    TERMS,
    UNDECIDED,
    Courtroom,
)
from rlswarm_jax.audit import commit
from rlswarm_jax.chain.court import Terms
from rlswarm_jax.chain.deployment import check_terms, terms
from tests.chain.client_world import originals

STAKE, BOND, FEE = TERMS["stake"], TERMS["bond"], TERMS["fee"]
TABLE = Path(__file__).parents[2] / "results" / "gas.json"
RECORDS = [hashlib.sha256(bytes([number])).digest() for number in range(5)]


@pytest.fixture(scope="module")
def built():
    """Eight staked peers and one that is none, in round 1, for which the first two have settled."""
    room = Courtroom(nodes=9)
    room.register(*room.nodes)
    room.stake(*room.nodes[:8])
    room.next_round()
    for one in room.nodes[:2]:
        room.commit(one, 1, RECORDS)
    return room


@pytest.fixture
def room(built):
    with built.undone():
        yield built
        held = sum(built.staked(one) for one in built.nodes)
        owed = sum(built.credit(one) for one in built.nodes)
        cases = [built.ask("caseAt", number + 1) for number in range(built.ask("counts")[0])]
        bonds = BOND * sum(case.state == OPEN for case in cases)
        assert built.web3.eth.get_balance(built.court.address) >= held + owed + bonds  # it can pay what it owes


def opened(room, by=2, **of) -> int:
    return room.challenge(room.nodes[by], room.nodes[0], 1, RECORDS, **of)


def judged(room, number: int, *votes: int) -> int:
    """The state of a case after these votes, in the order of seats."""
    room.draw(number)
    room.vote(number, *votes)
    for _ in range(TERMS["voting"] + 1):
        if 0 in votes:
            room.next_round()
    return room.resolve(number)


def refused(room, by, accused, *, value=BOND, **of):
    arguments = {"round_": 1, "records": RECORDS} | of
    return room.no(by, "challenge", *room.question(accused, **arguments), value=value)


# --- what a verdict does


def test_whom_the_committee_finds_guilty_loses_its_stake_and_its_rewards_and_half_of_that_is_nobody_s(room):
    liar, by = room.nodes[0], room.nodes[2]
    number = opened(room)
    assert judged(room, number, GUILTY, NOT_GUILTY, GUILTY) == FOUND_GUILTY
    members = room.members(number)
    assert [room.credit(one) for one in members] == [FEE, 0, FEE]  # the minority gets nothing
    assert room.credit(by) == BOND + (STAKE - 2 * FEE) // 2
    assert room.staked(liar) == 0 and room.credit(liar) == 0
    assert tuple(room.ask("standingOf", 1, liar.address)) == (0, True)
    for _ in range(TERMS["claims"] + 1):
        room.next_round()
    assert not room.ask("isPayable", liar.address, 1) and room.ask("isPayable", room.nodes[1].address, 1)
    assert room.ask("counts")[1] == 7


def test_whoever_accuses_wrongly_loses_the_bond_to_committee_and_accused(room):
    honest, by = room.nodes[0], room.nodes[2]
    number = opened(room)
    assert judged(room, number, NOT_GUILTY, NOT_GUILTY, NOT_GUILTY) == FOUND_NOT_GUILTY
    assert [room.credit(one) for one in room.members(number)] == [FEE] * 3
    assert room.credit(honest) == (BOND - 3 * FEE) // 2 and room.staked(honest) == STAKE
    assert room.credit(by) == 0 and room.staked(by) == STAKE
    for _ in range(TERMS["claims"]):
        room.next_round()
    assert room.ask("isPayable", honest.address, 1)


def test_nothing_is_payable_within_the_window_or_while_a_challenge_is_open(room):
    one, other = room.nodes[:2]
    for round_ in range(1, 2 + TERMS["claims"]):
        assert not room.ask("isPayable", one.address, 1), round_
        if round_ == 1 + TERMS["claims"]:
            number = opened(room)  # in the window's last round
        room.next_round()
    assert refused(room, room.nodes[3], other) == "TooLate"
    assert not room.ask("isPayable", one.address, 1) and room.ask("isPayable", other.address, 1)
    assert judged(room, number, ABSTAIN, NOT_GUILTY, NOT_GUILTY) == FOUND_NOT_GUILTY
    assert room.ask("isPayable", one.address, 1)
    assert not room.ask("isPayable", room.nodes[3].address, 1)  # which settled nothing


def test_who_has_no_stake_since_that_round_is_paid_nothing(room):
    late = room.nodes[8]
    room.commit(late, 1, RECORDS)
    room.next_round()
    room.stake(late)
    for _ in range(TERMS["claims"] + 1):
        room.next_round()
    assert not room.ask("isPayable", late.address, 1)


# --- who may ask what


@pytest.mark.parametrize("count", [1, 3, 6])
def test_only_a_record_beneath_the_commitment_s_root_can_be_named(room, count):
    """Each position of trees of all shapes; and no other position, record or path."""
    accused, by = room.nodes[3], room.nodes[2]
    records = [hashlib.sha256(b"%d" % number).digest() for number in range(count)]
    room.commit(accused, 1, records)
    for position in range(count):
        accused_, round_, said, claims, record, at, proof, _ = room.question(accused, 1, records, position)

        def no(record=record, at=at, proof=proof, said=said, claims=claims, round_=round_, accused_=accused_):
            question = accused_, round_, said, claims, record, at, proof, 0
            return room.no(by, "challenge", *question, value=BOND)

        assert no() is None
        wrong = [{"record": RECORDS[0]}, {"at": count}, {"proof": [*proof, record]}, {"proof": [record] * 65}]
        wrong += [{"at": other} for other in range(count) if other != position]
        wrong += [{"proof": proof[:-1]}, {"proof": [record, *proof[1:]]}] if proof else []
        wrong += [{"claims": [1, 0, 0]}, {"said": (*said[:3], count + 1, *said[4:])}]
        wrong += [{"round_": 0}, {"accused_": room.nodes[4].address}]
        for change in wrong:
            assert no(**change) == "NotCommitted", change


def test_a_challenge_takes_a_bond_and_two_sides_that_have_a_stake(room):
    accused, by, outsider = room.nodes[0], room.nodes[2], room.nodes[8]
    for value in (0, BOND - 1, BOND + 1):
        assert refused(room, by, accused, value=value) == "WrongBond"
    assert refused(room, outsider, accused) == "NotStaked"
    room.commit(outsider, 1, RECORDS)
    assert refused(room, by, outsider) == "NotStaked"
    room.act(by, "quit")
    assert refused(room, by, accused) == "NotStaked"  # nor who is about to go


def test_nobody_can_challenge_itself_and_through_another_key_it_is_a_loss(room):
    liar, own = room.nodes[0], room.nodes[2]
    assert refused(room, liar, liar) == "SelfChallenge"
    number = opened(room)
    assert judged(room, number, GUILTY, GUILTY, GUILTY) == FOUND_GUILTY
    assert room.credit(own) - BOND <= STAKE / 2  # of its own stake


def test_who_spams_challenges_has_one_open_at_a_time_and_loses_each_bond(room):
    spammer, honest = room.nodes[2], room.nodes[0]
    total = 0
    for index in range(2):
        number = opened(room, index=index)
        assert refused(room, spammer, room.nodes[1]) == "OneAtATime"
        assert judged(room, number, NOT_GUILTY, NOT_GUILTY, NOT_GUILTY) == FOUND_NOT_GUILTY
        total += BOND
        assert room.credit(honest) == (index + 1) * ((BOND - 3 * FEE) // 2)
    assert refused(room, spammer, room.nodes[1]) is None


def test_the_same_verdict_cannot_be_challenged_twice_but_where_it_was_left_undecided(room):
    number = opened(room)
    assert refused(room, room.nodes[3], room.nodes[0]) == "AlreadyChallenged"
    assert refused(room, room.nodes[3], room.nodes[0], index=1) is None  # another group
    assert judged(room, number, ABSTAIN, ABSTAIN, ABSTAIN) == UNDECIDED
    number = opened(room)
    assert judged(room, number, NOT_GUILTY, NOT_GUILTY, NOT_GUILTY) == FOUND_NOT_GUILTY
    assert refused(room, room.nodes[3], room.nodes[0]) == "AlreadyChallenged"


# --- the committee


def drawn_by_hand(room, number: int) -> list[str]:
    """Fisher and Yates with a whole list, from the beacon of the round after the challenge."""
    case = room.ask("caseAt", number)
    seed = keccak(encode(["bytes32", "uint256"], [room.call("beacon", case.opened + 1), number]))
    order = [one.address for one in room.nodes[: case.stakers]]
    for i in range(len(order)):
        j = i + int.from_bytes(keccak(encode(["bytes32", "uint256"], [seed, i]))) % (len(order) - i)
        order[i], order[j] = order[j], order[i]
    return [one for one in order if one not in (case.accused, case.challenger)][: TERMS["size"]]


def test_the_committee_follows_from_a_later_beacon_and_has_neither_side_in_it(room):
    seen = set()
    for index in range(6):
        with room.undone():
            for _ in range(index):
                room.tester.mine_block()
            number = opened(room, index=index)
            assert room.no(room.nodes[3], "draw", number) == "TooEarly"
            members = [one.address for one in room.draw(number)]
            assert members == drawn_by_hand(room, number) and len(set(members)) == TERMS["size"]
            assert not {room.nodes[0].address, room.nodes[2].address} & set(members)
            assert room.no(room.nodes[3], "draw", number) == "AlreadyDrawn"
            seen.add(tuple(members))
    assert len(seen) > 3


def test_whoever_came_or_asked_for_its_stake_after_the_question_changes_no_committee(room):
    number = opened(room)
    room.next_round()
    with room.undone():
        room.act(room.nodes[3], "draw", number)
        expected = room.ask("caseAt", number).members
    for one in room.nodes[3:8]:
        room.act(one, "quit")
    room.stake(room.nodes[8])
    room.act(room.nodes[3], "draw", number)
    assert room.ask("caseAt", number).members == expected


def test_who_asked_for_its_stake_before_is_in_no_committee(room):
    gone = room.nodes[3:6]
    for one in gone:
        room.act(one, "quit")
    number = opened(room)
    members = room.draw(number)
    assert not set(gone) & set(members) and len(members) == 3


def test_where_too_few_are_staked_nobody_can_be_challenged_or_the_case_is_left(room):
    gone = room.nodes[4:8]
    with room.undone():
        for one in gone:
            room.act(one, "quit")
        number = opened(room)  # there are eight, but of them two may judge
        room.next_round()
        room.act(room.nodes[3], "draw", number)
        assert room.ask("caseAt", number).state == UNDECIDED and room.credit(room.nodes[2]) == BOND
        assert room.staked(room.nodes[0]) == STAKE
    for one in gone:
        room.act(one, "quit")
    for _ in range(TERMS["delay"] + 1):
        room.next_round()
    for one in gone:
        room.act(one, "withdraw")
    room.commit(room.nodes[0], room.call("status").round, RECORDS)
    assert refused(room, room.nodes[2], room.nodes[0], round_=room.call("status").round) == "TooFewStakers"


def test_a_bribed_minority_decides_nothing_and_gets_nothing(room):
    number = opened(room)
    assert judged(room, number, NOT_GUILTY, GUILTY, GUILTY) == FOUND_GUILTY
    assert room.credit(room.members(number)[0]) == 0


def test_where_evidence_is_withheld_nobody_wins_nor_loses_and_the_question_can_come_again(room):
    """Its author shows the weights to nobody, so members can't tell; the challenger, who saw them, may show them."""
    number = opened(room)
    assert judged(room, number, ABSTAIN, ABSTAIN, GUILTY) == UNDECIDED  # one of two that are needed
    assert room.credit(room.nodes[2]) == BOND and room.staked(room.nodes[0]) == STAKE
    assert all(room.staked(one) == STAKE and room.credit(one) == 0 for one in room.members(number))
    assert judged(room, opened(room), GUILTY, ABSTAIN, GUILTY) == FOUND_GUILTY


def test_a_tie_is_no_verdict(room):
    assert judged(room, opened(room), GUILTY, NOT_GUILTY, ABSTAIN) == UNDECIDED


def test_a_committee_that_does_not_show_up_pays_for_it_and_nobody_wins(room):
    number = opened(room)
    assert judged(room, number, 0, 0, GUILTY) == UNDECIDED
    assert [room.staked(one) for one in room.members(number)] == [STAKE - FEE, STAKE - FEE, STAKE]
    assert room.credit(room.nodes[2]) == BOND and room.staked(room.nodes[0]) == STAKE


def test_a_case_is_closed_when_all_have_voted_or_the_time_is_over_and_not_before(room):
    number = opened(room)
    assert room.no(room.nodes[3], "resolve", number) == "TooEarly"
    members = room.draw(number)
    assert room.no(members[0], "vote", number, 1, GUILTY) == "NotMember"
    assert room.no(room.nodes[2], "vote", number, 0, GUILTY) == "NotMember"
    assert room.no(room.nodes[2], "vote", number, 9, GUILTY) == "NotMember"
    assert room.no(members[0], "vote", number, 0, 0) == "InvalidVote"
    room.vote(number, GUILTY, GUILTY, 0)
    assert room.no(members[0], "vote", number, 0, GUILTY) == "AlreadyVoted"
    for _ in range(TERMS["voting"]):
        assert room.no(room.nodes[3], "resolve", number) == "TooEarly"
        room.next_round()
    assert room.no(members[2], "vote", number, 2, GUILTY) is None
    assert room.no(room.nodes[3], "resolve", number) == "TooEarly"
    room.next_round()
    assert room.no(members[2], "vote", number, 2, GUILTY) == "TooLate"
    assert room.resolve(number) == FOUND_GUILTY
    for name, *values in (("resolve",), ("draw",), ("vote", 2, GUILTY)):
        for of in (number, 0, number + 1):
            assert room.no(members[2], name, of, *values) == "NoSuchCase"


def test_a_beacon_whose_block_was_forgotten_is_waited_for(room):
    number = opened(room)
    room.pass_time(room.call("rules").maxSeconds)
    room.send(room.funded[3], "advanceRound")
    room.tester.mine_blocks(258)
    assert room.no(room.nodes[3], "draw", number) == "BeaconNotReady"
    room.send(room.funded[3], "finalizeBeacon")
    room.tester.mine_blocks(2)
    room.act(room.nodes[3], "draw", number)
    assert [one.address for one in room.members(number)] == drawn_by_hand(room, number)


def test_a_case_that_nobody_drew_in_time_is_left_undecided(room):
    number = opened(room)
    for _ in range(TERMS["claims"] + 1):
        room.next_round()
    with room.undone():
        room.act(room.nodes[3], "draw", number)
        assert room.ask("caseAt", number).state == OPEN
    room.next_round()
    room.act(room.nodes[3], "draw", number)
    assert room.ask("caseAt", number).state == UNDECIDED and room.credit(room.nodes[2]) == BOND


# --- stakes


def test_a_stake_comes_back_when_all_that_was_settled_can_be_challenged_no_more(room):
    """A liar that goes at once after it has settled can be challenged to the last round of the window."""
    liar = room.nodes[0]
    assert room.no(liar, "withdraw") == "TooEarly"
    room.act(liar, "quit")
    assert room.no(liar, "quit") == "AlreadyLeaving" and room.no(liar, "deposit", value=STAKE) == "AlreadyLeaving"
    for _ in range(TERMS["delay"] + 1):
        assert room.no(liar, "withdraw") == "TooEarly"
        if room.call("status").round <= 1 + TERMS["claims"]:
            assert refused(room, room.nodes[2], liar) is None
        room.next_round()
    room.act(liar, "withdraw")
    assert room.credit(liar) == STAKE and room.staked(liar) == 0
    assert refused(room, room.nodes[2], liar) == "NotStaked"
    assert not room.ask("isPayable", liar.address, 1)
    before = room.web3.eth.get_balance(liar.address)
    room.act(room.nodes[5], "collect", liar.address)
    assert room.web3.eth.get_balance(liar.address) == before + STAKE
    assert room.no(room.nodes[5], "collect", liar.address) == "NothingToCollect"


def test_no_stake_leaves_while_a_case_needs_it(room):
    liar, by = room.nodes[0], room.nodes[2]
    room.act(liar, "quit")
    for _ in range(TERMS["claims"]):
        room.next_round()
    number = opened(room)  # the window's last round
    room.act(by, "quit")
    members = room.draw(number)
    for one in members:
        room.act(one, "quit")
    for _ in range(TERMS["delay"] + 1):
        room.next_round()
    for one in (liar, by, *members):
        assert room.no(one, "withdraw") == "Held"
    assert room.resolve(number) == UNDECIDED
    for one in (liar, by, *members):
        room.act(one, "withdraw")
    assert [room.credit(one) for one in (liar, by, *members)] == [STAKE, STAKE + BOND, *3 * [STAKE - FEE]]


def test_a_stake_is_a_registered_peer_s_and_no_less_than_the_terms_say(room):
    one = room.nodes[8]
    for value in (0, STAKE - 1):
        assert room.no(one, "deposit", value=value) == "StakeTooSmall"
    deposit = room.court.functions["deposit"]()
    assert room._refusal(lambda: deposit.call({"from": room.funded[4], "value": STAKE})) == "NotRegistered"
    assert room.no(one, "quit") == "NotStaked"
    room.stake(one)
    room.act(one, "deposit", value=5)
    assert room.staked(one) == STAKE + 5


def test_the_places_of_those_who_left_are_filled_but_while_a_case_waits_for_its_beacon(room):
    gone = room.nodes[3:5]
    for one in gone:
        room.act(one, "quit")
    for _ in range(TERMS["delay"] + 1):
        room.next_round()
    round_ = room.call("status").round
    room.commit(room.nodes[0], round_, RECORDS)
    number = room.challenge(room.nodes[2], room.nodes[0], round_, RECORDS)
    for one in gone:
        room.act(one, "withdraw")
    assert room.ask("counts")[1] == 8 and room.no(room.nodes[5], "compact", 3) == "Held"
    members = room.draw(number)
    assert not set(gone) & set(members)
    assert room.no(room.nodes[5], "compact", 5) == "NotEmpty"
    for place in (3, 4):
        room.act(room.nodes[5], "compact", place)
    assert room.ask("counts")[1] == 6
    places = {room.ask("peerOf", one.address).slot for one in (*room.nodes[:3], *room.nodes[5:8])}
    assert places == set(range(1, 7))


# --- payments


def receiver(room, body: str) -> str:
    """The address of a contract that runs this code when it is paid."""
    code = bytes.fromhex(body)
    creation = bytes([0x60, len(code), 0x80, 0x60, 0x09, 0x3D, 0x39, 0x3D, 0xF3]) + code  # returns what follows
    return room._mined({"from": room.funded[0], "gas": 1_000_000, "data": creation}).contractAddress


def owed(room):
    """A peer with something to collect."""
    number = opened(room)
    assert judged(room, number, GUILTY, GUILTY, GUILTY) == FOUND_GUILTY
    return room.nodes[2]


def test_who_collects_again_while_it_is_paid_is_paid_once(room):
    one = owed(room)
    call = keccak(b"collect(address)")[:4] + encode(["address"], [one.address])
    call += bytes(64 - len(call))
    # two words into memory, CALL(gas, court, 0, 0, 36, 0, 0), and on whatever it says
    body = "7f" + call[:32].hex() + "600052" + "7f" + call[32:].hex() + "602052"
    body += "5f5f60245f5f73" + room.court.address[2:] + "5af15000"
    thief = receiver(room, body)
    room.send(one.address, "setPayout", one.address, thief)
    due, before = room.credit(one), room.web3.eth.get_balance(room.court.address)
    room.act(one, "collect", one.address)
    assert room.web3.eth.get_balance(thief) == due == before - room.web3.eth.get_balance(room.court.address)
    assert room.credit(one) == 0


def test_who_refuses_its_payment_holds_nobody_up_and_keeps_its_credit(room):
    one = owed(room)
    room.send(one.address, "setPayout", one.address, receiver(room, "5f5ffd"))
    due = room.credit(one)
    assert room.no(room.nodes[5], "collect", one.address) == "PaymentRefused"
    assert room.credit(one) == due > 0


# --- deployment


def test_terms_that_make_no_sense_and_other_coordinators_are_refused(room):
    assert room.court_refusal() is None
    for bad in (
        *({"size": 0}, {"size": 16}, {"quorum": 0}, {"quorum": 4}, {"stake": 0}, {"bond": 0}, {"voting": 0}),
        {"fee": BOND // 6 + 1},  # a committee's fees are at most half of what a loser loses
        {"claims": 4},  # the coordinator's window: a late settlement could not be challenged
        *({"delay": TERMS["claims"]}, {"delay": 2**24 + 1}, {"voting": 2**16}),
    ):
        assert room.court_refusal(**bad) == "InvalidRules", bad
    creation = {"from": room.funded[0], "gas": 8_000_000, "data": originals()["Original060"]["bytecode"]}
    for other in (room.funded[0], room.court.address, room._mined(creation).contractAddress):
        assert room.court_refusal(other) == "WrongCoordinator"


# --- all of it


@pytest.mark.parametrize("seed", range(3))
def test_no_sequence_of_calls_makes_the_court_owe_more_than_it_has(room, seed):
    """Random votes of several cases at once, one by one closed; what is not owed afterwards is what verdicts burnt."""
    rng = random.Random(seed)
    with room.undone():
        start = room.web3.eth.get_balance(room.court.address)
        numbers = [opened(room, by=2), opened(room, by=3, index=1), opened(room, by=4, index=2)]
        room.next_round()
        for number in numbers:
            room.act(room.nodes[0], "draw", number)
        burnt = 0
        for number in numbers:
            votes = rng.choice([[GUILTY, 0, GUILTY], [rng.randrange(4) for _ in range(3)]])
            for seat, (member, given_) in enumerate(zip(room.members(number), votes, strict=True)):
                if given_ and room.staked(member):
                    room.act(member, "vote", number, seat, given_)
        for _ in range(3):
            room.next_round()
        for number in rng.sample(numbers, 3):
            case, members, lost = room.ask("caseAt", number), room.members(number), room.staked(room.nodes[0])
            absent = [member for member, vote in zip(members, case.votes, strict=True) if not vote]
            fines = sum(min(FEE, room.staked(member)) for member in absent)
            state = room.resolve(number)
            taken = {FOUND_GUILTY: lost, FOUND_NOT_GUILTY: BOND}.get(state, 0)
            side = {FOUND_GUILTY: GUILTY, FOUND_NOT_GUILTY: NOT_GUILTY}.get(state)
            fee = min(FEE, taken // 6)
            paid = fee * sum(vote == side for vote in case.votes)
            burnt += fines + taken - paid - (taken - paid) // 2
        held = sum(map(room.staked, room.nodes)) + sum(map(room.credit, room.nodes))
        assert start + 3 * BOND - burnt == held
        assert all(room.ask("peerOf", one.address).held == 0 for one in room.nodes)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45, 0.55])
def test_who_has_less_than_half_of_the_stakes_loses_by_false_accusations_at_the_usual_terms(share):
    """Of a committee drawn from a hundred stakers, all of the attacker's accuse and all others acquit."""
    usual, mine = terms(10**18, 100), round(100 * share)
    gain = 0.0
    for seats in range(usual.size + 1):
        won = seats > usual.size // 2
        taken = (usual.stake - seats * usual.fee) / 2 + seats * usual.fee if won else -usual.bond
        gain += hypergeom(100, mine, usual.size).pmf(seats) * taken
    assert (gain < 0) == (share < 0.5)


@pytest.mark.parametrize(
    "bad",
    [
        *({"size": 0}, {"size": 16}, {"quorum": 0}, {"quorum": 4}, {"stake": 0}, {"bond": 0}, {"voting": 0}),
        *({"fee": BOND // 6 + 1}, {"claims": 4}, {"delay": TERMS["claims"]}, {"delay": 2**24 + 1}, {"voting": 2**16}),
    ],
    ids=str,
)
def test_the_client_knows_which_terms_the_contract_refuses(bad):
    check_terms(Terms(**TERMS), window=4)
    with pytest.raises(ValueError, match=f"a court's ({next(iter(bad))}|fee|quorum) is"):
        check_terms(Terms(**TERMS | bad), window=4)


def test_the_table_of_gas_is_right_within_two_percent_and_no_call_takes_a_block():
    table, measured = json.loads(TABLE.read_text())["court"], gas.measure_court()
    assert table.keys() == measured.keys(), "rows differ: python -m benchmarks.gas --write results/gas.json"
    for row, used in measured.items():
        assert used == pytest.approx(table[row], rel=0.02), row
    assert max(used for row, used in measured.items() if row != "deployment") < 1_000_000


def test_the_tree_s_paths_are_those_of_rfc_6962():
    """Against the recursive definition of the root: folding a path gives it."""
    for count in range(1, 20):
        records = [hashlib.sha256(b"%d" % number).digest() for number in range(count)]
        for position in range(count):
            path = commit.proof(records, position)
            assert fold(records[position], position, count, path) == commit.root(records)
        for position in (-1, count):
            with pytest.raises(ValueError, match="no record at position"):
                commit.proof(records, position)


def fold(leaf: bytes, position: int, count: int, path: list[bytes]) -> bytes:
    """By the tree's shape: which half a leaf lies in, from the top."""
    if count == 1:
        assert not path
        return hashlib.sha256(b"\0" + leaf).digest()
    left = 1
    while 2 * left < count:
        left *= 2
    *below, sibling = path
    if position < left:
        return hashlib.sha256(b"\1" + fold(leaf, position, left, below) + sibling).digest()
    return hashlib.sha256(b"\1" + sibling + fold(leaf, position - left, count - left, below)).digest()
