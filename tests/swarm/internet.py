"""An internet of network namespaces: hosts with addresses of their own, homes behind NAT, wires that lose and delay.

All of it is this process's: no packet leaves it, and it ends with the `with` block. Nodes run in this process, each
with its network's thread in the namespace of its host. Needs root on Linux, iproute2, and for homes nftables.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlswarm_jax.swarm.gossip import Gossip

_SPACES = Path("/var/run/netns")
_numbers = itertools.count()
_CLONE_NEWNET, _TUNSETIFF, _TUN_NO_INFO = 0x40000000, 0x400454CA, 0x0001 | 0x1000

_NAT = """
table ip nat {{
    chain out {{ type nat hook postrouting priority 100; oifname "wan" masquerade {ports}; }}
}}
table inet filter {{
    chain through {{
        type filter hook forward priority 0; policy drop
        ct state established,related accept
        iifname "lan" accept
    }}
    chain into {{ type filter hook input priority 0; policy drop
        ct state established,related accept
    }}
}}
"""


def why_not(nat: bool = False) -> str:
    """Why there is none here; empty if there is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take root on Linux"
    if not shutil.which("ip"):
        return "there is no iproute2 (ip)"
    if nat and not shutil.which("nft"):
        return "there is no nftables (nft) to make a NAT of"
    with contextlib.suppress(OSError):
        made = subprocess.run(["unshare", "-n", "ip", "link", "add", "x0", "type", "veth"], capture_output=True)
        return f"no namespace can be made: {made.stderr.decode().strip()}" if made.returncode else ""
    return "there is no unshare"


@contextlib.contextmanager
def inside(space: str) -> Iterator[None]:
    """Moves this thread into a namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(_SPACES / space) as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
        try:
            yield
        finally:
            libc.setns(own.fileno(), _CLONE_NEWNET)


def placed(space: str) -> type[Gossip]:
    """A node's network whose thread lives in a namespace."""

    class Placed(Gossip):
        def _supervise(self, *arguments) -> None:
            with inside(space):
                super()._supervise(*arguments)

    return Placed


class Internet:
    """Hosts on one wide network: number n has 44.n.0.1 and 2a00:n::1."""

    def __init__(self) -> None:
        self._name = f"rls{os.getpid()}x{next(_numbers)}"
        self._spaces: list[str] = []
        self.wires: list[Wire] = []
        self._core = self._space("core")
        for bridge in ("br0", "br1"):
            self._in(self._core, "link", "add", bridge, "type", "bridge")
            self._in(self._core, "link", "set", bridge, "up")

    def __enter__(self) -> "Internet":
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self.wires:
            wire.stop()
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], check=True, capture_output=True)

    def _space(self, name: str) -> str:
        space = f"{self._name}{name}"
        subprocess.run(["ip", "netns", "add", space], check=True, capture_output=True)
        self._spaces.append(space)
        self._in(space, "link", "set", "lo", "up")
        return space

    def _in(self, space: str, *words: str) -> None:
        subprocess.run(["ip", "-n", space, *words], check=True, capture_output=True)

    def _plug(self, space: str, interface: str, number: int, ipv4: bool, ipv6: bool) -> None:
        port = f"p{number}"
        ends = ("link", "add", port, "type", "veth", "peer", "name", interface, "netns", space)
        self._in(self._core, *ends)
        self._in(self._core, "link", "set", port, "master", "br0", "up")
        if ipv4:
            self._in(space, "addr", "add", f"44.{number}.0.1/8", "dev", interface)
        if ipv6:
            self._in(space, "addr", "add", f"2a00:{number}::1/16", "dev", interface, "nodad")
        self._in(space, "link", "set", interface, "up")

    def host(self, number: int, ipv4: bool = True, ipv6: bool = False) -> str:
        """A machine with an address of its own; the name of its namespace."""
        space = self._space(f"h{number}")
        self._plug(space, "wan", number, ipv4, ipv6)
        return space

    def home(self, number: int, keeps_port: bool = True) -> str:
        """A machine behind a router that lets in nothing but answers, at 192.168.1.2 as everybody's is.

        keeps_port: whether connections leave the router from the port that they leave the machine from.
        """
        router, space = self._space(f"r{number}"), self._space(f"n{number}")
        self._plug(router, "wan", number, True, False)
        self._in(router, "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", space)
        self._in(router, "addr", "add", "192.168.1.1/24", "dev", "lan")
        self._in(router, "link", "set", "lan", "up")
        self._in(space, "addr", "add", "192.168.1.2/24", "dev", "eth0")
        self._in(space, "link", "set", "eth0", "up")
        self._in(space, "route", "add", "default", "via", "192.168.1.1")
        rules = _NAT.format(ports="" if keeps_port else "random")
        with inside(router):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)
        return space

    def part(self, *numbers: int) -> None:
        """Cuts these off from the others, together."""
        for number in numbers:
            self._in(self._core, "link", "set", f"p{number}", "master", "br1")

    def heal(self, *numbers: int) -> None:
        for number in numbers:
            self._in(self._core, "link", "set", f"p{number}", "master", "br0")

    def far(self, loss: float, delay: float, seed: int = 0) -> tuple[str, str]:
        """Two machines, 44.1.0.1 and 44.2.0.1, at the ends of a wire of its own. delay: seconds, each way."""
        spaces = self._space("a"), self._space("b")
        ends = [_tun(space) for space in spaces]
        for number, space in enumerate(spaces, 1):
            self._in(space, "addr", "add", f"44.{number}.0.1/8", "dev", "tun0")
            self._in(space, "link", "set", "tun0", "up")
        self.wires.append(Wire(ends, loss, delay, seed))
        return spaces


def _tun(space: str) -> int:
    """A device whose packets are read and written here."""
    with inside(space):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _TUN_NO_INFO))
    return device


class Wire:
    """Carries packets between two devices, late, and not all: tc's netem is not in every kernel."""

    def __init__(self, ends: list[int], loss: float, delay: float, seed: int):
        self._ends, self._loss, self._delay, self._random = ends, loss, delay, random.Random(seed)
        self.carried = self.lost = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        late: list[tuple[float, int, int, bytes]] = []  # when, in which order, to which end, what
        while not self._stopping.is_set():
            now = time.monotonic()
            while late and late[0][0] <= now:
                _, _, end, packet = heapq.heappop(late)
                with contextlib.suppress(OSError):
                    os.write(self._ends[end], packet)
            wait = min(0.05, max(0.0, late[0][0] - now)) if late else 0.05
            for ready in select.select(self._ends, [], [], wait)[0]:
                with contextlib.suppress(BlockingIOError):
                    packet = os.read(ready, 1 << 16)
                    self.carried += 1
                    if self._random.random() < self._loss:
                        self.lost += 1
                    else:
                        heapq.heappush(late, (now + self._delay, self.carried, 1 - self._ends.index(ready), packet))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)
        for end in self._ends:
            os.close(end)


def patiently(condition: Callable[[], object], what: str, seconds: float) -> None:
    """As `wait_for`, for what takes long; no more than one look in a tenth of a second."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
