"""Showing weights: an auditor asks for what leads to those that a record names, and fetches it in ranges.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
import trio
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.request_response import BytesCodec, RequestContext, RequestResponseConfig
from libp2p.request_response.exceptions import RequestDecodeError
from msgspec import Meta

from rlswarm_jax.records.schema import U63, Hash, Name
from rlswarm_jax.swarm.exchange import TIMEOUT, Requests, UnansweredError
from rlswarm_jax.swarm.host import Watch
from rlswarm_jax.swarm.transport import MAX_PARTS, RANGE, NotShownError, Part, Shelf

PROTOCOL = TProtocol("/rlswarm_jax/weights/1")
ATTEMPTS, PAUSE = 4, 3.0  # times, and seconds between them, that somebody is asked who does not answer
STARTING = 4.0  # seconds that an asker is held on while this node has no shelf yet; less than its own patience
MAX_HAVE = 64


class Request(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What leads to some weights, from any that the asker has; or, of a part of that, the bytes from `start` on."""

    swarm: Name
    weights: Hash
    have: Annotated[list[Hash], Meta(max_length=MAX_HAVE)]
    part: Hash | None
    start: U63


class Reply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """parts: oldest first; none where the weights are not shown. data: of a part, empty where it is not here."""

    parts: Annotated[list[Part], Meta(max_length=MAX_PARTS)]
    data: Annotated[bytes, Meta(max_length=RANGE)]


_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_CONFIG = RequestResponseConfig(
    timeout=TIMEOUT,
    max_request_size=4096,
    max_response_size=RANGE + MAX_PARTS * 96 + 64,
    max_concurrent_inbound=1 << 16,  # of all peers together: no bound, as each has its own
)


class Showing:
    """Both sides of the protocol. shelf: what this node shows, once it knows.

    is_direct: whether a peer is connected, without a relay.
    """

    def __init__(
        self,
        host: IHost,
        swarm: str,
        shelf: Callable[[], Shelf | None],
        is_direct: Callable[[ID], bool],
        watch: Watch,
    ):
        self._swarm, self._shelf, self._is_direct, self._watch = swarm, shelf, is_direct, watch
        self._requests = Requests(host, watch, _CONFIG.max_request_size)
        self._requests.set_handler(PROTOCOL, self._serve, BytesCodec(), _CONFIG)

    async def fetch(self, peer: ID, weights: bytes, have: Sequence[bytes], limit: int) -> list[bytes]:
        """The parts that lead to some weights, oldest first, each checked against its hash.

        limit: bytes, of all of them. Raises NotShownError.
        """
        got: dict[bytes, bytearray] = {}
        for attempt in range(ATTEMPTS):
            if attempt:
                await trio.sleep(PAUSE)
            try:
                return await self._fetch(peer, weights, have, limit, got)
            except UnansweredError as error:
                if error.cause != "silent":
                    raise NotShownError(str(error), withheld=True) from None
                why = str(error)
        raise NotShownError(why, withheld=self._is_direct(peer))  # else whoever is between may be to blame

    async def _fetch(
        self, peer: ID, weights: bytes, have: Sequence[bytes], limit: int, got: dict[bytes, bytearray]
    ) -> list[bytes]:
        parts = (await self._ask(peer, Request(self._swarm, weights, [*have][-MAX_HAVE:], None, 0))).parts
        if not parts:
            raise NotShownError("it shows no such weights", withheld=True)
        if sum(part.size for part in parts) > limit:
            raise NotShownError(f"they take more than {limit} bytes", withheld=False)
        for part in parts:
            held = got.setdefault(part.hash, bytearray())
            while len(held) < part.size:
                data = (await self._ask(peer, Request(self._swarm, weights, [], part.hash, len(held)))).data
                if not data or len(held) + len(data) > part.size:
                    raise NotShownError("it does not send what it announced", withheld=True)
                held += data
            if hashlib.sha256(held).digest() != part.hash:
                self._watch.offend(peer, "network/malformed")
                raise NotShownError("it sent other bytes than it announced", withheld=True)
        return [bytes(got[part.hash]) for part in parts]

    async def _ask(self, peer: ID, request: Request) -> Reply:
        return await self._requests.ask(peer, PROTOCOL, request, _replies, _CONFIG, "audit/bytes_fetched")

    async def _serve(self, raw: bytes, context: RequestContext) -> bytes:
        peer = context.peer_id
        request = await self._requests.admit(peer, raw, _requests)
        if request.swarm != self._swarm:
            self._watch.offend(peer, "rejected/wrong swarm")
        shelf, reply = await self._ready(), Reply([], b"")
        if request.swarm == self._swarm:
            if request.part is None:
                parts = [Part(one.hash, one.size, one.weights) for one in shelf.path(request.weights, request.have)]
                reply = Reply(parts[:MAX_PARTS], b"")
            else:
                reply = Reply([], shelf.read(request.part, request.start, RANGE))
        answer = msgspec.msgpack.encode(reply)
        self._watch.count("network/bytes_out", len(answer))
        self._watch.count("audit/bytes_shown", len(answer))
        return answer

    async def _ready(self) -> Shelf:
        """The shelf. A node that was just started is reached before it has one, and must not deny what it will show.

        Raises RequestDecodeError: whoever asks is not answered, and asks again.
        """
        until = trio.current_time() + STARTING
        while (shelf := self._shelf()) is None:
            if trio.current_time() > until:
                raise RequestDecodeError("this node has only just been started")
            await trio.sleep(0.05)
        return shelf
