"""How a node finds a swarm, finds it again, and learns that it plays by other rules than the swarm does."""

import json
import logging
import shlex
import socket
import time
from types import SimpleNamespace

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.records import agreement
from rlswarm_jax.swarm import addresses, greeting, peers, presence
from rlswarm_jax.swarm.addresses import UnknownNameError, read, resolve
from rlswarm_jax.swarm.exchange import parse_address
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.greeting import MAX_BYTES, PROTOCOL, Hello
from rlswarm_jax.swarm.memory import MAX_KEPT, Memory
from rlswarm_jax.swarm.peers import AddressBook
from rlswarm_jax.swarm.presence import Presence
from tests.swarm.live import Node, stranger
from tests.waits import wait_for

KEY = simulated(1, 1).peer_id
CONTRACT = "0x" + "ab" * 20
RULES = {
    **{"records": "3", "swarm.name": "tests", "tasks.sums": "weight 1.0, 00", "game.stages": "3"},
    **{"chain.contract": CONTRACT, "chain.id": "31337", "model.tokenizer": "t", "model.end_tokens": "0"},
}
ALONE = {key: value for key, value in RULES.items() if key != "chain.id"} | {"chain.contract": "none", "seed": "0"}


def lines(caplog, what: str) -> list[str]:
    return [line.getMessage() for line in caplog.records if what in line.getMessage()]


# --- names


def test_what_people_write_as_an_address_is_read():
    for text, kind, host, port in (
        (f"/ip4/1.2.3.4/tcp/4001/p2p/{KEY}", "ip4", "1.2.3.4", 4001),
        (f"/ip6/::1/tcp/65535/p2p/{KEY}", "ip6", "::1", 65535),
        (f"/dns4/localhost/tcp/1/p2p/{KEY}", "dns4", "localhost", 1),
        (f"/dns6/a.b-c.org/tcp/1/p2p/{KEY}", "dns6", "a.b-c.org", 1),
        (f"/dns/my_box/tcp/1/p2p/{KEY}", "dns", "my_box", 1),
        (f"/dnsaddr/localhost/tcp/1/p2p/{KEY}", "dnsaddr", "localhost", 1),
        (f"/dnsaddr/example.org/p2p/{KEY}", "dnsaddr", "example.org", None),
    ):
        assert read(text) == (kind, host, port, KEY)
        assert read(text).text == text
        if kind in ("ip4", "ip6", "dns4"):  # the library knows the others, in its own way, or does not
            assert str(parse_address(text).peer_id) == KEY
    for text in (
        *("", "localhost:4001", f"/dns4/localhost/p2p/{KEY}", f"/dns4//tcp/1/p2p/{KEY}", f"/ip4/::1/tcp/1/p2p/{KEY}"),
        *(f"/ip4/300.1.1.1/tcp/1/p2p/{KEY}", f"/dns4/x/tcp/0/p2p/{KEY}", f"/dns4/x/tcp/65536/p2p/{KEY}"),
        *("/dns4/x/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", f"/dns4/a b/tcp/1/p2p/{KEY}", None, 7),
        *("x" * 300, "/ip4/1.2.3.4/tcp/1", f"/ip4/1.2.3.4/tcp/1/ws/p2p/{KEY}", f"/ip4/1.2.3.4/udp/1/p2p/{KEY}"),
        *(f"/ip4/1.2.3.4/tcp/70000/p2p/{KEY}", f"/ip4/1.2.3.4/tcp/1/p2p/{KEY}/p2p-circuit/p2p/{KEY}", f"/p2p/{KEY}"),
    ):
        assert read(text) is None and parse_address(text) is None


@given(st.text(max_size=60))
def test_reading_an_address_takes_any_text(text):
    read(text)
    read(f"/dns4/{text}/tcp/1/p2p/{KEY}")


@pytest.mark.parametrize("kind", ["dns", "dns4", "dnsaddr"])
def test_a_name_of_the_hosts_file_is_resolved(kind):
    assert "/ip4/127.0.0.1/tcp/4001" in resolve(read(f"/{kind}/localhost/tcp/4001/p2p/{KEY}"))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".org", "a..b"])
