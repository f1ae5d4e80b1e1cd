import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlswarm_jax import qwen
from rlswarm_jax.qwen import model, sampling
from rlswarm_jax.qwen.tokenizer import Tokenizer
from tests.grpo import tiny
from tests.qwen import test_sampling as base

GROUP = 4
PROMPTS = base.prompts_of((16, 1, 5, 11, 2, 8))
KEYS_PGM = base.keys_of(len(PROMPTS), GROUP)
ALIVE_PG = np.random.default_rng(0).random(KEYS_PGM.shape[:2]) < 0.7


def make_sampler(rows, **options):
    options = {"max_new_tokens": base.NEW_TOKENS, "temperature": base.TEMPERATURE, "eos_token_ids": base.EOS} | options
    return sampling.make_sampler(base.shallow().config, rows=rows, **options)


sampler = functools.cache(make_sampler)


def tile_of(alive_PG, prompts=PROMPTS, keys_PGM=KEYS_PGM):
    return sampling.make_tile(prompts, keys_PGM, prompt_slots=base.SLOTS).replace(alive_PG=np.asarray(alive_PG))


@functools.cache
def at_once():
    """All completions, a row for each, and the margins of their decisions."""
    out = sampler(0)(base.shallow().params, tile_of(np.ones_like(ALIVE_PG)))
    logits_RTV = base.forward(base.shallow().params, base.shallow().config, PROMPTS, base.flat(out))
    return base.flat(out), base.replay(logits_RTV, KEYS_PGM.reshape(-1, 2), base.TEMPERATURE)[1]


def assert_every_alive_completion_comes_out_once(out, alive_PG, rows):
    """And is the one that a row of its own would have computed; what is not alive says nothing and costs nothing."""
    expected, margins_RT = at_once()
    alive_R, got = alive_PG.reshape(-1), base.flat(out)
    base.assert_agree(got[alive_R], expected[alive_R], margins_RT[alive_R], base.TAU)
    assert np.all(got.lengths_R[alive_R] > 0)
    assert not any(x[~alive_R].any() for x in got)
    waiting_steps, alive_then, later_steps, alive_later = np.asarray(out.usage_X4)[0].tolist()
    assert alive_then == rows * waiting_steps  # no row idles while a completion waits
    assert alive_later <= rows * later_steps and later_steps <= base.NEW_TOKENS
    assert alive_then + alive_later == got.lengths_R.sum()


class TestRefill:
    @pytest.mark.parametrize("rows", [1, 3, 7])
    @pytest.mark.parametrize("alive_PG", [np.ones_like(ALIVE_PG), ALIVE_PG], ids=["all", "some"])
    def test_fewer_rows_compute_the_same_completions(self, rows, alive_PG):
        out = sampler(rows)(base.shallow().params, tile_of(alive_PG))
        assert_every_alive_completion_comes_out_once(out, alive_PG, rows)

    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.booleans(), min_size=ALIVE_PG.size, max_size=ALIVE_PG.size))
    @example([False] * ALIVE_PG.size)
    @example([False] * 23 + [True])
    @example([True] + [False] * 23)
    def test_whichever_completions_are_alive(self, alive):
        alive_PG = np.array(alive).reshape(ALIVE_PG.shape)
        out = sampler(7)(base.shallow().params, tile_of(alive_PG))
        assert_every_alive_completion_comes_out_once(out, alive_PG, 7)

    def test_as_many_rows_as_completions_or_more_wait_for_nothing(self):
        out = sampler(ALIVE_PG.size + 9)(base.shallow().params, tile_of(ALIVE_PG))
        expected, _ = at_once()
        base.assert_bit_equal(base.flat(out)[ALIVE_PG.reshape(-1)], expected[ALIVE_PG.reshape(-1)])
        assert np.asarray(out.usage_X4)[0, :2].tolist() == [0, 0]

    def test_rows_stay_busy_until_the_queue_is_empty(self, monkeypatch):
        """Lengths about geometric with mean 8, from end tokens that are an eighth of a nearly flat distribution."""
        steps, rows, group, head = [], 16, 64, model.head

        def counted(params, states_XD):
            jax.debug.callback(lambda: steps.append(1))
            return head(params, states_XD)

        monkeypatch.setattr(model, "head", counted)
        sample = make_sampler(rows, max_new_tokens=64, temperature=10.0, eos_token_ids=tuple(range(0, 103, 8)))
        prompts, keys_PGM = PROMPTS[:4], base.keys_of(4, group)
        out = sample(base.shallow().params, tile_of(np.ones((4, group), bool), prompts, keys_PGM))
        jax.effects_barrier()
        lengths_Q = np.asarray(out.lengths_PG).reshape(-1)
        assert 6 < lengths_Q.mean() < 10 and 5 < lengths_Q.std() < 11 and lengths_Q.max() > 30

        waiting_steps, alive_then, later_steps, alive_later = np.asarray(out.usage_X4)[0].tolist()
        assert len(steps) == waiting_steps + later_steps
        assert lengths_Q.sum() == alive_then + alive_later
        assert alive_then / (rows * waiting_steps) >= 0.85
        assert later_steps <= 64 and waiting_steps > 5 * later_steps / 2

        tiles_Xr = lengths_Q.reshape(-1, rows)  # as many rows, which wait for the longest of them
        without = tiles_Xr.sum() / (rows * tiles_Xr.max(axis=1).sum())
        whole = lengths_Q.sum() / (rows * len(steps))
        assert without < 0.5 and whole > 1.5 * without


