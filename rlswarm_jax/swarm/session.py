"""The part of `Gossip` that lives on the network's thread: whom it is connected with, and what it sends.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import collections
import contextlib
import hashlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

import msgspec
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from rlswarm_jax.identity import author_of, peer_id
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.status import Network, Parting, Peer
from rlswarm_jax.swarm.addresses import Scope, UnknownNameError, holder_of, scope_of
from rlswarm_jax.swarm.exchange import MAX_LATEST, Exchange, Store, listening, parse_address
from rlswarm_jax.swarm.frames import ANNOUNCEMENT, INLINE, Announcement, check_record
from rlswarm_jax.swarm.greeting import AGAIN, Greeting
from rlswarm_jax.swarm.host import DIAL_TIMEOUT, OBSERVED, contain, hang_up, make_host
from rlswarm_jax.swarm.lasting import Lasting
from rlswarm_jax.swarm.limits import Buckets, Door, Offences
from rlswarm_jax.swarm.peers import AddressBook, Place, Through, look_up
from rlswarm_jax.swarm.presence import Presence
from rlswarm_jax.swarm.pubsub import RecordPubsub
from rlswarm_jax.swarm.punch import Punch
from rlswarm_jax.swarm.reaching import Reaching
from rlswarm_jax.swarm.relay import Relay
from rlswarm_jax.swarm.showing import Showing
from rlswarm_jax.swarm.tcp import free_port, hosts_of, listen_address
from rlswarm_jax.swarm.transport import NetworkError, NotShownError

log = logging.getLogger("rlswarm_jax.network")

TICK = 0.5  # seconds between two looks at who is connected
CURIOSITY = 5.0  # seconds between two greetings of a peer while peers are wanted
SILENCE = 15.0  # seconds without a word after which a peer is asked whether it lives
IDLE = 30.0  # seconds that one may be connected without taking part
MAX_STRANGERS = 256  # peers that are not connected, in the library's book
MAX_DELIVERED = 4096
MAX_VERSIONS = 4  # of records, that are counted by name: anyone can write any number
INLINE_BYTES = 16_384  # a larger record is announced, and fetched by whoever has not got it


class Session:
    """One run of the network, from listening to the end or a crash; `gossip` outlives it."""

    def __init__(self, gossip: Lasting, store: Store):
        self._gossip, self._config = gossip, gossip.config
        self._store = store
        self._stopping = trio.Event()
        self._scope = trio.CancelScope()
        self.wake = trio.Event()  # something was published or asked for
        self._changed = trio.Event()  # someone came or went
        self._versions: set[int] = set()  # of records that this node cannot read
        self._sending = False
        self._busy: set[ID] = set()  # being dialled
        self._greeting: set[ID] = set()
        self._greeted: dict[ID, float] = {}
        self._heard: dict[ID, float] = {}
        self._idle: dict[ID, float] = {}  # connected, and no part of the swarm: since when
        self._offences = Offences()
        self._said = Buckets(1 / 20, burst=3)  # lines in the log
        self._requests = Buckets(self._config.max_messages_per_second / 8)  # a reply can be a megabyte
        self._delivered: dict[bytes, None] = {}  # SHA-256 of envelopes, oldest first
        self._latest: dict[bytes, collections.deque[bytes]] = {}  # author: the last of them
        self._asked: dict[ID, float] = {}  # for its rules: when to ask again
        me = ID.from_base58(gossip.identity.peer_id)
        self._book = AddressBook(self._config.bootnodes, me, gossip.memory.peers)
        self._door = Door(half_open=max(1, self._config.max_connections // 4))
        self._host = make_host(gossip.identity, self._config.max_connections, self._opens, self._config.announce)
        contain(self._host, self, self._door)
        self._present: set[ID] = set()  # who takes part in this swarm, of those that are connected
        self._relay = Relay(self._host, lambda peer: peer in self._present, self._came_through, self)
        self._punch = Punch(self._host, self._relay, self._seen_at, self)
        self._reaching = Reaching(self._host, self._listening, self._relay.is_direct, self)
        self._presence = Presence(self._book, gossip.memory, self._reaching.reached)
        rates = (self._config.max_records_per_second, self._config.max_messages_per_second)
        self._pubsub = RecordPubsub(self._host, self._config.swarm, self, *rates, self._config.jitter)
        parts = self._config.swarm, store, lambda: list(gossip.latest), self._reaching.of_others
        self._exchange = Exchange(self._host, *parts, self)
        shown = self._config.swarm, lambda: gossip.shelf, self._relay.is_direct
        self._showing = Showing(self._host, *shown, self)
        self._greeting_of_rules = Greeting(self._host, lambda: gossip.rules, self._book.bootnodes, self)

    # --- the run

    async def run(self, started: Callable[[int, list[str]], None]) -> None:
        """Until `stop`. started: takes the port and what others are told. Raises NetworkError if it cannot listen."""
        hosts = hosts_of(self._config.host)
        port = self._free_port(hosts)
        listen = [listen_address(host, port) for host in hosts]
        router, records = self._pubsub.router, self._pubsub
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                async with background_trio_service(router), background_trio_service(records):
                    await records.wait_until_ready()
                    await records.subscribe(records.topic)
                    async with self._host.run([Multiaddr(one) for one in listen]):
                        if len(self._host.get_network().listeners) < max(1, len(listen)):
                            where = " and ".join(listen) or "any address"
                            raise NetworkError(f"cannot listen on {where}; choose another config.swarm.host or port.")
                        told = [str(address) for address in self._host.get_addrs()]
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._send)
                            nursery.start_soon(self._maintain)
                            self._presence.listens(port, told[0] if told else "")
                            started(port, told)
                            await self._stopping.wait()
                            nursery.cancel_scope.cancel()
                        async with trio.open_nursery() as nursery:  # all at once: the library's close takes turns
                            for connection in self._host.get_network().get_connections():
                                nursery.start_soon(hang_up, connection)
                self._nursery.cancel_scope.cancel()

    def _free_port(self, hosts: Sequence[str]) -> int:
        """The one that was given, else the one that this node had last, if nobody else has it now; else any."""
        port = self._gossip.port
        try:
            return free_port(hosts, port)
        except NetworkError:
            if port == self._config.port or self._gossip.started:
                raise
            log.warning("the port %d, at which others know this node, is in use: it takes another one", port)
            return free_port(hosts, 0)

    def stop(self) -> None:
        """Ends the run, within three seconds whatever the peers do."""
        self._scope.deadline = trio.current_time() + 3.0
        self._stopping.set()

    # --- what the parts of the network ask of it (host.Watch)

    def count(self, name: str, number: int = 1) -> None:
        self._gossip.count(name, number)

    def of_version(self, version: int) -> None:
        """Counts a record that this node cannot read: nobody's fault, and of a few versions by name."""
        self.count("rejected/another version")
        self._versions |= {version} if len(self._versions) < MAX_VERSIONS else set()
        self.count(f"records/of_version/{version if version in self._versions else 'other'}")

    def changed(self) -> None:
        self._changed.set()

    def heard(self, peer: ID) -> None:
        self._heard[peer] = time.monotonic()

    def spawn(self, act: Callable[..., Awaitable[None]], *args: object) -> None:
        self._nursery.start_soon(act, *args)

    def disconnect(self, peer: ID, why: str = "it sent what no node sends") -> None:
        self._presence.expect(peer, why)
        for connection in self._host.get_network().get_connections(peer):
            self.spawn(hang_up, connection)

    def knows(self, envelope_hash: bytes) -> bool:
        return envelope_hash in self._delivered

    def deliver(self, signed: SignedRecord) -> None:
        """Once per record that is kept: it may come by gossip and in a greeting. One that is not can be had again."""
        envelope_hash = hashlib.sha256(signed.raw).digest()
        if self.knows(envelope_hash):
            self.count("network/repeated")
            return
        if not self._gossip.on_record(signed):
            return
        self._delivered[envelope_hash] = None
        latest = self._latest.setdefault(signed.record.author, collections.deque(maxlen=MAX_LATEST))
        latest.append(envelope_hash)
        tables: tuple[dict, ...] = (self._delivered, self._latest)
        for table in tables:
            if len(table) > MAX_DELIVERED:
                del table[next(iter(table))]

    async def fetch(self, peer: ID, envelope_hash: bytes) -> bytes:
        return self._store.get(envelope_hash) or await self._exchange.fetch(peer, envelope_hash)

    def show(
        self, author: bytes, weights: bytes, have: Sequence[bytes], limit: int, found: "Future[list[bytes]]"
    ) -> None:
        """Has an author show some weights."""
        self.spawn(self._show, author, weights, have, limit, found)

    async def _show(
        self, author: bytes, weights: bytes, have: Sequence[bytes], limit: int, found: "Future[list[bytes]]"
    ) -> None:
        if not found.set_running_or_notify_cancel():
            return
        try:
            parts = await self._showing.fetch(ID.from_base58(peer_id(author)), weights, have, limit)
        except NotShownError as error:
            found.set_exception(error)
        else:
            found.set_result(parts)

    def offend(self, peer: ID, name: str) -> None:
        """Counts what a peer should not have sent; one that keeps at it is refused for a while."""
        self.count(name)
        if self._offences.add(peer.to_bytes(), name):
            level = logging.WARNING if self._said.take(b"refused") else logging.DEBUG  # ids are free: so may be lines
            log.log(level, "%s sent too much that is wrong, last %r; it is refused for a minute", peer, name)
            self.disconnect(peer, "it sent too much that is wrong")

    def refuses(self, peer: ID) -> bool:
        return self._offences.refused(peer.to_bytes())

    def trusts(self, peer: ID) -> bool:
        author = author_of(peer.to_bytes())
        return author is not None and self._gossip.trusts(author)

    def _opens(self, address: str) -> bool:
        opens = self._door.opens(holder_of(address))
        if not opens:
            self.count("network/refused")
        return opens

    def allows(self, peer: ID) -> bool:
        return self._requests.take(peer.to_bytes())

    # --- sending

    async def _send(self) -> None:
        """Publishes what is queued, paced: a burst would overrun the peers' queues."""
        config, outbox = self._config, self._gossip.outbox
        while True:
            for author in self._gossip.take_asked():
                peer = ID.from_base58(peer_id(author))
                if peer in self._pubsub.peers:
                    self._start_greeting(peer)
            if not outbox:
                self.wake = trio.Event()
                if not outbox and not self._gossip.asked:
                    await self.wake.wait()
                    await trio.sleep(random.uniform(0, config.jitter))  # all nodes start a stage at the same time
                continue
            self._sending = True
            raw = outbox.popleft()
            envelope_hash = self._store.put(raw)
            if len(raw) <= INLINE_BYTES:
                data = INLINE + raw
            else:
                data = ANNOUNCEMENT + msgspec.msgpack.encode(Announcement(envelope_hash, len(raw)))
            await self._pubsub.publish(self._pubsub.topic, data)
            self._sending = False
            await trio.sleep(config.pace if self._present else 0)

    def pending(self) -> int:
        return len(self._gossip.outbox) + self._sending + self._pubsub.pending()

    # --- who is connected

    async def _maintain(self) -> None:
        last_clean = time.monotonic()
        while True:
            self._look()
            if time.monotonic() - last_clean > 60:
                last_clean = time.monotonic()
                self._forget()
            self._changed = trio.Event()
            with trio.move_on_after(TICK):
                await self._changed.wait()
                await trio.sleep(0.02)  # changes come in groups

    def _look(self) -> None:
        """Compares who is there with who should be, and acts on the difference."""
        now = time.monotonic()
        network, topic = self._host.get_network(), self._pubsub.topic
        live = {peer for peer, conns in network.connections.items() if any(not conn.is_closed for conn in conns)}
        present = live & self._pubsub.peer_topics.get(topic, set()) & self._pubsub.peers.keys()
        self._present = present
        self._reaching.look(live, present)
        self._presence.look(present)
        self._gossip.network = self._network(present)
        no_players = self._greeting_of_rules.no_players
        no_players &= live
        self._gossip.set_connected(frozenset(a for p in present - no_players if (a := author_of(p.to_bytes()))))
        if self._greeting_of_rules.ready:
            for peer in live:
                if now >= self._asked.get(peer, 0.0):
                    self._asked[peer] = math.inf
                    self.spawn(self._ask_rules, peer)
        for peer in live:
            self._pubsub.mend(peer)
        for peer in live & self._pubsub.peers.keys():
            new = peer not in self._greeted
            curious = len(present) < self._config.target_peers and now - self._greeted.get(peer, now) > CURIOSITY
            silent = now - self._heard.setdefault(peer, now) > SILENCE
            if new or curious or silent:
                self._start_greeting(peer, drop=silent)
        for peer in live - present:
            if now - self._idle.setdefault(peer, now) > IDLE:
                self.count("network/idle")
                self.disconnect(peer, "it took no part in this swarm")
        for table, kept in (
            (self._asked, live),
            (self._greeted, live),
            (self._heard, live),
            (self._idle, live - present),
        ):
            for peer in table.keys() - kept:
                del table[peer]
        for peer in self._book.due(self._config.target_peers - len(live), live | self._busy):
            if not self.refuses(peer):
                self._busy.add(peer)
                self.spawn(self._dial, peer)

    def _network(self, present: set[ID]) -> Network:
        """What is told of it to others."""
        mesh = self._pubsub.router.mesh.get(self._pubsub.topic, set())
        peers = [Peer(str(peer), peer in mesh, self._presence.since(peer)) for peer in sorted(present, key=str)]
        banned = [
            Parting(str(ID(peer)), f"it sent too much that is wrong, last: {what}", until)
            for peer, until, what in self._offences.now_refused()
        ]
        return Network(peers, banned, list(self._presence.left))

    async def _dial(self, peer: ID) -> None:
        try:
            address, why = await self._connect(peer)
        finally:
            self._busy.discard(peer)
        bootnode = self._book.bootnodes.get(peer)
        if address is not None:
            if self._book.reached(peer, address):
                log.info("the bootnode %s is reachable again", bootnode)
            self.changed()
            return
        if bootnode is not None:
            self.count("network/unreachable")
        if self._book.failed(peer):
            why = f": {why}" if why else ""
            log.warning("the bootnode %s cannot be reached%s; it is tried again and again", bootnode, why)

    async def _connect(self, peer: ID) -> tuple[Place | None, str]:
        """The address at which a peer was reached, its name if it has one; else why no name could be resolved."""
        why = ""
        for address in self._book.addresses(peer):
            if isinstance(address, Through):
                with trio.move_on_after(2 * DIAL_TIMEOUT), contextlib.suppress(Exception):  # the library's many
                    if address.relay in self._present:
                        await self._relay.dial(address.relay, peer)
                        return address, ""
                continue
            try:
                found = await look_up(address)
            except UnknownNameError as error:
                why = str(error)
                continue
            for each in found:
                with trio.move_on_after(DIAL_TIMEOUT), contextlib.suppress(Exception):  # the library's many
                    await self._host.get_network().dial_addr(each, peer)
                    self._reaching.note(peer, each)
                    return address, ""
        return None, why

    async def _ask_rules(self, peer: ID) -> None:
        if author_of(peer.to_bytes()) is not None and not await self._greeting_of_rules.greet(peer):
            self._asked[peer] = time.monotonic() + AGAIN

    def _came_through(self, peer: ID) -> None:
        self.spawn(self._punch.begin, peer)

    def _seen_at(self) -> list[Multiaddr]:
        """Where this node may be reached, if its router keeps the port: as peers across the internet see it."""
        store, seen = self._host.get_peerstore(), set[str]()
        for peer in filter(self._relay.is_direct, self._present):
            with contextlib.suppress(PeerStoreError):
                seen.add(store.get(peer, OBSERVED))
        far = sorted(ip for ip in seen if scope_of(ip) is Scope.GLOBAL)
        return [Multiaddr(listen_address(ip, self._gossip.port)) for ip in far]

    def _listening(self, peer: ID) -> list[Multiaddr]:
        """Where a peer says that it listens, as far as that is an address of numbers."""
        found = [parse_address(text) for text in listening(self._host, peer) if text.startswith("/ip")]
        return [address for info in found if info for address in info.addrs]

    def _start_greeting(self, peer: ID, drop: bool = False) -> None:
        if peer not in self._greeting:
            self._greeting.add(peer)
            self._greeted[peer] = time.monotonic()
            self.spawn(self._greet, peer, drop)

    async def _greet(self, peer: ID, drop: bool) -> None:
        """Asks for a peer's latest records and for addresses. drop: hang up if it does not answer."""
        author = author_of(peer.to_bytes())
        try:
            if author is None:
                return  # no key of ours: it may relay, and says nothing itself
            records, infos, through = await self._exchange.greet(peer, self._latest.get(author, ()))
            self.heard(peer)
            self._book.learn(infos, peer.to_bytes(), self._reaching.scope(peer))
            if self._relay.is_direct(peer):
                self._book.learn_through(through, peer)
            self.changed()
            for raw in records:
                self._store.put(raw)
                self.deliver(check_record(raw, self._config.swarm, author))
        except RecordError as error:
            if error.version is not None:
                self.of_version(error.version)
            elif error.cause != "unavailable":
                self.offend(peer, f"rejected/{error.cause}")
            else:
                self.count("network/unanswered")
                if drop:
                    self.disconnect(peer, f"it was silent for {SILENCE:.0f} s")
        finally:
            self._greeting.discard(peer)

    def _forget(self) -> None:
        """Keeps the library's tables, and ours, from growing with every peer that ever was there."""
        self._pubsub.router.forget_expired()
        store, live = self._host.get_peerstore(), set(self._host.get_connected_peers())
        for peer in live:
            store.add_addrs(peer, [])  # or what it said of itself when it came would expire
        strangers = [peer for peer in store.peer_ids() if peer not in live and peer != self._host.get_id()]
        for peer in strangers[:-MAX_STRANGERS]:
            store.clear_peerdata(peer)
