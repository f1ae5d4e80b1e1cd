"""Registration by signature (EIP-712), so that a node needs no funds: it signs, and whoever pays sends.

    signed = sign_registration(node, chain_id, contract, payout=None, deadline=int(time.time()) + 86400)
    relay(rpc, payer, chain_id, contract, [signed, ...])

Also peers whose ids hold an Ed25519 key, of which the EVM has no check: an attestation carries both signatures, the
contract checks the account's, and `check_attestation` shows anyone whether the peer's key agreed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import base58
import coincurve
import eth_abi
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_utils import keccak

from rlswarm_jax.chain import abi, calls, eth
from rlswarm_jax.chain.calls import NOBODY
from rlswarm_jax.chain.errors import BadRegistration, ExpiredRegistration, NoContract
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.chain.sender import Settings
from rlswarm_jax.chain.transact import Mined, Payer, check_chain, transact
from rlswarm_jax.identity import Identity

_AT_ONCE = 50  # in a transaction: 4.5 million gas; the contract takes 100
_MARGIN = 120  # seconds before its deadline from which a signature is not sent any more
_DOMAIN = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_REGISTER = "Register(address account,address payout,uint256 deadline)"
_ATTEST = "Attest(address account,string peerId,uint256 deadline)"
# a public key as libp2p writes it: the protobuf {Type: Ed25519 (0x08 0x01), Data (0x12, length 0x20)}; a peer id is
# that in an identity multihash
_ED25519_KEY = bytes.fromhex("08011220")
_ED25519_ID = bytes.fromhex("0024") + _ED25519_KEY


class SignedRegistration(msgspec.Struct, frozen=True):
    """A node's wish to be registered; nothing in it is secret. All bytes are 0x and hex.

    author: 33-byte public key. payout: where its earnings go, NOBODY for its own account. deadline: seconds since
    1970. signature: r, s, v, 65 bytes.
    """

    chain_id: int
    contract: str
    author: str
    payout: str
    deadline: int
    signature: str

    @property
    def account(self) -> str:
        return calls.account_of(_bytes(self.author))


class Attestation(msgspec.Struct, frozen=True):
    """A peer id of an Ed25519 key for an account, as `attestPeer` takes it; nothing in it is secret. Bytes: 0x and hex.

    public_key: as libp2p writes it. peer_signature: by that key, of the digest. account_signature: r, s, v.
    """

    chain_id: int
    contract: str
    account: str
    peer_id: str
    deadline: int
    public_key: str
    peer_signature: str
    account_signature: str


class Relayed(NamedTuple):
    """Accounts that were sent, those passed over because the chain has them, and the transactions."""

    sent: list[str]
    skipped: list[str]
    transactions: list[Mined]


# --- signing


def sign_registration(
    identity: Identity, chain_id: int, contract: str, payout: str | None, deadline: int
) -> SignedRegistration:
    """What a node hands to whoever relays it. deadline: seconds since 1970. Raises ValueError for a wrong address."""
    contract, payout = eth.checksum(contract), eth.checksum(payout or NOBODY)
    _check_number(deadline)
    digest = registration_digest(chain_id, contract, calls.account_of(identity.author), payout, deadline)
    author = "0x" + identity.author.hex()
    return SignedRegistration(chain_id, contract, author, payout, deadline, _sign(identity, digest))


def sign_attestation(identity: Identity, peer_key: bytes, chain_id: int, contract: str, deadline: int) -> Attestation:
    """Both signatures for the peer id of an Ed25519 key. peer_key: its 32 secret bytes. Raises ValueError."""
    contract, account = eth.checksum(contract), calls.account_of(identity.author)
    _check_number(deadline)
    key = Ed25519PrivateKey.from_private_bytes(peer_key)
    public = _ED25519_KEY + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    name = base58.b58encode(_ED25519_ID[:2] + public).decode()
    digest = attestation_digest(chain_id, contract, account, name.encode(), deadline)
    by_peer = "0x" + key.sign(digest).hex()
    return Attestation(
        chain_id, contract, account, name, deadline, "0x" + public.hex(), by_peer, _sign(identity, digest)
    )


def registration_digest(chain_id: int, contract: str, account: str, payout: str, deadline: int) -> bytes:
    """The 32 bytes that a node's key signs to be registered (EIP-712)."""
    fields = eth_abi.encode(
        ["bytes32", "address", "address", "uint256"], [keccak(text=_REGISTER), account, payout, deadline]
    )
    return _digest(chain_id, contract, fields)


