"""A node that replays its own completions sees that its sampler does not run the weights that it trains."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rlswarm_jax.audit.statistics import judge, spent
from rlswarm_jax.qwen import sampling
from rlswarm_jax.qwen.verdict import Verdict
from tests.audit import test_replay_statistics as audits
from tests.qwen import test_sampling as base

NONE = 10**6  # tokens


def moved(params, rate):
    """Weights after an update: the first step of AdamW moves each by the rate."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: (np.asarray(w, np.float32) + rate * rng.choice([-1, 1], w.shape)).astype(w.dtype),
        jax.device_get(params),
    )


@functools.cache
def sampler(**faults):
    config = dataclasses.replace(base.shallow().config, **faults)
    return sampling.make_sampler(config, max_new_tokens=audits.NEW_TOKENS, temperature=1.0, eos_token_ids=audits.EOS)


def sampled(params, faults):
    keys_PGM = base.keys_of(len(audits.PROMPTS), audits.GROUP)
    out = jax.device_get(sampler(**faults)(params, sampling.make_tile(audits.PROMPTS, keys_PGM, prompt_slots=16)))
    cut = [slice(n) for n in out.lengths_PG.reshape(-1)]
    tokens_RT, logprobs_RT = (x.reshape(-1, audits.NEW_TOKENS) for x in (out.tokens_PGT, out.logprobs_PGT))
    tokens = [tokens_T[part].tolist() for tokens_T, part in zip(tokens_RT, cut, strict=True)]
    return tokens, [logprobs_T[part] for logprobs_T, part in zip(logprobs_RT, cut, strict=True)]


def tokens_to_alarm(dtype, rate=0.0, **faults):
    """How many tokens are replayed until the log-probs raise the alarm, and until `judge` does."""
    params = audits.params_in(dtype)
    tokens, logprobs = sampled(moved(params, rate) if rate else params, faults)
    replays = audits.replayed(tokens, dtype=dtype)
    lengths = np.cumsum([len(one) for one in tokens])
    parts = range(1, len(tokens) + 1)
    alarms = (
        (n for n in parts if spent(logprobs[:n], replays[:n]) > 1),
        (n for n in parts if judge(replays[:n]).verdict is Verdict.NOT_PRODUCED),
    )
    return tuple(int(lengths[n - 1]) if (n := next(found, 0)) else NONE for found in alarms)


SLOWLY = pytest.mark.slow


@pytest.mark.parametrize(
    ("dtype", "fault", "by_logprobs", "by_judge"),
    [
        ("float32", {"rate": 1e-3}, 32, 32),
        ("float32", {"rate": 1e-5}, 32, NONE),
        pytest.param("float32", {"rope_theta": 1e4}, 32, 32, marks=SLOWLY),
        pytest.param("float32", {"rms_norm_eps": 1e-5}, 32, NONE, marks=SLOWLY),
    ],
    ids=str,
)
def test_it_is_loud_within_tens_of_tokens(dtype, fault, by_logprobs, by_judge):
    """One update old at a high and at a low rate; a wrong frequency of positions; another epsilon of the norms."""
    assert all(
        found <= most for found, most in zip(tokens_to_alarm(dtype, **fault), (by_logprobs, by_judge), strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_silent_where_all_is_well(dtype):
    assert tokens_to_alarm(dtype) == (NONE, NONE)
    params = audits.params_in(dtype)
    tokens, logprobs = sampled(params, {})
    assert 0 < spent(logprobs, audits.replayed(tokens, dtype=dtype)) < 0.1
