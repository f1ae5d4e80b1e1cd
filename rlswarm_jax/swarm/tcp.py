"""Where a node listens, over IPv4 and IPv6, and what it tells others of that.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio
from libp2p.abc import IRawConnection
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp import tcp
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.addresses import Scope
from rlswarm_jax.swarm.transport import NetworkError

_PORT_TRIES = 16  # for one that is free in both families


def listen_address(host: str, port: int) -> str:
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"


def hosts_of(host: str) -> list[str]:
    """The addresses to listen on: of "any" both families', as far as this machine has them."""
    return [one for one in ("0.0.0.0", "::") if _has_family(one)] if host == addresses.ANY else [host]


def _has_family(host: str) -> bool:
    try:
        with socket.socket(_family(host)) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def free_port(hosts: Sequence[str], port: int) -> int:
    """A port that is free on all of them: the one given, or any for 0. Raises NetworkError if it is taken.

    libp2p would share it with whoever has it (SO_REUSEPORT).
    """
    for last in (True,) if port else (*[False] * _PORT_TRIES, True):
        with contextlib.ExitStack() as stack:
            found = port
            try:
                for host in hosts:
                    found = _bound(stack.enter_context(_socket(host)), host, found)
                return found
            except NetworkError:
                if last:
                    raise
    raise AssertionError


def _bound(probe: socket.socket, host: str, port: int) -> int:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        where = f"cannot listen on {listen_address(host, port)}"
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(f"{where}: the port is in use; choose another config.swarm.port.") from None
        raise NetworkError(f"{where}: {error.strerror}; change config.swarm.host or port.") from None
    return probe.getsockname()[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _socket(host: str) -> socket.socket:
    """IPv6 alone, where it is: an IPv4 peer would have an address in it by which nobody knows it."""
    made = socket.socket(_family(host))
    if _family(host) == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


async def _open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    """As the library's own, with IPv6 apart from IPv4."""
    assert host is not None
    made = _socket(host)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise OpenConnectionError(f"cannot listen on {listen_address(host, port)}: {error.strerror}") from None
    return [trio.SocketListener(trio.socket.from_stdlib_socket(made))]


def told_addresses(announce: Iterable[str], listening: Iterable[Multiaddr]) -> list[Multiaddr]:
    """What others are told: the addresses to announce, then those listened on, the farthest reaching first."""
    own = [Multiaddr(text) for text in announce]
    found = [one for address in listening for one in _of_interfaces(address) if one not in own]
    return own + sorted(found, key=lambda one: -addresses.scope_of(addresses.ip_of(one)))


def _of_interfaces(address: Multiaddr) -> list[Multiaddr]:
    """0.0.0.0 and :: are no addresses that anyone can dial: those of the interfaces in their place, or loopback."""
    if addresses.ip_of(address) not in ("0.0.0.0", "::"):
        return [address]
    found = expand_wildcard_address(address)
    usable = [one for one in found if addresses.scope_of(addresses.ip_of(one)) not in (Scope.NONE, Scope.LINK)]
    alone = str(address).replace("/0.0.0.0/", "/127.0.0.1/").replace("/::/", "/::1/")
    return usable or [Multiaddr(alone)]


class Tcp(tcp.TCP):
    """Reads from the socket as much as there is; the library takes two reads for each encrypted message.

    Whom it does not let in it turns away as it accepts: that costs a tenth of what the library does before it asks.
    """

    def __init__(self, opens: Callable[[str], bool]):
        super().__init__()
        tcp._open_reuseport_listeners = _open_listeners
        self._opens = opens

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        connection = await super().dial(maddr)
        _prepare(connection.stream)
        return connection

    def create_listener(self, handler_function: Callable[[TrioTCPStream], Awaitable[None]]) -> tcp.TCPListener:
        async def handle(stream: TrioTCPStream) -> None:
            _prepare(stream)
            found = stream.get_remote_address()
            if not self._opens(found[0] if found else ""):
                return await stream.close()
            await handler_function(stream)

        return super().create_listener(handle)


def _prepare(stream: TrioTCPStream) -> None:
    """Buffers what is read, and notes who is at the other end: over IPv6 the library says that it does not know."""
    receive, buffer = stream.read, bytearray()

    async def read(n: int | None = None) -> bytes:
        if not buffer:
            buffer.extend(await receive(1 << 16))
        data = bytes(buffer[:n])
        del buffer[:n]
        return data

    stream.read = read
    with contextlib.suppress(OSError):  # it has left already
        stream._cached_remote_address = stream.stream.socket.getpeername()[:2]
