"""No slot is wasted that need not be, nothing is lost, and the update is that of the padded batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.grpo import learner
from rlswarm_jax.grpo.tiles import Row, Shape, shapes, tile, tiles
from tests.grpo import tiny

tokens = st.integers(1, tiny.CONFIG.vocab_size - 1)


@st.composite
def some_rows(draw, prompt=20, new=8):
    prompts = st.lists(tokens, min_size=1, max_size=prompt)
    completions = st.lists(tokens, min_size=1, max_size=new)
    count, rng = draw(st.integers(0, 40)), np.random.default_rng(draw(st.integers(0, 99)))
    found = []
    for _ in range(count):
        completion = draw(completions)
        logprobs = draw(st.none() | st.just((-rng.random(len(completion))).tolist()))
        found.append(Row(draw(prompts), completion, float(rng.standard_normal()), logprobs, draw(st.booleans())))
    return found


def read(part):
    """The rows of a tile, from its arrays."""
    for b, length in enumerate(part.completion_lengths_B):
        if length:
            start = part.prompt_lengths_B[b]
            text, end = part.tokens_BT[b].tolist(), start + length
            known = part.behaviour_logprobs_BC[b, :length].tolist() if part.behaviour_known_B[b] else None
            assert not any(text[end:]) and not part.behaviour_logprobs_BC[b, length:].any()
            yield Row(text[:start], text[start:end], part.advantages_B[b], known, part.external_B[b])


def like(row):
    rounded = None if row.logprobs is None else np.float32(row.logprobs).tolist()
    return list(row.prompt), list(row.completion), np.float32(row.advantage), rounded, bool(row.external)


@settings(deadline=None, max_examples=60)
@given(some_rows(), st.integers(0, 5), st.sampled_from([1, 2, 8]))
def test_every_row_is_in_one_tile_in_the_narrowest_shape_that_has_room_for_it(rows, size, shards):
    into = shapes(28, 8, size, shards)
    parts = tiles(rows, into)
    found = [row for part in parts for row in read(part)]
    assert sorted(map(repr, map(like, found))) == sorted(map(repr, map(like, rows)))
    lengths = [len(row.prompt) + len(row.completion) for row in found]
    assert lengths == sorted(lengths, reverse=True)
    for part in parts:
        shape = Shape(*part.tokens_BT.shape, part.max_new_tokens)
        longest = max((len(row.prompt) + len(row.completion) for row in read(part)), default=0)
        assert shape == next(one for one in into if one.width >= longest) and shape.rows % shards == 0
        if part is not parts[-1]:
            assert part.completion_lengths_B.all()
    assert parts and (rows or not parts[0].completion_lengths_B.any())


@pytest.mark.parametrize("width", [1, 2, 3, 28, 108, 768, 3328])
@pytest.mark.parametrize("rows", [0, 3])
def test_shapes_are_few_and_the_widest_holds_any_row(width, rows):
    found = shapes(width, 12, rows)
    assert len(found) <= 3 and found[-1].width == width
    assert all(one.new_tokens == min(12, one.width) for one in found)
    assert all(one.rows == (rows or max(1, 896 // one.width)) for one in found)  # on a CPU


def test_the_quickstart_s_batches_are_mostly_text():
    """32 rows of 709 tokens, most of them of 28 at most, were padded to 108 each, in batches of 60 or 96 rows."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(14, 29, 26), *rng.integers(40, 100, 6)]
    rows = [Row([1] * int(n - 4), [2] * 4, 1.0, None, False) for n in lengths]
    slots = sum(part.tokens_BT.size for part in tiles(rows, shapes(108, 12)))
    assert sum(lengths) / slots > 0.55 and sum(lengths) / (60 * 108) < 0.2


def test_sums_over_tiles_are_those_of_one_padded_batch():
    rng = np.random.default_rng(1)
    rows = []
    for length in (1, 2, 2, 3, 3, 4, 4, 4, 4, 1, 2):
        prompt, completion = (rng.integers(1, 20, n).tolist() for n in (rng.integers(1, 6), length))
        logprobs = (-3 * rng.random(length)).tolist() if length % 2 else None
        rows.append(Row(prompt, completion, float(rng.standard_normal()), logprobs, bool(length == 4)))
    whole = tile(rows, Shape(16, tiny.PROMPT_SLOTS + tiny.NEW_TOKENS, tiny.NEW_TOKENS))
    parts = tiles(rows, shapes(tiny.PROMPT_SLOTS + tiny.NEW_TOKENS, tiny.NEW_TOKENS, rows=2))
    assert len({part.tokens_BT.shape for part in parts}) > 1
    step = learner.make_train_step(tiny.CONFIG, tiny.LEARNER)
    state = learner.init_state(tiny.params(), tiny.LEARNER)
    (after, metrics), (expected, alone) = step(state, parts, 1e-3), step(state, whole, 1e-3)
    tiny.assert_close(after.opt_state[1].mu, expected.opt_state[1].mu, 1e-6)
    for name, value in alone.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
