"""Group-relative advantages: a completion is judged against the other completions of its own prompt."""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

ADVANTAGES = ("std", "none", "leave_one_out", "pass_at_k")
EPS = 1e-6


def group_advantages(rewards_PG: Array, *, how: str = "std", pass_k: int = 4, eps: float = EPS) -> Array:
    """Advantage of each completion among those of its own group, `[P, G]` float32.

    how: "std", its reward less the group's mean over the group's standard deviation (GRPO, arXiv:2402.03300 section
    4.1.2); "none", without the deviation, in the units of rewards (Dr. GRPO, arXiv:2503.20783); "leave_one_out",
    less the mean of the *others*, which is G / (G - 1) times that (RLOO, arXiv:2402.14740); "pass_at_k",
    what it adds to the best of `pass_k` (see `pass_at_k_advantages`). A group whose rewards are all equal gets zeros.
    """
    rewards_PG = rewards_PG - rewards_PG[:, :1]  # the mean of equal rewards is off by a rounding, that of zeros is not
    if how == "pass_at_k":
        return pass_at_k_advantages(rewards_PG, pass_k, eps)
    centred_PG = jnp.asarray(rewards_PG - rewards_PG.mean(axis=1, keepdims=True), jnp.float32)
    if how == "none":
        return centred_PG
    if how == "leave_one_out":
        size = rewards_PG.shape[1]
        return centred_PG * (size / (size - 1))
    return centred_PG / (rewards_PG.std(axis=1, keepdims=True) + eps)


def pass_at_k_advantages(rewards_PG: Array, k: int, eps: float = EPS) -> Array:
    """The advantage of all k of a group's completions together, mean over the choices of k that one is in, `[P, G]`.

    What k completions earn together is what their best one does; its mean and standard deviation are over all choices
    of k out of G. (Pass@k training, arXiv:2508.10751, its analytical derivation, where rewards are 0 and 1; the same by
    order statistics where they are not.) With k = 1 it is "std".
    """
    size = rewards_PG.shape[1]
    if not 1 <= k <= size:
        raise ValueError(f"the best of {k} is asked for, of groups of {size}.")
    order_PG = jnp.argsort(rewards_PG, axis=1)
    sorted_PG = jnp.take_along_axis(jnp.asarray(rewards_PG, jnp.float32), order_PG, axis=1)
    sorted_PG -= sorted_PG[:, k - 1 : k]  # above the least that k can earn: if they can earn no more, zeros all along
    # of all choices of k, the share whose best is the j-th from below; and of those that have one that is not it
    best_G = np.array([math.comb(j, k - 1) / math.comb(size, k) for j in range(size)], np.float32)
    with_other_G = np.array([math.comb(j - 1, k - 2) if j and k > 1 else 0 for j in range(size)]) / math.comb(
        size - 1, k - 1
    )
    own_G = np.array([math.comb(j, k - 1) for j in range(size)]) / math.comb(size - 1, k - 1)
    mean_P1 = (sorted_PG * best_G).sum(axis=1, keepdims=True)
    deviation_P1 = jnp.sqrt((best_G * (sorted_PG - mean_P1) ** 2).sum(axis=1, keepdims=True))
    others_PG = sorted_PG * with_other_G.astype(np.float32)
    above_PG = others_PG.sum(axis=1, keepdims=True) - jnp.cumsum(others_PG, axis=1)  # its best is one further up
    found_PG = (own_G.astype(np.float32) * sorted_PG + above_PG - mean_P1) / (deviation_P1 + eps)
    return jnp.take_along_axis(found_PG, jnp.argsort(order_PG, axis=1), axis=1)


def overlong_penalties(lengths_G: Sequence[int], most: int, buffer: float) -> np.ndarray:
    """What is added to the rewards of completions of so many *tokens*, from 0 down to -1, `[G]` float32.

    Nothing up to the last `buffer` (a share) of the `most` tokens that there may be, from there on by line, and -1 for
    one that used them all up (DAPO's soft overlong punishment, arXiv:2503.14476 eq. 13).
    """
    cache = buffer * most
    if cache <= 0:
        return np.zeros(len(lengths_G), np.float32)
    return np.clip((most - cache - np.asarray(lengths_G, np.float32)) / cache, -1.0, 0.0).astype(np.float32)


def judged(
    rewards_G: Sequence[float],
    lengths_G: Sequence[int],
    *,
    advantage: str,
    pass_k: int,
    overlong_buffer: float,
    max_new_tokens: int,
) -> np.ndarray:
    """Advantages of one group's completions, of so many tokens each, `[G]` float32."""
    rewards = np.array(rewards_G, np.float32) + overlong_penalties(lengths_G, max_new_tokens, overlong_buffer)
    return np.array(_of_group(tuple(rewards.tolist()), advantage, pass_k), np.float32)


@functools.lru_cache(maxsize=4096)  # rewards are mostly 0 and 1, and dispatching costs half a millisecond
def _of_group(rewards_G: tuple[float, ...], advantage: str, pass_k: int) -> list[float]:
    rewards_1G = np.array(rewards_G, np.float32)[None]
    return np.asarray(group_advantages(rewards_1G, how=advantage, pass_k=pass_k))[0].tolist()
