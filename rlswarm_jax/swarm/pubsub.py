"""Gossipsub for records: libp2p's, with every frame a peer can send contained, bounded and counted.

Stock peers understand it. Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import IHost, INetStream
from libp2p.exceptions import BaseLibp2pError, ValidationError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils import encode_varint_prefixed

from rlswarm_jax.identity import author_of
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.swarm import frames
from rlswarm_jax.swarm.frames import MalformedError
from rlswarm_jax.swarm.host import Watch, quietly
from rlswarm_jax.swarm.limits import Buckets, Seen
from rlswarm_jax.swarm.router import Outgoing, Router

WRITE_TIMEOUT = 10.0  # seconds a peer may take to read 64 KiB
_WINDOW_TIMEOUT = 4.9  # seconds: the muxer gives up after 5 if the peer has read all but this stream
_MAX_STREAMS = 2  # of one peer's that are read at a time: each may hold most of a frame
_BATCH_BYTES = 1 << 16
_PATIENCE = 1.0  # seconds to wait for another peer's copy of a record
_MAX_PULLS = 32  # waiting, of one peer's announcements
_MAX_RELAYS = 4096  # waiting to be forwarded
_BYTES, _STRANGERS_BYTES = 2 << 20, 1 << 19  # a second: of one peer, and of all that are strangers
_MESSAGE_BYTES = 1 << 14  # that a stranger's message counts for besides its own: what it costs, however short it is


class RecordPubsub(Pubsub):
    """One topic of signed records. Nothing that a peer sends raises out of it."""

    router: Router
    seen_messages: Any

    def __init__(self, host: IHost, swarm: str, watch: Watch, author_rate: float, peer_rate: float, relay_wait: float):
        self.swarm, self.topic, self.watch = swarm, frames.topic_of(swarm), watch
        self._relay_wait = relay_wait  # at most, in seconds
        super().__init__(
            host,
            Router(watch.count, self.sources),
            strict_signing=True,
            allowed_topics={self.topic},
            max_inbound_rpc_size=frames.MAX_FRAME_BYTES,
        )
        self.seen_messages.stop()  # it has a thread, and no bound
        self.seen_messages = Seen()
        self.counter = time.time_ns()  # a restarted node must not repeat sequence numbers its peers have seen
        self.writing = 0  # frames taken from a queue and not handed to their stream yet
        self._authors, self._forwarders = Buckets(author_rate), Buckets(peer_rate)
        self._repeated, self._frames = Buckets(author_rate / 4), Buckets(4 * peer_rate)
        self._bytes, self._strangers_bytes = (
            Buckets(_BYTES, 8 * _BYTES),
            Buckets(_STRANGERS_BYTES, 4 * _STRANGERS_BYTES),
        )
        self._registering: set[ID] = set()
        self._reading: dict[ID, list[trio.CancelScope]] = {}  # each stream's, oldest first
        self._subscribed: dict[ID, set[INetStream]] = {}  # who, and the streams on which it said so
        self._relaying: dict[bytes, set[ID]] = {}  # message id: who has sent it
        self._pulling: dict[bytes, trio.Event] = {}
        self._waiting: collections.Counter[ID] = collections.Counter()

    # --- what is sent

    def get_hello_packet(self) -> rpc_pb2.RPC:
        return rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=t) for t in self.topic_ids])

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """Once at a time for each peer: of two streams opened at once, one would be written to no more, nor closed."""
        if peer_id not in self._registering:
            self._registering.add(peer_id)
            try:
                await super()._handle_new_peer(peer_id)
            finally:
                self._registering.discard(peer_id)

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """Writes what is queued for a peer, several small frames at once; hangs up if it does not read."""
        queue._queue = Outgoing(queue._queue)
        while (item := await queue.pop()) is not None:
            batch, messages = b"", 0
            while item is not None:
                messages += 1 if isinstance(item, bytes) else len(item.publish)
                batch += item if isinstance(item, bytes) else encode_varint_prefixed(item.SerializeToString())
                item = queue._queue.pop() if len(batch) < _BATCH_BYTES else None
            self.writing += 1
            try:
                for start in range(0, len(batch), _BATCH_BYTES):
                    begun = trio.current_time()
                    with trio.fail_after(WRITE_TIMEOUT):
                        await stream.write(batch[start : start + _BATCH_BYTES])
            except Exception:  # the muxer's and the socket's errors are many, and all mean that the stream is dead
                slow = trio.current_time() - begun >= min(WRITE_TIMEOUT, _WINDOW_TIMEOUT)
                self.watch.count(f"network/dropped/{'slow peer' if slow else 'dead stream'}", messages)
                self._handle_dead_peer(peer_id)
                return self.watch.disconnect(peer_id) if slow else None
            finally:
                self.writing -= 1
            self.watch.count("network/messages_out", messages)
            self.watch.count("network/bytes_out", len(batch))
        return None

    def pending(self) -> int:
        """Frames that no stream has taken yet."""
        return self.writing + sum(len(queue) for queue in self.peer_queues.values())

    # --- what arrives

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Nothing: records are delivered when they are checked, through no channel that could be full."""

    def handle_subscription(self, origin_id: ID, sub_message: rpc_pb2.RPC.SubOpts) -> None:
        super().handle_subscription(origin_id, sub_message)
        self.watch.changed()

    def _handle_dead_peer(self, peer_id: ID) -> None:
        super()._handle_dead_peer(peer_id)
        self.watch.changed()

    def _forget_all_subscriptions(self, peer_id: ID) -> None:
        """Unless the peer said it on a stream that is open: it says so once, and may have come back already."""
        if peer_id not in self._subscribed:
            super()._forget_all_subscriptions(peer_id)

    def _note_subscription(self, peer: ID, stream: INetStream, subscribed: bool) -> None:
        streams = self._subscribed.pop(peer, set()) - {stream} | ({stream} if subscribed else set())
        if streams:
            self._subscribed[peer] = streams

    def mend(self, peer: ID) -> None:
        """Opens the stream to a connected peer again if it was lost with another connection, or never came to be."""
        stream = self.peers.get(peer)
        if stream is not None and (stream.is_closed or stream.muxed_conn.is_closed):
            self._handle_dead_peer(peer)
        elif stream is None:
            self._schedule_peer_stream_retry(peer)

    async def stream_handler(self, stream: INetStream) -> None:
        """Reads a peer's frames until it stops, sends one that it should not, or opens two streams more."""
        peer = stream.muxed_conn.peer_id
        reading = self._reading.setdefault(peer, [])
        with trio.CancelScope() as scope:
            reading.append(scope)
            for older in reading[:-_MAX_STREAMS]:
                older.cancel()
            try:
                await self._read_frames(peer, stream)
            finally:
                reading.remove(scope)
                if not reading:
                    del self._reading[peer]
        if scope.cancelled_caught:
            self.watch.count("network/refused")
            await quietly(stream.reset)

    async def _read_frames(self, peer: ID, stream: INetStream) -> None:
        buffer = bytearray()
        try:
            while True:
                await self._receive(peer, stream, await frames.read_frame(stream, buffer))
        except MalformedError:
            await self._malformed(peer)
            await stream.reset()
        except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the stream has ended; the connection's end is noticed elsewhere
        finally:
            self._note_subscription(peer, stream, False)
            self._forget_all_subscriptions(peer)
            self.watch.changed()

    async def _receive(self, peer: ID, stream: INetStream, frame: bytes) -> None:
        self.watch.heard(peer)
        self.watch.count("network/bytes_in", len(frame))
        await self._wait_for_turn(peer)
        await self._wait_for_bytes(peer, len(frame))
        rpc = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(frame)
        except DecodeError as error:
            raise MalformedError(str(error)) from None
        if len(rpc.subscriptions) > frames.MAX_ENTRIES:
            raise MalformedError("too many subscriptions")
        for entry in [entry for entry in rpc.subscriptions if entry.topicid == self.topic][-1:]:
            self._note_subscription(peer, stream, entry.subscribe)
            self.handle_subscription(peer, entry)
        for message in rpc.publish:
            await self._wait_for_turn(peer)
            await self._wait_among_strangers(peer, _MESSAGE_BYTES)
            self.watch.count("network/messages_in")
            if message.data[:1] != frames.ANNOUNCEMENT:
                await self.push_msg(peer, message)
            elif self._waiting[peer] < _MAX_PULLS:
                self._waiting[peer] += 1
                self.watch.spawn(self._push_announced, peer, message)
            else:
                self.watch.count("network/dropped/too many announcements")
        if rpc.HasField("control"):
            control = frames.bounded_control(rpc.control, self.topic)
            try:
                await self.router.handle_rpc(rpc_pb2.RPC(control=control), peer)
            except Exception as error:  # the library's handlers raise whatever odd input makes them raise
                raise MalformedError(f"{type(error).__name__}: {error}") from None

    async def _wait_for_turn(self, peer: ID) -> None:
        """One token for each frame and each message, copies too: a flood waits in its sender's buffers."""
        await self._wait_until(lambda: self._frames.take(peer.to_bytes()))

    async def _wait_for_bytes(self, peer: ID, number: int) -> None:
        """Reading costs, however little is read out of it."""
        await self._wait_until(lambda: self._bytes.take(peer.to_bytes(), number))
        await self._wait_among_strangers(peer, number)

    async def _wait_among_strangers(self, peer: ID, number: int) -> None:
        """Those of no standing, who may be many, share what they may send."""
        await self._wait_until(lambda: self.watch.trusts(peer) or self._strangers_bytes.take(b"", number))

    async def _wait_until(self, may: Callable[[], bool]) -> None:
        if may():
            return
        self.watch.count("network/held_back")
        while not may():
            await trio.sleep(0.05)

    async def _push_announced(self, peer: ID, message: rpc_pb2.Message) -> None:
        try:
            await self.push_msg(peer, message)
        finally:
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Checks a message once and passes it on; an own one only the latter."""
        if msg_forwarder != self.my_id:
            if not frames.well_formed(msg, self.topic):
                return await self._malformed(msg_forwarder)
            if msg.from_id == self.my_id.to_bytes() or self._is_another_copy(msg_forwarder, msg):
                return None
            if not self._forwarders.take(msg_forwarder.to_bytes()):
                return self._too_many(msg_forwarder, msg)
            if not frames.signature_holds(msg):
                return self.watch.offend(msg_forwarder, "rejected/bad signature")
            try:
                await self.validate_msg(msg_forwarder, msg)
            except ValidationError:
                return None
            if self._is_another_copy(msg_forwarder, msg):
                return None  # it was quicker, while this one's record was fetched
        self._mark_msg_seen(msg)
        if msg_forwarder == self.my_id:
            return await self.router.publish(msg_forwarder, msg)
        if len(self._relaying) < _MAX_RELAYS:
            self._relaying[self.get_message_id(msg)] = {msg_forwarder}
            self.watch.spawn(self._relay, msg_forwarder, msg)
        else:
            self.watch.count("network/dropped/too many to relay")
        return None

    def _is_another_copy(self, forwarder: ID, msg: rpc_pb2.Message) -> bool:
        message_id = self.get_message_id(msg)
        if message_id in self._relaying:
            self._relaying[message_id].add(forwarder)
        return self.seen_messages.has(message_id)

    async def _relay(self, forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Passes a message on after a moment, to those it has not come from by then.

        In a small swarm, where all have heard it from its author, that saves half of the copies.
        """
        try:
            await trio.sleep(random.uniform(0, self._relay_wait))
            await self.router.publish(forwarder, msg)
        finally:
            del self._relaying[self.get_message_id(msg)]

    def sources(self, msg: rpc_pb2.Message) -> set[ID]:
        """Who has sent a message that is about to be relayed."""
        return self._relaying.get(self.get_message_id(msg), set())

    async def validate_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Delivers the record of a message. Raises ValidationError, and counts why, if there is none to be used."""
        author = author_of(msg.from_id)
        assert author is not None
        try:
            inline, announced = frames.content(msg)
            envelope_hash = announced.hash if announced else hashlib.sha256(inline).digest()
            # what relays repeat must not use up what its author may say that is new
            if not (self._repeated if self.watch.knows(envelope_hash) else self._authors).take(author):
                self._too_many(msg_forwarder, msg)
                raise ValidationError("its author sends too many")
            raw = await self._pull(msg_forwarder, msg, announced) if announced else inline
            if raw is not None:
                self.watch.deliver(frames.check_record(raw, self.swarm, author))
        except RecordError as error:
            if error.cause == "unavailable":  # no proof of anything: others may keep its author from serving it
                self.watch.count("rejected/unavailable")
            elif error.version is not None:
                self.watch.of_version(error.version)
            else:
                self.watch.offend(msg_forwarder, f"rejected/{error.cause}")
            raise ValidationError(str(error)) from None

    def _too_many(self, forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Who relays what others send too much of is not to blame."""
        if msg.from_id == forwarder.to_bytes():
            self.watch.offend(forwarder, "rejected/rate limit")
        else:
            self.watch.count("rejected/rate limit")

    async def _pull(self, forwarder: ID, msg: rpc_pb2.Message, announced: frames.Announcement) -> bytes | None:
        """What is announced; None if another copy of the message was dealt with while this one waited."""
        if announced.hash in self._pulling:
            with trio.move_on_after(_PATIENCE):  # no longer: it may be asked of one who never answers
                await self._pulling[announced.hash].wait()
            if self._is_msg_seen(msg):
                return None
        pulled = self._pulling.setdefault(announced.hash, trio.Event())
        try:
            await self._wait_for_bytes(forwarder, announced.size)
            raw = await self.watch.fetch(forwarder, announced.hash)
        finally:
            pulled.set()
            self._pulling.pop(announced.hash, None)
        if len(raw) != announced.size:
            raise RecordError("unavailable", f"{len(raw)} bytes, {announced.size} were announced")
        return raw

    async def _malformed(self, peer: ID) -> None:
        self.watch.offend(peer, "network/malformed")
        self.watch.disconnect(peer)
