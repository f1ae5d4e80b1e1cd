"""The index of events is what the chain says now, through reorganisations, restarts and endpoints that refuse."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.calls import checksum
from rlswarm_jax.chain.errors import FileDamaged, MalformedAnswer, Refused, WrongChain
from rlswarm_jax.chain.events import EventIndex
from tests.chain.client_world import (
    ACCOUNT,
    CLAIMS,
    COMMITMENT,
    ME,
    OTHER,
    OTHER_ACCOUNT,
    World,
    make_world,
    original_world,
    settle,
    wish_all,
)
from tests.chain.local_chain import encode_call

NAMES = ("Registered", "RoundAdvanced", "BeaconFinalized", "PayoutSet", "Settled", "WeightsPublished")


@pytest.fixture
def world():
    return make_world()


def index_of(world: World, directory: Path, **options) -> EventIndex:
    return EventIndex(world.chain, world.contract, directory / "events.sqlite", **options)


def catch_up(index: EventIndex) -> EventIndex:
    for _ in range(100):
        if index.pull():
            return index
    raise AssertionError("never there")


def plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return "0x" + value.hex() if isinstance(value, bytes) else value


def flat(fields: dict) -> dict:
    """Structs as lists, addresses in lower case."""
    found = {name: list(value.values()) if isinstance(value, dict) else value for name, value in fields.items()}
    return {
        name: json.loads(json.dumps(value).lower()) if name in ("account", "payout", "winners") else value
        for name, value in found.items()
    }


def assert_is_the_chain(index: EventIndex, world: World) -> None:
    """Every event, by the chain's own receipts."""
    for name in NAMES:
        assert [flat(entry.fields) for entry in index.entries(name)] == [
            plain(fields) for fields in world.chain.events(world.contract, name)
        ]
    assert index.position == (world.chain.height, "0x" + world.chain.block(world.chain.height).hash.hex())


def busy(world: World, rng: random.Random, blocks: int) -> None:
    """Blocks in which anybody names an address for earnings, or nothing happens."""
    payout = "setPayout(address,address)"
    for _ in range(blocks):
        if rng.random() < 0.5 and not world.chain.pending():
            call = encode_call(payout, (OTHER_ACCOUNT, OTHER_ACCOUNT)) + rng.randbytes(4)
            world.chain.transact(OTHER.expose_secret(), world.contract, call)
        world.chain.mine()


def test_the_ledger_is_what_was_done(world, tmp_path):
    client = world.client(tmp_path)
    client.register(payout="0x" + "ab" * 20)
    wish_all(client, world)
    settle(client, world)
    other = world.client(_new(tmp_path, "other"), identity=OTHER)
    other.settle(world.round, world.beacon, COMMITMENT._replace(count=3), (-45, 0, 0), [])
    settle(other, world)
    index = catch_up(index_of(world, tmp_path))
    hashes = {wish.kind: wish.hash for wish in client.wishes()}
    of_other = other.wishes()[0].hash

    assert [(peer.account, peer.peer_id, peer.kind, peer.payout) for peer in ledger.peers(index)] == [
        (ACCOUNT, ME.peer_id, "proven", checksum("0x" + "ab" * 20)),
        (OTHER_ACCOUNT, OTHER.peer_id, "proven", OTHER_ACCOUNT),
    ]
    first, now = ledger.rounds(index)
    assert (first.number, now.number) == (0, 1)
    assert now.beacon == "0x" + world.beacon.hex() and now.advanced and not first.advanced
    mine, theirs = now.commitments
    words = [one if isinstance(one, int) else "0x" + one.hex() for one in COMMITMENT]
    assert mine == ledger.Commitment(ACCOUNT, *words, hashes["settle"])
    assert (theirs.account, theirs.count, theirs.config) == (OTHER_ACCOUNT, 3, words[-1])
    claimed = [ledger.Reward(ACCOUNT, stage, CLAIMS[stage], hashes["settle"]) for stage in (0, 2)]
    assert now.rewards == [*claimed, ledger.Reward(OTHER_ACCOUNT, 0, -45, of_other)]
    assert now.votes == [ledger.Vote(ACCOUNT, [OTHER.peer_id], hashes["settle"])]
    assert now.weights == [ledger.Weights(ACCOUNT, "0x" + (b"w" * 32).hex(), "ipfs://weights", hashes["weights"])]
    assert ledger.totals(index) == {ACCOUNT: ledger.Total(sum(CLAIMS), 0), OTHER_ACCOUNT: ledger.Total(-45, 1)}
    assert_is_the_chain(index, world)