def attestation_digest(chain_id: int, contract: str, account: str, name: bytes, deadline: int) -> bytes:
    """The 32 bytes that both keys sign for an attestation (EIP-712). name: the peer id's characters."""
    fields = eth_abi.encode(
        ["bytes32", "address", "bytes32", "uint256"], [keccak(text=_ATTEST), account, keccak(name), deadline]
    )
    return _digest(chain_id, contract, fields)


# --- sending


def relay(
    rpc: Rpc,
    payer: Identity,
    chain_id: int,
    contract: str,
    registrations: Sequence[SignedRegistration],
    *,
    patience: float = 300.0,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    wall_clock: Callable[[], float] = time.time,
) -> Relayed:
    """Registers all that are not registered yet, `payer` paying; several to a transaction. May be repeated.

    Before anything is sent, raises BadRegistration for one that is of another swarm or does not hold,
    ExpiredRegistration for one whose deadline is over or within two minutes, and as `transact`.
    """
    contract = eth.checksum(contract)
    paying = Payer(rpc, payer, chain_id, settings or Settings(), patience, clock, sleep)
    check_chain(rpc, chain_id)
    now = max(eth.head(rpc).timestamp, int(wall_clock()))
    for one in registrations:
        check_registration(one, chain_id, contract, now)
    by_account = {one.account: one for one in registrations}
    known = {account: _kind(rpc, contract, account) for account in by_account}
    new = [account for account, kind in known.items() if not kind]
    sent = []
    for at in range(0, len(new), _AT_ONCE):
        batch = [_argument(by_account[account]) for account in new[at : at + _AT_ONCE]]
        what = f"registering {len(batch)} node{'s' * (len(batch) > 1)}"
        call = abi.encode_call("registerKeys((uint256,uint256,address,uint256,uint8,bytes32,bytes32)[])", (batch,))
        sent.append(transact(paying, contract, call, what))
    return Relayed(new, [account for account in known if account not in new], sent)


def attest(
    rpc: Rpc,
    payer: Identity,
    chain_id: int,
    contract: str,
    attestation: Attestation,
    *,
    patience: float = 300.0,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    wall_clock: Callable[[], float] = time.time,
) -> Mined:
    """Registers a peer by its attestation, `payer` paying. Raises as `relay`; Reverted (PeerIdAlreadyRegistered)."""
    paying = Payer(rpc, payer, chain_id, settings or Settings(), patience, clock, sleep)
    contract, one, who = eth.checksum(contract), attestation, f"the attestation of {attestation.peer_id[:60]}"
    check_chain(rpc, chain_id)
    _check_swarm(one, who, chain_id, contract)
    parts = (_bytes(part) for part in (one.public_key, one.peer_signature, one.account_signature))
    values = (one.account, one.peer_id, one.deadline, *parts)
    # the peer's signature first: it holds for nothing that could not be encoded
    held = check_attestation({"attestation": values}, chain_id, contract)
    if not held or _account_behind(one) != eth.checksum(one.account):
        raise BadRegistration(f"{who} does not hold: have it signed again by both keys.")
    _check_deadline(one.deadline, who, max(eth.head(rpc).timestamp, int(wall_clock())))
    call = abi.encode_call("attestPeer((address,string,uint256,bytes,bytes,bytes))", (values,))
    return transact(paying, contract, call, who)


# --- checking


def check_registration(one: SignedRegistration, chain_id: int, contract: str, now: int) -> None:
    """Raises BadRegistration, ExpiredRegistration, each naming whose it is. now: seconds since 1970."""
    author = _bytes(one.author)
    try:
        account = calls.account_of(author)
        payout = eth.checksum(one.payout)
    except ValueError:
        raise BadRegistration(f"the registration of {one.author[:80]} has no such key or payout address.") from None
    who = f"the registration of {account}"
    _check_swarm(one, who, chain_id, contract)
    try:
        _check_number(one.deadline)
    except ValueError as error:
        raise BadRegistration(f"{who}: {error}") from None
    digest = registration_digest(chain_id, contract, account, payout, one.deadline)
    if _recovered(digest, _bytes(one.signature)) != author:
        raise BadRegistration(f"{who} is not signed by its key as it stands: have it signed again.")
    _check_deadline(one.deadline, who, now)


