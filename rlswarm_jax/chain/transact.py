"""One transaction now, for a program that waits for it: deploying, naming bootnodes, relaying registrations.

A node's own transactions go through its outbox instead, which survives a restart. The key must not be that of a node
that is running: both would use the same nonces.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import rlp
from eth_utils import keccak

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.errors import (
    ChainError,
    EndpointDown,
    InsufficientFunds,
    MalformedAnswer,
    NotMined,
    Refused,
    WrongChain,
)
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.chain.sender import Settings
from rlswarm_jax.chain.signing import GWEI, Price, Signed, ask_price, sign
from rlswarm_jax.identity import Identity

log = logging.getLogger("rlswarm_jax.chain")

_FIRST_LOOK, _LAST_LOOK = 0.05, 2.0  # seconds from one look at a receipt to the next, doubling
MAX_GAS = 12_000_000  # of a transaction: a deployment takes 5 million


class Payer(NamedTuple):
    """Who pays, where. settings: its limits max_fee and max_tip hold. patience: seconds until a block must have it."""

    rpc: Rpc
    identity: Identity
    chain_id: int
    settings: Settings = Settings()
    patience: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def account(self) -> str:
        return calls.account_of(self.identity.author)


class Mined(NamedTuple):
    """A transaction that succeeded. gas: used; paid: wei. created: address of the contract that it would make."""

    hash: str
    block: int
    gas: int
    paid: int
    created: str


def check_chain(rpc: Rpc, chain_id: int) -> None:
    """Raises WrongChain if the endpoint serves another chain, EndpointDown, MalformedAnswer."""
    found = eth.chain_id(rpc)
    if found != chain_id:
        raise WrongChain(f"the endpoint serves chain {found}, not {chain_id}: check its address, or the chain id.")


def transact(payer: Payer, target: str | None, calldata: bytes, what: str, gas: int | None = None) -> Mined:
    """Sends a transaction and waits for its block; target None: it makes a contract. what: in words, for the log.

    gas: of a call whose estimate would mislead. Once it is sent, an endpoint that is away is asked again.
    Raises Reverted if it would fail, and before anything is sent WrongChain, InsufficientFunds, Refused, EndpointDown,
    MalformedAnswer; NotMined if it fails in its block, or if patience ends.
    """
    rpc = payer.rpc
    check_chain(rpc, payer.chain_id)
    if gas is None:
        estimate = eth.estimate(rpc, target, calldata, payer.account)
        gas = estimate + estimate // 4 + 30_000
    if gas > MAX_GAS:
        raise ChainError(f"the endpoint asks {gas:,} gas for {what}, where at most {MAX_GAS:,} are sensible.")
    price = _affordable(payer, gas, what)
    nonce = eth.nonce(rpc, payer.account)
    signed = sign(payer.identity, payer.chain_id, nonce, target, calldata, gas, price)
    receipt = _hand_in(payer, signed, what)
    if not receipt.ok:
        raise NotMined(f"transaction {signed.hash} ({what}) failed in block {receipt.block}: try again.")
    created = keccak(rlp.encode([bytes.fromhex(payer.account[2:]), nonce]))[12:]
    paid = receipt.gas * receipt.price
    return Mined(signed.hash, receipt.block, receipt.gas, paid, eth.checksum("0x" + created.hex()))


def _affordable(payer: Payer, gas: int, what: str) -> Price:
    head = eth.head(payer.rpc)
    limits = payer.settings.max_fee, payer.settings.max_tip
    price = ask_price(payer.rpc, payer.account, head, *limits)
    if head.base_fee is not None and price.fee < head.base_fee:
        raise ChainError(
            f"the base fee is {head.base_fee / GWEI:.3f} gwei, above the limit of {limits[0] / GWEI:g}: try later."
        )
    there = eth.balance(payer.rpc, payer.account) if price.fee else 0
    if there < gas * price.fee:
        raise InsufficientFunds(
            f"the account {payer.account} has {there / 10**18:.6f} coins, and {what} may take"
            f" {gas * price.fee / 10**18:.6f}: send it some."
        )
    return price


def _hand_in(payer: Payer, signed: Signed, what: str) -> eth.Receipt:
    """Sends it, again if the endpoint was away, until it is in a block."""
    until, wait, tried, sent = payer.clock() + payer.patience, _FIRST_LOOK, False, False
    while True:
        try:
            if not sent:
                _send(payer.rpc, signed, tried)
                sent = True
                log.info("sent %s: transaction %s.", what, signed.hash)
            if receipt := eth.receipt(payer.rpc, signed.hash):
                return receipt
        except (EndpointDown, MalformedAnswer) as error:  # also what a proxy says while the server is away
            log.info("%s", error)
        tried = True
        if payer.clock() >= until:
            raise NotMined(
                f"transaction {signed.hash} ({what}) is in no block after {payer.patience:g} s, but may still come:"
                " look for it before you try again."
            )
        payer.sleep(wait)
        wait = min(2 * wait, _LAST_LOOK)


def _send(rpc: Rpc, signed: Signed, again: bool) -> None:
    """Raises Refused, but not if it may have been taken before, which a receipt will tell."""
    try:
        eth.send(rpc, signed.raw)
    except Refused as error:
        if not again and not any(word in error.words.lower() for word in ("known", "imported")):
            raise
