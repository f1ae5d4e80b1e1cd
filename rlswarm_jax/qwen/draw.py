"""Drawing a token from logits: part of the wire format (`rlswarm_jax.randomness`, version 1)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlswarm_jax.qwen import model

GREEDY = 0.0


@dataclasses.dataclass(frozen=True)
class Draw:
    """What is cut off the distribution after the temperature, for evaluation; by default nothing is.

    top_k: only the k likeliest tokens (0: all). top_p: only the likeliest tokens that together reach this probability
    (arXiv:1904.09751). min_p: only tokens at least this share as likely as the likeliest (arXiv:2407.01082). They
    apply one after the other, each to the distribution that the one before left. Raises ValueError if out of range.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"top_k must be >= 0, top_p in (0, 1] and min_p in [0, 1], not {self}.")


WHOLE = Draw()


def draw(logits_RV: Array, keys_R: Array, t_R: Array, temperature: float, how: Draw) -> tuple[Array, Array]:
    """Token t of each row, int32 `[R]`, and its float32 log-prob in the distribution it was drawn from.

    `keys_R` are the completions' typed keys. Temperature 0 takes the likeliest token, whose log-prob is that at
    temperature 1.
    """
    if temperature == GREEDY:
        token_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
        chosen_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=-1)[:, 0]
        return token_R, chosen_R - jax.nn.logsumexp(logits_RV, axis=-1)
    scaled_RV = truncated(logits_RV / temperature, how)
    return jax.vmap(two_level_gumbel)(scaled_RV, jax.vmap(jax.random.fold_in)(keys_R, t_R))


def two_level_gumbel(logits_V: Array, key: Array) -> tuple[Array, Array]:
    """One exact draw from softmax(logits), int32, and its log-prob, with 2 sqrt(V) Gumbel draws. Consumes `key`.

    Gumbel-max over chunks by their logsumexp, then over the tokens of the chosen chunk (a draw of the chunk with
    its marginal probability and of the token with its conditional one: the product is the token's own).
    """
    chunks_CV, noise_C, noise_V = _chunks_and_noise(logits_V, key)
    marginal_C = jax.nn.logsumexp(chunks_CV, axis=1)
    chunk = jnp.argmax(marginal_C + noise_C)
    inside = jnp.argmax(chunks_CV[chunk] + noise_V)
    token = (chunk * chunks_CV.shape[1] + inside).astype(jnp.int32)
    return token, chunks_CV[chunk, inside] - jax.nn.logsumexp(marginal_C)


def leads(logits_V: Array, key: Array, token: Array) -> tuple[Array, Array]:
    """How far `token` is from being drawn otherwise, `[2]`, and how open the two decisions were.

    The leads of its chunk over the best other one, and of itself over the best other token of its chunk. Both positive,
    it is what the key draws; the smaller is its margin: logits off by less than half of it cannot change its sign. How
    open: 1 - sum p^2 of the chunks, and of the tokens in its chunk, added up: how often two keys differ.
    """
    chunks_CV, noise_C, noise_V = _chunks_and_noise(logits_V, key)
    chunk, inside = token // chunks_CV.shape[1], token % chunks_CV.shape[1]
    marginal_C = jax.nn.logsumexp(chunks_CV, axis=1)
    lead_2 = jnp.stack([_lead(marginal_C + noise_C, chunk), _lead(chunks_CV[chunk] + noise_V, inside)])
    return lead_2, _variety(marginal_C) + _variety(chunks_CV[chunk])


def greedy_margin(logits_V: Array, token: Array) -> Array:
    """The lead of `token` over the best other one at temperature 0."""
    return _lead(logits_V, token)


def truncated(logits_RV: Array, how: Draw) -> Array:
    """Logits with what `how` cuts off at -1e30."""
    if how.top_k:
        kth_R1 = jax.lax.top_k(logits_RV, min(how.top_k, logits_RV.shape[-1]))[0][:, -1:]
        logits_RV = jnp.where(logits_RV < kth_R1, model.MASKED, logits_RV)
    if how.top_p < 1:
        sorted_RV = -jnp.sort(-logits_RV, axis=-1)
        before_RV = jnp.cumsum(jax.nn.softmax(sorted_RV, axis=-1), axis=-1) - jax.nn.softmax(sorted_RV, axis=-1)
        least_R1 = jnp.where(before_RV < how.top_p, sorted_RV, jnp.inf).min(axis=-1, keepdims=True)
        logits_RV = jnp.where(logits_RV < least_R1, model.MASKED, logits_RV)
    if how.min_p:
        least_R1 = logits_RV.max(axis=-1, keepdims=True) + np.log(how.min_p)
        logits_RV = jnp.where(logits_RV < least_R1, model.MASKED, logits_RV)
    return logits_RV


def _chunks_and_noise(logits_V: Array, key: Array) -> tuple[Array, Array, Array]:
    """Chunks of about sqrt(V) logits, and Gumbel noise for each chunk and for each place in one."""
    size = int(np.ceil(np.sqrt(logits_V.shape[0])))
    count = -(-logits_V.shape[0] // size)
    padded_V = jnp.pad(logits_V, (0, count * size - logits_V.shape[0]), constant_values=model.MASKED)
    noise = jax.random.gumbel(key, (count + size,), jnp.float32, mode="high")
    return padded_V.reshape(count, size), noise[:count], noise[count:]


def _lead(scores_X: Array, index: Array) -> Array:
    others = jnp.where(jnp.arange(scores_X.shape[0]) == index, -jnp.inf, scores_X)
    return scores_X[index] - others.max()


def _variety(logits_X: Array) -> Array:
    return 1 - jnp.square(jax.nn.softmax(logits_X)).sum()
