"""The live network, over real connections on loopback: what arrives, what does not, and who survives it."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import PriorityQueue

from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.swarm import peers
from rlswarm_jax.swarm.exchange import MAX_ADDRESSES, Request, Store, parse_address
from rlswarm_jax.swarm.frames import INLINE, MalformedError, take_frame
from rlswarm_jax.swarm.gossip import BACKLOG, Gossip, GossipConfig
from rlswarm_jax.swarm.limits import Buckets, Offences
from rlswarm_jax.swarm.peers import AddressBook
from rlswarm_jax.swarm.router import MAX_QUEUED, Outgoing
from rlswarm_jax.swarm.transport import NetworkError, Transport
from tests.records.samples import sealed
from tests.swarm.live import Node, large, stranger, swarm
from tests.waits import wait_for

numbers = itertools.count()


def test_nodes_that_know_one_bootnode_find_each_other_and_every_record_arrives_once_and_unchanged(start):
    nodes = swarm(start, 4)
    sent = {node.author: [node.publish(round_) for round_ in range(3)] for node in nodes}
    for node in nodes:
        expected = sorted(raw for author, records in sent.items() if author != node.author for raw in records)
        wait_for(lambda node=node: len(node.records) >= 9, "all records arrive")
        assert sorted(node.records) == expected
        assert node.peers[-1] == node.gossip.connected() == {n.author for n in nodes} - {node.author}
        told = wait_for(lambda node=node: [p for p in node.gossip.network.peers if p.mesh], "some are in its mesh")
        assert {peer.peer_id for peer in told} <= {n.identity.peer_id for n in nodes} - {node.identity.peer_id}
        assert len(node.gossip.network.peers) == 3 and not node.gossip.network.banned
    last = nodes[0].publish(99)
    for node in nodes[1:]:
        wait_for(lambda node=node: last in node.records, "another record arrives")
        assert len(node.records) == 10  # no second copy came in between


def test_an_address_names_the_key_and_the_port_that_was_given(start):
    node = start()
    assert node.addresses[0].endswith(f"/p2p/{node.identity.peer_id}")
    assert "/tcp/0/" not in node.addresses[0]
    assert parse_address(node.addresses[0]) is not None


def test_a_burst_arrives_whole_at_the_pace_that_others_take_of_one_author(start):
    a, b = swarm(start, 2)
    sent = [a.publish(round_) for round_ in range(90)]  # at once others take 40, and 20 more a second
    assert len(a.gossip.outbox) <= BACKLOG and a.gossip.flush(30)
    wait_for(lambda: len(b.records) == len(sent), "all of the burst arrive")
    assert set(b.records) == set(sent) and not b.count("rejected/rate limit")


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
    lost = [a.record(7, stage=stage) for stage in STAGES]
    a.gossip.latest.extend([a.record(6), *lost])  # published, and lost on every way
    wait_for(lambda: b.gossip.ask({a.author, stranger().author}) or set(lost) <= set(b.records), "asked for, they come")
    assert sorted(b.records) == sorted(lost)  # those of the last round, each once


def test_a_record_that_was_not_kept_can_be_had_again(start):
    a, b = swarm(start, 2)
    b.keeps = False
    raw = a.publish(1)
    wait_for(lambda: b.turned_away, "it comes, and there is no room")
    b.keeps = True
    wait_for(lambda: b.gossip.ask({a.author}) or b.records, "asked for, it comes again")
    b.gossip.ask({a.author})
    last = a.publish(2)
    wait_for(lambda: last in b.records, "another record arrives")
    assert b.records == [raw, last]


def test_many_large_records_at_once_are_fetched_at_the_pace_that_their_author_allows(start):
    a, b = swarm(start, 2, max_messages_per_second=40.0)  # and so 5 requests a second, 10 at once
    sent = [large(a.identity, 50, round_) for round_ in range(15)]
    for raw in sent:
        a.gossip.publish(raw)
    wait_for(lambda: len(b.records) == 15, "all of them arrive")
    assert set(b.records) == set(sent)
    assert not any(node.count(f"rejected/{cause}") for node in (a, b) for cause in ("rate limit", "unavailable"))


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


# --- starting, failing, ending


def test_a_port_in_use_is_one_sentence(start):
    node = start()
    other = Gossip(stranger(), GossipConfig("tests", port=node.gossip.port), lambda signed: True)
    with pytest.raises(NetworkError, match=r"^cannot listen on \S+: the port is in use; choose .*\.port\.$"):
        other.start()
    other.close()


def test_a_bootnode_that_is_no_address_is_one_sentence():
    for text in ("somewhere", "/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/udp/1/quic-v1"):
        gossip = Gossip(stranger(), GossipConfig("tests", bootnodes=(text,)), lambda signed: True)
        with pytest.raises(NetworkError, match="is not an address like"):
            gossip.start()


def test_an_unreachable_bootnode_is_counted_and_said_once(start, caplog, monkeypatch):
    monkeypatch.setattr(peers, "_MAX_WAIT", 1.0)
    monkeypatch.setattr(peers, "_NEWS_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    identity, begun = stranger(), time.monotonic()
    node = start([f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}"])

    def said() -> int:
        return sum("cannot be reached" in line.getMessage() for line in caplog.records)

    wait_for(lambda: said() >= 1, "it is said")
    assert time.monotonic() - begun >= 1.0  # nodes that start together take a moment to listen
    tried = node.count("network/unreachable")
    wait_for(lambda: node.count("network/unreachable") > tried, "it is tried again")
    assert said() == 1
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
    gossip: Transport = Gossip(stranger(), GossipConfig("tests"), lambda signed: True)
    gossip.close()
    gossip.close()


def test_a_crash_of_the_network_is_counted_and_it_comes_back_on_the_same_port(start, caplog):
    a, b = swarm(start, 2)
    address = a.addresses

    async def crash() -> None:
        raise RuntimeError("a bug in the library")

    a.gossip._in_trio(lambda session: session.spawn(crash))
    wait_for(lambda: a.count("network/restarts") == 1, "it is counted")
    down = wait_for(lambda: a.gossip.network if a.gossip.network.down else None, "it is told")
    assert not down.peers
    wait_for(lambda: a.sees(b) and b.sees(a), "they find each other again")
    assert a.gossip.network.down is None and [peer.peer_id for peer in a.gossip.network.peers] == [b.identity.peer_id]
    raw = a.publish(1)
    wait_for(lambda: raw in b.records, "and records go on")
    assert address == a.addresses and any("started again" in line.getMessage() for line in caplog.records)


def test_the_wait_before_a_restart_is_the_one_that_is_announced(caplog, monkeypatch):
    gossip = Gossip(stranger(), GossipConfig("tests"), lambda signed: True)
    waited: list[float] = []

    def fail(started) -> None:
        if not started.done():
            started.set_result([])
        raise RuntimeError("a bug in the library")

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 8:
            gossip._closing.set()

    monkeypatch.setattr(gossip, "_run", fail)
    monkeypatch.setattr(gossip._closing, "wait", wait)
    gossip.start()
    wait_for(lambda: len(waited) == 8, "it has failed and waited again and again")
    gossip.close()
    said = [line.getMessage() for line in caplog.records if "started again" in line.getMessage()]
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert said == [f"the network stopped and is started again in {seconds:.1f} s" for seconds in waited]


def test_a_library_that_cannot_be_imported_is_one_sentence_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "rlswarm_jax.swarm.session", None)  # importing it raises
    gossip = Gossip(stranger(), GossipConfig("tests"), lambda signed: True)
    begun = time.monotonic()
    with pytest.raises(NetworkError, match=r"^the network cannot start: .*session"):
        gossip.start()
    assert time.monotonic() - begun < 10
    gossip.close()


CHILD = """
import sys, time
from rlswarm_jax.swarm.gossip import BACKLOG, Gossip, GossipConfig
from rlswarm_jax.identity import Identity
g = Gossip(Identity(bytes.fromhex(sys.argv[1])), GossipConfig("tests", bootnodes=(sys.argv[2],)), lambda signed: True)
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


