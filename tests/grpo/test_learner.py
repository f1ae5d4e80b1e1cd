import dataclasses
import functools
import hashlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax.grpo import learner
from tests.grpo import tiny

B1, EPS = 0.9, 1e-8  # Adam's own
ROUNDING = 1e-5  # of gradients, relative to the largest entry; measured 2e-7 to 3e-6


@functools.cache
def mixed():
    return tiny.make_batch(seed=5, rows=12, known="mixed", behaviour="mixed")


@functools.cache
def learns(config=tiny.LEARNER):
    return learner.Learner(config, tiny.CONFIG)


def step_of(config=tiny.LEARNER):
    """A step that leaves the state as it was."""
    return lambda state, batch, rate=config.learning_rate: learns(config).step(copy(state), batch, rate)


def copy(state):
    return jax.tree.map(jnp.array, state)


def fresh(config=tiny.LEARNER, seed=0):
    return learns(config).init(tiny.params(seed))


def adam(state):
    return state.opt_state[1]


def learned_from(batch, step=None):
    """A step's metrics and its gradient: Adam's first moment holds a tenth of it, clipped."""
    state, metrics = jax.device_get((step or step_of())(fresh(), batch))
    clipping = max(1.0, metrics["grad_norm"] / tiny.LEARNER.max_grad_norm)
    return metrics, jax.tree.map(lambda m: m * clipping / (1 - B1), adam(state).mu)


@functools.cache
def from_mixed():
    return learned_from(mixed())


