"""What a replay proves: bounds against exact enumeration, and real samplers that lie and do not."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import randomness
from rlswarm_jax.audit import statistics
from rlswarm_jax.audit.statistics import LEVEL, MIN_BITS, bits, evidence, judge
from rlswarm_jax.qwen import draw, sampling
from rlswarm_jax.qwen.verdict import Replay, Rounding, Verdict, replay_completions, rounding
from tests.qwen import test_sampling as base

ROUNDING = Rounding(tau=0.5, rms=0.05)
VOCABULARY, DRAWS = 64, 20_000  # eight chunks of eight


def replay_of(margins, logprobs=-1.0, opened=0.5, rounding=ROUNDING):
    leads_T2 = np.stack([np.asarray(margins, np.float32), np.full(len(margins), 9, np.float32)], axis=1)
    return Replay(np.full(len(margins), logprobs, np.float32), leads_T2, np.full(len(margins), opened), rounding)


@functools.cache
def drawn_and_judged(seed, temperature=1.0, noise=0.0):
    """Tokens that logits a draw with many keys, and their leads by logits b."""
    rng = np.random.default_rng(seed)
    b_V = rng.normal(0, 2, VOCABULARY).astype(np.float32)
    a_V = b_V / np.float32(temperature) + rng.normal(0, 1, VOCABULARY).astype(np.float32) * np.float32(noise)
    keys_XM = rng.integers(0, 2**32, (DRAWS, 2), np.uint32)

    leads_X2 = np.asarray(draw_and_judge(a_V, b_V, keys_XM))
    return a_V, b_V, leads_X2


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def draw_and_judge(a_V, b_V, key_M):
    key = randomness.wrap(key_M)
    token, _ = draw.two_level_gumbel(a_V, key)
    return draw.leads(b_V, key, token)[0]


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None))
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def leads_of(b_V, token, key_M):
    return draw.leads(b_V, randomness.wrap(key_M), token)[0]


class TestShortfall:
    @pytest.mark.parametrize("how", [{"temperature": 1.4}, {"noise": 0.3}, {"noise": 1.0}, {}], ids=str)
    def test_its_mean_is_the_divergence_of_the_sampler_from_the_claim(self, how):
        """To four standard errors, SciPy's relative entropy."""
        a_V, b_V, leads_X2 = drawn_and_judged(1, **how)
        of_each_X = np.maximum(-leads_X2, 0).astype(np.float64).sum(axis=1)
        p_V, q_V = scipy.special.softmax(a_V.astype(np.float64)), scipy.special.softmax(b_V.astype(np.float64))
        expected = scipy.special.rel_entr(p_V, q_V).sum()
        assert abs(of_each_X.mean() - expected) <= 4 * of_each_X.std() / np.sqrt(DRAWS) + 1e-6
        if not how:
            assert (leads_X2 > 0).all()

    def test_rounding_costs_a_quarter_of_its_mean_square_for_as_much_as_was_open(self):
        a_V, b_V, _ = drawn_and_judged(2, noise=0.05)
        p_V, e_V = scipy.special.softmax(b_V.astype(np.float64)), a_V.astype(np.float64) - b_V
        pairs_VV = p_V[:, None] * p_V * ~np.eye(VOCABULARY, dtype=bool)
        rms = np.sqrt((pairs_VV * (e_V[:, None] - e_V) ** 2).sum() / pairs_VV.sum())
        opened = 1 - (p_V**2).sum()
        replay = Replay(np.zeros(1), np.ones((1, 2)), np.array([opened - statistics.FIRST]), Rounding(1.0, rms))
        expected = scipy.special.rel_entr(scipy.special.softmax(a_V.astype(np.float64)), p_V).sum()
        assert statistics.allowance([replay]) == pytest.approx(expected, rel=0.05)


