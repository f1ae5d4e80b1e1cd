"""The live network against peers that send what they like: what is counted, who is cut off, who does not suffer."""

import contextlib
import hashlib
import logging
import socket
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import trio
import trio.testing
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from rlswarm_jax.identity import simulated
from rlswarm_jax.swarm.frames import ANNOUNCEMENT, INLINE, Announcement
from rlswarm_jax.swarm.limits import Buckets, Door
from tests.records.samples import sealed
from tests.swarm.hostile_peer import HostilePeer, framed
from tests.swarm.live import Node, large, numbers, swarm
from tests.waits import wait_for

# --- hostile peers


def tampered(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def undecodable_key(peer: HostilePeer) -> bytes:
    return framed(rpc_pb2.RPC(publish=[peer.message(INLINE + b"x", from_id=b"", key=b"\xff\xff")]))


def hashed_id(peer: HostilePeer) -> bytes:
    return framed(rpc_pb2.RPC(publish=[peer.message(INLINE + b"x", from_id=b"\x12\x20" + bytes(32), key=b"\x08")]))


def huge_list(peer: HostilePeer) -> bytes:
    ids = rpc_pb2.ControlIHave(topicID=peer.topic, messageIDs=[b"zz%d" % i for i in range(5000)])
    return framed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(ihave=[ids])))


def many_subscriptions(peer: HostilePeer) -> bytes:
    return framed(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{i}") for i in range(1000)]))


FRAMES = {
    "no protobuf": lambda peer: b"\x05\xff\xff\xff\xff\xff",
    "no sender and an undecodable key": undecodable_key,
    "a sender that is a hash": hashed_id,
    "an oversized frame": lambda peer: b"\x80\x80\x80\x01" + bytes(1000),
    "an endless length": lambda peer: b"\xff" * 20,
    "a huge control list": huge_list,
    "many subscriptions": many_subscriptions,
    "another topic": lambda peer: framed(rpc_pb2.RPC(publish=[peer.message(INLINE + b"x", topicIDs=["other"])])),
    "an empty message": lambda peer: framed(rpc_pb2.RPC(publish=[rpc_pb2.Message()])),
    "a message beyond all bounds": lambda peer: framed(rpc_pb2.RPC(publish=[peer.message(bytes(1 << 17))])),
}

MESSAGES: dict[str, tuple[str, Callable[[HostilePeer], rpc_pb2.Message]]] = {
    "garbage": ("undecodable", lambda peer: peer.message(INLINE + b"garbage")),
    "no known kind": ("undecodable", lambda peer: peer.message(b"\x07" + sealed(peer.identity))),
    "an undecodable announcement": ("undecodable", lambda peer: peer.message(ANNOUNCEMENT + b"garbage")),
    "a forged record": ("bad signature", lambda peer: peer.message(INLINE + tampered(sealed(peer.identity)))),
    "a forged message": (
        "bad signature",
        lambda peer: peer.message(INLINE + b"x", data=INLINE + sealed(peer.identity)),
    ),
    "no signature": ("bad signature", lambda peer: peer.message(INLINE + sealed(peer.identity), signature=b"")),
    "another swarm": ("wrong swarm", lambda peer: peer.message(INLINE + sealed(peer.identity, swarm="other"))),
    "another's record": ("foreign sender", lambda peer: peer.message(INLINE + sealed(simulated(7, 1)))),
    "an announcement of nothing": (
        "unavailable",
        lambda peer: peer.message(ANNOUNCEMENT + msgspec.msgpack.encode(Announcement(bytes(32), 40_000))),
    ),
}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Node, Node]]:
    """One that is attacked, and an honest peer of it; every attacker has a key of its own."""
    honest = Node()
    victim = Node(honest.addresses[:1])
    wait_for(lambda: honest.sees(victim) and victim.sees(honest), "they are connected")
    yield victim, honest
    victim.gossip.close()
    honest.gossip.close()


def still_hears(victim: Node, honest: Node) -> bool:
    raw = honest.publish(1000 + next(numbers))
    wait_for(lambda: raw in victim.records, "an honest record arrives all the same")
    return victim.count("network/restarts") == 0


