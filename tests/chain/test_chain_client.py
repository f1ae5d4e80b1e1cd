"""What the client tells: the moment, why a wish ended, what is wrong with an endpoint; and never a key."""

import logging
import subprocess
import sys
from collections.abc import Callable

import coincurve
import pytest
from eth_abi import encode
from eth_account import Account
from eth_utils import keccak
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.errors import (
    EndpointDown,
    MalformedAnswer,
    NoContract,
    PayoutFixed,
    Refused,
    Reverted,
    WrongChain,
)
from rlswarm_jax.identity import simulated
from tests.chain.client_world import (
    ACCOUNT,
    CLAIMS,
    COMMITMENT,
    ME,
    OTHER,
    make_world,
    originals,
    settle,
    wish_all,
    wish_settlement,
)
from tests.chain.local_chain import LocalChain, encode_call

NEVER = {"min": 10**9, "max": 10**9}  # seconds that a round takes


@pytest.fixture
def world():
    return make_world()


def test_an_account_is_the_one_that_wallets_derive_from_the_same_key():
    for index in range(5):
        one = simulated(3, index)
        assert calls.account_of(one.author) == Account.from_key(one.expose_secret()).address


# --- the moment


def test_status_is_asked_for_once_per_block(world, tmp_path):
    client, asked = world.client(tmp_path), []
    world.chain.hook = lambda name: asked.append(name) if name == "before eth_call" else None
    first = client.status()
    del asked[:]
    assert [client.status() for _ in range(9)] == [first] * 9 and not asked
    assert (first.round, first.stage, first.beacon, first.peers) == (world.round, 0, world.beacon, 2)
    assert first.block == world.height
    world.chain.mine()
    assert client.status().block == world.height + 1 and len(asked) == 1


def test_a_new_round_has_no_beacon_until_its_block_is_there(world, tmp_path):
    client = world.client(tmp_path)
    world.call(OTHER, "advanceRound()")
    assert (client.status().round, client.status().beacon) == (world.round + 1, b"")
    world.chain.mine(3)
    beacon = client.status().beacon
    assert beacon and beacon != world.beacon


# --- how wishes end


def test_a_registration_names_the_key_and_where_earnings_go(world, tmp_path):
    one, payout = simulated(0, 9), "0x" + "ab" * 20
    client = world.client(tmp_path, identity=one)
    world.chain.fund(client.account)
    client.register(payout=payout)
    settle(client, world)
    registered = world.chain.events(world.contract, "Registered")[-1]
    assert registered["account"] == client.account.lower()
    assert (registered["x"], registered["y"]) == coincurve.PublicKey(one.author).point()
    assert world.chain.events(world.contract, "PayoutSet")[-1]["payout"] == payout
    assert not client.register(payout=payout) and client.counts() == {"done": 2}  # at the next start


def paid_to(world, client) -> str:
    answer = world.chain.request(
        "eth_call", [{"to": world.contract, "data": "0x" + payout_call(client.account)}, "latest"]
    )
    return calls.checksum("0x" + answer[-40:])


def payout_call(account: str) -> str:
    return encode_call("payoutOf(address)", (account,)).hex()


ONE, TWO = ("0x" + byte * 20 for byte in ("ab", "cd"))


def test_a_payout_address_that_changes_before_it_was_sent_is_the_one_that_is_sent(world, tmp_path):
    for payout in (ONE, TWO, None, TWO):  # at four starts
        client = world.client(tmp_path)
        client.register(payout=payout)
        client.close()
    client = world.client(tmp_path)
    settle(client, world)
    assert paid_to(world, client) == calls.checksum(TWO)
    sent = [wish.arguments["payout"] for wish in client.wishes("done") if wish.kind == "payout"]
    assert sent == [calls.checksum(TWO)]


