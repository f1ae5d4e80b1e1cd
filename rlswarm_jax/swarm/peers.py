"""Where other nodes can be reached, and when to try again.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import functools
import itertools
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.addresses import NodeAddress, Scope, ip_of, may_tell, range_of, scope_of
from rlswarm_jax.swarm.exchange import MAX_PEER_ADDRESSES
from rlswarm_jax.swarm.limits import Buckets
from rlswarm_jax.swarm.memory import MAX_KEPT, MAX_KEPT_OF_RANGE
from rlswarm_jax.swarm.transport import NetworkError

_MAX_PEERS = 256
_HINTS_A_MINUTE = 32  # new addresses that one peer may tell
_FIRST_WAIT, _MAX_WAIT = 0.5, 30.0  # seconds
_NEWS_SECONDS = 3.0  # out of reach before anyone is told: nodes that start together take a moment to listen
_LAST_WAIT = 8.0  # after which a peer that others told us of is forgotten; a bootnode or one that was kept never is
_LOOKUPS = trio.CapacityLimiter(8)  # threads: the system's resolver may take its time

Place: TypeAlias = Multiaddr | NodeAddress  # the latter for a name, of which the library takes some, in its own way


async def look_up(place: Place) -> list[Multiaddr]:
    """What a place stands for now: a name's addresses change. Raises UnknownNameError."""
    if isinstance(place, Multiaddr):
        return [place]
    with trio.move_on_after(addresses.LOOKUP_SECONDS):
        act = functools.partial(addresses.resolve, place)
        texts = await trio.to_thread.run_sync(act, abandon_on_cancel=True, limiter=_LOOKUPS)  # type: ignore[call-arg]
        return [Multiaddr(text) for text in texts]
    raise addresses.UnknownNameError(f"the name {place.host} was not resolved in {addresses.LOOKUP_SECONDS:.0f} s")