def test_those_who_came_and_left_take_nobodys_place(start):
    """However many they were in a node's life: its places are for those who are there."""
    node = start(max_connections=3)
    for _ in range(5):
        guest = start(node.addresses[:1])
        wait_for(lambda guest=guest: node.sees(guest) and guest.sees(node), "it comes in", 20)
        guest.gossip.close()
        wait_for(lambda guest=guest: not node.sees(guest), "it goes")


def test_a_peer_that_is_killed_is_gone_at_once(start):
    node, identity = start(), stranger()
    with child(identity, node):
        wait_for(lambda: identity.author in node.gossip.connected(), "the other process connects", 60)
    wait_for(lambda: identity.author not in node.gossip.connected(), "it is gone", 5.0)


def test_importing_the_network_is_cheap():
    check = "import sys, rlswarm_jax.swarm.gossip; assert not {'libp2p', 'trio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("field", [{"port": 70_000}, {"host": "localhost"}])
def test_a_config_that_cannot_work_is_refused(field):
    """By the libraries below: configs/common.py has checked a config's own."""
    with pytest.raises(NetworkError, match=r"cannot (start|listen)"):
        Gossip(stranger(), GossipConfig("tests", **field), lambda signed: True).start()


# --- the pieces


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


def test_a_bucket_may_hold_another_number_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    buckets = Buckets(1 / 20, burst=3)
    assert [buckets.take(b"a") for _ in range(10)].count(True) == 3
    now[0] = 60.0
    assert [buckets.take(b"a") for _ in range(10)].count(True) == 3


