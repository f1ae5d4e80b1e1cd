"""What a stranger can do to a node over real connections, each until its time is over.

python -m tests.swarm.attacks NAME ADDRESS SECONDS SWARM      says what that cost this process
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import msgspec
import psutil
import trio
from libp2p.abc import INetStream
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from rlswarm_jax.identity import Identity
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.schema import Completion, Group, Record
from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.exchange import Reply, Request
from rlswarm_jax.swarm.frames import ANNOUNCEMENT, INLINE, Announcement, read_frame
from tests.swarm.hostile_peer import HostilePeer, framed

ACTS = 400  # of one key, before the next one comes
SLOW = 16  # peers at a time of those that do nothing but be there
keys = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Target:
    """until: on the monotonic clock, or as soon as it is called off."""

    address: str
    swarm: str
    until: float
    off: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def left(self) -> float:
        return 0.0 if self.off.is_set() else max(0.0, self.until - time.monotonic())

    def peer(self, **more: bool) -> HostilePeer:
        return HostilePeer(fresh(), self.address, self.swarm, **more)


def fresh() -> Identity:
    return Identity(next(keys).to_bytes(2) + os.urandom(30))


def record(own: Identity, swarm: str, round_: int, characters: int, groups: int = 1, stage: str = "answer") -> bytes:
    tokens, texts = (7).to_bytes(4, "little"), ["x" * min(characters // 2, schema.MAX_TEXT)] * 2
    completions = [Completion(tokens, bytes(4), text) for text in texts]
    said = [Group("chain_sum", "0" * 16, index, 1, [], None, completions) for index in range(groups)]
    names = {
        "prompt_format": "p",
        "weights": bytes(32),
        "verdicts": [],
        "tokenizer_fingerprint": "t",
        "temperature": 1.0,
    }
    fields = {"version": schema.VERSION, "swarm": swarm, "author": own.author, "round": round_, "stage": stage}
    return seal(Record(**fields, **names, beacon=b"", policy_version=0, groups=said), own)


def speaking(target: Target, act: Callable[[HostilePeer, int], None]) -> None:
    """Acts again and again; whoever is refused for a while comes again with another key."""
    for number in itertools.count():
        if not target.left:
            return
        with contextlib.suppress(Exception):
            peer = target.peer()
            with contextlib.closing(peer):
                for turn in range(ACTS):
                    if not target.left:
                        break
                    act(peer, ACTS * number + turn)


def waiting(target: Target, number: int, **more: bool) -> None:
    """So many peers that come, and stay until they are sent away; then others do."""
    peers: list[HostilePeer] = []
    while target.left:
        with contextlib.suppress(Exception):
            peers.append(target.peer(**more))
        if len(peers) >= number:
            time.sleep(min(1.0, target.left))
            peers.pop(0).close()
    for peer in peers:
        peer.close()


def publish(peer: HostilePeer, *datas: bytes) -> None:
    peer.send(*(framed(rpc_pb2.RPC(publish=[peer.message(data)])) for data in datas))


def control(peer: HostilePeer, **entries: list) -> None:
    peer.send(framed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**entries))))


# --- what comes before a word is said


def nothing(target: Target) -> None:
    with contextlib.closing(target.peer()):
        target.off.wait(target.left)


def half_open(target: Target) -> None:
    place = addresses.read(target.address)
    assert place
    opened: list[socket.socket] = []
    while target.left:
        with contextlib.suppress(OSError):
            opened.append(socket.create_connection((place.host, place.port), timeout=1.0))
        for old in opened[:-200]:
            old.close()
        opened = opened[-200:]
        time.sleep(0.002)


def churn(target: Target) -> None:
    while target.left:
        with contextlib.suppress(Exception):  # it may be turned away at any point
            target.peer().close()


def slow_readers(target: Target) -> None:
    waiting(target, SLOW, deaf=True)


# --- streams and their windows


def streams(target: Target) -> None:
    speaking(target, lambda peer, number: peer.open_streams(1))


def windows(target: Target) -> None:
    """More on one stream than its window."""
    speaking(target, lambda peer, number: peer.hold_requests(1, bytes(1 << 20)))


# --- gossip


def ihave(target: Target) -> None:
    def act(peer: HostilePeer, number: int) -> None:
        ids = [os.urandom(47) for _ in range(1000)]
        control(peer, ihave=[rpc_pb2.ControlIHave(topicID=peer.topic, messageIDs=ids)])

    speaking(target, act)


def iwant(target: Target) -> None:
    """All that the node tells of, and the most that nobody has."""

    def act(peer: HostilePeer, number: int) -> None:
        ids = [message.from_id + message.seqno for message in peer.heard[-500:]]
        ids += [os.urandom(47) for _ in range(1000 - len(ids))]
        control(peer, iwant=[rpc_pb2.ControlIWant(messageIDs=ids)])

    speaking(target, act)


def graft(target: Target) -> None:
    def act(peer: HostilePeer, number: int) -> None:
        topic = peer.topic
        control(
            peer, graft=[rpc_pb2.ControlGraft(topicID=topic)] * 30, prune=[rpc_pb2.ControlPrune(topicID=topic)] * 30
        )

    speaking(target, act)


def garbage(target: Target) -> None:
    speaking(target, lambda peer, number: publish(peer, INLINE + number.to_bytes(8) + bytes(8000)))


# --- records


def inline_records(target: Target) -> None:
    speaking(target, lambda p, number: publish(p, INLINE + record(p.identity, target.swarm, number, 15_000)))


def announced_records(target: Target) -> None:
    """A megabyte each; a node has fetched the one before it is told of the next."""
    asked = threading.Semaphore(1)
    raw = b""

    async def serve(stream: INetStream) -> None:
        await read_frame(stream, bytearray())
        await stream.write(encode_varint_prefixed(msgspec.msgpack.encode(Reply([raw], []))))
        await stream.close()
        asked.release()

    def act(peer: HostilePeer, number: int) -> None:
        nonlocal raw
        asked.acquire(timeout=1.0)
        raw, peer.serve = record(peer.identity, target.swarm, number, 15_000, 60), serve
        told = Announcement(hashlib.sha256(raw).digest(), len(raw))
        publish(peer, ANNOUNCEMENT + msgspec.msgpack.encode(told))

    speaking(target, act)


def never_served(target: Target) -> None:
    async def serve(stream: INetStream) -> None:
        await trio.sleep_forever()

    def act(peer: HostilePeer, number: int) -> None:
        peer.serve = serve
        publish(peer, ANNOUNCEMENT + msgspec.msgpack.encode(Announcement(os.urandom(32), 1 << 20)))

    speaking(target, act)


def pulls(target: Target) -> None:
    """Asks for what the node has said and for its greeting, and takes the answers."""

    def act(peer: HostilePeer, number: int) -> None:
        inline = [message.data[1:] for message in peer.heard[-8:] if message.data[:1] == INLINE]
        wanted = hashlib.sha256(inline[number % len(inline)]).digest() if inline and number % 2 else None
        peer.request(msgspec.msgpack.encode(Request(target.swarm, wanted, [])))

    speaking(target, act)


def equivocation(target: Target) -> None:
    """Two for each stage of a round, and a third."""

    def act(peer: HostilePeer, number: int) -> None:
        said = [record(peer.identity, target.swarm, number, characters) for characters in (100, 102, 104)]
        publish(peer, *(INLINE + raw for raw in said))

    speaking(target, act)


def replayed(target: Target) -> None:
    """What others have said, as it came and as its own; and its own of another swarm, and of round 0."""

    def act(peer: HostilePeer, number: int) -> None:
        for message in peer.heard[-4:]:
            peer.send(framed(rpc_pb2.RPC(publish=[message])))
            publish(peer, message.data)
        elsewhere = record(peer.identity, "another", number, 100)
        publish(peer, INLINE + elsewhere, INLINE + record(peer.identity, target.swarm, 0, 100 + number % 1000))

    speaking(target, act)


def fresh_keys(target: Target) -> None:
    """An author that nobody knows for each record."""
    number = 0
    while target.left:
        with contextlib.suppress(Exception), contextlib.closing(target.peer()) as peer:
            publish(peer, INLINE + record(peer.identity, target.swarm, number, 1000))
            number += 1


# --- identify


def unreadable_addresses(target: Target) -> None:
    unreadable = [b"\x36\x05\xff\xfe\xfd\xfc\xfb\x06" + number.to_bytes(2) for number in range(1000)]
    said = Identify(listen_addrs=unreadable).SerializeToString()
    speaking(target, lambda peer, number: peer.push_identity(said))


ATTACKS: dict[str, Callable[[Target], None]] = {
    "nothing": nothing,
    "half-open handshakes": half_open,
    "connecting and leaving": churn,
    "slow readers": slow_readers,
    "streams": streams,
    "windows": windows,
    "IHAVE": ihave,
    "IWANT": iwant,
    "GRAFT and PRUNE": graft,
    "garbage": garbage,
    "records": inline_records,
    "announced records": announced_records,
    "announcements never served": never_served,
    "pulls": pulls,
    "equivocation": equivocation,
    "replay": replayed,
    "fresh keys": fresh_keys,
    "unreadable addresses": unreadable_addresses,
}


def main() -> None:
    name, address, seconds, swarm = sys.argv[1:]
    me = psutil.Process()
    print("begins", flush=True)
    before = me.cpu_times()
    ATTACKS[name](Target(address, swarm, time.monotonic() + float(seconds)))
    after = me.cpu_times()
    cost = 1000 * (after.user + after.system - before.user - before.system)
    print(json.dumps({"cpu_ms": round(cost)}))
    sys.stdout.flush()
    os._exit(0)  # threads of peers that were turned away as they came


if __name__ == "__main__":
    main()
