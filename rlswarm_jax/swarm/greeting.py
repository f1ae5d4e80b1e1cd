"""By which rules the peers play: asked of each once it is connected, told in one line where they are others.

Nobody is refused for their rules: they are a stranger's word, and a record is judged by what is in it. This only says
why records cannot be used, and what to do. Peers that do not speak the protocol are left in peace.

Imports libp2p, which takes seconds: import it where the network is started.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
import trio
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.request_response import BytesCodec, RequestContext, RequestResponseConfig
from libp2p.request_response.exceptions import (
    ProtocolNotSupportedError,
    RequestDecodeError,
    RequestResponseError,
)
from msgspec import Meta

from rlswarm_jax.identity import author_of, friendly_name
from rlswarm_jax.records import agreement
from rlswarm_jax.records.agreement import MAX_NAME, MAX_PARTS, MAX_VALUE
from rlswarm_jax.swarm.exchange import ARRIVAL_TIMEOUT, Requests
from rlswarm_jax.swarm.host import Watch
from rlswarm_jax.swarm.limits import Buckets

log = logging.getLogger("rlswarm_jax.network")

PROTOCOL = TProtocol("/rlswarm_jax/rules/1")
MAX_BYTES = 32_768
MAX_TOLD = 256  # ways to differ that were said once, and peers that agree
SWARM = "swarm.name"
AGAIN = 30.0  # seconds after which a peer that did not answer is asked again

NO_PLAYER = {"plays": "no"}  # the rules of one that plays no rounds

Part = Annotated[str, Meta(max_length=MAX_VALUE)]
PartName = Annotated[str, Meta(max_length=MAX_NAME)]


class Hello(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """agreement: of the game, empty while a starting node does not know it yet, or of one that plays no rounds. rules:
    its readable parts.
    """

    agreement: Annotated[bytes, Meta(max_length=32)]
    rules: Annotated[dict[PartName, Part], Meta(max_length=MAX_PARTS)]


_hellos = msgspec.msgpack.Decoder(Hello)
_CONFIG = RequestResponseConfig(
    timeout=2 * ARRIVAL_TIMEOUT,
    max_request_size=MAX_BYTES,
    max_response_size=MAX_BYTES + 1,
    max_concurrent_inbound=1 << 16,  # of all peers together: no bound, as each has its own
)


class Greeting:
    """Both sides of the protocol. rules: this node's, None while it does not know. told_of: peers it is to join."""

    def __init__(
        self, host: IHost, rules: Callable[[], Mapping[str, str] | None], told_of: Mapping[ID, str], watch: Watch
    ):
        self._rules, self._told_of, self._watch = rules, told_of, watch
        self.no_players: set[ID] = set()  # who said so: nobody waits for them
        self._agreeing: dict[ID, None] = {}
        self._versions: dict[ID, str] = {}  # of records, as the last that were met say, if they are of this swarm
        self._noticed = "0"  # the newest version that most of them were found to have
        self._said: dict[object, None] = {}
        self._lines = Buckets(1 / 20, burst=3)
        self._requests = Requests(host, watch, MAX_BYTES)
        self._requests.set_handler(PROTOCOL, self._serve, BytesCodec(), _CONFIG)

    @property
    def ready(self) -> bool:
        return self._rules() is not None

    async def greet(self, peer: ID) -> bool:
        """Tells a peer the rules and asks for theirs; False if it should be asked again."""
        raw = msgspec.msgpack.encode(self._hello())
        try:
            answer = await self._requests.send_request(peer, [PROTOCOL], raw, BytesCodec(), _CONFIG)
            self._hear(peer, answer)
        except (ProtocolNotSupportedError, RequestDecodeError):
            return True  # another version, or no node
        except (RequestResponseError, trio.TooSlowError):
            return False
        except Exception as error:  # what a stream that could not be opened raises is not documented
            log.debug("%s was not asked for its rules: %r", peer, error)
            return False
        return True

    async def _serve(self, raw: bytes, context: RequestContext) -> bytes:
        while not self._watch.allows(context.peer_id):
            await trio.sleep(0.05)
        self._hear(context.peer_id, raw)
        return msgspec.msgpack.encode(self._hello())

    def _hello(self) -> Hello:
        rules = self._rules()
        if rules is None or rules == NO_PLAYER:
            return Hello(b"", dict(rules or {}))
        return Hello(agreement.agreement_of(rules), agreement.clipped(rules))

    def _hear(self, peer: ID, raw: bytes) -> None:
        """Takes a peer's rules. Raises RequestDecodeError for what is none."""
        try:
            theirs = _hellos.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._watch.offend(peer, "network/malformed")
            raise RequestDecodeError(f"no greeting of this version: {error}") from None
        before = len(self.no_players)
        (self.no_players.add if theirs == Hello(b"", NO_PLAYER) else self.no_players.discard)(peer)
        if len(self.no_players) != before:
            self._watch.changed()
        ours = self._hello()
        if not ours.agreement or not theirs.agreement or author_of(peer.to_bytes()) is None:
            return
        self._compare_versions(peer, ours.rules, theirs.rules)
        names = agreement.differences(ours.rules, theirs.rules)
        if names or (theirs.rules == ours.rules and theirs.agreement != ours.agreement):
            self._agreeing.pop(peer, None)
            self._watch.count("network/other_rules")
            self._say(peer, ours.rules, theirs.rules, names)
        else:
            _add(self._agreeing, peer)

    def _compare_versions(self, peer: ID, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
        """Says once of each version that most peers of this swarm have a newer one. Nothing follows from it here."""
        self._versions.pop(peer, None)
        own, version = ours.get(agreement.RECORDS, ""), theirs.get(agreement.RECORDS, "")
        if theirs.get(SWARM) != ours.get(SWARM):
            return
        _add(self._versions, peer, version)
        if not agreement.is_newer(version, own):
            return
        self._watch.count("peers/newer_version")
        newer = [peer for peer, one in self._versions.items() if agreement.is_newer(one, own)]
        if 2 * len(newer) > len(self._versions) and agreement.is_newer(version, self._noticed):
            self._noticed = version
            who = f"{len(newer)} of {len(self._versions)} peers that were met run a newer version"
            advice = "this node goes on as it is; to go with them, install theirs and start it again"
            log.warning("%s (records %s, here %s): %s", who, version, own, advice)

    def _say(self, peer: ID, ours: Mapping[str, str], theirs: Mapping[str, str], names: list[str]) -> None:
        """Once for each way to differ."""
        way = tuple((name, theirs.get(name)) for name in names)
        if way in self._said or not self._lines.take(b""):
            return
        _add(self._said, way)
        author = author_of(peer.to_bytes())
        assert author is not None
        who = f"{friendly_name(author)} ({self._told_of.get(peer, peer)})"
        how = agreement.shown(ours, theirs, names) or "in a part too long to be told"
        if self._agreeing and peer not in self._told_of:
            advice = f"{len(self._agreeing)} other peer(s) play by the rules here, so it is theirs to change"
        else:
            wanted = agreement.to_set(ours, theirs, names) or "play with the same config"
            advice = f"to join them, begin in another --workdir and {wanted}"
        log.warning("%s plays by other rules, so neither can use what the other says: %s; %s", who, how, advice)


def _add(table: dict, key: object, value: object = None) -> None:
    """Bounded: the oldest makes room."""
    table[key] = value
    if len(table) > MAX_TOLD:
        del table[next(iter(table))]
