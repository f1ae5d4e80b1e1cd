"""Where peers that are here can be dialled, found out by dialling: only that is remembered, and passed on to others.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import time
from collections.abc import Callable, Set

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.addresses import Scope
from rlswarm_jax.swarm.exchange import MAX_ADDRESSES, MAX_PEER_ADDRESSES
from rlswarm_jax.swarm.host import DIAL_TIMEOUT, Watch, quietly
from rlswarm_jax.swarm.limits import Buckets

AGAIN = 60.0  # seconds after which one that could not be reached is tried again
PATIENCE = 1.0  # seconds that a newcomer's first greeting waits for those who came with it to be tried
_OF_RANGE, _IN_ALL = (0.5, 32), (4.0, 64)  # tries a second and at once: a stranger may name whomever it likes
_AT_ONCE = 4


class Reaching:
    """told: where a peer says that it listens."""

    def __init__(self, host: IHost, told: Callable[[ID], list[Multiaddr]], watch: Watch):
        self._host, self._told, self._watch = host, told, watch
        self._reached: dict[ID, list[Multiaddr]] = {}
        self._again: dict[ID, float] = {}  # when to try next
        self._trying: dict[ID, float] = {}  # since when
        self._answered: set[ID] = set()  # who has had its first greeting
        self._of_range, self._in_all = (Buckets(rate, burst) for rate, burst in (_OF_RANGE, _IN_ALL))
        self._slots = trio.CapacityLimiter(_AT_ONCE)

    def reached(self, peer: ID) -> list[Multiaddr]:
        """Where it was."""
        return self._reached.get(peer, [])[:MAX_PEER_ADDRESSES]

    def note(self, peer: ID, address: Multiaddr) -> None:
        """It was reached there."""
        known = self._reached.setdefault(peer, [])
        if address not in known:
            known.append(address)

    def scope(self, peer: ID) -> Scope:
        """From how far away it is connected."""
        found = [one.muxed_conn.get_remote_address() for one in self._host.get_network().get_connections(peer)]
        return max((addresses.scope_of(one[0]) for one in found if one), default=Scope.GLOBAL)

    def look(self, live: Set[ID], present: Set[ID]) -> None:
        """Takes who is connected and who takes part, and tries those of whom it is not known where to reach them."""
        now = time.monotonic()
        tables: tuple[dict, ...] = (self._reached, self._again)
        for table in tables:
            for peer in table.keys() - live:
                del table[peer]
        self._answered &= live
        for peer in present - self._trying.keys():
            if now < self._again.get(peer, 0.0):
                continue
            scope = self.scope(peer)
            known = self.reached(peer)
            told = [one for one in dict.fromkeys(self._told(peer)) if addresses.may_tell(addresses.ip_of(one), scope)]
            left = [one for one in told if one not in known][: MAX_PEER_ADDRESSES - len(known)]
            if left and self._may_try(peer, len(left)):
                self._trying[peer] = now
                self._again[peer] = now + AGAIN
                self._watch.spawn(self._try, peer, left)

    def _may_try(self, peer: ID, number: int) -> bool:
        found = self._host.get_network().get_connections(peer)
        remote = found[0].muxed_conn.get_remote_address() if found else None
        key = addresses.range_of(remote[0] if remote else "").encode()
        return self._of_range.take(key, number) and self._in_all.take(b"", number)

    async def _try(self, peer: ID, told: list[Multiaddr]) -> None:
        try:
            for address in told:
                async with self._slots:
                    if await self._answers(peer, address) and peer in self._again:  # it is still here
                        self.note(peer, address)
        finally:
            del self._trying[peer]
        if not self.reached(peer):
            self._watch.count("network/not_reached")

    async def _answers(self, peer: ID, address: Multiaddr) -> bool:
        """Whether the peer is who answers there: a handshake proves its key, and then we hang up."""
        network, answers = self._host.get_network(), False
        transport = network.transport_manager.transport_for_dialing(address)
        if transport is None:
            return False
        with trio.move_on_after(DIAL_TIMEOUT):
            try:
                raw = await transport.dial(address)
            except Exception:  # the library's many, and the system's
                return False
            try:
                await network.upgrader.upgrade_security(raw, True, peer)
                answers = True
            except Exception:  # whatever one who is no such peer makes of it
                return False
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await quietly(raw.close)
        return answers

    async def of_others(self, asker: ID) -> list[str]:
        """Where the others are, as far as the asker can have use for it; its first question waits for a moment."""
        if asker not in self._answered:
            self._answered.add(asker)
            with trio.move_on_after(PATIENCE):
                while any(since > time.monotonic() - PATIENCE for since in self._trying.values()):
                    await trio.sleep(0.02)
        scope, found = self.scope(asker), list[str]()
        for peer in self._reached.keys() - {asker}:
            found += [
                f"{one}/p2p/{peer}" for one in self.reached(peer) if addresses.may_tell(addresses.ip_of(one), scope)
            ]
        return found[:MAX_ADDRESSES]