class TestBits:
    @pytest.mark.parametrize("tau", [0.0, 0.1, 1.5])
    def test_another_key_passes_no_more_often_than_said(self, tau):
        """Of each token that is likely enough to be counted; without rounding, exactly as often."""
        _, b_V, _ = drawn_and_judged(3)
        logprobs_V = scipy.special.log_softmax(b_V.astype(np.float64))
        keys_XM = np.random.default_rng(4).integers(0, 2**32, (8000, 2), np.uint32)
        likely = np.argsort(-logprobs_V)[:6]
        leads_VX2 = np.asarray(leads_of(b_V, likely, keys_XM))
        passed_V = (leads_VX2.min(axis=-1) >= -tau).mean(axis=1)
        said_V = 2.0 ** -bits(logprobs_V[likely], tau)
        noise_V = 4 * np.sqrt(said_V / 8000)
        assert np.all(passed_V <= said_V + noise_V)
        if tau == 0:
            np.testing.assert_allclose(said_V, np.exp(logprobs_V[likely]), rtol=1e-9)
            assert np.all(passed_V >= said_V - noise_V)

    def test_they_are_those_of_two_even_levels(self):
        """By SciPy: the lead of a level with probability P over the others is logistic, about log(P / (1 - P))."""
        for logprob in (-0.01, -0.7, -5.0, -40.0):
            p = np.exp(logprob / 2)
            level = scipy.stats.logistic.sf(-1.5, loc=np.log(p / (1 - p)))
            assert bits(np.array([logprob]), 1.5)[0] == pytest.approx(-2 * np.log2(level), rel=1e-6)

    def test_what_is_certain_or_no_number_proves_nothing(self):
        assert bits(np.array([0.0, np.nan, 1e-7]), 0.1).tolist() == [0.0, 0.0, 0.0]


class TestEvidence:
    @pytest.mark.parametrize("tokens", [1, 8, 500])
    @pytest.mark.parametrize("allowed", [1e-8, 1e-3, 0.3])
    @pytest.mark.parametrize("cap", [1 / 100, *statistics.CAPS_OF_TAU], ids=str)
    def test_honest_audits_exceed_it_no_more_often_than_said(self, cap, allowed, tokens):
        """All numbers of shortfalls of the worst size, enumerated, with their binomial probabilities."""
        count_K = np.arange(tokens + 1)
        chance = min(1.0, allowed / tokens / cap)
        log_K = np.array([evidence([np.full(k, cap)], chance * cap * tokens, tau=1.0) for k in count_K])
        log_p_K = scipy.stats.binom.logpmf(count_K, tokens, chance)
        assert scipy.special.logsumexp(log_K + log_p_K) <= 1e-9  # its mean is at most 1
        exceeding = log_K >= -np.log(LEVEL)
        assert not exceeding.any() or scipy.special.logsumexp(log_p_K[exceeding]) <= np.log(LEVEL)

    @pytest.mark.parametrize("error", [0.02, 0.3, 1.0])
    def test_its_mean_is_at_most_one_whatever_the_errors_are(self, error):
        """Of one decision between two tokens whose difference is off by `error`: its shortfall's density, integrated.

        The noises' difference is logistic; the worse token is drawn where it falls between what both logits ask for.
        """
        for difference in (0.0, 1.0, 3.0):
            p, q = scipy.special.expit([difference - error, difference])
            divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

            def of(x, difference=difference, divergence=divergence):
                density = scipy.stats.logistic.pdf(x, loc=difference)
                return density * np.exp(evidence([np.array([x])], divergence, 0.5))

            wrongly = scipy.integrate.quad(of, 0, error, points=[0.5 / 16, 0.125, 0.5], limit=200)[0]
            flipped = scipy.stats.logistic.cdf(error, difference) - scipy.stats.logistic.cdf(0, difference)
            mean = wrongly + (1 - flipped) * np.exp(evidence([np.zeros(1)], divergence, 0.5))
            assert mean <= 1

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.floats(0, 3), min_size=1, max_size=20), st.floats(1e-6, 1), st.integers(1, 19))
    def test_more_shortfall_is_more_and_more_allowance_is_less_however_it_is_split(self, x, allowed, at):
        whole = evidence([np.array(x)], allowed, 0.5)
        assert evidence([np.array(x[:at]), np.array(x[at:])], allowed, 0.5) == pytest.approx(whole, abs=1e-9)
        assert evidence([np.array([*x, 0.1])], allowed, 0.5) > whole > evidence([np.array(x)], 2 * allowed, 0.5)