class AddressBook:
    """bootnodes: multiaddrs by peer. kept: peers that were there, by peer id with their addresses, the latest last.

    Whatever peers told us is a hint: dialling proves the key.
    """

    def __init__(self, bootnodes: Iterable[str], me: ID, kept: Mapping[str, Sequence[str]] | None = None):
        self.bootnodes: dict[ID, str] = {}
        self._addresses: collections.OrderedDict[ID, list[Place]] = collections.OrderedDict()
        self._waits: dict[ID, tuple[float, float]] = {}  # when to dial again, and how long to wait after that
        self._unreachable: set[ID] = set()
        self._reached: dict[ID, float] = {}  # when, of bootnodes
        self._made = time.monotonic()
        self._worked: set[ID] = set()  # dialled with success: their first address is the one
        self._hints = Buckets(_HINTS_A_MINUTE / 60, burst=_HINTS_A_MINUTE)
        self._kept: dict[ID, None] = {}
        for text in bootnodes:
            if (place := addresses.read(text)) is None:
                raise NetworkError(
                    f"the bootnode {text!r} is not an address like /ip4/1.2.3.4/tcp/4001/p2p/16Uiu2... or "
                    "/dns4/example.org/tcp/4001/p2p/16Uiu2...; "
                    "correct config.swarm.bootnodes."
                )
            if (peer := ID.from_base58(place.peer_id)) != me:
                self.bootnodes[peer] = text
                self._addresses.setdefault(peer, []).append(_place(place))
        for place in filter(None, map(addresses.read, itertools.chain(*(kept or {}).values()))):
            if (peer := ID.from_base58(place.peer_id)) != me and peer not in self.bootnodes:
                self._kept[peer] = None
                self._addresses.setdefault(peer, []).append(_place(place))

    def keep(self, peer: ID, reached: Sequence[Multiaddr], present: Collection[ID]) -> None:
        """Remembers a peer that has been there for a while: who has left longest ago makes room, nobody present.

        Of one range of addresses only a few are kept, so that nobody's many machines are all that it knows.
        reached: where it was.
        """
        known = self._addresses.get(peer, [])
        names = [place for place in known if isinstance(place, NodeAddress)]
        self._addresses[peer] = [*names, *reached][:MAX_PEER_ADDRESSES]
        self._kept.pop(peer, None)
        kin = [one for one in self._kept if self._range(one) == self._range(peer)]
        crowded = len(kin) >= MAX_KEPT_OF_RANGE and scope_of(ip_of(reached[0])) is Scope.GLOBAL
        if crowded or len(self._kept) >= MAX_KEPT:
            gone = next((one for one in (kin if crowded else self._kept) if one not in present), None)
            if gone is None:
                return
            del self._kept[gone]
        self._kept[peer] = None

    def _range(self, peer: ID) -> str:
        """That of the first of its addresses that is of numbers."""
        return next((range_of(ip) for place in self._addresses.get(peer, []) if (ip := ip_of(place))), "")

    @property
    def kept(self) -> dict[str, list[str]]:
        """Addresses by peer id, whoever came last at the end."""
        return {str(peer): [_text(place, peer) for place in self.addresses(peer)] for peer in self._kept}

    def addresses(self, peer: ID) -> list[Place]:
        return self._addresses.get(peer, [])[:MAX_PEER_ADDRESSES]

    def learn(self, infos: Iterable[PeerInfo], source: bytes, scope: Scope = Scope.LOOPBACK) -> None:
        """Takes hints, so many a minute of each source, the latest first but behind an address that has worked.

        scope: from how far away they come. When the book is full a hint makes room only by other hints.
        """
        for info in infos:
            known = self._addresses.get(info.peer_id, [])
            usable = [address for address in info.addrs if may_tell(ip_of(address), scope)]
            news = [address for address in usable if address not in known]
            if not known and not news:
                continue
            if info.peer_id in self.bootnodes or (news and not self._hints.take(source)):
                continue
            kept = int(info.peer_id in self._worked)
            self._addresses[info.peer_id] = [*known[:kept], *news, *known[kept:]][:MAX_PEER_ADDRESSES]
            self._addresses.move_to_end(info.peer_id)
        while len(self._addresses) > _MAX_PEERS:
            # the oldest of those that never worked; there is one, as all that is new has yet to
            lasting = self.bootnodes.keys() | self._worked | self._kept.keys()
            self._forget(next(p for p in self._addresses if p not in lasting))

    def due(self, number: int, excluded: Collection[ID]) -> list[ID]:
        """All bootnodes that are to be dialled now, and up to `number` others: first those that worked before, and of
        these or the rest from as many ranges of addresses as there are.
        """
        now = time.monotonic()
        ready = [p for p in self._addresses if p not in excluded and self._waits.get(p, (0.0, 0.0))[0] <= now]
        others = [peer for peer in ready if peer not in self.bootnodes]
        random.shuffle(others)
        turns: collections.Counter[str] = collections.Counter()
        turn = {peer: turns.update([self._range(peer)]) or turns[self._range(peer)] for peer in others}
        others.sort(key=lambda peer: (peer not in self._worked and peer not in self._kept, turn[peer]))
        return [peer for peer in ready if peer in self.bootnodes] + others[: max(number, 0)]

    def reached(self, peer: ID, address: Place) -> bool:
        """Notes where a peer was reached. Returns whether this is news of a bootnode that could not be before."""
        if peer in self._addresses:  # not crowded out meanwhile
            self._addresses[peer] = [address, *(a for a in self._addresses[peer] if a != address)]
            self._worked.add(peer)
        self._waits.pop(peer, None)
        if peer in self.bootnodes:
            self._reached[peer] = time.monotonic()
        news = peer in self._unreachable
        self._unreachable.discard(peer)
        return news

    def failed(self, peer: ID) -> bool:
        """Waits longer each time. Returns whether this is news of a bootnode."""
        now, (_, wait) = time.monotonic(), self._waits.get(peer, (0.0, _FIRST_WAIT))
        self._waits[peer] = (now + wait * random.uniform(0.75, 1.25), min(2 * wait, _MAX_WAIT))
        if peer not in self.bootnodes:
            if wait >= _LAST_WAIT and peer not in self._kept:
                self._forget(peer)
            return False
        news = now - self._reached.get(peer, self._made) >= _NEWS_SECONDS and peer not in self._unreachable
        if news:
            self._unreachable.add(peer)
        return news

    def _forget(self, peer: ID) -> None:
        self._addresses.pop(peer, None)
        self._worked.discard(peer)
        self._waits.pop(peer, None)


def _place(address: NodeAddress) -> Place:
    return address if address.is_name else Multiaddr(address.text).decapsulate_code(421)  # the code of /p2p


def _text(place: Place, peer: ID) -> str:
    return place.text if isinstance(place, NodeAddress) else f"{place}/p2p/{peer}"
