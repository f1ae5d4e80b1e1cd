"""Whom a live node waits for."""

import threading

from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.swarm.mailbox import Mailbox
from tests.records.samples import ALICE, BOB, CAROL, ME, sealed


def make(*named, **fields) -> Mailbox:
    return Mailbox(Inbox("tests", ME.author, 2, ("answer",)), [i.author for i in named], **fields)


def send(box: Mailbox, who, round_: int = 3, **fields) -> None:
    box.on_record(open_envelope(sealed(who, round=round_, **fields)))


def peers(*identities) -> frozenset[bytes]:
    return frozenset(i.author for i in identities)


def test_named_peers_are_waited_for_before_they_speak_and_others_once_they_have():
    box = make(ALICE, ME)
    assert box.missing(3, "answer") == {ALICE.author}
    send(box, BOB, 3)
    assert box.missing(3, "answer") == {ALICE.author}
    assert box.missing(4, "answer") == {ALICE.author, BOB.author}
    send(box, ALICE, 3)
    assert box.missing(3, "answer") == set()


def test_a_peer_that_let_a_deadline_pass_is_not_waited_for_until_it_speaks_again():
    box = make(ALICE)
    box.give_up({ALICE.author})
    assert box.missing(3, "answer") == set() and box.take_counts() == {"peers/given_up": 1}
    send(box, ALICE, 4)
    assert box.missing(5, "answer") == {ALICE.author}


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


def test_the_quorum_is_half_of_the_known_nodes_but_never_this_node_alone():
    for named, quorum in [((), 1), ((ALICE,), 1), ((ALICE, BOB), 1), ((ALICE, BOB, CAROL), 2)]:
        assert make(*named).quorum == quorum


def test_met_is_when_the_named_are_there_or_anyone_where_anyone_is_expected():
    assert make().met and not make(ALICE).met and not make(expects_peers=True).met
    box = make(expects_peers=True)
    box.on_peers(peers(CAROL))
    assert box.met
    box = make(ALICE, BOB)
    box.on_peers(peers(ALICE))
    assert not box.met
    box.on_peers(peers(ALICE, BOB))
    assert box.met


def test_the_round_s_thread_is_woken_by_what_arrives():
    box, woken = make(ALICE), threading.Event()

    def wait() -> None:
        with box.changed:
            while box.missing(3, "answer"):
                box.changed.wait(30)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    send(box, ALICE, 3)
    assert woken.wait(10)
