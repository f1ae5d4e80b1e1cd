import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax.grpo import learner, losses
from tests.grpo import tiny

TEMPERATURE = 0.7


@functools.cache
def sampled():
    return tiny.make_batch(seed=3, rows=8)


def test_what_is_masked_does_not_count_not_even_if_it_is_not_a_number():
    values = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.inf, 4.0]])
    assert losses.token_sum(values, jnp.array([[True, True, False], [True, False, False]])) == 6.0


@jax.jit
def completion_logprobs(params, batch, temperature=TEMPERATURE):
    return learner.completion_logprobs(params, batch, tiny.CONFIG, temperature)


class TestCompletionLogprobs:
    @pytest.mark.parametrize("temperature", [0.7, 1.6])
    def test_they_are_the_dense_log_softmax_at_the_tokens_right_behind_the_prompt(self, temperature):
        found_BC, entropy_BC = completion_logprobs(tiny.params(), sampled(), temperature)
        table_BTV = tiny.dense(tiny.params(), sampled().tokens_BT, temperature)
        assert found_BC.shape == entropy_BC.shape == (8, tiny.NEW_TOKENS) and found_BC.dtype == np.float32
        assert len(set(sampled().prompt_lengths_B.tolist())) > 2
        assert set(sampled().completion_lengths_B.tolist()) == {1, 2, 3, 4}
        ends = 0
        for row in range(len(sampled().tokens_BT)):
            for c, at in enumerate(tiny.places(sampled(), row)):
                token, before_V = sampled().tokens_BT[row, at], table_BTV[row, at - 1]
                np.testing.assert_allclose(found_BC[row, c], before_V[token], rtol=0, atol=1e-5)
                np.testing.assert_allclose(entropy_BC[row, c], -np.sum(np.exp(before_V) * before_V), rtol=0, atol=1e-5)
                ends += token == 0
        assert 0 < ends < len(sampled().tokens_BT)

    def test_padding_is_invisible(self):
        garbage_BT = np.random.default_rng(0).integers(1, tiny.CONFIG.vocab_size, sampled().tokens_BT.shape, np.int32)
        for row, text in enumerate(garbage_BT):
            end = max(tiny.places(sampled(), row)) + 1
            text[:end] = sampled().tokens_BT[row, :end]
        assert (garbage_BT != sampled().tokens_BT).any(axis=1).sum() > 4
        plain = completion_logprobs(tiny.params(), sampled())
        found = completion_logprobs(tiny.params(), sampled().replace(tokens_XT=garbage_BT))
        written_BC = np.arange(tiny.NEW_TOKENS) < sampled().completion_lengths_B[:, None]
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one[written_BC], other[written_BC], rtol=0, atol=1e-6)


class TestChunks:
    """37 tokens over a vocabulary of 23, four tokens' logits at a time."""

    X, V, D, MAX = 37, 23, 16, 4 * 23

    @classmethod
    def inputs(cls):
        rng = np.random.default_rng(0)
        params = {"embed": rng.standard_normal((cls.V, cls.D)).astype(np.float32)}
        return params, rng.standard_normal((cls.X, cls.D)).astype(np.float32), rng.integers(0, cls.V, cls.X)

    @classmethod
    def value_and_grad(cls, max_logits):
        weights = np.random.default_rng(1).standard_normal((2, cls.X)).astype(np.float32)

        def weighted(params, states_XD, tokens_X):
            found = losses.chunked_logprobs(params, states_XD, tokens_X, 0.7, max_logits)
            return (weights[:, : len(tokens_X)] * jnp.stack(found)).sum(), found

        return jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)

    def test_chunked_equals_dense_in_values_and_gradients(self):
        (_, (logprobs, entropy)), gradients = jax.jit(self.value_and_grad(self.MAX + 5))(*self.inputs())
        params, states_XD, tokens_X = self.inputs()
        logits_XV = states_XD.astype(np.float64) @ params["embed"].T / 0.7
        dense_XV = logits_XV - np.log(np.exp(logits_XV).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(logprobs, dense_XV[np.arange(self.X), tokens_X], rtol=0, atol=1e-5)
        np.testing.assert_allclose(entropy, -(np.exp(dense_XV) * dense_XV).sum(axis=1), rtol=0, atol=1e-5)
        _, dense_gradients = jax.jit(self.value_and_grad(10**9))(*self.inputs())
        tiny.assert_close(gradients, dense_gradients, 3e-6)

    def test_a_chunk_in_which_nothing_is_asked_is_left_out(self):
        """Its states may be anything; what is asked beside it, and the gradients, are as if it were not there."""
        params, states_XD, tokens_X = self.inputs()
        tokens_X = np.where(np.arange(self.X) < 8, tokens_X, -1)  # two chunks of four
        (_, (logprobs, entropy)), gradients = jax.jit(self.value_and_grad(self.MAX))(params, states_XD, tokens_X)
        ruined = np.where(np.arange(self.X)[:, None] < 8, states_XD, np.nan)
        (_, found), (head, _) = jax.jit(self.value_and_grad(self.MAX))(params, ruined, tokens_X)
        tiny.assert_bit_equal(found, (logprobs, entropy))
        tiny.assert_bit_equal(head, gradients[0])
        dense = self.value_and_grad(10**9)(params, states_XD[:8], tokens_X[:8])
        np.testing.assert_allclose(logprobs[:8], dense[0][1][0], rtol=0, atol=1e-5)
        assert not np.any(logprobs[8:]) and not np.any(gradients[1][8:])

    def test_no_more_logits_than_asked_for_exist_forwards_or_backwards(self):
        def most_logits(max_logits):
            closed = jax.make_jaxpr(self.value_and_grad(max_logits))(*self.inputs())
            sizes = [np.prod(shape) for shape in shapes_in(closed.jaxpr) if self.V in shape and self.D not in shape]
            return max(sizes)

        assert most_logits(self.MAX) == self.MAX
        assert most_logits(10**9) == self.X * self.V
        assert most_logits(1) == self.V  # one token's logits are the least there can be


def shapes_in(jaxpr):
    """Shapes of all values of a jaxpr, those inside its loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)
