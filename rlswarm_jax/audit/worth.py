"""What records are worth to somebody who only reads them: what their author earned, as far as that can be told.

Most of it can be told exactly: problems follow from beacons, prompts from parents, scores from texts. What can't:
- a group that answers to a record which is not here, or whose own problem was drawn before the chain was heard of;
- the text of an author with another tokenizer that cannot be said in the one here;
- scores that take a worker: a slow machine may have run out of time, its author's or this one;
- the reward for a revision that says what the swarm voted for, where nothing can verify answers: it depends on which
  votes its author had heard in time. What is said here is by all votes.
For these there are bounds: no honest author can have earned less or more.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from rlswarm_jax.game.chain import amount
from rlswarm_jax.game.rewards import RIGHT
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import Sheet
from rlswarm_jax.game.turns import Turn, in_time, read_record, rewards, to_score, to_sheet
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import ANSWER, REVISE, Group, Record
from rlswarm_jax.tasks import Problem

Item = tuple[Problem, str]
Judge = Callable[[Sequence[Item]], Sequence[float | None]]  # scores, None where scoring an answer failed
NO_BEACON, FAILED = "no beacon", "failed scores"
BY_TOKENIZER = {"text mismatch", "misshapen group"}  # flaws that only those with the author's tokenizer can find


@dataclasses.dataclass(frozen=True)
class Worth:
    """Of a group or of several, in millionths of a full reward. low, high: bounds where `amount` is not certain.

    flaws: groups that earn nothing, by cause. open: those that can't be judged by what is here, by cause; they count
    for nothing in `amount`.
    """

    low: int = 0
    amount: int = 0
    high: int = 0
    flaws: Mapping[str, int] = dataclasses.field(default_factory=dict)
    open: Mapping[str, int] = dataclasses.field(default_factory=dict)


def total(worths: Iterable[Worth]) -> Worth:
    flaws, open_ = collections.Counter[str](), collections.Counter[str]()
    low = amount = high = 0
    for worth in worths:
        low, amount, high = low + worth.low, amount + worth.amount, high + worth.high
        flaws.update(worth.flaws)
        open_.update(worth.open)
    return Worth(low, amount, high, dict(sorted(flaws.items())), dict(sorted(open_.items())))


def read_all(
    game: Game, records: Iterable[SignedRecord], beacons: Mapping[bytes, bytes], judge: Judge
) -> dict[bytes, Worth]:
    """What each record is worth, by content hash. records: of all authors, for they answer to each other.

    game: an observer's, whose own limits are no measure. beacons: of the chain, by what records call them.
    """
    beacons = {b"": b"", **beacons}
    found: dict[bytes, Worth] = {}
    for _, of_round in itertools.groupby(sorted(records, key=in_time), key=lambda signed: signed.record.round):
        found |= _read_round(game, list(of_round), beacons, judge)
    return found


def _read_round(
    game: Game, records: Sequence[SignedRecord], beacons: Mapping[bytes, bytes], judge: Judge
) -> dict[bytes, Worth]:
    sheets: dict[bytes, Sheet] = {}
    unread: dict[tuple[bytes, int], bool] = {}  # what of a record's problems others may have read; True: who, who knows
    turns: dict[bytes, list[Turn]] = {}
    found: dict[bytes, list[Worth]] = collections.defaultdict(list)
    for signed in records:
        record, hash_ = signed.record, signed.hash
        if record.swarm != game.swarm:
            found[hash_].append(Worth(flaws={"wrong swarm": len(record.groups)}))
            continue
        read, causes = read_record(game, sheets, signed, beacons)
        chain = beacons.get(record.beacon, b"")
        sheets[hash_] = to_sheet(game, record.author, record.round, record.stage, read.values(), chain)
        turns[hash_] = list(read.values()) if chain else []
        found[hash_] += [_open(game, NO_BEACON)] * (0 if chain else len(read))
        for place, cause in causes.items():
            group = record.groups[place]
            is_open = _is_open(game, record, group, cause, unread)
            if is_open or cause in BY_TOKENIZER:
                unread[hash_, group.index] = is_open
            found[hash_].append(_open(game, cause) if is_open else Worth(flaws={cause: 1}))

    items = list(dict.fromkeys(item for of in turns.values() for turn in of for item in to_score(game, turn)))
    outcomes = dict(zip(items, judge(items), strict=True))
    scores = {item: score or 0.0 for item, score in outcomes.items()}
    for hash_, of_record in turns.items():
        for turn in of_record:
            failed = any(outcomes[item] is None for item in to_score(game, turn))
            found[hash_].append(_open(game, FAILED) if failed else _worth(game, sheets, turn, scores))
    return {signed.hash: total(found[signed.hash]) for signed in records}


def _is_open(game: Game, record: Record, group: Group, cause: str, unread: Mapping[tuple[bytes, int], bool]) -> bool:
    """Whether an honest author may have written a group that cannot be used here."""
    stranger = record.tokenizer_fingerprint != game.tokenizer_fingerprint
    if cause == "wrong parents":  # they may say something there to those who can read it
        return any(unread[at] or stranger for parent in group.parents if (at := (parent, group.index)) in unread)
    if cause in BY_TOKENIZER:
        return stranger and len(group.completions) == game.group_size
    return cause == "unknown parent"


def _worth(game: Game, sheets: Mapping[bytes, Sheet], turn: Turn, scores: Mapping[Item, float]) -> Worth:
    def earned(game: Game) -> int:
        return amount(rewards(game, sheets, turn, scores))

    mean = earned(game)
    if game.mixture.tasks[turn.problem.task].seconds:
        # where its author's scorer gave up, an answer earned nothing, but what is said of it may have earned more
        return Worth(0, mean, mean if turn.stage == ANSWER else _most(game))
    if turn.stage == REVISE and not turn.problem.verifiable and game.rewards.consensus:
        alone = dataclasses.replace(game, rewards=dataclasses.replace(game.rewards, consensus=0.0))
        return Worth(earned(alone), mean, _most(game))
    return Worth(mean, mean, mean)


def _open(game: Game, cause: str) -> Worth:
    return Worth(high=_most(game), open={cause: 1})


def _most(game: Game) -> int:
    """That a group can earn."""
    paid = game.rewards
    return amount([RIGHT + paid.form + paid.improvement + paid.consensus])
