"""Requests between two peers: fetching an announced record, and greeting (latest records, addresses of others).

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import hashlib
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.request_response import BytesCodec, RequestContext, RequestResponse, RequestResponseConfig
from libp2p.request_response.exceptions import (
    MessageTooLargeError,
    ProtocolNotSupportedError,
    RequestDecodeError,
    RequestResponseError,
)
from msgspec import Meta
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from rlswarm_jax.records.envelope import MAX_ENVELOPE_BYTES
from rlswarm_jax.records.schema import STAGES, Hash, Name, RecordError
from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.frames import MalformedError, read_frame
from rlswarm_jax.swarm.host import Watch

PROTOCOL = TProtocol("/rlswarm_jax/exchange/2")
MAX_LATEST = len(STAGES)  # of its own that a node greets with: those of a round
MAX_ADDRESSES, MAX_PEER_ADDRESSES = 32, 4  # in a reply, and of one peer
STORE_BYTES = 64 << 20
TIMEOUT = 5.0  # seconds a request may take
ARRIVAL_TIMEOUT = 2.0  # seconds in which a request must come once its stream is open
_PULLS, _SERVED = 4, 4  # from one peer, and requests of one peer, at the same time

Address = Annotated[str, Meta(max_length=256)]


class Request(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """hash: SHA-256 of the envelope to fetch; None greets. known: of those of the peer's own that need not be sent."""

    swarm: Name
    hash: Hash | None
    known: Annotated[list[Hash], Meta(max_length=MAX_LATEST)]


class Reply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """records: what was asked for, or the latest own ones not known. addresses: of peers, to a greeting only."""

    records: Annotated[list[Annotated[bytes, Meta(max_length=MAX_ENVELOPE_BYTES)]], Meta(max_length=MAX_LATEST)]
    addresses: Annotated[list[Address], Meta(max_length=MAX_ADDRESSES)]


_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_CONFIG = RequestResponseConfig(
    timeout=TIMEOUT,
    max_request_size=1024,
    max_response_size=MAX_LATEST * (MAX_ENVELOPE_BYTES + 8) + MAX_ADDRESSES * 260 + 64,
    max_concurrent_inbound=1 << 16,  # of all peers together: no bound, as each has its own
)


class Store:
    """Records that peers may fetch, by the SHA-256 of their bytes; those used longest ago make room."""

    def __init__(self, max_bytes: int = STORE_BYTES):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._held: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()

    def put(self, raw: bytes) -> bytes:
        envelope_hash = hashlib.sha256(raw).digest()
        if envelope_hash not in self._held:
            self._held[envelope_hash] = raw
            self._bytes += len(raw)
        self._held.move_to_end(envelope_hash)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._held.popitem(last=False)[1])
        return envelope_hash

    def get(self, envelope_hash: bytes) -> bytes | None:
        if envelope_hash in self._held:
            self._held.move_to_end(envelope_hash)
        return self._held.get(envelope_hash)


def parse_address(text: str) -> PeerInfo | None:
    """The peer that an address names; None unless it is host, TCP port and the peer id of a secp256k1 key."""
    found = addresses.read(text)
    if found is None:
        return None
    try:
        address = Multiaddr(text).decapsulate_code(421)  # the code of /p2p
        return PeerInfo(ID.from_base58(found.peer_id), [address])
    except (MultiaddrError, ValueError, KeyError, LookupError):
        return None


def listening(host: IHost, peer: ID) -> list[str]:
    """Where a peer says that it listens, as addresses that `parse_address` takes."""
    store = host.get_peerstore()
    told = store.peer_info(peer).addrs if store.has_peer(peer) else []
    texts = [_as_text(address, peer) for address in told[: 4 * MAX_PEER_ADDRESSES]]
    return [text for text in texts if len(text) <= 256 and parse_address(text)]


def _as_text(address: Multiaddr, peer: ID) -> str:
    """The address of a peer; empty if it can't be read: some bytes are an address that is no text."""
    try:
        return f"{address.decapsulate_code(421)}/p2p/{peer}"
    except (MultiaddrError, ValueError, LookupError):
        return ""


class UnansweredError(RuntimeError):
    """A peer that gave no answer, and whether that is because it has no such protocol, was silent, or sent none."""

    def __init__(self, why: str, cause: Literal["unsupported", "silent", "malformed"]):
        super().__init__(why)
        self.cause = cause


Message = TypeVar("Message", bound=msgspec.Struct)


