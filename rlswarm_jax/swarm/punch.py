"""From a connection through a relay to a direct one, where the routers between let both ends open it at once.

libp2p's DCUtR (https://github.com/libp2p/specs/blob/master/relay/DCUtR.md) over TCP: both ends tell each other where
they may be reached, and dial at the same moment from the port that they listen on, so that each one's packets open its
router for the other's. It takes routers that keep the port, as most at home do; else the relay goes on.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import contextlib
from collections.abc import Callable, Sequence

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.addresses import Scope
from rlswarm_jax.swarm.frames import MalformedError
from rlswarm_jax.swarm.host import Watch, hang_up, quietly
from rlswarm_jax.swarm.limits import Buckets
from rlswarm_jax.swarm.relay import Relay, receive, send
from rlswarm_jax.swarm.tcp import dial_from_listening

PROTOCOL = TProtocol("/libp2p/dcutr")
TIMEOUT, MOMENT = 10.0, 4.0  # seconds that they may take to agree on a moment, and to meet then
ATTEMPTS, PAUSE = 3, 2.0
SETTLE = 1.0  # seconds that the relayed connection stays beside the direct one
_MAX_ADDRESSES = 2
_OF_ALL = 0.2, 8.0  # tries a second and at once: the other end may name whomever it likes


class Punch:
    """Both sides. own: where this node may be reached by what its relays see of it."""

    def __init__(self, host: IHost, relay: Relay, own: Callable[[], Sequence[Multiaddr]], watch: Watch):
        self._host, self._relay, self._own, self._watch = host, relay, own, watch
        self._tries = Buckets(*_OF_ALL)
        self._busy: set[ID] = set()
        host.set_stream_handler(PROTOCOL, self._answer)

    async def begin(self, peer: ID) -> None:
        """What one does to whom another one has come through a relay."""
        if peer in self._busy or not self._own():
            return
        self._busy.add(peer)
        try:
            for attempt in range(ATTEMPTS):
                await trio.sleep(PAUSE if attempt else SETTLE)
                if self._relay.is_direct(peer) or not self._tries.take(b""):
                    return
                with trio.move_on_after(TIMEOUT + MOMENT):
                    await self._try(peer)
        except Exception:  # the streams' errors are many: there is a connection without it
            self._watch.count("network/not_punched")
        finally:
            self._busy.discard(peer)

    async def _try(self, peer: ID) -> None:
        stream, buffer = await self._host.new_stream(peer, [PROTOCOL]), bytearray()
        try:
            sent = trio.current_time()
            await send(stream, self._hello())
            theirs = _addresses(await receive(stream, buffer, HolePunch))
            half = (trio.current_time() - sent) / 2
            await send(stream, HolePunch(type=HolePunch.SYNC))
            await trio.sleep(half)
            await self._meet(peer, theirs, first=False)
        finally:
            await quietly(stream.reset)

    async def _answer(self, stream: INetStream) -> None:
        peer, buffer = stream.muxed_conn.peer_id, bytearray()
        try:
            if peer in self._busy or self._relay.is_direct(peer) or not self._tries.take(b""):
                return
            self._busy.add(peer)
            try:
                with trio.fail_after(TIMEOUT):
                    theirs = _addresses(await receive(stream, buffer, HolePunch))
                    await send(stream, self._hello())
                    if (await receive(stream, buffer, HolePunch)).type != HolePunch.SYNC:
                        raise MalformedError("it gives no moment")
                await self._meet(peer, theirs, first=True)
            finally:
                self._busy.discard(peer)
        except MalformedError:
            self._watch.offend(peer, "network/malformed")
        except Exception:  # the streams' errors are many: there is a connection without it
            self._watch.count("network/not_punched")
        finally:
            await quietly(stream.reset)

    def _hello(self) -> HolePunch:
        return HolePunch(type=HolePunch.CONNECT, ObsAddrs=[one.to_bytes() for one in self._own()[:_MAX_ADDRESSES]])

    async def _meet(self, peer: ID, theirs: Sequence[Multiaddr], first: bool) -> None:
        """Dials them now. first: whether this end had dialled the other through the relay: so it does here, too."""
        network = self._host.get_network()
        relayed = network.get_connections(peer)
        for address in theirs:
            made: TrioTCPStream | None = None
            with trio.move_on_after(MOMENT):
                made = await dial_from_listening(network.listeners.values(), address)
            if made is None:
                continue
            with trio.fail_after(MOMENT):
                raw = RawConnection(made, first)
                if first:
                    await network.upgrade_outbound_raw_conn(raw, peer)
                else:
                    await network.upgrade_inbound_raw_conn(raw, address)
            if not self._relay.is_direct(peer):  # somebody else was there
                return self._watch.count("network/not_punched")
            self._watch.count("network/punched")
            await trio.sleep(SETTLE)
            for one in relayed:
                await hang_up(one)
            return None
        return self._watch.count("network/not_punched")


def _addresses(said: HolePunch) -> list[Multiaddr]:
    """Those across the internet, over TCP, as far as they can be read. Raises MalformedError."""
    if said.type != HolePunch.CONNECT:
        raise MalformedError("it does not say where it is")
    found: list[Multiaddr] = []
    for raw in said.ObsAddrs[:8]:
        with contextlib.suppress(MultiaddrError, ValueError, LookupError):
            place = addresses.read_endpoint(str(Multiaddr(raw)))
            if place and not place.is_name and addresses.scope_of(place.host) is Scope.GLOBAL:
                found.append(Multiaddr(f"/{place.kind}/{place.host}/tcp/{place.port}"))
    return found[:_MAX_ADDRESSES]
