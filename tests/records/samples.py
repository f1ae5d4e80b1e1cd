"""Valid records and scored groups to start from, and a strategy for any valid record."""

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.records.schema import Completion, Group, Record, Verdict

ME, ALICE, BOB, CAROL = (simulated(7, node) for node in range(4))


def completion(tokens=(5, 6, 0), logprobs=None, text="ab") -> Completion:
    logprobs = [-0.5] * len(tokens) if logprobs is None else logprobs
    return Completion(np.array(tokens, "<i4").tobytes(), np.array(logprobs, "<f4").tobytes(), text)


def group(completions=None, **fields) -> Group:
    completions = [completion(), completion((7, 0), text="c")] if completions is None else completions
    known: dict[str, Any] = {
        "task": "chain_sum",
        "task_fingerprint": "0" * 16,
        "index": 0,
        "problem_seed": 9,
        "parents": [],
        "vote": None,
    }
    return Group(**(known | fields), completions=completions)


def record(identity: Identity = ALICE, groups=None, **fields) -> Record:
    known: dict[str, Any] = {
        "version": schema.VERSION,
        "swarm": "tests",
        "author": identity.author,
        "round": 3,
        "stage": "answer",
        "beacon": b"",
        "prompt_format": "compact-1",
        "policy_version": 3,
        "weights": b"w" * 32,
        "verdicts": [],
        "tokenizer_fingerprint": "t",
        "temperature": 1.0,
    }
    return Record(**(known | fields), groups=[group()] if groups is None else groups)


@functools.cache
def sealed(identity: Identity = ALICE, **fields) -> bytes:
    return seal(record(identity, **fields), identity)


def scored(index: int, rewards=(1.0, 0.0), round_: int = 0) -> ScoredGroup:
    """A pool's group: Alice's answers to the prompt of an index and a round."""
    tokens = [[5, 0] for _ in rewards]
    logprobs = [[-0.5, -0.25] for _ in rewards]
    return ScoredGroup(ALICE.author, round_, index, True, [3], tokens, logprobs, list(rewards))


# --- any valid record

names = st.text(max_size=64)
u32 = st.integers(0, 2**32 - 1)
logprobs = st.floats(max_value=0.0, allow_nan=False, allow_infinity=False, width=32)


@st.composite
def completions(draw) -> Completion:
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
    return completion(tokens, [draw(logprobs) for _ in tokens], draw(st.text(max_size=12)))


groups = st.builds(
    Group,
    task=names,
    task_fingerprint=names,
    index=u32,
    problem_seed=st.integers(0, 2**63 - 1),
    parents=st.lists(st.binary(min_size=32, max_size=32), max_size=2),
    vote=st.none() | st.integers(0, schema.MAX_GROUPS),
    completions=st.lists(completions(), min_size=2, max_size=3),
)
figures = st.floats(allow_nan=False, allow_infinity=False)
verdicts = st.builds(
    Verdict,
    record=st.binary(min_size=32, max_size=32),
    index=u32,
    finding=st.sampled_from(schema.FINDINGS),
    tokens=u32,
    bits=figures,
    statistic=figures,
)
records = st.builds(
    Record,
    version=st.just(schema.VERSION),
    swarm=names,
    author=st.binary(min_size=33, max_size=33),
    round=u32,
    stage=names,
    beacon=st.binary(max_size=schema.BEACON_TAG),
    prompt_format=names,
    policy_version=u32,
    weights=st.binary(min_size=32, max_size=32),
    tokenizer_fingerprint=names,
    temperature=st.floats(min_value=0.0, exclude_min=True, allow_infinity=False),
    groups=st.lists(groups, max_size=2),
    verdicts=st.lists(verdicts, max_size=2),
)