class Requests(RequestResponse):
    """The library's, reading much at once, counting what is too large, and serving each peer a few at a time.

    request_size: bytes that a request may have, by which it is told from a reply.
    """

    def __init__(self, host: IHost, watch: Watch, request_size: int):
        super().__init__(host)
        self._watch, self._request_size = watch, request_size
        self._served: weakref.WeakValueDictionary[ID, trio.CapacityLimiter] = weakref.WeakValueDictionary()

    async def ask(
        self,
        peer: ID,
        protocol: TProtocol,
        request: msgspec.Struct,
        replies: msgspec.msgpack.Decoder[Message],
        config: RequestResponseConfig,
        counted: str = "",
    ) -> Message:
        """A peer's answer. counted: under which name its bytes count, too. Raises UnansweredError."""
        raw = msgspec.msgpack.encode(request)
        try:
            answer = await self.send_request(peer, [protocol], raw, BytesCodec(), config)
        except ProtocolNotSupportedError:
            raise UnansweredError(f"it does not speak {protocol}", "unsupported") from None
        except (RequestResponseError, trio.TooSlowError) as error:
            raise UnansweredError(str(error), "silent") from None
        except Exception as error:  # what a stream that could not be opened raises is not documented
            raise UnansweredError(f"{type(error).__name__}: {error}", "silent") from None
        self._watch.count("network/bytes_out", len(raw))
        for name in filter(None, ("network/bytes_in", counted)):
            self._watch.count(name, len(answer))
        try:
            return replies.decode(answer)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._watch.offend(peer, "network/malformed")
            raise UnansweredError(f"an undecodable reply: {error}", "malformed") from None

    async def admit(self, peer: ID, raw: bytes, requests: msgspec.msgpack.Decoder[Message]) -> Message:
        """What a peer asks, once it may ask again. Raises RequestDecodeError."""
        self._watch.count("network/bytes_in", len(raw))
        try:
            request = requests.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._watch.offend(peer, "network/malformed")
            raise RequestDecodeError(str(error)) from None
        while not self._watch.allows(peer):
            await trio.sleep(0.05)  # whoever has much to fetch must not lose it
        return request

    async def _handle_inbound(self, protocol_id: TProtocol, registration: Any, stream: INetStream) -> None:
        limiter = self._served.setdefault(stream.muxed_conn.peer_id, trio.CapacityLimiter(_SERVED))
        async with limiter:  # whose others are silent waits for itself alone
            await super()._handle_inbound(protocol_id, registration, stream)

    async def _read_message(self, stream: INetStream, max_msg_size: int) -> bytes:
        is_request = max_msg_size == self._request_size
        try:
            with trio.fail_after(ARRIVAL_TIMEOUT if is_request else TIMEOUT):
                return await read_frame(stream, bytearray(), max_msg_size)
        except MalformedError as error:
            self._watch.offend(stream.muxed_conn.peer_id, "network/malformed")
            raise MessageTooLargeError(str(error)) from None


class Exchange:
    """Both sides of the protocol, on the host of one node. latest: the records this node published last.

    others: the addresses of others that a peer is told.
    """

    def __init__(
        self,
        host: IHost,
        swarm: str,
        store: Store,
        latest: Callable[[], Sequence[bytes]],
        others: Callable[[ID], Awaitable[list[str]]],
        watch: Watch,
    ):
        self._host, self._swarm, self._store, self._latest, self._watch = host, swarm, store, latest, watch
        self._others = others
        # of each peer its own: one that never answers must not keep others waiting
        self._pulls: weakref.WeakValueDictionary[ID, trio.CapacityLimiter] = weakref.WeakValueDictionary()
        self._requests = Requests(host, watch, _CONFIG.max_request_size)
        self._requests.set_handler(PROTOCOL, self._serve, BytesCodec(), _CONFIG)

    async def fetch(self, peer: ID, envelope_hash: bytes) -> bytes:
        """The bytes with this SHA-256, from a peer. Raises RecordError("unavailable")."""
        limiter = self._pulls.setdefault(peer, trio.CapacityLimiter(_PULLS))
        async with limiter:
            reply = await self._ask(peer, Request(self._swarm, envelope_hash, []))
        if not reply.records:
            raise RecordError("unavailable", "the peer that announced the record does not have it")
        (record,) = reply.records[:1]
        if hashlib.sha256(record).digest() != envelope_hash:
            self._watch.offend(peer, "network/malformed")
            raise RecordError("unavailable", "the peer sent other bytes than it announced")
        self._store.put(record)
        return record

    async def greet(self, peer: ID, known: Sequence[bytes]) -> tuple[list[bytes], list[PeerInfo]]:
        """The peer's latest records but for the `known`, and peers it is connected with.

        A stranger has no names looked up here: only addresses of numbers are taken. Raises RecordError("unavailable").
        """
        reply = await self._ask(peer, Request(self._swarm, None, list(known)))
        found = [parse_address(text) for text in reply.addresses if text.startswith("/ip")]
        return reply.records, [info for info in found if info and info.peer_id != self._host.get_id()]

    async def _ask(self, peer: ID, request: Request) -> Reply:
        try:
            return await self._requests.ask(peer, PROTOCOL, request, _replies, _CONFIG)
        except UnansweredError as error:
            if error.cause == "unsupported":
                return Reply([], [])  # a gossipsub peer that is no node
            raise RecordError("unavailable", str(error)) from None

    async def _serve(self, raw: bytes, context: RequestContext) -> bytes:
        peer = context.peer_id
        request = await self._requests.admit(peer, raw, _requests)
        if request.swarm != self._swarm:
            self._watch.offend(peer, "rejected/wrong swarm")
            reply = Reply([], [])
        elif request.hash is not None:
            stored = self._store.get(request.hash)
            reply = Reply([] if stored is None else [stored], [])
        else:
            news = [raw for raw in self._latest() if hashlib.sha256(raw).digest() not in request.known]
            reply = Reply(news, await self._others(peer))
        answer = msgspec.msgpack.encode(reply)
        self._watch.count("network/bytes_out", len(answer))
        return answer