def check_attestation(fields: Mapping[str, Any], chain_id: int, contract: str) -> bool:
    """Whether the peer's key signed a PeerAttested event's attestation, so that its registration is no invention.

    fields: of the event, as `EventIndex` or `abi.decode_event` gives them. Knows Ed25519 keys; for any other, False.
    """
    try:
        account, name, deadline, public, by_peer, _ = fields["attestation"]
        name, public, by_peer = (_bytes(part) for part in (name, public, by_peer))
        digest = attestation_digest(chain_id, contract, account, name, deadline)
        if base58.b58decode(name) != _ED25519_ID[:2] + public or not public.startswith(_ED25519_KEY):
            return False
        Ed25519PublicKey.from_public_bytes(public[len(_ED25519_KEY) :]).verify(by_peer, digest)
    except (InvalidSignature, KeyError, TypeError, ValueError, eth_abi.exceptions.EncodingError):
        return False
    return True


# --- within


def _digest(chain_id: int, contract: str, fields: bytes) -> bytes:
    name, version = keccak(text="rlswarm_jax coordinator"), keccak(text="1")
    types = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
    domain = keccak(eth_abi.encode(types, [keccak(text=_DOMAIN), name, version, chain_id, contract]))
    return keccak(b"\x19\x01" + domain + keccak(fields))


def _sign(identity: Identity, digest: bytes) -> str:
    raw = coincurve.PrivateKey(identity.expose_secret()).sign_recoverable(digest, hasher=None)
    return "0x" + raw[:64].hex() + f"{27 + raw[64]:02x}"


def _recovered(digest: bytes, signature: bytes) -> bytes | None:
    """The 33-byte key that made a signature r, s, v; None if none did."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        return None
    try:
        raw = signature[:64] + bytes([signature[64] - 27])
        return coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None).format(compressed=True)
    except ValueError:
        return None


def _account_behind(one: Attestation) -> str | None:
    """The account that signed it."""
    digest = attestation_digest(one.chain_id, one.contract, one.account, one.peer_id.encode(), one.deadline)
    author = _recovered(digest, _bytes(one.account_signature))
    return calls.account_of(author) if author else None


def _bytes(value: str | bytes) -> bytes:
    """Of 0x and hex, text as UTF-8; empty for what is neither."""
    if not isinstance(value, str):
        return value
    if not value.startswith("0x"):
        return value.encode()
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        return b""


def _check_swarm(one: SignedRegistration | Attestation, who: str, chain_id: int, contract: str) -> None:
    if (one.chain_id, one.contract.lower()) != (chain_id, contract.lower()):
        raise BadRegistration(f"{who} is for the contract {one.contract[:42]} on chain {one.chain_id}, not this one.")


def _check_number(deadline: int) -> None:
    if not 0 <= deadline < 1 << 63:
        raise ValueError(f"the deadline {deadline} is none: it is in seconds since 1970.")


def _check_deadline(deadline: int, who: str, now: int) -> None:
    if deadline < now + _MARGIN:
        raise ExpiredRegistration(f"{who} is over, or will be within {_MARGIN} s: have it signed again.")


def _kind(rpc: Rpc, contract: str, account: str) -> int:
    """What the contract knows an account as; 0: not at all."""
    answer = eth.call(rpc, contract, abi.encode_call("peerOf(address)", (account,)))
    if not answer:
        raise NoContract(f"there is no coordinator at {contract} on this chain: check the address.")
    return abi.decode(["(uint8,bool,uint32,uint32,uint32,uint32,int112)", "string"], answer)[0][0]


def _argument(one: SignedRegistration) -> tuple:
    signature = _bytes(one.signature)
    r, s, v = signature[:32], signature[32:64], signature[64]
    return (*calls.point(_bytes(one.author)), one.payout, one.deadline, v, r, s)