def test_a_payout_address_that_is_in_force_is_changed_by_itself_alone_and_a_node_says_so(world, tmp_path, caplog):
    client = world.client(tmp_path)
    client.check_payout(ONE)
    client.register(payout=ONE)
    settle(client, world)
    client.check_payout(ONE)
    for other in (TWO, None):  # at the next start
        with pytest.raises(PayoutFixed, match=f"go to {calls.checksum(ONE)}, which alone"):
            client.check_payout(other)
    client.register(payout=TWO)  # of a node whose endpoint was away when it started
    settle(client, world, blocks=6)
    assert client.problems["OnlyPayout"] == 1 and "which alone can name another" in caplog.text
    assert paid_to(world, client) == calls.checksum(ONE)
    client.register(payout=ONE)
    settle(client, world)
    assert client.wishes()[-1].reason == "the chain had it already"


def test_a_payout_address_is_changed_where_the_account_itself_is_in_force(world, tmp_path):
    client = world.client(tmp_path)
    for payout in (ACCOUNT, TWO):
        client.check_payout(payout)
        client.register(payout=payout)
        settle(client, world)
    assert paid_to(world, client) == calls.checksum(TWO)


def test_what_the_chain_has_already_is_done_without_another_transaction(world, tmp_path):
    """The outbox was lost."""
    first = world.client(tmp_path / ".." / tmp_path.name)
    wish_all(first, world)
    settle(first, world)
    first.close()
    spent = world.chain.count(ACCOUNT)
    (tmp_path / "new").mkdir()
    client = world.client(tmp_path / "new")
    client.register()
    wish_all(client, world)
    settle(client, world)
    assert {wish.reason for wish in client.wishes()} == {"the chain had it already"}
    assert client.counts() == {"done": 3} and world.chain.count(ACCOUNT) == spent
    for other, claims in ((COMMITMENT._replace(count=8), CLAIMS), (COMMITMENT, (0, *CLAIMS[1:]))):
        (tmp_path / str(claims)).mkdir()
        liar = world.client(tmp_path / str(claims))
        liar.settle(world.round, world.beacon, other, claims, [])
        settle(liar, world)
        assert [(wish.state, wish.reason) for wish in liar.wishes()] == [("refused", "AlreadySettled")]


def test_what_the_contract_refuses_ends_with_the_name_of_its_error(world, tmp_path):
    client = world.client(tmp_path)
    client.settle(world.round, world.beacon, COMMITMENT, [0, 0, 10**6 + 1], [])
    client.publish_weights(world.round, b"w" * 32, "u")
    settle(client, world)
    refused, dropped = client.wishes()
    assert (refused.state, refused.reason) == ("refused", "RewardOutOfBounds")
    assert (dropped.state, dropped.reason) == ("dropped", "its settlement was refused: RewardOutOfBounds")
    assert client.problems == {"RewardOutOfBounds": 1, "Dropped": 1} and world.chain.count(ACCOUNT) == 1


def test_weights_of_a_round_that_was_not_settled_are_refused(world, tmp_path):
    client = world.client(tmp_path)
    client.publish_weights(world.round, b"w" * 32, "u")
    settle(client, world)
    assert client.problems == {"NotSettled": 1}


def test_a_vote_for_who_is_not_registered_counts_nothing_and_spoils_nothing(world, tmp_path):
    client = world.client(tmp_path)
    wish_settlement(client, world, OTHER, simulated(5, 5))
    settle(client, world)
    (settled,) = world.events("Settled")
    assert settled["winners"] == (calls.account_of(OTHER.author).lower(),) and client.counts() == {"done": 1}


def test_what_waits_for_a_registration_goes_on_after_it(world, tmp_path):
    """Somebody may relay it."""
    one = simulated(0, 8)
    client = world.client(tmp_path, identity=one)
    world.chain.fund(client.account)
    wish_settlement(client, world)
    for _ in range(5):
        client.step()
        world.chain.mine()
    assert [(wish.state, wish.reason) for wish in client.wishes()] == [("waiting", "NotRegistered")]
    world.call(one, "register(uint256,uint256)", *calls.point(one.author))
    settle(client, world)
    assert client.counts() == {"done": 1}


