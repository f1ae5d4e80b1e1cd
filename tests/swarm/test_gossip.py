"""The live network, over real connections on loopback: what arrives, what does not, and who survives it."""

import collections
import contextlib
import hashlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.swarm.exchange import MAX_ADDRESSES, Request, Store, parse_address
from rlswarm_jax.swarm.frames import ANNOUNCEMENT, INLINE, Announcement, MalformedError, take_frame
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.limits import Buckets, Offences
from rlswarm_jax.swarm.transport import NetworkError, Transport
from tests.records.samples import completion, group, record, sealed
from tests.swarm.hostile_peer import HostilePeer, framed

numbers = itertools.count()


def wait_for(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.01)


def stranger() -> Identity:
    """A key that no other test has used."""
    return simulated(11, next(numbers))


class Node:
    """A Gossip, with what it delivered and all it counted."""

    def __init__(self, bootnodes=(), identity=None, **config):
        self.identity = identity or stranger()
        self.author = self.identity.author
        self.records: list[bytes] = []
        self.counts: collections.Counter[str] = collections.Counter()
        settings = {"swarm": "tests", "bootnodes": tuple(bootnodes)} | config
        self.peers: list[frozenset[bytes]] = []  # as they came and went
        config = GossipConfig(**settings)
        self.gossip = Gossip(self.identity, config, lambda signed: self.records.append(signed.raw), self.peers.append)
        self.addresses = self.gossip.start()

    def count(self, name: str) -> int:
        self.counts.update(self.gossip.take_counts())
        return self.counts[name]

    def record(self, round_: int, **fields) -> bytes:
        return sealed(self.identity, round=round_, **fields)

    def publish(self, round_: int) -> bytes:
        raw = self.record(round_)
        self.gossip.publish(raw)
        return raw

    def sees(self, *others: "Node") -> bool:
        return {other.author for other in others} <= self.gossip.connected()


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start_one(*args, **kwargs) -> Node:
        nodes.append(Node(*args, **kwargs))
        return nodes[-1]

    yield start_one
    for node in nodes:
        node.gossip.close()


@pytest.fixture
def attack() -> Iterator[Callable[..., HostilePeer]]:
    peers: list[HostilePeer] = []

    def attack_one(victim: Node, **kwargs) -> HostilePeer:
        peers.append(HostilePeer(stranger(), victim.addresses[0], **kwargs))
        return peers[-1]

    yield attack_one
    for peer in peers:
        peer.close()


def swarm(start, number: int, **config) -> list[Node]:
    """Nodes that know the first of them only, once all are connected with all."""
    nodes = [start(**config)]
    nodes += [start(nodes[0].addresses[:1], **config) for _ in range(number - 1)]
    for node in nodes:
        wait_for(lambda node=node: node.sees(*(n for n in nodes if n is not node)), "all are connected")
    return nodes


