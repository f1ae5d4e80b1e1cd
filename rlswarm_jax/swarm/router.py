"""Which peers a message goes to: gossipsub's mesh, as libp2p has it, without what costs or breaks.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

if TYPE_CHECKING:
    from rlswarm_jax.swarm.pubsub import RecordPubsub

# without 1.2 and above: their IDONTWANT costs one more frame a neighbour and message, and ours are small
PROTOCOLS = (TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0"))


class Router(GossipSub):
    """Without signed peer records on each frame, scores, copies of messages, and addresses from strangers."""

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
