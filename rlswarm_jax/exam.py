"""The game played on given problems without learning, and what an observer makes of its records.

Everything is read from the signed records, as anybody could who hears them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from rlswarm_jax.engine import Engine
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Effect, Evaluate, Gather, Learn, Pin, Publish, Replay, Sample, Score, Verify
from rlswarm_jax.game.rewards import RIGHT, Rewards, names_best
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import Sheet, consensus, speaks
from rlswarm_jax.game.turns import Turn
from rlswarm_jax.identity import Identity
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE
from rlswarm_jax.tasks import Problem
from rlswarm_jax.tasks.verifier import Verifier

UNNAMED = bytes(32)  # weights that nobody will ask for
OBSERVER = bytes(33)  # who plays no part


@dataclasses.dataclass(frozen=True)
class Exam(Game):
    """A game on these problems, so many a round, all of them shared; the last round begins again with the first."""

    problems: tuple[Problem, ...] = ()

    def problem(self, author: bytes, round_: int, index: int, chain: bytes = b"") -> Problem:
        return self.problems[(round_ * self.local_groups + index) % len(self.problems)]

    @property
    def num_rounds(self) -> int:
        return -(-len(self.problems) // self.local_groups)


def make_exam(game: Game, problems: Sequence[Problem], per_round: int) -> Exam:
    """The same game, on these problems."""
    fields = {field.name: getattr(game, field.name) for field in dataclasses.fields(Game)}
    per_round = min(per_round, len(problems))
    changed = {"local_groups": per_round, "shared": per_round, "external_groups": 0, "rounds": 0}
    return Exam(**(fields | changed), problems=tuple(problems))


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the nodes say in a stage of one problem, a row for each node and a column for each completion.

    scores: of what each completion says; of a critique, whether it names a best answer. canonical: what it says.
    spoken: which completion stands for the node.
    """

    scores: list[list[float]]
    canonical: list[list[str]]
    spoken: list[int]

    @property
    def spoken_right(self) -> list[bool]:
        return [row[g] >= RIGHT for row, g in zip(self.scores, self.spoken, strict=True)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One problem as it was played. majority, vote: whether the swarm's most frequent first answer is right, and the
    one that most critics name. majority_revised: the most frequent revision. critics, contested: of all critics, and
    of those who were shown answers that differ in worth.
    """

    problem: Problem
    first: Stage
    majority: bool
    critique: Stage | None = None
    critics: turns.Critics | None = None
    contested: turns.Critics | None = None
    vote: bool | None = None
    revised: Stage | None = None
    majority_revised: bool | None = None


def sit(exams: Sequence[Exam], identities: Sequence[Identity], engine: Engine) -> Iterator[list[Outcome]]:
    """Plays all problems with the weights that the nodes have; yields round by round."""
    for round_ in range(exams[0].num_rounds):
        outcomes = observe(exams[0], play_together(exams, identities, round_, engine), engine.verifier)
        yield outcomes[: len(exams[0].problems) - round_ * exams[0].local_groups]


def play_together(
    exams: Sequence[Exam], identities: Sequence[Identity], round_: int, engine: Engine
) -> list[SignedRecord]:
    """A round in which every node hears every other at once, and nobody learns; returns all records."""
    generators = [play_round(exam, NodeState(round=round_)) for exam in exams]
    effects: list[Any] = [generator.send(None) for generator in generators]
    records: list[SignedRecord] = []
    while (kind := type(effects[0])) is not Learn:
        assert all(type(effect) is kind for effect in effects), "nodes that hear the same are in the same step"
        if kind is Publish:
            records += [open_envelope(seal(e.record, own)) for e, own in zip(effects, identities, strict=True)]
        if kind is Sample:
            results = engine.sample(dict(enumerate(effects)))
        else:
            results = {
                node: _result(effect, exam, records, engine.verifier)
                for node, (effect, exam) in enumerate(zip(effects, exams, strict=True))
            }
        effects = [generator.send(results[node]) for node, generator in enumerate(generators)]
    return records


def _result(effect: Effect, exam: Exam, records: Sequence[SignedRecord], verifier: Verifier) -> Any:
    match effect:
        case Gather(stage=stage):
            return [s for s in records if s.record.stage == stage and s.record.author != exam.author]
        case Score(items=items, payers=payers):
            return verifier.score(items, payers)
        case Verify(items=items, payers=payers):
            return verifier.begin(items, payers)
        case Pin():
            return UNNAMED
        case Evaluate() | Replay():
            return {}
    return None


def observe(game: Game, records: Sequence[SignedRecord], verifier: Verifier) -> list[Outcome]:
    """What came of the shared problems of a round, by index. records: of all nodes."""
    observer, sheets = dataclasses.replace(game, author=OBSERVER, rewards=Rewards()), dict[bytes, Sheet]()
    played, _, unused = turns.read_records(observer, sheets, records, last=True)
    assert not unused, f"records of this very game cannot be read: {dict(unused)}"
    items = list(dict.fromkeys(item for turn in played for item in turns.to_score(observer, turn)))
    scores = dict(zip(items, verifier.score(items).scores, strict=True))
    return [_outcome(observer, sheets, [t for t in played if t.index == n], scores) for n in range(game.shared)]


def _outcome(game: Game, sheets: Mapping[bytes, Sheet], played: Sequence[Turn], scores: turns.Scored) -> Outcome:
    """Of one problem: everybody's turns at it."""
    stages = {stage: _stage(game, sheets, [t for t in played if t.stage == stage], scores) for stage in game.stages}
    problem, round_, index = played[0].problem, played[0].round, played[0].index

    def right(stage: str) -> bool:
        """Whether most of the nodes say what is right."""
        said = [s.said[index].answer or None for s in sheets.values() if s.stage == stage]
        most = consensus(said, lambda text: game.mixture.canonical(problem, text), game.beacon(round_), index)
        return _is_right(most, stages[stage])

    outcome = Outcome(problem, stages[ANSWER], right(ANSWER))
    if CRITIQUE in stages:
        critics = [t for t in played if t.stage == CRITIQUE and t.reading]
        voted = turns.voted_for(game, sheets, round_, index, problem)
        outcome = dataclasses.replace(
            outcome,
            critique=stages[CRITIQUE],
            critics=turns.criticised(game, critics, scores, disputed=False) if problem.verifiable else None,
            contested=turns.criticised(game, critics, scores, disputed=True) if problem.verifiable else None,
            vote=_is_right(voted, stages[ANSWER]),
        )
    if REVISE in stages:
        outcome = dataclasses.replace(outcome, revised=stages[REVISE], majority_revised=right(REVISE))
    return outcome


def _stage(game: Game, sheets: Mapping[bytes, Sheet], played: Sequence[Turn], scores: turns.Scored) -> Stage:
    def said(turn: Turn, text: str) -> str:
        if turn.stage == CRITIQUE:
            return str(game.prompt_format.named(text, turn.reading.numbers if turn.reading else ()))
        return game.mixture.canonical(turn.problem, turns.answer(game, turn, text))

    def right(turn: Turn) -> list[float]:
        if turn.stage != CRITIQUE or turn.reading is None:
            return turns.rewards(game, sheets, turn, scores)
        shown = [scores[turn.problem, said.answer or ""] for said in turn.reading.answers]
        return [float(names_best(named, shown)) for named in turns.named_by(game, turn)]

    return Stage(
        [right(turn) for turn in played],
        [[said(turn, s.text) for s in turn.completions] for turn in played],
        [speaks(game.beacon(t.round), t.author, t.stage, t.index, game.group_size) for t in played],
    )


def _is_right(canonical: str | None, stage: Stage) -> bool:
    """By the scores of those completions that say it."""
    cells = zip(chain.from_iterable(stage.canonical), chain.from_iterable(stage.scores), strict=True)
    return any(text == canonical and score >= RIGHT for text, score in cells)
