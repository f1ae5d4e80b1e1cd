"""Who a peer is, on the chain: proven by its key, attested, or only claimed."""

import base58
import coincurve
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.evm import Chain, account, node
from benchmarks.gas import registration, sign_typed
from rlswarm_jax.identity import author_of, peer_id, simulated

FAR = 2**32
# of ed25519, of RSA, and a name: what the original's nodes call themselves
FOREIGN = (
    "12D3KooWGRYZDHBembyGJQqQ6WgLqJWYNjnECJwGBnCg8vbCeo8F",
    "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    "any name at all",
)
PROVEN, ATTESTED, STRUCK = 1, 2, 3
NOBODY = "0x" + 40 * "0"


@pytest.fixture(scope="module")
def deployed():
    return Chain(nodes=4)


@pytest.fixture
def chain(deployed):
    with deployed.undone():
        yield deployed


def kind(chain, one) -> int:
    return chain.call("peerOf", one.address)[0][0]


def attestation(chain, one, name, deadline=FAR, public_key=b"key", peer_signature=b"by the peer's key", signer=None):
    types = {"Attest": [("account", "address"), ("peerId", "string"), ("deadline", "uint256")]}
    message = {"account": one.address, "peerId": name, "deadline": deadline}
    signature = sign_typed(chain, signer or one, types, message).signature
    return one.address, name, deadline, public_key, peer_signature, bytes(signature)


# --- peer ids


@pytest.fixture(scope="module")
def hundred():
    """A chain where a hundred keys were registered by somebody else."""
    chain, nodes = Chain(nodes=1), [node(index) for index in range(100, 200)]
    for some in (nodes[:50], nodes[50:]):
        receipt = chain.send(chain.funded[4], "registerKeys", [registration(chain, one, NOBODY) for one in some])
        assert [event["peerId"] for event in chain.events(receipt, "PeerRegistered")] == [o.peer_id for o in some]
    return chain, nodes


def test_the_chain_spells_and_reads_peer_ids_as_we_do(hundred):
    chain, nodes = hundred
    page = chain.call("standings", 0, 100)
    assert [row[1] for row in page] == [peer_id(one.identity.author) for one in nodes]
    assert [row[0] for row in page] == [one.address for one in nodes]  # from the x coordinate alone
    assert {one.identity.author[0] for one in nodes} == {2, 3}
    assert chain.call("getEoa", [one.peer_id for one in nodes]) == [one.address for one in nodes]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_other_text_is_read_as_a_registered_peer_id(hundred, data):
    chain, nodes = hundred
    true = data.draw(st.sampled_from(nodes)).peer_id
    spot = data.draw(st.integers(0, len(true) - 1))
    character = data.draw(st.characters(exclude_categories=["Cs"], exclude_characters=true[spot]))
    texts = [
        true[:spot] + character + true[spot + 1 :],
        true[:spot] + true[spot + 1 :],
        true + character,
        "1" + true,
        data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=60)),
        data.draw(st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", min_size=53, max_size=53)),
    ]
    assert chain.call("getEoa", texts) == [NOBODY] * len(texts)


def test_a_well_formed_id_of_no_point_of_the_curve_is_only_a_name(chain):
    """x of no point: the id can't be proven by anyone, and nothing breaks."""
    x = 5  # 5**3 + 7 = 132 has no square root in the field
    name = base58.b58encode(bytes.fromhex("002508021221") + b"\x02" + x.to_bytes(32)).decode()
    assert author_of(name) is None
    one = chain.nodes[0]
    chain.send(one.address, "registerPeer", name)
    assert kind(chain, one) == 0 and chain.call("getEoa", [name]) == [one.address]


# --- proofs


@pytest.mark.parametrize("call", ["registerKey", "registerPeer", "registerKeys"])
def test_each_way_to_register_one_s_own_key_proves_it(chain, call):
    one = chain.nodes[0]
    values = {
        "registerKey": (one.x, one.y),
        "registerPeer": (one.peer_id,),
        "registerKeys": ([registration(chain, one, NOBODY)],),
    }[call]
    receipt = chain.send(one.address, call, *values)
    assert chain.events(receipt, "PeerRegistered") == [{"eoa": one.address, "peerId": one.peer_id}]
    peer, name = chain.call("peerOf", one.address)
    assert (peer[0], name) == (PROVEN, one.peer_id)
    assert chain.call("getPeerId", [one.address, chain.nodes[1].address]) == [[one.peer_id], []]
    assert chain.call("status")[-1] == 1
    for again, given_ in (("registerKey", (one.x, one.y)), ("registerPeer", (one.peer_id,))):
        assert chain.refusal(one.address, again, *given_) == "PeerIdAlreadyRegistered"


