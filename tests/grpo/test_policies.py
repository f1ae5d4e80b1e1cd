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
def score():
    return learner.make_logprobs(tiny.CONFIG, tiny.LEARNER)


@functools.cache
def rows():
    rng = np.random.default_rng(1)
    found = []
    for length in (1, 2, 3, 4, 4, 4, 1, 2, 3):
        prompt, completion = (rng.integers(1, 20, n).tolist() for n in (rng.integers(1, 6), length))
        logprobs = (-3 * rng.random(length)).tolist()
        found.append(tiles.Row(prompt, completion, float(rng.standard_normal()), logprobs, False))
    return found


def cut(size):
    return tiles.tiles(rows(), tiles.shapes(WIDTH, tiny.NEW_TOKENS, size))


def prepared(parts, config, updates=1, state=None):
    return policies.prepared(parts, state or learner.init_state(tiny.params(), config), score(), config, updates)


def by_row(parts, field):
    """A field's tokens, of each completion, in the order of the tiles."""
    found = []
    for part in parts:
        found += [getattr(part, field)[b, :n] for b, n in enumerate(part.completion_lengths_B) if n]
    return found


def dense(params, parts, which=0):
    found = []
    for part in parts:
        now_BC = tiny.now(params, part)[which]
        found += [now_BC[b, :n] for b, n in enumerate(part.completion_lengths_B) if n]
    return found


def close(found, wanted):
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=0, atol=1e-5)


class TestPrepared:
    def test_with_one_update_and_no_reference_nothing_is_scored(self):
        parts = cut(3)
        found = policies.prepared(parts, learner.init_state(tiny.params(), tiny.LEARNER), None, tiny.LEARNER, 1)
        assert all(one is other for one, other in zip(found, parts, strict=True))

    def test_with_several_the_ratio_is_to_the_policy_before_the_first_and_weights_to_who_sampled(self):
        parts = prepared(cut(3), tiny.LEARNER, updates=2)
        assert len(parts) == 3 and all(part.old_known_B.all() for part in parts)
        close(by_row(parts, "old_logprobs_BC"), dense(tiny.params(), parts))
        order = tiles.order(rows())
        close(by_row(parts, "behaviour_logprobs_BC"), [np.float32(rows()[at].logprobs) for at in order])
        assert parts[0].reference_logprobs_BC is None and parts[0].entropy_floor_B is None

    def test_the_policy_before_the_round_can_be_the_reference_without_being_kept(self):
        config = dataclasses.replace(KEPT, reference_every=1)
        parts = prepared(cut(3), config, updates=2)
        close(by_row(parts, "reference_logprobs_BC"), dense(tiny.params(), parts))
        assert learner.init_state(tiny.params(), config).reference is None

    def test_a_reference_is_scored_by_its_own_weights(self):
        state = learner.init_state(tiny.params(seed=1), KEPT).replace(params=tiny.params())
        parts = prepared(cut(3), KEPT, state=state)
        close(by_row(parts, "reference_logprobs_BC"), dense(tiny.params(seed=1), parts))
        assert not any(part.old_known_B.any() for part in parts)

    @pytest.mark.parametrize("size", [1, 3, 9])
    def test_which_tokens_have_the_highest_entropy_is_a_matter_of_the_whole_batch(self, size):
        parts = prepared(cut(size), dataclasses.replace(tiny.LEARNER, entropy_top=0.3))
        (floor,) = {float(floor) for part in parts for floor in part.entropy_floor_B}
        entropies = np.concatenate(dense(tiny.params(), parts, which=1))
        np.testing.assert_allclose(floor, np.quantile(entropies, 0.7), rtol=1e-4)
        assert len(entropies) == 24


class TestReference:
    def test_it_is_the_first_policy_then_that_of_every_second_round(self):
        state = learner.init_state(tiny.params(), KEPT)
        for round_, taken in ((0, False), (1, False), (2, True), (3, False), (7, True), (7, False)):  # some were missed
            state = state.replace(params=tiny.params(seed=round_ + 1))
            before, state = state, policies.refreshed(state, KEPT, round_)
            tiny.assert_bit_equal(state.reference.params, before.params if taken else before.reference.params)
            assert int(state.reference.epoch) == round_ // 2
        fixed = dataclasses.replace(KEPT, reference_every=0)
        assert policies.refreshed(state, fixed, 99) is state

    def test_its_arrays_are_its_own(self):
        """The policy's may be used up by the next update."""
        state = policies.refreshed(learner.init_state(tiny.params(), KEPT), KEPT, 2)
        for one, other in zip(jax.tree.leaves(state.reference.params), jax.tree.leaves(state.params), strict=True):
            assert one is not other and one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()

    def test_it_takes_as_much_memory_as_the_weights_and_none_where_it_is_not_asked_for(self):
        plain, kept = (learner.init_state(tiny.params(), config) for config in (tiny.LEARNER, KEPT))
        sizes = [sum(np.asarray(x).nbytes for x in jax.tree.leaves(state)) for state in (plain, kept)]
        assert sizes[1] - sizes[0] == sum(np.asarray(x).nbytes for x in jax.tree.leaves(tiny.params())) + 4

    def test_it_survives_a_restart_bit_for_bit(self, tmp_path):
        """What is learned next, in the middle of its epoch, is what would have been."""
        step = learner.make_train_step(tiny.CONFIG, KEPT)

        def learn(state, round_):
            state = policies.refreshed(state, KEPT, round_)
            return step(state, prepared(cut(9), KEPT, state=state), 1e-2)

        state = learner.init_state(tiny.params(), KEPT)
        for round_ in (0, 2):
            state, _ = learn(state, round_)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, [state], b"extra")
        expected, metrics = learn(state, 3)
        assert metrics["kl"] > 1e-5
        (back,), _ = checkpoints.restore(1, [learner.init_state(tiny.params(), KEPT)])
        checkpoints.close()
        tiny.assert_bit_equal(learn(back, 3)[0], expected)
        assert learner.state_hash(expected) != learner.state_hash(learner.TrainState(expected.params, expected.opt_state, expected.step))


def test_effective_shares_are_of_each_group_s_own_tokens():
    """By the dense log-probs, whatever tiles the rows are in."""
    groups = [rows()[:4], rows()[4:6], rows()[6:]]
    for size in (1, 4):
        shapes = tiles.shapes(WIDTH, tiny.NEW_TOKENS, size)
        found = policies.effective_shares(groups, tiny.params(), score(), shapes)
        for share, group in zip(found, groups, strict=True):
            part = tiles.tile(group, tiles.Shape(4, WIDTH, tiny.NEW_TOKENS))
            logs = [now - row.logprobs for now, row in zip(dense(tiny.params(), [part]), group, strict=True)]
            weights = np.exp(np.concatenate(logs))
            np.testing.assert_allclose(share, weights.sum() ** 2 / len(weights) / (weights**2).sum(), rtol=1e-4)
    assert policies.effective_shares([], tiny.params(), score(), shapes) == []
