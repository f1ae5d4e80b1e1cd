"""What is done about samples of another policy than the one that learns: three policies, and weights between them.

*Behaviour* has sampled: this node's weights in the sampler's dtype and cache, or a peer's. *Proximal* is the policy
before the round's first update, by the trainer; the ratio that a loss bounds is the *current* policy's to it. So what
has been learned since is told apart from who has sampled (decoupled PPO, arXiv:2110.00641 eq. 4).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

MAX_LOG_RATIO = 20.0  # a peer may claim any log-prob: an infinite ratio would make the weights NaN, clipped or not
MAX_UNLIKELY = 1 / 16  # of a peer's completion


def log_weights(proximal_BT: Array, behaviour_BT: Array, level: str, mask_BT: Array) -> Array:
    """Log of the importance weight, proximal over behaviour, of each token, `[B, T]` nats, within 20 of 0.

    mask_BT: the tokens of which it is known; of others it is 0. level: "sequence" gives all tokens of a completion the
    whole one's, the *sum* of theirs, which is unbiased and varies more; any other their own.
    """
    gap_BT = jnp.where(mask_BT, jnp.clip(proximal_BT - behaviour_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO), 0.0)
    if level == "sequence":
        whole_B1 = jnp.clip(gap_BT.sum(axis=1, keepdims=True), -MAX_LOG_RATIO, MAX_LOG_RATIO)
        gap_BT = jnp.where(mask_BT, whole_B1, 0.0)
    return jax.lax.stop_gradient(gap_BT)


def bounded(weights_BT: Array, floor: float, cap: float, masked_BT: Array) -> Array:
    """The weights cut off at both bounds; where `masked_BT`, those beyond are 0 instead, and teach nothing.

    Truncated importance sampling (Ionides 2008; of a sampler that differs from its trainer: Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training"), and masked (IcePop, arXiv:2510.18855).
    """
    outside_BT = (weights_BT < floor) | (weights_BT > cap)
    return jnp.where(masked_BT & outside_BT, 0.0, jnp.clip(weights_BT, floor, cap))


def likely_tokens(logprobs_BC: Array, mask_BC: Array, min_prob: float) -> Array:
    """Which tokens of others' completions are to be learned from, `[B, C]` bool: those that the policy might have said.

    A token that it gives less than `min_prob` is not, nor is a completion of which more than `MAX_UNLIKELY` is such:
    what is right in a manner of its own is nothing that the policy could have been rewarded for. 0 takes all.
    """
    unlikely_BC = mask_BC & (jax.lax.stop_gradient(logprobs_BC) < jnp.log(min_prob))
    few_B = unlikely_BC.sum(axis=1) <= MAX_UNLIKELY * mask_BC.sum(axis=1)
    return mask_BC & ~unlikely_BC & few_B[:, None]


def effective_share(log_weights_X: np.ndarray) -> float:
    """Effective sample size of importance weights, over their number: 1 where all are equal (Kong 1992)."""
    log_weights_X = np.clip(np.asarray(log_weights_X, np.float64), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    weights_X = np.exp(log_weights_X - log_weights_X.max(initial=-MAX_LOG_RATIO))
    return float(weights_X.sum() ** 2 / (len(weights_X) * (weights_X**2).sum())) if len(weights_X) else 1.0
