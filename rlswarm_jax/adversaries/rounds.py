"""Strategies that change what a node does in its round: each takes the honest round's generator and returns another.

What the driver is asked for, and what the honest round is told of it, pass through the strategy's hands.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec
import numpy as np

from rlswarm_jax import randomness
from rlswarm_jax.game.effects import Audit, Effect, Hear, Learn, Pin, Publish, Sample, Sampled
from rlswarm_jax.game.round import NodeState, Round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.records import schema
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, MAX_VERDICTS, NOT_PRODUCED, PRODUCED, Verdict
from rlswarm_jax.records.trust import Audited
from rlswarm_jax.tasks import Problem

BEST_OF = 4  # completions, of which one is published
Handled = Generator[Effect, Any, Any]  # from an effect of the honest round to what it is told


def other_key(game: Game, state: NodeState, honest: Round) -> Round:
    """Samples with keys of its own choice: it could grind them until the completions are to its liking."""

    def handle(effect: Effect) -> Handled:
        if isinstance(effect, Sample):
            effect = dataclasses.replace(effect, keys_PGM=_other_keys(game, state, effect.keys_PGM, 1))
        return (yield effect)

    return _handled(honest, handle)


def best_of(game: Game, state: NodeState, honest: Round) -> Round:
    """Samples every answer `BEST_OF` times, with keys of its own choice, and publishes the best."""
    account, answered = state.account, False

    def handle(effect: Effect) -> Handled:
        nonlocal account, answered
        result = yield effect
        if isinstance(effect, Hear):
            account = account.hear(result, take=state.round % max(1, game.chain_every) == 0)
        if not isinstance(effect, Sample) or answered:
            return result
        answered = True
        problems = [game.problem(game.author, state.round, index, account.beacon) for index in game.indices(ANSWER)]
        tries = [result]
        for number in range(1, BEST_OF):
            keys_PGM = _other_keys(game, state, effect.keys_PGM, number)
            tries.append((yield dataclasses.replace(effect, keys_PGM=keys_PGM)))

        def best(problem: Problem, said: Sequence[Sampled]) -> Sampled:
            return max(said, key=lambda one: game.mixture.score(problem, game.prompt_format.answer(one.text)))

        of_problems = zip(problems, zip(*tries, strict=True), strict=True)
        return [[best(problem, said) for said in zip(*groups, strict=True)] for problem, groups in of_problems]

    return _handled(honest, handle)


def stale(game: Game, state: NodeState, honest: Round) -> Round:
    """Never learns: it samples with the weights it began with, and counts on as if they were new."""

    def handle(effect: Effect) -> Handled:
        return {"updates": 1.0} if isinstance(effect, Learn) else (yield effect)

    return _handled(honest, handle)


def withhold(game: Game, state: NodeState, honest: Round) -> Round:
    """Names weights that nobody has."""

    def handle(effect: Effect) -> Handled:
        name = yield effect
        return randomness.digest("pool", "withhold", name) if isinstance(effect, Pin) else name

    return _handled(honest, handle)


def accuse(game: Game, state: NodeState, honest: Round) -> Round:
    """Says of what its peers said last that they did not sample it."""
    theirs = [record for record, sheet in state.sheets.items() if sheet.author != game.author]
    lies = [Verdict(record, 0, NOT_PRODUCED, 64, 99.0, 9.0) for record in sorted(theirs)][:MAX_VERDICTS]

    def handle(effect: Effect) -> Handled:
        if isinstance(effect, Publish) and effect.record.stage == ANSWER:
            effect = Publish(msgspec.structs.replace(effect.record, verdicts=lies))
        return (yield effect)

    return _handled(honest, handle)


def vouch(game: Game, state: NodeState, honest: Round) -> Round:
    """Says of all that it checks that it was sampled, whatever it finds: it covers for somebody."""

    def handle(effect: Effect) -> Handled:
        result = yield effect
        if not isinstance(effect, Audit):
            return result
        verdicts = [msgspec.structs.replace(one.verdict, finding=PRODUCED) for one in result]
        return [Audited(one.author, verdict) for one, verdict in zip(result, verdicts, strict=True)]

    return _handled(honest, handle)


def equivocate(game: Game, state: NodeState, honest: Round) -> Round:
    """Says two things at once: a second record for the same slot, that others may hear first."""

    def handle(effect: Effect) -> Handled:
        if isinstance(effect, Publish):
            yield Publish(msgspec.structs.replace(effect.record, policy_version=effect.record.policy_version + 1))
        return (yield effect)

    return _handled(honest, handle)


def own_vote(game: Game, state: NodeState, honest: Round) -> Round:
    """Its critics vote for its own answer, as if they had been shown it first."""
    own: list[bytes] = []

    def handle(effect: Effect) -> Handled:
        if isinstance(effect, Publish) and effect.record.stage == ANSWER:
            own.append(schema.content_hash(schema.encode(effect.record)))
        if isinstance(effect, Publish) and effect.record.stage == CRITIQUE:
            said = [msgspec.structs.replace(g, parents=own + g.parents[1:], vote=1) for g in effect.record.groups]
            effect = Publish(msgspec.structs.replace(effect.record, groups=said))
        return (yield effect)

    return _handled(honest, handle)


def _handled(honest: Round, handle: Callable[[Effect], Handled]) -> Round:
    result = None
    while True:
        try:
            effect = honest.send(result)
        except StopIteration as stop:
            return stop.value
        result = yield from handle(effect)


def _other_keys(game: Game, state: NodeState, keys_PGM: np.ndarray, number: int) -> np.ndarray:
    """As many, that are nobody's."""
    drawn = randomness.key_data("pool", "keys", game.author, state.round, number)
    return keys_PGM ^ drawn
