"""Whom a live node waits for."""

import threading

import msgspec
import pytest

from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.records.envelope import open_envelope, seal
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.rotations import announce
from rlswarm_jax.records.schema import ANNOUNCING, STAGES, Announcing
from rlswarm_jax.swarm.mailbox import Mailbox
from rlswarm_jax.swarm.waiting import read_by
from tests.records.samples import ALICE, BOB, CAROL, ME, record, sealed

IDENTITIES = [simulated(41, index) for index in range(30)]


def make(*named, stages=("answer",), **fields) -> Mailbox:
    return Mailbox(Inbox("tests", ME.author, 2, stages), [i.author for i in named], **fields)


def send(box: Mailbox, who, round_: int = 3, **fields) -> None:
    box.on_record(open_envelope(sealed(who, round=round_, **fields)))


def peers(*identities) -> frozenset[bytes]:
    return frozenset(i.author for i in identities)


def earn(box: Mailbox, *who) -> None:
    """Speaks in as many rounds as it takes to be waited for."""
    for _ in range(3):
        box.round += 1
        for one in who:
            send(box, one, box.round)


def test_named_peers_are_waited_for_before_they_speak_and_connected_ones_once_they_have_earned_it():
    box = make(ALICE, ME)
    assert box.missing(3, "answer") == {ALICE.author}
    earn(box, BOB)
    assert box.missing(4, "answer") == {ALICE.author}  # heard through others: it comes when it comes
    box.on_peers(peers(BOB))
    for box.round in (4, 5):
        send(box, BOB, box.round)
        assert box.missing(6, "answer") == {ALICE.author}
    box.round = 6
    send(box, BOB, 6)
    assert box.missing(7, "answer") == {ALICE.author, BOB.author}
    send(box, ALICE, 7)
    assert box.missing(7, "answer") == {BOB.author}


def test_a_bootnode_is_waited_for_once_it_has_spoken():
    box = make(bootnodes=[BOB.author])
    box.on_peers(peers(BOB))
    assert box.missing(3, "answer") == set()
    send(box, BOB, 3)
    assert box.missing(4, "answer") == {BOB.author}


def test_a_newcomer_is_waited_for_even_if_it_is_a_round_late_at_first():
    """Else one that is a little slower than the swarm would never get into step with it."""
    box = make()
    box.on_peers(peers(ALICE))
    for box.round in (5, 6, 7):
        assert box.missing(box.round, "answer") == set()
        send(box, ALICE, box.round - 1)
    assert box.missing(7, "answer") == {ALICE.author}


def test_what_one_re_sends_when_it_comes_back_makes_nobody_wait_for_it():
    box = make(ALICE)
    box.on_peers(peers(ALICE))
    box.on_peers(peers())
    box.round = 9
    box.on_peers(peers(ALICE))
    send(box, ALICE, 7)
    assert box.missing(9, "answer") == set()
    send(box, ALICE, 9)
    assert box.missing(10, "answer") == {ALICE.author}


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("rlswarm_jax.swarm.mailbox.time", made)
    return made


def play(box: Mailbox, clock: Clock, speaks: dict, deadline: float = 60.0, work: float = 1.0) -> float:
    """One stage of the next round, as a node plays it; how long it took. speaks: who, when after its begin."""
    box.round += 1
    began, spoke = clock.now, clock.now + work
    mail = sorted((at, who.author, sealed(who, round=box.round)) for who, at in speaks.items())
    clock.now = spoke
    while True:
        while mail and began + mail[0][0] <= clock.now:
            box.on_record(open_envelope(mail.pop(0)[2]))
        end = box.stage_end(box.round, "answer", began, spoke, deadline)
        if not box.missing(box.round, "answer") or clock.now >= end:
            break
        clock.now = min([end, *(began + at for at, *_ in mail)])
    box.close_stage(box.round, "answer", began, spoke, deadline)
    took = clock.now - began
    for _, _, raw in mail:  # what was too late
        box.on_record(open_envelope(raw))
    return took


@pytest.mark.parametrize("late", [2.9, 3.0, 10.0, 30.0, 59.8])
@pytest.mark.parametrize("honest", [1, 2, 3, 4])
def test_one_that_speaks_late_in_each_stage_costs_little(clock, honest, late):
    """Undisturbed a stage takes 1.1 s; held to the deadline it would be `late`."""
    others, slow = IDENTITIES[:honest], IDENTITIES[honest]
    box = make(*others, slow)
    play(box, clock, dict.fromkeys([*others, slow], 1.1))
    times = [play(box, clock, dict.fromkeys(others, 1.1) | {slow: late}) for _ in range(60)]
    assert sum(times) / len(times) < 1.5 * 1.1 and max(times) < 3.5


