"""Qwen2, Qwen2.5 and Qwen3 dense models: load, logits, generate, save.

policy = qwen.load("Qwen/Qwen2.5-0.5B-Instruct")
out = qwen.generate(policy, ["one plus one is"], group_size=8, max_new_tokens=64, temperature=1.0, seed=0)
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlswarm_jax import compilation, randomness
from rlswarm_jax.qwen import weights
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.draw import Draw
from rlswarm_jax.qwen.model import Params, logits
from rlswarm_jax.qwen.naming import Tensors, from_tensors, tensors_hash, to_tensors
from rlswarm_jax.qwen.sampler import Prepared, Sampler
from rlswarm_jax.qwen.stopping import cut_at_stop, stop_table
from rlswarm_jax.qwen.tokenizer import Message, Prompt, Tokenizer
from rlswarm_jax.qwen.verdict import Replay, Rounding, Verdict, key_bias_norm, replay_tokens, rounding
from rlswarm_jax.qwen.weights import SaveError, digest, fingerprint

__all__ = [
    "Generation",
    "Params",
    "Policy",
    "QwenConfig",
    "Replay",
    "SaveError",
    "Tensors",
    "Verdict",
    "digest",
    "fingerprint",
    "from_tensors",
    "generate",
    "load",
    "logits",
    "replay",
    "save",
    "tensors_hash",
    "to_tensors",
]
EXACT_ROWS = 8  # the tile of the exact mode


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model one can sample from: architecture, parameters (a plain pytree) and tokenizer."""

    config: QwenConfig
    params: Params
    tokenizer: Tokenizer
    prepared: Prepared = dataclasses.field(default_factory=Prepared, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Generation:
    """text: P lists of G strings, a stop string and what follows it left out. finish: why each ended, "eos" (a stop
    token), "stop" (a stop string) or "length".

    tokens_PGT int32, lengths_PG int32 (the token that ended it included), logprobs_PGT float32 in the distribution
    they were drawn from (greedy: at temperature 1); tokens and log-probs are 0 behind the end. keys_PGM uint32: the
    keys that drew them, for `replay`.
    """

    text: list[list[str]]
    finish: list[list[Literal["eos", "stop", "length"]]]
    tokens_PGT: np.ndarray
    lengths_PG: np.ndarray
    logprobs_PGT: np.ndarray
    keys_PGM: np.ndarray


def load(path_or_hub_id: str | Path, dtype: Any = np.float32, place: weights.Place | None = None) -> Policy:
    """A policy from a Hugging Face directory or hub id. Raises ValueError that says what is wrong with it.

    place: puts each parameter where it is to be kept, such as `parallel.placer(mesh)` for one that exceeds a device.
    """
    compilation.use_cache()
    directory = weights.resolve(str(path_or_hub_id))
    config, tokenizer = weights.read_model(directory)
    params = weights.load_params(directory, config, dtype, place)
    return Policy(dataclasses.replace(config, tie_word_embeddings="lm_head" not in params), params, tokenizer)


def save(policy: Policy, directory: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes a directory that `transformers` and `load` open, in shards where the weights exceed `max_shard_bytes`.

    Raises SaveError if the disk does not take it, ValueError if another checkpoint is in the way.
    """
    weights.save_checkpoint(Path(directory), policy.config, policy.params, policy.tokenizer, max_shard_bytes)


def generate(
    policy: Policy,
    prompts: Iterable[Prompt] | Prompt | Message,
    *,
    group_size: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: Sequence[str] | str = (),
    stop_token_ids: Sequence[int] | int = (),
    rows: int = 0,
    exact: bool = False,
    dtype: Any = None,
    kv_dtype: Any = None,
    thinking: bool | None = None,
) -> Generation:
    """`group_size` completions of each prompt. Temperature 0 is greedy. The same seed gives the same completions;
    no two completions of a call share noise.

    Args:
      prompts: texts and conversations; a single one will do.
      top_k, top_p, min_p: cut the distribution off (`draw.Draw`); for evaluation, not for what is learned from.
      stop: strings that end a completion, or one. stop_token_ids: tokens that do, besides the checkpoint's own.
      rows: completions computed at a time while the others wait; 0 is all.
      exact: every bit of a completion depends on its prompt, key and number among its siblings alone, whatever else is
        asked for; slower.
      dtype: to compute in, the params' by default; they are cast once, and not again while the same policy is used.
      kv_dtype: of the key/value cache, float32, bfloat16 or int8; `dtype` by default.
      thinking: switches Qwen3's thoughts in conversations on or off; None leaves it to the chat template.

    Raises ValueError on an empty request, a prompt the tokenizer cannot encode, or one that is longer with its
    completions than the model was made for.
    """
    asked = _several(prompts)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    stop_token_ids = (stop_token_ids,) if isinstance(stop_token_ids, int) else tuple(stop_token_ids)
    if not asked or group_size < 1 or max_new_tokens < 1 or temperature < 0 or rows < 0:
        raise ValueError("generate needs prompts, group_size >= 1, max_new_tokens >= 1, temperature and rows >= 0.")
    encoded = [policy.tokenizer.encode(prompt, thinking) for prompt in asked]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > policy.config.context_length:
        raise ValueError(
            f"prompt {list(map(len, encoded)).index(longest)} has {longest} tokens, which with max_new_tokens "
            f"{max_new_tokens} exceeds the {policy.config.context_length} positions that the model was made for "
            "(max_position_embeddings)."
        )
    keys_PGM = np.array(
        [[randomness.key_data("sample", "generate", seed, p, g) for g in range(group_size)] for p in range(len(asked))]
    )
    if not all(0 <= token < policy.config.vocab_size for token in stop_token_ids):
        raise ValueError(
            f"stop_token_ids {stop_token_ids} are not all in the vocabulary of {policy.config.vocab_size}."
        )
    end_tokens = tuple(dict.fromkeys([*policy.config.eos_token_ids, *stop_token_ids]))
    sample = _sampler(
        policy,
        stop,
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        how=Draw(top_k, top_p, min_p),
        rows=0 if exact else rows,
        exact_rows=EXACT_ROWS if exact else 0,
        eos_token_ids=end_tokens,
        kv_dtype=None if kv_dtype is None else np.dtype(kv_dtype).name,
    )
    at_once = EXACT_ROWS if exact else min(rows or keys_PGM[..., 0].size, keys_PGM[..., 0].size)
    params = policy.prepared(policy.params, dtype or policy.params["embed"].dtype, at_once)
    out = sample(params, encoded, keys_PGM)
    text: list[list[str]] = []
    finish: list[list[Literal["eos", "stop", "length"]]] = []
    for tokens_GT, lengths_G, ended_G in zip(out.tokens_PGT, out.lengths_PG, out.ended_PG, strict=True):
        decoded = [policy.tokenizer.decode(tokens_T[:n]) for tokens_T, n in zip(tokens_GT, lengths_G, strict=True)]
        text.append([cut_at_stop(whole, stop) for whole in decoded])
        last_G = tokens_GT[np.arange(len(lengths_G)), lengths_G - 1]
        finish.append(
            [
                "length" if not ended else "eos" if token in end_tokens else "stop"
                for token, ended in zip(last_G, ended_G, strict=True)
            ]
        )
    return Generation(text, finish, out.tokens_PGT, out.lengths_PG, out.logprobs_PGT, keys_PGM)


def replay(
    policy: Policy,
    prompt: Prompt,
    tokens_T: Sequence[int],
    key_M: np.ndarray,
    *,
    temperature: float = 1.0,
    dtype: Any = None,
    kv_dtype: Any = None,
    thinking: bool | None = None,
    tau: float | None = None,
) -> Replay:
    """Log-prob, margin and verdict of every token of a completion that `key_M` (`[2]` uint32) is said to have drawn.

    It says of each token whether it was drawn there; a completion that stops before its end is not told from a whole.

    Args:
      temperature, dtype, kv_dtype, thinking: as they were given to `generate`. What top-k, top-p or min-p cut off
        cannot be replayed: a token at the edge is in or out by rounding.
      tau: margins below it are left undecided; by default that of the dtypes and of the keys' bias (`verdict.TAU`).

    Raises ValueError on an empty or impossible completion.
    """
    dtype = np.dtype(dtype or policy.params["embed"].dtype)
    if tau is None:
        error = rounding(dtype, kv_dtype or dtype, temperature, key_bias_norm(policy.params))
    else:
        error = Rounding(tau, tau)
    encoded = policy.tokenizer.encode(prompt, thinking)
    params = policy.prepared(policy.params, dtype, rows=2)
    return replay_tokens(params, policy.config, encoded, tokens_T, key_M, temperature=temperature, rounding=error)


def _several(prompts: Iterable[Prompt] | Prompt | Message) -> list[Prompt]:
    """Prompts as they are; a single text, conversation or message as the one prompt that it must be."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        return [[prompts]]
    several: list[Any] = list(prompts)
    return [several] if several and all(isinstance(message, Mapping) for message in several) else several


def _sampler(policy: Policy, stop: tuple[str, ...], **options: Any) -> Sampler:
    return _compiled(policy.config, policy.tokenizer, stop, tuple(options.items()))


@functools.lru_cache(maxsize=32)
def _compiled(config: QwenConfig, tokenizer: Tokenizer, stop: tuple[str, ...], options: tuple) -> Sampler:
    table = stop_table(stop, tokenizer.token_bytes()) if stop else None
    return Sampler(config, stop=table, **dict(options))
