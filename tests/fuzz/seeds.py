"""What fuzzing begins with: of each target some inputs that are right.

python -m tests.fuzz.seeds      writes them into tests/fuzz/corpus
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.utils import encode_varint_prefixed

from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.schema import Rotation, Verdict
from rlswarm_jax.swarm import exchange, greeting, showing
from rlswarm_jax.swarm.frames import ANNOUNCEMENT, INLINE, Announcement
from tests.fuzz.targets import TOPIC
from tests.game.adversarial import PIECES
from tests.records.samples import ALICE, BOB, completion, group, record

CORPUS = Path(__file__).parent / "corpus"


def seeds() -> Iterator[tuple[str, bytes]]:
    verdict = Verdict(bytes(32), 1, "produced", 12, 3.5, -0.25)
    said = record(verdicts=[verdict], groups=[group(parents=[bytes(32)], vote=1), group([completion(), completion()])])
    fields = {name: getattr(said, name) for name in said.__struct_fields__} | {"version": schema.ANNOUNCING}
    rotated = schema.Announcing(**fields, rotations=[Rotation(BOB.author, 3, bytes(64))])
    payloads = [schema.encode(said), schema.encode(record(groups=[])), msgspec.msgpack.encode(rotated)]
    for payload in payloads:
        yield "decoder", payload
        yield "envelope", payload
    raw = seal(said, ALICE)
    yield "envelope", raw

    address = f"/ip4/1.2.3.4/tcp/4001/p2p/{BOB.peer_id}"
    asked = exchange.Request("tests", bytes(32), [bytes(32)]), exchange.Reply([raw], [address, exchange.THROUGH + "x"])
    for one in (*asked, greeting.Hello(bytes(32), {"swarm.name": "tests"})):
        yield "exchange", msgspec.msgpack.encode(one)
        yield "exchange", encode_varint_prefixed(msgspec.msgpack.encode(one))
    yield "exchange", msgspec.msgpack.encode(showing.Request("tests", bytes(32), [bytes(32)], None, 0))

    private = Secp256k1PrivateKey.from_bytes(ALICE.expose_secret())
    announced = ANNOUNCEMENT + msgspec.msgpack.encode(Announcement(hashlib.sha256(raw).digest(), len(raw)))
    for data in (INLINE + raw, announced):
        author = ID.from_base58(ALICE.peer_id).to_bytes()
        message = rpc_pb2.Message(data=data, topicIDs=[TOPIC], from_id=author, seqno=bytes(8))
        message.signature = private.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        yield "pubsub", encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString())
    control = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"x" * 47])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"x" * 47])],
        graft=[rpc_pb2.ControlGraft(topicID=TOPIC)],
        prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=60)],
    )
    subscribed = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)]
    yield "pubsub", encode_varint_prefixed(rpc_pb2.RPC(subscriptions=subscribed, control=control).SerializeToString())

    for number, piece in enumerate(PIECES):
        text = piece.encode()
        yield "quoting", bytes([number * 37 % 256]) + text
        yield "prompts", bytes([number * 37 % 256, number * 91 % 256]) + text + b"\xff" + text + b"\xff17\xff12#1"
    for prompt in (
        "12+5=|17:2|18:0;17;19!",
        "12+5=|17|18~",
        "?",
        "a <think>b</think> <answer>9</answer>",
        "<best>1</best>",
    ):
        yield "prompts", b"\0\0" + prompt.encode()
        yield "prompts", b"\x82\x82" + prompt.encode()


def main() -> None:
    for target, data in seeds():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    main()