def test_one_peer_alone_does_not_hold_up_the_only_other_one(clock):
    box = make(ALICE)
    play(box, clock, {ALICE: 1.1})
    assert sum(play(box, clock, {ALICE: 59.8}) for _ in range(30)) < 1.6 * 30


def test_a_named_peer_that_never_spoke_is_waited_for_until_the_deadline_once(clock):
    """It is still to start: those of a local swarm begin together."""
    box = make(ALICE, BOB, CAROL)
    assert [round(play(box, clock, {ALICE: 1.1, BOB: 1.1}), 3) for _ in range(3)] == [61.0, 1.1, 1.1]


def test_keys_that_speak_and_fall_silent_hold_no_stage_to_the_deadline(clock):
    """New ones all the time, each as long as it takes to be waited for, and more of them than honest peers."""
    box = make()
    box.on_peers(peers(*IDENTITIES[:3]))
    for _ in range(12):
        play(box, clock, dict.fromkeys(IDENTITIES[:3], 1.1))
    times = []
    for batch in range(3, 27, 6):
        strangers = IDENTITIES[batch : batch + 6]
        box.on_peers(peers(*IDENTITIES[:3], *strangers))
        speaks = dict.fromkeys(IDENTITIES[:3], 1.1)
        times += [play(box, clock, speaks | dict.fromkeys(strangers, 1.05)) for _ in range(3)]
        times += [play(box, clock, speaks) for _ in range(3)]
    assert max(times) < 3.5 and sum(times) / len(times) < 1.6


def test_a_key_that_claims_a_far_round_leads_nobody_who_has_company(clock):
    box = make()
    box.on_peers(peers(*IDENTITIES[:2]))
    for _ in range(4):
        play(box, clock, dict.fromkeys(IDENTITIES[:2], 1.1))
    strangers = IDENTITIES[2:12]
    box.on_peers(peers(*IDENTITIES[:12]))
    for stranger in strangers:
        for far in range(1000, 1010):
            send(box, stranger, far)
    assert box.voters() == peers(*IDENTITIES[:2])
    assert set(box.latest_rounds().values()) == {4}


def test_a_node_that_was_told_of_nobody_believes_strangers_at_its_start_only(clock):
    box = make()
    for _ in range(4):
        play(box, clock, {})
    box.on_peers(peers(ALICE))
    send(box, ALICE, 1000)
    assert box.voters() == frozenset() and box.latest_rounds() == {}
    for far in (1001, 1002):
        box.round += 1
        send(box, ALICE, far)
    assert box.voters() == peers(ALICE)  # it is really there


def test_with_a_chain_only_members_and_the_named_are_peers(clock):
    box = make(ALICE)
    box.on_peers(peers(ALICE, BOB, CAROL))
    box.members = peers(BOB)
    box.round = 3
    for who in (ALICE, BOB, CAROL):
        send(box, who, 3)
    taken = [signed.record.author for signed in box.take(3, "answer")]
    assert set(taken) == peers(ALICE, BOB)
    box.members = peers(BOB, CAROL)  # it has registered: what it said is not lost
    assert [signed.record.author for signed in box.take(3, "answer")] == [CAROL.author]
    earn(box, BOB, CAROL)
    box.members = peers(BOB)
    assert box.missing(7, "answer") == peers(ALICE, BOB)
    assert box.voters() == peers(ALICE) and box.behind(9) == peers(ALICE, BOB)
    box.on_peers(peers(BOB, CAROL))
    assert box.voters() == peers(BOB)
    box.members = None
    assert box.voters() == peers(BOB, CAROL)


def test_who_lets_n_deadlines_pass_must_speak_in_time_n_times_before_it_is_waited_for_again():
    box, round_ = make(ALICE), 0
    for strikes in (1, 2, 3):
        box.give_up({ALICE.author})
        assert box.missing(round_, "answer") == set()
        for spoken in range(strikes):
            assert box.missing(round_, "answer") == set(), (strikes, spoken)
            round_ += 1
            box.round = round_
            send(box, ALICE, round_ - 1)  # late: does not count
            assert box.missing(round_ + 1, "answer") == set() or spoken
            send(box, ALICE, round_)
        assert box.missing(round_ + 1, "answer") == {ALICE.author}
    assert box.take_counts()["peers/given_up"] == 3