@pytest.mark.parametrize("what", FRAMES)
def test_a_frame_that_no_correct_peer_sends_ends_its_connection_and_nothing_else(pair, attack, what):
    victim, honest = pair
    before = victim.count("network/malformed")
    peer = attack(victim)
    wait_for(lambda: peer.identity.author in victim.gossip.connected(), "the attacker takes part")
    peer.send(FRAMES[what](peer))
    wait_for(lambda: victim.count("network/malformed") == before + 1, "it is counted")
    wait_for(lambda: peer.identity.author not in victim.gossip.connected(), "it is disconnected")
    assert still_hears(victim, honest)


@pytest.mark.parametrize("what", MESSAGES)
def test_a_message_that_is_not_to_be_used_is_counted_under_its_cause(pair, attack, what):
    victim, honest = pair
    cause, make = MESSAGES[what]
    before, delivered = victim.count(f"rejected/{cause}"), len(victim.records)
    peer = attack(victim)
    peer.send(framed(rpc_pb2.RPC(publish=[make(peer)])))
    wait_for(lambda: victim.count(f"rejected/{cause}") == before + 1, "it is counted")
    assert len(victim.records) == delivered
    assert still_hears(victim, honest)


def test_records_of_another_version_are_counted_by_it_and_cut_nobody_off(pair, attack):
    """As many as would end who sends what no node sends; a stranger can write any number, and has few names for it."""
    victim, honest = pair
    peer = attack(victim)
    wait_for(lambda: peer.identity.author in victim.gossip.connected(), "it takes part")
    before = victim.count("rejected/another version")
    for number in range(25):
        payload = msgspec.msgpack.encode([9 if number < 20 else 100 + number, "of a version to come"])
        raw = msgspec.msgpack.encode([payload, peer.identity.sign(payload)])
        peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + raw)])))
    wait_for(lambda: victim.count("rejected/another version") == before + 25, "they are counted")
    assert victim.count("records/of_version/9") == 20
    assert sum(n for name, n in victim.counts.items() if name.startswith("records/of_version/")) == 25
    assert len([name for name in victim.counts if name.startswith("records/of_version/")]) == 5
    assert victim.count("records/of_version/other") == 2
    theirs = sealed(peer.identity, round=5)
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + theirs)])))
    wait_for(lambda: theirs in victim.records, "what can be read is heard as before")
    assert peer.identity.author in victim.gossip.connected() and still_hears(victim, honest)


def test_odd_control_messages_are_ignored(pair, attack):
    victim, honest = pair
    peer = attack(victim)
    odd = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID=peer.topic, messageIDs=[b"abc", b"\xff", b"", b"zz"])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"abc", b"\xff", b""])],
        graft=[rpc_pb2.ControlGraft(topicID="other"), rpc_pb2.ControlGraft(topicID=peer.topic)],
        prune=[rpc_pb2.ControlPrune(topicID=peer.topic, backoff=2**63, peers=[rpc_pb2.PeerInfo(peerID=b"\x00")])],
    )
    peer.send(framed(rpc_pb2.RPC(control=odd, senderRecord=b"garbage")))
    theirs = sealed(peer.identity, round=5)
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + theirs)])))
    wait_for(lambda: theirs in victim.records, "its next, honest, frame is read")
    assert still_hears(victim, honest)


def test_a_flood_is_limited_and_its_sender_refused(start, attack):
    victim = start(max_messages_per_second=50.0)
    peer = attack(victim)
    flood = [framed(rpc_pb2.RPC(publish=[peer.message(INLINE + b"garbage")])) for _ in range(60)]
    wait_for(lambda: peer.identity.author in victim.gossip.connected(), "it is in")
    peer.send(*flood)
    wait_for(lambda: victim.count("rejected/undecodable") >= 20, "garbage is counted")
    wait_for(lambda: peer.identity.author not in victim.gossip.connected(), "it is disconnected")
    peer.close()
    with contextlib.suppress(Exception):  # it may be cut off at any point of its coming back
        HostilePeer(peer.identity, victim.addresses[0]).close()
    wait_for(lambda: victim.count("network/refused"), "and not let in again")
    (banned,) = wait_for(lambda: victim.gossip.network.banned, "it is told of whom")
    assert banned.peer_id == peer.identity.peer_id and banned.why.endswith("last: rejected/undecodable")
    assert 0 < banned.at - time.monotonic() <= 60
    wait_for(lambda: victim.gossip.network.left, "and why it left")
    assert victim.gossip.network.left[0].why == "it sent too much that is wrong"