def large(identity: Identity, kilobytes: int, round_: int = 1) -> bytes:
    texts = [completion(text="x" * 25_000) for _ in range(kilobytes // 25)]
    return seal(record(identity, groups=[group(texts)], round=round_), identity)


# --- between honest nodes


def test_nodes_that_know_one_bootnode_find_each_other_and_every_record_arrives_once_and_unchanged(start):
    nodes = swarm(start, 4)
    sent = {node.author: [node.publish(round_) for round_ in range(3)] for node in nodes}
    for node in nodes:
        expected = sorted(raw for author, records in sent.items() if author != node.author for raw in records)
        wait_for(lambda node=node: len(node.records) >= 9, "all records arrive")
        assert sorted(node.records) == expected
        assert node.peers[-1] == node.gossip.connected() == {n.author for n in nodes} - {node.author}
    last = nodes[0].publish(99)
    for node in nodes[1:]:
        wait_for(lambda node=node: last in node.records, "another record arrives")
        assert len(node.records) == 10  # no second copy came in between


def test_an_address_names_the_key_and_the_port_that_was_given(start):
    node = start()
    assert node.addresses[0].endswith(f"/p2p/{node.identity.peer_id}")
    assert "/tcp/0/" not in node.addresses[0]
    assert parse_address(node.addresses[0]) is not None


def test_a_burst_arrives_whole(start):
    a, b = swarm(start, 2)
    sent = [a.publish(round_) for round_ in range(40)]
    assert a.gossip.flush(30)
    wait_for(lambda: len(b.records) == 40, "all of the burst arrive")
    assert set(b.records) == set(sent)


def test_a_large_record_is_announced_and_fetched(start, attack):
    a, b = swarm(start, 2)
    spy = attack(a)
    wait_for(lambda: spy.identity.author in a.gossip.connected(), "the spy takes part")
    raw = large(a.identity, 200)
    a.gossip.publish(raw)
    wait_for(lambda: raw in b.records, "the large record arrives")
    small = a.publish(2)
    wait_for(lambda: any(message.data == INLINE + small for message in spy.heard), "the spy hears the small one")
    assert max(len(message.data) for message in spy.heard) <= 16_384


def test_a_node_restarted_with_the_same_key_and_port_delivers_at_once(start):
    a, b = swarm(start, 2)
    port = a.gossip.port
    first = [a.publish(round_) for round_ in range(3)]
    wait_for(lambda: len(b.records) == 3, "the first records arrive")
    a.gossip.close()
    wait_for(lambda: not b.gossip.connected(), "it is gone")
    again = start(b.addresses[:1], identity=a.identity, port=port)
    late = start(b.addresses[:1])
    wait_for(lambda: again.sees(b, late) and b.sees(again), "it is back")
    for raw in first:  # what its journal holds is sent again: to whoever has not got it
        again.gossip.publish(raw)
    new = again.publish(4)
    wait_for(lambda: new in b.records and set(late.records) == {*first, new}, "everything arrives")
    assert len(b.records) == 4


def test_who_comes_late_is_greeted_with_the_latest_record(start):
    a = start()
    a.publish(1)
    latest = a.publish(2)
    assert a.gossip.flush(10)
    late = start(a.addresses[:1])
    wait_for(lambda: latest in late.records, "the latest record comes with the greeting")


def test_asking_repairs_a_loss(start):
    a, b = swarm(start, 2)
    wait_for(lambda: a.count("network/bytes_out") and b.count("network/bytes_out"), "they have greeted each other")
    a.gossip.latest = lost = a.record(7)  # published, and lost on every way
    wait_for(lambda: b.gossip.ask({a.author, stranger().author}) or lost in b.records, "asked for, it comes")


def test_others_of_the_same_network_in_another_swarm_are_not_peers(start):
    a = start()
    b = start(a.addresses[:1], swarm="others")
    wait_for(lambda: a.count("rejected/wrong swarm"), "its greeting is for another swarm")
    assert not a.gossip.connected() and not b.gossip.connected()


def test_a_stock_gossipsub_peer_understands_us_and_we_it(start, attack):
    a = start()
    stock = attack(a, stock=True)
    wait_for(lambda: stock.identity.author in a.gossip.connected(), "it takes part")
    raw = a.publish(1)
    wait_for(lambda: INLINE + raw in stock.received, "it accepts our message")
    theirs = sealed(stock.identity, round=1)
    stock.publish(INLINE + theirs)
    wait_for(lambda: theirs in a.records, "we accept its message")


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
    peer.send(*flood)
    wait_for(lambda: victim.count("rejected/undecodable") >= 20, "garbage is counted")
    wait_for(lambda: peer.identity.author not in victim.gossip.connected(), "it is disconnected")
    peer.close()
    with contextlib.suppress(Exception):  # it may be cut off at any point of its coming back
        HostilePeer(peer.identity, victim.addresses[0]).close()
    wait_for(lambda: victim.count("network/refused"), "and not let in again")


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


@pytest.mark.slow
def test_a_peer_that_stops_is_dropped_and_comes_back(start, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.swarm.session.SILENCE", 1.0)
    node, identity = start(), stranger()
    with child(identity, node) as process:
        wait_for(lambda: identity.author in node.gossip.connected(), "the other process connects", 60)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: identity.author not in node.gossip.connected(), "it is dropped")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: identity.author in node.gossip.connected(), "it is back")


# --- starting, failing, ending


def test_a_port_in_use_is_one_sentence(start):
    node = start()
    other = Gossip(stranger(), GossipConfig("tests", port=node.gossip.port), lambda signed: None)
    with pytest.raises(NetworkError, match=r"^cannot listen on \S+: the port is in use; choose .*\.port\.$"):
        other.start()
    other.close()


def test_a_bootnode_that_is_no_address_is_one_sentence():
    for text in ("somewhere", "/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/udp/1/quic-v1"):
        gossip = Gossip(stranger(), GossipConfig("tests", bootnodes=(text,)), lambda signed: None)
        with pytest.raises(NetworkError, match="is not an address like"):
            gossip.start()


def test_an_unreachable_bootnode_is_counted_and_said_once(start, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    identity = stranger()
    node = start([f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}"])
    said = lambda: sum("cannot be reached" in line.getMessage() for line in caplog.records)  # noqa: E731
    wait_for(lambda: said() >= 1, "it is said")
    tried = node.count("network/unreachable")
    wait_for(lambda: node.count("network/unreachable") > tried, "it is tried again")
    assert tried >= 3 and said() == 1
    bootnode = start(identity=identity, port=port)
    wait_for(lambda: node.sees(bootnode), "when it comes it is found")


def test_closing_is_quick_final_and_leaves_nothing(start):
    before = set(threading.enumerate())
    nodes = swarm(start, 3)
    ports = [node.gossip.port for node in nodes]
    begun = time.monotonic()
    for node in nodes:
        node.gossip.close()
        node.gossip.close()
        assert not node.gossip.connected()
    assert time.monotonic() - begun < 10
    wait_for(lambda: set(threading.enumerate()) <= before, "no thread is left")
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    nodes[0].publish(1)  # into the void
    assert not nodes[0].gossip.flush(0.0)


def test_closing_before_starting_does_nothing():
    gossip: Transport = Gossip(stranger(), GossipConfig("tests"), lambda signed: None)
    gossip.close()
    gossip.close()


def test_a_crash_of_the_network_is_counted_and_it_comes_back_on_the_same_port(start, caplog):
    a, b = swarm(start, 2)
    address = a.addresses

    async def crash() -> None:
        raise RuntimeError("a bug in the library")

    a.gossip._in_trio(lambda session: session.spawn(crash))
    wait_for(lambda: a.count("network/restarts") == 1, "it is counted")
    wait_for(lambda: a.sees(b) and b.sees(a), "they find each other again")
    raw = a.publish(1)
    wait_for(lambda: raw in b.records, "and records go on")
    assert address == a.addresses and any("started again" in line.getMessage() for line in caplog.records)


CHILD = """
import sys, time
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.identity import Identity
g = Gossip(Identity(bytes.fromhex(sys.argv[1])), GossipConfig("tests", bootnodes=(sys.argv[2],)), lambda signed: None)
g.start()
time.sleep(600)
"""


@contextlib.contextmanager
def child(identity: Identity, node: Node) -> Iterator[subprocess.Popen]:
    """Another process with a network of its own."""
    arguments = [sys.executable, "-c", CHILD, identity.expose_secret().hex(), node.addresses[0]]
    with subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": "."}) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_peer_that_is_killed_is_gone_at_once(start):
    node, identity = start(), stranger()
    with child(identity, node):
        wait_for(lambda: identity.author in node.gossip.connected(), "the other process connects", 60)
    wait_for(lambda: identity.author not in node.gossip.connected(), "it is gone", 5.0)


def test_importing_the_network_is_cheap():
    check = "import sys, rlswarm_jax.swarm.gossip; assert not {'libp2p', 'trio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("field", [{"inline_bytes": 70_000}, {"port": 70_000}, {"host": "localhost"}])
def test_a_config_that_cannot_work_is_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        GossipConfig("tests", **field)


# --- the pieces


def test_addresses_from_peers_are_read_strictly():
    key = simulated(1, 1).peer_id
    good = (f"/ip4/1.2.3.4/tcp/1/p2p/{key}", f"/ip6/::1/tcp/65535/p2p/{key}", f"/dns4/example.org/tcp/1/p2p/{key}")
    bad = (
        "",
        "x" * 300,
        f"/ip4/1.2.3.4/tcp/1/ws/p2p/{key}",
        f"/ip4/1.2.3.4/udp/1/p2p/{key}",
        f"/ip4/1.2.3.4/tcp/70000/p2p/{key}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{key}/p2p-circuit/p2p/{key}",
        "/ip4/1.2.3.4/tcp/1",
        "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # a hash, not a key
        f"/p2p/{key}",
    )
    assert all(parse_address(text) for text in good)
    assert not any(parse_address(text) for text in bad)


def test_the_store_keeps_what_was_used_last_within_its_bytes():
    store = Store(max_bytes=25)
    names = [store.put(bytes([i]) * 10) for i in range(2)]
    assert store.get(names[0]) == bytes(10)
    names.append(store.put(b"\x02" * 10))
    assert [store.get(name) is not None for name in names] == [True, False, True]
    assert store.put(bytes(10)) == names[0]  # put again, it takes no more room
    assert store.get(names[2]) is not None


def test_a_request_is_bounded():
    decoder = msgspec.msgpack.Decoder(Request)
    for bad in (("x" * 65, None, None), ("s", b"short", None), ("s", None, bytes(33)), ("s", None), ()):
        with pytest.raises(msgspec.DecodeError):
            decoder.decode(msgspec.msgpack.encode(bad))
    assert MAX_ADDRESSES == 32


def test_frames_are_cut_wherever_the_bytes_were():
    frames = [b"", b"a", b"b" * 127, b"c" * 128, b"d" * 20_000]
    whole = b"".join(length_prefixed(frame) for frame in frames)
    for step in (1, 7, 1000, len(whole)):
        buffer, found = bytearray(), []
        for at in range(0, len(whole), step):
            buffer += whole[at : at + step]
            while (frame := take_frame(buffer, 1 << 20)) is not None:
                found.append(frame)
        assert found == frames and not buffer
    with pytest.raises(MalformedError):
        take_frame(bytearray(length_prefixed(bytes(11))), 10)


def length_prefixed(frame: bytes) -> bytes:
    """By protobuf itself: a bytes field's length and content."""
    return rpc_pb2.Message(data=frame).SerializeToString()[1:] if frame else b"\x00"


def test_a_bucket_gives_its_rate_and_twice_that_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    buckets = Buckets(10.0, max_keys=2)
    assert [buckets.take(b"a") for _ in range(21)].count(True) == 20
    now[0] = 1.0
    assert [buckets.take(b"a") for _ in range(21)].count(True) == 10
    buckets.take(b"b"), buckets.take(b"c")
    assert len(buckets._levels) == 2


def test_who_keeps_offending_is_refused_for_a_while(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    offences = Offences(at_most=3, within=60.0, refused_for=60.0)
    assert not offences.add(b"a") and not offences.add(b"a") and not offences.refused(b"a")
    now[0] = 100.0  # long after
    assert not offences.add(b"a") and not offences.add(b"a")
    assert offences.add(b"a") and offences.refused(b"a") and not offences.refused(b"b")
    now[0] = 161.0
    assert not offences.refused(b"a")
