"""Few slots are empty, nothing is lost, nobody sees what is not theirs, and the update is that of the padded batch."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.grpo import learner
from rlswarm_jax.grpo import tiles as tiles_
from rlswarm_jax.grpo.tiles import Row, Shape, shapes, tile, tiles
from tests.grpo import tiny

tokens = st.integers(1, tiny.CONFIG.vocab_size - 1)


@st.composite
def some_rows(draw, prompt=20, new=8):
    """Of a few prompts, some of which begin as others do."""
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=prompt), min_size=1, max_size=6))
    completions = st.lists(tokens, min_size=1, max_size=new)
    count, rng = draw(st.integers(0, 40)), np.random.default_rng(draw(st.integers(0, 99)))
    found = []
    for _ in range(count):
        completion = draw(completions)
        logprobs = draw(st.none() | st.just((-rng.random(len(completion))).tolist()))
        row = Row(draw(st.sampled_from(prompts)), completion, float(rng.standard_normal()), logprobs, bool(count % 2))
        found.append(row)
    return found


def sequences(batch):
    """The rows of each sequence, from the arrays."""
    count, width = batch.tokens_XT.shape
    of_rows = [
        x.reshape(count, -1, *x.shape[1:])
        for x in (batch.starts_B, batch.completion_lengths_B, batch.advantages_B, batch.behaviour_logprobs_BC)
    ]
    flags = [x.reshape(count, -1) for x in (batch.behaviour_known_B, batch.external_B)]
    for x in range(count):
        found, used = [], np.zeros(width, int)
        for r, (start, length, advantage, old_C, known, external) in enumerate(
            zip(*(array[x] for array in (*of_rows, *flags)), strict=True)
        ):
            if not length:
                continue
            its = slice(start, start + length)
            number = batch.prompts_XT[x, start]
            before = np.flatnonzero((batch.prompts_XT[x] == number) & (batch.rows_XT[x] == 0))
            prompt = [*batch.tokens_XT[x, before].tolist(), int(batch.tokens_XT[x, start])]
            assert (batch.rows_XT[x, its] == r + 1).all() and (batch.prompts_XT[x, its] == number).all()
            assert batch.tokens_XT[x, its].tolist()[1:] == batch.targets_XT[x, its].tolist()[:-1]
            assert batch.positions_XT[x, before].tolist() == list(range(len(before)))
            assert batch.positions_XT[x, its].tolist() == list(range(len(before), len(before) + length))
            assert not old_C[length:].any()
            used[its] += 1
            used[before] = 1
            logprobs = old_C[:length].tolist() if known else None
            found.append(Row(prompt, batch.targets_XT[x, its].tolist(), advantage, logprobs, bool(external)))
        assert used.max(initial=0) <= 1  # no slot is two rows'
        np.testing.assert_array_equal(used > 0, batch.prompts_XT[x] > 0)
        yield found, int(used.sum())


def like(row):
    rounded = None if row.logprobs is None else np.float32(row.logprobs).tolist()
    return repr((list(row.prompt), list(row.completion), float(np.float32(row.advantage)), rounded, row.external))


@settings(deadline=None, max_examples=60)
@given(some_rows(), st.integers(0, 3), st.sampled_from([1, 2, 8]))
def test_every_row_is_in_one_sequence_and_two_sequences_do_not_fit_into_one(rows, size, shards):
    into = [Shape(max(1, size) * shards, 28, 28, 8, shards)]
    parts = tiles(rows, into)
    found = [one for part in parts for one in sequences(part)]
    assert sorted(like(row) for own, _ in found for row in own) == sorted(map(like, rows))
    used = sorted(slots for _, slots in found if slots)
    assert len(used) < 2 or used[0] + used[1] > 28 or len(rows) > into[0].rows
    for part in parts:
        count, width = part.tokens_XT.shape
        assert width == 28 and count in (shards, into[0].sequences)
        assert part is parts[-1] or (count == into[0].sequences and part.prompts_XT.any(axis=1).all())
    assert len(parts[-1].tokens_XT) == shards or part.prompts_XT.any(axis=1).sum() > shards
    assert parts and (rows or not parts[0].completion_lengths_B.any())


@pytest.mark.parametrize("width", [1, 2, 28, 108, 130, 768, 3328])
@pytest.mark.parametrize("count", [0, 3])
def test_shapes_are_few_and_the_widest_holds_any_text(width, count):
    found = shapes(width, 12, count)
    assert 1 <= len(found) <= 3 and width <= found[-1].width <= max(112, 2 * width)
    assert all(one.new_tokens == min(12, one.width) for one in found)
    assert all(one.sequences == (count or max(1, 224 // one.width)) for one in found)  # on a CPU
    wide = shapes(width, 12, count, hidden_size=896)
    assert [one.sequences for one in wide] == [count or max(1, 1024 // one.width) for one in wide]
    assert all(one.last == max(1, one.sequences // 2) for one in found)
    kinds = [(len(one.tokens_XT), one.tokens_XT.shape[1]) for one in tiles_.fillers(found)]
    assert kinds == [(count, one.width) for one in found for count in sorted({one.last, one.sequences})]
    assert [one.width for one in found] == sorted({one.width for one in found}) and found[0].width >= 112


def test_sequences_are_twice_as_wide_as_the_longest_text_if_there_are_such():
    into = shapes(3328, 256)
    for length, width in ((100, 832), (417, 832), (418, 1664), (834, 3328), (3328, 3328)):
        (part,) = tiles([Row([1] * (length - 10), [2] * 10, 1.0, None, False)], into)
        assert part.tokens_XT.shape[1] == width  # the last token is only a target


@pytest.mark.parametrize("lengths", [(40, 40, 60, 60), (60, 60, 40, 40), (60, 40, 40, 60)])
def test_long_texts_find_their_place_first(lengths):
    """In the order in which they come the short ones would share a sequence, and the long ones have none."""
    rows = [Row([1 + n, *[2] * (length - 10)], [2] * 10, 1.0, None, False) for n, length in enumerate(lengths)]
    (batch,) = tiles(rows, [Shape(4, 100, 8, 10, 2)])
    assert len(batch.tokens_XT) == 2 and (batch.prompts_XT > 0).all()


def test_nothing_is_asked_of_prompts_and_of_what_fills_a_tile(monkeypatch):
    asked, (batch,) = [], tiles(some(), [Shape(4, 20, 9, tiny.NEW_TOKENS)])
    monkeypatch.setattr(
        learner.losses,
        "chunked_logprobs",
        lambda params, states_XD, tokens_X, *_, **__: asked.append(tokens_X) or 2 * [np.zeros(len(tokens_X))],
    )
    learner.completion_logprobs(tiny.params(), batch, tiny.CONFIG, 1.0)
    expected = np.where(batch.rows_XT > 0, batch.targets_XT, -1)
    assert (batch.prompts_XT == 0).any() and (expected == -1).sum() > (batch.prompts_XT == 0).sum()
    np.testing.assert_array_equal(asked[0], expected.reshape(-1))


def share(rows, into):
    """Of slots that hold text."""
    parts = tiles(rows, into)
    found = sum(used for part in parts for _, used in sequences(part)) / sum(part.tokens_XT.size for part in parts)
    assert tiles_.filled(parts) == found
    return found


def groups(rng, lengths, size, new):
    for length in lengths:
        prompt = rng.integers(1, 50, length).tolist()
        for _ in range(size):
            yield Row(prompt, rng.integers(1, 50, rng.integers(*new)).tolist(), 1.0, None, False)


def test_the_quickstart_s_batches_are_mostly_text():
    """Some five live groups a round, of short prompts and of such as show what others said."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = [*rng.integers(8, 20, 3), *rng.integers(30, 90, 2)]
        shares.append(share(list(groups(rng, lengths, 7, (2, 11))), shapes(108, 12)))
    assert np.mean(shares) > 0.7


