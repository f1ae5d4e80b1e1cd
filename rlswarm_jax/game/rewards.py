"""What a completion earns, by stage: pure functions of scores that this node has found itself.

Nothing here reads text. What a critic names and what the swarm voted for are numbers and answers that the game has
taken from completions and signed records (`prompts.py`, `stages.py`).
"""

import dataclasses
from collections.abc import Sequence

from rlswarm_jax.game.prompts import NONE

RIGHT = 1.0  # the score of a right answer


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What is added to being right, each as a share of it; 0 leaves it out.

    form: for a completion in which there is an answer, or something named. improvement: for a revision, by as much as
    it is better than the first answer. (It makes recoveries weigh more where advantages keep their scale,
    `learn.advantage_scale="none"`; within a group it is the same for equal scores.) consensus: for a revision that
    says what the swarm voted for, of a problem whose answers nothing can verify.
    """

    form: float = 0.0
    improvement: float = 0.0
    consensus: float = 0.0


def answer_reward(score: float, well_formed: bool, weights: Rewards) -> float:
    return score + weights.form * well_formed


def critique_reward(named: int | None, scores: Sequence[float] | None, weights: Rewards) -> float:
    """1 for the truth: an answer of those shown that none is better than, or NONE if none of them is right.

    named: number of an answer, from 1, or NONE; None if the critique names nothing. scores: of the answers shown;
    None where nothing can score them, so that no critique is known to be true. An answer worth nothing is never the
    best.
    """
    if named is None:
        return 0.0
    best = max(scores or (), default=0.0)
    true = scores is not None and (best < RIGHT if named == NONE else 0 < scores[named - 1] == best)
    return float(true) + weights.form


def chance(scores: Sequence[float]) -> float:
    """What a critique earns on average that names NONE or any of the answers at random."""
    return sum(critique_reward(n, scores, Rewards()) for n in range(len(scores) + 1)) / (len(scores) + 1)


def revise_reward(score: float, first: float, agrees: bool, well_formed: bool, weights: Rewards) -> float:
    """first: score of the reviser's own first answer. agrees: whether the revision says what the swarm voted for."""
    improvement = weights.improvement * max(score - first, 0.0)
    return score + improvement + weights.consensus * agrees + weights.form * well_formed