class TestReach:
    @pytest.mark.parametrize(("allowed", "tau"), [(1e-9, 1e-4), (0.06, 1.5), (3.0, 1.5)])
    def test_nobody_who_shifts_more_than_that_passes(self, allowed, tau):
        """In equal parts of any size below tau that is not much less than the caps, and in parts by chance."""
        most, rng = statistics.reach(allowed, tau), np.random.default_rng(0)
        limit = -np.log(LEVEL)
        for part in tau * np.array([1 / 8, 1 / 4, 1 / 2, 0.999]):
            assert evidence([np.full(int(most / part) + 1, part)], allowed, tau) >= limit
        for _ in range(20):
            x = rng.uniform(tau / 8, tau, int(16 * most / tau) + 16)
            assert evidence([x[: np.searchsorted(x.cumsum(), 1.1 * most) + 1]], allowed, tau) >= limit
        assert tau / 2 < most < allowed + 30 * tau


class TestSpent:
    def test_it_is_the_divergence_by_what_log_probs_differ_by(self):
        """Every token as often as it is drawn; SciPy's relative entropy, to second order."""
        a_V, b_V, _ = drawn_and_judged(2, noise=0.05)
        own_V, replayed_V = (scipy.special.log_softmax(x.astype(np.float64)) for x in (a_V, b_V))
        drawn = np.random.default_rng(0).choice(VOCABULARY, 100_000, p=np.exp(own_V))
        replay = Replay(replayed_V[drawn], np.ones((len(drawn), 2)), np.full(len(drawn), 0.5), ROUNDING)
        share = statistics.spent([own_V[drawn]], [replay])
        divergence = scipy.special.rel_entr(np.exp(own_V), np.exp(replayed_V)).sum()
        assert share * statistics.allowance([replay]) == pytest.approx(len(drawn) * divergence, rel=0.05)

    def test_what_is_not_a_number_is_an_alarm(self):
        assert statistics.spent([np.array([np.nan])], [replay_of([1.0])]) == np.inf
        assert statistics.spent([np.array([-1.0])], [replay_of([1.0])]) == 0


class TestJudgement:
    def test_the_verdict_is_by_the_worst_of_both_tests_and_the_bits(self):
        sure, enough = [1.0] * 100, 100
        assert judge([replay_of(sure)]).verdict is Verdict.PRODUCED
        assert judge([replay_of(sure, logprobs=-1e-3)]).verdict is Verdict.UNDECIDED
        assert judge([replay_of([*sure, -0.4])]).verdict is Verdict.PRODUCED  # a rounding error may do that once
        assert judge([replay_of([*sure, -0.5])]).verdict is Verdict.NOT_PRODUCED  # none does that
        assert judge([replay_of([*sure, *[-0.4] * 8])]).verdict is Verdict.NOT_PRODUCED  # nor that so often
        assert judge([replay_of([1.0, -np.inf], logprobs=-1e-3)]).verdict is Verdict.NOT_PRODUCED
        assert judge([replay_of(sure)]).tokens == enough

    def test_completions_are_pooled(self):
        one, two = replay_of([1.0, -0.3, -0.4]), replay_of([-0.2, 1.0], logprobs=-3.0)
        both = judge([one, two])
        assert both.tokens == 5 and both.bits == pytest.approx(judge([one]).bits + judge([two]).bits)
        together = replay_of([1.0, -0.3, -0.4, -0.2, 1.0])
        assert both.statistic == pytest.approx(judge([together]).statistic)
        small = replay_of([1.0] * 2)
        assert judge([small]).verdict is Verdict.UNDECIDED and judge([small] * 40).verdict is Verdict.PRODUCED

    def test_what_is_not_a_number_neither_accuses_nor_excuses(self):
        lost = replay_of([np.nan] * 100, logprobs=np.nan, opened=np.nan)
        assert judge([lost]).verdict is Verdict.UNDECIDED and judge([lost]).bits == 0
        assert judge([lost, replay_of([-0.4] * 20)]).verdict is Verdict.NOT_PRODUCED

    def test_a_guess_is_as_seldom_taken_for_a_proof_as_an_honest_one_for_a_lie(self):
        assert np.isclose(2**-MIN_BITS, LEVEL) and judge([replay_of([1.0])]).threshold == pytest.approx(6)

    def test_none_and_unlike_ones_are_refused(self):
        for wrong in ([], [replay_of([1.0]), replay_of([1.0], rounding=Rounding(1.0, 0.1))]):
            with pytest.raises(ValueError, match="all of one rounding"):
                judge(wrong)