@pytest.mark.parametrize("size", [1, 8])
def test_those_of_a_chat_on_an_accelerator_are_too(size, monkeypatch):
    monkeypatch.setattr(tiles_, "TOKENS", {})
    monkeypatch.setattr(tiles_, "NARROW", -1)
    rng = np.random.default_rng(0)
    rows = list(groups(rng, rng.integers(50, 2000, 64), size, (16, 256)))
    assert share(rows, shapes(3328, 256)) > 0.7


def learned():
    return learner.Learner(tiny.LEARNER, tiny.CONFIG)


def some(seed=1, prompts=3):
    """Rows of prompts that several have, and of one that one has."""
    rng, found = np.random.default_rng(seed), []
    shared = [rng.integers(1, 20, n).tolist() for n in rng.permutation(tiny.PROMPT_SLOTS)[:prompts] + 1]
    for n, length in enumerate((1, 2, 2, 3, 3, 4, 4, 4, 4, 1, 2)):
        completion = rng.integers(1, 20, length).tolist()
        logprobs = (-3 * rng.random(length)).tolist() if length % 2 else None
        found.append(
            Row(shared[n % prompts], completion, float(rng.standard_normal()), logprobs, external=bool(length == 4))
        )
    return found


def padded(rows):
    """Each in a sequence of its own."""
    width = tiny.PROMPT_SLOTS + tiny.NEW_TOKENS
    return tile([[[row]] for row in rows], Shape(len(rows), width, 1, tiny.NEW_TOKENS))


