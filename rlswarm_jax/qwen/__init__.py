"""Qwen2, Qwen2.5 and Qwen3 dense models: load, logits, generate, save.

policy = qwen.load("Qwen/Qwen2.5-0.5B-Instruct")
out = qwen.generate(policy, ["one plus one is"], group_size=8, max_new_tokens=64, temperature=1.0, seed=0)
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlswarm_jax import randomness
from rlswarm_jax.qwen import sampling, weights
from rlswarm_jax.qwen.config import QwenConfig, read_config
from rlswarm_jax.qwen.model import Params, logits
from rlswarm_jax.qwen.tokenizer import Prompt, Tokenizer, load_tokenizer
from rlswarm_jax.qwen.weights import SaveError, fingerprint

__all__ = [
    "Generation",
    "Params",
    "Policy",
    "QwenConfig",
    "SaveError",
    "fingerprint",
    "generate",
    "load",
    "logits",
    "save",
]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model one can sample from: architecture, parameters (a plain pytree) and tokenizer."""

    config: QwenConfig
    params: Params
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Generation:
    """text: P lists of G strings. tokens_PGT int32, lengths_PG int32 (end of sequence included), logprobs_PGT
    float32 at the sampling temperature; tokens and log-probs are 0 behind the end."""

    text: list[list[str]]
    tokens_PGT: np.ndarray
    lengths_PG: np.ndarray
    logprobs_PGT: np.ndarray


def load(path_or_hub_id: str | Path, dtype: Any = np.float32) -> Policy:
    """A policy from a Hugging Face directory or hub id. Raises ValueError that says what is wrong with it."""
    directory = weights.resolve(str(path_or_hub_id))
    config = read_config(directory)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    return Policy(config, weights.load_params(directory, config, dtype), tokenizer)


def save(policy: Policy, directory: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes a directory that `transformers` and `load` open, in shards where the weights exceed `max_shard_bytes`.

    Raises SaveError if the disk does not take it, ValueError if another checkpoint is in the way.
    """
    weights.save_checkpoint(Path(directory), policy.config, policy.params, policy.tokenizer, max_shard_bytes)


def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    group_size: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    thinking: bool | None = None,
) -> Generation:
    """`group_size` completions of each prompt. Temperature 0 is greedy. The same seed gives the same completions;
    no two completions of a call share noise. `thinking` switches Qwen3's thoughts in conversations on or off; None
    leaves it to the chat template.

    Raises ValueError on an empty request or a prompt the tokenizer cannot encode.
    """
    if not prompts or group_size < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError("generate needs prompts, group_size >= 1, max_new_tokens >= 1 and temperature >= 0.")
    encoded = [policy.tokenizer.encode(prompt, thinking) for prompt in prompts]
    keys_PGM = np.array(
        [
            [randomness.key_data("sample", "generate", seed, p, g) for g in range(group_size)]
            for p in range(len(prompts))
        ]
    )
    slots = 1 << (max(map(len, encoded)) - 1).bit_length()  # few shapes, so few compilations
    tile = sampling.make_tile(encoded, keys_PGM, prompt_slots=slots)
    out = jax.device_get(_sampler(policy.config, max_new_tokens, float(temperature))(policy.params, tile))
    shape = (len(prompts), group_size)
    lengths_PG = out.lengths_R.reshape(shape)
    tokens_PGT = out.tokens_RT.reshape(*shape, -1)
    text = [
        [policy.tokenizer.decode(tokens_PGT[p, g, : lengths_PG[p, g]]) for g in range(group_size)]
        for p in range(len(prompts))
    ]
    return Generation(text, tokens_PGT, lengths_PG, out.logprobs_RT.reshape(*shape, -1))


@functools.lru_cache(maxsize=32)
def _sampler(config: QwenConfig, max_new_tokens: int, temperature: float):
    return sampling.make_sampler(config, max_new_tokens=max_new_tokens, temperature=temperature)
