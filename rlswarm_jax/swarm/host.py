"""A libp2p host for one node: what it speaks, and what keeps its peers from ending it.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, SupportsIndex

import trio
from libp2p import create_yamux_muxer_option, new_host
from libp2p.abc import IHost, IMuxedConn, INetConn, INetStream, IPeerStore, IRawConnection
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.host import basic_host
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push import identify_push
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from rlswarm_jax.identity import Identity
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.swarm.limits import Buckets, Door
from rlswarm_jax.swarm.tcp import Tcp, told_addresses

log = logging.getLogger("rlswarm_jax.network")

DIAL_TIMEOUT = 5.0  # seconds
MAX_STREAMS = 64  # that one peer may have open
STREAM_RATE = 20.0  # that one peer may open a second
MAX_LISTEN, MAX_PROTOCOLS = 8, 64  # addresses and protocols that a peer may say it has


class Watch(Protocol):
    """What the parts of the network need of the session around them."""

    def count(self, name: str, number: int = 1) -> None: ...
    def offend(self, peer: ID, name: str) -> None: ...
    def of_version(self, version: int) -> None: ...
    def refuses(self, peer: ID) -> bool: ...
    def allows(self, peer: ID) -> bool: ...
    def trusts(self, peer: ID) -> bool: ...
    def disconnect(self, peer: ID) -> None: ...
    def changed(self) -> None: ...
    def heard(self, peer: ID) -> None: ...
    def knows(self, envelope_hash: bytes) -> bool: ...
    def deliver(self, signed: SignedRecord) -> None: ...
    def spawn(self, act: Callable[..., Awaitable[None]], *args: object) -> None: ...
    async def fetch(self, peer: ID, envelope_hash: bytes) -> bytes: ...


def quiet_libp2p() -> None:
    """Hostile input must not flood the log: what matters of it is counted."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("libp2p.")]:
        logging.getLogger(name).setLevel(logging.NOTSET)  # one of its modules sets its own
    logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)
    swarm_connection.logging = logging.getLogger("libp2p.network.swarm")  # it writes to the root logger otherwise


def make_host(
    identity: Identity,
    max_connections: int,
    opens: Callable[[str], bool] = lambda address: True,
    announce: Sequence[str] = (),
) -> IHost:
    """TCP, noise and yamux only, and no opinion of its own about whom to connect with.

    opens: whether a connection from an IP address is let in; asked before anything else is done for it. announce:
    addresses that others are told before those it listens on.
    """
    yamux.MAX_WINDOW_SIZE = DEFAULT_WINDOW_SIZE  # it would read a frame of 16 MiB, whatever the window
    basic_host.update_peerstore_from_identify = identify_push.update_peerstore_from_identify = _note_identity
    private = Secp256k1PrivateKey.from_bytes(identity.expose_secret())
    keys = KeyPair(private, private.get_public_key())
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, noise_privkey=create_new_key_pair().private_key)},
        muxer_opt=create_yamux_muxer_option(),
        transports=[Tcp(opens)],
        addrs_factory=lambda listening: told_addresses(announce, listening),
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            max_connections=max_connections,
            high_watermark=max_connections,
            min_connections=0,
            low_watermark=0,
            dial_timeout=DIAL_TIMEOUT,
        ),
    )
    network = host.get_network()
    network.retry_config = RetryConfig(max_retries=0)  # we have our own
    network.set_resource_manager(None)  # it refuses connections when the process uses much memory, as JAX does
    network.auto_connector.maybe_connect = _do_nothing  # it dials whom it knows, whatever the watermarks say
    network.auto_connector.record_disconnect = lambda peer: None  # nor does it need to remember who has left
    return host


async def _do_nothing() -> None: ...


async def _note_identity(store: IPeerStore, peer: ID, said: Identify) -> None:
    """What a peer says of itself, without addresses beyond what anyone has, and those that nobody can read."""
    addresses = [raw for raw in said.listen_addrs[:MAX_LISTEN] if _readable(raw)]
    del said.listen_addrs[:], said.protocols[MAX_PROTOCOLS:]
    said.listen_addrs.extend(addresses)
    said.ClearField("signedPeerRecord")  # its addresses are as many as it likes
    await update_peerstore_from_identify(store, peer, said)


def _readable(raw: bytes) -> bool:
    try:
        return len(raw) <= 256 and bool(str(Multiaddr(raw)))
    except (MultiaddrError, ValueError, LookupError):
        return False


