"""A peer that speaks libp2p and sends what it likes: frames byte by byte, messages with any field, lies on request."""

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import trio
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.custom_types import TProtocol
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX, Pubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from rlswarm_jax.identity import Identity
from rlswarm_jax.swarm.exchange import PROTOCOL
from rlswarm_jax.swarm.frames import read_frame, topic_of
from rlswarm_jax.swarm.host import make_host
from rlswarm_jax.swarm.router import PROTOCOLS


class HostilePeer:
    """Connected with one node, on a thread of its own. heard: the messages of the frames it was sent; deaf reads none.

    told: the ids of messages that it was told of (IHAVE).
    """

    def __init__(
        self, identity: Identity, address: str, swarm: str = "tests", *, stock: bool = False, deaf: bool = False
    ):
        self.identity, self.topic = identity, topic_of(swarm)
        self.heard: list[rpc_pb2.Message] = []
        self.told: set[bytes] = set()
        self.received: list[bytes] = []  # data that the library's own gossipsub accepted, for stock=True
        self.serve: Callable[[Any], Awaitable[None]] | None = None  # what it does with a request for a record
        self._stock, self._deaf, self._target = stock, deaf, info_from_p2p_addr(Multiaddr(address))
        self._ready: Future[None] = Future()
        self._seqno = time.time_ns()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        self._ready.result(30)

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _run(self) -> None:
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        self._host = make_host(self.identity, 64)
        async with contextlib.AsyncExitStack() as stack:
            if self._stock:
                router = GossipSub(PROTOCOLS, 6, 4, 12, heartbeat_interval=1)
                self._pubsub = Pubsub(self._host, router, strict_signing=True)
                await stack.enter_async_context(background_trio_service(router))
                await stack.enter_async_context(background_trio_service(self._pubsub))
                subscription = await self._pubsub.subscribe(self.topic)
            else:
                for protocol in PROTOCOLS:
                    self._host.set_stream_handler(protocol, self._listen)
                self._host.set_stream_handler(PROTOCOL, self._answer)
            await stack.enter_async_context(self._host.run([]))
            nursery = await stack.enter_async_context(trio.open_nursery())
            await self._host.connect(self._target)
            if self._stock:
                nursery.start_soon(self._collect, subscription)
            else:
                self.stream = await self._host.new_stream(self._target.peer_id, PROTOCOLS)
                entry = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=self.topic)
                await self.stream.write(framed(rpc_pb2.RPC(subscriptions=[entry])))
            self._ready.set_result(None)
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    async def _collect(self, subscription: Any) -> None:
        while True:
            self.received.append((await subscription.get()).data)

    async def _listen(self, stream: Any) -> None:
        buffer = bytearray()
        with contextlib.suppress(StreamError):
            while True:
                if self._deaf:
                    await trio.sleep_forever()
                rpc = rpc_pb2.RPC()
                rpc.ParseFromString(await read_frame(stream, buffer))
                self.heard.extend(rpc.publish)
                self.told.update(*(entry.messageIDs for entry in rpc.control.ihave))

    async def _answer(self, stream: Any) -> None:
        if self.serve is not None:
            await self.serve(stream)
        await stream.reset()

    def do(self, act: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return trio.from_thread.run(act, *args, trio_token=self._token)

    def send(self, *frames: bytes) -> None:
        """Writes bytes on the gossip stream; a stream that was closed meanwhile is what it asked for."""

        async def write() -> None:
            with contextlib.suppress(StreamError):
                for frame in frames:
                    await self.stream.write(frame)

        self.do(write)

    def open_streams(self, number: int, first: bytes = b"") -> None:
        """More gossip streams, each with the same first bytes; the last of them is the one it sends on."""

        async def open_one() -> None:
            for _ in range(number):
                self.stream = await self._host.new_stream(self._target.peer_id, PROTOCOLS)
                await self.stream.write(first)

        self.do(open_one)

    def hold_requests(self, number: int, last: bytes = b"") -> None:
        """Opens streams where requests are expected; says nothing, or something on the last, whatever its window."""

        async def open_all() -> None:
            for _ in range(number):
                stream = await self._host.new_stream(self._target.peer_id, [PROTOCOL])
            stream.muxed_stream.send_window = 1 << 30
            with contextlib.suppress(StreamError):
                await stream.write(last)

        self.do(open_all)

    def request(self, raw: bytes, protocol: TProtocol = PROTOCOL) -> None:
        """Sends bytes where a request is expected."""

        async def write() -> None:
            stream = await self._host.new_stream(ID(self._target.peer_id.to_bytes()), [protocol])
            await stream.write(encode_varint_prefixed(raw))

        self.do(write)

    def push_identity(self, raw: bytes) -> None:
        """Says of itself what it likes (identify/push)."""

        async def write() -> None:
            stream = await self._host.new_stream(ID(self._target.peer_id.to_bytes()), [ID_PUSH])
            await stream.write(encode_varint_prefixed(raw))

        self.do(write)

    def publish(self, data: bytes) -> None:
        """By the library's own gossipsub; for stock=True."""
        self.do(self._pubsub.publish, self.topic, data)

    def message(self, data: bytes, /, **fields: Any) -> rpc_pb2.Message:
        """A signed message; `fields` replace its own after it was signed."""
        self._seqno += 1
        private = Secp256k1PrivateKey.from_bytes(self.identity.expose_secret())
        own = ID.from_base58(self.identity.peer_id).to_bytes()
        seqno = self._seqno.to_bytes(8, "big")
        message = rpc_pb2.Message(data=data, topicIDs=[self.topic], from_id=own, seqno=seqno)
        signature = private.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        known = {"data": data, "topicIDs": [self.topic], "from_id": own, "seqno": seqno, "signature": signature}
        return rpc_pb2.Message(**(known | fields))

    def close(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(10)


def framed(rpc: rpc_pb2.RPC) -> bytes:
    return encode_varint_prefixed(rpc.SerializeToString())
