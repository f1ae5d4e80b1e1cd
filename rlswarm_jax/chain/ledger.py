"""Who did what in which round, by the chain's events: what reports, audits and dashboards know of a swarm's chain."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rlswarm_jax.chain.calls import account_of, checksum
from rlswarm_jax.chain.errors import MalformedAnswer, NoContract
from rlswarm_jax.chain.rpc import Endpoint, Patient, Rpc
from rlswarm_jax.identity import peer_id

if TYPE_CHECKING:
    from rlswarm_jax.chain.events import Entry, EventIndex

PATIENCE = 120.0  # seconds that a call waits for an endpoint that is asked too much


class Peer(msgspec.Struct, frozen=True):
    """A registration. kind: proven (by the key that the id holds), or claimed: on the original's contracts, which check
    nothing.

    payout: where its earnings go. hash: of the transaction; accounts have their checksum, here and below.
    """

    account: str
    peer_id: str
    kind: str
    payout: str
    hash: str


class Commitment(msgspec.Struct, frozen=True):
    """root, first, last, state_before, state_after, config: 32 bytes, 0x and hex. count: of the records it covers."""

    account: str
    root: str
    first: str
    last: str
    count: int
    state_before: str
    state_after: str
    config: str
    hash: str


class Reward(msgspec.Struct, frozen=True):
    """A claim; of a settlement, one for each stage. amount: in millionths of a full mark."""

    account: str
    stage: int
    amount: int
    hash: str


class Vote(msgspec.Struct, frozen=True):
    """winners: peer ids; of a settlement those that count."""

    account: str
    winners: list[str]
    hash: str


class Weights(msgspec.Struct, frozen=True):
    account: str
    weights: str
    uri: str
    hash: str


class Round(msgspec.Struct, frozen=True):
    """beacon: empty if it is not on record. advanced: the transaction that began it; empty for round 0."""

    number: int
    beacon: str
    advanced: str
    commitments: list[Commitment]
    rewards: list[Reward]
    votes: list[Vote]
    weights: list[Weights] = []


class Total(msgspec.Struct, frozen=True):
    """What an account claims in all, and how many votes it received."""

    reward: int
    votes: int


class Ledger(msgspec.Struct, frozen=True):
    """block: up to which the chain was read. totals: by account."""

    contract: str
    chain_id: int
    block: int
    peers: list[Peer]
    rounds: list[Round]
    totals: dict[str, Total]


def read_ledger(url: str, contract: str, chain_id: int, index_path: Path, *, first_block: int | None = None) -> Ledger:
    """All that a coordinator's events say.

    index_path: a SQLite file, made if there is none; what it has is not read again. first_block: that of the
    deployment, or any before it; searched for if it is None. Raises ChainError (WrongChain, NoContract, EndpointDown,
    ...), ValueError for an address or URL that is none.
    """
    from rlswarm_jax.chain.eth import connect  # here: reports need none of it

    endpoint = Endpoint(url)
    try:
        rpc = Patient(endpoint, PATIENCE)
        if not connect(rpc, chain_id).eth.get_code(checksum(contract)):
            raise NoContract(f"there is no contract at {contract} on chain {chain_id}: check the address.")
        if first_block is None and index_path.exists():
            first_block = 0
        with events_of(rpc, contract, index_path, first_block) as index:
            block = index.position[0] if index.position else 0
            return Ledger(checksum(contract), chain_id, block, peers(index), rounds(index), totals(index))
    finally:
        endpoint.close()


@contextlib.contextmanager
def events_of(rpc: Rpc, contract: str, path: Path, first_block: int | None = None) -> "Iterator[EventIndex]":
    """All events of a coordinator up to now, open while the `with` block lasts. Arguments and errors: `read_ledger`."""
    from rlswarm_jax.chain.events import EventIndex, find_first_block

    if first_block is None:
        first_block = find_first_block(rpc, contract)
    index = EventIndex(rpc, contract, path, first_block)
    try:
        while not index.pull():
            pass
        yield index
    finally:
        index.close()


# --- of an index


def peers(index: "EventIndex") -> list[Peer]:
    """All registrations in their order. Raises MalformedAnswer for a key that is not the account's."""
    payouts = {one.fields["account"]: one.fields["payout"] for one in index.entries("PayoutSet")}
    found = [(one.fields["account"], _peer_id(one), "proven", one.hash) for one in index.entries("Registered")]
    found += [(one.fields["eoa"], one.fields["peerId"], "claimed", one.hash) for one in index.entries("PeerRegistered")]
    return [
        Peer(checksum(account), name, kind, checksum(payouts.get(account, account)), hash_)
        for account, name, kind, hash_ in found
    ]


def rounds(index: "EventIndex") -> list[Round]:
    """All rounds that anything is on record of; all of it in the chain's order."""
    names = {peer.account: peer.peer_id for peer in peers(index) if peer.kind == "proven"}
    return [_round(index, number, names) for number in index.rounds()]


def totals(index: "EventIndex") -> dict[str, Total]:
    """By account: what it claims, and the votes it received; by peer id, where that is all that is known."""
    accounts = {peer.peer_id: peer.account for peer in peers(index) if peer.kind == "proven"}
    claimed, votes = Counter[str](), Counter[str]()
    for one in rounds(index):
        for reward in one.rewards:
            claimed[reward.account] += reward.amount
        for vote in one.votes:
            votes.update(accounts.get(winner, winner) for winner in vote.winners)
    return {account: Total(claimed[account], votes[account]) for account in dict.fromkeys([*claimed, *votes])}


def _round(index: "EventIndex", number: int, names: dict[str, str]) -> Round:
    """names: peer ids by account."""

    def said(name: str) -> list[tuple[str, dict, str]]:
        return [(checksum(one.fields["account"]), one.fields, one.hash) for one in index.entries(name, number)]

    commitments = []
    rewards = [Reward(who, has["stageNumber"], has["reward"], tx) for who, has, tx in said("RewardSubmitted")]
    votes = [Vote(who, has["winners"], tx) for who, has, tx in said("WinnerSubmitted")]
    for who, has, tx in said("Settled"):
        root, first, last, count, before, after, config = has["commitment"].values()
        commitments.append(Commitment(who, root, first, last, count, before, after, config, tx))
        rewards += [Reward(who, stage, amount, tx) for stage, amount in enumerate(has["claims"]) if amount]
        if has["winners"]:
            votes.append(Vote(who, [names.get(winner, winner) for winner in has["winners"]], tx))
    beacons, began = index.entries("BeaconFinalized", number), index.entries("RoundAdvanced", number)
    beacon, advanced = beacons[-1].fields["beacon"] if beacons else "", began[-1].hash if began else ""
    weights = [Weights(who, has["weights"], has["uri"], tx) for who, has, tx in said("WeightsPublished")]
    return Round(number, beacon, advanced, commitments, rewards, votes, weights)


def _peer_id(entry: "Entry") -> str:
    has = entry.fields
    author = bytes([2 + has["y"] % 2]) + has["x"].to_bytes(32)
    try:
        proven = account_of(author) == checksum(has["account"])
    except ValueError:
        proven = False
    if not proven:
        raise MalformedAnswer(f"the chain endpoint says that {has['account']} was registered by another's key.")
    return peer_id(author)
