"""What strangers can make a node spend: its processor time for each millisecond of theirs, and what its rounds suffer.

    python -m benchmarks.hostile        three minutes on two CPU cores

Prints one JSON line a row. For each attack: `cost`, the victim's processor milliseconds for one of the attacker's, on
loopback, both from the first connection to the last; the victim is a process with a live node's network and inbox, the
attacker another. And `rounds`, what three honest nodes play in a second while the same attacker goes at the first of
them, against what they play undisturbed (`ratio`): one process a node, a real network, journal and waiting, and a model
that is a table, so that the network and the records are nearly all that a round takes. The attacker has the last core
to itself, and the nodes the others, so that it takes of their time only what it makes them spend.

Attacks: a handshake that never begins, connecting and leaving with a fresh key each time, valid records of the largest
size that is inline, the same announced and fetched (a megabyte each), garbage in signed messages, and addresses that
nobody can read, pushed by identify. `nothing` is a peer that is connected and silent.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
from libp2p.abc import INetStream
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from rlswarm_jax import launch
from rlswarm_jax.identity import Identity
from rlswarm_jax.machine import hardware
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.schema import Completion, Group, Record
from rlswarm_jax.swarm.exchange import Reply
from rlswarm_jax.swarm.frames import ANNOUNCEMENT, INLINE, Announcement, read_frame
from tests.swarm.hostile_peer import HostilePeer, framed
from tests.table_node import SEED

SECONDS, NODES, ROUNDS, SWARM = 8.0, 3, 60, "tables"
keys = itertools.count(1)


def fresh() -> Identity:
    return Identity(next(keys).to_bytes(2) + time.time_ns().to_bytes(30))


def record(own: Identity, round_: int, characters: int, groups: int = 1) -> bytes:
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
    fields = {"version": schema.VERSION, "swarm": SWARM, "author": own.author, "round": round_, "stage": "answer"}
    return seal(Record(**fields, **names, beacon=b"", policy_version=0, groups=said), own)


# --- the attacks, each until the time is over


def nothing(address: str, until: float) -> None:
    peer = HostilePeer(fresh(), address, SWARM)
    time.sleep(max(0.0, until - time.monotonic()))
    peer.close()


def half_open(address: str, until: float) -> None:
    port, opened = int(address.split("/tcp/")[1].split("/")[0]), []
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=1.0))
        for old in opened[:-200]:
            old.close()
        opened = opened[-200:]
        time.sleep(0.002)


def churn(address: str, until: float) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # it may be turned away at any point
            HostilePeer(fresh(), address, SWARM).close()


def _speaking(address: str, until: float, act: Callable[[HostilePeer, int], None]) -> None:
    for number in itertools.count():
        if time.monotonic() >= until:
            return
        with contextlib.suppress(Exception):  # it may be refused for a while, and comes again with another key
            peer = HostilePeer(fresh(), address, SWARM)
            for turn in range(400):
                if time.monotonic() >= until:
                    break
                act(peer, 400 * number + turn)
            peer.close()


def inline_records(address: str, until: float) -> None:
    def act(peer: HostilePeer, number: int) -> None:
        raw = record(peer.identity, number, 15_000)
        peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + raw)])))

    _speaking(address, until, act)


def announced_records(address: str, until: float) -> None:
    """A node has fetched the one before it is told of the next."""
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
        raw, peer.serve = record(peer.identity, number, 15_000, 60), serve
        told = Announcement(hashlib.sha256(raw).digest(), len(raw))
        data = ANNOUNCEMENT + msgspec.msgpack.encode(told)
        peer.send(framed(rpc_pb2.RPC(publish=[peer.message(data)])))

    _speaking(address, until, act)


def garbage(address: str, until: float) -> None:
    def act(peer: HostilePeer, number: int) -> None:
        peer.send(framed(rpc_pb2.RPC(publish=[peer.message(INLINE + number.to_bytes(8) + bytes(8000))])))

    _speaking(address, until, act)


def addresses(address: str, until: float) -> None:
    unreadable = [b"\x36\x05\xff\xfe\xfd\xfc\xfb\x06" + number.to_bytes(2) for number in range(1000)]

    def act(peer: HostilePeer, number: int) -> None:
        peer.push_identity(Identify(listen_addrs=unreadable).SerializeToString())

    _speaking(address, until, act)


ATTACKS = {
    "nothing": nothing,
    "half-open handshakes": half_open,
    "connecting and leaving": churn,
    "records": inline_records,
    "announced records": announced_records,
    "garbage": garbage,
    "unreadable addresses": addresses,
}


# --- what is measured


@contextlib.contextmanager
def swarm(folder: Path, rounds: int) -> Iterator[tuple[list[launch.Member], list[subprocess.Popen]]]:
    """Three nodes that have begun to play."""
    members, processes = launch.assign(folder, NODES, seed=SEED), []
    for member in members[:NODES]:
        told = {
            "folder": str(member.folder),
            "index": member.index,
            "rounds": rounds,
            "port": member.port,
            "bootnodes": [members[0].address] if member.index else [],
            "peers": [other.peer_id for other in members[:NODES] if other is not member],
            "deadline": 30.0,
            "sample_seconds": 0.05,
            "pause": None,
        }
        command = [sys.executable, "-m", "tests.table_node", json.dumps(told)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        keep_to(processes[-1], list(range(max(1, os.cpu_count() - 1))))
    try:
        while not all(played(member) > 2 for member in members[:NODES]):
            time.sleep(0.05)
        yield members, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def keep_to(process: subprocess.Popen, cores: list[int]) -> None:
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        psutil.Process(process.pid).cpu_affinity(cores)


def played(member: launch.Member) -> int:
    file = member.folder / "metrics.jsonl"
    return len(read_rows(file)) if file.exists() else 0


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return 1000 * (times.user + times.system)


def measure(attack: str) -> dict[str, float]:
    """Rounds a second of an honest node that is not attacked itself, and both sides' CPU milliseconds."""
    with tempfile.TemporaryDirectory() as folder, swarm(Path(folder), 100_000) as (members, processes):
        victim = psutil.Process(processes[0].pid)
        before, rounds, began = spent(victim), [played(m) for m in members[:NODES]], time.monotonic()
        command = [sys.executable, "-m", "benchmarks.hostile", attack, members[0].address, str(SECONDS)]
        attacker = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
        keep_to(attacker, [os.cpu_count() - 1])
        said, _ = attacker.communicate()
        seconds = time.monotonic() - began
        done = min(played(m) - n for m, n in zip(members[:NODES], rounds, strict=True))
        return {"victim": spent(victim) - before, "attacker": float(said), "rounds": done / seconds, "seconds": seconds}


