"""Gossipsub for records: libp2p's, with every frame a peer can send contained, bounded and counted.

Stock peers understand it. Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import random
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

import msgspec
import trio
from google.protobuf.message import DecodeError
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError, ValidationError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils import encode_varint_prefixed
from msgspec import Meta

from rlswarm_jax.identity import author_of
from rlswarm_jax.records.envelope import MAX_ENVELOPE_BYTES, SignedRecord, open_envelope
from rlswarm_jax.records.schema import Hash, RecordError
from rlswarm_jax.swarm import frames
from rlswarm_jax.swarm.frames import MalformedError
from rlswarm_jax.swarm.limits import Buckets, Seen

# without 1.2 and above: their IDONTWANT costs one more frame a neighbour and message, and ours are small
PROTOCOLS = (TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0"))
INLINE, ANNOUNCEMENT = b"\x00", b"\x01"  # the first byte of a message says what follows
_QUEUE = 512  # frames waiting for one peer
_BATCH_BYTES = 1 << 16
_PATIENCE = 1.0  # seconds to wait for another peer's copy of a record
_MAX_PULLS = 32  # waiting, of one peer's announcements
_MAX_RELAYS = 4096  # waiting to be forwarded


class Announcement(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A record too large to be inline: SHA-256 and length of its envelope."""

    hash: Hash
    size: Annotated[int, Meta(gt=0, le=MAX_ENVELOPE_BYTES)]


_announcements = msgspec.msgpack.Decoder(Announcement)


class Watch(Protocol):
    """What the gossip layer needs of the node around it."""

    def count(self, name: str, number: int = 1) -> None: ...
    def offend(self, peer: ID, name: str) -> None: ...
    def disconnect(self, peer: ID) -> None: ...
    def changed(self) -> None: ...
    def heard(self, peer: ID) -> None: ...
    def deliver(self, signed: SignedRecord) -> None: ...
    def spawn(self, act: Callable[..., Awaitable[None]], *args: object) -> None: ...
    async def fetch(self, peer: ID, name: bytes) -> bytes: ...


def check_record(raw: bytes, swarm: str, author: bytes) -> SignedRecord:
    """A record of this swarm that `author` sent as its own. Raises RecordError."""
    signed = open_envelope(raw)
    if signed.record.swarm != swarm:
        raise RecordError("wrong swarm", f"it is for {signed.record.swarm!r}")
    if signed.record.author != author:
        raise RecordError("foreign sender", "it was sent by someone else than its author")
    return signed


