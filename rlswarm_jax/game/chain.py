"""What a node carries from round to round of the chain: whose beacon is in force, and what it is still to commit to.

Rounds of the game and of the coordinator are not the same: every so many of its own rounds a node takes the newest
beacon, and commits to what it has published, if it has not yet in the present round of the coordinator. So nobody
waits for a block, and while the chain is away the game goes on under the last beacon.
"""

from collections.abc import Iterable, Sequence

import msgspec

from rlswarm_jax.records.schema import BEACON_TAG

MARK = 1_000_000  # of a full reward: claims are whole numbers
MOMENTS = 8  # rounds of the coordinator whose beacons are remembered, for records that come late
LAG = 1  # rounds by which one of an endpoint's servers may be behind another
MAX_PEERS = 1024  # whose worth is remembered: keys are free
WINNERS = 3  # peers that a node votes for


class Moment(msgspec.Struct, array_like=True, frozen=True):
    """A round of the coordinator and its beacon, 32 bytes."""

    round: int
    beacon: bytes


class Work(msgspec.Struct, array_like=True, frozen=True):
    """What a node has done since its last commitment.

    records: content hashes of what it published, in order. earned: what these were worth, by stage, in millionths of
    a full reward, a group counting as its mean. peers: what this node found the records of others worth, by author.
    """

    records: list[bytes] = []
    earned: dict[str, int] = {}
    peers: dict[bytes, int] = {}

    def add(self, records: Sequence[bytes], earned: Iterable[tuple[bytes | str, int]]) -> "Work":
        """With a round's records, and what single groups earned, of a stage (its own) or of an author."""
        stages, peers = dict(self.earned), dict(self.peers)
        for whose, amount in earned:
            if isinstance(whose, str):
                stages[whose] = stages.get(whose, 0) + amount
            else:
                peers[whose] = peers.get(whose, 0) + amount
        best = sorted(peers.items(), key=lambda item: (-item[1], item[0]))[:MAX_PEERS]
        return Work([*self.records, *records], stages, dict(best))

    @property
    def best(self) -> list[bytes]:
        """Authors whose records were worth something, the best first."""
        return sorted((author for author, amount in self.peers.items() if amount > 0), key=self._rank)

    def _rank(self, author: bytes) -> tuple[int, bytes]:
        return -self.peers[author], author


class Account(msgspec.Struct, array_like=True, frozen=True):
    """moments: latest last; none before the chain was heard of. committed: the latest round committed to, else -1.

    state_hash: of the train state at that commitment; empty before the first.
    """

    moments: list[Moment] = []
    committed: int = -1
    state_hash: bytes = b""
    work: Work = Work()

    @property
    def round(self) -> int:
        """Of the coordinator; -1 if it was never heard of."""
        return self.moments[-1].round if self.moments else -1

    @property
    def beacon(self) -> bytes:
        """In force; empty if the chain was never heard of."""
        return self.moments[-1].beacon if self.moments else b""

    def hear(self, heard: Sequence[Moment], take: bool) -> "Account":
        """With what the chain says, in order. take: whether a new round's beacon comes into force.

        Where a reorganisation has given the present round another beacon, or the chain is further back than an endpoint
        may lag, that is in force at once, and all that was not committed to is forgotten: it was made for a beacon that
        nobody will find on the chain.
        """
        if not heard:
            return self
        known, latest = {m.round: m for m in self.moments}, heard[-1].round
        if latest < self.round - LAG or any(m.round in known and known[m.round] != m for m in heard):
            kept = [m for m in self.moments if m.round < min(new.round for new in heard)]
            return Account([*kept, *heard][-MOMENTS:], min(self.committed, latest), self.state_hash)
        fresh = [m for m in heard if m.round > self.round]
        if not fresh or not (take or not self.moments):
            return self
        return Account([*self.moments, *fresh][-MOMENTS:], self.committed, self.state_hash, self.work)

    def add(self, records: Sequence[bytes], earned: Iterable[tuple[bytes | str, int]]) -> "Account":
        """With the work of a round; without, where no beacon was in force, because nobody could check it."""
        if not self.moments:
            return self
        return Account(self.moments, self.committed, self.state_hash, self.work.add(records, earned))

    @property
    def due(self) -> bool:
        """Whether there is something to commit to in a round of the coordinator that has no commitment yet."""
        return self.round > self.committed and bool(self.work.records)

    def settle(self, state_hash: bytes) -> "Account":
        """After a commitment in the present round."""
        return Account(self.moments, self.round, state_hash)


def tag(beacon: bytes) -> bytes:
    """What a record calls the beacon it was made under."""
    return beacon[:BEACON_TAG]


def by_tag(moments: Iterable[Moment]) -> dict[bytes, bytes]:
    """Beacons, by what records call them."""
    return {tag(m.beacon): m.beacon for m in moments}


def amount(rewards: Sequence[float]) -> int:
    """What a group counts for, in millionths: the mean of its completions' rewards."""
    return round(MARK * sum(rewards) / len(rewards))