def test_what_comes_after_the_window_is_dropped(world, tmp_path):
    client = world.client(tmp_path)
    wish_all(client, world)
    client.advance(world.round)
    for _ in range(4):  # the window is 3 rounds
        world.call(OTHER, "advanceRound()")
        world.chain.mine(2)
    client.step()
    assert client.counts() == {"dropped": 3} and client.problems == {"Dropped": 2}  # not the advance
    assert world.chain.count(ACCOUNT) == 1


def test_a_node_that_was_away_catches_up_within_the_window(world, tmp_path):
    client = world.client(tmp_path)
    beacons = [world.beacon]
    for _ in range(3):
        world.call(OTHER, "advanceRound()")
        world.chain.mine(3)
        beacons.append(client.status().beacon)
    for round_, beacon in enumerate(beacons, world.round):
        client.settle(round_, beacon, COMMITMENT, [round_, 0, 0], [])
    settle(client, world, 20)
    assert client.counts() == {"done": 4}
    claimed = [(one["round"], one["claims"][0]) for one in world.events("Settled")]
    assert sorted(claimed) == [(round_, round_) for round_ in range(world.round, world.round + 4)]


def test_advancing_waits_until_the_rule_allows_it(tmp_path):
    world = make_world(rounds=0, min=40, max=60)
    client = world.client(tmp_path)
    began = client.status().started
    client.advance(0)
    while client.status().round == 0:
        client.step()
        world.chain.mine()  # a second later
        assert world.chain.height < 100
    settle(client, world)
    assert client.status().started - began >= 60 and client.counts() == {"done": 1} and not client.problems


def test_wishes_that_cannot_be_meant_are_errors_at_once(world, tmp_path):
    client = world.client(tmp_path)
    said = (0, world.beacon, COMMITMENT, CLAIMS, [OTHER.peer_id])
    for wrong in (
        *(
            lambda at=at, one=one: client.settle(*said[:at], one, *said[at + 1 :])
            for at, one in [
                (0, -1),
                (1, b""),
                (2, COMMITMENT._replace(root=bytes(32))),
                (2, COMMITMENT._replace(last=b"")),
                (2, COMMITMENT._replace(count=0)),
                (2, COMMITMENT._replace(count=1 << 256)),
                (3, CLAIMS[1:]),
                (3, (0, 0, 1 << 63)),
                (4, [ME.peer_id]),
                (4, [OTHER.peer_id] * 2),
                (4, [simulated(5, one).peer_id for one in range(9)]),
            ]
        ),
        lambda: client.publish_weights(0, bytes(32), ""),
        lambda: client.publish_weights(0, b"w" * 32, "u" * 257),
        lambda: client.register(payout="0x12"),
        lambda: world._replace(contract="here").client(tmp_path / "x"),
    ):
        with pytest.raises(ValueError, match=r"\.$"):
            wrong()
    assert client.counts() == {"waiting": 1}  # the registration without the wrong payout


# --- what is wrong with an endpoint, in one sentence


def test_another_chain(world, tmp_path):
    client = world.client(tmp_path, chain_id=5)
    with pytest.raises(WrongChain, match="serves chain 131277322940537, but the swarm is on chain 5: "):
        client.status()
    assert client.step() > 0 and client.problems == {"WrongChain": 1}


def test_a_chain_begun_anew(world, tmp_path):
    client = world.client(tmp_path)
    client.connect()
    client.close()
    anew = LocalChain()
    for made_up in ({"hash": "0x" + "77" * 32}, None):
        anew.answers["eth_getBlockByNumber"] = lambda params, said=made_up: said and anew._block(params) | said
        client = world._replace(chain=anew).client(tmp_path)
        with pytest.raises(WrongChain, match="begun anew"):
            client.connect()
        client.close()


def test_no_contract_or_another_one(world, tmp_path):
    with pytest.raises(NoContract, match=f"no contract at {OTHER_ADDRESS}"):
        world._replace(contract=OTHER_ADDRESS).client(tmp_path).status()
    other = world.chain.deploy("0x600a600c600039600a6000f3602a60005260206000f3")  # answers 42 to everything
    (tmp_path / "b").mkdir()
    world.chain.answers["eth_call"] = lambda params: "0x"
    with pytest.raises(NoContract, match="no swarm coordinator"):
        world._replace(contract=other).client(tmp_path / "b").status()


