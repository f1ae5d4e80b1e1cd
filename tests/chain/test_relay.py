"""A node is registered by its signature alone, by whoever pays; what does not hold costs nobody anything."""

import coincurve
import msgspec
import pytest
from eth_abi import encode
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.chain import calls
from rlswarm_jax.chain.errors import BadRegistration, ExpiredRegistration, NoContract, WrongChain
from rlswarm_jax.chain.relay import NOBODY, SignedRegistration, check_registration, relay, sign_registration
from rlswarm_jax.identity import simulated
from tests.chain.client_world import ACCOUNT, ME, make_world
from tests.chain.local_chain import CHAIN_ID, encode_call

FAR = 2**40
PAYOUT = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
NODES = [simulated(7, index) for index in range(60)]


@pytest.fixture
def world():
    found = make_world()
    found.chain.instant = True
    return found


def digest_of(chain_id, contract, account, payout, deadline):
    """What EIP-712 says is signed."""
    domain = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    names = [keccak(text=text) for text in ("rlswarm_jax coordinator", "2")]
    register = keccak(text="Register(address account,address payout,uint256 deadline)")
    parts = (
        encode(["bytes32"] * 3 + ["uint256", "address"], [domain, *names, chain_id, contract]),
        encode(["bytes32", "address", "address", "uint256"], [register, account, payout, deadline]),
    )
    return keccak(b"\x19\x01" + b"".join(map(keccak, parts)))


@given(st.integers(0, 50), st.integers(1, 2**63), st.integers(0, 2**160 - 1), st.integers(0, 2**63 - 1), st.booleans())
def test_a_signature_is_of_what_eip_712_says(index, chain_id, contract, deadline, paid_elsewhere):
    one, address = simulated(8, index), f"0x{contract:040x}"
    found = sign_registration(one, chain_id, address, PAYOUT if paid_elsewhere else None, deadline)
    digest = digest_of(chain_id, address, found.account, PAYOUT if paid_elsewhere else NOBODY, deadline)
    signature = bytes.fromhex(found.signature[2:])
    raw = signature[:64] + bytes([signature[64] - 27])
    assert coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None).format() == one.author
    check_registration(found, chain_id, address, deadline - 120)


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
    assert [one.gas < 3_000_000 for one in rest.transactions] == [True, True]  # 50 and 7
    again = relay(world.chain, ME, CHAIN_ID, world.contract, signed)
    assert (again.sent, again.transactions) == ([], []) and set(again.skipped) == set(accounts)
    registered = world.chain.events(world.contract, "Registered")[2:]
    assert [one["account"] for one in registered] == [account.lower() for account in accounts]
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
    call = "registerFor((uint256,uint256,address,uint256,uint8,bytes32,bytes32)[])"
    good = sign_registration(NODES[0], CHAIN_ID, world.contract, PAYOUT, FAR)
    x, y = calls.point(NODES[0].author)
    signature = bytes.fromhex(good.signature[2:])
    values = [x, y, PAYOUT, FAR, signature[64], signature[:32], signature[32:64]]
    for at, other in ((2, NOBODY), (3, FAR + 1), (4, 55 - signature[64]), (5, bytes(32)), (0, x + 1)):
        changed = [*values[:at], other, *values[at + 1 :]]
        message = {"from": ACCOUNT, "to": world.contract}
        with pytest.raises(Exception, match="execution reverted"):
            data = "0x" + encode_call(call, ([tuple(changed)],)).hex()
            world.chain.request("eth_estimateGas", [message | {"data": data}])
    data = "0x" + encode_call(call, ([tuple(values)],)).hex()
    world.chain.request("eth_estimateGas", [message | {"data": data}])
