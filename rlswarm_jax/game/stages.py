"""What nodes say to each other within a round: which answers and critiques a stage shows to whom, and the votes.

Who is shown to whom is drawn by the round's beacon from those that were heard; what an answer is worth has no say.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from rlswarm_jax import randomness
from rlswarm_jax.game.prompts import NONE, View
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE, RecordError

MAX_NUMBER = 99  # of an answer
Canonical = Callable[[str], str]  # answer text -> the same text for answers that say the same


class Said(msgspec.Struct, array_like=True, frozen=True):
    """One author's word on one shared problem. text: as others are shown it.

    answer: what it answers or votes for, "" for a critique that finds none right; None for one that does not vote.
    """

    text: str
    answer: str | None


class Sheet(msgspec.Struct, array_like=True, frozen=True):
    """What a record says to those who read it, by index of the shared problem. chain: the beacon it was made under."""

    author: bytes
    round: int
    stage: str
    said: dict[int, Said]
    chain: bytes = b""


Sheets = Mapping[bytes, Sheet]  # by the content hash of their record


@dataclasses.dataclass(frozen=True)
class Seat:
    """Who reads, in which stage, on which problem; and how many answers and critiques the game shows them."""

    beacon: bytes
    reader: bytes
    round: int
    stage: str
    index: int
    shown: int
    critics: int
    chain: bytes = b""

    def rank(self, stage: str, author: bytes) -> bytes:
        """Those of least rank are shown."""
        return randomness.digest("pool", self.beacon, "shown", self.reader, stage, self.index, author)

    def numbers(self, authors: Iterable[bytes]) -> list[int]:
        """What these authors' answers are called: the same whoever reads, unless two would have the same number."""
        found: list[int] = []
        for author in authors:
            number = randomness.seed("pool", self.beacon, "number", self.index, author) % MAX_NUMBER
            while number + 1 in found:
                number = (number + 1) % MAX_NUMBER
            found.append(number + 1)
        return found

    def has(self, sheet: Sheet, stage: str) -> bool:
        """Whether a record says something of that stage here."""
        at = (sheet.stage, sheet.round, sheet.chain)
        return at == (stage, self.round, self.chain) and self.index in sheet.said


@dataclasses.dataclass(frozen=True)
class Reading:
    """What somebody is shown of a problem. parents: hashes of the records that it comes from.

    answers: the first is the reader's own if they revise. numbers: of the answers.
    """

    parents: list[bytes]
    answers: list[Said]
    critiques: list[Said]
    numbers: list[int]

    def view(self, canonical: Canonical, show_votes: bool) -> View:
        votes = collections.Counter(canonical(said.answer) for said in self.critiques if said.answer)
        counts = tuple(votes[canonical(said.answer or "")] for said in self.answers)
        return View(
            tuple(said.text for said in self.answers),
            counts if show_votes and self.critiques else (),
            tuple(said.text for said in self.critiques),
            tuple(self.numbers),
        )


def speaks(beacon: bytes, author: bytes, stage: str, index: int, group_size: int) -> int:
    """Which of an author's completions stands for them before the others: nobody chooses their best one."""
    return randomness.seed("pool", beacon, "speaks", author, stage, index) % group_size


def read(sheets: Sheets, seat: Seat) -> Reading | None:
    """What is shown there of all that was heard; None for a critic who heard nobody, a reviser without answer."""
    answers = _choose(sheets, seat, ANSWER, seat.shown)
    if seat.stage == CRITIQUE:
        return read_parents(sheets, seat, answers) if answers else None
    own = [h for h, sheet in sheets.items() if sheet.author == seat.reader and seat.has(sheet, ANSWER)]
    return read_parents(sheets, seat, own + answers + _choose(sheets, seat, CRITIQUE, seat.critics)) if own else None


def _choose(sheets: Sheets, seat: Seat, stage: str, count: int) -> list[bytes]:
    found = _by_author({h: sheet for h, sheet in sheets.items() if seat.has(sheet, stage)})
    others = sorted(found.keys() - {seat.reader}, key=lambda author: seat.rank(stage, author))
    return [found[author] for author in others[:count]]


