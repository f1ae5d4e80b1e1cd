"""Weights over real connections: who asks gets what leads there or hears why not, whatever the author sends."""

import hashlib

import pytest
from libp2p.peer.id import ID

from rlswarm_jax.swarm import showing
from rlswarm_jax.swarm.transport import MAX_PARTS, RANGE, NotShownError, Part
from tests.swarm.live import swarm

WEIGHTS, PARENT, LIMIT = b"w" * 32, b"p" * 32, 1 << 24
LARGE = bytes(range(251)) * ((2 * RANGE + 1000) // 251)  # three ranges


class Shelf:
    """What an author says and sends: honest, unless a test makes it otherwise."""

    def __init__(self, *parts: bytes):
        self.held = {hashlib.sha256(part).digest(): part for part in parts}
        self.listed = [Part(name, len(part), WEIGHTS) for name, part in self.held.items()]
        self.asked: list[tuple[bytes, list[bytes]]] = []

    def path(self, weights, have):
        self.asked.append((weights, list(have)))
        return self.listed if weights == WEIGHTS else []

    def read(self, part, start, size):
        return self.held.get(part, b"")[start : start + size]


@pytest.fixture
def pair(start, monkeypatch):
    monkeypatch.setattr(showing, "PAUSE", 0.1)
    return swarm(start, 2)


def fetched(pair, shelf, weights=WEIGHTS, have=(), limit=LIMIT):
    author, auditor = pair
    if shelf is not None:
        author.gossip.shows(shelf)
    return auditor.gossip.fetch_weights(author.author, weights, have, limit).result(30)


def refused(pair, shelf, **fields) -> NotShownError:
    with pytest.raises(NotShownError) as told:
        fetched(pair, shelf, **fields)
    return told.value


def test_parts_come_whole_and_in_their_order_however_large(pair):
    shelf = Shelf(b"first", LARGE)
    assert fetched(pair, shelf, have=[PARENT]) == [b"first", LARGE]
    assert shelf.asked == [(WEIGHTS, [PARENT])]
    author, auditor = pair
    assert auditor.count("audit/bytes_fetched") > len(LARGE) and author.count("audit/bytes_shown") > len(LARGE)


def test_what_is_not_shown_is_withheld(pair, monkeypatch):
    monkeypatch.setattr(showing, "STARTING", 0.1)
    assert refused(pair, None).withheld  # it shows nothing at all
    assert refused(pair, Shelf(b"x"), weights=b"o" * 32).withheld


@pytest.mark.parametrize("patience", [0.1, 5.0])
def test_who_is_reached_before_it_can_show_anything_withholds_nothing(pair, monkeypatch, patience):
    """As a node is that was killed and started again: whoever asks is held on, or asks again."""
    monkeypatch.setattr(showing, "STARTING", patience)
    monkeypatch.setattr(showing, "PAUSE", 0.5)
    author, auditor = pair
    told = auditor.gossip.fetch_weights(author.author, WEIGHTS, [], LIMIT)
    with pytest.raises(TimeoutError):
        told.result(0.6)
    assert fetched(pair, Shelf(LARGE)) == told.result(30) == [LARGE]


def test_more_than_the_limit_is_not_taken_and_nobody_s_fault(pair):
    told = refused(pair, Shelf(LARGE), limit=RANGE)
    assert not told.withheld and pair[1].count("audit/bytes_fetched") < RANGE


@pytest.mark.parametrize("how", ["other bytes", "too few", "too many", "none"])
def test_what_is_not_what_was_announced_is_withheld(pair, how):
    shelf = Shelf(LARGE)
    name = shelf.listed[0].hash
    shelf.held[name] = {
        "other bytes": LARGE[:-1] + b"!",
        "too few": LARGE[:-1],
        "too many": LARGE,
        "none": b"",
    }[how]
    if how == "too many":
        shelf.listed = [Part(name, len(LARGE) - 1, WEIGHTS)]
    assert refused(pair, shelf).withheld


def test_silence_is_not_held_against_one_who_is_reached_through_a_relay(pair, monkeypatch):
    """Which may be slow, have had enough, or mean ill."""
    monkeypatch.setattr(showing, "STARTING", 0.1)
    assert refused(pair, None).withheld
    author, auditor = pair
    session = auditor.gossip._session
    for one in session._host.get_network().get_connections(ID.from_base58(author.identity.peer_id)):
        session._relay._relayed.add(one.muxed_conn)
    assert not refused(pair, None).withheld


def test_of_too_many_parts_the_first_come(pair):
    shelf = Shelf(b"x")
    shelf.listed = shelf.listed * (MAX_PARTS + 5)
    assert fetched(pair, shelf) == [b"x"] * MAX_PARTS


def test_who_is_gone_withholds_nothing(pair):
    author, auditor = pair
    author.gossip.close()
    told = refused(pair, None)
    assert not told.withheld
    auditor.gossip.close()
    assert not refused(pair, None).withheld  # nor if it is this node whose network is down


def test_whoever_gives_up_waiting_does_not_end_the_network(pair):
    author, auditor = pair
    given_up = auditor.gossip.fetch_weights(author.author, WEIGHTS, [], LIMIT)
    given_up.cancel()
    assert fetched(pair, Shelf(b"x")) == [b"x"]
    late = auditor.gossip.fetch_weights(author.author, b"o" * 32, [], LIMIT)
    with pytest.raises(NotShownError):
        late.result(30)
    assert late.cancel() is False and fetched(pair, Shelf(b"x")) == [b"x"]
    assert auditor.count("network/restarts") == 0


def test_an_author_of_another_swarm_shows_nothing(start, monkeypatch):
    monkeypatch.setattr(showing, "PAUSE", 0.1)
    pair = swarm(start, 2)
    author, auditor = pair
    auditor.gossip._session._showing._swarm = "another"
    assert refused(pair, Shelf(b"x")).withheld and author.count("rejected/wrong swarm") == 1