def test_sums_over_packed_tiles_are_those_of_one_padded_batch():
    rows = some()
    parts = tiles(rows, [Shape(2, tiny.PROMPT_SLOTS + tiny.NEW_TOKENS, 9, tiny.NEW_TOKENS)])
    assert len(parts) > 1 and sum(part.tokens_XT.size for part in parts) < 0.7 * padded(rows).tokens_XT.size
    learns, state = learned(), learned().init(tiny.params())
    (after, metrics), (expected, alone) = (
        learns.step(jax.tree.map(lambda x: x + 0, state), batch, 1e-3) for batch in (parts, padded(rows))
    )
    tiny.assert_close(after.opt_state[1].mu, expected.opt_state[1].mu, 1e-6)
    for name, value in alone.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_a_completion_sees_its_prompt_and_itself():
    """Whatever its siblings and its neighbours say."""
    rows = some(prompts=2)
    wide = Shape(2, 40, 12, tiny.NEW_TOKENS)

    def logprobs(rows):
        (batch,) = tiles(rows, [wide])
        return {
            (tuple(row.prompt), tuple(row.completion)): logprobs_C[: len(row.completion)]
            for own, logprobs_C in zip(in_order(batch), learned().logprobs(tiny.params(), batch)[0], strict=True)
            for row in own
        }

    first, *others = rows
    changed = [dataclasses.replace(row, completion=[t % 19 + 1 for t in row.completion]) for row in others]
    one, other = logprobs(rows), logprobs([first, *changed])
    its = tuple(first.prompt), tuple(first.completion)
    np.testing.assert_array_equal(one[its], other[its])
    assert len(one.keys() & other.keys()) < len(rows) // 2
    for (prompt, completion), found in one.items():
        text = np.array([[*prompt, *completion]])
        table = tiny.dense(tiny.params(), text)[0]
        at = len(prompt) - 1 + np.arange(len(completion))
        np.testing.assert_allclose(found, table[at, completion], rtol=0, atol=1e-5)


def in_order(batch):
    """The row of each of the B places, if there is one."""
    count = len(batch.tokens_XT)
    for own, _ in sequences(batch):
        yield from ([row] for row in own)
        yield from [[]] * (len(batch.starts_B) // count - len(own))


def test_in_float64_they_are_so_to_twelve_digits():
    """So that the above is rounding and nothing else. Weights are float64 throughout, loss and gradients too."""
    with jax.enable_x64(True), tiny.optimizations(False):
        params, rows = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny.params()), some(2)
        parts = tiles(rows, [Shape(1, tiny.PROMPT_SLOTS + tiny.NEW_TOKENS, 9, tiny.NEW_TOKENS)])
        assert len(parts) > 2
        learns = learned()
        state = learns.init(params)
        total = functools.reduce(learns.add, [learns.sums(state, part) for part in parts])
        expected = learns.sums(state, padded(rows))
        assert {x.dtype for x in jax.tree.leaves((total[1], total[0][0]))} == {np.dtype("float64")}
        tiny.assert_close(total[1], expected[1], 1e-12)
        np.testing.assert_allclose(total[0][0], expected[0][0], rtol=1e-12)
