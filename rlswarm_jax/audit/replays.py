"""What a driver does for an audit: a case, a peer's record and the weights that it names make a verdict."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlswarm_jax.audit.statistics import Judgement, judge, spent
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Audit, Claimed, Metrics
from rlswarm_jax.game.effects import Replay as ReplayEffect
from rlswarm_jax.game.rules import Game
from rlswarm_jax.qwen import Tensors
from rlswarm_jax.qwen.verdict import Replay
from rlswarm_jax.qwen.verdict import Verdict as OfTokens
from rlswarm_jax.records import audits
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED, UNDECIDED, WITHHELD, Finding, Verdict
from rlswarm_jax.records.trust import Audited

FOUND: dict[OfTokens, Finding] = {
    OfTokens.PRODUCED: PRODUCED,
    OfTokens.NOT_PRODUCED: NOT_PRODUCED,
    OfTokens.UNDECIDED: UNDECIDED,
}
CLEAR = 0.5  # of the threshold: what comes nearer is not called produced, as another machine may find it above
# tensors of a peer, or None for the node's own; what is said to be drawn with them -> what a replay finds
Run = Callable[[Tensors | None, Sequence[Claimed]], list[Replay]]


def judged(run: Run, tensors: Tensors | None, claimed: Sequence[Claimed]) -> Judgement:
    """Of completions of one author. Raises ValueError for weights of another kind of model."""
    return doubted(judge(run(tensors, claimed)))


def doubted(found: Judgement) -> Judgement:
    """Undecided where another machine may find otherwise."""
    doubtful = found.verdict is OfTokens.PRODUCED and found.statistic > CLEAR * found.threshold
    return dataclasses.replace(found, verdict=OfTokens.UNDECIDED) if doubtful else found


def claim(game: Game, effect: Audit, case: Case, signed: SignedRecord) -> tuple[int, Claimed | None]:
    """The index of the group that a case is about, and what is said of it; None if it cannot be replayed here.

    Drawn is one of those that can: the others nobody learns from, and however many there are, they hide nothing.
    """
    indices = [group.index for group in signed.record.groups] if case.index is None else [case.index]
    every = [(index, turns.claim(game, effect.sheets, signed, index, effect.beacons)) for index in indices]
    readable = [(index, claimed) for index, claimed in every if claimed is not None]
    return readable[audits.place(case, len(readable))] if readable else (case.index or 0, None)


def absent(case: Case, signed: SignedRecord) -> Audited | None:
    """The verdict on a group that somebody asks about and the record does not have; None for one that it has.

    In what was never said there is nothing that was not sampled, so whoever accuses its author of it is wrong.
    """
    if case.index is None or any(group.index == case.index for group in signed.record.groups):
        return None
    return Audited(signed.record.author, Verdict(case.record, case.index, PRODUCED, 0, 0.0, 0.0))


def undecided(case: Case, signed: SignedRecord, index: int, finding: Finding = UNDECIDED) -> Audited:
    """Without a replay; or `WITHHELD`."""
    assert finding in (UNDECIDED, WITHHELD)
    return Audited(signed.record.author, Verdict(case.record, index, finding, 0, 0.0, 0.0))


def decide(run: Run, tensors: Tensors, case: Case, signed: SignedRecord, index: int, claimed: Claimed) -> Audited:
    """By a replay; undecided if the weights are of another kind of model than this node's."""
    try:
        found = judged(run, tensors, [claimed])
    except ValueError:
        return undecided(case, signed, index)
    figures = found.tokens, found.bits, found.statistic
    return Audited(signed.record.author, Verdict(case.record, index, FOUND[found.verdict], *figures))


def own(run: Run, effect: ReplayEffect) -> Metrics:
    """Of completions of a node's own, with the weights that learn: what they are together, and in how many tokens.

    gap: how far the sampler's log-probs are from the replay's, over what rounding may do (`statistics.spent`); above 1
    they are not of the same weights.
    """
    replayed = run(None, effect.claimed)
    found = doubted(judge(replayed))
    gap = spent([np.array(logprobs_T, np.float32) for logprobs_T in effect.logprobs], replayed)
    metrics = {f"audit/own_{name}": float(FOUND[found.verdict] == name) for name in FOUND.values()}
    metrics |= {"audit/own_tokens": float(found.tokens), "audit/own_bits": found.bits, "audit/own_gap": float(gap)}
    return metrics


def by_hash(records: Mapping[Any, SignedRecord]) -> dict[bytes, SignedRecord]:
    return {signed.hash: signed for signed in records.values()}
