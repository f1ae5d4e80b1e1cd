"""The live network of a node: signed records by gossip over libp2p, on a thread of its own.

libp2p (imported there: it takes seconds) connects, encrypts and relays. Checked before anything else sees them are here
the frame, the message's signature, the record's own, its swarm, and that it was sent by its author.
"""

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

from rlswarm_jax.identity import Identity
from rlswarm_jax.records.envelope import MAX_ENVELOPE_BYTES, SignedRecord
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.status import Network
from rlswarm_jax.swarm.lasting import GossipConfig
from rlswarm_jax.swarm.memory import Memory
from rlswarm_jax.swarm.transport import NetworkError, NotShownError, Shelf

if TYPE_CHECKING:
    import trio

    from rlswarm_jax.swarm.exchange import Store
    from rlswarm_jax.swarm.session import Session

log = logging.getLogger("rlswarm_jax.network")

MAX_OUTBOX = 1024  # records
BACKLOG, BACKLOG_SECONDS = 8, 1.0  # records that wait, and how long one more does at most
START_SECONDS = 60.0
CLOSE_SECONDS = 6.0


class Gossip:
    """A `Transport` over libp2p. `on_record` and `on_peers` are called on the network's thread: be quick there.

    on_record: takes each record once, and returns whether it is kept; one that is not may come again.
    memory: in which the port, where the config names none, and good peers stay for the next start. trusts: whether an
    author is no stranger; what strangers may send is bounded in sum, too.
    """

    def __init__(
        self,
        identity: Identity,
        config: GossipConfig,
        on_record: Callable[[SignedRecord], bool],
        on_peers: Callable[[frozenset[bytes]], None] = lambda peers: None,
        memory: Memory | None = None,
        trusts: Callable[[bytes], bool] = lambda author: False,
    ):
        self.identity, self.config, self.on_record, self.trusts = identity, config, on_record, trusts
        self._on_peers = on_peers
        self.latest: collections.deque[bytes] = collections.deque(maxlen=len(STAGES))
        self.outbox: collections.deque[bytes] = collections.deque()
        self.asked: set[bytes] = set()
        self.memory = memory or Memory(None)
        self.port = config.port or self.memory.port  # the one that was given, so that a restart keeps it
        self.started = False  # it has listened, so that the port is its own
        self.shelf: Shelf | None = None  # of the weights that it shows
        self.rules: Mapping[str, str] | None = None  # by which this node plays, once it knows
        self.network = Network()  # as it was last seen, for whoever wants to know
        self._connected: frozenset[bytes] = frozenset()
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._store: Store | None = None  # outlives a crash
        self._session: Session | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread: threading.Thread | None = None

    # --- Transport

    def start(self) -> list[str]:
        """Listens, and returns this node's multiaddrs, the one that reaches farthest first. Raises NetworkError."""
        assert self._thread is None, "start() was called before"
        started: Future[list[str]] = Future()
        self._thread = threading.Thread(target=self._supervise, args=(started,), name="network", daemon=True)
        self._thread.start()
        try:
            return started.result(START_SECONDS)
        except TimeoutError:
            self.close()
            raise NetworkError(f"the network did not start in {START_SECONDS:.0f} s; is the machine busy?") from None

    def publish(self, raw: bytes) -> None:
        """Queues a signed record for all peers; behind many others after a moment, so that a node plays no faster than
        it is heard.
        """
        if len(raw) > MAX_ENVELOPE_BYTES:
            raise ValueError(f"{len(raw)} bytes are no record, which has {MAX_ENVELOPE_BYTES} at most.")
        end = time.monotonic() + BACKLOG_SECONDS
        while len(self.outbox) >= BACKLOG and self.connected() and time.monotonic() < end:
            time.sleep(self.config.pace / 2)
        if raw not in self.latest:
            self.latest.append(raw)
        self.outbox.append(raw)
        if len(self.outbox) > MAX_OUTBOX:
            self.outbox.popleft()
            self.count("network/dropped/outbox full")
        self._wake()

    def ask(self, authors: Collection[bytes]) -> None:
        """Asks those of `authors` that are connected for their latest own records."""
        with self._lock:
            self.asked.update(authors)
        self._wake()

    def tell_rules(self, rules: Mapping[str, str]) -> None:
        """By which this node plays: peers are asked for theirs, and whoever plays by others is named in the log."""
        self.rules = rules
        self._in_trio(lambda session: session.changed())

    def shows(self, shelf: Shelf) -> None:
        """What others may see of this node's weights."""
        self.shelf = shelf

    def fetch_weights(
        self, author: bytes, weights: bytes, have: Collection[bytes], limit: int
    ) -> "Future[list[bytes]]":
        """Asks an author for what leads to some weights."""
        found: Future[list[bytes]] = Future()
        wanted = author, weights, list(have), limit
        if not self._in_trio(lambda session: session.show(*wanted, found)):
            found.set_exception(NotShownError("the network is down", withheld=False))
        return found

    def connected(self) -> frozenset[bytes]:
        """Authors of the peers that are connected now and take part in this swarm."""
        return self._connected

    def flush(self, timeout: float) -> bool:
        """Waits until all that was published has been handed to the peers' streams."""
        end = time.monotonic() + timeout
        while not self._closing.is_set():
            if self._pending() == 0:
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)
        return False

    def take_counts(self) -> collections.Counter[str]:
        """What happened since the last call, by name."""
        with self._lock:
            counts, self._counts = self._counts, collections.Counter()
        return counts

    def close(self) -> None:
        """Stops, and gives the port back."""
        self._closing.set()
        self._in_trio(lambda session: session.stop())
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("the network did not stop in %.0f s; its thread is left to end by itself", CLOSE_SECONDS)
        self._connected = frozenset()

    # --- for the session, on the network's thread

    def count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def take_asked(self) -> set[bytes]:
        with self._lock:
            asked, self.asked = self.asked, set()
        return asked

    def set_connected(self, authors: frozenset[bytes]) -> None:
        if authors != self._connected:
            self._connected = authors
            self._on_peers(authors)

    # --- the thread

    def _supervise(self, started: "Future[list[str]]") -> None:
        """Runs sessions until `close`; only what goes wrong before the first listens is the caller's to handle."""
        wait = 0.5
        while not self._closing.is_set():
            begun = time.monotonic()
            try:
                self._run(started)
            except BaseException as error:  # whatever the library raises: a node outlives its network
                if not started.done():
                    started.set_exception(_first(error))
                    return
                if self._closing.is_set():
                    log.debug("the network ended with %r", error)
                    return
                wait = 0.5 if time.monotonic() - begun > 60 else min(2 * wait, 30.0)
                self.count("network/restarts")
                log.exception("the network stopped and is started again in %.1f s", wait)
            finally:
                self.network = dataclasses.replace(self.network, peers=(), down=self.network.down or time.monotonic())
                self._token = self._session = None
                self.set_connected(frozenset())
            self._closing.wait(wait)

    def _run(self, started: "Future[list[str]]") -> None:
        """One session, from imports to its end."""
        import trio

        from rlswarm_jax.swarm.exchange import Store
        from rlswarm_jax.swarm.host import quiet_libp2p
        from rlswarm_jax.swarm.session import Session

        quiet_libp2p()
        store = self._store = self._store or Store()

        async def run_session() -> None:
            self._session = session = Session(self, store)
            self._token = trio.lowlevel.current_trio_token()

            def listening(port: int, addresses: list[str]) -> None:
                self.port, self.started = port, True
                if not started.done():
                    started.set_result(addresses)
                if self._closing.is_set():  # close() came before there was anything to stop
                    session.stop()

            await session.run(listening)

        trio.run(run_session)

    def _in_trio(self, act: "Callable[[Session], object]") -> bool:
        """Has the network's thread do something soon; False if it is not running."""
        token, session = self._token, self._session
        if token is None or session is None:
            return False
        import trio

        try:
            token.run_sync_soon(act, session)
        except trio.RunFinishedError:
            return False
        return True

    def _wake(self) -> None:
        self._in_trio(lambda session: session.wake.set())

    def _pending(self) -> int:
        answer: Future[int] = Future()
        if self._in_trio(lambda session: answer.set_result(session.pending())):
            with contextlib.suppress(TimeoutError):
                return answer.result(1.0)
        return len(self.outbox)  # between two runs


def _first(error: BaseException) -> BaseException:
    """The NetworkError in a group of exceptions; another one as a NetworkError."""
    while isinstance(error, BaseExceptionGroup):
        error = next((e for e in error.exceptions if isinstance(e, NetworkError)), error.exceptions[0])
    if isinstance(error, NetworkError):
        return error
    wrapped = NetworkError(f"the network cannot start: {type(error).__name__}: {error}.")
    wrapped.__cause__ = error
    return wrapped