def test_a_name_that_cannot_be_resolved_is_named(host):
    for kind in ("dns4", "dns6", "dns", "dnsaddr"):
        with pytest.raises(UnknownNameError, match=f"the name {host} cannot be resolved") as caught:
            resolve(read(f"/{kind}/{host}/tcp/1/p2p/{KEY}"))
        assert "\n" not in str(caught.value)


class Records(list):
    """What a name server says of a name, as dnspython hands it on."""

    @classmethod
    def of(cls, *texts: bytes):
        return lambda name, kind, lifetime: cls(SimpleNamespace(strings=(t[:20], t[20:])) for t in texts)


def test_records_of_a_name_say_where_a_peer_is(monkeypatch):
    address = read(f"/dnsaddr/example.org/p2p/{KEY}")
    other = simulated(1, 2).peer_id
    said = (f"dnsaddr=/ip4/10.0.0.2/tcp/1/p2p/{other}", f"dnsaddr=/dnsaddr/more.org/p2p/{KEY}", "v=spf1", "dnsaddr=x")
    found = Records.of(*(text.encode() for text in said), f"dnsaddr=/ip4/10.0.0.1/tcp/4001/p2p/{KEY}".encode())
    monkeypatch.setattr("dns.resolver.resolve", found)
    assert resolve(address) == ["/ip4/10.0.0.1/tcp/4001"]
    monkeypatch.setattr("dns.resolver.resolve", Records.of(b"\xff" * 30))
    with pytest.raises(UnknownNameError, match=r"the records of example\.org name no address of this peer"):
        resolve(address)


def test_a_resolver_that_does_not_answer_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(addresses, "LOOKUP_SECONDS", 0.1)
    monkeypatch.setattr(addresses, "resolve", lambda address: time.sleep(1.0))
    began = time.monotonic()

    async def look_up() -> None:
        await peers.look_up(read(f"/dns4/slow.example/tcp/1/p2p/{KEY}"))

    with pytest.raises(UnknownNameError, match=r"slow\.example was not resolved in"):
        trio.run(look_up)
    assert time.monotonic() - began < 0.9


def test_a_bootnode_is_reached_by_its_name_and_one_without_says_so(start, caplog, monkeypatch):
    monkeypatch.setattr(peers, "_NEWS_SECONDS", 0.5)
    first = start()
    port = first.gossip.port
    second = start([f"/dns4/localhost/tcp/{port}/p2p/{first.identity.peer_id}"])
    wait_for(lambda: second.sees(first), "it is found by its name")
    lost = start([f"/dns4/no-such-host.invalid/tcp/{port}/p2p/{first.identity.peer_id}"])
    wait_for(lambda: lines(caplog, "cannot be reached"), "it is said")
    (said,) = lines(caplog, "cannot be reached")
    assert "/dns4/no-such-host.invalid/" in said and "the name no-such-host.invalid cannot be resolved" in said
    assert not lost.gossip.connected()


def test_a_name_is_looked_up_again_at_the_next_try(start, monkeypatch):
    """The machine behind a name has moved, or the name is entered only now."""
    first, known = start(), []
    at = f"/ip4/127.0.0.1/tcp/{first.gossip.port}"
    monkeypatch.setattr(addresses, "resolve", lambda address: known or unknown())

    def unknown() -> list[str]:
        raise UnknownNameError("the name swarm.example cannot be resolved (not yet)")

    node = start([f"/dns4/swarm.example/tcp/1/p2p/{first.identity.peer_id}"])
    wait_for(lambda: node.count("network/unreachable") >= 2, "it tries")
    known.append(at)
    wait_for(lambda: node.sees(first), "it is found once the name is known")


# --- finding each other again


