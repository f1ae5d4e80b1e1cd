"""From a relayed connection to a direct one: where a node dials, and what the other end cannot make it do."""

import contextlib
import socket
import time

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from rlswarm_jax.swarm import punch
from rlswarm_jax.swarm.addresses import Scope
from rlswarm_jax.swarm.frames import MalformedError, read_frame
from rlswarm_jax.swarm.punch import PROTOCOL
from rlswarm_jax.swarm.tcp import dial_from_listening, free_port
from rlswarm_jax.swarm.transport import NetworkError
from tests.swarm.hostile_peer import HostilePeer
from tests.swarm.live import Node
from tests.swarm.test_reaching import bystander
from tests.waits import wait_for


def hello(*texts: str) -> HolePunch:
    return HolePunch(type=HolePunch.CONNECT, ObsAddrs=[Multiaddr(text).to_bytes() for text in texts])


def test_of_what_the_other_end_says_only_addresses_across_the_internet_are_dialled_and_few():
    near = [f"/ip4/{ip}/tcp/1" for ip in ("127.0.0.1", "192.168.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0")]
    odd = ["/ip6/fe80::1/tcp/1", "/dns4/example.org/tcp/1", "/ip4/8.8.8.8/udp/1", "/ip4/8.8.8.8"]
    assert not punch._addresses(hello(*near)) and not punch._addresses(hello(*odd))
    said = hello("/ip4/8.8.8.8/tcp/1", *(f"/ip4/8.8.4.{n}/tcp/1" for n in range(9)))
    said.ObsAddrs.insert(0, b"\xff\xff")
    assert punch._addresses(said) == [Multiaddr("/ip4/8.8.8.8/tcp/1"), Multiaddr("/ip4/8.8.4.0/tcp/1")]
    with pytest.raises(MalformedError):
        punch._addresses(HolePunch(type=HolePunch.SYNC))


def test_a_node_dials_from_the_port_it_listens_on_and_no_other_node_takes_it(start):
    node = start()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        there = Multiaddr(f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}")
        listeners = node.gossip._session._host.get_network().listeners.values()
        made = trio.run(dial_from_listening, listeners, there)
        assert other.accept()[1] == ("127.0.0.1", node.gossip.port) and made is not None
    with pytest.raises(NetworkError, match="the port is in use"):  # no other node takes it
        free_port(["127.0.0.1"], node.gossip.port)


def pretend_relayed(node: Node, peer: HostilePeer) -> None:
    """As if the peer had come through a relay."""
    session, who = node.gossip._session, ID.from_base58(peer.identity.peer_id)
    for one in wait_for(lambda: session._host.get_network().get_connections(who), "it is in"):
        session._relay._relayed.add(one.muxed_conn)


def ask(peer: HostilePeer, *messages: bytes) -> bytes:
    """What a node says to the first of some messages; nothing if it hangs up."""

    async def act() -> bytes:
        answer = b""
        with contextlib.suppress(StreamError, StreamFailure):
            stream = await peer._host.new_stream(peer._target.peer_id, [PROTOCOL])
            for raw in messages:
                await stream.write(encode_varint_prefixed(raw))
                with trio.fail_after(10):
                    answer = answer or await read_frame(stream, bytearray())
        return answer

    return peer.do(act)


def test_who_is_connected_directly_is_met_nowhere_else(start, attack):
    node = start()
    peer = attack(node)
    assert ask(peer, hello("/ip4/8.8.8.8/tcp/1").SerializeToString()) == b""
    assert not node.count("network/not_punched") + node.count("network/malformed")


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x08\xac\x02"])
def test_what_is_no_word_of_the_protocol_is_counted(start, attack, raw):
    node = start()
    peer = attack(node)
    pretend_relayed(node, peer)
    assert ask(peer, raw) == b""
    wait_for(lambda: node.count("network/malformed") == 1, "it is counted")


def test_the_other_end_cannot_have_a_node_dial_somebody_again_and_again(start, attack, monkeypatch):
    monkeypatch.setattr(punch, "_OF_ALL", (0.0, 3))
    monkeypatch.setattr(punch, "MOMENT", 0.5)
    monkeypatch.setattr(punch.addresses, "scope_of", lambda ip: Scope.GLOBAL)  # as if the bystander were far away
    node = start()
    peer = attack(node)
    pretend_relayed(node, peer)
    with bystander() as (port, times):
        sync = HolePunch(type=HolePunch.SYNC).SerializeToString()
        said = [ask(peer, hello(f"/ip4/127.0.0.1/tcp/{port}").SerializeToString(), sync) for _ in range(16)]
        assert sum(map(bool, said)) == 3
        time.sleep(0.3)
        assert 1 <= len(times) <= 3
    wait_for(lambda: node.count("network/not_punched") == 3, "each is counted")