class TestPrefix:
    def test_a_prompts_keys_and_values_are_not_copied_for_its_completions(self):
        """In the loop nothing that spans the prompt's slots is larger than one copy of all prompts' keys."""
        slots, config = 29, base.shallow().config
        tile = sampling.make_tile(PROMPTS, KEYS_PGM, prompt_slots=slots)
        one_copy = len(PROMPTS) * config.num_kv_heads * config.head_dim * slots
        for rows in (0, 7):
            loop = decoding_loop(jax.make_jaxpr(make_sampler(rows))(base.shallow().params, tile).jaxpr)
            sizes = [np.prod(shape) for shape in shapes_in(loop) if any(n and n % slots == 0 for n in shape)]
            assert len(sizes) > 3 and max(sizes) == one_copy

    def test_prompts_prefilled_in_pieces_give_the_same_completions(self, monkeypatch):
        shapes, causal_states = [], model.causal_states

        def seen(params, config, tokens_BT):
            shapes.append(tokens_BT.shape)
            return causal_states(params, config, tokens_BT)

        monkeypatch.setattr(model, "causal_states", seen)
        monkeypatch.setattr(sampling, "PREFILL_TOKENS", 2 * base.SLOTS + 1)
        out = base.flat(make_sampler(0)(base.shallow().params, tile_of(np.ones_like(ALIVE_PG))))
        assert set(shapes) == {(2, base.SLOTS)}
        expected, margins_RT = at_once()
        base.assert_agree(out, expected, margins_RT, base.TAU)


