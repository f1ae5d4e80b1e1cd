"""What a completion earns, by stage: pure functions of scores that this node has found itself.

Nothing here reads text. What a critic names and what the swarm voted for are numbers and answers that the game has
taken from completions and signed records (`prompts.py`, `stages.py`).
"""

import dataclasses
from collections.abc import Sequence

from rlswarm_jax.game.prompts import NONE

RIGHT = 1.0  # the score of a right answer
PAY_VERSION = 2  # changes when anything is paid for otherwise: critiques are paid for where it is contested


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What is added to being right, each as a share of it; 0 leaves it out.

    form: for a completion in which there is an answer, or something named. improvement: for a revision, by as much as
    it is better than the first answer. (It makes recoveries weigh more where advantages keep their scale,
    `learn.advantage="none"`; within a group it is the same for equal scores.) consensus: for a revision that
    says what the swarm voted for, of a problem whose answers nothing can verify. derivation: for a critique that names
    something and answers rightly itself, where its format has it answer (compact, "17#1"): whoever revises reads that.
    """

    form: float = 0.0
    improvement: float = 0.0
    consensus: float = 0.0
    derivation: float = 0.0


def answer_reward(score: float, well_formed: bool, weights: Rewards) -> float:
    return score + weights.form * well_formed


def contested(scores: Sequence[float]) -> bool:
    """Whether the answers shown differ in worth: where they don't, naming any of them is as right as naming another."""
    return max(scores, default=0.0) > min(scores, default=0.0)


def names_best(named: int | None, scores: Sequence[float]) -> bool:
    """Whether a critique tells the truth: it names an answer that none is better than, or NONE and none is right.

    named: number of an answer, from 1, or NONE; None if the critique names nothing. scores: of the answers shown. An
    answer worth nothing is never the best.
    """
    if named is None:
        return False
    best = max(scores, default=0.0)
    return best < RIGHT if named == NONE else 0 < scores[named - 1] == best


def critique_reward(named: int | None, scores: Sequence[float] | None, weights: Rewards, derived: float = 0.0) -> float:
    """1 for the truth (`names_best`) where it is contested; where it is not, a constant would earn as much: nothing.

    scores: None where nothing can score the answers shown, so that no critique is known to be true. derived: score of
    what the critic answers itself, which no constant earns.
    """
    if named is None:
        return 0.0
    derivation = weights.derivation * derived
    if scores is not None and not contested(scores):
        return derivation
    return float(scores is not None and names_best(named, scores)) + weights.form + derivation


def chance(scores: Sequence[float]) -> float:
    """How often a critique tells the truth that names NONE or any of the answers at random."""
    return sum(names_best(n, scores) for n in range(len(scores) + 1)) / (len(scores) + 1)


def revise_reward(score: float, first: float, agrees: bool, well_formed: bool, weights: Rewards) -> float:
    """first: score of the reviser's own first answer. agrees: whether the revision says what the swarm voted for."""
    improvement = weights.improvement * max(score - first, 0.0)
    return score + improvement + weights.consensus * agrees + weights.form * well_formed
