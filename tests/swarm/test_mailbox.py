"""Whom a live node waits for."""

import threading

from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.swarm.mailbox import Mailbox
from tests.records.samples import ALICE, BOB, CAROL, ME, sealed


def make(*named, stages=("answer",), **fields) -> Mailbox:
    return Mailbox(Inbox("tests", ME.author, 2, stages), [i.author for i in named], **fields)


def send(box: Mailbox, who, round_: int = 3, **fields) -> None:
    box.on_record(open_envelope(sealed(who, round=round_, **fields)))


def peers(*identities) -> frozenset[bytes]:
    return frozenset(i.author for i in identities)


def test_named_peers_are_waited_for_before_they_speak_and_connected_ones_once_they_have():
    box = make(ALICE, ME)
    assert box.missing(3, "answer") == {ALICE.author}
    send(box, BOB, 3)
    assert box.missing(4, "answer") == {ALICE.author}  # heard through others: it comes when it comes
    box.on_peers(peers(BOB))
    assert box.missing(4, "answer") == {ALICE.author}
    send(box, BOB, 4)
    assert box.missing(5, "answer") == {ALICE.author, BOB.author}
    send(box, ALICE, 5)
    assert box.missing(5, "answer") == {BOB.author}


def test_a_newcomer_is_waited_for_even_if_it_is_late_at_first():
    """Else one that is a little slower than the swarm would never get into step with it."""
    box = make()
    box.on_peers(peers(ALICE))
    box.round = 5
    send(box, ALICE, 4)
    assert box.missing(5, "answer") == {ALICE.author}


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
    monkeypatch.setattr("rlswarm_jax.swarm.mailbox.MAX_STRIKES", 2)
    box = make(ALICE, BOB, CAROL)
    for identity in (ALICE, BOB, CAROL):
        box.give_up({identity.author})
    assert len(box._strikes) == 2


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