def test_two_nodes_that_were_restarted_find_each_other(start, tmp_path, monkeypatch):
    """The first has no bootnode, and was told by nobody where the second is."""
    monkeypatch.setattr(presence, "KEEP_AFTER", 0.2)
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    first = start(memory=files[0])
    second = start(first.addresses[:1], memory=files[1])
    wait_for(lambda: all(file.exists() and json.loads(file.read_text())["peers"] for file in files), "both remember")
    ports = [node.gossip.port for node in (first, second)]
    first.gossip.close()
    second.gossip.close()
    first = start(identity=first.identity, memory=files[0])
    second = start(identity=second.identity, memory=files[1])
    assert [node.gossip.port for node in (first, second)] == ports
    wait_for(lambda: first.sees(second) and second.sees(first), "they are together again")


def test_one_that_remembers_finds_one_whose_memory_is_lost(start, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "KEEP_AFTER", 0.2)
    first = start(memory=tmp_path / "first.json")
    second = start(first.addresses[:1])  # came in: where it listens, it has said itself
    wait_for(lambda: json.loads((tmp_path / "first.json").read_text())["peers"], "the first remembers")
    port = second.gossip.port
    first.gossip.close()
    second.gossip.close()
    first = start(identity=first.identity, memory=tmp_path / "first.json")
    time.sleep(1.0)  # it has tried in vain
    second = start(identity=second.identity, port=port)
    wait_for(lambda: first.sees(second), "the first finds the second")


def test_a_port_that_is_taken_meanwhile_is_said_and_another_one_used(start, tmp_path, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        Memory(tmp_path / "peers.json").save(port, {})
        node = start(memory=tmp_path / "peers.json")
    assert node.gossip.port != port and lines(caplog, f"the port {port}, at which others know this node, is in use")
    assert Memory(tmp_path / "peers.json").port == node.gossip.port


def test_a_port_that_was_asked_for_comes_before_the_one_of_last_time(tmp_path):
    Memory(tmp_path / "peers.json").save(4001, {})
    gossip = Gossip(
        stranger(), GossipConfig("tests", port=4002), lambda signed: True, memory=Memory(tmp_path / "peers.json")
    )
    assert gossip.port == 4002


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"port": "x"}', b'{"port": 70000}', b'{"peers": 3}', b"[" * 100_000, b"null"],
)
def test_a_memory_that_is_damaged_is_said_and_no_obstacle(tmp_path, caplog, content):
    (tmp_path / "peers.json").write_bytes(content)
    memory = Memory(tmp_path / "peers.json")
    assert (memory.port, memory.peers) == (0, {}) and len(lines(caplog, "cannot be read")) == 1


def test_a_memory_holds_what_was_put_there_and_no_strange_text(tmp_path):
    good = {simulated(1, n).peer_id: [f"/ip4/10.0.0.{n}/tcp/1/p2p/{simulated(1, n).peer_id}"] for n in range(3)}
    Memory(tmp_path / "peers.json").save(4001, good)
    told = json.loads((tmp_path / "peers.json").read_text())
    (tmp_path / "peers.json").write_text(json.dumps(told | {"peers": [*told["peers"], "x", 3, None, "/ip4/1/p2p/2"]}))
    again = Memory(tmp_path / "peers.json")
    assert (again.port, again.peers) == (4001, good) and list(tmp_path.iterdir()) == [tmp_path / "peers.json"]


def test_a_disk_that_takes_no_memory_is_said_once(tmp_path, caplog):
    memory = Memory(tmp_path / "gone" / "peers.json")
    memory.save(1, {})
    memory.save(2, {})
    assert len(lines(caplog, "cannot write")) == 1


def ids(count: int, first: int = 0) -> list[ID]:
    return [ID.from_base58(simulated(13, number).peer_id) for number in range(first, first + count)]


def test_strangers_do_not_crowd_out_those_who_are_there_and_who_left_last_is_remembered_longest():
    book, old, new = AddressBook([], ids(1, 999)[0]), ids(MAX_KEPT), ids(40, 100)
    at = [Multiaddr("/ip4/10.0.0.1/tcp/1")]
    for peer in old:
        book.keep(peer, at, set())
    for peer in new:  # nobody has left but the first two
        book.keep(peer, at, {*old[2:], *new})
    assert set(book.kept) == {str(peer) for peer in [*old[2:], *new[:2]]}
    book.keep(new[2], at, set())
    assert str(old[2]) not in book.kept and len(book.kept) == MAX_KEPT
    again = AddressBook([], ids(1, 999)[0], book.kept)
    assert again.kept == book.kept and set(again.due(99, ())) >= {ID.from_base58(peer) for peer in book.kept}


