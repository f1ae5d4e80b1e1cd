"""A swarm of real nodes on a chain, and all that can befall it: who is hit by what, and when, follows from a seed.

Each node is the process that a user's is, restarted by the launcher that a user's is. On Linux with root each has a
host of its own on an internet of network namespaces, so that it can be cut off, and one of them a small disk; elsewhere
all are on loopback, and these two faults are left out.
"""

import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

from rlswarm_jax import launch, status
from rlswarm_jax.chain.local import LocalChain
from rlswarm_jax.identity import simulated
from rlswarm_jax.running import arguments, live
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from tests.chain.fake_endpoint import answer, serve
from tests.swarm.attacks import ATTACKS
from tests.swarm.internet import Internet, inside, placed

CHECKOUT = Path(__file__).parent.parent
DISK = "96m"  # of the node whose disk is filled
STEPS = 5.0  # seconds after the end of a fault until another one may hit who was hit


@dataclasses.dataclass(frozen=True)
class Fault:
    """at: the round of the swarm in which it begins. nodes: whom it hits; none, for what hits all."""

    at: int
    kind: str
    nodes: tuple[int, ...]
    seconds: float


# how often in a schedule, and for how many seconds: a connection that is silent for 20 s is given up
KINDS = {
    "kill": (6, 0.0),
    "suspend": (3, 25.0),
    "partition": (2, 25.0),
    "full disk": (1, 15.0),
    "dead chain": (2, 12.0),
    "lying endpoint": (2, 15.0),
    "hostile peers": (4, 30.0),
}
NEEDS_ROOT = ("partition", "full disk")


