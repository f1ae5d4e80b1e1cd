"""The loss as a small algebra: pieces with their papers, and the presets that put them together.

Whoever adds a loss adds a line to `PRESETS` (presets.py), and where it bounds the ratio in its own way a function to
`SURROGATES` here. Then `--config.learn.loss=NAME` trains with it. docs/losses.md is the table for users.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlswarm_jax.grpo.advantages import ADVANTAGES as ADVANTAGES
from rlswarm_jax.grpo.corrections import MAX_LOG_RATIO, bounded, likely_tokens, log_weights
from rlswarm_jax.grpo.losses import token_sum
from rlswarm_jax.grpo.presets import OWN as OWN
from rlswarm_jax.grpo.presets import PRESETS as PRESETS
from rlswarm_jax.grpo.presets import resolved as resolved

Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is made of log-probs and advantages; fields are called as the config's, where their meaning stands.

    max_new_tokens: of a completion, which "constant" divides by.
    """

    ratio: str = OWN["ratio"]
    surrogate: str = OWN["surrogate"]
    clip_low: float = OWN["clip_low"]
    clip_high: float = OWN["clip_high"]
    dual_clip: float = OWN["dual_clip"]
    tau_positive: float = OWN["tau_positive"]
    tau_negative: float = OWN["tau_negative"]
    aggregation: str = OWN["aggregation"]
    kl: str = OWN["kl"]
    kl_weight: float = OWN["kl_weight"]
    reference_every: int = 0
    entropy_bonus: float = 0.0
    entropy_top: float = 1.0
    correction: str = "token"
    correction_floor: float = 0.0
    correction_cap: float = 2.0
    external_correction: str = "reencode"
    external_min_prob: float = 0.0
    max_new_tokens: int = 1

    @property
    def keeps_reference(self) -> bool:
        """Whether a copy of earlier weights has to be kept; those before the round's first update need none."""
        return self.kl_weight > 0 and self.reference_every != 1


# --- ratio: how far the current policy has gone from the proximal one