def test_a_key_is_registered_by_none_but_its_account(chain):
    one, other = chain.nodes[:2]
    assert chain.refusal(other.address, "registerKey", one.x, one.y) == "NotTheSendersKey"
    for x, y in ((one.x, one.y ^ 1), (one.x ^ 1, one.y), (one.y, one.x), (0, 0)):
        assert chain.refusal(one.address, "registerKey", x, y) == "NotTheSendersKey"


def test_anyone_may_relay_a_signed_registration_and_nobody_can_change_it(chain):
    one, other = chain.nodes[:2]
    x, y, payout, deadline, v, r, s = registration(chain, one, other.address)
    relay = chain.funded[5]
    for forged in (
        (x, y, relay, deadline, v, r, s),  # another payout
        (x, y, payout, deadline + 1, v, r, s),
        (other.x, other.y, payout, deadline, v, r, s),
        (x, y, payout, deadline, v ^ 1, r, s),
        (x, y, payout, deadline, 0, bytes(32), bytes(32)),
    ):
        assert chain.refusal(relay, "registerKeys", [forged]) == "InvalidSignature"
    receipt = chain.send(relay, "registerKeys", [(x, y, payout, deadline, v, r, s)])
    assert chain.events(receipt, "PayoutSet") == [{"account": one.address, "payout": other.address}]
    assert kind(chain, one) == PROVEN and chain.call("payoutOf", one.address) == other.address
    # sent again, by whoever, it changes nothing and spoils no batch
    batch = [(x, y, payout, deadline, v, r, s), registration(chain, other, NOBODY)]
    receipt = chain.send(relay, "registerKeys", batch)
    assert [event["eoa"] for event in chain.events(receipt, "PeerRegistered")] == [other.address]


def test_a_signature_for_another_swarm_or_a_late_one_is_refused(chain):
    one = chain.nodes[0]
    for other in ({"chainId": 1}, {"verifyingContract": chain.funded[9]}, {"version": "2"}, {"name": "another"}):
        elsewhere = registration(chain, one, NOBODY, **other)
        assert chain.refusal(one.address, "registerKeys", [elsewhere]) == "InvalidSignature"
    late = registration(chain, one, NOBODY, deadline=1)
    assert chain.refusal(one.address, "registerKeys", [late]) == "SignatureExpired"
    assert chain.refusal(one.address, "registerKeys", [late] * 101) == "PageTooLarge"


def test_the_payout_address_cannot_be_turned_away_with_the_node_s_key(chain):
    one, owner, thief = chain.nodes[:3]
    assert chain.refusal(thief.address, "setPayout", one.address, thief.address) == "OnlyPayout"
    chain.send(one.address, "setPayout", one.address, owner.address)
    assert chain.refusal(one.address, "setPayout", one.address, thief.address) == "OnlyPayout"
    chain.send(owner.address, "setPayout", one.address, thief.address)
    assert chain.call("payoutOf", one.address) == thief.address


# --- claims


@pytest.mark.parametrize("name", FOREIGN)
def test_a_claim_shows_in_the_original_s_views_and_counts_nowhere(chain, name):
    one, other = chain.nodes[:2]
    receipt = chain.send(one.address, "registerPeer", name)
    assert chain.events(receipt, "PeerRegistered") == [{"eoa": one.address, "peerId": name}]
    assert chain.call("getEoa", [name]) == [one.address]
    assert chain.call("getPeerId", [one.address]) == [[name]]
    assert kind(chain, one) == 0 and chain.call("status")[-1] == 0 and chain.call("standings", 0, 9) == []
    assert chain.refusal(other.address, "registerPeer", name) == "PeerIdAlreadyRegistered"
    tag = bytes(4)
    assert chain.refusal(one.address, "commit", 0, tag, *[b"\1" * 32] * 4) == "NotRegistered"


def test_a_squatted_peer_id_goes_to_whoever_holds_its_key(chain):
    squatter, owner = chain.nodes[:2]
    chain.send(squatter.address, "registerPeer", owner.peer_id)
    assert chain.call("getEoa", [owner.peer_id]) == [squatter.address]
    chain.send(owner.address, "registerPeer", owner.peer_id)
    assert chain.call("getEoa", [owner.peer_id]) == [owner.address]
    assert chain.call("getPeerId", [squatter.address, owner.address]) == [[], [owner.peer_id]]
    reward = "submitReward(uint256,uint256,int256,string)"
    assert chain.refusal(squatter.address, reward, 0, 0, 1, owner.peer_id) == "InvalidVoterPeerId"
    # and it cannot be claimed once it is proven
    assert chain.refusal(squatter.address, "registerPeer", owner.peer_id) == "PeerIdAlreadyRegistered"


def test_an_account_has_a_bounded_number_of_claims_of_bounded_length(chain):
    one = chain.nodes[0].address
    for bad in ("", "x" * 129):
        assert chain.refusal(one, "registerPeer", bad) == "InvalidPeerId"
    names = [f"{index}" * 128 for index in range(8)]
    for name in names:
        chain.send(one, "registerPeer", name)
    assert chain.refusal(one, "registerPeer", "one more") == "TooManyClaims"
    assert chain.call("getPeerId", [one]) == [names]


