"""Who did what in which round, by the chain's events, for reports and dashboards: functions of an `EventIndex`."""

from typing import NamedTuple

from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.chain.eth import checksum
from rlswarm_jax.chain.events import Entry, EventIndex
from rlswarm_jax.identity import author_of


class Peer(NamedTuple):
    """A registration. kind: proven (the id holds the account's key), attested, claimed (counts for nothing), struck.

    payout: where its earnings go. hash: of the transaction; accounts have their checksum, here and below.
    """

    account: str
    peer_id: str
    kind: str
    payout: str
    hash: str


class Commitment(NamedTuple):
    """root, before, after, config: as committed to, 0x and hex."""

    account: str
    root: str
    before: str
    after: str
    config: str
    hash: str


class Reward(NamedTuple):
    """amount: in the swarm's fixed-point units."""

    account: str
    peer_id: str
    stage: int
    amount: int
    hash: str


class Vote(NamedTuple):
    """winners: peer ids."""

    account: str
    peer_id: str
    winners: tuple[str, ...]
    hash: str


class Weights(NamedTuple):
    account: str
    weights_hash: str
    uri: str
    hash: str


class Round(NamedTuple):
    """beacon: 0x and hex; empty if not on record. began: the transaction that advanced to it; empty for round 0."""

    number: int
    beacon: str
    began: str
    commitments: tuple[Commitment, ...]
    rewards: tuple[Reward, ...]
    votes: tuple[Vote, ...]
    weights: tuple[Weights, ...]

    @property
    def total(self) -> int:
        """Of all its rewards."""
        return sum(one.amount for one in self.rewards)


def peers(index: EventIndex) -> list[Peer]:
    """All registrations in their order; of one account, what is proven or attested and what is merely claimed."""
    attested = {entry.hash: entry.fields["account"] for entry in index.entries("PeerAttested")}
    struck = {entry.fields["account"] for entry in index.entries("AttestationStruck")}
    payouts = {entry.fields["account"]: entry.fields["payout"] for entry in index.entries("PayoutSet")}
    found = []
    for entry in index.entries("PeerRegistered"):
        account, peer_id = entry.fields["eoa"], entry.fields["peerId"]
        author = author_of(peer_id)
        if author is not None and account_of(author) == checksum(account):
            kind = "proven"
        elif attested.get(entry.hash) == account:
            kind = "struck" if account in struck else "attested"
        else:
            kind = "claimed"
        found.append(Peer(checksum(account), peer_id, kind, checksum(payouts.get(account, account)), entry.hash))
    return found


def round_of(index: EventIndex, number: int) -> Round:
    """What is on record of a round; all of it in the chain's order."""
    beacons = index.entries("BeaconFinalized", number)
    began = index.entries("RoundAdvanced", number)
    return Round(
        number,
        beacons[-1].fields["beacon"] if beacons else "",
        began[-1].hash if began else "",
        tuple(_commitment(entry) for entry in index.entries("Committed", number)),
        tuple(_reward(entry) for entry in index.entries("RewardSubmitted", number)),
        tuple(_vote(entry) for entry in index.entries("WinnerSubmitted", number)),
        tuple(_weights(entry) for entry in index.entries("WeightsPublished", number)),
    )


def rounds(index: EventIndex) -> list[Round]:
    """All rounds that anything is on record of."""
    return [round_of(index, number) for number in index.rounds()]


def totals(index: EventIndex) -> dict[str, tuple[int, int]]:
    """By account: the sum of its rewards, and the votes it received."""
    by_id = {peer.peer_id: peer.account for peer in peers(index) if peer.kind != "claimed"}
    found: dict[str, tuple[int, int]] = {}
    for entry in index.entries("RewardSubmitted"):
        account = checksum(entry.fields["account"])
        amount, wins = found.get(account, (0, 0))
        found[account] = (amount + entry.fields["reward"], wins)
    for entry in index.entries("WinnerSubmitted"):
        for winner in entry.fields["winners"]:
            amount, wins = found.get(by_id.get(winner, winner), (0, 0))
            found[by_id.get(winner, winner)] = (amount, wins + 1)
    return found


def _commitment(entry: Entry) -> Commitment:
    has = entry.fields
    return Commitment(
        checksum(has["account"]), has["root"], has["stateBefore"], has["stateAfter"], has["configHash"], entry.hash
    )


def _reward(entry: Entry) -> Reward:
    has = entry.fields
    return Reward(checksum(has["account"]), has["peerId"], has["stageNumber"], has["reward"], entry.hash)


def _vote(entry: Entry) -> Vote:
    has = entry.fields
    return Vote(checksum(has["account"]), has["peerId"], tuple(has["winners"]), entry.hash)


def _weights(entry: Entry) -> Weights:
    has = entry.fields
    return Weights(checksum(has["account"]), has["weightsHash"], has["uri"], entry.hash)