def _by_author(sheets: Sheets) -> dict[bytes, bytes]:
    """One record for each author, by content hash: who contradicts themselves says no more than others.

    (The inbox holds one of each round and stage, but forgets the first of them when it is full.)
    """
    return {sheets[h].author: h for h in sorted(sheets, reverse=True)}


def read_parents(sheets: Sheets, seat: Seat, parents: Sequence[bytes]) -> Reading:
    """What was shown there to somebody who names these records.

    Raises RecordError: "unknown parent" for one that is not here (it may come), "wrong parents" for records that the
    game does not show there, or in another order. (Who says less than they have heard cannot be told from who has not.)
    """
    if any(parent not in sheets for parent in parents):
        raise RecordError("unknown parent", "a record that it answers to is not here")
    found = [sheets[parent] for parent in parents]
    own, others = (found[:1], found[1:]) if seat.stage == REVISE else ([], found)
    answers = [sheet for sheet in others if seat.has(sheet, ANSWER)]
    critiques = [sheet for sheet in others if seat.has(sheet, CRITIQUE)]
    most_critiques = seat.critics if seat.stage == REVISE else 0
    allowed = (
        all(seat.has(sheet, ANSWER) and sheet.author == seat.reader for sheet in own)
        and others == answers + critiques
        and (_in_order(seat, ANSWER, answers) and _in_order(seat, CRITIQUE, critiques))
        and (len(answers) <= seat.shown and len(critiques) <= most_critiques)
        and (own or answers)
    )
    if not allowed:
        raise RecordError("wrong parents", f"stage {seat.stage!r} does not show these records in this order")
    return Reading(
        list(parents),
        answers=[sheet.said[seat.index] for sheet in own + answers],
        critiques=[sheet.said[seat.index] for sheet in critiques],
        numbers=seat.numbers(sheet.author for sheet in own + answers),
    )


def _in_order(seat: Seat, stage: str, sheets: Sequence[Sheet]) -> bool:
    """By rank, nobody twice, and nobody's own."""
    ranks = [seat.rank(stage, sheet.author) for sheet in sheets]
    return ranks == sorted(set(ranks)) and all(sheet.author != seat.reader for sheet in sheets)


def vote(named: Iterable[int | None]) -> int | None:
    """What a critic votes for: what most of their critiques name, the lowest number of those; None if none names."""
    counts = collections.Counter(n for n in named if n is not None)
    return min(counts, key=lambda n: (-counts[n], n)) if counts else None


def most_said(answers: Sequence[Said], canonical: Canonical) -> int:
    """Number, from 1, of the first answer that says what most of them say; NONE if all are silent."""
    said = [canonical(answer.answer or "") for answer in answers]
    votes = collections.Counter(text for text in said if text)
    return said.index(max(votes, key=lambda text: (votes[text], -said.index(text)))) + 1 if votes else NONE


def consensus(answers: Iterable[str | None], canonical: Canonical, *fields: randomness.Field) -> str | None:
    """The answer with the most votes; None if nobody votes for one.

    Who finds none right has not seen them all, their own for one: that is no vote against what others name.
    Of those that say the same it is one. Between equals the fields decide.
    """
    votes = collections.defaultdict[str, list[str]](list)
    for answer in answers:
        if answer and (said := canonical(answer)):
            votes[said].append(answer)
    if not votes:
        return None
    winner = min(votes, key=lambda text: (-len(votes[text]), randomness.digest("pool", "tie", *fields, text)))
    return min(votes[winner])


def votes_on(sheets: Sheets, round_: int, stage: str, index: int, chain: bytes = b"") -> list[str | None]:
    """Everybody's word on a problem in a stage, one an author."""
    at = (round_, stage, chain)
    of_stage = {h: s for h, s in sheets.items() if (s.round, s.stage, s.chain) == at and index in s.said}
    return [sheets[h].said[index].answer for _, h in sorted(_by_author(of_stage).items())]
