"""Puts a coordinator on a chain, and a court beside it; names the bootnodes of a swarm."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlswarm_jax.chain import calls, eth, upgrade
from rlswarm_jax.chain.contracts import coordinator, court
from rlswarm_jax.chain.court import MAX_SIZE, Terms
from rlswarm_jax.chain.errors import BeaconMissing, NoContract, NotAllowed
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.chain.transact import Mined, Payer, transact
from rlswarm_jax.chain.upgrade import Upgrade
from rlswarm_jax.identity import Identity

MAX_BOOTNODES, MAX_BOOTNODE_BYTES = 32, 256  # the contract's


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
    """hash, block, gas: of the transaction that made the contract. paid: wei, for all that was sent."""

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
    w3 = eth.connect(rpc, chain_id)
    payer = Payer(w3, owner, chain_id, settings or Settings(), patience, clock, sleep)
    compiled = w3.eth.contract(abi=coordinator()["abi"], bytecode=coordinator()["bytecode"])
    creation = compiled.constructor(payer.account, tuple(rules)).data_in_transaction
    made = transact(payer, None, bytes.fromhex(creation[2:]), "the coordinator's deployment")
    contract = eth.Contract(w3, made.created)
    sent = [made, *([_set(payer, contract, bootnodes)] if bootnodes else [])]
    # the beacon is a later block's hash, and the transaction after that block puts it on record: two at most, even
    # where a block is made only for a transaction
    for _ in range(3):
        if calls.read_status(contract).beacon:
            return Deployment(made.created, made.hash, made.block, made.gas, sum(one.paid for one in sent))
        finalize = contract.encode("finalizeBeacon")
        sent.append(transact(payer, made.created, finalize, "recording the first beacon", gas=100_000))
    raise BeaconMissing(f"the coordinator at {made.created} has no beacon for round 0 yet: call finalizeBeacon.")


def deploy_court(
    rpc: Rpc,
    identity: Identity,
    chain_id: int,
    address: str,
    given: Terms,
    *,
    patience: float = 300.0,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Deployment:
    """Makes a court that judges what the peers of a coordinator commit to; nobody owns it.

    Raises ValueError for terms that the contract would refuse, NoContract where there is no coordinator of this
    version; and as `deploy`.
    """
    w3 = eth.connect(rpc, chain_id)
    there = calls.probe(eth.Contract(w3, address))
    if not there.ours:
        raise NoContract(f"the coordinator at {address} takes no commitments, so no court can judge them.")
    check_terms(given, there.window)
    payer = Payer(w3, identity, chain_id, settings or Settings(), patience, clock, sleep)
    compiled = w3.eth.contract(abi=court()["abi"], bytecode=court()["bytecode"])
    creation = compiled.constructor(calls.checksum(address), tuple(given)).data_in_transaction
    made = transact(payer, None, bytes.fromhex(creation[2:]), "the court's deployment")
    return Deployment(made.created, made.hash, made.block, made.gas, made.paid)


def terms(stake: int, nodes: int) -> Terms:
    """What suits a swarm of that many nodes, at least three: an odd committee of at most five, without the two sides.

    stake: wei; a bond is half of it, which is what a winner gets: so who has less than half of all stakes, and of a
    committee, loses by accusing others falsely. A committee's fees are a quarter of a bond.
    """
    size = min(5, nodes - 2 - (nodes + 1) % 2)
    bond = max(1, stake // 2)
    return Terms(stake, bond, bond // (4 * size), size=size, quorum=size // 2 + 1)


def check_terms(given: Terms, window: int) -> None:
    """Raises ValueError, in one sentence, for terms that the contract would refuse. window: the coordinator's."""
    least = min(given.stake, given.bond)
    for name, low, high in (
        ("size", 1, MAX_SIZE),
        ("quorum", 1, given.size),
        ("stake", 1, (1 << 96) - 1),
        ("bond", 1, (1 << 96) - 1),
        ("fee", 0, least // (2 * max(1, given.size))),  # a committee's are at most half of what a loser loses
        ("voting", 1, (1 << 16) - 1),
        ("claims", window + 1, 1 << 24),  # a settlement may come as late
        ("delay", given.claims + 1, 1 << 24),
    ):
        if not low <= getattr(given, name) <= high:
            raise ValueError(f"a court's {name} is {getattr(given, name)}; it must be from {low} to {high}.")


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
    """Makes a coordinator's bootnodes these; the transaction it took, None if it is so already.

    May be repeated after a failure. Raises NotAllowed if the account is not the owner, NoContract, and as `deploy`.
    """
    check_bootnodes(bootnodes)
    how = settings, patience, clock, sleep

    def listed(before: list[str]) -> list[str]:
        named = upgrade.read(before)
        return [*bootnodes, *([named.text] if named else [])]

    return _replace(rpc, owner, chain_id, address, listed, *how)


def set_upgrade(rpc: Rpc, owner: Identity, chain_id: int, address: str, named: Upgrade | None) -> Mined | None:
    """Has a coordinator say from which round on another version is played, or no more; else as `set_bootnodes`."""

    def listed(before: list[str]) -> list[str]:
        return [*upgrade.without(before), *([named.text] if named else [])]

    return _replace(rpc, owner, chain_id, address, listed)


def _replace(
    rpc: Rpc,
    owner: Identity,
    chain_id: int,
    address: str,
    listed: Callable[[list[str]], list[str]],
    settings: Settings | None = None,
    patience: float = 300.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Mined | None:
    """listed: what a coordinator's list is to be, by what it is."""
    w3 = eth.connect(rpc, chain_id)
    payer = Payer(w3, owner, chain_id, settings or Settings(), patience, clock, sleep)
    contract = eth.Contract(w3, address)
    before = list(contract.view("getBootnodes"))
    entries = listed(before)
    check_bootnodes(entries)
    if before == entries:
        return None
    if contract.view("owner") != payer.account:
        raise NotAllowed(
            f"the account {payer.account} does not own the coordinator at {contract.address}: use its owner's key."
        )
    return _set(payer, contract, entries)


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


def _set(payer: Payer, contract: eth.Contract, bootnodes: Sequence[str]) -> Mined:
    return transact(payer, contract.address, contract.encode("setBootnodes", list(bootnodes)), "setting the bootnodes")
