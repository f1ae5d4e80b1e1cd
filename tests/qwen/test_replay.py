import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import qwen
from rlswarm_jax.qwen import sampling
from rlswarm_jax.qwen.packed import pack, sequences_of
from rlswarm_jax.qwen.sampler import Prepared
from rlswarm_jax.qwen.verdict import TAU, Rounding, Verdict, make_replay, replay_completions, replay_tokens, verdicts
from tests.qwen import test_sampling as base

SLOTS, NEW_TOKENS, GROUP, NUM_PROMPTS = 16, 12, 8, 3
MODES = {"at once": 0, "refilled": 5, "exact": 0}  # rows
# What rounding can make of a log-prob or margin between sampling and replay (parameters, cache): bounds for the shallow
# model at temperature 1, about three times the largest that was seen in ten thousand tokens.
ROUNDING = {
    ("float32", "float32"): 1e-4,
    ("float32", "bfloat16"): 0.1,
    ("float32", "int8"): 0.2,
    ("bfloat16", "bfloat16"): 0.2,
    ("bfloat16", "int8"): 0.3,
}


STRICT = Rounding(tau=1e-4, rms=1e-5)


def tau_of(dtypes, temperature):
    """Logits are divided by the temperature, and so is what rounding makes of them."""
    return ROUNDING[dtypes] / min(1.0, temperature or 1.0)


@functools.cache
def params_in(dtype):
    return jax.tree.map(lambda x: x.astype(dtype), base.shallow().params)


@functools.cache
def sampler(mode, temperature, dtypes):
    return sampling.make_sampler(
        base.shallow().config,
        max_new_tokens=NEW_TOKENS,
        temperature=temperature,
        eos_token_ids=base.EOS,
        rows=MODES[mode],
        kv_dtype=dtypes[1],
    )


def sampled(mode, temperature, dtypes, prompts, keys_PGM):
    sample, params = sampler(mode, temperature, dtypes), params_in(dtypes[0])
    if mode == "exact":
        return base.flat(sampling.sample_exact(sample, params, prompts, keys_PGM, prompt_slots=SLOTS, rows=8))
    return base.flat(sample(params, sampling.make_tile(prompts, keys_PGM, prompt_slots=SLOTS)))


