"""Puts a coordinator on a chain, and names the bootnodes of its swarm."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import eth_abi

from rlswarm_jax.chain import abi, calls, eth
from rlswarm_jax.chain.contracts import coordinator
from rlswarm_jax.chain.errors import BeaconMissing, NoContract, NotAllowed
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.chain.sender import Settings
from rlswarm_jax.chain.transact import Mined, Payer, check_chain, transact
from rlswarm_jax.identity import Identity

MAX_BOOTNODES, MAX_BOOTNODE_BYTES = 32, 256  # the contract's
_SHORT = 10_000  # blocks of a chain that is read whole


class Rules(NamedTuple):
    """What a swarm is deployed with; nobody can change it.

    min_seconds: of a round with a quorum: a brake, not the clock. max_seconds: after which anyone may end a round.
    quorum: settlements that a round takes at least; two thirds of those of the round before count, too. window: past
    rounds that still take settlements, for nodes that were away. max_reward: of a peer for one stage, of either sign,
    in millionths of a full mark: a bound on claims, far above what can be earned.
    """

    min_seconds: int = 30
    max_seconds: int = 300
    quorum: int = 1
    window: int = 64
    max_reward: int = 10**12


class Deployment(NamedTuple):
    """hash, block, gas: of the transaction that made the contract. paid: wei, for all that `deploy` sent."""

    address: str
    hash: str
    block: int
    gas: int
    paid: int


def deploy(
    rpc: Rpc,
    owner: Identity,
    chain_id: int,
    rules: Rules,
    bootnodes: Sequence[str] = (),
    *,
    patience: float = 300.0,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Deployment:
    """Makes a coordinator that `owner` owns and pays for; when it returns, round 0 has its beacon.

    patience: seconds that each transaction may take. Not repeatable: each call makes another contract.
    Raises ValueError for rules or bootnodes that the contract would refuse; WrongChain, InsufficientFunds, Refused,
    EndpointDown, MalformedAnswer before anything is sent; NotMined, BeaconMissing.
    """
    check_rules(rules)
    check_bootnodes(bootnodes)
    payer = Payer(rpc, owner, chain_id, settings or Settings(), patience, clock, sleep)
    types = ["address", "(uint32,uint32,uint32,uint32,uint64)"]
    creation = bytes.fromhex(coordinator()["bytecode"][2:]) + eth_abi.encode(types, [payer.account, tuple(rules)])
    made = transact(payer, None, creation, "the coordinator's deployment")
    sent = [made, *([_set(payer, made.created, bootnodes)] if bootnodes else [])]
    # the beacon is a later block's hash, and the transaction after that block puts it on record: two at most, even
    # where a block is made only for a transaction
    for _ in range(3):
        if any(read_status(rpc, made.created).beacon):
            return Deployment(made.created, made.hash, made.block, made.gas, sum(one.paid for one in sent))
        finalize = abi.encode_call("finalizeBeacon()", ())
        sent.append(transact(payer, made.created, finalize, "recording the first beacon", gas=100_000))
    raise BeaconMissing(f"the coordinator at {made.created} has no beacon for round 0 yet: call finalizeBeacon.")


def set_bootnodes(
    rpc: Rpc,
    owner: Identity,
    chain_id: int,
    address: str,
    bootnodes: Sequence[str],
    *,
    patience: float = 300.0,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Mined | None:
    """Makes a coordinator's list of bootnodes this one; the transaction it took, None if it is so already.

    May be repeated after a failure. Raises NotAllowed if the account is not the owner, NoContract, and as `deploy`.
    """
    check_bootnodes(bootnodes)
    payer = Payer(rpc, owner, chain_id, settings or Settings(), patience, clock, sleep)
    check_chain(rpc, chain_id)
    address = eth.checksum(address)
    if list(read_bootnodes(rpc, address)) == list(bootnodes):
        return None
    if eth.checksum(_view(rpc, address, "owner()", (), ["address"])[0]) != payer.account:
        raise NotAllowed(f"the account {payer.account} does not own the coordinator at {address}: use its owner's key.")
    return _set(payer, address, bootnodes)


def first_block(rpc: Rpc, address: str) -> int:
    """A block from which on all of a contract's events are: its deployment's, searched for on a long chain.

    Raises NoContract, EndpointDown, MalformedAnswer; Refused by an endpoint that has no old state.
    """
    address, low, high = eth.checksum(address), 0, eth.head(rpc).number
    if high < _SHORT:
        return 0
    if not eth.has_code(rpc, address):
        raise NoContract(f"there is no contract at {address} on this chain: check the address.")
    while low < high:
        middle = (low + high) // 2
        if eth.has_code(rpc, address, middle):
            high = middle
        else:
            low = middle + 1
    return low


def read_bootnodes(rpc: Rpc, address: str) -> Sequence[str]:
    """A coordinator's bootnodes: unchecked text. Raises NoContract, EndpointDown, MalformedAnswer."""
    return _view(rpc, address, "getBootnodes()", (), ["string[]"])[0]


def read_status(rpc: Rpc, address: str) -> calls.Now:
    """The contract's own account of the moment. Raises NoContract, EndpointDown, MalformedAnswer."""
    return calls.read_now(_view(rpc, address, "status()", (), calls.STATUS))


def read_rules(rpc: Rpc, address: str) -> Rules:
    """What a coordinator was deployed with. Raises NoContract, EndpointDown, MalformedAnswer."""
    return Rules(*_view(rpc, address, "rules()", (), calls.RULES))


def check_rules(rules: Rules) -> None:
    """Raises ValueError, in one sentence, for rules that the contract would refuse."""
    below = {
        "min_seconds": 1 << 32,
        "max_seconds": 1 << 32,
        "quorum": 1 << 32,
        "window": 1 << 32,
        "max_reward": 1 << 63,
    }
    for name, limit in below.items():
        least = 1 if name in ("max_seconds", "window") else 0
        if not least <= getattr(rules, name) < limit:
            raise ValueError(f"{name} is {getattr(rules, name)}; it must be at least {least} and below {limit}.")
    if rules.max_seconds < rules.min_seconds:
        raise ValueError(
            f"max_seconds is {rules.max_seconds}, below min_seconds of {rules.min_seconds}: a round's longest time is"
            " at least its shortest."
        )


def check_bootnodes(bootnodes: Sequence[str]) -> None:
    """Raises ValueError, in one sentence, for a list that the contract would refuse."""
    if len(bootnodes) > MAX_BOOTNODES:
        raise ValueError(f"{len(bootnodes)} bootnodes are too many: a coordinator names at most {MAX_BOOTNODES}.")
    for one in bootnodes:
        if not 0 < len(one.encode()) <= MAX_BOOTNODE_BYTES:
            raise ValueError(f"the bootnode {one[:60]!r} has {len(one.encode())} bytes; it needs 1 to 256.")


def _set(payer: Payer, address: str, bootnodes: Sequence[str]) -> Mined:
    call = abi.encode_call("setBootnodes(string[])", (list(bootnodes),))
    return transact(payer, address, call, "setting the bootnodes")


def _view(rpc: Rpc, address: str, signature: str, arguments: tuple, types: list[str]) -> tuple[Any, ...]:
    answer = eth.call(rpc, address, abi.encode_call(signature, arguments))
    if not answer:
        raise NoContract(f"there is no coordinator at {address} on this chain: check the address.")
    return abi.decode(types, answer)
