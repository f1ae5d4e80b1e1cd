"""What a transaction offers to pay, and its signed bytes."""

from typing import TYPE_CHECKING, Any, NamedTuple

from rlswarm_jax.chain.errors import Refused
from rlswarm_jax.chain.library import web3
from rlswarm_jax.chain.settings import GWEI
from rlswarm_jax.identity import Identity

if TYPE_CHECKING:
    from web3.types import BlockData


class Price(NamedTuple):
    """Wei per gas. tip None: a legacy transaction."""

    fee: int
    tip: int | None


class Signed(NamedTuple):
    """hash: 0x and hex."""

    hash: str
    raw: bytes


def ask_price(w3: web3.Web3, account: str, head: "BlockData", max_fee: int, max_tip: int) -> Price:
    """What the moment asks, up to limits in wei per gas: room for the base fee to double, and the suggested tip.

    Where the base fee is zero, an account that has nothing offers nothing: anvil suggests a tip even there.
    """
    base = head.get("baseFeePerGas")
    if base is None:
        return Price(min(w3.eth.gas_price, max_fee), None)
    try:
        tip = min(w3.eth.max_priority_fee, max_tip, max_fee)
    except Refused:  # not every server suggests one
        tip = 0 if base == 0 else min(GWEI, max_tip)
    if tip and base == 0 and w3.eth.get_balance(account) == 0:
        tip = 0
    return Price(min(2 * base + tip, max_fee), tip)


def sign(
    identity: Identity,
    chain_id: int,
    nonce: int,
    target: str | None,
    calldata: bytes,
    gas: int,
    price: Price,
    value: int = 0,
) -> Signed:
    """A transaction. target None: it makes a contract. value: wei that go with it."""
    fields: dict[str, Any] = {"nonce": nonce, "data": calldata, "gas": gas, "value": value, "chainId": chain_id}
    if target is not None:
        fields["to"] = target
    if price.tip is None:
        fields["gasPrice"] = price.fee
    else:
        fields |= {"type": 2, "maxFeePerGas": price.fee, "maxPriorityFeePerGas": price.tip}
    signed = web3.Account.sign_transaction(fields, identity.expose_secret())
    return Signed("0x" + bytes(signed.hash).hex(), bytes(signed.raw_transaction))
