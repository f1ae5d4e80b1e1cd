"""Judges what nodes have claimed on the chain by the records they committed to: anybody can, who has those records.

A commitment says which records it covers; a claim is right if it is exactly what those of its stage are worth
(`worth.py`), and wrong if no honest author can have found that. In between, or where records are not here, nothing is
said against it; but a vote counts only where the commitments and claims of the voter and of the winner in that round
were found right.

Whoever has published the last stage of a round finishes it: a round with a stage missing was left, and earns nothing.

Two things that no claim can show: a completion copied for a problem that all nodes share, whose seed is the copier's
as well (replaying the sampling with its author's weights would show it); and how many rounds an author played.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from rlswarm_jax.audit import commit
from rlswarm_jax.audit.worth import Judge, Worth, read_all, total
from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.game.chain import Moment, by_tag, tag
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import in_time
from rlswarm_jax.identity import author_of
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import STAGES

RIGHT, WRONG, UNCHECKED = "right", "wrong", "unchecked"
MISSING, ANOTHER_GAME = "missing records", "another agreement"
WRONG_ROOT, LEFT_OUT, TWICE = "wrong root", "records left out", "records committed to twice"
UNFINISHED, LATER_BEACON = "unfinished round", "later beacon"  # why groups earn nothing, beside what records say
AGAINST = {WRONG, WRONG_ROOT, LEFT_OUT, TWICE}  # verdicts that no honest node gets


@dataclasses.dataclass(frozen=True)
class Claim:
    """What an account says a stage was worth in a round of the coordinator, in millionths.

    worth: None if it is not known which records count.
    """

    stage: int
    claimed: int
    worth: Worth | None
    verdict: str


@dataclasses.dataclass(frozen=True)
class Standing:
    """A commitment and its claims. author: the key, None if no record here is of its account.

    verdict: on the commitment alone. records: that it covers, in order; none where that is not known. missing: how many
    of them are not here. gap: whether it begins with another state than the one before it ended with, as after one that
    the chain did not take.
    """

    round: int
    account: str
    author: bytes | None
    hash: str
    verdict: str
    records: list[SignedRecord]
    missing: int
    gap: bool
    claims: list[Claim]

    @property
    def claimed(self) -> int:
        """In all stages, in millionths."""
        return sum(claim.claimed for claim in self.claims)

    @property
    def verified(self) -> int:
        """Of what is claimed, that which was found right by records that the commitment covers."""
        return sum(claim.claimed for claim in self.claims if self.verdict == RIGHT and claim.verdict == RIGHT)

    @property
    def unverified(self) -> int:
        """How many claims were not found right."""
        return sum(self.verdict != RIGHT or claim.verdict != RIGHT for claim in self.claims)

    @property
    def right(self) -> bool:
        return self.verdict == RIGHT and not self.unverified

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
    equivocations: list[tuple[bytes, int, str]]

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


def audit(game: Game, rounds: Sequence[ledger.Round], records: Iterable[SignedRecord], judge: Judge) -> Audit:
    """Judges all that is on the chain. rounds: in order. records: of all authors, their signatures checked.

    game: an observer's.
    """
    found = {signed.hash: signed for signed in records}
    known = moments(rounds)
    numbers = {tag(moment.beacon): moment.round for moment in known}
    worths = read_all(game, found.values(), by_tag(known), judge)
    shelves = collections.defaultdict[bytes, _Shelf](_Shelf)
    for signed in sorted(found.values(), key=in_time):
        shelves[signed.record.author].add(signed)
    authors = {account_of(author): author for author in shelves}
    standings: dict[tuple[int, str], Standing] = {}
    states: dict[str, str] = {}  # in which each account's last commitment ended
    for one in rounds:
        claims = {(reward.account, reward.stage): reward.amount for reward in one.rewards}
        for commitment in one.commitments:
            account, author = commitment.account, authors.get(commitment.account)
            verdict, covered, missing = (shelves[author] if author else _Shelf()).find(commitment)
            if not game.agrees(_bytes(commitment.config), _same_tokenizer(game, covered)):
                verdict, covered = ANOTHER_GAME, []
            gap = states.get(account, commitment.state_before) != commitment.state_before
            states[account] = commitment.state_after
            paid = _paid(covered, worths, numbers, one.number, len(game.stages))
            said = [claims.get((account, stage), 0) for stage in range(len(STAGES))]
            judged = _judge(said, paid) if covered else [Claim(n, c, None, verdict) for n, c in enumerate(said) if c]
            at = (one.number, account, author, commitment.hash)
            standings[one.number, account] = Standing(*at, verdict, covered, missing, gap, judged)
    votes = [vote for one in rounds for vote in _votes(one, standings)]
    twice = [(author, *slot) for author, shelf in shelves.items() for slot in shelf.twice]
    return Audit(list(standings.values()), votes, twice)


def moments(rounds: Iterable[ledger.Round]) -> list[Moment]:
    return [Moment(one.number, _bytes(one.beacon)) for one in rounds if one.beacon]


class _Shelf:
    """The records of one author that are here, in the order of publication."""

    def __init__(self) -> None:
        self._slots: dict[tuple[int, str], list[SignedRecord]] = {}
        self._end = 0  # slots up to the last one that was committed to

    def add(self, signed: SignedRecord) -> None:
        """The next one."""
        self._slots.setdefault((signed.record.round, signed.record.stage), []).append(signed)

    @property
    def twice(self) -> list[tuple[int, str]]:
        """Rounds and stages for which the author has signed two records."""
        return [slot for slot, signed in self._slots.items() if len(signed) > 1]

    def find(self, commitment: ledger.Commitment) -> tuple[str, list[SignedRecord], int]:
        """The verdict, what the next commitment covers if that is right, and how many records of it are not here.

        Of two records for one slot either may be meant.
        """
        picks = range(max(map(len, self._slots.values()), default=1))
        lines = [[of[min(pick, len(of) - 1)] for of in self._slots.values()] for pick in picks]
        found = [(line, *_find([signed.hash for signed in line], commitment)) for line in lines]
        line, verdict, start, end = min(found, key=lambda one: one[1] != RIGHT)
        if verdict == MISSING:
            return verdict, [], commitment.count - (end - start)
        if start < self._end:
            verdict = TWICE
        self._end = max(self._end, end)
        return verdict, line[start:end] if verdict == RIGHT else [], 0


def _find(line: Sequence[bytes], commitment: ledger.Commitment) -> tuple[str, int, int]:
    """A verdict on a commitment, and from where to where its records are in a line of content hashes."""
    first, last, count = _bytes(commitment.first), _bytes(commitment.last), commitment.count
    if first not in line or last not in line:
        return MISSING, 0, 0
    start, end = line.index(first), line.index(last) + 1
    if start < end < start + count:
        return MISSING, start, end
    if end > start + count > start:
        return LEFT_OUT, start, end
    right = start < end and commit.root(line[start:end]) == _bytes(commitment.root)
    return RIGHT if right else WRONG_ROOT, start, end


def _same_tokenizer(game: Game, covered: Sequence[SignedRecord]) -> bool:
    """Whether any of the covered records is in this game's tokens, so that what ends a completion must be the same."""
    return any(signed.record.tokenizer_fingerprint == game.tokenizer_fingerprint for signed in covered)