def main() -> None:
    if len(sys.argv) == 4:
        name, address, seconds = sys.argv[1:]
        me = psutil.Process()
        before = spent(me)
        ATTACKS[name](address, time.monotonic() + float(seconds))
        return print(spent(me) - before)
    packages = ("libp2p", "trio", "coincurve", "msgspec")
    versions = {package: importlib.metadata.version(package) for package in packages}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    calm = None
    for name in ATTACKS:
        found = measure(name)
        calm = calm or found
        own = calm["victim"] / calm["rounds"] / calm["seconds"]  # that a round costs by itself
        extra = max(0.0, found["victim"] - own * found["rounds"] * found["seconds"])
        config = {"attack": name, "nodes": NODES, "seconds": SECONDS}
        if name != "nothing":
            row = {"value": round(extra / max(found["attacker"], 1.0), 2), "unit": "CPU ms per CPU ms"}
            print(json.dumps({"benchmark": "hostile: cost", "config": config} | row | about), flush=True)
        row = {"value": round(found["rounds"], 2), "unit": "rounds/s", "versus": "undisturbed"}
        row["ratio"] = round(found["rounds"] / calm["rounds"], 2)
        print(json.dumps({"benchmark": "hostile: rounds", "config": config} | row | about), flush=True)


if __name__ == "__main__":
    main()
