"""Where other nodes can be reached, and when to try again.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import random
import time
from collections.abc import Collection, Iterable

from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from rlswarm_jax.swarm.exchange import parse_address
from rlswarm_jax.swarm.transport import NetworkError

_MAX_PEERS = 256
_MAX_ADDRESSES = 4  # of one peer
_FIRST_WAIT, _MAX_WAIT = 0.5, 30.0  # seconds
_NEWS_WAIT = 4.0  # before that nobody is told: nodes that start together take a moment to listen
_LAST_WAIT = 8.0  # after which a peer that others told us of is forgotten; a bootnode never is


class AddressBook:
    """bootnodes: multiaddrs by peer. Whatever peers told us is a hint: dialling proves the key."""

    def __init__(self, bootnodes: Iterable[str], me: ID):
        self.bootnodes: dict[ID, str] = {}
        self._addresses: collections.OrderedDict[ID, list[Multiaddr]] = collections.OrderedDict()
        self._waits: dict[ID, tuple[float, float]] = {}  # when to dial again, and how long to wait after that
        self._unreachable: set[ID] = set()
        for text in bootnodes:
            info = parse_address(text)
            if info is None:
                raise NetworkError(
                    f"the bootnode {text!r} is not an address like /ip4/1.2.3.4/tcp/4001/p2p/16Uiu2...; "
                    "correct config.swarm.bootnodes."
                )
            if info.peer_id != me:
                self.bootnodes[info.peer_id] = text
                self._addresses.setdefault(info.peer_id, []).extend(info.addrs)

    def addresses(self, peer: ID) -> list[Multiaddr]:
        return self._addresses.get(peer, [])[:_MAX_ADDRESSES]

    def learn(self, infos: Iterable[PeerInfo]) -> None:
        """Puts the latest first."""
        for info in infos:
            if info.peer_id not in self.bootnodes:
                known = self._addresses.pop(info.peer_id, [])
                self._addresses[info.peer_id] = [*info.addrs, *(a for a in known if a not in info.addrs)][:4]
        while len(self._addresses) > _MAX_PEERS:
            self._forget(next(peer for peer in self._addresses if peer not in self.bootnodes))

    def due(self, number: int, excluded: Collection[ID]) -> list[ID]:
        """All bootnodes that are to be dialled now, and up to `number` others."""
        now = time.monotonic()
        ready = [p for p in self._addresses if p not in excluded and self._waits.get(p, (0.0, 0.0))[0] <= now]
        others = [peer for peer in ready if peer not in self.bootnodes]
        chosen = random.sample(others, min(max(number, 0), len(others)))
        return [peer for peer in ready if peer in self.bootnodes] + chosen

    def reached(self, peer: ID) -> bool:
        """Whether this is news of a bootnode that could not be reached before."""
        self._waits.pop(peer, None)
        news = peer in self._unreachable
        self._unreachable.discard(peer)
        return news

    def failed(self, peer: ID) -> bool:
        """Waits longer each time. Returns whether this is news of a bootnode."""
        _, wait = self._waits.get(peer, (0.0, _FIRST_WAIT))
        self._waits[peer] = (time.monotonic() + wait * random.uniform(0.75, 1.25), min(2 * wait, _MAX_WAIT))
        if peer not in self.bootnodes:
            if wait >= _LAST_WAIT:
                self._forget(peer)
            return False
        news = wait >= _NEWS_WAIT and peer not in self._unreachable
        if news:
            self._unreachable.add(peer)
        return news

    def _forget(self, peer: ID) -> None:
        self._addresses.pop(peer, None)
        self._waits.pop(peer, None)