def assert_metrics(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


class TestLoss:
    def test_loss_and_metrics_are_those_of_the_definition(self):
        metrics, _ = from_mixed()
        expected = tiny.grpo(tiny.params(), mixed())
        assert metrics["updates"] == 1 and expected["tokens"] == mixed().completion_lengths_B.sum()
        assert 0.1 < expected["clip_fraction"] < 0.9 and 0.5 < expected["ess_fraction"] < 0.98
        assert_metrics(metrics, expected)

    def test_its_gradient_is_advantage_times_ratio_where_no_bound_binds(self):
        """Of every token, the end of sequence among them."""
        last_B = mixed().prompt_lengths_B + mixed().completion_lengths_B - 1
        assert 0 < (mixed().tokens_BT[np.arange(12), last_B] == 0).sum() < 12
        tiny.assert_close(from_mixed()[1], tiny.gradients(tiny.params(), mixed()), ROUNDING)

    def test_it_is_a_mean_over_tokens_so_long_completions_weigh_more(self):
        """Not a mean over completions of means over tokens."""
        short, long = (int(np.flatnonzero(mixed().completion_lengths_B == n)[0]) for n in (1, 4))
        alone = [learned_from(tiny.join(tiny.rows_of(mixed(), [row]), filler(11)))[0] for row in (short, long)]
        pair, _ = learned_from(tiny.join(tiny.rows_of(mixed(), [short, long]), filler(10)))
        assert [m["tokens"] for m in (*alone, pair)] == [1, 4, 5]
        np.testing.assert_allclose(pair["loss"], (1 * alone[0]["loss"] + 4 * alone[1]["loss"]) / 5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("factor", "advantage", "binds"),
        [(2.0, 1.0, True), (2.0, -1.0, False), (4.0, -1.0, True), (0.5, 1.0, False), (0.5, -1.0, True)],
    )
    def test_a_stale_samples_ratio_is_exp_of_the_difference_and_the_clip_binds(self, factor, advantage, binds):
        """Old log-probs detached from the current ones would give a ratio of 1 and an unclipped gradient."""
        batch = tiny.make_batch(seed=5, rows=12)
        old_BC = np.zeros_like(batch.old_logprobs_BC)
        for row, logprobs in enumerate(tiny.completion_logprobs(tiny.params(), batch)):
            old_BC[row, : len(logprobs)] = logprobs - np.log(factor)
        stale = batch.replace(old_logprobs_BC=old_BC, advantages_B=np.full(12, advantage, np.float32))
        metrics, gradient = learned_from(stale)
        np.testing.assert_allclose(metrics["ratio_mean"], factor, rtol=1e-5)
        assert metrics["clip_fraction"] == binds
        if binds:
            assert not any(g.any() for g in jax.tree.leaves(gradient))
        else:
            tiny.assert_close(gradient, reinforce(stale, weight=factor), ROUNDING)

    def test_rows_without_old_log_probs_are_on_policy(self):
        """A ratio of exactly 1, and the gradient of REINFORCE: it must not vanish with the ratio's derivative."""
        batch = tiny.make_batch(seed=5, rows=12, known=False)
        metrics, gradient = learned_from(batch)
        assert metrics["ratio_mean"] == metrics["ess_fraction"] == 1
        assert metrics["clip_fraction"] == metrics["logprob_gap"] == 0
        tiny.assert_close(gradient, reinforce(batch), ROUNDING)
        weighted = (batch.advantages_B * batch.completion_lengths_B).sum() / batch.completion_lengths_B.sum()
        np.testing.assert_allclose(metrics["loss"], -weighted, rtol=1e-5)

    @pytest.mark.parametrize("claim", [-100.0, -3e38])
    def test_a_peer_that_lies_about_its_log_probs_cannot_break_the_weights(self, claim):
        claims_BC = mixed().behaviour_logprobs_BC.copy()
        claims_BC[:6] = claim
        lies = mixed().replace(behaviour_logprobs_BC=claims_BC, behaviour_known_B=np.ones(12, bool))
        state, metrics = step_of()(fresh(), lies)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
        assert all(np.isfinite(value) for value in metrics.values()) and metrics["updates"] == 1

    @pytest.mark.parametrize("nats", [1.0, 5.0, 20.0, 1e38])
    @pytest.mark.parametrize("advantage", [-1.5, 1.5])
    def test_a_row_that_claims_log_probs_too_low_hardly_turns_the_gradient(self, nats, advantage):
        """One row of 96, of full length; nothing is filtered before."""
        honest = tiny.make_batch(seed=5, rows=96, shift=0.05, known=False, behaviour=True)
        row = int(np.flatnonzero(honest.completion_lengths_B == tiny.NEW_TOKENS)[0])
        advantages_B = honest.advantages_B.copy()
        advantages_B[row] = advantage
        honest = honest.replace(advantages_B=advantages_B)
        claims_BC = honest.behaviour_logprobs_BC.copy()
        claims_BC[row] -= nats
        metrics, turned = learned_from(honest.replace(behaviour_logprobs_BC=claims_BC))
        true = flat(tiny.gradients(tiny.params(), honest))
        turned = flat(turned)
        assert true @ turned / np.linalg.norm(true) / np.linalg.norm(turned) > 0.9
        assert np.linalg.norm(turned) < 1.5 * np.linalg.norm(true)
        assert all(np.isfinite(value) for value in metrics.values())

    def test_what_the_policy_would_hardly_say_teaches_nothing_if_a_peer_says_it(self):
        """The gradient, the metrics and the mean's denominator are those of the batch without it, by the definition."""
        batch = mixed()
        worst = [min(logprobs) for logprobs in tiny.completion_logprobs(tiny.params(), batch)]
        external_B = np.arange(12) % 3 != 0
        floor = float(np.median(worst))
        dropped = [row for row in range(12) if external_B[row] and worst[row] < floor]  # one token in four is too many
        assert 3 <= len(dropped) < external_B.sum() and any(worst[row] < floor for row in np.flatnonzero(~external_B))
        kept = tiny.join(tiny.rows_of(batch, [row for row in range(12) if row not in dropped]), filler(len(dropped)))
        guarded = step_of(dataclasses.replace(tiny.LEARNER, external_min_prob=float(np.exp(floor))))
        metrics, gradient = learned_from(batch.replace(external_B=external_B), guarded)
        tiny.assert_close(gradient, tiny.gradients(tiny.params(), kept), ROUNDING)
        assert_metrics(metrics, tiny.grpo(tiny.params(), kept))
        tokens = batch.completion_lengths_B
        np.testing.assert_allclose(metrics["unlikely_fraction"], tokens[dropped].sum() / tokens[external_B].sum())

    def test_where_all_is_a_stranger_s_and_unlikely_nothing_changes(self):
        guarded = step_of(dataclasses.replace(tiny.LEARNER, external_min_prob=0.999))
        moving = guarded(fresh(), mixed().replace(external_B=np.zeros(12, bool)))[0]
        assert moving.step == 1  # one's own completions are learned from, however unlikely
        after, metrics = guarded(moving, mixed().replace(external_B=np.ones(12, bool)))
        tiny.assert_bit_equal(after, moving)
        assert metrics["updates"] == 0 and metrics["unlikely_fraction"] == 1
        assert all(np.isfinite(value) for value in metrics.values())


def flat(tree):
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(jax.device_get(tree))])