def test_a_registration_by_another_s_key_is_an_endpoint_s_invention(world, tmp_path):
    honest = world.chain._logs

    def forge(params):
        return [one | {"data": "0x" + (7).to_bytes(32).hex() + one["data"][66:]} for one in honest(params)[1:2]]

    assert honest([{"address": [world.contract], "fromBlock": "0x0", "toBlock": hex(world.chain.height)}])[1]["data"]
    world.chain.answers["eth_getLogs"] = forge
    with pytest.raises(MalformedAnswer, match="registered by another's key"):
        ledger.peers(catch_up(index_of(world, tmp_path)))


def test_the_ledger_of_a_contract_of_the_original_s(world, tmp_path):
    """Which checks no ids: peers are what they claim to be."""
    original = original_world(world)
    client = original.client(tmp_path)
    client.register()
    client.settle(0, b"", None, (5, 0, 0), ["QmSomebody", OTHER.peer_id])
    settle(client, original)
    for _ in range(3):
        original.call(OTHER, "updateStageAndRound()")
    index = catch_up(index_of(original, tmp_path))
    assert [(peer.account, peer.peer_id, peer.kind) for peer in ledger.peers(index)] == [
        (ACCOUNT, ME.peer_id, "claimed")
    ]
    first, after = ledger.rounds(index)
    assert [(one.stage, one.amount) for one in first.rewards] == [(0, 5)] and not first.commitments
    assert [vote.winners for vote in first.votes] == [sorted(["QmSomebody", OTHER.peer_id])]
    assert after.number == 1 and after.advanced and not after.beacon
    totals = {ACCOUNT: ledger.Total(5, 0), "QmSomebody": ledger.Total(0, 1), OTHER.peer_id: ledger.Total(0, 1)}
    assert ledger.totals(index) == totals


def _new(directory: Path, name: str) -> Path:
    (directory / name).mkdir()
    return directory / name


@pytest.mark.parametrize("seed", range(8))
def test_after_any_reorganisations_the_index_is_that_of_the_chain(world, tmp_path, seed):
    """Of any depth, with pulls at any time, in ranges of any size, and starts anew from the file."""
    rng = random.Random(seed)
    depth = rng.choice([2, 5, 100])
    index = index_of(world, tmp_path, depth=depth, span=rng.choice([1, 3, 1000]))
    for _ in range(8):
        busy(world, rng, rng.randrange(5))
        for _ in range(rng.randrange(3)):
            index.pull(ranges=rng.randrange(1, 4))
        if rng.random() < 0.6:
            world.chain.forget()
            world.chain.rewind(max(0 + world.height, world.chain.height - rng.randrange(8)), keep=rng.random() < 0.5)
        if rng.random() < 0.3:
            index.close()
            index = index_of(world, tmp_path, depth=depth)
    world.chain.mine()
    catch_up(index)
    assert_is_the_chain(index, world)


def test_a_reorganisation_below_all_that_is_remembered_has_everything_read_again(world, tmp_path):
    busy(world, random.Random(1), 12)
    index = catch_up(index_of(world, tmp_path, depth=2, span=1))
    world.chain.rewind(world.height, keep=False)
    busy(world, random.Random(2), 6)
    catch_up(index)
    assert_is_the_chain(index, world)


def test_a_shorter_chain_is_believed_too(world, tmp_path):
    busy(world, random.Random(1), 6)
    index = catch_up(index_of(world, tmp_path))
    world.chain.rewind(world.height, keep=False)
    catch_up(index)
    assert_is_the_chain(index, world)