def _paid(
    covered: Sequence[SignedRecord],
    worths: Mapping[bytes, Worth],
    numbers: Mapping[bytes, int],
    number: int,
    stages: int,
) -> list[Worth]:
    """What the covered records are worth, by the stage's number: those of rounds that were left nothing."""
    played = collections.Counter(signed.record.round for signed in covered)
    found: list[list[Worth]] = [[] for _ in STAGES]
    for signed in covered:
        record, worth = signed.record, worths[signed.hash]
        if played[record.round] < stages:
            worth = Worth(flaws={UNFINISHED: len(record.groups)})
        elif numbers.get(record.beacon, number) > number:  # who finishes a round commits in the newest they know of
            worth = Worth(flaws={LATER_BEACON: len(record.groups)})
        found[STAGES.index(record.stage)].append(worth)
    return [total(of_stage) for of_stage in found]


def _judge(said: Sequence[int], paid: Sequence[Worth]) -> list[Claim]:
    """Of all stages, but for those in which there was nothing to earn and nothing is claimed."""
    return [
        Claim(stage, claimed, worth, _compare(claimed, worth))
        for stage, (claimed, worth) in enumerate(zip(said, paid, strict=True))
        if claimed or worth != Worth()
    ]


def _compare(claimed: int, worth: Worth) -> str:
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


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.removeprefix("0x"))
