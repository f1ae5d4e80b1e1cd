"""Whether others reach a port of this machine: a peer that a node says its address to dials it, and tells others then.

So a node is there for a moment, under a key of that moment, and somebody else asks that peer where it is.
Imports libp2p, which takes seconds: import it where the network is started.
"""

import secrets

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from rlswarm_jax.identity import Identity
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.swarm.exchange import Exchange, Store, parse_address
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.host import make_host

PAUSE = 1.5  # seconds between two questions


class _Unwatched:
    """What an exchange needs of its session, for one that answers nobody."""

    def count(self, name: str, number: int = 1) -> None: ...

    def offend(self, peer: ID, name: str) -> None: ...


def where_others_are_sent(config: GossipConfig, peer: str, seconds: float) -> list[str]:
    """Where a peer says that a node of that config is, which is there for that; none if it does not in time.

    peer: a multiaddr of numbers, with the peer id. Raises NetworkError if it cannot listen.
    """
    passing = Identity(secrets.token_bytes(32))
    there = Gossip(passing, config, lambda signed: True)
    try:
        there.start()
        return where_it_sends(config.swarm, peer, passing.peer_id, seconds)
    finally:
        there.close()


def where_it_sends(swarm: str, peer: str, sought: str, seconds: float) -> list[str]:
    """Where a peer says that another one is, by peer id: what it has dialled itself; none if it does not in time."""
    return trio.run(_ask, swarm, peer, sought, seconds)


async def _nobody(asker: ID) -> list[str]:
    return []


async def _ask(swarm: str, peer: str, sought: str, seconds: float) -> list[str]:
    """What a peer tells somebody who has just come of another one."""
    told = parse_address(peer)
    assert told is not None, "it was read before"
    host = make_host(Identity(secrets.token_bytes(32)), 8)
    asking = Exchange(host, swarm, Store(), list, _nobody, _Unwatched())  # type: ignore[arg-type]
    with trio.move_on_after(seconds):
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            await host.get_network().dial_addr(told.addrs[0], told.peer_id)
            while True:
                try:
                    _, others, _ = await asking.greet(told.peer_id, [])
                except RecordError:
                    others = []
                if found := [str(address) for one in others if str(one.peer_id) == sought for address in one.addrs]:
                    return found
                await trio.sleep(PAUSE)
    return []
