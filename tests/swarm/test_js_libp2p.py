"""A standard js-libp2p node takes part in the gossip; its source and the versions it was made for are in `js/`."""

import base64
import collections
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.swarm.frames import INLINE, topic_of
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from tests.records.samples import sealed
from tests.waits import wait_for

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent / "js"
NODE_22 = "22.23.3"
UNREACHABLE = "EAI_AGAIN|ECONNREFUSED|ECONNRESET|E(?:HOST|NET)UNREACH|ENOTCACHED|ENOTFOUND|ERR_SOCKET_TIMEOUT|ETIMEDOUT"


def npm_run(folder: Path, *arguments: str) -> None:
    """Skips if there is no npm, or no registry that it could reach; whatever else goes wrong is a failure."""
    npm = shutil.which("npm") or pytest.skip("there is no npm")
    quick = ("--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")
    try:
        done = subprocess.run([npm, *arguments, *quick], cwd=folder, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip("npm has not got the packages within 240 s")
    said = done.stdout + done.stderr
    if done.returncode and (found := re.search(rf"\b({UNREACHABLE})\b", said)):
        pytest.skip(f"npm cannot reach a registry: {found[0]}")
    assert done.returncode == 0, said


def find_node(folder: Path) -> Path:
    """Node 22 or later: that of the PATH, or one installed in a folder."""
    node = shutil.which("node")
    if node is not None:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60).stdout
        if (found := re.match(r"v(\d+)\.", version)) and int(found[1]) >= 22:
            return Path(node)
    package = {"private": True, "dependencies": {"node": NODE_22}, "allowScripts": {"node": True}}
    folder.mkdir()
    (folder / "package.json").write_text(json.dumps(package))
    npm_run(folder, "install")  # with its script, which fetches the package for this machine
    installed = folder / "node_modules" / "node" / "bin" / "node"
    if not installed.exists():
        pytest.skip("there is no Node 22 or later, and npm has none for this machine")
    return installed


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What runs the js peer, less its arguments."""
    folder = tmp_path_factory.mktemp("js")
    try:
        node = find_node(folder / "node22")
        for name in ("package.json", "package-lock.json", ".npmrc", "peer.mjs"):
            shutil.copy(SOURCE / name, folder)
        npm_run(folder, "ci", "--ignore-scripts")
        yield [str(node), str(folder / "peer.mjs")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # 240 MB, which pytest would keep for three runs


class JsPeer:
    """heard: the messages that it received, as (peer id of the author, data)."""

    def __init__(self, command: list[str], identity: Identity, address: str, swarm: str = "tests"):
        self.identity = identity
        self.heard: list[tuple[str, bytes]] = []
        # a simulated key: one that is worth something is not for an argument, which others can see
        arguments = [identity.expose_secret().hex(), address, topic_of(swarm)]
        self._process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            message = json.loads(line)
            self.heard.append((message["from"], base64.b64decode(message["data"], validate=True)))

    def publish(self, data: bytes) -> None:
        self._process.stdin.write(base64.b64encode(data).decode() + "\n")
        self._process.stdin.flush()

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


def _environment() -> dict[str, str]:
    """Without what would have Node print other than it was told to."""
    return {name: value for name, value in os.environ.items() if name not in ("NODE_OPTIONS", "DEBUG")}


class Node:
    """A Gossip, with what it delivered and all it counted."""

    def __init__(self, seed_index: int, bootnodes: list[str]):
        self.identity = simulated(31, seed_index)
        self.records: list[bytes] = []
        self._counts: collections.Counter[str] = collections.Counter()
        config = GossipConfig(swarm="tests", bootnodes=tuple(bootnodes))
        self.gossip = Gossip(self.identity, config, self._take)
        self.addresses = self.gossip.start()

    def _take(self, signed: SignedRecord) -> bool:
        self.records.append(signed.raw)
        return True

    def counts(self) -> dict[str, int]:
        self._counts.update(self.gossip.take_counts())
        return self._counts

    def rejected(self) -> dict[str, int]:
        return {name: number for name, number in self.counts().items() if name.startswith("rejected/")}

    def publish(self, round_: int) -> tuple[str, bytes]:
        """What a peer should hear of it."""
        raw = sealed(self.identity, round=round_)
        self.gossip.publish(raw)
        return self.identity.peer_id, INLINE + raw


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two that are connected."""
    first = Node(0, [])
    second = Node(1, first.addresses[:1])
    try:
        wait_for(lambda: first.gossip.connected() and second.gossip.connected(), "they are connected")
        yield first, second
    finally:
        first.gossip.close()
        second.gossip.close()


def test_a_js_peer_hears_all_and_is_heard_by_all_and_what_it_should_not_say_ends_with_its_neighbour(command, nodes):
    near, far = nodes  # it is connected with the near one only
    peer = JsPeer(command, simulated(31, 2), near.addresses[0])
    author = peer.identity.author
    try:
        wait_for(lambda: author in near.gossip.connected(), "it takes part")
        sent = [near.publish(1), far.publish(1)]
        wait_for(lambda: len(peer.heard) >= 2, "it hears the near one, and the far one through the near one")
        assert sorted(peer.heard) == sorted(sent)

        theirs = sealed(peer.identity, round=1)
        peer.publish(INLINE + theirs)
        wait_for(lambda: theirs in near.records and theirs in far.records, "both hear it")

        peer.publish(INLINE + b"garbage")
        peer.publish(b"neither tag")
        peer.publish(INLINE + sealed(simulated(31, 3), round=1))
        expected = {"rejected/undecodable": 2, "rejected/foreign sender": 1}
        wait_for(lambda: near.rejected() == expected, "they are counted as what they are")

        again = sealed(peer.identity, round=2)
        peer.publish(INLINE + again)
        sent += [near.publish(2), far.publish(2)]
        wait_for(lambda: again in near.records and again in far.records, "what it has to say is heard as before")
        wait_for(lambda: len(peer.heard) >= 4, "it hears the others as before")
        wait_for(lambda: len(near.records) >= 4 and len(far.records) >= 4, "and they each other")

        assert sorted(peer.heard) == sorted(sent)
        for node, other in ((near, far), (far, near)):
            own = [raw for raw in node.records if raw not in (theirs, again)]
            assert [INLINE + raw for raw in own] == [data for who, data in sent if who == other.identity.peer_id]
            assert len(node.records) == 4
        assert near.rejected() == expected and not far.rejected()
        assert not near.counts().get("network/malformed") and not far.counts().get("network/malformed")
        assert author in near.gossip.connected()
    finally:
        status = peer.close()
    assert status == 0
    wait_for(lambda: author not in near.gossip.connected(), "its leaving is noticed")