def test_more_messages_than_anyone_has_reason_to_send_are_not_looked_at(start, attack):
    victim = start(max_messages_per_second=1000.0, max_records_per_second=5.0)
    peer = attack(victim)
    peer.send(
        *(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + sealed(peer.identity, round=i))])) for i in range(15))
    )
    wait_for(lambda: victim.count("rejected/rate limit") >= 3, "it is counted")
    assert 10 <= len(victim.records) < 15


@pytest.mark.parametrize("request_", [b"garbage", msgspec.msgpack.encode(("tests", b"short", None)), bytes(2000)])
def test_an_undecodable_request_is_counted(pair, attack, request_):
    victim, honest = pair
    before = victim.count("network/malformed")
    attack(victim).request(request_)
    wait_for(lambda: victim.count("network/malformed") == before + 1, "it is counted")
    assert still_hears(victim, honest)


async def never(stream) -> None:
    await trio.sleep_forever()


@pytest.mark.slow
def test_an_announcement_that_is_never_answered_holds_up_nobody(pair, attack):
    victim, honest = pair
    peer = attack(victim)
    peer.serve = never
    before = victim.count("rejected/unavailable")
    announced = Announcement(bytes(range(32)), 40_000)
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(ANNOUNCEMENT + msgspec.msgpack.encode(announced))])))
    assert still_hears(victim, honest)
    wait_for(lambda: victim.count("rejected/unavailable") == before + 1, "it is given up")


def test_a_relay_that_announces_what_it_does_not_serve_delays_a_record_by_a_moment(start, attack):
    a, b = swarm(start, 2)
    peer = attack(b)
    peer.serve = never
    raw = large(a.identity, 50)
    announced = ANNOUNCEMENT + msgspec.msgpack.encode(Announcement(hashlib.sha256(raw).digest(), len(raw)))
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(announced)])))
    a.gossip.publish(raw)
    wait_for(lambda: raw in b.records, "it is had from its author", 4.0)


def announcing(peer: HostilePeer, envelope_hash: bytes) -> bytes:
    announced = ANNOUNCEMENT + msgspec.msgpack.encode(Announcement(envelope_hash, 40_000))
    return framed(rpc_pb2.RPC(publish=[peer.message(announced)]))


def test_announcing_what_cannot_be_had_is_no_offence(pair, attack):
    victim, honest = pair
    before = victim.count("rejected/unavailable")
    peer = attack(victim)
    peer.send(*(announcing(peer, bytes([number]) * 32) for number in range(25)))
    wait_for(lambda: victim.count("rejected/unavailable") == before + 25, "it is counted")
    raw = sealed(peer.identity, round=5)
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + raw)])))
    wait_for(lambda: raw in victim.records, "and what can be had is still welcome")
    assert still_hears(victim, honest)


def test_silent_requests_of_some_keep_nobody_else_from_fetching(start, attack):
    a, b = swarm(start, 2)
    for _ in range(3):
        attack(a).hold_requests(40)
    raw = large(a.identity, 50)
    a.gossip.publish(raw)
    wait_for(lambda: raw in b.records, "it is fetched meanwhile", 4.0)
    assert not b.count("rejected/unavailable")


def test_a_peer_that_does_not_read_is_cut_off(pair, attack, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.swarm.pubsub.WRITE_TIMEOUT", 1.0)
    victim, honest = pair
    peer = attack(victim, deaf=True)
    said = [peer.message(INLINE + large(peer.identity, 50, round_)) for round_ in range(20)]
    peer.send(*(framed(rpc_pb2.RPC(publish=[message])) for message in said))
    wait_for(lambda: said[-1].data[1:] in victim.records, "it says much")
    wanted = rpc_pb2.ControlIWant(messageIDs=[message.from_id + message.seqno for message in said])
    again = framed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(iwant=[wanted])))
    wait_for(lambda: peer.send(again) or victim.count("network/dropped/slow peer"), "it is waited for no longer")
    assert victim.count("network/dropped/reply outstanding")  # only one waits at a time
    wait_for(lambda: peer.identity.author not in victim.gossip.connected(), "it is disconnected")
    assert still_hears(victim, honest)


def test_a_peer_that_sends_more_than_its_window_is_cut_off(pair, attack):
    victim, honest = pair
    before = victim.count("network/malformed")
    peer = attack(victim)
    wait_for(lambda: peer.identity.author in victim.gossip.connected(), "the attacker takes part")
    peer.hold_requests(5, bytes(4 << 20))  # the fifth is not looked at before the first is given up
    wait_for(lambda: peer.identity.author not in victim.gossip.connected(), "it is disconnected", 1.5)
    assert victim.count("network/malformed") > before
    assert still_hears(victim, honest)


