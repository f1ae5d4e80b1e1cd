"""Judges what nodes have claimed on the chain by the records they committed to: anybody can, who has those records.

A claim is right if it is exactly what the covered records of its stage are worth (`worth.py`), but for rounds that
their author left before they were scored; it is wrong if no honest author can have found that. In between, or where
records are not here, nothing is said against it; but a vote counts only where the commitment and all claims of the
voter and of the winner in that round were found right.

Two things that no claim can show: a completion copied for a problem that all nodes share, whose seed is the copier's
as well (replaying the sampling with its author's weights would show it); and how many rounds an author played.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rlswarm_jax.audit.cover import Cover
from rlswarm_jax.audit.trace import Shelf, Slot, Traced
from rlswarm_jax.audit.worth import Judge, Worth, read_all, total
from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.game.chain import Moment, by_tag, tag
from rlswarm_jax.game.rules import Game
from rlswarm_jax.identity import author_of
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import STAGES

RIGHT, WRONG, UNCLAIMED, UNCHECKED = "right", "wrong", "unclaimed", "unchecked"
MISSING, WRONG_ROOT, LEFT_OUT = "missing records", "wrong root", "records left out"
ANOTHER_GAME, NO_COMMITMENT = "another agreement", "no commitment"
UNFINISHED, LATER_BEACON = "unfinished round", "later beacon"  # why groups earn nothing, beside what records say
LEAVES = 2_000  # choices of rounds that are tried
AGAINST = {WRONG, WRONG_ROOT, LEFT_OUT}  # verdicts that no honest node gets


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

    verdict: on the commitment alone. missing: about how many records it may cover are not here. left: rounds that its
    author seems to have left after the last stage.
    """

    round: int
    account: str
    author: bytes | None
    hash: str
    verdict: str
    cover: Cover | None
    missing: int
    left: list[int]
    claims: list[Claim]

    @property
    def claimed(self) -> int:
        """In all stages, in millionths."""
        return sum(claim.claimed or 0 for claim in self.claims)

    @property
    def verified(self) -> int:
        """Of what is claimed, that which was found right by records that the commitment covers."""
        return sum(claim.claimed or 0 for claim in self.claims if self.verdict == RIGHT and claim.verdict == RIGHT)

    @property
    def unverified(self) -> int:
        """How many claims were not found right."""
        said = [claim for claim in self.claims if claim.claimed is not None]
        return sum(self.verdict != RIGHT or claim.verdict != RIGHT for claim in said)

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

    standings: list[Standing]
    votes: list[Vote]
    equivocations: list[Slot]

    @property
    def wrong(self) -> bool:
        return bool(self.equivocations) or any(one.against for one in self.standings)

    @property
    def claimed(self) -> int:
        return sum(one.claimed for one in self.standings)

    @property
    def verified(self) -> int:
        return sum(one.verified for one in self.standings)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, and all that is claimed was verified: by no folder's word, but by records."""
        return not self.wrong and not any(one.unverified for one in self.standings)


def audit(
    game: Game,
    rounds: Sequence[ledger.Round],
    records: Iterable[SignedRecord],
    since: Mapping[bytes, int],
    judge: Judge,
) -> Audit:
    """Judges all that is on the chain. rounds: in order. records: of all authors, their signatures checked.

    game: an observer's. since: of authors of whom the observer itself knows that all they published from a round on is
    here; no other's folder can tell, for anybody may leave something out.
    """
    found = {signed.hash: signed for signed in records}
    moments = [Moment(one.number, bytes.fromhex(one.beacon.removeprefix("0x"))) for one in rounds if one.beacon]
    numbers = {tag(moment.beacon): moment.round for moment in moments}
    worths = read_all(game, found.values(), by_tag(moments), judge)
    shelf = Shelf(list(found.values()), since, numbers, game.stages)
    commitments: dict[tuple[int, str], ledger.Commitment] = {}
    claims = collections.defaultdict[tuple[int, str], dict[int, ledger.Reward]](dict)
    for one in rounds:
        commitments |= {(one.number, commitment.account): commitment for commitment in one.commitments}
        for reward in one.rewards:
            claims[one.number, reward.account][reward.stage] = reward
    traced: dict[tuple[int, str], Traced] = {}
    for account in {account for _, account in commitments}:
        own = [at for at in commitments if at[1] == account]
        roots = [(at[0], bytes.fromhex(commitments[at].root[2:])) for at in own]
        traced |= zip(own, shelf.trace(shelf.authors.get(account), roots), strict=True)
    standings = {}
    for at in sorted({*commitments, *claims}):
        author, commitment = shelf.authors.get(at[1]), commitments.get(at)
        cover, missing = traced.get(at, Traced(None, 0))
        if commitment is None:
            verdict = NO_COMMITMENT
        elif not game.agrees(bytes.fromhex(commitment.config[2:]), _same_tokenizer(game, cover)):
            verdict, cover = ANOTHER_GAME, None
        elif cover:
            verdict = LEFT_OUT if cover.holes else RIGHT
        else:
            verdict = MISSING if missing else WRONG_ROOT
        hash_ = commitment.hash if commitment else ""
        left: list[int] = []
        if cover and author:
            paid = _paid(cover, worths, shelf.rounds(author), numbers, at[0], game.stages)
            left, judged = _judge(claims[at], paid, len(game.stages))
        else:
            judged = [Claim(stage, said.amount, None, verdict, said.hash) for stage, said in sorted(claims[at].items())]
        standings[at] = Standing(*at, author, hash_, verdict, cover, missing, left, judged)
    votes = [vote for one in rounds for vote in _votes(one, standings)]
    return Audit(list(standings.values()), votes, shelf.equivocations)


