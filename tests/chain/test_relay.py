"""A node is registered by its signature alone, by whoever pays; what does not hold costs nobody anything."""

import msgspec
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PrivateKey as Libp2pKey
from libp2p.peer.id import ID

from rlswarm_jax.chain import abi, calls, ledger
from rlswarm_jax.chain.errors import BadRegistration, ExpiredRegistration, NoContract, Reverted, WrongChain
from rlswarm_jax.chain.relay import (
    NOBODY,
    SignedRegistration,
    attest,
    check_attestation,
    check_registration,
    relay,
    sign_attestation,
    sign_registration,
)
from rlswarm_jax.identity import simulated
from tests.chain.client_world import ACCOUNT, ME, make_world
from tests.chain.local_chain import CHAIN_ID

FAR = 2**40
PAYOUT = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
NODES = [simulated(7, index) for index in range(60)]
PEER_KEY = bytes(range(32))


@pytest.fixture
def world():
    found = make_world()
    found.chain.instant = True
    return found


def signed_by_eth_account(one, chain_id, contract, kind, types, message):
    """The signature that wallets make of the same typed data."""
    domain = {"name": "rlswarm_jax coordinator", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    fields = {kind: [{"name": name, "type": type_} for name, type_ in types.items()]}
    return "0x" + Account.sign_message(encode_typed_data(domain, fields, message), one.expose_secret()).signature.hex()


@given(st.integers(0, 50), st.integers(1, 2**63), st.integers(0, 2**160 - 1), st.integers(0, 2**63 - 1), st.booleans())
def test_a_signature_is_the_one_that_wallets_make(index, chain_id, contract, deadline, paid_elsewhere):
    one, address = simulated(8, index), f"0x{contract:040x}"
    payout = PAYOUT if paid_elsewhere else NOBODY
    found = sign_registration(one, chain_id, address, payout if paid_elsewhere else None, deadline)
    types = {"account": "address", "payout": "address", "deadline": "uint256"}
    message = {"account": calls.account_of(one.author), "payout": payout, "deadline": deadline}
    assert found.signature == signed_by_eth_account(one, chain_id, address, "Register", types, message)
    check_registration(found, chain_id, address, deadline - 120)
    attested = sign_attestation(one, PEER_KEY, chain_id, address, deadline)
    types = {"account": "address", "peerId": "string", "deadline": "uint256"}
    message = {"account": attested.account, "peerId": attested.peer_id, "deadline": deadline}
    assert attested.account_signature == signed_by_eth_account(one, chain_id, address, "Attest", types, message)


def test_what_is_handed_over_survives_json_and_holds_no_secret(world):
    found = sign_registration(NODES[0], CHAIN_ID, world.contract, PAYOUT, FAR)
    raw = msgspec.json.encode(found)
    assert msgspec.json.decode(raw, type=SignedRegistration) == found
    assert NODES[0].expose_secret().hex() not in raw.decode() and found.account == calls.account_of(NODES[0].author)


def test_nodes_without_funds_are_registered_together_and_none_twice(world):
    signed = [sign_registration(one, CHAIN_ID, world.contract, PAYOUT, FAR) for one in NODES]
    accounts = [calls.account_of(one.author) for one in NODES]
    first = relay(world.chain, ME, CHAIN_ID, world.contract, signed[:3])
    assert (first.sent, first.skipped, len(first.transactions)) == (accounts[:3], [], 1)
    own = sign_registration(ME, CHAIN_ID, world.contract, None, FAR)
    rest = relay(world.chain, ME, CHAIN_ID, world.contract, [own, *signed, *signed])
    assert (rest.sent, set(rest.skipped)) == (accounts[3:], {ACCOUNT, *accounts[:3]})
    assert [one.gas < 5_000_000 for one in rest.transactions] == [True, True]  # 50 and 7
    again = relay(world.chain, ME, CHAIN_ID, world.contract, signed)
    assert (again.sent, again.transactions) == ([], []) and set(again.skipped) == set(accounts)
    registered = world.chain.events(world.contract, "PeerRegistered")[2:]
    assert [one["peerId"] for one in registered] == [one.peer_id for one in NODES]
    assert {one["payout"] for one in world.chain.events(world.contract, "PayoutSet")} == {PAYOUT.lower()}
    assert all(world.chain.count(account) == 0 for account in accounts)


def wrong(world):
    """What a relay must refuse, and why."""
    good = sign_registration(NODES[0], CHAIN_ID, world.contract, PAYOUT, FAR)
    change = msgspec.structs.replace
    head = world.chain.block(world.chain.height).header.timestamp
    return (
        change(good, payout=NOBODY),
        change(good, deadline=FAR + 1),
        change(good, author="0x" + NODES[1].author.hex()),
        change(good, signature=good.signature[:-2] + ("1b" if good.signature.endswith("1c") else "1c")),
        change(good, signature=good.signature[:-2] + "00"),
        change(good, signature="0x"),
        change(good, signature="zz"),
        change(good, author="0x12"),
        change(good, payout="0x12"),
        change(good, deadline=-1),
        change(good, deadline=1 << 256),
        change(good, chain_id=1),
        sign_registration(NODES[0], CHAIN_ID + 1, world.contract, None, FAR),
        sign_registration(NODES[0], CHAIN_ID, PAYOUT, None, FAR),
        sign_registration(NODES[0], CHAIN_ID, world.contract, None, head + 30),
    )


def test_one_that_does_not_hold_is_refused_before_anything_is_paid(world):
    good = sign_registration(NODES[1], CHAIN_ID, world.contract, None, FAR)
    before = world.chain.count(ACCOUNT)
    for other in wrong(world):
        with pytest.raises(BadRegistration, match=r"^the registration of .*\.$"):
            relay(world.chain, ME, CHAIN_ID, world.contract, [good, other], wall_clock=lambda: 0.0)
    with pytest.raises(ExpiredRegistration, match="have it signed again"):  # by this machine's clock
        relay(world.chain, ME, CHAIN_ID, world.contract, [good], wall_clock=lambda: FAR + 1.0)
    with pytest.raises(WrongChain):
        relay(world.chain, ME, 1, world.contract, [good])
    elsewhere = sign_registration(NODES[1], CHAIN_ID, PAYOUT, None, FAR)
    with pytest.raises(NoContract, match="no coordinator at"):
        relay(world.chain, ME, CHAIN_ID, PAYOUT, [elsewhere])
    assert world.chain.count(ACCOUNT) == before


def test_what_is_refused_here_the_contract_refuses_too(world):
    """All but what is merely too near its deadline, or cannot be put to it."""
    call = "registerKeys((uint256,uint256,address,uint256,uint8,bytes32,bytes32)[])"
    good = sign_registration(NODES[0], CHAIN_ID, world.contract, PAYOUT, FAR)
    x, y = calls.point(NODES[0].author)
    signature = bytes.fromhex(good.signature[2:])
    values = [x, y, PAYOUT, FAR, signature[64], signature[:32], signature[32:64]]
    for at, other in ((2, NOBODY), (3, FAR + 1), (4, 55 - signature[64]), (5, bytes(32)), (0, x + 1)):
        changed = [*values[:at], other, *values[at + 1 :]]
        message = {"from": ACCOUNT, "to": world.contract}
        with pytest.raises(Exception, match="execution reverted"):
            data = "0x" + abi.encode_call(call, ([tuple(changed)],)).hex()
            world.chain.request("eth_estimateGas", [message | {"data": data}])
    data = "0x" + abi.encode_call(call, ([tuple(values)],)).hex()
    world.chain.request("eth_estimateGas", [message | {"data": data}])


# --- peers with Ed25519 keys


def test_a_peer_id_is_the_one_that_libp2p_gives_to_the_key():
    key = Libp2pKey.from_bytes(PEER_KEY)
    found = sign_attestation(NODES[0], PEER_KEY, CHAIN_ID, PAYOUT, FAR)
    assert found.peer_id == str(ID.from_pubkey(key.get_public_key())) and found.peer_id.startswith("12D3Koo")
    assert bytes.fromhex(found.public_key[2:]) == key.get_public_key().serialize()


def test_an_attestation_is_taken_by_the_contract_and_anyone_can_check_it(world, tmp_path):
    found = sign_attestation(NODES[0], PEER_KEY, CHAIN_ID, world.contract, FAR)
    attest(world.chain, ME, CHAIN_ID, world.contract, found)
    with ledger.events_of(world.chain, world.contract, tmp_path / "index.sqlite", 0) as index:
        (entry,), peer = index.entries("PeerAttested"), ledger.peers(index)[-1]
    (event,) = world.chain.events(world.contract, "PeerAttested")
    assert check_attestation(entry.fields, CHAIN_ID, world.contract)
    assert check_attestation(event, CHAIN_ID, world.contract)
    assert (peer.peer_id, peer.kind, peer.account) == (found.peer_id, "attested", found.account)
    with pytest.raises(Reverted, match="PeerIdAlreadyRegistered"):
        attest(world.chain, ME, CHAIN_ID, world.contract, found)
    # the contract checks only the account's signature: what a peer's key never signed gets in, and shows
    forged = msgspec.structs.replace(
        sign_attestation(NODES[1], bytes(32), CHAIN_ID, world.contract, FAR), peer_signature="0x" + "00" * 64
    )
    with pytest.raises(BadRegistration, match="does not hold"):
        attest(world.chain, ME, CHAIN_ID, world.contract, forged)
    hexes = (forged.public_key, forged.peer_signature, forged.account_signature)
    values = (forged.account, forged.peer_id, FAR, *(bytes.fromhex(one[2:]) for one in hexes))
    world.call(ME, "attestPeer((address,string,uint256,bytes,bytes,bytes))", values)
    event = world.chain.events(world.contract, "PeerAttested")[-1]
    assert event["account"] == forged.account.lower() and not check_attestation(event, CHAIN_ID, world.contract)


def test_an_attestation_of_anything_else_is_none(world):
    good = sign_attestation(NODES[0], PEER_KEY, CHAIN_ID, world.contract, FAR)
    other = sign_attestation(NODES[1], bytes(32), CHAIN_ID, world.contract, FAR)
    change = msgspec.structs.replace
    before = world.chain.count(ACCOUNT)
    for name in ("account", "peer_id", "public_key", "peer_signature", "account_signature"):
        for value in (getattr(other, name), "0x", "", "0x" + 40 * "1"):
            with pytest.raises(BadRegistration, match=r"^the attestation of .*\.$"):
                attest(world.chain, ME, CHAIN_ID, world.contract, change(good, **{name: value}))
    for changed in (change(good, deadline=FAR - 1), change(good, chain_id=1), change(good, contract=PAYOUT)):
        with pytest.raises(BadRegistration, match=r"^the attestation of .*\.$"):
            attest(world.chain, ME, CHAIN_ID, world.contract, changed)
    with pytest.raises(ExpiredRegistration):
        attest(world.chain, ME, CHAIN_ID, world.contract, good, wall_clock=lambda: FAR + 1.0)
    assert world.chain.count(ACCOUNT) == before


anything = st.one_of(st.none(), st.integers(), st.text(max_size=60), st.binary(max_size=60))


@given(st.lists(anything, max_size=7) | anything)
def test_no_event_breaks_the_check(values):
    assert check_attestation({"attestation": values}, CHAIN_ID, PAYOUT) is False
    assert check_attestation({}, CHAIN_ID, PAYOUT) is False
