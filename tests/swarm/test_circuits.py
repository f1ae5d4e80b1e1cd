"""A node that connects two others: what it relays, for whom, and where it ends. The ends are hostile peers."""

import contextlib
import time

import pytest
import trio
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from rlswarm_jax.swarm import relay
from rlswarm_jax.swarm.frames import read_frame
from rlswarm_jax.swarm.peers import Through
from rlswarm_jax.swarm.relay import HOP, MAX_OF_PEER, STOP
from tests.swarm.hostile_peer import HostilePeer
from tests.swarm.live import Node
from tests.waits import wait_for


def member(attack, node: Node, **fields) -> HostilePeer:
    peer = attack(node, **fields)
    wait_for(lambda: peer.identity.author in node.gossip.connected(), "it takes part")
    time.sleep(0.1)  # the node looks at who is there again and again
    return peer


def connect(target: str) -> bytes:
    return HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=ID.from_base58(target).to_bytes())).SerializeToString()


def answered(peer: HostilePeer, raw: bytes, protocol=HOP) -> tuple[HopMessage | None, object]:
    """What a node says to a request on a new stream, and the stream; None if it hangs up."""

    async def ask():
        stream = await peer._host.new_stream(peer._target.peer_id, [protocol])
        try:
            await stream.write(encode_varint_prefixed(raw))
            with trio.fail_after(10):
                return HopMessage.FromString(await read_frame(stream, bytearray())), stream
        except StreamError:
            return None, stream

    return peer.do(ask)


def takes_circuits(peer: HostilePeer, heard: list[bytes]) -> None:
    """Has a peer say yes to whoever comes through a relay, and send back what it hears."""

    async def take(stream) -> None:
        wanted = StopMessage.FromString(await read_frame(stream, bytearray()))
        assert wanted.type == StopMessage.CONNECT
        status = StopMessage(type=StopMessage.STATUS, status=Status.OK)
        await stream.write(encode_varint_prefixed(status.SerializeToString()))
        with contextlib.suppress(StreamError):
            while data := await stream.read(1 << 14):
                heard.append(data)
                await stream.write(data)
        heard.append(b"")  # the circuit has ended

    async def listen() -> None:
        peer._host.set_stream_handler(STOP, take)

    peer.do(listen)


@pytest.fixture
def ends(start, attack):
    """A relay, one who dials through it, one who is dialled, and what that one hears."""
    node, heard = start(), []
    source, target = member(attack, node), member(attack, node)
    takes_circuits(target, heard)
    return node, source, target, heard


def write(peer: HostilePeer, stream, data: bytes) -> None:
    async def act() -> None:
        with contextlib.suppress(StreamError):
            await stream.write(data)

    peer.do(act)


def test_bytes_go_both_ways_between_two_who_take_part(ends):
    node, source, target, heard = ends
    answer, stream = answered(source, connect(target.identity.peer_id))
    assert answer.status == Status.OK and answer.limit.data == relay.MAX_BYTES
    write(source, stream, b"hello")
    wait_for(lambda: b"".join(heard) == b"hello", "there")
    assert source.do(stream.read, 100) == b"hello"  # and back
    assert node.count("network/circuits") == 1 and node.count("network/bytes_relayed") == 10


def test_who_takes_part_may_reserve_and_is_told_the_limits(ends):
    _, source, _, _ = ends
    answer, _ = answered(source, HopMessage(type=HopMessage.RESERVE).SerializeToString())
    assert answer.status == Status.OK and answer.limit.duration == relay.MAX_SECONDS
    assert time.time() < answer.reservation.expire <= time.time() + relay.MAX_SECONDS


def test_nobody_is_relayed_who_takes_no_part_or_to_one_who_does_not(start, attack, ends):
    node, source, target, heard = ends
    stranger = attack(node, swarm="others")
    for peer, whom, status in (
        (stranger, target.identity.peer_id, Status.PERMISSION_DENIED),
        (source, stranger.identity.peer_id, Status.NO_RESERVATION),
        (source, start().identity.peer_id, Status.NO_RESERVATION),
        (source, source.identity.peer_id, Status.MALFORMED_MESSAGE),
    ):
        assert answered(peer, connect(whom))[0].status == status
    assert not heard and node.count("network/circuits_refused") == 4 and not node.count("network/circuits")