class Router(GossipSub):
    """Gossipsub's mesh, without what costs or breaks: signed peer records on each frame, scores, copies, retries."""

    pubsub: "RecordPubsub"

    def __init__(self, count: Callable[[str, int], None]):
        super().__init__(
            protocols=PROTOCOLS,
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,  # it prunes peers that share an address: a swarm on one machine
        )
        self.scorer = None  # all its weights are zero: offences are counted in our own way
        self._count = count

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Own messages go to all that subscribe, forwarded ones to the mesh; serialized once for all of them."""
        self.mcache.put(pubsub_msg)
        pubsub, topic = self.pubsub, pubsub_msg.topicIDs[0]
        if msg_forwarder == pubsub.my_id:
            targets = set(pubsub.peer_topics.get(topic, ()))
        else:
            targets = set(self._get_peers_to_send([topic], msg_forwarder, ID(pubsub_msg.from_id)))
            targets -= pubsub.sources(pubsub_msg)
        frame = encode_varint_prefixed(rpc_pb2.RPC(publish=[pubsub_msg]).SerializeToString())
        for peer in targets:
            queue = pubsub.peer_queues.get(peer)
            if queue is not None and not queue.push(frame):
                self._count("network/dropped/queue full", 1)

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        queue = self.pubsub.peer_queues.get(peer_id)
        if queue is None:
            return
        if peer_id in self._pending_control or rpc.ByteSize() > queue.max_message_size:
            super().send_rpc(peer_id, rpc, priority)
        elif not queue.push(rpc, priority=priority):
            self._handle_dropped_rpc(peer_id, rpc, "queue_full")

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    async def handle_iwant(self, iwant_msg: rpc_pb2.ControlIWant, sender_peer_id: ID) -> None:
        if self._check_iwant_rate_limit(sender_peer_id):
            found = (self.mcache.get(bytes(name)) for name in dict.fromkeys(iwant_msg.messageIDs))
            self.send_rpc(sender_peer_id, rpc_pb2.RPC(publish=[message for message in found if message]))

    async def handle_ihave(self, ihave_msg: rpc_pb2.ControlIHave, sender_peer_id: ID) -> None:
        if self._check_ihave_rate_limit(sender_peer_id, ihave_msg.topicID):
            wanted = [bytes(name) for name in ihave_msg.messageIDs if not self.pubsub.seen_messages.has(bytes(name))]
            if wanted:
                await self.emit_iwant(wanted, sender_peer_id)

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        for name in self.mcache.window(topic):
            message = self.mcache.get(name)
            if message is not None:
                self.send_rpc(peer_id, rpc_pb2.RPC(publish=[message]))

    async def _do_px(self, px_peers: list[rpc_pb2.PeerInfo]) -> None:
        """Nothing: peers are exchanged in greetings, where they are checked."""

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        return True  # records have their own check; this one would keep a thousand whole messages

    def _handle_dropped_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, reason: str) -> None:
        self._count(f"network/dropped/{reason.replace('_', ' ')}", 1)
        super()._handle_dropped_rpc(peer_id, rpc, reason)

    def forget_expired(self) -> None:
        """Peers that have gone for good would stay in the back-off table."""
        now = time.time()
        for topic, until in self.back_off.items():
            self.back_off[topic] = {peer: end for peer, end in until.items() if end > now}


class RecordPubsub(Pubsub):
    """One topic of signed records. Nothing that a peer sends raises out of it."""

    router: Router
    seen_messages: Any

    def __init__(self, host: IHost, swarm: str, watch: Watch, author_rate: float, peer_rate: float, relay_wait: float):
        self.swarm, self.topic, self.watch = swarm, frames.topic_of(swarm), watch
        self._relay_wait = relay_wait  # at most, in seconds
        super().__init__(
            host,
            Router(watch.count),
            strict_signing=True,
            allowed_topics={self.topic},
            max_inbound_rpc_size=frames.MAX_FRAME_BYTES,
        )
        self.seen_messages.stop()  # it has a thread, and no bound
        self.seen_messages = Seen()
        self.counter = time.time_ns()  # a restarted node must not repeat sequence numbers its peers have seen
        self.writing = 0  # frames taken from a queue and not handed to their stream yet
        self._authors, self._forwarders = Buckets(author_rate), Buckets(peer_rate)
        self._frames = Buckets(4 * peer_rate)
        self._subscribed: collections.defaultdict[ID, set[INetStream]] = collections.defaultdict(
            set
        )  # and where it said so
        self._relaying: dict[bytes, set[ID]] = {}  # message id: who has sent it
        self._pulling: dict[bytes, trio.Event] = {}
        self._waiting: collections.Counter[ID] = collections.Counter()

    # --- what is sent

    def get_hello_packet(self) -> rpc_pb2.RPC:
        return rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=t) for t in self.topic_ids])

    def _build_announce_rpc(self, topic_id: str, subscribe: bool) -> tuple[rpc_pb2.RPC, rpc_pb2.RPC.SubOpts]:
        entry = rpc_pb2.RPC.SubOpts(subscribe=subscribe, topicid=topic_id)
        return rpc_pb2.RPC(subscriptions=[entry]), entry

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """Writes what is queued for a peer, several frames at once where they are small."""
        queue._queue.max_size = _QUEUE  # the library's 32 is 16 messages
        while (item := await queue.pop()) is not None:
            batch, number = b"", 0
            while item is not None:
                frame = item if isinstance(item, bytes) else encode_varint_prefixed(item.SerializeToString())
                batch, number = batch + frame, number + 1
                item = queue._queue.pop() if len(batch) < _BATCH_BYTES else None
            self.writing += 1
            try:
                await stream.write(batch)
            except Exception:  # the muxer's and the socket's errors are many, and all mean that the stream is dead
                self.watch.count("network/dropped/dead stream", number)
                self._handle_dead_peer(peer_id)
                return
            finally:
                self.writing -= 1
            self.watch.count("network/messages_out", number)
            self.watch.count("network/bytes_out", len(batch))

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
        if not self._subscribed.get(peer_id):
            super()._forget_all_subscriptions(peer_id)

    def mend(self, peer: ID) -> None:
        """Opens the stream to a connected peer again if it was lost with another connection, or never came to be."""
        stream = self.peers.get(peer)
        if stream is not None and (stream.is_closed or stream.muxed_conn.is_closed):
            self._handle_dead_peer(peer)
        elif stream is None:
            self._schedule_peer_stream_retry(peer)

    async def stream_handler(self, stream: INetStream) -> None:
        """Reads a peer's frames until it stops, or sends one that it should not."""
        peer = stream.muxed_conn.peer_id
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
            self._subscribed[peer].discard(stream)
            if not self._subscribed[peer]:
                del self._subscribed[peer]
                self._forget_all_subscriptions(peer)
            self.watch.changed()

    async def _receive(self, peer: ID, stream: INetStream, frame: bytes) -> None:
        self.watch.heard(peer)
        self.watch.count("network/bytes_in", len(frame))
        while not self._frames.take(peer.to_bytes()):
            await trio.sleep(0.05)  # a flood waits in its sender's buffers
        rpc = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(frame)
        except DecodeError as error:
            raise MalformedError(str(error)) from None
        if len(rpc.subscriptions) > frames.MAX_ENTRIES:
            raise MalformedError("too many subscriptions")
        for entry in [entry for entry in rpc.subscriptions if entry.topicid == self.topic][-1:]:
            (self._subscribed[peer].add if entry.subscribe else self._subscribed[peer].discard)(stream)
            self.handle_subscription(peer, entry)
        for message in rpc.publish:
            self.watch.count("network/messages_in")
            if message.data[:1] != ANNOUNCEMENT:
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
                return self.watch.offend(msg_forwarder, "rejected/rate limit")
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
        name = self.get_message_id(msg)
        if name in self._relaying:
            self._relaying[name].add(forwarder)
        return self.seen_messages.has(name)

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
        if msg_forwarder == self.my_id:
            return
        author = author_of(msg.from_id)
        assert author is not None
        try:
            if not self._authors.take(author):
                raise RecordError("rate limit", "its author sends too many")
            raw = await self._record_bytes(msg_forwarder, msg)
            if raw is not None:
                self.watch.deliver(check_record(raw, self.swarm, author))
        except RecordError as error:
            if error.cause == "rate limit" and msg.from_id != msg_forwarder.to_bytes():
                self.watch.count("rejected/rate limit")  # whoever forwards it is not to blame
            else:
                self.watch.offend(msg_forwarder, f"rejected/{error.cause}")
            raise ValidationError(str(error)) from None

    async def _record_bytes(self, forwarder: ID, msg: rpc_pb2.Message) -> bytes | None:
        """What a message carries or announces; None if another copy of it was dealt with while this one waited."""
        if msg.data[:1] == INLINE:
            return msg.data[1:]
        if msg.data[:1] != ANNOUNCEMENT:
            raise RecordError("undecodable", "neither a record nor an announcement of one")
        try:
            announced = _announcements.decode(msg.data[1:])
        except (msgspec.DecodeError, RecursionError) as error:
            raise RecordError("undecodable", str(error)) from None
        if announced.hash in self._pulling:
            with trio.move_on_after(_PATIENCE):  # no longer: it may be asked of one who never answers
                await self._pulling[announced.hash].wait()
            if self._is_msg_seen(msg):
                return None
        pulled = self._pulling.setdefault(announced.hash, trio.Event())
        try:
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