def test_of_one_peers_gossip_streams_the_last_two_are_read(pair, attack):
    victim, honest = pair
    before = victim.count("network/refused")
    peer = attack(victim)
    peer.open_streams(5, framed(rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(1000))]))[:-1])
    wait_for(lambda: victim.count("network/refused") == before + 4, "the others are not")
    peer.open_streams(1)
    raw = sealed(peer.identity, round=6)
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + raw)])))
    wait_for(lambda: raw in victim.records, "the newest is read")
    assert still_hears(victim, honest)


def test_copies_of_a_message_are_not_free(start, attack):
    victim = start(max_messages_per_second=10.0)  # and so 40 frames and messages a second, 80 at once
    peer = attack(victim)
    copy = peer.message(INLINE + sealed(peer.identity))
    begun = time.monotonic()
    peer.send(framed(rpc_pb2.RPC(publish=[copy] * 2000)))
    wait_for(lambda: victim.count("network/messages_in") > 80, "they are looked at one by one")
    assert victim.count("network/messages_in") <= 81 + 40 * (time.monotonic() - begun)
    assert len(victim.records) == 1


def test_one_that_has_pruned_us_is_still_told_of_messages(pair, attack):
    victim, honest = pair
    peer = attack(victim)
    prune = rpc_pb2.ControlPrune(topicID=peer.topic, backoff=3600)
    theirs = sealed(peer.identity, round=5)
    peer.send(framed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=[prune]))))
    peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + theirs)])))
    wait_for(lambda: theirs in victim.records, "so the prune was read before")
    raw = honest.publish(1000 + next(numbers))
    author = ID.from_base58(honest.identity.peer_id).to_bytes()
    wait_for(lambda: any(message_id.startswith(author) for message_id in peer.told), "it is told of the message")
    assert raw in victim.records and INLINE + raw not in [message.data for message in peer.heard]


def test_identities_are_free_and_lines_in_the_log_are_not(pair, caplog):
    victim, honest = pair
    before = victim.count("rejected/undecodable")
    liars = [ID(b"%08d" % number) for number in range(50)]

    def offend(session) -> None:
        for liar in liars * 20:
            session.offend(liar, "rejected/undecodable")

    victim.gossip._in_trio(offend)
    wait_for(lambda: victim.count("rejected/undecodable") == before + 1000, "all are counted")
    assert still_hears(victim, honest)
    said = [line for line in caplog.records if line.levelno >= logging.WARNING and "refused" in line.getMessage()]
    assert len(said) <= 3


# --- what it costs


@pytest.fixture
def sockets(request) -> Iterator[Callable[[Node, int], None]]:
    """Opens connections that say nothing."""
    opened: list[socket.socket] = []

    def open_some(victim: Node, number: int) -> None:
        for _ in range(number):
            opened.append(socket.create_connection(("127.0.0.1", victim.gossip.port)))

    yield open_some
    for one in opened:
        one.close()


def test_connections_that_say_nothing_keep_nobody_out(start, sockets):
    """As many as there may be, and each could be silent for ten seconds."""
    victim = start(max_connections=8)
    sockets(victim, 8)
    honest = start(victim.addresses[:1])
    wait_for(lambda: victim.sees(honest), "an honest peer comes in", 8.0)
    assert victim.count("network/half open") >= 5


def test_who_opens_ever_more_connections_is_turned_away_at_the_door(start, sockets):
    victim = start()
    sockets(victim, 90)  # an address may open four a second, and 64 at once
    wait_for(lambda: victim.count("network/refused") >= 10, "some are turned away")
    honest = start(victim.addresses[:1])
    wait_for(lambda: victim.sees(honest), "an honest peer comes in", 8.0)


