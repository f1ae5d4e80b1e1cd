"""Connections between two peers through a third that both are connected with (libp2p's circuit relay v2, wire format).

A node relays for those of its own swarm alone, between two that take part in it: few at a time, for a while, so many
bytes. What it relays is encrypted between the two, and each proves its key. It tells those who greet it of peers that
it could not dial, who may be dialled through it.

The library's own relay is not used: by it whoever asks reserves in anyone's name, a circuit that falls silent never
ends, and of two circuits of one peer the second closes the first one's streams.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import contextlib
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.abc import IHost, IMuxedConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, PeerId, Reservation, Status, StopMessage
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from rlswarm_jax.identity import author_of
from rlswarm_jax.swarm.frames import MalformedError, read_frame
from rlswarm_jax.swarm.host import Watch, quietly
from rlswarm_jax.swarm.limits import Buckets

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
MAX_CIRCUITS, MAX_OF_PEER = 16, 4  # that a node relays, and of them at either end of one peer
MAX_BYTES, MAX_SECONDS = 64 << 20, 3600  # of a circuit, both ways together
RATE = 1 << 20  # bytes a second, of all circuits
IDLE = 60.0  # seconds without a byte from either side
TIMEOUT = 5.0  # seconds that a circuit may take to be made
_CHUNK, _MAX_MESSAGE = 1 << 14, 4096
_ASKED = 1.0, 8.0  # circuits to this node that one relay may begin a second, and at once


Kind = TypeVar("Kind", bound=Message)


class _End:
    """A stream as what a connection is made of. begun: bytes that came behind the messages by which it was made."""

    def __init__(self, stream: INetStream, begun: bytearray):
        self._stream, self._begun = stream, begun

    async def read(self, n: int | None = None) -> bytes:
        """Empty where it has ended, in whatever way."""
        if self._begun:
            data = bytes(self._begun[:n])
            del self._begun[:n]
            return data
        try:
            return await self._stream.read(n or _CHUNK)
        except StreamError:
            return b""

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except StreamError as error:
            raise ConnectionClosedError(f"the circuit has ended: {error}", transport="relay") from None

    async def close(self) -> None:
        await quietly(self._stream.reset)

    def get_remote_address(self) -> tuple[str, int] | None:
        """The relay's."""
        return self._stream.get_remote_address()