PROMPTS = base.prompts_of((9, 3, 16, 5))
GROUP, NEW_TOKENS = 8, 24
EOS = base.EOS[:1]  # of 103 tokens: long completions


@functools.cache
def params_in(dtype):
    return jax.tree.map(lambda x: x.astype(dtype), base.shallow().params)


@functools.cache
def sampler(kv_dtype, rows):
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_ids": EOS, "kv_dtype": kv_dtype, "rows": rows}
    return sampling.make_sampler(base.shallow().config, temperature=1.0, **options)


def sampled(author="me", dtype="float32", kv_dtype=None, rows=0, exact=False, params=None):
    """Completions of every prompt, and the keys that drew them."""
    keys_PGM = base.keys_of(len(PROMPTS), GROUP, author)
    run, params = sampler(kv_dtype or dtype, rows), params or params_in(dtype)
    if exact:
        out = sampling.sample_exact(run, params, PROMPTS, keys_PGM, prompt_slots=16, rows=8)
    else:
        out = jax.device_get(run(params, sampling.make_tile(PROMPTS, keys_PGM, prompt_slots=16)))
    tokens_RT, lengths_R = out.tokens_PGT.reshape(-1, NEW_TOKENS), out.lengths_PG.reshape(-1)
    return [tokens_T[:n].tolist() for tokens_T, n in zip(tokens_RT, lengths_R, strict=True)]


def replayed(completions, author="me", dtype="float32", kv_dtype=None, params=None):
    prompts, keys_PGM = [p for p in PROMPTS for _ in range(GROUP)], base.keys_of(len(PROMPTS), GROUP, author)
    asked = {"temperature": 1.0, "rounding": rounding(dtype, kv_dtype or dtype, 1.0), "whole": NEW_TOKENS}
    config = dataclasses.replace(base.shallow().config, eos_token_ids=EOS)
    given = (completions, keys_PGM.reshape(-1, 2))
    return replay_completions(params or params_in(dtype), config, prompts, *given, **asked)


def rounded(params):
    """Matrices in 5 bits, a scale for each column, as weights are quantised."""

    def one(w):
        if w.ndim < 2:
            return w
        scale = np.abs(w).max(axis=0, keepdims=True) / 15
        return (np.round(w / scale) * scale).astype(w.dtype)

    return jax.tree.map(one, jax.device_get(params))


def first_tokens(replays, count):
    """As many whole completions as have about so many tokens, the last cut."""
    kept = []
    for replay in replays:
        room = count - sum(len(one.logprobs_T) for one in kept)
        if room > 0:
            of = (replay.logprobs_T, replay.leads_T2, replay.open_T)
            kept.append(Replay(*(x[:room] for x in of), replay.rounding))
    return kept


HONEST = [{}, {"kv_dtype": "int8", "rows": 5}, {"dtype": "bfloat16"}]
HONEST_SLOWLY = [
    {"rows": 5},
    {"exact": True},
    {"kv_dtype": "bfloat16", "rows": 5},
    {"dtype": "bfloat16", "exact": True},
]