def test_addresses_that_nobody_can_read_end_no_greeting(start, attack):
    """A multiaddr of bytes that are no text can be made, and raises when it is written down for others."""
    victim = start()
    unreadable = b"\x36\x05\xff\xfe\xfd\xfc\xfb\x06\x0f\xa1"
    with pytest.raises(ValueError):
        str(Multiaddr(unreadable))
    peer = attack(victim)
    told = Identify(listen_addrs=[unreadable] * 4 + [b"\x04\x7f\0\0\1\x06\x0f" + bytes([n]) for n in range(200)])
    peer.push_identity(told.SerializeToString())
    store, own = victim.gossip._session._host.get_peerstore(), ID.from_base58(peer.identity.peer_id)
    wait_for(lambda: own in store.peer_ids() and len(store.addrs(own)) > 0, "some are noted")
    raw = victim.publish(7)
    honest = start(victim.addresses[:1])
    wait_for(lambda: raw in honest.records, "a greeting is answered", 10.0)
    assert not honest.count("network/unanswered") and len(store.addrs(own)) == 4  # of the first eight


def test_what_one_peer_sends_is_read_no_faster_than_it_may(start, attack, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.swarm.pubsub._BYTES", 20_000)  # and so 160,000 at once
    victim = start(max_messages_per_second=1000.0)
    peer, begun = attack(victim), time.monotonic()
    frame = framed(rpc_pb2.RPC(publish=[peer.message(INLINE + bytes(16_000))]))
    peer.send(*[frame] * 14)  # what is read no more waits in the stream's window
    wait_for(lambda: victim.count("network/bytes_in") > 150_000, "it is read")
    time.sleep(1.0)
    assert victim.count("network/bytes_in") <= 180_000 + 20_000 * (time.monotonic() - begun)


def test_what_strangers_send_is_bounded_in_sum_and_those_of_standing_are_none(start, attack, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.swarm.pubsub._STRANGERS_BYTES", 10_000)  # and so 80,000 at once
    victim = start()
    strangers, friend = [attack(victim) for _ in range(4)], attack(victim)
    victim.gossip.trusts = {friend.identity.author}.__contains__
    begun = time.monotonic()
    for peer in strangers:
        peer.send(*[framed(rpc_pb2.RPC(publish=[peer.message(INLINE + bytes(10_000))]))] * 6)
    wait_for(lambda: victim.count("network/bytes_in") > 50_000, "they are read")
    raw = sealed(friend.identity, round=8)
    friend.send(framed(rpc_pb2.RPC(publish=[friend.message(INLINE + raw)])))
    wait_for(lambda: raw in victim.records, "the friend is heard at once", 5.0)
    assert victim.count("network/bytes_in") <= 80_000 + 5 * 11_000 + 10_000 * (time.monotonic() - begun)


def test_however_short_what_strangers_send_is_they_are_heard_so_many_times_a_second(start, attack, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.swarm.pubsub._STRANGERS_BYTES", 1 << 14)  # a message each second, and four at once
    victim = start()
    stranger, begun = attack(victim), time.monotonic()
    for number in range(12):
        raw = sealed(stranger.identity, round=number)
        stranger.send(framed(rpc_pb2.RPC(publish=[stranger.message(INLINE + raw)])))
    wait_for(lambda: victim.count("network/messages_in") >= 3, "some are read")
    time.sleep(1.0)
    assert victim.count("network/messages_in") <= 5 + time.monotonic() - begun


def test_buckets_give_what_is_there_and_a_burst_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlswarm_jax.swarm.limits.time.monotonic", lambda: now[0])
    buckets = Buckets(10.0, burst=50.0)
    assert [buckets.take(b"a", cost) for cost in (30, 30, 20, 1)] == [True, False, True, False]
    now[0] = 3.0
    assert [buckets.take(b"a", 30), buckets.take(b"a", 1), buckets.take(b"b", 1000)] == [True, False, True]


def test_a_door_lets_in_so_many_a_second_of_one_address_and_in_all(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlswarm_jax.swarm.limits.time.monotonic", lambda: now[0])
    door = Door(of_address=1.0, in_all=4.0)
    assert sum(door.opens("a") for _ in range(100)) == 16
    assert sum(door.opens(str(n)) for n in range(100)) == 16  # of 32 in all
    now[0] = 2.0
    assert sum(door.opens("a") for _ in range(100)) == 2 and sum(door.opens(f"x{n}") for n in range(100)) == 6


def test_of_those_who_are_half_in_the_oldest_makes_room():
    door, ended = Door(half_open=2), []

    async def come(number: int) -> None:
        with door.entering():
            await trio.sleep(0.01 if number == 4 else 3600)
        ended.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(come, number)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.05)
            assert ended == [0, 1, 2, 4]
            nursery.cancel_scope.cancel()

    trio.run(main)