OTHER_ADDRESS = "0x" + "12" * 20

BLOCK = ["number", "hash", "timestamp", "baseFeePerGas", "status", "blockNumber", "blockHash", "transactionHash"]


def test_a_node_that_imports_the_client_recurses_no_deeper_than_before():
    """Else a file that nests deeply would end it: py_ecc, which eth_account brings along, raises the limit.

    Nor does it load what reads encrypted key files; whoever wants that gets the real one.
    """
    imported = "import rlswarm_jax.chain.coordinator, rlswarm_jax.chain.events, rlswarm_jax.chain.ledger"
    script = f"import sys; before = sys.getrecursionlimit(); {imported}; assert 'py_ecc' not in sys.modules"
    script += "; assert sys.getrecursionlimit() == before; from eth_keyfile import create_keyfile_json as create"
    script += "; assert create(b'1' * 32, b'word', iterations=1)['crypto']['kdf'] == 'pbkdf2'"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_a_node_and_its_launcher_load_at_their_start_leaves_web3_out():
    """It is loaded where a chain is asked."""
    early = ("node", "keeper", "launch", "running.node", "running.live", "audit.claims", "audit.evidence")
    imported = ", ".join(f"rlswarm_jax.{name}" for name in (*early, "reporting.report"))
    script = f"import sys, {imported}; assert not {{'web3', 'eth_account', 'eth_abi'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


answers = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=99).map(lambda raw: "0x" + raw.hex())
    | st.integers(0, 1 << 300).map(hex),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(BLOCK), inner, max_size=6),
    max_leaves=8,
)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(answers, st.integers(0, 20))
def test_no_answer_of_an_endpoint_stops_a_node(tmp_path_factory, answer, at):
    """Any one answer may be anything that JSON can say; afterwards all goes on as if it had not been."""
    world = make_world()
    client = world.client(tmp_path_factory.mktemp("hostile"))
    wish_settlement(client, world)
    left = [at]

    def hook(name: str) -> None:
        left[0] -= name.startswith("before")
        method = name.removeprefix("before ")
        world.chain.answers = {method: lambda params: answer} if left[0] == -1 else {}

    world.chain.hook = hook
    for _ in range(3):
        assert 0 <= client.step() <= 60
        world.chain.mine()
    world.chain.hook, world.chain.answers = (lambda name: None), {}
    try:
        settle(client, world)
    finally:
        client.close()
    assert len(world.events("Settled")) == 1 or client.wishes()[0].state in ("refused", "dropped")


class Saying:
    """An endpoint of a test's words."""

    answers: dict

    def request(self, method, params):
        if isinstance(self.answers[method], Exception):
            raise self.answers[method]
        return self.answers[method]


SAYING, HASH = Saying(), "0x" + "ab" * 32
CONTRACT = eth.Contract(eth.connect(SAYING), OTHER_ADDRESS)
LOG = {"address": OTHER_ADDRESS, "blockHash": HASH, "transactionHash": HASH, "blockNumber": "0x1", "logIndex": "0x0"}


HUGE = b"".join(one.to_bytes(32) for one in (32, 1, 32, 2**255))  # a text of that length


@example(HUGE)
@example((64).to_bytes(32) * 2 + (2**255).to_bytes(32) + bytes(2))
@given(st.binary(max_size=400))
def test_bytes_of_any_kind_are_decoded_or_refused(raw):
    topics = {one.event_name: one.topic for one in CONTRACT._events.values()}
    said: dict[str, Callable] = {
        name: lambda name=name, arguments=arguments: CONTRACT.view(name, *arguments)
        for name, arguments in [("status", ()), ("getBootnodes", ()), ("peerOf", (ACCOUNT,)), ("getEoa", ([],))]
    }
    said |= {name: lambda name=name: CONTRACT.logs(0, 2, name) for name in ("Settled", "WinnerSubmitted", "PayoutSet")}
    for name, ask in said.items():
        many = [topics.get(name, HASH), *[HASH] * (len(raw) % 4)]
        data = "0x" + raw.hex()
        SAYING.answers = {"eth_call": data, "eth_getLogs": [LOG | {"topics": many, "data": data}]}
        try:
            ask()
        except (MalformedAnswer, NoContract) as error:
            assert len(str(error)) < 300