class TestSamplers:
    """Of a model with a layer, random weights and much entropy."""

    @pytest.mark.parametrize(
        "how", [*HONEST, *(pytest.param(x, marks=pytest.mark.slow) for x in HONEST_SLOWLY)], ids=str
    )
    def test_who_does_as_he_says_is_never_accused(self, how):
        """Alone, by group, or all together; and all together prove that it was this key."""
        dtypes = {name: value for name, value in how.items() if name.endswith("dtype")}
        replays = replayed(sampled(**how), **dtypes)
        groups = [replays[p * GROUP : (p + 1) * GROUP] for p in range(len(PROMPTS))]
        for part in [*([replay] for replay in replays), *groups, replays]:
            assert judge(part).verdict is not Verdict.NOT_PRODUCED
        assert judge(replays).verdict is Verdict.PRODUCED and judge(replays).statistic < 1

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("lie", ["another key", "a peer's", "borrowed text", "lengthened"])
    def test_who_did_not_draw_it_is_found_within_32_tokens(self, lie, dtype):
        honest = sampled(dtype=dtype)
        borrowed = [np.random.default_rng(i).permutation(103)[:NEW_TOKENS].tolist() for i in range(len(honest))]
        told = {
            "another key": lambda: honest[1:] + honest[:1],  # of the sibling, and of the next prompt
            "a peer's": lambda: sampled("a peer", dtype=dtype),
            "borrowed text": lambda: borrowed,
            "lengthened": lambda: [[*tokens, 5, EOS[0]][:NEW_TOKENS] for tokens in honest],
        }[lie]()
        replays = replayed(told, dtype=dtype)
        if lie == "lengthened":
            lengthened = [r for r, new, old in zip(replays, told, honest, strict=True) if len(new) > len(old)]
            assert lengthened and all(judge([replay]).verdict is Verdict.NOT_PRODUCED for replay in lengthened)
            return
        for group in range(len(PROMPTS)):
            part = first_tokens(replays[group * GROUP : (group + 1) * GROUP], 32)
            assert judge(part).verdict is Verdict.NOT_PRODUCED

    @pytest.mark.parametrize("lie", ["temperature 1.2", "weights in 5 bits"])
    def test_what_no_token_shows_their_sum_does(self, lie):
        """bfloat16: lies below what rounding might do to one token, in some thousands of them."""
        own = params_in("bfloat16")
        other = rounded(own) if "bits" in lie else own | {"norm": own["norm"] / 1.2}  # divides the logits
        replays = []
        for author in map(str, range(8)):
            replays += replayed(sampled(author, dtype="bfloat16", params=other), author, dtype="bfloat16")
        assert sum(len(replay.logprobs_T) for replay in replays) > 3000
        assert judge(replays).statistic > judge(replays).threshold

    def test_a_copy_of_what_everybody_says_proves_nothing(self):
        sure = jax.tree.map(lambda x: x, params_in("float32"))
        sure = sure | {"norm": sure["norm"] * 40}  # logits forty times as large
        replays = replayed(sampled("a peer", params=sure), params=sure)
        verdicts = {judge([replay]).verdict for replay in replays}
        assert Verdict.UNDECIDED in verdicts and Verdict.PRODUCED not in verdicts

    @pytest.mark.parametrize("candidates", [2, 4])
    def test_the_best_of_several_is_found_as_often_as_another_key_was_better(self, candidates):
        """Best by what its first token is: 1 - 1/n of them are of another key, and each of these is found."""
        drawn = [sampled(str(n) if n else "me") for n in range(candidates)]
        chosen = [
            min(several, key=lambda tokens: (tokens[0] * 31 % 103, tokens)) for several in zip(*drawn, strict=True)
        ]
        replays = replayed(chosen)
        others = [best != own for best, own in zip(chosen, drawn[0], strict=True)]
        found = [judge([replay]).verdict is Verdict.NOT_PRODUCED for replay in replays]
        assert found == others
        p_value = scipy.stats.binomtest(sum(found), len(found), 1 - 1 / candidates).pvalue
        assert p_value > 1e-3
