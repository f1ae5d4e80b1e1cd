import base64
import copy
import hashlib
import pickle

import base58
import pytest
from eth_keys import KeyAPI
from eth_keys.backends import NativeECCBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.peer.id import ID

from rlswarm_jax import identity
from rlswarm_jax.identity import (
    Identity,
    KeyFileError,
    author_of,
    create,
    friendly_name,
    load_or_create,
    peer_id,
    simulated,
    verify,
)

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
OTHERS = KeyAPI(NativeECCBackend())  # secp256k1 and RFC 6979 in Python's integers


def sha256(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


secrets = st.integers(1, N - 1).map(lambda number: number.to_bytes(32))
slow = settings(deadline=None, max_examples=15)


@slow
@given(secrets, st.binary(max_size=200))
def test_keys_and_signatures_are_those_of_another_implementation(secret, message):
    identity, theirs = Identity(secret), OTHERS.PrivateKey(secret)
    assert identity.author == theirs.public_key.to_compressed_bytes()
    signature = theirs.sign_msg_hash_non_recoverable(sha256(message)).to_bytes()
    assert identity.sign(message) == signature == identity.sign(message)
    assert verify(identity.author, signature, message)


def test_a_published_rfc_6979_vector():
    """The vector of Bitcoin implementations for key 1 and the message "Satoshi Nakamoto"."""
    assert Identity((1).to_bytes(32)).sign(b"Satoshi Nakamoto").hex() == (
        "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
        "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"
    )


@slow
@given(secrets, st.binary(max_size=50))
def test_the_malleated_signature_is_refused_though_it_is_one(secret, message):
    identity = Identity(secret)
    signature = identity.sign(message)
    s = int.from_bytes(signature[32:])
    assert 0 < s <= N // 2
    malleated = signature[:32] + (N - s).to_bytes(32)
    theirs = OTHERS.NonRecoverableSignature(malleated)
    assert theirs.verify_msg_hash(sha256(message), OTHERS.PrivateKey(secret).public_key)
    assert not verify(identity.author, malleated, message)


@settings(deadline=None)
@given(st.data())
def test_a_signature_holds_for_one_author_and_one_message(data):
    alice, bob, message = simulated(0, 0), simulated(0, 1), b"round 7"
    signature = alice.sign(message)
    tampered = data.draw(st.binary(max_size=20).filter(lambda other: other != message))
    bit = data.draw(st.integers(0, 511))
    flipped = (int.from_bytes(signature) ^ (1 << bit)).to_bytes(64)
    assert verify(alice.author, signature, message)
    assert not verify(bob.author, signature, message)
    assert not verify(alice.author, signature, tampered)
    assert not verify(alice.author, flipped, message)


EDGES = [0, 1, 7, P - 1, P, P + 1, N - 1, N, N + 1, N // 2, N // 2 + 1, 2**256 - 1]
numbers = st.sampled_from(EDGES).map(lambda number: number.to_bytes(32)) | st.binary(min_size=32, max_size=32)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([2, 3, 4, 6, 0, 255]), numbers, numbers, numbers)
def test_invalid_points_and_numbers_are_false_and_never_raise(prefix, x, r, s):
    assert verify(bytes([prefix]) + x, r + s, b"message") is False


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_other_lengths_are_false_and_never_raise(author, signature):
    identity = simulated(0, 0)
    assert verify(author, signature, b"message") is False
    if len(author) != 33:
        assert verify(author, identity.sign(b"message"), b"message") is False
    if len(signature) != 64:
        assert verify(identity.author, signature, b"message") is False
    for form in (identity._key.public_key.format(compressed=False), identity.author + b"\0"):
        assert verify(form, identity.sign(b"message"), b"message") is False


@pytest.mark.parametrize("secret", [b"", bytes(32), N.to_bytes(32), b"\xff" * 32, b"\x01" * 33], ids=repr)
def test_what_is_no_private_key_is_refused(secret):
    with pytest.raises(ValueError, match="greater than 0 and less than"):
        Identity(secret)


SECRET = sha256(b"a secret")


def test_the_private_key_is_never_shown():
    identity = Identity(SECRET)
    shown = [repr(identity), str(identity), f"{identity}", f"{identity!r:>80}", repr([identity]), repr(vars(identity))]
    with pytest.raises(TypeError) as caught:
        pickle.dumps(identity)
    forms = [
        SECRET.hex(),
        repr(SECRET),
        repr(SECRET)[2:-1],
        str(int.from_bytes(SECRET)),
        base64.b64encode(SECRET).decode(),
    ]
    for text in (*shown, str(caught.value)):
        assert not any(form.lower() in text.lower() for form in forms)
    assert friendly_name(identity.author) in repr(identity)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_identity_cannot_be_pickled_or_copied(protocol):
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(Identity(SECRET), protocol)
    for copies in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled"):
            copies([Identity(SECRET)] if copies is copy.deepcopy else Identity(SECRET))


def test_simulated_keys_are_functions_of_seed_and_node():
    authors = {simulated(seed, node).author for seed in range(8) for node in range(8)}
    assert len(authors) == 64
    assert simulated(1, 12).author != simulated(11, 2).author
    assert simulated(3, 4).author == simulated(3, 4).author


@given(st.binary(min_size=33, max_size=33))
def test_a_friendly_name_is_pronounceable_and_a_function_of_the_author(author):
    adjective, animal, digits = friendly_name(author).split("-")
    assert adjective.isalpha() and animal.isalpha() and len(bytes.fromhex(digits)) == 2
    assert friendly_name(author) == friendly_name(bytes(author))


# --- peer ids and key files


@given(st.integers(1, N - 1))
@settings(max_examples=25)
def test_a_peer_id_is_libp2p_s_and_holds_the_author(secret):
    identity = Identity(secret.to_bytes(32))
    theirs = ID.from_pubkey(Secp256k1PrivateKey.from_bytes(identity.expose_secret()).get_public_key())
    assert identity.peer_id == peer_id(identity.author) == theirs.to_base58()
    assert author_of(identity.peer_id) == author_of(theirs.to_bytes()) == identity.author


def test_what_is_no_peer_id_of_a_secp256k1_key_has_no_author():
    good = base58.b58decode(Identity(SECRET).peer_id)
    off_the_curve = good[:-33] + b"\x02" + b"\xff" * 32
    ed25519 = ID.from_pubkey(create_new_key_pair(bytes(32)).public_key)
    for wrong in ("", b"", "0OIl", "Qm", good[:-1], good + b"\0", b"\0" + good[1:] + b"\0", off_the_curve):
        assert author_of(wrong) is None
    assert author_of(ed25519.to_bytes()) is author_of(ed25519.to_base58()) is None


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_peer_id_has_an_author_or_none(anything):
    found = author_of(anything)
    assert found is None or len(found) == 33


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "node.key"
    first, again = load_or_create(path), load_or_create(path)
    assert first.author == again.author and path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(tmp_path / "another.key").author != first.author
    with pytest.raises(KeyFileError, match="File exists"):
        create(path, Identity(SECRET))
    assert load_or_create(path).author == first.author


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"12", b"0" * 64, b"f" * 64, SECRET, SECRET.hex().encode() * 2])
def test_a_file_that_holds_no_key_is_one_sentence_that_does_not_quote_it(tmp_path, content):
    path = tmp_path / "node.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="holds no secp256k1 key") as caught:
        load_or_create(path)
    assert str(path) in str(caught.value) and SECRET.hex() not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "node.key"
    create(path, Identity(SECRET))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600 it"):
        load_or_create(path)


def test_a_folder_or_no_folder_in_place_of_a_key_file_is_a_named_error(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "node.key"):
        with pytest.raises(KeyFileError, match=str(path)):
            load_or_create(path)


def test_what_is_too_long_for_a_peer_id_is_none_and_is_not_looked_at():
    """Base58 of a long text takes the square of its length."""
    own = identity.simulated(0, 1)
    assert identity.author_of(own.peer_id) == own.author and len(own.peer_id) < identity.LONGEST_PEER_ID
    before = identity._author_of.cache_info()
    assert identity.author_of("1" * 100_000) is None and identity.author_of(own.author * 100) is None
    assert identity._author_of.cache_info() == before
    assert identity.author_of(b"\0" * 37) is None and identity.author_of("") is None