def test_all_that_is_said_in_a_round_counts_as_once():
    box = make(ALICE, stages=STAGES)
    for _ in range(2):
        box.give_up({ALICE.author})
    for box.round in (1, 2):
        assert box.missing(box.round, "answer") == set()
        for stage in STAGES:
            send(box, ALICE, box.round, stage=stage)
    assert box.missing(3, "answer") == {ALICE.author}


def test_strikes_are_remembered_of_a_bounded_number_of_peers(monkeypatch):
    monkeypatch.setattr("rlswarm_jax.swarm.waiting.MAX_STANDINGS", 2)
    box = make(ALICE, BOB, CAROL)
    for identity in (ALICE, BOB, CAROL):
        box.give_up({identity.author})
    assert len(box._company.standings) == 2


def test_a_peer_that_disconnects_is_not_waited_for():
    box = make(ALICE, BOB)
    box.on_peers(peers(ALICE, BOB))
    box.on_peers(peers(BOB))
    assert box.missing(3, "answer") == {BOB.author}
    box.on_peers(peers(ALICE, BOB))  # back, but it has not spoken
    assert box.missing(3, "answer") == {BOB.author}
    send(box, ALICE, 3)
    assert box.missing(4, "answer") == {ALICE.author, BOB.author}


def test_a_peer_that_is_in_a_later_round_is_not_waited_for():
    box = make(ALICE)
    send(box, ALICE, 7)
    assert box.missing(5, "answer") == set() and box.missing(8, "answer") == {ALICE.author}


def test_a_peer_that_is_connected_but_never_spoke_holds_up_nobody():
    box = make()
    box.on_peers(peers(CAROL))
    assert box.missing(0, "answer") == set() and box.behind(0) == set() and box.latest_rounds() == {}


def test_behind_are_the_named_and_those_who_are_still_here():
    box = make(ALICE)
    box.on_peers(peers(BOB, CAROL))
    send(box, BOB, 3)
    send(box, CAROL, 4)
    assert box.behind(4) == {ALICE.author, BOB.author}
    box.on_peers(peers(CAROL))
    assert box.behind(4) == {ALICE.author}
    send(box, ALICE, 4)
    assert box.behind(4) == set()


def test_a_record_that_is_refused_makes_nobody_a_peer():
    box = make()
    box.round = 9
    send(box, ALICE, 3)
    send(box, BOB, 9, swarm="other")
    assert box.missing(9, "answer") == set()
    assert box.inbox.counts == {"out of window": 1, "wrong swarm": 1}


def test_a_record_that_is_sent_again_is_no_offence():
    box = make()
    send(box, ALICE)
    send(box, ALICE)
    assert box.inbox.counts == {"received": 1} and box.take_counts() == {"records/again": 1}
    assert box.take_counts() == {}


def test_voters_are_the_connected_ones_of_those_it_was_told_of_else_who_has_spoken():
    box = make(ALICE, bootnodes=[BOB.author])
    send(box, CAROL, 9)
    assert box.voters() == set()
    box.on_peers(peers(CAROL))
    assert box.voters() == {CAROL.author} and box.latest_rounds() == {CAROL.author: 9}
    box.on_peers(peers(ALICE, CAROL))
    assert box.voters() == {ALICE.author} and box.latest_rounds() == {}
    send(box, BOB, 4)
    box.on_peers(peers(ALICE, BOB, CAROL))
    assert box.voters() == {ALICE.author, BOB.author} and box.latest_rounds() == {BOB.author: 4}


def test_met_is_when_the_named_are_there_or_anyone_where_anyone_is_expected():
    assert make().met and not make(ALICE).met and not make(bootnodes=[BOB.author]).met
    box = make(bootnodes=[BOB.author])
    box.on_peers(peers(CAROL))
    assert box.met
    box = make(ALICE, BOB)
    box.on_peers(peers(ALICE))
    assert not box.met
    box.on_peers(peers(ALICE, BOB))
    assert box.met


def test_the_round_s_thread_is_woken_by_what_arrives():
    box, waiting, woken = make(ALICE), threading.Event(), threading.Event()

    def wait() -> None:
        with box.changed:
            while box.missing(3, "answer"):
                waiting.set()
                box.changed.wait(30)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    assert waiting.wait(10)
    send(box, ALICE, 3)  # takes the lock: by then the other thread has let it go, and waits
    assert woken.wait(10)