def _same_tokenizer(game: Game, cover: Cover | None) -> bool:
    """Whether any of the covered records is in this game's tokens, so that what ends a completion must be the same."""
    records = cover.records if cover else []
    return any(signed.record.tokenizer_fingerprint == game.tokenizer_fingerprint for signed in records)


class _Paid(NamedTuple):
    """A covered round. worths: by the stage's number. jumped: whether its author did not go on to the next round."""

    round: int
    worths: dict[int, Worth]
    jumped: bool


def _paid(
    cover: Cover,
    worths: Mapping[bytes, Worth],
    played: Mapping[int, set[str]],
    numbers: Mapping[bytes, int],
    number: int,
    stages: Sequence[str],
) -> list[_Paid]:
    """What the covered rounds are worth: nothing if they were surely left."""
    found: dict[int, _Paid] = {}
    for signed in cover.records:
        record, worth = signed.record, worths[signed.hash]
        groups = len(record.groups)
        if len(played[record.round]) < len(stages):
            worth = Worth(flaws={UNFINISHED: groups})
        elif numbers.get(record.beacon, number) > number:  # who finishes a round commits in the newest they know of
            worth = Worth(flaws={LATER_BEACON: groups})
        one = found.setdefault(record.round, _Paid(record.round, {}, record.round + 1 not in played))
        one.worths[STAGES.index(record.stage)] = worth
    return list(found.values())


def _judge(said: Mapping[int, ledger.Reward], paid: Sequence[_Paid], stages: int) -> tuple[list[int], list[Claim]]:
    """Rounds that their author seems to have left after the last stage, and what becomes of the claims.

    Whoever leaves a round claims nothing for it in any stage: the fewest such rounds with which all claims are right.
    """
    best: tuple[list[int], list[Claim]] | None = None
    choices = _leaves(paid)
    for left in itertools.islice(choices, LEAVES):
        claims = []
        for stage in sorted({*said, *range(stages)}):
            worth = total(one.worths.get(stage, Worth()) for one in paid if one.round not in left)
            claim = said.get(stage)
            if claim or worth != Worth():
                amount, hash_ = (claim.amount, claim.hash) if claim else (None, "")
                claims.append(Claim(stage, amount, worth, _compare(amount, worth), hash_))
        verdicts = {claim.verdict for claim in claims}
        if verdicts <= {RIGHT, UNCLAIMED}:
            return left, claims
        if best is None or (WRONG in {claim.verdict for claim in best[1]} and WRONG not in verdicts):
            best = left, claims
    assert best
    if next(choices, None) is None:
        return best
    return best[0], [_softened(claim) for claim in best[1]]


def _softened(claim: Claim) -> Claim:
    """Where not all was tried, nobody knows whether a claim for less is for fewer rounds."""
    less = claim.worth is not None and (claim.claimed or 0) <= claim.worth.high
    return dataclasses.replace(claim, verdict=UNCHECKED) if claim.verdict == WRONG and less else claim


def _leaves(paid: Sequence[_Paid]) -> Iterator[list[int]]:
    """Rounds that may have been left, none at first: one or two, or any after which their author jumped."""
    jumped = [one.round for one in paid if one.jumped]
    every = [*jumped, *(one.round for one in paid if not one.jumped)]
    for count in range(len(paid) + 1):
        yield from map(list, itertools.combinations(every if count <= 2 else jumped, count))


def _compare(claimed: int | None, worth: Worth) -> str:
    if claimed is None:
        return UNCLAIMED if worth.low else RIGHT if not worth.high else UNCHECKED
    if not worth.low <= claimed <= worth.high:
        return WRONG
    return RIGHT if claimed == worth.amount and not worth.open else UNCHECKED


def _votes(of: ledger.Round, standings: Mapping[tuple[int, str], Standing]) -> list[Vote]:
    found = []
    for vote in of.votes:
        voter = standings.get((of.number, vote.account))
        for winner in vote.winners:
            author = author_of(winner)
            elected = standings.get((of.number, account_of(author))) if author else None
            if not (voter and voter.right):
                why = "the voter's own claims were not found right"
            elif elected is None:
                why = "the winner committed to nothing in that round"
            else:
                why = "" if elected.right else "the winner's claims were not found right"
            found.append(Vote(of.number, vote.account, winner, why, vote.hash))
    return found