def test_who_was_kept_is_tried_for_ever_and_a_hint_is_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    kept, hint = ids(2)
    book = AddressBook([], ids(1, 999)[0], {str(kept): [f"/ip4/10.0.0.1/tcp/1/p2p/{kept}"]})
    book.learn([PeerInfo(hint, [Multiaddr("/ip4/10.0.0.1/tcp/1")])], b"friend")
    tried = {kept: 0, hint: 0}
    for second in range(600):
        now[0] = float(second)
        for peer in book.due(6, ()):
            tried[peer] += 1
            book.failed(peer)
    assert 15 < tried[kept] < 40 and tried[hint] <= 6
    assert book.due(0, ()) == []  # with peers enough it is left in peace


# --- who comes and goes


def test_who_comes_and_goes_is_said_with_the_reason(start, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    first = start()
    second = start(first.addresses[:1])
    name = friendly_name(second.author)
    wait_for(lambda: first.sees(second), "it comes")
    second.gossip.close()
    wait_for(lambda: lines(caplog, f"{name} ({second.identity.peer_id}) left after"), "it goes")
    assert lines(caplog, f"{name} ({second.identity.peer_id}) joined; 1 connected")
    assert "(the connection ended); 0 connected" in lines(caplog, f"{name} ({second.identity.peer_id}) left after")[0]


def make_presence(bootnodes=()) -> Presence:
    made = Presence(AddressBook(bootnodes, ids(1, 999)[0]), Memory(None), lambda peer: [])
    made.listens(4001, "/ip4/10.0.0.1/tcp/4001/p2p/me")
    return made


def test_being_alone_is_said_at_growing_intervals_with_what_to_do(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(looker: Presence, seconds: int, present: frozenset = frozenset()) -> list[int]:
        """After how many minutes it was said."""
        caplog.clear()
        begun, said = now[0], []
        for _ in range(seconds):
            now[0] += 1
            looker.look(present)
            if len(lines(caplog, "alone")) > len(said):
                said.append(round((now[0] - begun) / 60))
        return said

    looker = make_presence([f"/ip4/10.0.0.1/tcp/1/p2p/{KEY}"])
    assert wait(looker, 4 * 3600) == [2, 4, 8, 16, 32, 64, 124, 184]
    assert "none of the 1 peer(s) it knows answers" in lines(caplog, "alone")[0]
    assert wait(looker, 3600, frozenset(ids(1))) == [] and wait(looker, 300) == [2, 4]  # alone again
    assert wait(make_presence(), 130) == [2]
    assert "--config.swarm.bootnodes=\"['/ip4/10.0.0.1/tcp/4001/p2p/me']\"" in lines(caplog, "alone")[0]


def test_keys_that_come_and_go_write_few_lines_and_say_how_many_they_were(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    looker = make_presence()
    for number in range(500):
        now[0] += 0.1
        looker.look({ids(1, number)[0]})
    assert len(caplog.records) <= 12 + 12 and lines(caplog, "others came or went")


# --- other rules


def test_only_what_must_be_equal_is_a_difference():
    assert agreement.differences(RULES, RULES) == []
    assert agreement.differences(RULES, RULES | {"model.tokenizer": "u", "model.end_tokens": "1 2"}) == []
    assert agreement.differences(RULES, RULES | {"model.end_tokens": "1 2"}) == ["model.end_tokens"]
    assert agreement.differences(RULES, {}) == [name for name in RULES if name not in agreement.OF_TOKENS]


def test_how_they_differ_is_said_without_what_follows_from_it():
    names = agreement.differences(ALONE, RULES)
    assert agreement.shown(ALONE, RULES, names) == f"chain.contract {CONTRACT} (here none)"
    many = {f"game.x{n}": "1" for n in range(6)}
    assert agreement.shown({}, many, list(many)).endswith("game.x3 1 (here nothing) and 2 more")
    assert agreement.shown(RULES, RULES | {"chain.id": "1"}, ["chain.id"]) == "chain.id 1 (here 31337)"


def advice(theirs: dict[str, str], ours: dict[str, str] = RULES) -> str:
    return agreement.to_set(ours, theirs, agreement.differences(ours, theirs))


def test_the_advice_names_the_fields_to_set():
    assert advice(RULES | {"game.stages": "1", "swarm.name": "o'clock"}) == (
        """set --config.swarm.name='o'"'"'clock' --config.game.stages=1"""
    )
    assert advice(RULES, ALONE) == (
        f"set --config.chain.endpoint=... (an endpoint of that chain) --config.chain.contract={CONTRACT} "
        "--config.chain.id=31337"
    )
    assert advice(ALONE) == "set --config.chain.endpoint=none --config.seed=0"
    assert advice(ALONE | {"seed": "7"}, ALONE) == "set --config.seed=7"
    assert advice(RULES | {"records": "4"}) == "run the same version of rlswarm_jax"
    assert advice(RULES | {"tasks.more": "weight 1.0, 11", "tasks.sums": "weight 2.0, 00"}) == (
        "set config.tasks as theirs"
    )
    assert "same end tokens" in advice(RULES | {"model.end_tokens": "1"})


@given(
    st.dictionaries(st.sampled_from([*RULES, "seed", "x\n"]), st.text(max_size=300)), st.sampled_from([RULES, ALONE])
)
def test_what_a_stranger_says_of_its_rules_is_one_line_that_a_terminal_and_a_shell_can_take(theirs, ours):
    names = agreement.differences(ours, theirs)
    for text in (agreement.shown(ours, theirs, names), agreement.to_set(ours, theirs, names)):
        assert text.isprintable() and len(text) < 4000
    flags = agreement.to_set(ours, theirs, names).partition("; ")[0].removeprefix("set ")
    if flags.startswith("--config."):
        known = (*(f"--config.{name}=" for name in [*ours, "seed", "chain.endpoint"]), "(an", "endpoint", "of", "that")
        assert all(word.startswith((*known, "chain)")) for word in shlex.split(flags))


def play_by(rules: dict[str, str], node: Node) -> Node:
    node.gossip.tell_rules(rules)
    return node


def test_who_joins_with_other_rules_is_told_in_one_line_and_so_are_the_others(start, caplog):
    first = play_by(RULES, start())
    second = play_by(RULES, start(first.addresses[:1]))
    wait_for(lambda: first.sees(second), "the swarm is there")
    late = start(first.addresses[:1])
    wait_for(lambda: late.sees(first, second), "a newcomer comes")
    assert not lines(caplog, "other rules")  # it does not know its own yet
    play_by(ALONE, late)
    wait_for(lambda: late.count("network/other_rules") >= 2, "both are found to differ")
    wait_for(lambda: all(node.count("network/other_rules") for node in (first, second)), "and they hear of it")
    time.sleep(0.5)
    said = lines(caplog, "other rules")
    ours = [line for line in said if friendly_name(late.author) not in line]
    theirs = [line for line in said if friendly_name(late.author) in line]
    assert len(ours) == 1 and f"chain.contract {CONTRACT} (here none)" in ours[0]  # once, though both differ
    assert f"--config.chain.contract={CONTRACT} --config.chain.id=31337" in ours[0]
    assert len(theirs) == 2 and all("1 other peer(s) play by the rules here" in line for line in theirs)
    assert all(node.count("network/other_rules") <= 2 for node in (first, second))  # asked and answered


def test_peers_of_one_mind_say_nothing(start, caplog):
    first = play_by(RULES, start())
    second = play_by(RULES | {"model.tokenizer": "another", "model.end_tokens": "5"}, start(first.addresses[:1]))
    third = start(first.addresses[:1])  # of a version that has no rules to tell
    wait_for(lambda: second.sees(first) and third.sees(first), "they are together")
    time.sleep(1.0)
    assert not lines(caplog, "rules") and not first.count("network/other_rules") + second.count("network/other_rules")


def test_what_is_no_greeting_is_counted_and_nobody_ends_by_it(start, attack, caplog):
    victim = play_by(RULES, start())
    peer = attack(victim)
    for number, raw in enumerate((b"garbage", msgspec.msgpack.encode(["tests", None, []]), bytes(MAX_BYTES + 1)), 1):
        peer.request(raw, PROTOCOL)
        wait_for(lambda n=number: victim.count("network/malformed") == n, "it is counted")
    assert not lines(caplog, "other rules")
    honest = start(victim.addresses[:1])
    wait_for(lambda: honest.sees(victim), "it is there for others")


def test_that_most_peers_run_a_newer_version_is_said_once_and_changes_nothing(start, attack, caplog):
    ours = RULES | {"records": "4.1"}
    victim = play_by(ours, start())
    same = play_by(ours, start(victim.addresses[:1]))
    wait_for(lambda: victim.sees(same), "one of the same version comes")

    def another(version: str, **fields) -> None:
        hello = Hello(bytes(32), ours | {"records": version} | fields)
        attack(victim).request(msgspec.msgpack.encode(hello), PROTOCOL)

    for version in ("4.10", "3.9", "five", "9.9.9.9", ""):
        another(version)
    another("7", **{"swarm.name": "another"})
    wait_for(lambda: victim.count("peers/newer_version") == 1, "the one newer version is counted")
    assert not lines(caplog, "newer version")
    for _ in range(5):
        another("4.11")
    wait_for(lambda: victim.count("peers/newer_version") == 6, "all that are newer are counted")
    wait_for(lambda: lines(caplog, "newer version"), "most are")
    another("4.11")
    wait_for(lambda: victim.count("peers/newer_version") == 7, "one more is counted")
    (said,) = lines(caplog, "newer version")
    assert "records 4.11, here 4.1" in said and "this node goes on as it is" in said
    assert victim.sees(same)


@pytest.mark.parametrize(
    ("theirs", "ours", "newer"),
    [
        ("4.2", "4.1", True),
        ("4.10", "4.9", True),
        ("5", "4.9", True),
        ("4.1", "4.1", False),
        ("4.1", "4.2", False),
        ("", "4.1", False),
        ("5.1", "", False),
        ("5.1\n", "4.1", False),
        ("-5", "4.1", False),
        ("9" * 999, "4.1", False),
        ("5.x", "4.1", False),
    ],
)
def test_which_version_is_newer(theirs, ours, newer):
    assert agreement.is_newer(theirs, ours) is newer


def test_ever_other_rules_write_few_lines_and_none_that_a_terminal_obeys(start, attack, caplog):
    victim = play_by(RULES, start())
    peer = attack(victim)
    for number in range(40):
        rules = RULES | {"swarm.name": f"\x1b[2J\n{number}", f"x{number}": "$(reboot)"}
        peer.request(msgspec.msgpack.encode(Hello(bytes(32), rules)), PROTOCOL)
    wait_for(lambda: victim.count("network/other_rules") == 40, "all are counted")
    said = lines(caplog, "other rules")
    assert 1 <= len(said) <= 3 and all(line.isprintable() and len(line) < 2000 for line in said)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1" * 100,
        msgspec.msgpack.encode(["tests", None, []]),  # a greeting of the exchange
        msgspec.msgpack.encode([b"", {"x" * 200: "y"}]),
        msgspec.msgpack.encode([b"", {"x": "y" * 300}]),
        msgspec.msgpack.encode([b"x" * 33, {}]),
        msgspec.msgpack.encode([b"", {str(n): "y" for n in range(65)}]),
        msgspec.msgpack.encode([b"", {"x": 1}]),
    ],
)
def test_rules_are_bounded_and_nothing_else_is_read(raw):
    with pytest.raises(msgspec.MsgspecError):
        greeting._hellos.decode(raw)


def test_the_largest_rules_fit_into_a_greeting():
    most = {f"{n:03}" + "é" * 125: "é" * 256 for n in range(64)}
    hello = Hello(bytes(32), agreement.clipped({**most, "one": "more"} | {"x" * 999: "y" * 999}))
    assert hello.rules == most and len(msgspec.msgpack.encode(hello)) <= MAX_BYTES * 2
