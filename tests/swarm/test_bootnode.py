"""The node without a model: others meet at it, and go on without it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from libp2p.pubsub.pb import rpc_pb2

from rlswarm_jax import launch
from rlswarm_jax.files import JOURNAL_FILE, NODE_FILE
from rlswarm_jax.swarm import presence
from rlswarm_jax.swarm.frames import INLINE
from rlswarm_jax.swarm.greeting import NO_PLAYER, PROTOCOL, Hello
from tests.records.samples import sealed
from tests.swarm.hostile_peer import HostilePeer, framed
from tests.swarm.live import Node
from tests.waits import wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootnode(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the program; its folder is tmp_path / "boot"."""
    begun = []

    def begin(*more: str) -> subprocess.Popen:
        words = ["--config", "configs/bootnode.py", "--workdir", str(tmp_path / "boot"), "--config.swarm.name=tests"]
        words += ["--config.swarm.host=127.0.0.1", "--config.swarm.port=0", *more]
        command = [sys.executable, "-m", "experiments.run", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        begun.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait(10)


def address(tmp_path: Path) -> str:
    file = tmp_path / "boot" / NODE_FILE
    return json.loads(wait_for(lambda: file.exists() and file.read_text(), "it listens"))["addresses"][0]


def test_nodes_meet_at_a_bootnode_and_a_restarted_one_finds_them_when_it_is_dead(
    start, bootnode, tmp_path, monkeypatch
):
    monkeypatch.setattr(presence, "KEEP_AFTER", 0.2)
    process = bootnode()
    at = address(tmp_path)
    if Path("/proc/self/maps").exists():
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
        assert "coincurve" in loaded and "jaxlib" not in loaded
    first, second = start([at]), start([at], memory=tmp_path / "second.json")
    wait_for(lambda: first.sees(second) and second.sees(first), "they meet")
    assert first.gossip.connected() == {second.author}  # nobody waits for one that plays no rounds
    wait_for(lambda: first.identity.peer_id in (tmp_path / "second.json").read_text(), "it remembers the other")
    process.kill()
    process.wait(10)
    second.gossip.close()
    wait_for(lambda: not first.gossip.connected(), "all are apart")
    second = start([at], identity=second.identity, memory=tmp_path / "second.json")
    wait_for(lambda: second.sees(first), "it remembers where the first is")
    raw = first.publish(1)
    wait_for(lambda: raw in second.records, "and hears it")


def test_the_same_command_starts_a_bootnode_again_with_its_key_and_port(bootnode, tmp_path):
    process = bootnode()
    at = address(tmp_path)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and f"--config.swarm.bootnodes=\"['{at}']\"" in said
    assert not (tmp_path / "boot" / NODE_FILE).exists()
    begun = time.monotonic()
    bootnode()
    assert address(tmp_path) == at
    assert time.monotonic() - begun < 20


def test_a_bootnode_takes_no_folder_of_a_node_and_no_key_that_is_in_use(bootnode, tmp_path):
    first = bootnode()
    address(tmp_path)
    second = bootnode("--workdir", str(tmp_path / "other"), f"--config.swarm.key={tmp_path / 'boot' / launch.KEY_FILE}")
    said, _ = second.communicate(timeout=30)
    assert second.returncode == 75 and "another process is using" in said
    first.send_signal(signal.SIGTERM)
    first.wait(20)
    (tmp_path / "boot" / JOURNAL_FILE).touch()
    process = bootnode()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "is the folder of a node that plays" in said


def boot(node: Node) -> Node:
    node.gossip.tell_rules(NO_PLAYER)
    return node


def test_what_a_bootnode_passes_on_it_has_checked(start, attack):
    """The attacker and the node are connected with it alone: the attacker listens nowhere."""
    middle = boot(start())
    node = start(middle.addresses[:1])
    wait_for(lambda: middle.sees(node), "it is in")
    peer = attack(middle)
    wait_for(lambda: peer.identity.author in middle.gossip.connected(), "and so is the attacker")
    bad = sealed(peer.identity, round=1)
    peer.send(framed(peer_rpc(peer, bad[:-1] + bytes([bad[-1] ^ 1]))))
    peer.send(framed(peer_rpc(peer, sealed(peer.identity, round=2, swarm="another"))))
    good = sealed(peer.identity, round=3)
    peer.send(framed(peer_rpc(peer, good)))
    wait_for(lambda: good in node.records, "what is right comes through")
    assert node.records == [good]
    assert middle.count("rejected/bad signature") == middle.count("rejected/wrong swarm") == 1
    assert not node.count("rejected/bad signature") + node.count("rejected/wrong swarm")


def peer_rpc(peer: HostilePeer, raw: bytes) -> rpc_pb2.RPC:
    return rpc_pb2.RPC(publish=[peer.message(INLINE + raw)])


def test_one_that_says_it_plays_no_rounds_is_nobody_to_wait_for_until_it_says_else(start, attack):
    node = start()
    peer = attack(node)
    for hello, waited_for in ((NO_PLAYER, False), ({}, True), (NO_PLAYER, False)):
        peer.request(msgspec.msgpack.encode(Hello(b"", hello)), PROTOCOL)
        wait_for(lambda w=waited_for: (peer.identity.author in node.gossip.connected()) == w, "it is heard")
    assert not node.count("network/other_rules") + node.count("network/malformed")
