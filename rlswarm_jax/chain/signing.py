"""What a transaction offers to pay, and its signed bytes."""

from typing import NamedTuple

from rlswarm_jax.chain import eth
from rlswarm_jax.chain.account import Account
from rlswarm_jax.chain.errors import Refused
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.identity import Identity

GWEI = 10**9


class Price(NamedTuple):
    """Wei per gas. tip None: a legacy transaction."""

    fee: int
    tip: int | None


class Signed(NamedTuple):
    """hash: 0x and hex."""

    hash: str
    raw: bytes


def ask_price(rpc: Rpc, account: str, head: eth.Head, max_fee: int, max_tip: int) -> Price:
    """What the moment asks, up to limits in wei per gas: room for the base fee to double, and the suggested tip.

    Where the base fee is zero, an account that has nothing offers nothing: anvil suggests a tip even there.
    """
    if head.base_fee is None:
        return Price(min(eth.gas_price(rpc), max_fee), None)
    try:
        tip = min(eth.tip(rpc), max_tip, max_fee)
    except Refused:  # not every server suggests one
        tip = 0 if head.base_fee == 0 else min(GWEI, max_tip)
    if tip and head.base_fee == 0 and eth.balance(rpc, account) == 0:
        tip = 0
    return Price(min(2 * head.base_fee + tip, max_fee), tip)


def sign(
    identity: Identity, chain_id: int, nonce: int, target: str | None, calldata: bytes, gas: int, price: Price
) -> Signed:
    """A transaction without value; target None: it makes a contract."""
    fields = {"nonce": nonce, "data": calldata, "gas": gas, "value": 0, "chainId": chain_id}
    if target is not None:
        fields["to"] = target
    if price.tip is None:
        fields["gasPrice"] = price.fee
    else:
        fields |= {"type": 2, "maxFeePerGas": price.fee, "maxPriorityFeePerGas": price.tip}
    signed = Account.sign_transaction(fields, identity.expose_secret())
    return Signed("0x" + bytes(signed.hash).hex(), bytes(signed.raw_transaction))
