"""Which peers a message goes to: gossipsub's mesh, as libp2p has it, without what costs or breaks.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import time
from collections.abc import Callable

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import PriorityQueue
from libp2p.utils import encode_varint_prefixed

from rlswarm_jax.swarm.frames import MAX_IDS

# without 1.2 and above: their IDONTWANT costs one more frame a neighbour and message, and ours are small
PROTOCOLS = (TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0"))

MAX_QUEUED, MAX_QUEUED_BYTES = 512, 4 << 20  # waiting for one peer; the library's 32 frames are 16 messages
_MAX_REPLY_BYTES = 1 << 20


class Reply(bytes):
    """A frame with a message that a peer asked for by IWANT."""


class Outgoing(PriorityQueue):
    """The frames and RPCs that wait for one peer, bounded in number and in bytes: some never read."""

    def __init__(self, waiting: PriorityQueue):
        super().__init__(MAX_QUEUED)
        self.bytes = 0
        while (item := waiting.pop()) is not None:
            self.push(item)

    def push(self, rpc: rpc_pb2.RPC | bytes, priority: bool = False) -> bool:
        pushed = self.bytes + _size(rpc) <= MAX_QUEUED_BYTES and super().push(rpc, priority)
        if pushed:
            self.bytes += _size(rpc)
        return pushed

    def pop(self) -> rpc_pb2.RPC | bytes | None:
        item = super().pop()
        if item is not None:
            self.bytes -= _size(item)
        return item


def _size(item: rpc_pb2.RPC | bytes) -> int:
    return len(item) if isinstance(item, bytes) else item.ByteSize()


def _frame(message: rpc_pb2.Message) -> bytes:
    return encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString())


class Router(GossipSub):
    """Without signed peer records on each frame, scores, copies of messages, and addresses from strangers.

    sources: who has sent a message already, so that it does not go back.
    """

    pubsub: Pubsub

    def __init__(self, count: Callable[[str, int], None], sources: Callable[[rpc_pb2.Message], set[ID]]):
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
        self._count, self._sources = count, sources

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Own messages go to all that subscribe, forwarded ones to the mesh; serialized once for all of them."""
        self.mcache.put(pubsub_msg)
        pubsub, topic = self.pubsub, pubsub_msg.topicIDs[0]
        if msg_forwarder == pubsub.my_id:
            targets = set(pubsub.peer_topics.get(topic, ()))
        else:
            targets = set(self._get_peers_to_send([topic], msg_forwarder, ID(pubsub_msg.from_id)))
            targets -= self._sources(pubsub_msg)
        frame = _frame(pubsub_msg)
        for peer in targets:
            self._push(peer, frame)

    def _push(self, peer: ID, frame: bytes) -> None:
        queue = self.pubsub.peer_queues.get(peer)
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
        """Sends what is asked for, up to a megabyte; one who has not read the last such reply gets no other."""
        queue = self.pubsub.peer_queues.get(sender_peer_id)
        if queue is None or not self._check_iwant_rate_limit(sender_peer_id):
            return
        if any(isinstance(item, Reply) for item in queue._queue._non_priority):
            return self._count("network/dropped/reply outstanding", 1)
        room = _MAX_REPLY_BYTES
        for message_id in dict.fromkeys(iwant_msg.messageIDs):
            message = self.mcache.get(bytes(message_id))
            if message is not None and (room := room - message.ByteSize()) >= 0:
                self._push(sender_peer_id, Reply(_frame(message)))

    async def handle_ihave(self, ihave_msg: rpc_pb2.ControlIHave, sender_peer_id: ID) -> None:
        if self._check_ihave_rate_limit(sender_peer_id, ihave_msg.topicID):
            wanted = [bytes(i) for i in ihave_msg.messageIDs if not self.pubsub.seen_messages.has(bytes(i))]
            if wanted:
                await self.emit_iwant(wanted, sender_peer_id)

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        for message_id in self.mcache.window(topic):
            message = self.mcache.get(message_id)
            if message is not None:
                self._push(peer_id, _frame(message))

    def gossip_heartbeat(self) -> dict[ID, dict[str, list[bytes]]]:
        """What is told (IHAVE) to peers outside the mesh, one that has pruned us too: its back-off is from GRAFT."""
        told: dict[ID, dict[str, list[bytes]]] = collections.defaultdict(dict)
        for topic, mesh in self.mesh.items():
            message_ids = self.mcache.window(topic)[:MAX_IDS]
            outside = len(self.pubsub.peer_topics.get(topic, set()) - mesh)
            if message_ids and outside:
                number = self._get_adaptive_gossip_peers_count(topic, outside)
                for peer in self._get_in_topic_gossipsub_peers_from_minus(topic, number, mesh):
                    told[peer][topic] = message_ids
        return told

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