def reinforce(batch, weight=1.0):
    """Gradient of minus the mean of advantage times log-prob."""
    scale_BC = np.zeros_like(batch.old_logprobs_BC)
    for row, length in enumerate(batch.completion_lengths_B):
        scale_BC[row, :length] = batch.advantages_B[row] * weight
    return tiny.logprob_gradient(tiny.params(), batch, -scale_BC / batch.completion_lengths_B.sum())


def filler(rows):
    """Rows that only fill a shape, with all that a careless loss could pick up."""
    noise = tiny.make_batch(seed=9, rows=rows, behaviour=True)
    return noise.replace(completion_lengths_B=np.zeros(rows, np.int32))


class TestParts:
    PARTS = (slice(0, 5), slice(5, 6), slice(6, 12))

    def parts(self, batch):
        return [tiny.rows_of(batch, rows) for rows in self.PARTS]

    def test_they_give_the_gradient_and_the_metrics_of_the_whole_batch(self):
        metrics, gradient = learned_from(self.parts(mixed()))
        tiny.assert_close(gradient, from_mixed()[1], 2e-6)
        assert_metrics(metrics, from_mixed()[0])

    @pytest.mark.parametrize("in_parts", [False, True])
    def test_rows_that_only_fill_the_shape_change_nothing(self, in_parts):
        half = tiny.rows_of(mixed(), slice(0, 6))
        order = np.random.default_rng(0).permutation(12)
        filled = tiny.rows_of(tiny.join(half, filler(6)), order)
        metrics, gradient = learned_from(self.parts(filled) if in_parts else filled)
        assert metrics["tokens"] == half.completion_lengths_B.sum()
        tiny.assert_close(gradient, tiny.gradients(tiny.params(), filled), ROUNDING)
        assert_metrics(metrics, tiny.grpo(tiny.params(), filled))