def back_to_back(prompts, tokens_RT):
    """Each completion behind a prompt of its own."""
    group, numbers = len(tokens_RT) // len(prompts), [[r] for r in range(len(tokens_RT))]
    own = [prompts[r // group] for (r,) in numbers]
    return pack(own, tokens_RT, numbers, width=SLOTS + NEW_TOKENS, together=1, new_tokens=NEW_TOKENS)


def replayed(params, prompts, tokens_RT, keys_PGM, temperature):
    run = make_replay(base.shallow().config, max_new_tokens=NEW_TOKENS, temperature=temperature)
    logprobs_RT, leads_RT2, _ = run(params, back_to_back(prompts, tokens_RT), keys_PGM.reshape(-1, 2))
    return np.asarray(logprobs_RT), np.asarray(leads_RT2).min(axis=-1)


def assert_honest_is_not_refuted(mode, temperature, dtypes, lengths, seed):
    prompts = base.prompts_of(lengths, seed)
    keys_PGM = base.keys_of(len(prompts), GROUP, author=str(seed))
    out = sampled(mode, temperature, dtypes, prompts, keys_PGM)
    logprobs_RT, margins_RT = replayed(params_in(dtypes[0]), prompts, out.tokens_RT, keys_PGM, temperature)
    written_RT, tau = base.written(out), tau_of(dtypes, temperature)
    assert verdicts(margins_RT[written_RT], tau).min() > Verdict.NOT_PRODUCED
    np.testing.assert_allclose(out.logprobs_RT[written_RT], logprobs_RT[written_RT], rtol=0, atol=tau)
    return verdicts(margins_RT[written_RT], tau)


SOME_CASES = [
    ("at once", 0.7, ("float32", "float32")),
    ("refilled", 0.0, ("float32", "float32")),
    ("exact", 1.3, ("float32", "int8")),
    ("refilled", 1.0, ("bfloat16", "bfloat16")),
]
EVERY_CASE = list(itertools.product(MODES, (0.0, 0.7, 1.0, 1.3), ROUNDING))
requests = given(st.lists(st.integers(1, SLOTS), min_size=NUM_PROMPTS, max_size=NUM_PROMPTS), st.integers(0, 2**30))


class TestHonest:
    @pytest.mark.parametrize("case", SOME_CASES, ids=str)
    @settings(deadline=None, max_examples=10)
    @requests
    def test_a_completion_is_never_said_not_to_be_produced(self, case, lengths, seed):
        found = assert_honest_is_not_refuted(*case, lengths, seed)
        if case[2] == ("float32", "float32"):
            assert np.mean(found == Verdict.PRODUCED) > 0.95

    @pytest.mark.slow
    @pytest.mark.parametrize("case", [case for case in EVERY_CASE if case not in SOME_CASES], ids=str)
    @settings(deadline=None, max_examples=10)
    @requests
    def test_nor_in_any_other_way_of_sampling(self, case, lengths, seed):
        assert_honest_is_not_refuted(*case, lengths, seed)

    def test_the_front_door_replays_what_it_generated(self):
        policy, prompts, asked = base.shallow(), ["one", "two plus two"], {"temperature": 0.7}
        out = qwen.generate(policy, prompts, group_size=2, max_new_tokens=NEW_TOKENS, seed=9, **asked)
        tokens_T = out.tokens_PGT[1, 0, : out.lengths_PG[1, 0]]
        found = qwen.replay(policy, prompts[1], tokens_T, out.keys_PGM[1, 0], **asked)
        assert found.verdict == Verdict.PRODUCED and found.verdicts_T == [Verdict.PRODUCED] * len(tokens_T)
        assert found.rounding.tau == pytest.approx(TAU["float32", "float32"] / 0.7)
        np.testing.assert_allclose(found.logprobs_T, out.logprobs_PGT[1, 0, : len(tokens_T)], rtol=0, atol=1e-4)
        siblings = qwen.replay(policy, prompts[1], tokens_T, out.keys_PGM[1, 1], **asked)
        assert siblings.verdict == Verdict.NOT_PRODUCED


def margins_of(logits_RTV, keys_RM, temperature, tokens_RT):
    """Signed margins of given tokens, in float64 from the specification, but for the Threefry draws."""
    rows, time, vocab = logits_RTV.shape
    size = int(np.ceil(vocab**0.5))
    count = int(np.ceil(vocab / size))
    noise = np.asarray(base.noise_of(keys_RM, time, count + size), np.float64)
    margins_RT = np.empty((rows, time))
    for r, t in np.ndindex(rows, time):
        padded = np.full(count * size, -np.inf)
        padded[:vocab] = logits_RTV[r, t].astype(np.float64) / temperature
        chunks = padded.reshape(count, size)
        chunk, inside = divmod(int(tokens_RT[r, t]), size)
        over_chunks = scipy.special.logsumexp(chunks, axis=1) + noise[r, t, :count]
        over_tokens = chunks[chunk] + noise[r, t, count:]
        margins_RT[r, t] = min(
            scores[i] - np.delete(scores, i).max() for scores, i in ((over_chunks, chunk), (over_tokens, inside))
        )
    return margins_RT


PROMPTS = base.prompts_of((16, 5, 9))
KEYS_PGM = base.keys_of(len(PROMPTS), GROUP)
TEMPERATURE = 0.7


def replay_of(margins):
    margins_T = np.array(margins)
    leads_T2 = np.stack([margins_T, np.full(len(margins), 9.0)], axis=1)
    return qwen.Replay(np.zeros(len(margins)), leads_T2, np.zeros(len(margins)), Rounding(tau=0.1, rms=0.01))


@functools.cache
def honest():
    return sampled("at once", TEMPERATURE, ("float32", "float32"), PROMPTS, KEYS_PGM)


def replay_honest(params=None, prompts=PROMPTS, tokens_RT=None, keys_PGM=KEYS_PGM, temperature=TEMPERATURE):
    tokens_RT = honest().tokens_RT if tokens_RT is None else tokens_RT
    return replayed(params or params_in("float32"), prompts, tokens_RT, keys_PGM, temperature)


def tokens_until_found(margins_RT):
    """Mean number of tokens read until one is not produced; a completion that ends before counts as twice as long."""
    written_RT = base.written(honest())
    refuted_RT = written_RT & (verdicts(margins_RT, TAU["float32", "float32"]) == Verdict.NOT_PRODUCED)
    read_R = np.where(refuted_RT.any(axis=1), refuted_RT.argmax(axis=1) + 1, 2 * honest().lengths_R)
    return read_R.mean(), refuted_RT


class TestMargins:
    def test_they_are_those_of_the_specification(self):
        """Of the tokens that were drawn, and of others."""
        config, params = base.shallow().config, base.shallow().params
        logits_RTV = base.forward(params, config, PROMPTS, honest())
        _, of_drawn_RT = base.replay(logits_RTV, KEYS_PGM.reshape(-1, 2), TEMPERATURE)
        written_RT = base.written(honest())
        expected_RT = margins_of(logits_RTV, KEYS_PGM.reshape(-1, 2), TEMPERATURE, honest().tokens_RT)
        np.testing.assert_allclose(expected_RT[written_RT], of_drawn_RT[written_RT], rtol=0, atol=1e-9)
        logprobs_RT, margins_RT = replay_honest()
        np.testing.assert_allclose(margins_RT[written_RT], expected_RT[written_RT], rtol=0, atol=5e-5)
        np.testing.assert_allclose(logprobs_RT[written_RT], honest().logprobs_RT[written_RT], rtol=0, atol=1e-5)

        rows, last = np.arange(len(honest().lengths_R)), honest().lengths_R - 1
        others_RT = honest().tokens_RT.copy()
        others_RT[rows, last] = (others_RT[rows, last] + 1 + rows) % 103
        expected_RT = margins_of(logits_RTV, KEYS_PGM.reshape(-1, 2), TEMPERATURE, others_RT)
        _, margins_RT = replay_honest(tokens_RT=others_RT)
        np.testing.assert_allclose(margins_RT[written_RT], expected_RT[written_RT], rtol=0, atol=5e-5)
        assert np.all(expected_RT[rows, last] < 0) and np.all(np.delete(expected_RT, 0, axis=1)[written_RT[:, 1:]] < 50)

    def test_margins_within_tau_decide_nothing(self):
        found = verdicts(np.array([-1.0, -0.1, -0.099, 0.0, 0.099, 0.1, 1.0]), 0.1)
        assert found.tolist() == [-1, -1, 0, 0, 0, 1, 1]

    @pytest.mark.parametrize(
        ("margins", "verdict"),
        [
            ([1.0, 0.2], Verdict.PRODUCED),
            ([1.0, 0.05], Verdict.UNDECIDED),
            ([1.0, -0.05], Verdict.UNDECIDED),
            ([1.0, 0.05, -0.2], Verdict.NOT_PRODUCED),
        ],
    )
    def test_one_refuted_token_refutes_the_whole_and_one_undecided_leaves_it_so(self, margins, verdict):
        assert replay_of(margins).verdict is verdict


class TestDishonest:
    def test_an_altered_token_is_found_where_it_stands(self):
        altered_RT, rng = honest().tokens_RT.copy(), np.random.default_rng(0)
        rows = np.arange(len(altered_RT))
        places_R = rng.integers(0, honest().lengths_R)
        altered_RT[rows, places_R] = (altered_RT[rows, places_R] + rng.integers(1, 103, len(rows))) % 103
        _, margins_RT = replay_honest(tokens_RT=altered_RT)
        _, refuted_RT = tokens_until_found(margins_RT)
        assert refuted_RT[rows, places_R].all()
        assert not any(refuted[:place].any() for refuted, place in zip(refuted_RT, places_R, strict=True))

    @pytest.mark.parametrize(
        ("what", "within", "change"),
        [
            ("another key", 1.5, {"keys_PGM": base.keys_of(len(PROMPTS), GROUP, author="another")}),
            ("a sibling's key", 1.5, {"keys_PGM": np.roll(KEYS_PGM, 1, axis=1)}),
            ("another prompt", 1.5, {"prompts": base.prompts_of((16, 5, 9), seed=1)}),
            ("another temperature", 5.0, {"temperature": 1.3}),
            ("weights a third off", 2.5, {"params": lambda: off(0.3)}),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_what_is_not_as_it_was_is_found_within_a_few_tokens(self, what, within, change):
        change = {name: value() if callable(value) else value for name, value in change.items()}
        tokens, _ = tokens_until_found(replay_honest(**change)[1])
        assert tokens < within, what

    def test_nothing_is_found_where_nothing_was_changed(self):
        assert not tokens_until_found(replay_honest()[1])[1].any()


def off(scale):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: w * (1 + scale * rng.standard_normal(w.shape, np.float32)), jax.device_get(base.shallow().params)
    )


class TestReplayOfOne:
    def test_it_is_that_of_many(self):
        logprobs_RT, margins_RT = replay_honest()
        config, params = base.shallow().config, base.shallow().params
        row, tokens_T = 13, honest().tokens_RT[13, : honest().lengths_R[13]]
        asked = {"temperature": TEMPERATURE, "rounding": STRICT}
        found = replay_tokens(params, config, PROMPTS[1], tokens_T, KEYS_PGM[1, row - GROUP], **asked)
        np.testing.assert_allclose(found.logprobs_T, logprobs_RT[row, : len(tokens_T)], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.margins_T, margins_RT[row, : len(tokens_T)], rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("prompt", "tokens", "match"),
        [
            ([], [1], "a prompt and a completion of at least one token each"),
            ([1], [], "a prompt and a completion of at least one token each"),
            ([1], [[1, 2]], "a prompt and a completion of at least one token each"),
            ([1], [103], "not in the vocabulary of 103"),
            ([1], [-1], "not in the vocabulary of 103"),
            ([2**31 + 5], [1], "not in the vocabulary of 103"),
        ],
    )
    def test_what_cannot_be_a_completion_is_refused(self, prompt, tokens, match):
        key_M = KEYS_PGM[0, 0]
        with pytest.raises(ValueError, match=match):
            replay_tokens(
                base.shallow().params, base.shallow().config, prompt, tokens, key_M, temperature=1.0, rounding=STRICT
            )


def replay_several(prompts, tokens, keys_BM, **options):
    config = dataclasses.replace(base.shallow().config, eos_token_ids=base.EOS)
    room = {"text_slots": SLOTS + NEW_TOKENS, "whole": NEW_TOKENS}
    options = {"temperature": TEMPERATURE, "rounding": STRICT} | room | options
    return replay_completions(base.shallow().params, config, prompts, tokens, keys_BM, **options)


SHARED = {"rows": 6, "together": 3, "text_slots": 2 * SLOTS + 3 * NEW_TOKENS}  # of a group, or two, in a sequence


class TestReplayOfSeveral:
    """Completions of unlike lengths and prompts, in tiles."""

    def given(self):
        prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
        written = [tokens_T[:n].tolist() for tokens_T, n in zip(honest().tokens_RT, honest().lengths_R, strict=True)]
        return prompts, written, KEYS_PGM.reshape(-1, 2)

    @pytest.mark.parametrize(
        "options", [{"rows": 5}, {"text_slots": 0, "whole": 0}, SHARED, SHARED | {"text_slots": 0}], ids=str
    )
    def test_each_is_as_it_is_alone(self, options):
        together = replay_several(*self.given(), **options)
        for found, prompt, tokens, key_M in zip(together, *self.given(), strict=True):
            (alone,) = replay_several([prompt], [tokens], key_M[None])
            assert found.rounding == STRICT and len(found.logprobs_T) == len(tokens)
            for name in ("logprobs_T", "leads_T2", "open_T"):
                np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=0, atol=1e-4)

    def test_all_sizes_of_a_request_take_one_program(self):
        prompts, written, keys_BM = self.given()
        traced = []

        def jit(function):
            return jax.jit(lambda *args: traced.append(args[1].tokens_BT.shape) or function(*args))

        for part in (slice(0, 4), slice(4, 8), slice(9, 12), slice(3, 19)):
            asked = (prompts[part], written[part], keys_BM[part])
            replay_several(*asked, rows=4, jit=jit)
        assert len(traced) == 2 and {shape[0] for shape in traced} == {3, 4}

    def test_completions_in_a_sequence_share_their_prompt_and_do_not_see_each_other(self):
        prompts, written, _ = self.given()
        sequences = sequences_of([tuple(p) for p in prompts], written, 64, 3)
        assert [i for numbers in sequences for i in numbers] == list(range(len(written)))
        assert max(map(len, sequences)) == 3 and any(len({prompts[i][0] for i in n}) > 1 for n in sequences)
        arrays = [np.array(tokens) for tokens in written]
        packed = pack([tuple(p) for p in prompts], arrays, sequences, width=64, together=3, new_tokens=NEW_TOKENS)
        for b, numbers in enumerate(sequences):
            for row, i in enumerate(numbers):
                mine = packed.rows_BT[b] == row + 1
                seen = mine | ((packed.rows_BT[b] == 0) & (packed.prompts_BT[b] == packed.prompts_BT[b][mine][0]))
                assert packed.tokens_BT[b][seen].tolist() == [*prompts[i], *written[i]]
                assert packed.positions_BT[b][seen].tolist() == list(range(len(prompts[i]) + len(written[i])))

    def test_how_open_a_decision_was_is_how_often_two_keys_differ(self):
        """1 - sum p^2 of the chunks' probabilities, and of those within the token's chunk, in float64."""
        config, params = base.shallow().config, base.shallow().params
        logits_RTV = base.forward(params, config, PROMPTS, honest()).astype(np.float64) / TEMPERATURE
        found = replay_several(*self.given())
        size = int(np.ceil(config.vocab_size**0.5))
        for r, replay in enumerate(found):
            for t in range(int(honest().lengths_R[r])):
                p_V = scipy.special.softmax(logits_RTV[r, t])
                p_CV = np.pad(p_V, (0, -len(p_V) % size)).reshape(-1, size)
                of_chunk = p_CV[honest().tokens_RT[r, t] // size]
                expected = 2 - (p_CV.sum(axis=1) ** 2).sum() - ((of_chunk / of_chunk.sum()) ** 2).sum()
                assert replay.open_T[t] == pytest.approx(expected, abs=1e-4)

    def test_what_was_cut_by_hand_ends_in_a_token_that_was_not_drawn(self):
        prompts, written, keys_BM = self.given()
        cut = [tokens[:-1] or tokens for tokens in written]
        for whole, verdict in ((0, Verdict.PRODUCED), (NEW_TOKENS, Verdict.NOT_PRODUCED)):
            found = replay_several(prompts, cut, keys_BM, whole=whole)
            were_cut = [replay for replay, tokens in zip(found, written, strict=True) if len(tokens) > 1]
            assert {replay.verdict for replay in were_cut} == {verdict}
            assert all(Verdict.NOT_PRODUCED not in replay.verdicts_T[:-1] for replay in were_cut)
        uncut = replay_several(prompts, written, keys_BM)
        assert Verdict.NOT_PRODUCED not in {replay.verdict for replay in uncut}


@pytest.mark.parametrize(
    ("options", "samples"),
    [({"kv_dtype": "int8"}, 24), ({"kv_dtype": "bfloat16"}, 32), ({"dtype": "bfloat16"}, 8)],
    ids=str,
)
def test_what_was_sampled_with_less_precision_is_given_the_benefit_of_the_doubt(options, samples):
    policy, prompts = base.shallow(), ["two plus two", "x"]
    out = qwen.generate(policy, prompts, group_size=samples, max_new_tokens=NEW_TOKENS, **options)
    strict, kind = [], []
    for p, g in itertools.product(range(2), range(samples)):
        claim = policy, prompts[p], out.tokens_PGT[p, g, : out.lengths_PG[p, g]], out.keys_PGM[p, g]
        kind += qwen.replay(*claim, **options).verdicts_T
        strict += qwen.replay(*claim).verdicts_T
    assert Verdict.NOT_PRODUCED not in kind and Verdict.PRODUCED in kind
    assert Verdict.NOT_PRODUCED in strict


def test_nothing_is_drawn_after_the_end():
    policy = base.shallow()
    config = dataclasses.replace(policy.config, eos_token_ids=base.EOS)
    out = qwen.generate(policy, ["two"], max_new_tokens=NEW_TOKENS, group_size=GROUP)
    for g, key_M in enumerate(out.keys_PGM[0]):  # the sampler did not know of these ends
        tokens_T = out.tokens_PGT[0, g, : out.lengths_PG[0, g]]
        ends = np.isin(tokens_T, base.EOS)
        found = replay_tokens(
            policy.params, config, policy.tokenizer.encode("two"), tokens_T, key_M, temperature=1.0, rounding=STRICT
        )
        last = ends.argmax() if ends.any() else len(ends)
        expected = [Verdict.PRODUCED if t <= last else Verdict.NOT_PRODUCED for t in range(len(ends))]
        assert found.verdicts_T == expected


def test_weights_that_are_replaced_are_not_taken_for_those_that_were_prepared():
    policy = dataclasses.replace(base.shallow(), params=dict(base.shallow().params))
    ask = functools.partial(qwen.generate, prompts=["one"], max_new_tokens=NEW_TOKENS)  # a row: it is prepared
    before = ask(policy).tokens_PGT
    policy.params["norm"] = -policy.params["norm"]
    again = dataclasses.replace(policy, params=dict(policy.params), prepared=Prepared())
    np.testing.assert_array_equal(ask(policy).tokens_PGT, ask(again).tokens_PGT)
    assert (ask(policy).tokens_PGT != before).any()


def test_dtypes_whose_error_was_not_measured_are_named():
    policy = base.shallow()
    with pytest.raises(ValueError, match="no tau was measured for float16 weights and a int8 cache"):
        qwen.replay(policy, "a", [1], np.zeros(2), dtype="float16", kv_dtype="int8")
