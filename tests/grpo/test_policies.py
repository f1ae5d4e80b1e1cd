"""Behaviour, proximal, current and reference policy: each is what it is called, at each update."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.grpo import learner, policies, tiles
from tests.grpo import tiny

KEPT = dataclasses.replace(tiny.LEARNER, kl_weight=0.5, reference_every=2)
WIDTH = tiny.PROMPT_SLOTS + tiny.NEW_TOKENS


@functools.cache
def trainer(config=tiny.LEARNER):
    return learner.Learner(config, tiny.CONFIG)


def score(params, part):
    return trainer().logprobs(params, part)


@functools.cache
def rows():
    rng = np.random.default_rng(1)
    found = []
    for length in (1, 2, 3, 4, 4, 4, 1, 2, 3):
        prompt, completion = (rng.integers(1, 20, n).tolist() for n in (rng.integers(1, 6), length))
        logprobs = (-3 * rng.random(length)).tolist()
        found.append(tiles.Row(prompt, completion, float(rng.standard_normal()), logprobs, False))
    return found


def shapes(size):
    return tiles.shapes(WIDTH, tiny.NEW_TOKENS, size)


def cut(size):
    return tiles.tiles(rows(), shapes(size))


def prepared(parts, config, updates=1, state=None):
    return policies.prepared(parts, state or trainer(config).init(tiny.params()), score, config, updates)


def by_row(parts, field, size):
    """A field's tokens, of each completion, in the order of `rows`."""
    found = []
    for part in parts:
        found += [getattr(part, field)[b, :n] for b, n in enumerate(part.completion_lengths_B) if n]
    return [
        one for _, one in sorted(zip(tiles.order(rows(), shapes(size)), found, strict=True), key=lambda pair: pair[0])
    ]


def dense(params, row):
    """Log-probs and entropies of a completion, each token by the full forward."""
    text = np.zeros((1, WIDTH), np.int32)
    text[0, : len(row.prompt) + len(row.completion)] = [*row.prompt, *row.completion]
    table_TV = tiny.dense(params, text)[0][len(row.prompt) - 1 :][: len(row.completion)]
    logprobs = table_TV[np.arange(len(row.completion)), row.completion]
    return logprobs, -(np.exp(table_TV) * table_TV).sum(axis=-1)


def every(params, which=0):
    return [dense(params, row)[which] for row in rows()]


def close(found, wanted):
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=0, atol=1e-5)


class TestPrepared:
    def test_with_one_update_and_no_reference_nothing_is_scored(self):
        parts = cut(3)
        found = policies.prepared(parts, trainer().init(tiny.params()), None, tiny.LEARNER, 1)
        assert all(one is other for one, other in zip(found, parts, strict=True))

    def test_with_several_the_ratio_is_to_the_policy_before_the_first_and_weights_to_who_sampled(self):
        parts = prepared(cut(3), tiny.LEARNER, updates=2)
        assert all(part.old_known_B.all() for part in parts)
        close(by_row(parts, "old_logprobs_BC", 3), every(tiny.params()))
        close(by_row(parts, "behaviour_logprobs_BC", 3), [row.logprobs for row in rows()])
        assert parts[0].reference_logprobs_BC is None and parts[0].entropy_floor_B is None

    def test_the_policy_before_the_round_can_be_the_reference_without_being_kept(self):
        config = dataclasses.replace(KEPT, reference_every=1)
        parts = prepared(cut(3), config, updates=2)
        close(by_row(parts, "reference_logprobs_BC", 3), every(tiny.params()))
        assert trainer(config).init(tiny.params()).reference is None

    def test_a_reference_is_scored_by_its_own_weights(self):
        state = trainer(KEPT).init(tiny.params(seed=1)).replace(params=tiny.params())
        parts = prepared(cut(3), KEPT, state=state)
        close(by_row(parts, "reference_logprobs_BC", 3), every(tiny.params(seed=1)))
        assert not any(part.old_known_B.any() for part in parts)

    @pytest.mark.parametrize("size", [1, 3, 9])
    def test_which_tokens_have_the_highest_entropy_is_a_matter_of_the_whole_batch(self, size):
        parts = prepared(cut(size), dataclasses.replace(tiny.LEARNER, entropy_top=0.3))
        (floor,) = {float(floor) for part in parts for floor in part.entropy_floor_B}
        entropies = np.concatenate(every(tiny.params(), which=1))
        np.testing.assert_allclose(floor, np.quantile(entropies, 0.7) - policies.TIE, rtol=0, atol=1e-5)
        assert len(entropies) == 24


class TestReference:
    def test_it_is_the_first_policy_then_that_of_every_second_round(self):
        state = trainer(KEPT).init(tiny.params())
        for round_, taken in ((0, False), (1, False), (2, True), (3, False), (7, True), (7, False)):  # some were missed
            state = state.replace(params=tiny.params(seed=round_ + 1))
            before, state = state, policies.refreshed(state, KEPT, round_)
            tiny.assert_bit_equal(state.reference.params, before.params if taken else before.reference.params)
            assert int(state.reference.epoch) == round_ // 2
        fixed = dataclasses.replace(KEPT, reference_every=0)
        assert policies.refreshed(state, fixed, 99) is state

    def test_its_arrays_are_its_own(self):
        """The policy's may be used up by the next update."""
        state = policies.refreshed(trainer(KEPT).init(tiny.params()), KEPT, 2)
        for one, other in zip(jax.tree.leaves(state.reference.params), jax.tree.leaves(state.params), strict=True):
            assert one is not other and one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()

    def test_it_takes_as_much_memory_as_the_weights_and_none_where_it_is_not_asked_for(self):
        plain, kept = (trainer(config).init(tiny.params()) for config in (tiny.LEARNER, KEPT))
        sizes = [sum(np.asarray(x).nbytes for x in jax.tree.leaves(state)) for state in (plain, kept)]
        assert sizes[1] - sizes[0] == sum(np.asarray(x).nbytes for x in jax.tree.leaves(tiny.params())) + 4

    def test_it_survives_a_restart_bit_for_bit(self, tmp_path):
        """What is learned next, in the middle of its epoch, is what would have been."""

        def learn(state, round_):
            state = policies.refreshed(state, KEPT, round_)
            return trainer(KEPT).step(state, prepared(cut(9), KEPT, state=state), 1e-2)

        state = trainer(KEPT).init(tiny.params())
        for round_ in (0, 2):
            state, _ = learn(state, round_)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, [state], b"extra")
        expected, metrics = learn(state, 3)
        assert metrics["kl"] > 1e-5
        (back,), _ = checkpoints.restore(1, [trainer(KEPT).init(tiny.params())])
        checkpoints.close()
        tiny.assert_bit_equal(learn(back, 3)[0], expected)
        assert learner.state_hash(expected) != learner.state_hash(
            learner.TrainState(expected.params, expected.opt_state, expected.step)
        )


def test_effective_shares_are_of_each_group_s_own_tokens():
    """By the dense log-probs, whatever tiles the rows are in."""
    groups = [rows()[:4], rows()[4:6], rows()[6:]]
    for size in (1, 4):
        found = policies.effective_shares(groups, tiny.params(), score, shapes(size))
        for share, group in zip(found, groups, strict=True):
            weights = np.exp(np.concatenate([dense(tiny.params(), row)[0] - row.logprobs for row in group]))
            np.testing.assert_allclose(share, weights.sum() ** 2 / len(weights) / (weights**2).sum(), rtol=1e-4)
    assert policies.effective_shares([], tiny.params(), score, shapes(1)) == []
