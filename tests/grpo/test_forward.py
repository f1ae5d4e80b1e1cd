"""How the training forward is computed changes what it keeps and how it rounds, not what it computes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax.grpo import learner
from rlswarm_jax.grpo.residuals import residuals, size
from rlswarm_jax.qwen import model
from tests.grpo import tiny

DEEP = dataclasses.replace(tiny.CONFIG, num_layers=3, qkv_bias=True)
ROWS, TIME = 12, tiny.PROMPT_SLOTS + tiny.NEW_TOKENS
SIZES = {"layers": DEEP.num_layers, "tokens": ROWS * TIME, "wide": DEEP.hidden_size}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    with tiny.optimizations(False):
        yield


@functools.cache
def params():
    return model.init_params(DEEP, jax.random.key(1), scale=0.3)


@functools.cache
def batch():
    return tiny.make_batch(seed=5, rows=ROWS, known="mixed")


def config(**changes):
    return dataclasses.replace(tiny.LEARNER, **changes)


def loss(params, batch, config=tiny.LEARNER):
    return learner.loss_sums(params, batch, DEEP, config)[0]


@functools.cache
def gradient(**changes):
    return jax.device_get(jax.jit(jax.grad(functools.partial(loss, config=config(**changes))))(params(), batch()))


def kept(**changes):
    return residuals(functools.partial(loss, config=config(**changes)), jax.eval_shape(params), batch())


class TestRemat:
    @pytest.mark.parametrize("remat", ["dots", "layer"])
    def test_gradients_are_those_without_it(self, remat):
        tiny.assert_close(gradient(remat=remat), gradient(remat="none"), 1e-6)

    def test_of_a_layer_only_its_input_is_kept(self):
        """So that one more layer costs as many bytes as its input has."""
        deeper = dataclasses.replace(DEEP, num_layers=DEEP.num_layers + 1)
        of_shape = (ROWS, TIME, DEEP.hidden_size)
        counts = {remat: [x.shape for x in kept(remat=remat)].count(of_shape) for remat in ("layer", "none")}
        more = residuals(
            lambda p, b: learner.loss_sums(p, b, deeper, config(remat="layer"))[0],
            jax.eval_shape(lambda: model.init_params(deeper, jax.random.key(0))),
            batch(),
        )
        assert size(more) - size(kept(remat="layer")) == 4 * ROWS * TIME * DEEP.hidden_size
        assert counts["layer"] <= DEEP.num_layers + 2 < counts["none"]

    def test_less_is_kept_the_more_is_computed_again(self):
        sizes = [size(kept(remat=remat)) for remat in ("none", "dots", "layer")]
        assert sizes[1] < 0.5 * sizes[0] and sizes[2] < 0.4 * sizes[1]

    def test_layers_of_half_a_billion_weights_keep_gigabytes_that_are_not_kept_with_it(self):
        """By shapes alone: 4 of its 24 layers, 8 rows of 1,024 tokens."""
        half_b = dataclasses.replace(
            DEEP,
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_layers=4,
            num_heads=14,
            num_kv_heads=2,
            head_dim=64,
        )
        weights = jax.eval_shape(lambda: model.init_params(half_b, jax.random.key(0)))

        def kept_of(remat):
            return size(residuals(*states_of(half_b, model.Forward("", remat), weights, rows=8)))

        none, layer = kept_of("none"), kept_of("layer")
        inputs = 4 * 8 * 1024 * 896 * 4
        assert inputs < layer < 1.6 * inputs and none > 20 * layer
        assert kept_of("auto") == layer
        assert none > 4 * model.KEPT_BYTES


class TestBlocks:
    def test_they_attend_to_what_the_whole_does(self):
        """In value and gradient, for a length that blocks do not divide."""
        rng = np.random.default_rng(0)
        q, k, v, weights = (rng.standard_normal((2, 331, n, 8)).astype(np.float32) for n in (4, 2, 2, 4))

        def of(attend):
            return jax.jit(jax.value_and_grad(lambda q, k, v: (attend(q, k, v) * weights).sum(), (0, 1, 2)))(q, k, v)

        seen = rng.random((2, 331, 331)) < 0.7
        seen |= np.eye(331, dtype=bool)
        found = of(lambda q, k, v: model.attend_in_blocks(q, k, v, seen))
        wanted = of(lambda q, k, v: model.attend_causally(0, q, k, v, seen_BTS=seen)[0])
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
        tiny.assert_close(found[1], wanted[1], 1e-5)

    def test_the_scores_of_a_long_text_are_never_kept(self):
        made = residuals(*states_of(DEEP, model.PLAIN, jax.eval_shape(params), rows=2))
        assert max(x.size for x in made if x.dtype != bool) < 2 * 1024 * 128 < 2 * DEEP.num_heads * 1024 * 1024 / 8


class TestHalfPrecision:
    def test_gradients_are_float32_and_those_of_float32_but_for_rounding(self):
        half, whole = gradient(dtype="bfloat16"), gradient()
        assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype("float32")}
        for path, found in jax.tree_util.tree_leaves_with_path(half):
            wanted = functools.reduce(
                lambda tree, key: tree[getattr(key, "key", getattr(key, "idx", None))], path, whole
            )
            if np.linalg.norm(wanted) > 1e-2:
                cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
                assert cosine > 0.99, path
        assert not np.array_equal(half["norm"], whole["norm"])

    def test_no_product_with_a_weight_is_of_float32(self):
        """Of its gradients neither: a single one would keep matrix units idle."""
        jaxpr = jax.make_jaxpr(jax.grad(functools.partial(loss, config=config(dtype="bfloat16"))))(params(), batch())
        dots = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
        flat = [[str(v.aval.dtype) for v in eqn.invars] for eqn in dots if all(v.aval.ndim == 2 for v in eqn.invars)]
        assert len(flat) > 3 * 7 * DEEP.num_layers and set(map(tuple, flat)) == {("bfloat16", "bfloat16")}

    def test_the_gradient_of_a_weight_is_not_rounded_before_it_is_added_up(self):
        """Of one product it is what float32 makes of the same halves."""
        rng = np.random.default_rng(0)
        x, g = (jnp.asarray(rng.standard_normal((64, n)), jnp.bfloat16) for n in (16, 24))
        w = jnp.asarray(rng.standard_normal((16, 24)), jnp.float32)
        found = jax.grad(lambda w: (model.product(x, w) * g).sum())(w)
        wanted = np.asarray(x, np.float32).T @ np.asarray(g, np.float32)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        assert np.abs(wanted.astype(jnp.bfloat16).astype(np.float32) - wanted).max() > 1e-2


def states_of(config, how, weights, rows):
    """A loss of texts of 1,024 tokens, and the shapes of its arguments."""
    of_text, seen_BTS = jax.ShapeDtypeStruct((rows, 1024), jnp.int32), jax.ShapeDtypeStruct((rows, 1024, 1024), bool)
    return (lambda p, *batch: model.trained_states(p, config, *batch, how).sum()), weights, of_text, of_text, seen_BTS


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