def log_ratio(logprobs_BT: Array, old_logprobs_BT: Array) -> Array:
    """Log-prob of each token now less that before, `[B, T]` nats, within 20 of 0."""
    return jnp.clip(logprobs_BT - jax.lax.stop_gradient(old_logprobs_BT), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_ratio(log_ratio_BT: Array, mask_BT: Array) -> Array:
    """Each token's own, `[B, T]` (PPO, arXiv:1707.06347 eq. 6)."""
    return jnp.exp(log_ratio_BT)


def sequence_ratio(log_ratio_BT: Array, mask_BT: Array) -> Array:
    """The geometric mean over a completion's tokens for each of them, `[B, T]`; each one's gradient is its own.

    GSPO-token (arXiv:2507.18071 eq. 14). A mean of log-ratios, not their sum: bounds are for any length.
    """
    counts_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
    mean_B1 = jnp.where(mask_BT, log_ratio_BT, 0.0).sum(axis=1, keepdims=True) / counts_B1
    return jnp.exp(jax.lax.stop_gradient(mean_B1) + log_ratio_BT - jax.lax.stop_gradient(log_ratio_BT))


RATIOS: dict[str, Callable[[Array, Array], Array]] = {"token": token_ratio, "sequence": sequence_ratio}


# --- surrogate: what is to be maximised


class Surrogate(NamedTuple):
    """objective_BT: per token, to be maximised. low_BT, high_BT, dual_BT: where which bound binds, bool."""

    objective_BT: Array
    low_BT: Array | bool = False
    high_BT: Array | bool = False
    dual_BT: Array | bool = False


def clip(ratio_BT: Array, logprobs_BT: Array, advantages_B1: Array, o: Objective) -> Surrogate:
    """The smaller of the plain and the clipped objective.

    PPO (arXiv:1707.06347 eq. 7) with the two bounds of DAPO (arXiv:2503.14476 eq. 10), and with that of dual-clip PPO
    (arXiv:1912.09729 eq. 5): PPO bounds what a good token can gain and a bad one can lose, but not what a bad token
    costs whose ratio is large. Below dual_clip (> 1; 0: no such bound) times a negative advantage the objective falls
    no further, and such a token has no gradient.
    """
    clipped_BT = jnp.clip(ratio_BT, 1.0 - o.clip_low, 1.0 + o.clip_high)
    lower_BT = jnp.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    bad_B1, dual_BT = advantages_B1 < 0, jnp.zeros(ratio_BT.shape, bool)
    if o.dual_clip:
        lower_BT = jnp.where(bad_B1, jnp.maximum(lower_BT, o.dual_clip * advantages_B1), lower_BT)
        dual_BT = bad_B1 & (ratio_BT > o.dual_clip)
    high_BT = (advantages_B1 > 0) & (ratio_BT > 1 + o.clip_high)
    return Surrogate(lower_BT, bad_B1 & (ratio_BT < 1 - o.clip_low), high_BT, dual_BT)


def cispo(ratio_BT: Array, logprobs_BT: Array, advantages_B1: Array, o: Objective) -> Surrogate:
    """REINFORCE, each token weighted by its ratio within bounds, which has no gradient: no token is left out.

    CISPO (arXiv:2506.13585 eq. 4 and 5).
    """
    weights_BT = jax.lax.stop_gradient(jnp.clip(ratio_BT, 1.0 - o.clip_low, 1.0 + o.clip_high))
    return Surrogate(weights_BT * advantages_B1 * logprobs_BT, ratio_BT < 1 - o.clip_low, ratio_BT > 1 + o.clip_high)


def sapo(ratio_BT: Array, logprobs_BT: Array, advantages_B1: Array, o: Objective) -> Surrogate:
    """A sigmoid in the place of the bounds: its slope is 1 at a ratio of 1 and fades on both sides.

    SAPO (arXiv:2511.20347): 4 / tau * sigmoid(tau * (ratio - 1)), steeper where the advantage is negative.
    """
    tau_B1 = jnp.where(advantages_B1 > 0, o.tau_positive, o.tau_negative)
    return Surrogate(4.0 / tau_B1 * jax.nn.sigmoid(tau_B1 * (ratio_BT - 1.0)) * advantages_B1)


def plain(ratio_BT: Array, logprobs_BT: Array, advantages_B1: Array, o: Objective) -> Surrogate:
    """Without a bound: at a ratio of 1 its gradient is REINFORCE's."""
    return Surrogate(ratio_BT * advantages_B1)


SURROGATES: dict[str, Callable[[Array, Array, Array, Objective], Surrogate]] = {
    "clip": clip,
    "cispo": cispo,
    "sapo": sapo,
    "none": plain,
}


# --- divergence from a reference policy, per token


KL: dict[str, Callable[[Array], Array]] = {
    # of log (reference / policy) where the policy has sampled: Schulman 2020, "Approximating KL divergence"
    "k1": lambda log_BT: -log_BT,
    "k2": lambda log_BT: 0.5 * log_BT**2,
    "k3": lambda log_BT: jnp.exp(log_BT) - log_BT - 1.0,
}


# --- aggregation: a sum over the tokens of any number of tiles, and what the sum of those sums is divided by


def aggregate(values_BT: Array, mask_BT: Array, how: str, constant: int) -> tuple[Array, Array]:
    """Sum, and its share of the divisor; both are added over tiles, micro-batches and devices before one division.

    "tokens": the mean over all tokens (DAPO, arXiv:2503.14476 eq. 8); "sequences": the mean over completions of the
    mean over their tokens (GRPO, arXiv:2402.03300 eq. 3); "constant": the sum over a completion's tokens by the same
    number for each, the most that it may have (Dr. GRPO, arXiv:2503.20783). What is masked may be anything.
    """
    counts_B = mask_BT.sum(axis=1).astype(jnp.float32)
    if how == "tokens":
        return token_sum(values_BT, mask_BT), counts_B.sum()
    sequences = (counts_B > 0).sum().astype(jnp.float32)
    if how == "constant":
        return token_sum(values_BT, mask_BT), sequences * constant
    return token_sum(values_BT / jnp.maximum(counts_B, 1.0)[:, None], mask_BT), sequences


AGGREGATIONS = ("tokens", "sequences", "constant")


# --- the loss


def loss_sums(logprobs_BC: Array, entropy_BC: Array, batch: Any, o: Objective) -> tuple[Array, Sums]:
    """The loss of a tile before it is divided by "divisor", and sums of what the metrics are made of.

    logprobs_BC, entropy_BC: the current policy's. batch: a `learner.Batch`.
    """
    mask_BC = jnp.arange(batch.max_new_tokens) < batch.completion_lengths_B[:, None]
    external_BC = mask_BC & batch.external_B[:, None]
    likely_BC = likely_tokens(logprobs_BC, external_BC, o.external_min_prob)
    mask_BC = jnp.where(external_BC, likely_BC, mask_BC)

    current_BC, advantages_B1 = jax.lax.stop_gradient(logprobs_BC), batch.advantages_B[:, None]
    proximal_BC = jnp.where(mask_BC & batch.old_known_B[:, None], batch.old_logprobs_BC, current_BC)
    ratio_BC = RATIOS[o.ratio](log_ratio(logprobs_BC, proximal_BC), mask_BC)
    surrogate = SURROGATES[o.surrogate](ratio_BC, logprobs_BC, advantages_B1, o)
    objective_BC = surrogate.objective_BT

    known_BC, gap_BC, weights_BC = jnp.zeros_like(mask_BC), jnp.zeros_like(ratio_BC), jnp.ones_like(ratio_BC)
    if batch.behaviour_logprobs_BC is not None:
        known_BC = mask_BC & batch.behaviour_known_B[:, None]
        gap_BC = log_weights(proximal_BC, batch.behaviour_logprobs_BC, "token", known_BC)
        weights_BC = jnp.exp(log_weights(proximal_BC, batch.behaviour_logprobs_BC, o.correction, known_BC))
        if o.correction != "none":
            masked_BC = external_BC & (o.external_correction == "mask")
            objective_BC = bounded(weights_BC, o.correction_floor, o.correction_cap, masked_BC) * objective_BC
    if batch.entropy_floor_B is not None:
        objective_BC = jnp.where(entropy_BC >= batch.entropy_floor_B[:, None], objective_BC, 0.0)

    losses_BC, sums = -objective_BC, Sums()
    if batch.reference_logprobs_BC is not None:
        kl_BC = KL[o.kl](jnp.clip(batch.reference_logprobs_BC - logprobs_BC, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        losses_BC = losses_BC + o.kl_weight * kl_BC
        sums["kl"] = token_sum(jax.lax.stop_gradient(kl_BC), mask_BC)
    if o.entropy_bonus:
        losses_BC = losses_BC - o.entropy_bonus * entropy_BC
    loss, divisor = aggregate(losses_BC, mask_BC, o.aggregation, o.max_new_tokens)

    learned_BC = mask_BC & (advantages_B1 != 0)
    counts = {
        "tokens": mask_BC,
        "live": learned_BC,
        "external": external_BC,
        "unlikely": external_BC & ~likely_BC,
        "clip_low": learned_BC & surrogate.low_BT,
        "clip_high": learned_BC & surrogate.high_BT,
        "clip_dual": learned_BC & surrogate.dual_BT,
        "cut": known_BC & ((weights_BC < o.correction_floor) | (weights_BC > o.correction_cap)),
        "known": known_BC,
    }
    means = {
        "ratio": ratio_BC,
        "importance": weights_BC,
        "importance_squared": weights_BC**2,
        "entropy": entropy_BC,
        "logprob_gap": jnp.abs(gap_BC),
    }
    sums |= {name: count_BC.sum().astype(jnp.float32) for name, count_BC in counts.items()}
    sums |= {name: token_sum(value_BC, mask_BC) for name, value_BC in means.items()}
    return loss, sums | {"divisor": divisor, "importance_max": jnp.where(mask_BC, weights_BC, 0.0).max()}


def means(loss: Array, sums: Sums) -> dict[str, Array]:
    """What the sums over all tiles say of a batch: the loss, and metrics, float32 scalars."""
    tokens = jnp.maximum(sums["tokens"], 1.0)
    importance = sums["importance"] / tokens
    found = {
        "loss": loss / jnp.maximum(sums["divisor"], 1.0),
        "tokens": sums["tokens"],
        "unlikely_fraction": sums["unlikely"] / jnp.maximum(sums["external"], 1.0),
        "ratio_mean": sums["ratio"] / tokens,
        "importance_mean": importance,
        "importance_max": sums["importance_max"],
        "importance_cut_fraction": sums["cut"] / tokens,
        "ess_fraction": importance**2 / jnp.maximum(sums["importance_squared"] / tokens, 1e-9),
        "clip_fraction": (sums["clip_low"] + sums["clip_high"] + sums["clip_dual"]) / tokens,
        "clip_low_fraction": sums["clip_low"] / tokens,
        "clip_high_fraction": sums["clip_high"] / tokens,
        "clip_dual_fraction": sums["clip_dual"] / tokens,
        "entropy": sums["entropy"] / tokens,
        "logprob_gap": sums["logprob_gap"] / jnp.maximum(sums["known"], 1.0),
    }
    return found | ({"kl": sums["kl"] / tokens} if "kl" in sums else {})
