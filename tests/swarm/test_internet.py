"""Nodes on an internet of network namespaces: over IPv6 alone, behind NAT, far away, cut in two."""

import dataclasses
from collections.abc import Iterator

import pytest
from libp2p.peer.id import ID

from rlswarm_jax.swarm import exchange, peers, session
from rlswarm_jax.swarm.greeting import NO_PLAYER
from rlswarm_jax.swarm.transport import RANGE
from tests.swarm.internet import Internet, patiently, placed, why_not
from tests.swarm.live import Node, large
from tests.swarm.test_showing import LIMIT, WEIGHTS, Shelf
from tests.waits import wait_for

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
behind_nat = pytest.mark.skipif(bool(why_not(nat=True)), reason=why_not(nat=True))


@pytest.fixture
def internet(start) -> Iterator[Internet]:
    with Internet() as made:
        yield made
        for node in start.nodes:  # before their network goes
            node.gossip.close()


def test_over_ipv6_alone_nodes_find_each_other_and_tell_addresses_that_last(start, internet):
    spaces = [internet.host(number, ipv4=False, ipv6=True) for number in (1, 2, 3)]
    first = start(kind=placed(spaces[0]), host="any")
    assert first.addresses[0].startswith("/ip6/2a00:1::1/tcp/") and len(first.addresses) == 2  # and loopback, as IPv4
    second, third = (start(first.addresses[:1], kind=placed(space), host="any") for space in spaces[1:])
    wait_for(lambda: second.sees(third) and third.sees(second), "they find each other through the first")
    raw = second.publish(1)
    wait_for(lambda: raw in third.records, "it arrives")


def heard_through(middle: Node, one: Node, other: Node) -> None:
    """That two which cannot reach each other have each other's records, short and long, through a third."""
    wait_for(lambda: middle.sees(one, other), "both have come to the third")
    raw, long = one.publish(1), large(other.identity, 100)
    other.gossip.publish(long)
    wait_for(lambda: raw in other.records and long in one.records, "they hear each other")


def test_who_can_only_dial_out_hears_and_is_heard(start, internet):
    """It listens on loopback alone, so that nobody can come to it."""
    public, *closed = (internet.host(number) for number in (1, 2, 3))
    middle = start(kind=placed(public), host="any")
    one, other = (start(middle.addresses[:1], kind=placed(space)) for space in closed)
    heard_through(middle, one, other)
    assert not middle.count("network/not_reached")  # what is said of loopback was not even tried


@behind_nat
def test_two_behind_two_nats_hear_each_other_through_a_third(start, internet):
    public, *homes = internet.host(1), internet.home(2), internet.home(3)
    middle = start(kind=placed(public), host="any")
    middle.gossip.tell_rules(NO_PLAYER)  # a bootnode will do
    one, other = (start(middle.addresses[:1], kind=placed(space), host="any") for space in homes)
    heard_through(middle, one, other)


def test_a_swarm_that_is_cut_in_two_goes_on_in_both_halves_and_is_one_again(start, internet, monkeypatch):
    """Peers that fall silent are dropped, sought again, and greeted with the latest records."""
    monkeypatch.setattr(session, "SILENCE", 2.0)
    monkeypatch.setattr(exchange, "TIMEOUT", 1.0)
    monkeypatch.setattr(exchange, "_CONFIG", dataclasses.replace(exchange._CONFIG, timeout=1.0))
    monkeypatch.setattr(peers, "_MAX_WAIT", 2.0)
    nodes = [start(kind=placed(internet.host(1)), host="any")]
    nodes += [start(nodes[0].addresses[:1], kind=placed(internet.host(n)), host="any") for n in (2, 3, 4)]
    halves = nodes[:2], nodes[2:]
    for node in nodes:
        wait_for(lambda node=node: node.sees(*(one for one in nodes if one is not node)), "all are one swarm")
    internet.part(3, 4)
    for half, others in (halves, halves[::-1]):
        for node in half:
            patiently(lambda n=node, o=others: not any(n.sees(one) for one in o), "the other half is gone", 40)
    said = [node.publish(1) for node in nodes]
    for half, mine in (halves[0], said[:2]), (halves[1], said[2:]):
        wait_for(lambda h=half, m=mine: m[1] in h[0].records and m[0] in h[1].records, "each half goes on")
        assert not set(said) - set(mine) & {raw for node in half for raw in node.records}
    internet.heal(3, 4)
    for node in nodes:
        patiently(lambda n=node: n.sees(*(one for one in nodes if one is not n)), "it is one again", 60)
    for node, own in zip(nodes, said, strict=True):
        wait_for(lambda n=node, own=own: set(n.records) >= set(said) - {own}, "and all have what all have said")


@pytest.mark.slow
def test_far_apart_on_a_wire_that_loses_much_records_arrive(start, internet):
    """30 % of the packets lost, and 200 ms each way."""
    one, other = internet.far(loss=0.3, delay=0.2)
    first = start(kind=placed(one), host="any")
    second = start(first.addresses[:1], kind=placed(other), host="any")
    patiently(lambda: first.sees(second) and second.sees(first), "they come together", 120)
    sent = [first.publish(round_) for round_ in range(1, 6)]
    patiently(lambda: set(sent) <= set(second.records), "the records arrive", 120)
    assert internet.wires[0].lost > 0.2 * internet.wires[0].carried


@behind_nat
def test_two_behind_two_nats_are_connected_through_a_third_and_check_each_others_weights(start, internet):
    """Their routers choose ports anew, so that there is no direct way."""
    public, *homes = internet.host(1), internet.home(2, keeps_port=False), internet.home(3, keeps_port=False)
    middle = start(kind=placed(public), host="any")
    one, other = (start(middle.addresses[:1], kind=placed(space), host="any") for space in homes)
    wait_for(lambda: one.sees(other, middle) and other.sees(one, middle), "they are peers of each other", 30)
    assert not is_direct(one, other)
    part = bytes(range(251)) * (2 * RANGE // 251)
    other.gossip.shows(Shelf(part))
    assert one.gossip.fetch_weights(other.author, WEIGHTS, [], LIMIT).result(60) == [part]
    assert middle.count("network/bytes_relayed") > len(part)
    raw = one.publish(1)
    wait_for(lambda: raw in other.records and raw in middle.records, "it arrives")
    assert other.records.count(raw) == 1
    assert not any(node.count("network/malformed") for node in (one, middle, other))
    wait_for(lambda: other.count("network/not_punched") or one.count("network/not_punched"), "a direct way is tried")
    assert not is_direct(one, other) and one.sees(other)


def is_direct(one: Node, other: Node) -> bool:
    return one.gossip._session._relay.is_direct(ID.from_base58(other.identity.peer_id))


@behind_nat
def test_routers_that_keep_the_port_let_two_behind_them_meet_directly(start, internet):
    public, *homes = internet.host(1), internet.home(2), internet.home(3)
    middle = start(kind=placed(public), host="any")
    one, other = (start(middle.addresses[:1], kind=placed(space), host="any") for space in homes)
    wait_for(lambda: is_direct(one, other) and is_direct(other, one), "they meet", 60)
    wait_for(lambda: not middle.gossip._session._relay._circuits, "the circuit is given back", 10)
    wait_for(lambda: one.sees(other, middle) and other.sees(one, middle), "they go on being peers", 10)
    raws = [one.publish(1), other.publish(1)]
    wait_for(lambda: raws[1] in one.records and raws[0] in other.records, "and hear each other")
