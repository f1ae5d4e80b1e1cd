"""A model of two thousand weights, batches for it, and GRPO written out once more: token by token, in NumPy."""

import contextlib
import dataclasses
import functools
import os

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rlswarm_jax import qwen, randomness
from rlswarm_jax.grpo.learner import Batch, LearnerConfig
from rlswarm_jax.qwen import model
from tests.grpo import reference

CONFIG = qwen.QwenConfig(
    model_type="qwen3",
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qkv_bias=False,
    qk_norm=False,  # it compiles faster
    max_position_embeddings=32,
    eos_token_ids=(0,),
)
PROMPT_SLOTS, NEW_TOKENS = 5, 4
LEARNER = LearnerConfig(
    learning_rate=1e-3,
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=3.0,
    temperature=0.7,
    weight_decay=0.1,
    max_grad_norm=0.05,
)


@flax.struct.dataclass
class Padded(Batch):
    """A text in each sequence, and the same once more as whoever walks it wants it: `[B, T]`, padded on the right."""

    tokens_BT: np.ndarray | None = None
    prompt_lengths_B: np.ndarray | None = None


def padded(
    tokens_BT,
    prompt_lengths_B,
    completion_lengths_B,
    advantages_B,
    old_logprobs_BC,
    old_known_B,
    external_B=None,
    **others,
):
    rows, time = tokens_BT.shape
    targets_XT = np.concatenate([tokens_BT[:, 1:], np.zeros((rows, 1), np.int32)], axis=1)
    at_T, starts_B = np.arange(time, dtype=np.int32), prompt_lengths_B - 1
    return Padded(
        tokens_XT=tokens_BT,
        positions_XT=np.broadcast_to(at_T, tokens_BT.shape),
        prompts_XT=np.ones_like(tokens_BT),
        rows_XT=(at_T >= starts_B[:, None]).astype(np.int32),
        targets_XT=targets_XT,
        starts_B=starts_B,
        completion_lengths_B=completion_lengths_B,
        advantages_B=advantages_B,
        old_logprobs_BC=old_logprobs_BC,
        old_known_B=old_known_B,
        external_B=np.zeros(rows, bool) if external_B is None else external_B,
        tokens_BT=tokens_BT,
        prompt_lengths_B=prompt_lengths_B,
        **others,
    )


@functools.cache
def params(seed=0):
    key = randomness.wrap(randomness.key_data("sample", "tiny", seed))
    rng = np.random.default_rng(seed)
    drawn = model.init_params(CONFIG, key, scale=0.3)
    return jax.tree.map(lambda w: w + 0.1 * rng.standard_normal(w.shape).astype(np.float32), drawn)


@jax.jit
def _tempered(params, tokens_BT, temperature):
    return qwen.logits(params, CONFIG, tokens_BT) / temperature


def dense(params, tokens_BT, temperature=LEARNER.temperature):
    """Log-probs `[B, T, V]` of every next token, float64, all at once."""
    return scipy.special.log_softmax(np.asarray(_tempered(params, tokens_BT, temperature), np.float64), axis=-1)


def completion_logprobs(params, batch, temperature=LEARNER.temperature):
    """Each row's completion log-probs, `[length]`, found by walking the row."""
    table = dense(params, batch.tokens_BT, temperature)
    return [
        np.array([table[row, at - 1, batch.tokens_BT[row, at]] for at in places(batch, row)])
        for row in range(len(batch.tokens_BT))
    ]


def places(batch, row):
    """Where in its row a completion stands."""
    start = int(batch.prompt_lengths_B[row])
    return range(start, start + int(batch.completion_lengths_B[row]))