def test_text_that_is_no_text_is_replaced():
    raw = encode_call("f(bytes[])", ([b"\xff\xfe", b"good"],))[4:]
    SAYING.answers = {"eth_call": "0x" + raw.hex()}
    assert CONTRACT.view("getBootnodes") == ["\ufffd\ufffd", "good"]


def test_refusals_are_named_in_every_form_in_which_servers_send_them():
    data = bytes.fromhex("42d5d8ac")
    assert eth.error_name(data)[0] == "unknown error"
    named = eth.error_name(bytes.fromhex("1614b50c"))  # the reference's selector of InvalidVoterPeerId()
    assert named == ("InvalidVoterPeerId", "")
    text = encode_call("Error(string)", ("out of luck",))
    assert eth.error_name(text) == ("Error", "out of luck")
    for broken in (text[:20], text[:4] + HUGE[:32] + HUGE[96:]):
        assert eth.error_name(broken) == ("Error", "")
    assert eth.error_name(text[:4] + encode(["bytes"], [b"\xff"])) == ("Error", "\ufffd")


def test_web3_reads_no_refusal_and_fetches_nothing_for_a_contract():
    """It knows few panics, and of EIP-3668 it would ask the addresses that a contract names."""
    for call, name in [
        (encode_call("Panic(uint256)", (0x99,)), "Panic"),
        (encode_call("Panic(uint256)", (0x11,))[:20], "Panic"),
        (
            encode_call(
                "OffchainLookup(address,string[],bytes,bytes4,bytes)",
                (OTHER_ADDRESS, ["http://127.0.0.1:1/{data}"], b"", b"1234", b""),
            ),
            "unknown error",
        ),
    ]:
        SAYING.answers = {"eth_call": Refused("eth_call", 3, "execution reverted", call)}
        with pytest.raises(Reverted, match=name):
            CONTRACT.view("status")
    SAYING.answers = {"eth_call": Refused("eth_call", -32000, "VM Exception: revert")}
    with pytest.raises(Reverted, match="no reason given"):
        CONTRACT.view("status")
    SAYING.answers = {"eth_call": Refused("eth_call", -32603, "internal error")}
    with pytest.raises(Refused):
        CONTRACT.view("status")


@pytest.mark.parametrize("length", [eth.MAX_LOG_BYTES, eth.MAX_LOG_BYTES + 32])
def test_an_event_of_more_than_a_node_has_use_for_is_passed_over(length):
    """Anybody may make one on an original's contract, and unpacking could fill the memory."""
    data = encode(["bytes"], [b"x" * (length - 64)])
    topic = "0x" + keccak(text="PeerRegistered(address,string)").hex()
    SAYING.answers = {"eth_getLogs": [LOG | {"topics": [topic, "0x" + bytes(32).hex()], "data": "0x" + data.hex()}]}
    assert len(CONTRACT.logs(0, 2)) == (length <= eth.MAX_LOG_BYTES)


def test_an_estimate_that_fails_for_reasons_of_the_endpoint_ends_nothing(world, tmp_path):
    def refuse(params):
        raise Refused("eth_estimateGas", -32603, "internal error")

    client = world.client(tmp_path)
    wish_settlement(client, world)
    world.chain.answers["eth_estimateGas"] = refuse
    for _ in range(6):
        client.step()
        world.chain.mine()
    assert client.counts() == {"waiting": 1} and "internal error" in client.wishes()[0].reason
    del world.chain.answers["eth_estimateGas"]
    settle(client, world)


# --- contracts with the original's interface


# selectors of the published interfaces (chain id 685685)
PUBLISHED = {
    "Original042": {"9291fee5", "33e7fb45", "5194e15f", "fbe94d68", "8a19c8bc", "5bf5d54c", "96bac35a", "098f027f"},
    "Original060": {"1fcaf676", "33e7fb45", "5194e15f", "06ca2dd3", "fbe94d68", "8a19c8bc", "5bf5d54c", "96bac35a"},
}