def schedule(
    seed: int, nodes: int, first: int, last: int, small_disk: int, without: tuple[str, ...] = ()
) -> list[Fault]:
    """Faults from round `first` on and before `last`, evenly, their kinds and victims in an order of the seed's.

    small_disk: whose disk can be filled.
    """
    rng = random.Random(seed)
    kinds = [kind for kind, (times, _) in KINDS.items() if kind not in without for _ in range(times)]
    rng.shuffle(kinds)
    faults, killed = [], rng.sample(range(nodes), nodes)
    for number, kind in enumerate(kinds):
        hit: tuple[int, ...] = ()
        if kind in ("kill", "suspend", "hostile peers"):
            killed = killed[1:] + killed[:1]  # in turns: nobody is spared
            hit = (killed[0],)
        elif kind == "partition":
            hit = tuple(sorted(rng.sample(range(nodes), nodes // 2)))
        elif kind == "full disk":
            hit = (small_disk,)
        faults.append(Fault(first + number * (last - first) // len(kinds), kind, hit, KINDS[kind][1]))
    return faults


# --- an endpoint that dies and lies


class Endpoint:
    """Stands between the nodes and their chain. doing: "passes on", or "lies" as the seed has it."""

    def __init__(self, upstream: str, seed: int):
        self.upstream, self.doing, self.lied = upstream, "passes on", collections.Counter[str]()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._earlier: dict[str, bytes] = {}  # by method, the first that was said

    def respond(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body)
        with self._lock:
            lie = self._random.choice(LIES) if self.doing == "lies" else None
        if lie is not None:
            self.lied[lie.__name__] += 1
        if lie is sent_nowhere and asked["method"] == "eth_sendRawTransaction":
            return answer(
                handler, json.dumps({"id": asked["id"], "jsonrpc": "2.0", "result": "0x" + 64 * "a"}).encode()
            )
        request = urllib.request.Request(self.upstream, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                said = reply.read()
        except (urllib.error.URLError, OSError):
            return answer(handler, b"", 502)
        said = json.loads(said)
        first = self._earlier.setdefault(asked["method"], said.get("result"))
        if lie is not None:
            said = lie(said, first, self._random)
        return answer(handler, said if isinstance(said, bytes) else json.dumps(said).encode())


def no_json(said: dict, first: object, rng: random.Random) -> bytes:
    return b"<html><body>Welcome</body></html>"


def of_nobody(said: dict, first: object, rng: random.Random) -> dict:
    return said | {"id": 10**6}


def nothing_there(said: dict, first: object, rng: random.Random) -> dict:
    return {"jsonrpc": "2.0", "id": said["id"], "result": None}


def cut_off(said: dict, first: object, rng: random.Random) -> dict:
    result = said.get("result")
    return said | {"result": result[: len(result) // 2] if isinstance(result, str) else {}}


def long_ago(said: dict, first: object, rng: random.Random) -> dict:
    return {"jsonrpc": "2.0", "id": said["id"], "result": first}


def other_bits(said: dict, first: object, rng: random.Random) -> dict:
    """Of the right form, and not what the chain says: a beacon, a round, a nonce, a chain."""
    result = said.get("result")
    if not isinstance(result, str) or len(result) < 3:
        return said
    at = rng.randrange(2, len(result))
    return said | {"result": result[:at] + rng.choice("0123456789abcdef") + result[at + 1 :]}


def sent_nowhere(said: dict, first: object, rng: random.Random) -> dict:
    return said


LIES: tuple[Callable[[dict, object, random.Random], dict | bytes], ...] = (
    *(no_json, of_nobody, nothing_there, cut_off, long_ago, other_bits, sent_nowhere),
)


# --- the swarm


class Swarm:
    """Nodes 0 to honest - 1, and behind them a liar for each strategy, for as long as the `with` block lasts.

    words: of the config. observed: whether somebody beside them keeps all that is announced, in `heard`.
    """

    def __init__(
        self,
        folder: Path,
        words: list[str],
        honest: int,
        *,
        liars: tuple[str, ...] = (),
        seed: int = 0,
        namespaces: bool = True,
        small_disk: int | None = None,
        observed: bool = True,
    ):
        self.folder, self.honest, self._small, self._seed = folder, honest, small_disk, seed
        nodes = honest + len(liars)
        adversaries = tuple((honest + number, name) for number, name in enumerate(liars))
        given = [*words, f"--config.swarm.nodes={nodes}", f"--config.simulation.adversaries={adversaries!r}"]
        self.config = arguments.parse([*given, f"--workdir={folder}"]).config
        self._names, self._observed, self._held = namespaces, observed, contextlib.ExitStack()
        self._nodes = nodes
        self.heard: dict[bytes, dict[tuple[int, str], set[bytes]]] = {}  # of an author, by round and stage
        self.banned: dict[int, set[str]] = {index: set() for index in range(nodes)}  # by whom
        self.exits: list[launch.Exit] = []
        self.said: list[str] = []  # what was done, and when
        self._lock, self._attacked = threading.Lock(), 0
        self._under: dict[Fault, contextlib.ExitStack] = {}
        self._busy: dict[int, float] = {}  # who was hit: until when nobody hits it again

    def __enter__(self) -> "Swarm":
        self._begun = time.monotonic()
        try:
            self._enter()
        except BaseException:
            self._held.close()
            raise
        return self

    def _enter(self) -> None:
        hold = self._held.enter_context
        self._internet = hold(Internet()) if self._names else None
        every = range(1, self._nodes + 3)
        hosts = [self._internet.host(number) if self._internet else "" for number in every]
        *self._spaces, self._chains, self._strangers = hosts
        if self._small is not None and self._internet:
            disk = self.folder / f"node-{self._small}"
            disk.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(disk)], check=True)
            self._held.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
        members = launch.assign(self.folder, self._nodes, seed=self.config.seed)
        if self._internet:
            members = [dataclasses.replace(one, host=f"44.{one.index + 1}.0.1") for one in members]
            self.config.swarm.host = "any"
        self.members = members
        with self._at(self._chains):
            bootnodes = [members[0].address]
            self.chain = hold(LocalChain("devnet", self.folder / "chain", self._nodes, bootnodes))
            self.endpoint = Endpoint(self.chain.url, self._seed)
            url = hold(serve(self.endpoint.respond, f"44.{self._nodes + 1}.0.1" if self._internet else "127.0.0.1"))
        told = SimpleNamespace(url=url, contract=self.chain.contract, court="")
        for member in members:
            live._write_config(self.config, member, members, told)
        if self._observed:
            config = GossipConfig(self.config.swarm.name, bootnodes=tuple(one.address for one in members))
            kind = placed(self._strangers) if self._internet else Gossip
            self._observer = kind(simulated(self.config.seed, 99), config, self._hear, lambda _: None)
            self._observer.start()
            self._held.callback(self._observer.close)
        env = launch.environment(0, self._nodes, "cpu", None, os.environ)
        self.launcher = hold(
            launch.Launcher(members, self._command, lambda _: env, max_restarts=1000, stop_seconds=60.0)
        )
        self.launcher.start()

    def __exit__(self, *_: object) -> None:
        for under in self._under.values():
            under.close()
        self._held.close()

    @contextlib.contextmanager
    def _at(self, space: str) -> Iterator[None]:
        with inside(space) if space else contextlib.nullcontext():
            yield

    def _command(self, member: launch.Member) -> list[str]:
        command = [sys.executable, "-m", "rlswarm_jax.running.node", str(member.folder)]
        return self._into(self._spaces[member.index], command)

    @staticmethod
    def _into(space: str, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", space, *command] if space else command

    def _hear(self, signed) -> bool:
        record = signed.record
        with self._lock:
            of_author = self.heard.setdefault(record.author, {})
            of_author.setdefault((record.round, record.stage), set()).add(signed.raw)
        return True

    # --- as it goes on

    def round(self, index: int) -> int:
        """The last that a node has finished."""
        with contextlib.suppress(OSError), (self.members[index].folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            lines = file.read().splitlines()[:-1]
            return json.loads(lines[-1])["round"] if len(lines) > 1 else -1
        return -1

    def look(self) -> None:
        """What ended, is started again, and who has cut off whom."""
        self.exits += self.launcher.poll()
        if not any(fault.kind == "dead chain" for fault in self._under):
            with self._at(self._chains):
                self.chain.tend()
        for member in self.members:
            if told := status.read(member.folder / "status.json"):
                self.banned[member.index] |= {one.peer for one in told.banned}

    def play(self, faults: Sequence[Fault] = (), seconds: float = 3600.0) -> int:
        """Until all have ended. Returns the round in which most were when the last fault was over."""
        left, end, after = sorted(faults, key=lambda fault: fault.at), time.monotonic() + seconds, -1
        over: dict[Fault, float] = {}
        while self.launcher.running:
            assert time.monotonic() < end, f"not within {seconds} s; {self.launcher.states()}"
            self.look()
            now = time.monotonic()
            for fault in [fault for fault, until in over.items() if now >= until]:
                self._say("ends", fault)
                self._under.pop(fault).close()
                del over[fault]
                self._busy |= {node: now + STEPS for node in self._whom(fault)}
                after = self._furthest()
            if left and self._furthest() >= left[0].at and self._can_begin(left[0]):
                fault = left.pop(0)
                self._say("begins", fault)
                self._under[fault] = contextlib.ExitStack()
                self._busy |= {node: float("inf") for node in self._whom(fault)}
                begin = getattr(self, f"_{fault.kind.replace(' ', '_')}")
                begin(fault, self._under[fault])
                over[fault] = now + fault.seconds
            time.sleep(0.2)
        assert not left and not over, "the rounds were over before the faults"
        return after

    def _furthest(self) -> int:
        return sorted(self.round(index) for index in range(self.honest))[self.honest // 2]

    def _whom(self, fault: Fault) -> tuple[int, ...]:
        return fault.nodes if fault.kind in ("kill", "suspend", "full disk") else ()

    def _can_begin(self, fault: Fault) -> bool:
        """One of a kind at a time, and who was hit has come back."""
        if any(other.kind == fault.kind for other in self._under):
            return False
        now, states = time.monotonic(), self.launcher.states()
        return all(
            self._busy.get(node, 0.0) <= now and states[node] == "running" and self.launcher.pids().get(node)
            for node in self._whom(fault)
        )

    def _say(self, what: str, fault: Fault) -> None:
        rounds = [self.round(index) for index in range(self._nodes)]
        self.said.append(f"{time.monotonic() - self._begun:6.1f} s  {what} {fault.kind} {fault.nodes}  {rounds}")
        print(self.said[-1], flush=True)

    # --- the faults

    def _kill(self, fault: Fault, under: contextlib.ExitStack) -> None:
        os.kill(self.launcher.pids()[fault.nodes[0]], signal.SIGKILL)

    def _suspend(self, fault: Fault, under: contextlib.ExitStack) -> None:
        pid = self.launcher.pids()[fault.nodes[0]]
        os.kill(pid, signal.SIGSTOP)
        under.callback(launch.send, os.kill, pid, signal.SIGCONT)

    def _partition(self, fault: Fault, under: contextlib.ExitStack) -> None:
        assert self._internet
        numbers = [node + 1 for node in fault.nodes]
        self._internet.part(*numbers)
        under.callback(self._internet.heal, *numbers)

    def _full_disk(self, fault: Fault, under: contextlib.ExitStack) -> None:
        filler = self.members[fault.nodes[0]].folder / "filler"
        under.callback(filler.unlink)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass

    def _dead_chain(self, fault: Fault, under: contextlib.ExitStack) -> None:
        os.kill(self.chain.pid, signal.SIGKILL)

    def _lying_endpoint(self, fault: Fault, under: contextlib.ExitStack) -> None:
        self.endpoint.doing = "lies"
        under.callback(setattr, self.endpoint, "doing", "passes on")

    def _hostile_peers(self, fault: Fault, under: contextlib.ExitStack) -> None:
        """Each time others of the suite, so that all of it was there in the end."""
        times, suite = KINDS[fault.kind][0], random.Random(self._seed).sample(list(ATTACKS), len(ATTACKS))
        victim, self._attacked = self.members[fault.nodes[0]].address, self._attacked + 1
        for attack in suite[self._attacked % times :: times]:
            command = [sys.executable, "-m", "tests.swarm.attacks", attack, victim, str(fault.seconds)]
            command = ["nice", *self._into(self._strangers, [*command, self.config.swarm.name])]
            process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
            under.callback(process.wait)
            under.callback(process.kill)
