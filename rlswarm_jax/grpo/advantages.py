"""Group-relative advantages: a completion is judged against the other completions of its own prompt."""

from typing import Literal

import jax.numpy as jnp
from jax import Array


def group_advantages(rewards_PG: Array, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Array:
    """Advantage of each completion over its own group's mean, `[P, G]` float32.

    scale="std" divides by the group's standard deviation (GRPO, arXiv:2402.03300 eq. 3); "none" leaves rewards in
    their own units. (That is one of the two changes of Dr. GRPO, arXiv:2503.20783; the other, a constant in the place
    of the number of tokens, is the loss's business and not made here.) A group whose rewards are all equal gets zeros.
    """
    rewards_PG = rewards_PG - rewards_PG[:, :1]  # the mean of equal rewards is off by a rounding, that of zeros is not
    centred_PG = jnp.asarray(rewards_PG - rewards_PG.mean(axis=1, keepdims=True), jnp.float32)
    if scale == "none":
        return centred_PG
    return centred_PG / (rewards_PG.std(axis=1, keepdims=True) + eps)
