"""A node in another language, by docs/wire-format.md, and ours: what the one says the other one understands.

`codec.mjs` and `peer.mjs` stand on a stock js-libp2p; INTEROP names a folder in which npm has put what their
package.json asks for (`npm ci --ignore-scripts`), and Node 22 where the machine's is older (`node_modules/node`).
"""

import base64
import collections
import hashlib
import json
import os
import queue
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rlswarm_jax import randomness
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.records import rotations, schema
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import ANNOUNCING, STAGES, Announcing, RecordError
from rlswarm_jax.swarm.frames import INLINE
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from tests.records.samples import completion, group, record, sealed
from tests.waits import wait_for

SOURCE = Path(__file__).parent
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def node_22(installed: Path) -> Path:
    """Node 22 or later: that of the PATH, or the one that npm has installed."""
    own = installed / "node_modules" / "node" / "bin" / "node"
    for node in (shutil.which("node"), own if own.exists() else None):
        if node is not None:
            version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60).stdout
            if (found := re.match(r"v(\d+)\.", version)) and int(found[1]) >= 22:
                return Path(node)
    pytest.skip("there is no Node 22 or later")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs the js peer, less its arguments."""
    installed = Path(os.environ.get("INTEROP") or pytest.skip("INTEROP names no folder with js-libp2p in it"))
    folder = tmp_path_factory.mktemp("js")
    (folder / "node_modules").symlink_to(installed / "node_modules")
    for name in ("package.json", "codec.mjs", "peer.mjs"):
        shutil.copy(SOURCE / name, folder)
    return [str(node_22(installed)), str(folder / "peer.mjs")]


class Stranger:
    """The js peer. heard: what came to it by gossip, as it understood it."""

    def __init__(self, command: list[str], identity: Identity, address: str, swarm: str = "tests"):
        self.identity, self.heard, self.listens = identity, list[dict[str, Any]](), list[str]()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # a simulated key: one that is worth something is not for an argument, which others can see
        arguments = [identity.expose_secret().hex(), address, swarm]
        # without what would have Node print other than it was told to
        environment = {name: value for name, value in os.environ.items() if name not in ("NODE_OPTIONS", "DEBUG")}
        self._process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            said = json.loads(line, object_hook=lambda one: base64.b64decode(one["base64"]) if "base64" in one else one)
            if "heard" in said:
                self.heard.append(said["heard"])
            elif "listens" in said:
                self.listens = said["listens"]
            else:
                self._answers.put(said)

    def ask(self, do: str, **given) -> dict[str, Any]:
        words = json.dumps({"id": 1, "do": do, **given}, default=lambda raw: {"base64": base64.b64encode(raw).decode()})
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        answer = self._answers.get(timeout=60)
        assert "failed" not in answer, answer["failed"]
        return answer

    def close(self) -> int:
        """Ends it as it wants to be ended, and returns its exit status."""
        try:
            self._process.stdin.close()
            return self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.join(10)
            self._process.stdout.close()


class Node:
    """A Gossip, with what it delivered and all it counted."""

    def __init__(self, seed_index: int, bootnodes: list[str]):
        self.identity = simulated(31, seed_index)
        self.records: list[bytes] = []
        self._counts: collections.Counter[str] = collections.Counter()
        config = GossipConfig(swarm="tests", bootnodes=tuple(bootnodes))
        self.gossip = Gossip(self.identity, config, self._take)
        self.gossip.tell_rules({"records": "4.1", "swarm.name": "tests"})
        self.addresses = self.gossip.start()

    def _take(self, signed: SignedRecord) -> bool:
        self.records.append(signed.raw)
        return True

    def counts(self) -> dict[str, int]:
        self._counts.update(self.gossip.take_counts())
        return self._counts

    def rejected(self) -> dict[str, int]:
        return {name: number for name, number in self.counts().items() if name.startswith("rejected/")}

    def publish(self, raw: bytes) -> bytes:
        self.gossip.publish(raw)
        return raw


@pytest.fixture(scope="module")
def nodes(command) -> Iterator[tuple[Node, Node]]:
    """Two that are connected."""
    first = Node(0, [])
    second = Node(1, first.addresses[:1])
    try:
        wait_for(lambda: first.gossip.connected() and second.gossip.connected(), "they are connected")
        yield first, second
    finally:
        first.gossip.close()
        second.gossip.close()


@pytest.fixture(scope="module")
def stranger(command, nodes) -> Iterator[Stranger]:
    """It is connected with the first of them alone."""
    peer = Stranger(command, simulated(31, 2), nodes[0].addresses[0])
    try:
        wait_for(lambda: peer.identity.author in nodes[0].gossip.connected(), "it takes part")
        yield peer
    finally:
        status = peer.close()
    assert status == 0
    wait_for(lambda: peer.identity.author not in nodes[0].gossip.connected(), "its leaving is noticed")


def large(identity: Identity, round_: int) -> bytes:
    """One that is too large to be inline."""
    return seal(record(identity, [group([completion(text="x" * 25_000)] * 2)], round=round_), identity)


def described(round_: int, length: int = 2) -> dict[str, Any]:
    """A record as the stranger is told to write one; what it is told in words, it has to encode itself."""
    said = {
        "tokens": np.array([5, 6, 2**31 - 1], "<i4").tobytes(),
        "logprobs": np.array([-0.5, -0.0, -3e38], "<f4").tobytes(),
        "text": "é🦊 " + "x" * length,
    }
    return {
        "version": 4,
        "round": round_,
        "stage": "answer",
        "beacon": b"\1\2",
        "promptFormat": "compact-1",
        "policyVersion": 70_000,
        "weights": b"w" * 32,
        "tokenizerFingerprint": "t",
        "temperature": 1,  # which is a float all the same
        "groups": [
            {
                "task": "chain_sum",
                "taskFingerprint": "0" * 40,
                "index": index,
                "problemSeed": str(2**63 - 1 - index),
                "parents": [b"p" * 32] * index,
                "vote": None if index % 2 else index,
                "completions": [said] * 2,
            }
            for index in range(17)
        ],
        "verdicts": [
            {"record": b"r" * 32, "index": 0, "finding": "produced", "tokens": 300, "bits": 12.25, "statistic": -1e300}
        ],
    }


def test_it_joins_hears_all_and_is_heard_by_all(stranger, nodes):
    sent = [node.publish(raw) for node in nodes for raw in (sealed(node.identity, round=1), large(node.identity, 2))]
    wait_for(lambda: len(stranger.heard) >= 4, "it hears the near one, and the far one through the near one")
    heard = {one["envelope"]: one for one in stranger.heard}
    assert (
        heard.keys() == set(sent)
        and sorted(one["kind"] for one in heard.values()) == ["announced"] * 2 + ["inline"] * 2
    )
    for raw, one in heard.items():
        ours = open_envelope(raw)
        assert one["name"] == ours.hash and one["record"]["author"] == ours.record.author
        assert int(one["record"]["round"]) == ours.record.round

    said = [stranger.ask("say", record=described(round_, length))["envelope"] for round_, length in ((1, 2), (2, 9000))]
    assert len(said[0]) < 16_384 < len(said[1])  # one inline, one that both nodes have to pull
    wait_for(lambda: all(raw in node.records for raw in said for node in nodes), "both hear both")
    assert all(Inbox("tests", simulated(31, 0).author, 5, STAGES).offer(raw, 1) for raw in said)
    theirs = open_envelope(said[1]).record
    assert theirs.author == stranger.identity.author and theirs.temperature == 1.0 and len(theirs.groups) == 17
    assert theirs.groups[3].problem_seed == 2**63 - 4 and theirs.groups[2].vote == 2 and theirs.groups[1].vote is None
    assert theirs.groups[0].completions[0].text.startswith("é🦊 ") and theirs.verdicts[0].statistic == -1e300
    assert seal(theirs, stranger.identity) == said[1]  # its encoding is the one, and so is its signature
    assert not any(node.rejected() or node.counts().get("network/malformed") for node in nodes)


def test_what_it_should_not_say_ends_with_its_neighbour(stranger, nodes):
    near, far = nodes
    before = collections.Counter(near.rejected())
    for data in (INLINE + b"garbage", b"neither tag", INLINE + sealed(simulated(31, 3), round=1)):
        stranger.ask("send", data=data)
    wanted = {"rejected/undecodable": 2, "rejected/foreign sender": 1}
    wait_for(lambda: collections.Counter(near.rejected()) - before == wanted, "they are counted as what they are")
    again = stranger.ask("say", record=described(5))["envelope"]
    wait_for(lambda: again in near.records and again in far.records, "what it has to say is heard as before")
    assert not far.rejected() and stranger.identity.author in near.gossip.connected()


def test_it_greets_pulls_and_is_told_the_rules(stranger, nodes):
    near, _ = nodes
    latest = [near.publish(sealed(near.identity, round=round_)) for round_ in (7, 8, 9)]
    hashes = [hashlib.sha256(raw).digest() for raw in latest]
    wait_for(lambda: {one.get("envelope") for one in stranger.heard} >= set(latest), "all are heard")
    greeted = stranger.ask("greet", known=hashes[:1])
    assert greeted["records"] == latest[1:]
    assert stranger.ask("fetch", hash=hashes[0])["records"] == [latest[0]]
    assert stranger.ask("fetch", hash=bytes(32))["records"] == []
    rules = stranger.ask("rules")
    assert rules["rules"] == {"records": "4.1", "swarm.name": "tests"} and len(rules["agreement"]) == 32


def test_it_is_greeted_and_serves_whoever_missed_what_it_said(stranger, nodes):
    said = stranger.ask("say", record=described(11, 9000))["envelope"]
    (address,) = [one for one in stranger.listens if "/127.0.0.1/" in one]
    late = Node(5, [address])  # which knows the stranger alone
    try:
        wait_for(lambda: said in late.records, "a newcomer asks it for its latest")
        assert not late.rejected() and not late.counts().get("network/malformed")
    finally:
        late.gossip.close()


# --- what a record is, on both sides

A, B, C = (simulated(33, number) for number in range(3))


def announcing(author: Identity, *said: schema.Rotation, **fields) -> bytes:
    known = msgspec.structs.asdict(record(author, **fields)) | {"version": ANNOUNCING}
    payload = msgspec.msgpack.encode(Announcing(**known, rotations=list(said)))
    return msgspec.msgpack.encode([payload, author.sign(payload)])


def signed(payload: bytes, author: Identity = A) -> bytes:
    return msgspec.msgpack.encode([payload, author.sign(payload)])


def changed(**fields) -> bytes:
    """What a careless node of that author would send."""
    return signed(msgspec.msgpack.encode(msgspec.structs.replace(record(A), **fields)))


def saying(text: str) -> schema.Group:
    return group([completion(text=text)] * 2)


def odd() -> dict[str, bytes]:
    """Envelopes that are just good, and that are just not."""
    good, payload = sealed(A), schema.encode(record(A))
    signature = A.sign(payload)
    high = signature[:32] + (ORDER - int.from_bytes(signature[32:])).to_bytes(32)
    numbers = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1]
    said = rotations.announce(B, A.author, "tests", 7), rotations.announce(C, B.author, "tests", 3)
    a_group, a_completion = group(), completion()
    tokens = [completion([1] * 8192), completion([0, 2**31 - 1], [-0.0, -3e38])]
    return {
        "good": good,
        "nothing": changed(groups=[]),
        **{f"round {number}": changed(round=number) for number in numbers},
        **{
            f"text of {number}": changed(groups=[group([completion(text="x" * number)] * 2)])
            for number in (0, 31, 32, 256)
        },
        "the longest text": changed(groups=[saying("é" * 65_536)]),
        "too long a text": changed(groups=[saying("x" * 65_537)]),
        "a NUL, a mark of byte order": changed(tokenizer_fingerprint="\0\ufeff"),
        "names": changed(swarm="é" * 64),
        "a long name": changed(swarm="x" * 65),
        "groups": changed(groups=[a_group] * 64),
        "too many groups": changed(groups=[a_group] * 65),
        "one completion": changed(groups=[group([a_completion])]),
        "64 completions": changed(groups=[group([a_completion] * 64)]),
        "tokens": changed(groups=[group(tokens)]),
        "no tokens": changed(groups=[group([completion([])] * 2)]),
        "a negative token": changed(groups=[group([completion([1, -1])] * 2)]),
        "half a token": changed(groups=[group([schema.Completion(b"\0" * 6, b"\0" * 6, "")] * 2)]),
        "a positive log-prob": changed(groups=[group([completion([1, 2], [-1.0, 1e-6])] * 2)]),
        "a NaN log-prob": changed(groups=[group([completion([1, 2], [-1.0, float("nan")])] * 2)]),
        "the largest seed": changed(groups=[group(problem_seed=2**63 - 1)]),
        "too large a seed": changed(groups=[group(problem_seed=2**63)]),
        "a vote": changed(groups=[group(vote=64)]),
        "too large a vote": changed(groups=[group(vote=65)]),
        **{
            f"temperature {value}": changed(temperature=value)
            for value in (1e-300, 0.0, -1.0, float("nan"), float("inf"))
        },
        "version 3": changed(version=3),
        "version 5 with the fields of 4": changed(version=5),
        "no point": changed(author=b"\2" + b"\xff" * 32),
        "another's": signed(schema.encode(record(B))),
        "a verdict": changed(verdicts=[schema.Verdict(b"r" * 32, 0, "withheld", 2, 0.0, -1.5)]),
        "no verdict": changed(verdicts=[schema.Verdict(b"r" * 32, 0, "guilty", 2, 0.0, -1.5)]),  # type: ignore[arg-type]
        "an infinite verdict": changed(verdicts=[schema.Verdict(b"r" * 32, 0, "withheld", 2, float("inf"), 0.0)]),
        "high s": msgspec.msgpack.encode([payload, high]),
        "no signature": msgspec.msgpack.encode([payload, bytes(64)]),
        "s of the order": msgspec.msgpack.encode([payload, signature[:32] + ORDER.to_bytes(32)]),
        "a long header": b"\xdc\x00\x02" + good[1:],
        "a record's long header": signed(b"\xdc\x00\x0d" + payload[1:]),
        "a long number": signed(payload[:1] + b"\xcc\x04" + payload[2:]),
        "an integer for a float": signed(payload.replace(b"\xcb" + bytes.fromhex("3ff0000000000000"), b"\x01")),
        "a short float": signed(payload.replace(b"\xcb" + bytes.fromhex("3ff0000000000000"), b"\xca\x3f\x80\x00\x00")),
        "more behind it": good + b"\0",
        "more behind the record": signed(payload + b"\0"),
        "cut": good[:-1],
        "empty": b"",
        "one key before": announcing(A, said[0]),
        "two keys before": announcing(A, said[1], said[0]),
        "in the wrong order": announcing(A, *said),
        "of another swarm": announcing(A, said[0], swarm="another"),
        "of itself": announcing(A, rotations.announce(A, A.author, "tests", 7)),
        "of nobody": announcing(A),
        "of five": announcing(A, *[said[0]] * 5),
    }


def accepted(raw: bytes) -> bool:
    try:
        open_envelope(raw)
    except RecordError:
        return False
    return True


def agrees(stranger: Stranger, raw: bytes) -> bool:
    """Whether both take an envelope, or both do not; and where both do, call it the same."""
    answer = stranger.ask("check", envelope=raw)
    if accepted(raw):
        return answer.get("name") == open_envelope(raw).hash
    return "refused" in answer


def test_both_take_and_refuse_the_same_at_every_bound(stranger):
    cases = odd()
    assert [what for what, raw in cases.items() if not agrees(stranger, raw)] == []
    taken = sum(map(accepted, cases.values()))
    assert 20 < taken < len(cases) - 20


def test_both_take_and_refuse_the_same_of_what_chance_has_damaged(stranger):
    """Within the signed bytes, so that form and bounds are what decides."""
    chance, payload = (
        random.Random(5),
        schema.encode(record(A, verdicts=[schema.Verdict(b"r" * 32, 0, "withheld", 2, 1.0, 2.0)])),
    )
    differ, taken = [], 0
    for _ in range(400):
        damaged = bytearray(payload)
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.choice((0, 1, 1))] = bytes(
                [chance.choice((0, 127, 128, 204, 255, damaged[at] ^ 1))]
            )
        raw = signed(bytes(damaged))
        taken += accepted(raw)
        differ += [] if agrees(stranger, raw) else [bytes(damaged).hex()]
    assert not differ and 40 < taken < 360


def test_seeds_and_keys_follow_from_the_same_words(stranger):
    for domain, fields in (
        ("problem", ["beacon", 7, 2**31]),
        ("sample", [b"\0beacon", A.author, "answer", 0, 63]),
        ("pool", ["é", b"", ""]),
    ):
        told = stranger.ask("draw", domain=domain, fields=fields)
        assert told["digest"] == randomness.digest(domain, *fields)
        assert int(told["seed"]) == randomness.seed(domain, *fields)
        assert told["key"] == randomness.key_data(domain, *fields).tolist()
