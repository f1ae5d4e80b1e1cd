"""Registration by signature (EIP-712), so that a node needs no funds: it signs, and whoever pays sends.

signed = sign_registration(node, chain_id, contract, payout=None, deadline=int(time.time()) + 86400)
relay(rpc, payer, chain_id, contract, [signed, ...])
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import coincurve
import msgspec
from eth_utils import keccak

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.calls import NOBODY, checksum
from rlswarm_jax.chain.errors import BadRegistration, ExpiredRegistration
from rlswarm_jax.chain.library import messages, web3
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.chain.transact import Mined, Payer, transact
from rlswarm_jax.identity import Identity

_AT_ONCE = 50  # in a transaction: 3 million gas; the contract takes 100
_MARGIN = 120  # seconds before its deadline from which a signature is not sent any more
_FIELDS = (("account", "address"), ("payout", "address"), ("deadline", "uint256"))


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
    contract, payout = checksum(contract), checksum(payout or NOBODY)
    _check_number(deadline)
    account, author = calls.account_of(identity.author), "0x" + identity.author.hex()
    signed = web3.Account.sign_message(
        _message(chain_id, contract, account, payout, deadline), identity.expose_secret()
    )
    return SignedRegistration(chain_id, contract, author, payout, deadline, "0x" + bytes(signed.signature).hex())


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
    contract = checksum(contract)
    w3 = eth.connect(rpc, chain_id)
    paying, there = (
        Payer(w3, payer, chain_id, settings or Settings(), patience, clock, sleep),
        eth.Contract(w3, contract),
    )
    now = max(w3.eth.get_block("latest")["timestamp"], int(wall_clock()))
    for one in registrations:
        check_registration(one, chain_id, contract, now)
    by_account = {one.account: one for one in registrations}
    new = [account for account in by_account if not there.view("peerOf", account)[0]]
    sent = []
    for at in range(0, len(new), _AT_ONCE):
        batch = [_argument(by_account[account]) for account in new[at : at + _AT_ONCE]]
        what = f"registering {len(batch)} node{'s' * (len(batch) > 1)}"
        sent.append(transact(paying, contract, there.encode("registerFor", batch), what))
    return Relayed(new, [account for account in by_account if account not in new], sent)


# --- checking


def check_registration(one: SignedRegistration, chain_id: int, contract: str, now: int) -> None:
    """Raises BadRegistration, ExpiredRegistration, each naming whose it is. now: seconds since 1970."""
    try:
        account, payout = one.account, checksum(one.payout)
    except ValueError:
        raise BadRegistration(f"the registration of {one.author[:80]} has no such key or payout address.") from None
    who = f"the registration of {account}"
    if (one.chain_id, one.contract.lower()) != (chain_id, contract.lower()):
        raise BadRegistration(f"{who} is for the contract {one.contract[:42]} on chain {one.chain_id}, not this one.")
    try:
        _check_number(one.deadline)
    except ValueError as error:
        raise BadRegistration(f"{who}: {error}") from None
    if _signer(_message(chain_id, contract, account, payout, one.deadline), _bytes(one.signature)) != account:
        raise BadRegistration(f"{who} is not signed by its key as it stands: have it signed again.")
    if one.deadline < now + _MARGIN:
        raise ExpiredRegistration(f"{who} is over, or will be within {_MARGIN} s: have it signed again.")


# --- within


def _message(chain_id: int, contract: str, account: str, payout: str, deadline: int) -> messages.SignableMessage:
    """What a node's key signs to be registered (EIP-712)."""
    name = "rlswarm_jax coordinator"
    domain = {"name": name, "version": "2", "chainId": chain_id, "verifyingContract": contract}
    types = {"Register": [{"name": name, "type": type_} for name, type_ in _FIELDS]}
    return messages.encode_typed_data(domain, types, {"account": account, "payout": payout, "deadline": deadline})


def _signer(message: messages.SignableMessage, signature: bytes) -> str | None:
    """The account that made a signature r, s, v; None if none did."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        return None
    digest = keccak(b"\x19" + message.version + message.header + message.body)
    raw = signature[:64] + bytes([signature[64] - 27])
    try:
        return calls.account_of(coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None).format())
    except ValueError:
        return None


def _bytes(value: str) -> bytes:
    """Of 0x and hex; empty for what is neither."""
    try:
        return bytes.fromhex(value[2:]) if value.startswith("0x") else b""
    except ValueError:
        return b""


def _check_number(deadline: int) -> None:
    if not 0 <= deadline < 1 << 63:
        raise ValueError(f"the deadline {deadline} is none: it is in seconds since 1970.")


def _argument(one: SignedRegistration) -> tuple:
    signature = _bytes(one.signature)
    r, s, v = signature[:32], signature[32:64], signature[64]
    return (*calls.point(_bytes(one.author)), one.payout, one.deadline, v, r, s)