# --- attestations


def test_an_attestation_displaces_a_claim_and_emits_both_signatures(chain):
    squatter, owner = chain.nodes[:2]
    name = FOREIGN[0]
    chain.send(squatter.address, "registerPeer", name)
    given_ = attestation(chain, owner, name)
    receipt = chain.send(chain.funded[5], "attestPeer", given_)
    (event,) = chain.events(receipt, "PeerAttested")
    assert event["account"] == owner.address and tuple(dict(event["attestation"]).values()) == given_
    assert kind(chain, owner) == ATTESTED
    assert chain.call("getEoa", [name]) == [owner.address]
    assert chain.call("getPeerId", [squatter.address, owner.address]) == [[], [name]]
    assert chain.call("standings", 0, 9)[0][:3] == (owner.address, name, ATTESTED)
    assert chain.refusal(squatter.address, "attestPeer", attestation(chain, squatter, name)) == (
        "PeerIdAlreadyRegistered"
    )
    assert chain.refusal(squatter.address, "registerPeer", name) == "PeerIdAlreadyRegistered"


def test_what_an_attestation_must_be(chain):
    one, other = chain.nodes[:2]

    def refusal(*values, **options):
        return chain.refusal(one.address, "attestPeer", attestation(chain, *values, **options))

    assert refusal(one, other.peer_id) == "InvalidPeerId"  # a key that can be proven must be
    assert refusal(one, "") == refusal(one, "x" * 129) == "InvalidPeerId"
    assert refusal(one, FOREIGN[0], peer_signature=bytes(2046)) == "ProofTooLong"
    assert refusal(one, FOREIGN[0], deadline=1) == "SignatureExpired"
    assert refusal(one, FOREIGN[0], signer=other) == "InvalidSignature"
    values = attestation(chain, one, FOREIGN[0])
    for bad in (values[5][:64], values[5] + b"\0", bytes(65)):
        assert chain.refusal(one.address, "attestPeer", (*values[:5], bad)) == "InvalidSignature"
    nobody = (NOBODY, *values[1:5], bytes(65))  # what ecrecover says of a signature that is none
    assert chain.refusal(one.address, "attestPeer", nobody) == "InvalidSignature"
    chain.register(one)
    assert refusal(one, FOREIGN[0]) == "PeerIdAlreadyRegistered"


def test_the_owner_strikes_an_attestation_and_touches_nothing_else(chain):
    liar, honest, proven = chain.nodes[:3]
    chain.send(liar.address, "attestPeer", attestation(chain, liar, FOREIGN[0]))
    chain.register(proven)
    assert chain.refusal(liar.address, "strikeAttestation", liar.address) == "OnlyOwner"
    assert chain.refusal(chain.owner, "strikeAttestation", proven.address) == "NotAttested"
    receipt = chain.send(chain.owner, "strikeAttestation", liar.address)
    assert chain.events(receipt, "AttestationStruck") == [{"account": liar.address, "peerId": FOREIGN[0]}]
    assert kind(chain, liar) == STRUCK and chain.call("getEoa", [FOREIGN[0]]) == [NOBODY]
    assert chain.refusal(liar.address, "commit", 0, bytes(4), *[b"\1" * 32] * 4) == "NotRegistered"
    again = attestation(chain, liar, "another")
    assert chain.refusal(liar.address, "attestPeer", again) == "PeerIdAlreadyRegistered"
    chain.send(honest.address, "attestPeer", attestation(chain, honest, FOREIGN[0]))  # the id is free
    assert chain.call("getEoa", [FOREIGN[0]]) == [honest.address]


def test_views_page_and_never_loop_without_bound(chain):
    chain.register(*chain.nodes)
    accounts = [one.address for one in chain.nodes]
    assert [row[0] for row in chain.call("standings", 1, 3)] == accounts[1:3]
    assert [row[0] for row in chain.call("standings", 0, 100)] == accounts
    assert chain.call("standings", 4, 9) == chain.call("standings", 3, 2) == []


def test_a_page_has_at_most_a_hundred_peers(hundred):
    chain, _ = hundred
    with chain.undone():
        chain.register(chain.nodes[0])
        for view in ("standings", "voterLeaderboard", "winnerLeaderboard"):
            assert chain.refusal(chain.owner, view, 0, 101) == "PageTooLarge"


def test_our_account_of_a_key_is_the_one_that_ethereum_derives():
    """The fixture's own arithmetic, against a foreign implementation."""
    from eth_account import Account

    identity = simulated(3, 3)
    one = account(identity)
    assert one.address == Account.from_key(identity.expose_secret()).address
    assert coincurve.PublicKey.from_point(one.x, one.y).format() == identity.author
