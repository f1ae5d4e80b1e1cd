"""A local swarm of processes: assigns keys, ports and devices; starts, restarts and stops them.

The stdin of a node is a pipe from its parent, its life line: where it ends the parent is gone, however it died.
"""

import atexit
import contextlib
import errno
import ipaddress
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

from rlswarm_jax import identity

ANY = "any"  # all addresses of this machine
PORTS_FILE, KEY_FILE, LOG_FILE = "ports.json", "node.key", "log.txt"
STEADY_SECONDS = 60.0  # a node that was up for so long may be restarted as often as a new one
PROC_GPUS = Path("/proc/driver/nvidia/gpus")
# exit codes that no restart follows: done; something to mend first; told to stop. After others (1: a full disk or an
# error of ours; 75: what passes by itself; a signal) another try may help
FULL_BYTES, FULL_WAIT = 16 << 20, 5.0  # free on a disk that is full, and seconds between looks whether it still is
_FINAL = {0: "finished", 2: "failed", 130: "stopped"}


class LaunchError(RuntimeError):
    """The swarm cannot be launched as asked; the message is one sentence: what is wrong and what to do."""


@dataclass(frozen=True)
class Member:
    """A node as its launcher knows it. author: its 33-byte public key; the secret stays in its file."""

    index: int
    folder: Path
    author: bytes
    name: str
    host: str
    port: int
    peer_id: str

    @property
    def address(self) -> str:
        """Where nodes of this machine find it."""
        host = {ANY: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{self.port}/p2p/{self.peer_id}"


def assign(workdir: Path, nodes: int, *, seed: int, host: str = "127.0.0.1") -> list[Member]:
    """Gives each node a folder in `workdir`, a key and a port; what an earlier call gave is kept where it can be.

    On a loopback `host` new keys are derived from the seed, so that a run is a function of it; elsewhere they are
    random. A port is free when this returns, not reserved. Raises LaunchError, KeyFileError for a bad key file, and
    OSError for a full disk.
    """
    if nodes < 1:
        raise LaunchError(f"a swarm of {nodes} nodes cannot be launched: ask for at least 1.")
    members = []
    try:
        loopback = host != ANY and ipaddress.ip_address(host).is_loopback
        workdir.mkdir(parents=True, exist_ok=True)
        for index, port in enumerate(_ports(workdir / PORTS_FILE, nodes, host)):
            folder = workdir / f"node-{index}"
            folder.mkdir(exist_ok=True)
            author = _key(folder / KEY_FILE, identity.simulated(seed, index), loopback).author
            name, peer_id = identity.friendly_name(author), identity.peer_id(author)
            members.append(Member(index, folder, author, name, host, port, peer_id))
    except ValueError:
        raise LaunchError(f"{host!r} is not an IP address: give one of this machine's, such as 127.0.0.1.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        wrong = f"cannot prepare {nodes} nodes in {workdir} on {host}: {error.strerror}"
        raise LaunchError(f"{wrong}; choose another folder, or an address of this machine.") from None
    return members


def _key(path: Path, derived: identity.Identity, loopback: bool) -> identity.Identity:
    if loopback and not path.exists():
        return identity.create(path, derived)
    found = identity.load_or_create(path)
    if not loopback and found.author == derived.author:
        raise LaunchError(f"anyone can derive the key in {path} from the seed: remove it, or choose another folder.")
    return found


def _ports(file: Path, nodes: int, host: str) -> list[int]:
    with contextlib.suppress(OSError, ValueError, TypeError, OverflowError):  # no file, no list in it, or a port taken
        earlier = json.loads(file.read_text())
        if len(set(earlier)) == nodes:
            return _bind(host, earlier)
    ports = _bind(host, [0] * nodes)
    file.write_text(json.dumps(ports) + "\n")
    return ports


def _bind(host: str, ports: Sequence[int]) -> list[int]:
    """Binds all ports at once, so that no two are the same, and lets them go; 0 is any free one."""
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sockets = [stack.enter_context(socket.socket(family)) for _ in ports]
        for each, port in zip(sockets, ports, strict=True):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("" if host == ANY else host, port))
        return [each.getsockname()[1] for each in sockets]


def environment(
    index: int, nodes: int, devices: str, visible: Sequence[str] | None, base: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a node's process: `base` and what puts it on its device, "cpu", "gpu" or "tpu".

    On CPUs each has its share of the cores, one at least, as threads of XLA: more only wait for each other, at the cost
    of a quarter of what they compute. Nodes share the cards in turn: those of CUDA_VISIBLE_DEVICES, else `visible`,
    else (None) all of the machine.
    Raises LaunchError if the device cannot be had.
    """
    result = dict(base) | {"PYTHONUNBUFFERED": "1"}
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID") if index else ():  # of a run that an agent started, which is one
        result.pop(name, None)
    if devices == "cpu":
        own = {} if base.keys() & {"PJRT_NPROC", "NPROC"} else {"PJRT_NPROC": str(max(1, _cores() // nodes))}
        return result | own | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if devices == "tpu":
        if nodes != 1:
            raise LaunchError(f"a TPU host runs one process, not {nodes}: launch 1 node here, or choose devices cpu.")
        return result | {"JAX_PLATFORMS": base.get("JAX_PLATFORMS") or "tpu"}
    if devices != "gpu":
        raise LaunchError(f"unknown devices {devices!r}: expected one of cpu, gpu, tpu.")
    if "CUDA_VISIBLE_DEVICES" in base:
        listed = (card.strip() for card in base["CUDA_VISIBLE_DEVICES"].split(","))
        visible = list(takewhile(lambda card: card not in ("", "-1"), listed))  # CUDA reads no further
    elif visible is None:
        visible = visible_gpus()
    if not visible:
        raise LaunchError("no GPU to be seen: check CUDA_VISIBLE_DEVICES and `nvidia-smi -L`, or choose devices cpu.")
    result |= {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return result | {"JAX_PLATFORMS": base.get("JAX_PLATFORMS") or "cuda"}


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs of this machine, numbered as CUDA_VISIBLE_DEVICES wants them."""
    count = len(list(PROC_GPUS.glob("*")))
    if not count:  # some containers and virtual machines have GPUs and no such folder
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30).stdout
            count = sum(line.startswith(b"GPU ") for line in listed.splitlines())
    return [str(number) for number in range(count)]


@dataclass(frozen=True)
class Exit:
    """A process that ended. code: negative for a signal. restarted: whether it is going to be. reason: for people."""

    member: Member
    code: int
    restarted: bool
    reason: str


@dataclass
class _Child:
    member: Member
    state: str = "stopped"
    process: subprocess.Popen[bytes] | None = None  # None once it is reaped
    started: float = 0.0
    restarts: int = 0
    restart_at: float = 0.0
    log_offset: int = 0


class Launcher:
    """The processes of a swarm, one for each member, for as long as the `with` block lasts.

    Each leads a session of its own: Ctrl-C reaches the parent only, and what a node starts dies with the node.
    `restart_delay` seconds pass before a first restart, twice as many before each further one. While the disk is full
    none is tried, and none counts.
    """

    def __init__(
        self,
        members: Sequence[Member],
        command: Callable[[Member], list[str]],
        env: Callable[[Member], Mapping[str, str]],
        *,
        max_restarts: int = 3,
        restart_delay: float = 1.0,
        stop_seconds: float = 30.0,
    ):
        self._children = [_Child(member) for member in members]
        self._command, self._env, self._stopping = command, env, False
        self._max_restarts, self._restart_delay, self._stop_seconds = max_restarts, restart_delay, stop_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether any process is alive or about to be restarted."""
        return any(child.state in ("running", "restarting") for child in self._children)

    def states(self) -> dict[int, str]:
        """By index of the member: "running", "restarting", "finished", "stopped" or "failed"."""
        return {child.member.index: child.state for child in self._children}

    def pids(self) -> dict[int, int]:
        """By index of the member; of those that have a process."""
        return {child.member.index: child.process.pid for child in self._children if child.process}

    def start(self) -> None:
        """Starts every process. Raises LaunchError; `stop` ends those that were started by then."""
        for child in self._children:
            self._spawn(child)

    def poll(self) -> list[Exit]:
        """What ended since the last call; also restarts what is due. Never blocks: call it a few times a second."""
        exits = []
        for child in self._children:
            if child.process and (code := reap(child.process)) is not None:
                exits.append(self._note(child, code, reason(child.member.folder / LOG_FILE, child.log_offset, code)))
            elif child.state == "restarting" and time.monotonic() >= child.restart_at:
                if _is_full(child.member.folder):
                    child.restart_at = time.monotonic() + FULL_WAIT
                    continue
                try:
                    self._spawn(child)
                except LaunchError as error:  # short of memory, say: one more failed try, not the end of the swarm
                    exits.append(self._note(child, 1, str(error)))
        return exits

    def stop(self) -> list[Exit]:
        """SIGTERM to each process; after `stop_seconds` SIGKILL, to it and to all it started. Returns what ended."""
        self._stopping = True
        exits, deadline = [], time.monotonic() + self._stop_seconds
        try:
            for child in self._children:
                if child.process:  # its life line stays whole: one request to stop is enough
                    send(os.kill, child.process.pid, signal.SIGTERM)
                elif child.state == "restarting":
                    child.state = "stopped"
            exits += self.poll()
            while self.running and time.monotonic() < deadline:
                time.sleep(0.02)
                exits += self.poll()
        finally:  # also where a second Ctrl-C ends the waiting
            for child in self._children:
                if child.process:
                    send(os.killpg, child.process.pid, signal.SIGKILL)
                    code = child.process.wait()
                    exits.append(self._note(child, code, f"killed: it did not stop within {self._stop_seconds:g} s"))
        return exits

    def _spawn(self, child: _Child) -> None:
        folder, command, env = child.member.folder, self._command(child.member), self._env(child.member)
        child.started = time.monotonic()
        try:
            with (folder / LOG_FILE).open("ab") as log:
                child.log_offset = log.tell()
                child.process = subprocess.Popen(
                    command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            wrong = f"cannot start {command[0]!r}, which logs to {folder}: {error.strerror}"
            raise LaunchError(f"{wrong}; mend that and launch again.") from None
        child.state = "running"

    def _note(self, child: _Child, code: int, reason: str) -> Exit:
        if child.process and child.process.stdin:
            child.process.stdin.close()
        child.process = None
        now = time.monotonic()
        if now - child.started >= STEADY_SECONDS:
            child.restarts = 0
        child.state = _FINAL.get(code, "stopped" if self._stopping else "failed")
        if _is_full(child.member.folder):  # a try that could not help, and no other will before there is room
            child.restarts = 0
        if code not in _FINAL and not self._stopping and child.restarts < self._max_restarts:
            child.state, child.restart_at = "restarting", now + self._restart_delay * 2**child.restarts
            child.restarts += 1
        return Exit(child.member, code, child.state == "restarting", reason)


def _is_full(folder: Path) -> bool:
    """Whether its disk is, so that a node there could only fail."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < FULL_BYTES
    return False


def reap(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that has ended, whose group is killed with it; None while it lives."""
    if process.returncode is None and hasattr(os, "waitid"):
        # looks without reaping: until it is reaped its id, which is also its group's, is given to nobody else
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    else:  # macOS before Python 3.13; no id is given away while there is a group of that number
        ended = process.poll() is not None
    if not ended:
        return None
    send(os.killpg, process.pid, signal.SIGKILL)
    return process.wait()


def send(kill: Callable[[int, int], None], target: int, number: int) -> None:
    """A signal by `os.kill` to a process or by `os.killpg` to a group; nothing where it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter is macOS for a group of zombies
        kill(target, number)


def reason(log: Path, offset: int, code: int) -> str:
    """Why a process ended, for people. log: that it wrote from `offset` on."""
    if code < 0:
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by {names.get(-code, f'signal {-code}')}"
    said = last_line(log, offset)
    return f"ended with code {code}" + (f": {said[:300]}" if said else "")


def last_line(log: Path, offset: int = 0) -> str:
    """Of a log from `offset` on, the last that is not empty."""
    lines: list[str] = []
    with contextlib.suppress(OSError), log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(offset if offset <= end else 0, end - 16384))  # beyond it: the log was rotated
        lines = file.read().decode(errors="replace").splitlines()
    # without control characters: the line may quote a stranger, and people read it in a terminal
    said = ["".join(filter(str.isprintable, line)).strip() for line in lines]
    return next((line for line in reversed(said) if line), "")


def follow_parent(on_gone: Callable[[], None], grace: float = 20.0) -> None:
    """Makes a process that a Launcher started end with its parent; to be called by it, as early as it can.

    When the parent is gone, a thread calls `on_gone`, for a clean stop; `grace` seconds later the process is killed.
    What it started dies with it. A process whose stdin is no pipe was started by hand: nothing happens.
    """
    gone = threading.Event()

    def kill_group() -> None:
        send(os.killpg, os.getpid(), signal.SIGKILL)  # there is such a group if this process leads one

    def follow() -> None:
        while os.read(0, 4096):
            pass
        gone.set()
        threading.Thread(target=on_gone, name="farewell", daemon=True).start()
        time.sleep(grace)
        kill_group()
        os._exit(1)

    with contextlib.suppress(OSError):  # there is no stdin at all
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            # what is registered first is called last: the node's own work at its exit comes before
            atexit.register(lambda: kill_group() if gone.is_set() else None)
            threading.Thread(target=follow, name="life line", daemon=True).start()