def contain(host: IHost, watch: Watch, door: Door) -> None:
    """Wraps the places where what a peer does would raise into the library's own tasks, and so end the whole host."""
    network = host.get_network()
    handle, add, open_stream = host._swarm_stream_handler, network.add_conn, network.new_stream
    upgrade, remove = network.upgrade_inbound_raw_conn, network.remove_conn
    inside: dict[IMuxedConn, trio.Event] = {}  # of those that came in: set when one has left
    streams: collections.Counter[ID] = collections.Counter()
    opened = Buckets(STREAM_RATE, burst=5 * STREAM_RATE)

    async def handle_stream(stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        if watch.refuses(peer) or streams[peer] >= MAX_STREAMS or not opened.take(peer.to_bytes()):
            watch.count("network/refused")
            return await stream.reset()
        streams[peer] += 1
        _give_credit_rarely(stream)
        try:
            await handle(stream)
        except Exception as error:  # whatever a handler of the library makes of hostile input
            log.debug("a stream of %s ended with %r", peer, error)
            watch.offend(peer, "network/malformed")
            await quietly(stream.reset)
        finally:
            streams[peer] -= 1
            if not streams[peer]:
                del streams[peer]

    async def new_stream(peer: ID) -> INetStream:
        stream = await open_stream(peer)
        _give_credit_rarely(stream)
        return stream

    async def add_connection(connection: IMuxedConn, direction: str = "unknown") -> INetConn:
        if watch.refuses(connection.peer_id):
            watch.count("network/refused")
            await quietly(connection.close)
            raise SwarmException("this peer is refused for a while")
        start = connection.start
        connection.stream_buffers = _Unread(lambda: watch.offend(connection.peer_id, "network/malformed"))

        async def run_connection() -> None:
            try:
                await start()
            except Exception as error:  # whatever the muxer makes of hostile input
                log.debug("a connection with %s ended with %r", connection.peer_id, error)
                watch.offend(connection.peer_id, "network/malformed")

        connection.start = run_connection
        return await add(connection, direction)

    async def let_in(raw: IRawConnection, address: Multiaddr) -> IMuxedConn:
        with door.entering():
            return await upgrade(raw, address)
        watch.count("network/half open")
        raise SwarmException("others have begun to come in since, and it has said nothing")

    async def handle_incoming(stream: TrioTCPStream, address: Multiaddr) -> None:
        """Ends with the connection, which frees its socket; the library's ends with the node, and so do its slots."""
        raw = RawConnection(stream, False)
        try:
            connection = await network.upgrade_inbound_raw_conn(raw, address)
            if any(one.muxed_conn is connection for one in network.get_connections(connection.peer_id)):
                await inside.setdefault(connection, trio.Event()).wait()
        except Exception as error:  # what a stranger makes of a handshake
            log.debug("somebody did not come in: %r", error)
        finally:
            await quietly(raw.close)

    def remove_connection(connection: INetConn) -> None:
        remove(connection)
        if left := inside.pop(connection.muxed_conn, None):
            left.set()

    network._handle_inbound_connection = handle_incoming
    network.remove_conn = remove_connection
    network.upgrade_inbound_raw_conn = let_in
    network.set_stream_handler(handle_stream)
    network.add_conn = add_connection
    network.new_stream = new_stream


class _Unread(dict[int, bytearray]):
    """What came on each stream and was not read yet, bounded: the library takes more than the window that it gave."""

    def __init__(self, offended: Callable[[], None]):
        super().__init__()
        self._offended = offended

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        super().__setitem__(stream_id, _Buffer(buffer, self._offended))


class _Buffer(bytearray):
    def __init__(self, content: bytearray, offended: Callable[[], None]):
        super().__init__(content)
        self._offended = offended

    def extend(self, more: Iterable[SupportsIndex]) -> None:
        super().extend(more)
        if len(self) > 2 * DEFAULT_WINDOW_SIZE:
            self._offended()
            raise trio.BrokenResourceError("a peer sent more than its window")  # for which the muxer closes


def _give_credit_rarely(stream: INetStream) -> None:
    """Has yamux return a quarter of the window at once; the library sends a frame of its own after each read."""
    muxed, read = stream.muxed_stream, 0

    async def give_credit(*, bytes_read: int = 0) -> None:
        nonlocal read
        read += bytes_read
        if read >= DEFAULT_WINDOW_SIZE // 4:
            credit, read = read, 0
            muxed.recv_window += credit
            await muxed.send_window_update(credit)

    muxed._auto_tune_and_send_window_update = give_credit


async def hang_up(connection: INetConn) -> None:
    """Closes a connection, whatever the peer does: one that has stopped reading would keep the farewell waiting."""
    with trio.move_on_after(1.0) as farewell:
        await quietly(connection.close)
    if farewell.cancelled_caught:
        await quietly(connection.muxed_conn.secured_conn.close)
        await quietly(connection._cleanup)


async def quietly(act: Callable[..., Awaitable[object]], *args: object) -> None:
    """For closing: what is broken raises whatever it was broken by."""
    with contextlib.suppress(Exception):
        await act(*args)