# --- a part of the swarm is read


def test_with_reads_only_those_drawn_are_waited_for_and_handed_over_whoever_speaks_first():
    """The rule is that of a simulated node (`waiting.read_by`); others' records stay, and say where they are."""
    others = IDENTITIES[:9]
    box = make(*others, reads=4)
    everyone = [i.author for i in others]
    for round_ in (3, 4):
        box.round = round_
        box.draw(round_, b"beacon%d" % round_)
        drawn = read_by(ME.author, everyone, 4, b"beacon%d" % round_, round_)
        assert len(drawn) == 4 and box.missing(round_, "answer") == drawn
        for one in others:
            send(box, one, round_)
        assert box.missing(round_, "answer") == set()
        assert {signed.record.author for signed in box.take(round_, "answer")} == drawn
        assert box.inbox.latest_rounds() == dict.fromkeys(everyone, round_)
        held = {author for author, of, _ in box.inbox.records if of == round_}
        assert held == drawn  # of the others it is known that they spoke, and no more
    assert box.inbox.speakers() == set(everyone)


def test_what_somebody_said_late_in_a_round_in_which_it_was_drawn_is_handed_over_later():
    others = IDENTITIES[:9]
    box = make(*others, reads=4)
    box.draw(3, b"b")
    late = sorted(box.missing(3, "answer"))[0]
    (who,) = (i for i in others if i.author == late)
    for one in others:
        if one is not who:
            send(box, one, 3)
    box.close_stage(3, "answer", 0.0, 0.0, 60.0)
    assert late not in {signed.record.author for signed in box.take(3, "answer")}
    box.round = 4
    box.draw(4, b"b")
    send(box, who, 3)
    assert {(s.record.author, s.record.round) for s in box.take(4, "answer")} == {(late, 3)}


def test_strangers_are_read_where_there_is_room_and_crowd_out_nobody():
    box = make(*IDENTITIES[:2], reads=4)
    box.draw(3, b"b")
    for one in IDENTITIES[:12]:
        send(box, one, 3)
    authors = {signed.record.author for signed in box.take(3, "answer")}
    assert len(authors) == 4 and peers(*IDENTITIES[:2]) < authors
    full = make(*IDENTITIES[:4], reads=4)
    full.draw(3, b"b")
    for one in IDENTITIES[:12]:
        send(full, one, 3)
    assert {signed.record.author for signed in full.take(3, "answer")} == peers(*IDENTITIES[:4])


def rotated(old, new, round_: int):
    """A record under a new key that says whose place it takes."""
    fields = msgspec.structs.asdict(record(new, round=round_)) | {"version": ANNOUNCING}
    return open_envelope(seal(Announcing(**fields, rotations=[announce(old, new.author, "tests", round_)]), new))


def test_who_has_a_new_key_is_waited_for_at_once_and_the_old_one_no_more(caplog):
    box = make()
    box.on_peers(peers(BOB))
    earn(box, BOB)
    box.round += 1
    assert box.missing(box.round, "answer") == {BOB.author}
    box.on_peers(peers(CAROL))
    with caplog.at_level("INFO", "rlswarm_jax.network"):
        for _ in range(2):
            box.on_record(rotated(BOB, CAROL, box.round))
            box.round += 1
    box.on_peers(peers(BOB, CAROL))
    assert box.missing(box.round, "answer") == {CAROL.author}
    assert caplog.text.count(f"{friendly_name(BOB.author)} speaks as {friendly_name(CAROL.author)}") == 1
    send(box, BOB, box.round)
    assert box.inbox.counts["retired key"] == 1


def test_who_was_late_is_under_a_new_key_and_a_standing_goes_to_one_alone():
    box = make()
    box.on_peers(peers(BOB, CAROL, ALICE))
    earn(box, BOB)
    box.give_up([BOB.author])
    for heir in (CAROL, ALICE):
        box.on_record(rotated(BOB, heir, box.round))
    assert box._company.is_late(CAROL.author) and not box._company.is_late(ALICE.author)
    assert not box._company.earned(ALICE.author)


def test_a_node_whose_own_key_was_given_up_by_a_thief_says_so_once(caplog):
    box = make()
    for round_ in (1, 2):
        box.on_record(rotated(ME, BOB, round_))
    assert caplog.text.count("this node's key was given up") == 1
    assert box.take_counts()["peers/own_key_given_up"] == 2
