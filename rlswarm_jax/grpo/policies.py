"""What an update has to know of other policies than the current one: the proximal, the reference, a peer's."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax.grpo import tiles
from rlswarm_jax.grpo.corrections import effective_share
from rlswarm_jax.grpo.learner import AnchoredState, Batch, LearnerConfig, Reference, TrainState
from rlswarm_jax.qwen.model import Params

TIE = 1e-4  # nats: the first tokens of a prompt's completions have one entropy, but for rounding
Score = Callable[[Params, Batch], tuple[Array, Array]]  # log-probs and entropies, `[B, C]` each


def prepared(
    parts: Sequence[Batch], state: TrainState, score: Score, config: LearnerConfig, updates: int
) -> list[Batch]:
    """A round's tiles before the first of its updates, each with the log-probs that its loss asks for.

    With one update a round the proximal policy is the current one; with more of them it is scored here. So are the
    reference, and entropies where only the tokens of the highest are learned from: which these are is a matter of the
    whole batch, whatever its tiles.
    """
    nearby = config.kl_weight > 0 and config.reference_every == 1
    if updates > 1 or nearby or config.entropy_top < 1:
        scored = [jax.tree.map(np.asarray, score(state.params, part)) for part in parts]
        floor = _entropy_floor(parts, [entropy_BC for _, entropy_BC in scored], config.entropy_top)
        parts = [
            dataclasses.replace(
                part,
                old_logprobs_BC=logprobs_BC,
                old_known_B=np.ones(len(logprobs_BC), bool),
                reference_logprobs_BC=logprobs_BC if nearby else None,
                entropy_floor_B=None if floor is None else np.full(len(logprobs_BC), floor, np.float32),
            )
            for part, (logprobs_BC, _) in zip(parts, scored, strict=True)
        ]
    if state.reference is not None:
        known = [np.asarray(score(state.reference.params, part)[0]) for part in parts]
        parts = [dataclasses.replace(part, reference_logprobs_BC=one) for part, one in zip(parts, known, strict=True)]
    return list(parts)


def _entropy_floor(parts: Sequence[Batch], entropies: Sequence[np.ndarray], top: float) -> np.float32 | None:
    """What the share `top` of all tokens has at least (arXiv:2506.01939 eq. 5)."""
    if top >= 1:
        return None
    masks = [np.arange(part.max_new_tokens) < np.asarray(part.completion_lengths_B)[:, None] for part in parts]
    every = np.concatenate([entropy_BC[mask_BC] for entropy_BC, mask_BC in zip(entropies, masks, strict=True)])
    return np.float32(np.quantile(every, 1 - top) - TIE) if len(every) else np.float32(0)


def refreshed(state: TrainState, config: LearnerConfig, round_: int) -> TrainState:
    """With the policy as its own reference, if that is of an earlier epoch of `reference_every` rounds."""
    if not isinstance(state, AnchoredState) or state.reference is None or not config.reference_every:
        return state
    epoch = round_ // config.reference_every
    if int(np.asarray(state.reference.epoch)) == epoch:
        return state
    params = jax.tree.map(jnp.copy, state.params)
    return dataclasses.replace(state, reference=Reference(params, jnp.full_like(state.reference.epoch, epoch)))


def effective_shares(
    groups: Sequence[Sequence[tiles.Row]], params: Params, score: Score, shapes: Sequence[tiles.Shape]
) -> list[float]:
    """Of each group of completions that others have sampled: how many of its tokens count, weighted to be of this
    policy, over their number. Log-probs of all rows are known.
    """
    rows = [row for group in groups for row in group]
    gaps: dict[int, np.ndarray] = {}
    order = iter(tiles.order(rows, shapes))
    for part in tiles.tiles(rows, shapes) if rows else ():
        logprobs_BC = np.asarray(score(params, part)[0])
        for b in np.flatnonzero(part.completion_lengths_B):
            row = next(order)
            gaps[row] = logprobs_BC[b, : len(rows[row].completion)] - np.array(rows[row].logprobs, np.float32)
    at = iter(range(len(rows)))
    return [effective_share(np.concatenate([gaps[next(at)] for _ in group])) for group in groups]