def hints(*numbers: int, port: int = 1) -> list[PeerInfo]:
    """What a greeter might tell of so many other peers."""
    found = [parse_address(f"/ip4/10.0.0.1/tcp/{port}/p2p/{simulated(12, number).peer_id}") for number in numbers]
    return [info for info in found if info]


@pytest.fixture
def book() -> AddressBook:
    return AddressBook([], ID.from_base58(stranger().peer_id))


def test_hints_stand_behind_an_address_that_has_worked(book):
    (info,) = hints(1)
    book.learn([info], b"friend")
    book.reached(info.peer_id, info.addrs[0])
    lies = [lie for port in range(2, 8) for lie in hints(1, port=port)]
    book.learn(lies, b"liar")
    assert book.addresses(info.peer_id) == [info.addrs[0], *(lie.addrs[0] for lie in reversed(lies))][:4]
    book.reached(info.peer_id, lies[-1].addrs[0])  # it has moved
    book.learn(hints(1, port=99), b"liar")
    assert book.addresses(info.peer_id)[0] == lies[-1].addrs[0]


def test_hints_do_not_crowd_out_peers_that_were_reached(book):
    known = hints(*range(8))
    book.learn(known, b"friend")
    for info in known:
        book.reached(info.peer_id, info.addrs[0])
    for source in range(12):
        book.learn(hints(*range(100 + 32 * source, 132 + 32 * source)), bytes([source]))
    assert all(book.addresses(info.peer_id) for info in known)
    assert set(book.due(8, ())) == {info.peer_id for info in known}  # and they are dialled first
    assert len(book.due(1000, ())) == 256


def test_one_peer_may_tell_only_so_many_new_addresses_a_minute(book, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    book.learn(hints(*range(100)), b"liar")
    book.learn(hints(*range(20)), b"liar")  # repeated, they cost nothing
    assert len(book.due(1000, ())) == 32
    book.learn(hints(200), b"friend")
    now[0] = 30.0
    book.learn(hints(*range(100)), b"liar")
    assert len(book.due(1000, ())) == 32 + 1 + 16


def test_what_waits_for_one_peer_is_bounded_in_bytes_and_in_number():
    queue = Outgoing(PriorityQueue())
    asked_for = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(1 << 20))])
    assert [queue.push(asked_for) for _ in range(6)].count(True) == 3  # each has a few bytes more than a megabyte
    assert queue.push(bytes(1 << 19), priority=True) and not queue.push(bytes(1 << 20))
    while queue.pop() is not None:
        pass
    assert queue.bytes == 0
    assert [queue.push(b"small") for _ in range(1000)].count(True) == MAX_QUEUED


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