class TestStep:
    def test_it_is_clipped_adam_with_decoupled_decay(self):
        """Three steps against AdamW (arXiv:1711.05101) and clipping by the global norm, in float64 NumPy."""
        config, state = tiny.LEARNER, fresh()
        weights = jax.tree.map(lambda w: np.asarray(w, np.float64), tiny.params())
        first = second = jax.tree.map(np.zeros_like, weights)
        for t in range(1, 4):
            batch = tiny.make_batch(seed=t, rows=12, known="mixed")
            gradient = jax.tree.map(np.float64, jax.device_get(tiny.gradients(state.params, batch)))
            norm = global_norm(gradient)
            assert norm > 2 * config.max_grad_norm
            gradient = jax.tree.map(lambda g, n=norm: g * config.max_grad_norm / n, gradient)
            first = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, first, gradient)
            second = jax.tree.map(lambda v, g: config.adam_b2 * v + (1 - config.adam_b2) * g**2, second, gradient)

            def updated(w, m, v, t=t):
                direction = m / (1 - B1**t) / (np.sqrt(v / (1 - config.adam_b2**t)) + EPS)
                return w - config.learning_rate * (direction + config.weight_decay * w)

            weights = jax.tree.map(updated, weights, first, second)
            state, metrics = step_of()(state, batch)
            np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)  # before it is clipped
            assert state.step == t and metrics["updates"] == 1
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), state.params, weights)

    def test_the_learning_rate_falls_linearly_to_its_share_in_the_last_round_and_stays_there(self):
        config = dataclasses.replace(tiny.LEARNER, decay_rounds=5, decay_to=0.2)
        found = [learner.learning_rate(config, round_) / config.learning_rate for round_ in range(7)]
        np.testing.assert_allclose(found, [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2], rtol=1e-12)
        endless = dataclasses.replace(config, decay_rounds=0)
        assert {learner.learning_rate(endless, round_) for round_ in (0, 7, 10**9)} == {config.learning_rate}

    def test_a_step_goes_as_far_as_the_learning_rate_it_is_given_says(self):
        """Weight decay too; Adam's moments know nothing of it."""
        whole, half = (step_of()(fresh(), mixed(), rate)[0] for rate in (1e-3, 5e-4))
        tiny.assert_bit_equal(whole.opt_state, half.opt_state)
        way, half_way = (flat(state.params) - flat(fresh().params) for state in (whole, half))
        np.testing.assert_allclose(half_way, way / 2, rtol=0, atol=1e-6 * np.abs(flat(fresh().params)).max())
        assert np.abs(way).max() > 5e-4

    @pytest.mark.parametrize("wrong", ["one advantage is not a number", "an infinite advantage", "weights"])
    def test_a_gradient_that_is_not_finite_is_left_out_and_counted(self, wrong):
        """After it the next batch is learned from as if it had not been."""
        advantages_B, state = mixed().advantages_B.copy(), fresh()
        if wrong == "weights":
            state = state.replace(params=state.params | {"norm": np.full_like(state.params["norm"], np.inf)})
        else:
            advantages_B[3] = np.nan if "not a number" in wrong else np.inf
        after, metrics = step_of()(state, mixed().replace(advantages_B=advantages_B))
        tiny.assert_bit_equal(after, state)
        assert metrics["updates"] == 0 and metrics["nonfinite"] == 1
        if wrong != "weights":
            healthy, metrics = step_of()(after, mixed())
            tiny.assert_bit_equal(healthy, step_of()(fresh(), mixed())[0])
            assert metrics["updates"] == 1 and metrics["nonfinite"] == 0

    def test_a_gradient_is_shortened_to_its_largest_norm_and_a_shorter_one_left_alone(self):
        weak = mixed().replace(advantages_B=mixed().advantages_B / 1000)
        for batch, shortened in ((mixed(), True), (weak, False)):
            state, metrics = step_of()(fresh(), batch)
            applied = global_norm(adam(state).mu) / (1 - B1)
            np.testing.assert_allclose(applied, 0.05 if shortened else metrics["grad_norm"], rtol=1e-4)
            assert (metrics["grad_norm"] > 0.05) == shortened

    @pytest.mark.parametrize("nothing", ["no advantage", "no token", "advantages of fillers only"])
    def test_a_batch_without_a_signal_changes_nothing_not_even_momentum(self, nothing):
        moving = step_of()(fresh(), mixed())[0]
        zeros = np.zeros(12, np.float32)
        batch = {
            "no advantage": mixed().replace(advantages_B=zeros),
            "no token": mixed().replace(completion_lengths_B=zeros.astype(np.int32)),
            "advantages of fillers only": tiny.join(
                tiny.rows_of(mixed().replace(advantages_B=zeros), slice(0, 6)), filler(6)
            ),
        }[nothing]
        assert any(m.any() for m in jax.tree.leaves(adam(moving).mu))
        after, metrics = step_of()(moving, batch)
        tiny.assert_bit_equal(after, moving)
        assert metrics["updates"] == 0 and metrics["clip_fraction"] == 0
        assert all(np.isfinite(value) for value in metrics.values())

    def test_it_makes_the_better_completions_likelier_and_the_worse_less(self):
        batch = tiny.make_batch(seed=5, rows=12, known=False)
        scores, state = learns().logprobs, fresh()
        before_BC = np.asarray(scores(state.params, batch)[0])
        for row, expected in enumerate(tiny.completion_logprobs(tiny.params(), batch)):
            np.testing.assert_allclose(before_BC[row, : len(expected)], expected, rtol=0, atol=1e-5)
        for _ in range(10):
            state, _ = step_of()(state, batch)
        written_BC = np.arange(tiny.NEW_TOKENS) < batch.completion_lengths_B[:, None]
        gain_B = np.where(written_BC, scores(state.params, batch)[0] - before_BC, 0).sum(axis=1)
        decided = np.abs(batch.advantages_B) > 0.5
        assert decided.sum() == 8
        np.testing.assert_array_equal(np.sign(gain_B[decided]), np.sign(batch.advantages_B[decided]))

    def test_an_update_needs_no_second_state(self):
        """It is written where the one before was: the size of what aliases is that of the state."""
        state, total = jax.eval_shape(fresh), jax.eval_shape(lambda: learns().sums(fresh(), mixed()))
        memory = learns()._apply.lower(state, total, np.float32(0)).compile().memory_analysis()
        assert memory.alias_size_in_bytes == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        mine = fresh()
        pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(mine)]
        after, _ = learns().step(mine, mixed(), 1e-3)
        assert all(x.is_deleted() for x in jax.tree.leaves(mine))
        assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after)] == pointers

    def test_what_it_began_with_is_nobody_s_but_its_own(self):
        params = jax.tree.map(jnp.asarray, tiny.params())
        kept = jax.tree.map(np.array, params)
        one, other = learns().init(params), learns().init(params)
        learns().step(one, mixed(), 1e-3)
        tiny.assert_bit_equal(params, kept)
        tiny.assert_bit_equal(other.params, kept)

    def test_compiling_ahead_leaves_nothing_to_compile_and_nothing_changed(self):
        made, state, compiled = learner.Learner(tiny.LEARNER, tiny.CONFIG), fresh(), []
        handler = logging.Handler()
        handler.emit = lambda said: compiled.append(said.getMessage())
        logging.getLogger("jax").addHandler(handler)
        try:
            with jax.log_compiles():
                for compile_ in made.ahead(state, [mixed()]):
                    compile_()
                said = "\n".join(compiled)
                assert all(f"Finished XLA compilation of jit({name})" in said for name in ("summed", "apply"))
                tiny.assert_bit_equal(state, fresh())
                compiled.clear()
                made.step(state, [mixed(), mixed()], 1e-3)
        finally:
            logging.getLogger("jax").removeHandler(handler)
        assert [said for said in compiled if "Finished XLA compilation" in said] == []


def test_a_state_s_hash_is_of_two_digests_so_that_the_weights_alone_can_be_shown():
    state, _ = step_of()(fresh(), mixed())

    def digest(tree):  # as `qwen.digest` says, by hand
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        said = [(f"{jax.tree_util.keystr(p)} {x.dtype} {x.shape}".encode(), np.asarray(x).tobytes()) for p, x in leaves]
        return hashlib.sha256(b"".join(b"".join(one) for one in said)).digest()

    weights, rest = digest(state.params), digest((state.opt_state, state.step))
    assert learner.state_hash(state) == hashlib.sha256(weights + rest).digest()
    assert learner.state_hash(state.replace(step=state.step + 1)) != learner.state_hash(state)


def global_norm(tree):
    return np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(tree)))