def test_a_reorganisation_in_the_middle_of_a_range_is_noticed(world, tmp_path):
    """Between the question for events and the one for the block they end in."""
    busy(world, random.Random(1), 4)
    index = index_of(world, tmp_path)

    def reorganise(name: str) -> None:
        if name == "after eth_getLogs":
            world.chain.hook = lambda name: None
            world.chain.rewind(world.height + 1, keep=False)
            busy(world, random.Random(2), 5)

    world.chain.hook = reorganise
    index.pull(ranges=1)
    assert index.position is None  # nothing of it was believed
    catch_up(index)
    assert_is_the_chain(index, world)


@pytest.mark.parametrize("most", [1, 5])
def test_ranges_are_halved_until_the_endpoint_takes_them(world, tmp_path, most):
    asked = []

    def limited(params):
        first, last = (int(params[0][name], 16) for name in ("fromBlock", "toBlock"))
        asked.append((first, last))
        if last - first + 1 > most:
            raise Refused("eth_getLogs", -32005, "query exceeds max block range")
        return world.chain._logs(params)

    busy(world, random.Random(1), 10)
    world.chain.answers["eth_getLogs"] = limited
    index = catch_up(index_of(world, tmp_path, span=64))
    assert_is_the_chain(index, world)
    answered = sorted(one for one in asked if one[1] - one[0] < most)
    covered = [block for first, last in answered for block in range(first, last + 1)]
    assert covered == list(range(world.chain.height + 1)) and max(last - first for first, last in asked) < 64


def test_an_endpoint_that_refuses_a_single_block_is_an_error(world, tmp_path):
    def refuse(params):
        raise Refused("eth_getLogs", -32005, "no")

    world.chain.answers["eth_getLogs"] = refuse
    with pytest.raises(Refused):
        catch_up(index_of(world, tmp_path, span=8))


FORGERIES = {
    "another contract's": lambda log: log | {"address": "0x" + "12" * 20},
    "a later block's": lambda log: log | {"blockNumber": "0xfff"},
    "one undone": lambda log: log | {"removed": True},
    "one cut": lambda log: log | {"data": log["data"][:20]},
    "one without topics": lambda log: log | {"topics": None},
    "one with a topic too many": lambda log: log | {"topics": [*log["topics"], log["topics"][0]]},
    "one of a block that is not": lambda log: log | {"blockHash": 7},
    "none": lambda log: [],
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_what_is_no_event_of_the_range_is_refused_and_forgotten(world, tmp_path, forge):
    index = index_of(world, tmp_path)
    world.chain.answers["eth_getLogs"] = lambda params: [forge(log) for log in world.chain._logs(params)]
    with pytest.raises(MalformedAnswer):
        index.pull()
    world.chain.answers["eth_getLogs"] = lambda params: world.chain._logs(params) * 2
    with pytest.raises(MalformedAnswer, match="twice"):
        index.pull()
    assert index.position is None and not index.entries("Registered")
    world.chain.answers.clear()
    assert_is_the_chain(catch_up(index), world)


def test_names_that_are_no_text_stop_nothing(world, tmp_path):
    """Anybody may register any bytes as a claim."""
    original = original_world(world)
    call = encode_call("registerPeer(string)", ("x" * 40,)).replace(b"x" * 40, b"\xff\x00" * 20)
    world.chain.transact(OTHER.expose_secret(), original.contract, call)
    world.chain.mine()
    peers = ledger.peers(catch_up(index_of(original, tmp_path)))
    assert (peers[-1].kind, peers[-1].peer_id) == ("claimed", "\ufffd\x00" * 20)


def test_an_index_is_of_one_contract_and_one_chain(world, tmp_path):
    catch_up(index_of(world, tmp_path)).close()
    with pytest.raises(FileDamaged, match="another contract"):
        EventIndex(world.chain, "0x" + "12" * 20, tmp_path / "events.sqlite")
    world.chain.answers["eth_getBlockByNumber"] = lambda params: world.chain._block(params) | {"hash": "0x" + "1" * 64}
    with pytest.raises(WrongChain, match="delete that file"):
        index_of(world, tmp_path).pull()


def test_few_hashes_are_kept(world, tmp_path):
    index = index_of(world, tmp_path, depth=5, span=1)
    for _ in range(40):
        world.chain.mine()
        catch_up(index)
    assert len(index._run("SELECT * FROM blocks")) <= 7
