"""Where a node listens, what it tells others of that, and what it believes of what they tell."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from rlswarm_jax.identity import simulated
from rlswarm_jax.swarm import reaching
from rlswarm_jax.swarm.addresses import Scope, holder_of, may_tell, range_of, read_endpoint, scope_of
from rlswarm_jax.swarm.memory import MAX_KEPT, MAX_KEPT_OF_RANGE
from rlswarm_jax.swarm.peers import AddressBook, Through
from rlswarm_jax.swarm.tcp import free_port, hosts_of, told_addresses
from rlswarm_jax.swarm.transport import NetworkError
from tests.swarm.live import Node
from tests.waits import wait_for

HAS_IPV6 = "::" in hosts_of("any")
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


def at(node: Node, ip: str) -> str:
    kind = "ip6" if ":" in ip else "ip4"
    return f"/{kind}/{ip}/tcp/{node.gossip.port}/p2p/{node.identity.peer_id}"


def reached(node: Node, other: Node) -> list[str]:
    """Where a node knows by itself that another one can be dialled."""
    return [str(one) for one in node.gossip._session._reaching.reached(ID.from_base58(other.identity.peer_id))]


# --- IPv4 and IPv6


@needs_ipv6
def test_a_node_that_listens_on_any_address_is_reached_over_both_families_at_one_port(start):
    first = start(host="any")
    old, new = start([at(first, "127.0.0.1")]), start([at(first, "::1")], host="::1")
    wait_for(lambda: first.sees(old, new), "both are in")
    raw = old.publish(1)
    wait_for(lambda: raw in new.records, "a record goes from one family to the other")
    assert {first.gossip._session._reaching.scope(ID.from_base58(one.identity.peer_id)) for one in (old, new)} == {
        Scope.LOOPBACK  # so who is at the other end is known over IPv6 as well
    }
    assert not any("/0.0.0.0/" in one or "/::/" in one for one in first.addresses)


@needs_ipv6
def test_nodes_over_ipv6_alone_find_each_other_through_a_bootnode(start):
    nodes = [start(host="::1")]
    nodes += [start(nodes[0].addresses[:1], host="::1") for _ in range(2)]
    assert all(node.addresses[0].startswith("/ip6/::1/tcp/") for node in nodes)
    wait_for(lambda: nodes[1].sees(nodes[2]), "through the first")
    raw = nodes[1].publish(1)
    wait_for(lambda: raw in nodes[2].records, "it arrives")


@needs_ipv6
def test_a_port_must_be_free_in_both_families():
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(["0.0.0.0"], port) == port
        with pytest.raises(NetworkError, match=r"^cannot listen on /ip6/::/tcp/\d+: the port is in use; choose"):
            free_port(["0.0.0.0", "::"], port)
    assert free_port(["0.0.0.0", "::"], 0) > 0


def test_a_listening_port_is_nobody_elses(start):
    """The library would share it with any other process of the same user."""
    node = start()
    with socket.socket() as other, pytest.raises(OSError):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", node.gossip.port))
        other.listen()


# --- what others are told


def test_what_is_announced_comes_first_and_the_rest_as_far_as_it_reaches():
    listening = [f"/ip4/{ip}/tcp/1" for ip in ("127.0.0.1", "192.168.1.5", "8.8.4.4")] + ["/ip6/2a00::1/tcp/1"]
    told = told_addresses(["/dns4/my.home/tcp/4001"], map(Multiaddr, listening))
    assert [str(one) for one in told] == ["/dns4/my.home/tcp/4001", *(listening[n] for n in (2, 3, 1, 0))]
    assert told_addresses(listening[2:3], map(Multiaddr, listening[2:3])) == [Multiaddr(listening[2])]


def test_a_node_prints_and_tells_the_address_that_it_was_given_to_announce(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forwarded = f"/ip4/127.0.0.3/tcp/{port}"  # as a router's: it leads to the same node
    node = start(port=port, host="0.0.0.0", announce=(forwarded,))
    assert node.addresses[0] == f"{forwarded}/p2p/{node.identity.peer_id}" and node.gossip.port == port
    second = start([at(node, "127.0.0.1")])
    wait_for(lambda: forwarded in reached(second, node), "it was told, tried it, and got there")
    third = start(second.addresses[:1])
    wait_for(lambda: third.sees(node), "who was told of it by the second finds it")


def test_what_read_endpoint_is_an_address_without_a_peer():
    assert all(map(read_endpoint, ("/ip4/1.2.3.4/tcp/1", "/ip6/2a00::1/tcp/1", "/dns4/my.home/tcp/1")))
    peer = simulated(1, 1).peer_id
    for text in ("", "1.2.3.4", "/ip4/1.2.3.4", "/dnsaddr/x.org", f"/ip4/1.2.3.4/tcp/1/p2p/{peer}", "/ip4/::1/tcp/1"):
        assert not read_endpoint(text), text


# --- what it believes


@pytest.mark.parametrize(
    ("ip", "scope"),
    [
        *((ip, Scope.GLOBAL) for ip in ("8.8.8.8", "2a00:1450::1", "::ffff:8.8.8.8")),
        *((ip, Scope.PRIVATE) for ip in ("10.0.0.1", "172.31.0.1", "192.168.0.1", "100.64.0.1", "fd00::1")),
        *((ip, Scope.LINK) for ip in ("169.254.169.254", "fe80::1")),
        *((ip, Scope.LOOPBACK) for ip in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1")),
        *(
            (ip, Scope.NONE)
            for ip in ("0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "", "x")
        ),
    ],
)
def test_from_how_far_an_address_means_the_same(ip, scope):
    assert scope_of(ip) is scope
    assert may_tell(ip, Scope.GLOBAL) == (scope is Scope.GLOBAL)
    assert may_tell(ip, Scope.PRIVATE) == (scope in (Scope.GLOBAL, Scope.PRIVATE))
    assert may_tell(ip, Scope.LOOPBACK) == (scope in (Scope.GLOBAL, Scope.PRIVATE, Scope.LOOPBACK))


def test_addresses_that_one_person_has_count_as_one_or_as_one_range():
    assert holder_of("2a00:1:2:3::1") == holder_of("2a00:1:2:3:ffff::9") != holder_of("2a00:1:2:4::1")
    assert holder_of("8.8.8.8") == holder_of("::ffff:8.8.8.8") != holder_of("8.8.8.9")
    assert range_of("8.8.1.1") == range_of("8.8.2.2") != range_of("8.9.1.1")
    assert range_of("2a00:1::1") == range_of("2a00:1:ffff::1") != range_of("2a00:2::1")
    assert range_of("10.0.0.1") != range_of("10.0.0.2")


def ids(count: int) -> list[ID]:
    return [ID.from_base58(simulated(17, number).peer_id) for number in range(count)]


def test_who_is_across_the_internet_makes_a_node_knock_at_no_door_of_its_own_network():
    (me, *others) = ids(4)
    book = AddressBook([], me)
    hints = [
        PeerInfo(p, [Multiaddr(f"/ip4/{ip}/tcp/22")])
        for p, ip in zip(others, ("127.0.0.1", "10.0.0.1", "8.8.8.8"), strict=True)
    ]
    book.learn(hints, b"stranger", Scope.GLOBAL)
    assert book.due(9, ()) == [others[2]]
    book.learn(hints, b"neighbour", Scope.PRIVATE)
    assert set(book.due(9, ())) == set(others[1:])


def test_peers_are_looked_for_in_as_many_ranges_as_there_are():
    (me, *others) = ids(24)
    book = AddressBook([], me)
    for number, peer in enumerate(others):  # all but three of one range
        ip = f"8.8.{number}.1" if number < 20 else f"{number}.1.1.1"
        book.learn([PeerInfo(peer, [Multiaddr(f"/ip4/{ip}/tcp/1")])], peer.to_bytes())
    assert set(others[20:]) <= set(book.due(4, ()))


def test_of_one_range_few_are_kept_for_the_next_start():
    (me, *others) = ids(MAX_KEPT + 1)
    book = AddressBook([], me)
    for number, peer in enumerate(others[:20]):
        book.keep(peer, [Multiaddr(f"/ip4/8.8.{number}.1/tcp/1")], set(others))
    assert set(book.kept) == set(map(str, others[:MAX_KEPT_OF_RANGE]))  # who was there first, and still is
    book.keep(others[20], [Multiaddr("/ip4/8.8.99.1/tcp/1")], {others[20]})
    assert list(book.kept) == list(map(str, [*others[1:MAX_KEPT_OF_RANGE], others[20]]))  # who has left makes room
    for number, peer in enumerate(others[21:]):  # neighbours are no crowd
        book.keep(peer, [Multiaddr(f"/ip4/10.0.0.{number + 1}/tcp/1")], set(others))
    assert len(book.kept) == MAX_KEPT_OF_RANGE + len(others[21:])


def identity_of(*addresses: str) -> bytes:
    return Identify(listen_addrs=[Multiaddr(one).to_bytes() for one in addresses]).SerializeToString()


def test_an_address_at_which_somebody_else_or_nobody_answers_is_not_passed_on(start, attack):
    victim, other = start(), start()
    liar = attack(victim)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
    liar.push_identity(identity_of(f"/ip4/127.0.0.1/tcp/{other.gossip.port}", nobody))
    wait_for(lambda: victim.count("network/not_reached"), "both were tried")
    asker = start(victim.addresses[:1])
    wait_for(lambda: reached(asker, victim) and reached(victim, asker), "an honest one is")
    time.sleep(0.3)
    peer = ID.from_base58(liar.identity.peer_id)
    assert not victim.gossip._session._reaching.reached(peer)
    told = asker.gossip._session._book.addresses(peer)
    assert all(isinstance(place, Through) for place in told)  # that the victim is connected with it is true


@contextlib.contextmanager
def bystander() -> Iterator[tuple[int, list[float]]]:
    """Somebody who never asked to be dialled, and when it was."""
    times: list[float] = []
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen(64)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    times.append(time.monotonic())

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], times
        listener.shutdown(socket.SHUT_RDWR)


def test_a_stranger_cannot_have_a_node_dial_somebody_else_again_and_again(start, attack, monkeypatch):
    monkeypatch.setattr(reaching, "_OF_RANGE", (0.5, 8))
    victim, begun = start(), time.monotonic()
    with bystander() as (port, times):
        for _ in range(6):
            liar = attack(victim)
            liar.push_identity(identity_of(*(f"/ip4/127.0.0.{n}/tcp/{port}" for n in (1, 2, 3, 4, 1, 5, 6))))
            wait_for(lambda liar=liar: liar.identity.author in victim.gossip.connected(), "it is in")
            time.sleep(0.3)
            liar.close()
        # however many keys it has: what its range may at once, and what comes anew, instead of 24
        assert 4 <= len(times) <= 8 + 0.5 * (time.monotonic() - begun) + 1