def equations(jaxpr):
    """Of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def decoding_loop(jaxpr):
    (loop,) = [equation for equation in equations(jaxpr) if equation.primitive.name == "while"]
    return loop.params["body_jaxpr"].jaxpr


def shapes_in(jaxpr):
    return [variable.aval.shape for equation in equations(jaxpr) for variable in equation.outvars] + [
        variable.aval.shape for variable in jaxpr.invars
    ]


class TestShapes:
    @settings(max_examples=300)
    @given(st.integers(1, 10**7))
    def test_a_bucket_holds_its_size_and_is_less_than_half_as_large_again(self, size):
        bucket = sampling.bucket(size)
        assert size <= bucket < 1.5 * size or size == bucket == 1
        assert sampling.bucket(bucket) == bucket <= sampling.bucket(size + 1)

    def test_there_are_two_buckets_to_a_doubling(self):
        buckets = {sampling.bucket(size) for size in range(1, 4097)}
        assert len(buckets) == 2 * 12 and max(buckets) == 4096
        assert sorted(buckets)[:8] == [1, 2, 3, 4, 6, 8, 12, 16]

    def test_requests_of_any_size_come_in_few_shapes(self, monkeypatch):
        shapes = set()

        def make_recorder(config, *, max_new_tokens, **options):
            def record(params, tile):
                shapes.add(jax.tree.map(np.shape, jax.tree.leaves(tile)).__repr__())
                shape = tile.alive_PG.shape
                empty = np.zeros((*shape, max_new_tokens))
                return sampling.Completions(empty, empty, np.ones(shape, int), np.ones(shape, bool), np.zeros((1, 4)))

            return record

        monkeypatch.setattr(sampling, "make_sampler", make_recorder)
        policy, rng = policy_of_its_own(), np.random.default_rng(0)
        for _ in range(200):
            prompts = ["x" * rng.integers(1, 101) for _ in range(rng.integers(1, 33))]
            qwen.generate(policy, prompts, group_size=2, max_new_tokens=2)
        counts, widths = ({sampling.bucket(n) for n in range(1, most + 1)} for most in (32, 100))
        assert 20 < len(shapes) <= len(counts) * len(widths)
        shapes.clear()
        for _ in range(100):
            prompts = ["x" * rng.integers(1, 101) for _ in range(rng.integers(1, 33))]
            qwen.generate(policy, prompts, group_size=int(rng.integers(1, 9)), max_new_tokens=2, exact=True)
        assert len(shapes) <= len(widths)  # nor for other numbers of prompts or completions

    def test_a_shape_is_compiled_once(self, monkeypatch):
        made, make = [], sampling.make_sampler

        def remember(*args, **options):
            made.append(make(*args, **options))
            return made[-1]

        monkeypatch.setattr(sampling, "make_sampler", remember)
        policy = policy_of_its_own()
        for seed, lengths in enumerate([(5,), (6,), (2, 5), (6, 1), (6,)]):
            qwen.generate(policy, ["x" * n for n in lengths], max_new_tokens=2, seed=seed)
        assert [sample._cache_size() for sample in made] == [2]  # one prompt, and two, of at most 6 tokens


def policy_of_its_own():
    """No other test's compiled samplers serve it."""
    tokenizer = base.shallow().tokenizer
    return dataclasses.replace(base.shallow(), tokenizer=Tokenizer(tokenizer.backend, tokenizer.vocab_size, {}))


def test_exact_completions_come_in_the_order_of_their_prompts_whatever_tiles_they_were_in():
    prompts = ["long enough for", "a", "another width", "bc"]
    generate = functools.partial(qwen.generate, base.shallow(), temperature=0, max_new_tokens=4, exact=True)
    together, alone = generate(prompts), [generate([prompt]).text[0] for prompt in prompts]
    assert together.text == alone and len({texts[0] for texts in alone}) > 2


@tiny.as_users_run
class TestExactly:
    def test_no_bit_of_a_completion_depends_on_what_else_is_asked_for(self):
        """Not on other prompts before and behind it, their number and lengths, nor on the number of its siblings."""

        def generate(prompts, group, **options):
            return qwen.generate(
                base.shallow(), prompts, group_size=group, max_new_tokens=8, seed=5, exact=True, **options
            )

        mine = "two plus"
        company = generate(["one plus", mine, "three plus 4", "plus one"], 3)
        for other, group in (
            (generate([mine, mine], 1), 1),
            (generate(["longer one ", mine], 2, rows=2), 2),
            (generate(["two plu", mine, mine, mine, mine, "s two p"], 4), 3),
        ):
            for field in ("tokens_PGT", "lengths_PG", "logprobs_PGT", "keys_PGM"):
                one, two = (np.ascontiguousarray(getattr(x, field)[1, :group]) for x in (company, other))
                assert one.tobytes() == two.tobytes()
            assert company.text[1][:group] == other.text[1][:group]
            assert company.finish[1][:group] == other.finish[1][:group]
        assert company.tokens_PGT[1].any() and jnp.isfinite(company.logprobs_PGT).all()