def make_batch(seed=0, rows=6, known=True, shift=0.5, behaviour=False):
    """Random completions with advantages of both signs; old log-probs are off by up to `shift` from those now.

    known: true, false or "mixed". behaviour: whether who sampled them is known, too, "mixed" of half of them; their
    log-probs are as far from the old ones. About every second completion ends with the end-of-sequence token.
    """
    rng = np.random.default_rng(seed)
    tokens_BT = np.zeros((rows, PROMPT_SLOTS + NEW_TOKENS), np.int32)
    prompts_B = rng.integers(1, PROMPT_SLOTS + 1, rows).astype(np.int32)
    lengths_B = rng.permutation(np.arange(rows) % NEW_TOKENS + 1).astype(np.int32)
    for row, prompt, length in zip(tokens_BT, prompts_B, lengths_B, strict=True):
        row[: prompt + length] = rng.integers(1, CONFIG.vocab_size, prompt + length)
        if rng.random() < 0.5:
            row[prompt + length - 1] = 0
    advantages_B = rng.permutation(np.linspace(-1.5, 1.5, rows)).astype(np.float32)
    known_B = rng.permutation(np.arange(rows) % 2 == 0) if known == "mixed" else np.full(rows, known)
    batch = padded(tokens_BT, prompts_B, lengths_B, advantages_B, np.zeros((rows, NEW_TOKENS), np.float32), known_B)
    old_BC = rng.uniform(-9, 0, (rows, NEW_TOKENS)).astype(np.float32)  # noise that a mask must hide
    for row, logprobs in enumerate(completion_logprobs(params(), batch)):
        if known_B[row]:
            old_BC[row, : len(logprobs)] = logprobs + rng.uniform(-shift, shift, len(logprobs))
    batch = dataclasses.replace(batch, old_logprobs_BC=old_BC)
    if not behaviour:
        return batch
    proximal_BC = np.where(known_B[:, None], old_BC, now(params(), batch)[0])
    behaviour_BC = (proximal_BC + rng.uniform(-2 * shift, 2 * shift, old_BC.shape)).astype(np.float32)
    behaviour_B = rng.permutation(np.arange(rows) % 2 == 0) if behaviour == "mixed" else np.full(rows, True)
    return dataclasses.replace(batch, behaviour_logprobs_BC=behaviour_BC, behaviour_known_B=behaviour_B)


def rows_of(batch, rows):
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch)


def join(*batches):
    return jax.tree.map(lambda *xs: np.concatenate(xs), *batches)


def now(params, batch, config=LEARNER):
    """Log-probs and entropies of the completions, `[B, C]` float64 each, found by walking the rows."""
    table = dense(params, batch.tokens_BT, config.temperature)
    found = np.zeros((2, len(batch.tokens_BT), batch.max_new_tokens))
    for row in range(len(batch.tokens_BT)):
        for c, at in enumerate(places(batch, row)):
            before_V = table[row, at - 1]
            found[:, row, c] = before_V[batch.tokens_BT[row, at]], -np.sum(np.exp(before_V) * before_V)
    return found


def grpo(params, batch, config=LEARNER):
    """The loss and the metrics, from their definitions, in float64 NumPy."""
    return reference.written_out(*now(params, batch, config), batch, config)[-1]


def gradients(params, batch, config=LEARNER):
    """Of a loss that entropies have no part in: of each log-prob by hand, then through the model."""
    weights_BC, *_ = reference.written_out(*now(params, batch, config), batch, config)
    return logprob_gradient(params, batch, weights_BC, config.temperature)


def logprob_gradient(params, batch, weights_BC, temperature=LEARNER.temperature):
    """Gradient of the weighted sum of completion log-probs."""
    return _logprob_gradient(params, batch.tokens_BT, batch.prompt_lengths_B, weights_BC, temperature)


@jax.jit
@jax.grad
def _logprob_gradient(params, tokens_BT, prompt_lengths_B, weights_BC, temperature):
    logprobs_BTV = jax.nn.log_softmax(qwen.logits(params, CONFIG, tokens_BT) / temperature)
    chosen_BT = (logprobs_BTV[:, :-1] * jax.nn.one_hot(tokens_BT[:, 1:], CONFIG.vocab_size)).sum(axis=-1)
    weights_BT = jnp.zeros((len(tokens_BT), PROMPT_SLOTS + 2 * NEW_TOKENS))
    for row in range(len(tokens_BT)):
        weights_BT = jax.lax.dynamic_update_slice(
            weights_BT, weights_BC[row : row + 1], (row, prompt_lengths_B[row] - 1)
        )
    return (chosen_BT * weights_BT[:, : chosen_BT.shape[1]]).sum()


QUICK = "xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
as_users_run = pytest.mark.skipif(QUICK, reason="true of the programs that users run: see tests/test_compilation.py")
QUICKLY = {  # the environment of a process that compiles in an eighth of the time; `make test` is one
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
}


def devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many."""
    kept = os.environ.get("XLA_FLAGS", "")
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{kept} --xla_force_host_platform_device_count={count}"}


@contextlib.contextmanager
def optimizations(wanted):
    """Without XLA's optimisations compilation takes half the time, and nearly all time here is compilation."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def assert_close(one, other, tolerance):
    """Pytrees agree to `tolerance` times the largest entry of the second one."""
    one, other = jax.device_get((one, other))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(other))
    assert largest > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest), one, other)


def assert_bit_equal(one, other):
    for a, b in zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
