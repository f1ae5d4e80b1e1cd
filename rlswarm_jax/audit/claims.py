"""Judges what nodes have claimed on the chain by the records they committed to: anybody can, who has those records.

A claim is right if it is exactly what the covered records of its stage are worth (`worth.py`), and wrong if no honest
author can have found that. In between, or where records are not here, nothing is said against it; but a vote counts
only where the commitment and all claims of the voter and of the winner in that round were found right.

Two things that no claim can show: a completion copied for a problem that all nodes share, whose seed is the copier's
as well (replaying the sampling with its author's weights would show it); and how many rounds an author played.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from rlswarm_jax.audit.cover import Cover, Undecided, cover
from rlswarm_jax.audit.worth import Judge, Worth, read_all, total
from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.game.chain import tag
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import in_time
from rlswarm_jax.identity import author_of
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import STAGES

RIGHT, WRONG, UNCLAIMED, UNCHECKED = "right", "wrong", "unclaimed", "unchecked"
MISSING, WRONG_ROOT, LEFT_OUT = "missing records", "wrong root", "records left out"
ANOTHER_GAME, NO_COMMITMENT = "another agreement", "no commitment"
AGAINST = {WRONG, WRONG_ROOT, LEFT_OUT}  # verdicts that no honest node gets
Slot = tuple[bytes, int, str]  # author, round, stage


@dataclasses.dataclass(frozen=True)
class Claim:
    """What an account says a stage was worth in a round of the coordinator, in millionths. hash: of the transaction.

    claimed: None if it has not said. worth: None if it is not known which records count.
    """

    stage: int
    claimed: int | None
    worth: Worth | None
    verdict: str
    hash: str


@dataclasses.dataclass(frozen=True)
class Standing:
    """A commitment and its claims. author: the key, None if no record here is of its account.

    verdict: on the commitment alone. missing: about how many records it may cover are not here.
    """

    round: int
    account: str
    author: bytes | None
    hash: str
    verdict: str
    cover: Cover | None
    missing: int
    claims: list[Claim]

    @property
    def right(self) -> bool:
        return self.verdict == RIGHT and all(claim.verdict in (RIGHT, UNCLAIMED) for claim in self.claims)

    @property
    def against(self) -> bool:
        return self.verdict in AGAINST or any(claim.verdict in AGAINST for claim in self.claims)


@dataclasses.dataclass(frozen=True)
class Vote:
    """why: it does not count; empty if it does."""

    round: int
    voter: str
    winner: str
    why: str
    hash: str


@dataclasses.dataclass(frozen=True)
class Audit:
    """equivocations: authors, rounds and stages of which two signed records are here."""

    accounts: list[Standing]
    votes: list[Vote]
    equivocations: list[Slot]

    @property
    def wrong(self) -> bool:
        return bool(self.equivocations) or any(account.against for account in self.accounts)


def audit(
    game: Game,
    rounds: Sequence[ledger.Round],
    records: Iterable[SignedRecord],
    since: Mapping[bytes, int],
    judge: Judge,
) -> Audit:
    """Judges all that is on the chain. rounds: in order. records: of all authors, their signatures checked.

    game: an observer's. since: of authors whose own journal is here, the round from which on it has all they published.
    """
    found = {signed.hash: signed for signed in records}
    beacons = {tag(beacon): beacon for one in rounds if (beacon := bytes.fromhex(one.beacon.removeprefix("0x")))}
    numbers = {tag(bytes.fromhex(one.beacon.removeprefix("0x"))): one.number for one in rounds if one.beacon}
    worths = read_all(game, found.values(), beacons, judge)
    shelf = _Shelf(list(found.values()), numbers, since, game.stages)
    accounts: dict[tuple[int, str], Standing] = {}
    for one in rounds:
        commitments = {commitment.account: commitment for commitment in one.commitments}
        claims = collections.defaultdict[str, list[ledger.Reward]](list)
        for reward in one.rewards:
            claims[reward.account].append(reward)
        for account in dict.fromkeys([*commitments, *claims]):
            judged = _judge(game, shelf, one.number, account, commitments.get(account), claims[account], worths)
            accounts[one.number, account] = judged
    votes = [vote for one in rounds for vote in _votes(one, accounts)]
    return Audit(list(accounts.values()), votes, shelf.equivocations)


def _judge(
    game: Game,
    shelf: "_Shelf",
    number: int,
    account: str,
    commitment: ledger.Commitment | None,
    claims: Sequence[ledger.Reward],
    worths: Mapping[bytes, Worth],
) -> Standing:
    author = shelf.authors.get(account)
    covered, missing = None, 0
    if commitment is None:
        verdict, hash_ = NO_COMMITMENT, ""
    elif bytes.fromhex(commitment.config[2:]) != game.agreement:
        verdict, hash_ = ANOTHER_GAME, commitment.hash
    else:
        hash_ = commitment.hash
        verdict, covered, missing = shelf.find(author, number, bytes.fromhex(commitment.root[2:]))
    of_stage = {claim.stage: claim for claim in claims}
    judged = []
    for stage in sorted({*of_stage, *(range(len(game.stages)) if covered else ())}):
        said = of_stage.get(stage)
        worth = None
        if covered:
            name = dict(enumerate(STAGES)).get(stage)
            worth = total(worths[signed.hash] for signed in covered.records if signed.record.stage == name)
        ruling = verdict if worth is None else _compare(said.amount if said else None, worth)
        if said or worth != Worth():
            judged.append(Claim(stage, said.amount if said else None, worth, ruling, said.hash if said else ""))
    return Standing(number, account, author, hash_, verdict, covered, missing, judged)


def _compare(claimed: int | None, worth: Worth) -> str:
    if claimed is None:
        return UNCLAIMED if worth.low else RIGHT if not worth.high else UNCHECKED
    if not worth.low <= claimed <= worth.high:
        return WRONG
    return RIGHT if claimed == worth.amount and not worth.open else UNCHECKED


def _votes(of: ledger.Round, accounts: Mapping[tuple[int, str], Standing]) -> list[Vote]:
    found = []
    for vote in of.votes:
        voter = accounts.get((of.number, vote.account))
        for winner in vote.winners:
            author = author_of(winner)
            elected = accounts.get((of.number, account_of(author))) if author else None
            if not (voter and voter.right):
                why = "the voter's own claims were not found right"
            elif elected is None:
                why = "the winner committed to nothing in that round"
            else:
                why = "" if elected.right else "the winner's claims were not found right"
            found.append(Vote(of.number, vote.account, winner, why, vote.hash))
    return found


class _Shelf:
    """The records of each author in order, and how far its commitments have come."""

    def __init__(
        self,
        records: Sequence[SignedRecord],
        numbers: Mapping[bytes, int],
        since: Mapping[bytes, int],
        stages: tuple[str, ...],
    ):
        self._numbers, self._since, self._stages = numbers, since, stages
        self._slots = collections.defaultdict[bytes, dict[tuple[int, str], list[SignedRecord]]](dict)
        for signed in sorted(records, key=in_time):
            at = (signed.record.round, signed.record.stage)
            self._slots[signed.record.author].setdefault(at, []).append(signed)
        self.authors = {account_of(author): author for author in self._slots}
        self.equivocations = [
            (author, *at) for author, slots in self._slots.items() for at, of in slots.items() if len(of) > 1
        ]
        self._last = max((signed.record.round for signed in records), default=-1)
        # of each author: the last round that a commitment covers; whether that of the latest one is known
        self._ends: dict[bytes, int] = {}
        self._known: dict[bytes, bool] = {}
        self._before: dict[bytes, int] = {}  # the round of the coordinator of the latest commitment

    def find(self, author: bytes | None, number: int, root: bytes) -> tuple[str, Cover | None, int]:
        """Verdict, what a commitment covers, and how many records it may cover are not here.

        Of one author in the order of the coordinator's rounds.
        """
        if author is None:
            return MISSING, None, len(self._stages)
        slots, end, known = self._slots[author], self._ends.get(author, -1), self._known.get(author, True)
        earliest = -1 if known else self._before[author]
        candidates = [
            of
            for (round_, _), of in slots.items()
            if round_ > end and earliest <= self._number(of[0], earliest) <= number
        ]
        found, undecided = None, False
        for pick in range(max(map(len, candidates), default=0)):  # whoever signs two for a slot commits to one of them
            try:
                found = found or cover([of[min(pick, len(of) - 1)] for of in candidates], root, len(self._stages))
            except Undecided:
                undecided = True
        self._before[author], self._known[author] = number, found is not None
        if found:
            self._ends[author] = found.records[-1].record.round
            first = found.records[0].record.round
            if not known:  # what came before may be in the commitment before
                found = found._replace(left_out=[s for s in found.left_out if s.record.round >= first])
            return LEFT_OUT if found.torn else RIGHT, found, 0
        missing = self._missing(author, end, number)
        return MISSING if missing else UNCHECKED if undecided else WRONG_ROOT, None, missing

    def _missing(self, author: bytes, end: int, number: int) -> int:
        """About how many of an author's records are not here that come after a round and before a later beacon."""
        if self._since.get(author, end + 2) <= end + 1:
            return 0
        slots = self._slots[author]
        later = [round_ for (round_, _), of in slots.items() if round_ > end and self._number(of[0], 0) > number]
        span = range(end + 1, min(later, default=self._last + 1))
        missing = sum((round_, stage) not in slots for round_ in span for stage in self._stages)
        # where its next commitment's records begin shows that this one's end before
        return missing if later else max(missing, 1)

    def _number(self, signed: SignedRecord, unknown: int) -> int:
        """The coordinator's round whose beacon a record was made under."""
        return self._numbers.get(signed.record.beacon, unknown)