@pytest.mark.parametrize(("name", "version"), [("Original042", "0.4.2"), ("Original060", "0.6.0")])
def test_a_contract_with_the_original_s_interface_gets_what_it_takes(world, tmp_path, name, version):
    artifact = originals()[name]
    assert set(artifact["selectors"].values()) >= PUBLISHED[name]
    only = {"Original042": "1fcaf676", "Original060": "9291fee5"}[name]
    assert only not in artifact["selectors"].values()  # the other version's
    original = world._replace(contract=world.chain.deploy(artifact["bytecode"]))
    client = original.client(tmp_path)
    assert client.connect().name == version and not client.connect().ours
    now = client.status()
    assert (now.round, now.stage, now.beacon) == (0, 0, b"")
    client.register(payout=OTHER_ADDRESS)
    client.settle(0, b"", None, [-7, 0, 0], ["QmSomebody", OTHER.peer_id])
    client.publish_weights(0, b"w" * 32, "uri")
    settle(client, original)
    states = {wish.kind: wish.state for wish in client.wishes()}
    done = {kind: "done" for kind in ("register", "settle", "reward", "vote")}
    assert states == done | {"payout": "dropped", "weights": "dropped"}
    ((rewarded,), (voted,)) = (original.events(name) for name in ("RewardSubmitted", "WinnerSubmitted"))
    assert (rewarded["stageNumber"], rewarded["reward"]) == (0, -7)
    assert set(voted["winners"]) == {"QmSomebody", OTHER.peer_id}
    client.settle(0, b"", None, [-7, 0, 0], [OTHER.peer_id])  # once, however often it is said
    (tmp_path / "again").mkdir()
    again = original.client(tmp_path / "again")  # the outbox was lost
    again.settle(0, b"", None, [-7, 0, 0], ["QmSomebody", OTHER.peer_id])
    again.register()
    settle(again, original)
    assert again.counts() == {"done": 4} and len(original.events("RewardSubmitted")) == 1
    client.advance(0)
    settle(client, original)
    assert client.status().stage == 1


# --- keys


def test_a_key_appears_nowhere(world, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    client = world.client(tmp_path)
    secret = ME.expose_secret()
    said = [repr(client), repr(client.__dict__)]

    def refuse(params):
        raise Refused("eth_sendRawTransaction", -32000, "no")

    wish_all(client, world)
    world.chain.answers["eth_sendRawTransaction"] = refuse
    client.step()
    world.chain.answers["eth_sendRawTransaction"] = lambda params: 1 / 0
    world.chain.mine()
    with pytest.raises(ZeroDivisionError) as caught:
        client.step()
    ours = [entry for entry in caught.traceback if "rlswarm_jax" in str(entry.path)]
    said += [repr(entry.locals) for entry in ours] + [str(caught.getrepr()), caplog.text, repr(client.wishes())]
    assert len(ours) > 4
    del world.chain.answers["eth_sendRawTransaction"]
    settle(client, world)
    client.close()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret not in files and secret.hex().encode() not in files
    forms = (secret.hex(), repr(secret)[2:-1], str(int.from_bytes(secret)))
    assert not any(form in text for form in forms for text in said) and len(caplog.text) > 100
    world.client(tmp_path).close()


def test_an_address_is_checked_for_its_form():
    assert calls.checksum("0x5fbdb2315678afecb367f032d93f642f64180aa3") == "0x5FbDB2315678afecb367f032d93F642f64180aa3"
    for wrong in ("", "0x", "5fbdb2315678afecb367f032d93f642f64180aa3", "0x" + "g" * 40, "0x" + "1" * 41):
        with pytest.raises(ValueError, match="is no address"):
            calls.checksum(wrong)


def test_a_client_that_is_down_says_so_to_who_asks(world, tmp_path):
    world.chain.down = True
    with pytest.raises(EndpointDown):
        world.client(tmp_path).status()