class Relay:
    """All three roles. member: whether a peer takes part in this swarm now, and is connected. came: takes who has come
    through a relay.
    """

    def __init__(self, host: IHost, member: Callable[[ID], bool], came: Callable[[ID], None], watch: Watch):
        self._host, self._member, self._came, self._watch = host, member, came, watch
        self._circuits: collections.Counter[frozenset[ID]] = collections.Counter()
        self._pace = Buckets(RATE, burst=RATE)
        self._asked = Buckets(*_ASKED)
        self._relayed: weakref.WeakSet[IMuxedConn] = weakref.WeakSet()
        host.set_stream_handler(HOP, self._serve)
        host.set_stream_handler(STOP, self._take)

    def is_direct(self, peer: ID) -> bool:
        """Whether a connected peer is so without a relay."""
        connections = self._host.get_network().get_connections(peer)
        return any(one.muxed_conn not in self._relayed for one in connections)

    # --- at either end

    async def dial(self, through: ID, peer: ID) -> None:
        """Connects with a peer through another one that is connected. Raises SwarmException, or the library's many."""
        stream = await self._host.new_stream(through, [HOP])
        buffer = bytearray()
        try:
            with trio.fail_after(TIMEOUT):
                await send(stream, HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=peer.to_bytes())))
                answer = await receive(stream, buffer, HopMessage)
            if answer.type != HopMessage.STATUS or answer.status != Status.OK:
                raise SwarmException(f"no circuit through {through}: status {answer.status}")
            raw = RawConnection(_End(stream, buffer), True)
            made = await self._host.get_network().upgrade_outbound_raw_conn(raw, peer)
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await quietly(stream.reset)
            raise
        self._relayed.add(made.muxed_conn)

    async def _take(self, stream: INetStream) -> None:
        """Somebody who comes through a relay, and must prove its key like anyone."""
        relay, buffer = stream.muxed_conn.peer_id, bytearray()
        if not self._asked.take(relay.to_bytes()) or stream.muxed_conn in self._relayed or not self._member(relay):
            self._watch.count("network/refused")
            return await stream.reset()
        try:
            with trio.fail_after(TIMEOUT):
                wanted = await receive(stream, buffer, StopMessage)
                if wanted.type != StopMessage.CONNECT:
                    raise MalformedError("it does not ask for a circuit")
                await send(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
            raw = RawConnection(_End(stream, buffer), False)
            made = await self._host.get_network().upgrade_inbound_raw_conn(raw, Multiaddr(f"/p2p/{relay}"))
        except MalformedError:
            self._watch.offend(relay, "network/malformed")
            return await quietly(stream.reset)
        except Exception:  # whatever one that comes through makes of a handshake; the relay is not to blame
            return await quietly(stream.reset)
        self._relayed.add(made)
        return self._came(made.peer_id)

    # --- between them

    async def _serve(self, stream: INetStream) -> None:
        """One request of a peer: to be reachable through this node, or to reach another."""
        peer, buffer = stream.muxed_conn.peer_id, bytearray()
        try:
            with trio.fail_after(TIMEOUT):
                wanted = await receive(stream, buffer, HopMessage)
        except MalformedError:
            self._watch.offend(peer, "network/malformed")
            return await quietly(stream.reset)
        except (StreamError, trio.TooSlowError):
            return await quietly(stream.reset)
        allowed = self._member(peer) and stream.muxed_conn not in self._relayed and self._watch.allows(peer)
        if not allowed:
            return await self._refuse(stream, Status.PERMISSION_DENIED)
        if wanted.type == HopMessage.RESERVE:  # whoever takes part is reachable through this node without
            addresses = [address.to_bytes() for address in self._host.get_addrs()]
            kept = Reservation(expire=int(time.time()) + MAX_SECONDS, addrs=addresses)
            limit = Limit(duration=MAX_SECONDS, data=MAX_BYTES)
            answer = HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=kept, limit=limit)
            with contextlib.suppress(StreamError):
                await send(stream, answer)
            return await quietly(stream.close)
        target = ID(wanted.peer.id)
        if wanted.type != HopMessage.CONNECT or author_of(wanted.peer.id) is None or target == peer:
            return await self._refuse(stream, Status.MALFORMED_MESSAGE)
        if not self._member(target):
            return await self._refuse(stream, Status.NO_RESERVATION)
        ends = frozenset((peer, target))
        of_one = max(sum(number for pair, number in self._circuits.items() if one in pair) for one in ends)
        if self._circuits[ends] or of_one >= MAX_OF_PEER or self._circuits.total() >= MAX_CIRCUITS:
            return await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
        self._circuits[ends] += 1
        self._watch.count("network/circuits")
        try:
            await self._connect(stream, buffer, target)
        finally:
            del self._circuits[ends]
        return None

    async def _refuse(self, stream: INetStream, status: int) -> None:
        self._watch.count("network/circuits_refused")
        with contextlib.suppress(StreamError):
            await send(stream, HopMessage(type=HopMessage.STATUS, status=status))
        await quietly(stream.close)

    async def _connect(self, stream: INetStream, buffer: bytearray, target: ID) -> None:
        source, other, begun = stream.muxed_conn.peer_id, None, bytearray()
        limit = Limit(duration=MAX_SECONDS, data=MAX_BYTES)
        try:
            with trio.fail_after(TIMEOUT):
                other = await self._host.new_stream(target, [STOP])
                await send(other, StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=source.to_bytes()), limit=limit))
                answer = await receive(other, begun, StopMessage)
                if answer.type != StopMessage.STATUS or answer.status != Status.OK:
                    raise SwarmException("it does not want to be reached")
                await send(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK, limit=limit))
        except Exception:  # whatever a stream raises that cannot be opened, or a target that does not answer
            await self._refuse(stream, Status.CONNECTION_FAILED)
            return None if other is None else await quietly(other.reset)
        left = [MAX_BYTES]
        with trio.move_on_after(MAX_SECONDS):
            async with trio.open_nursery() as nursery:
                heard = [trio.current_time()]
                ends = _End(stream, buffer), _End(other, begun)
                for one, another in (ends, ends[::-1]):
                    nursery.start_soon(self._pump, one, another, left, heard, nursery.cancel_scope)
                while trio.current_time() < heard[0] + IDLE:
                    await trio.sleep_until(heard[0] + IDLE)
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.move_on_after(1.0):
            await quietly(stream.reset)
            await quietly(other.reset)
        return None

    async def _pump(
        self, one: _End, another: _End, left: list[int], heard: list[float], scope: trio.CancelScope
    ) -> None:
        """Until one end has closed, or they have had enough."""
        try:
            while left[0] > 0 and (data := await one.read(_CHUNK)):
                heard[0] = trio.current_time()
                left[0] -= len(data)
                self._watch.count("network/bytes_relayed", len(data))
                while not self._pace.take(b"", len(data)):
                    await trio.sleep(0.02)
                await another.write(data)
        except Exception:  # the stream's and the muxer's errors are many, and all mean that it is over
            pass
        scope.cancel()


async def send(stream: INetStream, message: Message) -> None:
    await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def receive(stream: INetStream, buffer: bytearray, kind: type[Kind]) -> Kind:
    """The next message; `buffer` keeps what came after it. Raises MalformedError."""
    message = kind()
    try:
        message.ParseFromString(await read_frame(stream, buffer, _MAX_MESSAGE))
    except DecodeError as error:
        raise MalformedError(str(error)) from None
    return message