def test_of_two_peers_there_is_one_circuit_and_of_one_a_few(attack, ends):
    node, source, target, _ = ends
    assert answered(source, connect(target.identity.peer_id))[0].status == Status.OK
    assert answered(source, connect(target.identity.peer_id))[0].status == Status.RESOURCE_LIMIT_EXCEEDED
    said = []
    for _ in range(MAX_OF_PEER):
        other = member(attack, node)
        takes_circuits(other, [])
        said.append(answered(source, connect(other.identity.peer_id))[0].status)
    assert said == [Status.OK] * (MAX_OF_PEER - 1) + [Status.RESOURCE_LIMIT_EXCEEDED]


@pytest.mark.parametrize(("name", "value"), [("MAX_BYTES", 3000), ("IDLE", 0.5), ("MAX_SECONDS", 1)])
def test_a_circuit_ends(ends, monkeypatch, name, value):
    """After so many bytes, when nothing is said, and after a while; then there is room for another."""
    monkeypatch.setattr(relay, name, value)
    node, source, target, heard = ends
    answer, stream = answered(source, connect(target.identity.peer_id))
    assert answer.status == Status.OK
    for _ in range(4 if name == "MAX_BYTES" else 1):
        write(source, stream, bytes(1000))
        time.sleep(0.1)
    wait_for(lambda: heard and heard[-1] == b"", "it ends", 5)
    assert node.count("network/bytes_relayed") <= 4000
    assert answered(source, connect(target.identity.peer_id))[0].status == Status.OK


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x08\x63", bytes(5000)])
@pytest.mark.parametrize("protocol", [HOP, STOP])
def test_what_is_no_request_is_counted_and_ends_nothing(ends, protocol, raw):
    _, source, target, _ = ends
    answer, _ = answered(source, raw, protocol)
    assert answer is None or answer.status in (Status.MALFORMED_MESSAGE, 0) or protocol == STOP
    assert answered(source, connect(target.identity.peer_id))[0].status == Status.OK


def test_one_who_says_nothing_back_is_given_up(ends, monkeypatch):
    monkeypatch.setattr(relay, "TIMEOUT", 0.5)
    _, source, target, _ = ends

    async def silent() -> None:
        async def say_nothing(stream) -> None:
            await trio.sleep_forever()

        target._host.set_stream_handler(STOP, say_nothing)

    target.do(silent)
    assert answered(source, connect(target.identity.peer_id))[0].status == Status.CONNECTION_FAILED


def test_a_relay_cannot_pose_as_the_one_who_is_dialled(start, attack):
    """It says that somebody can be reached through it, and answers itself, with its own key."""
    node, other = start(), start()
    liar = member(attack, node)

    async def pose() -> None:
        async def answer(stream) -> None:
            await read_frame(stream, bytearray())
            status = HopMessage(type=HopMessage.STATUS, status=Status.OK)
            await stream.write(encode_varint_prefixed(status.SerializeToString()))
            raw = relay.RawConnection(relay._End(stream, bytearray()), False)
            posed.append(True)
            with contextlib.suppress(Exception):
                await liar._host.get_network().upgrade_inbound_raw_conn(raw, Multiaddr("/ip4/127.0.0.1/tcp/1"))

        liar._host.set_stream_handler(HOP, answer)

    posed: list[bool] = []
    liar.do(pose)
    session, whom = node.gossip._session, ID.from_base58(other.identity.peer_id)
    book = session._book
    node.gossip._in_trio(lambda session: book.learn_through([whom], ID.from_base58(liar.identity.peer_id)))
    wait_for(lambda: posed, "it was dialled through the liar", 20)
    time.sleep(0.5)
    assert other.author not in node.gossip.connected() and not session._host.get_network().get_connections(whom)


def test_who_may_be_reached_through_another_is_tried_there_last(start):
    book = start().gossip._session._book
    peer, one, two = (ID.from_base58(f.identity.peer_id) for f in (start(), start(), start()))
    book.learn_through([peer], one)
    book.learn_through([peer], two)
    assert book.addresses(peer) == [Through(two), Through(one)]
    assert not book.kept  # nor is it for the next start
