"""The published sizes: the shape-giving fields of the `config.json` files on the hub, for whoever has no files yet."""

import re
from typing import Any

from rlswarm_jax.qwen.config import QwenConfig, from_hf


def _qwen2(d: int, f: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
    }


def _qwen3(d: int, f: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    more = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960}
    return _qwen2(d, f, layers, heads, 8, 151936, tied) | more


SIZES = {
    "Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, 151936, True),
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, True),
    "Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, True),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, True),
    "Qwen2.5-3B": _qwen2(2048, 11008, 36, 16, 2, 151936, True),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, True),
    "Qwen2.5-7B": _qwen2(3584, 18944, 28, 28, 4, 152064, False),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, False),
}


def of_name(name: str) -> QwenConfig | None:
    """By a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", or the name of a size; None for one that is not known."""
    match = re.fullmatch(r"(?:Qwen/)?(Qwen\d(?:\.\d)?-(?:Coder-)?[\d.]+B)(?:-\w+)?(?:@.*)?", name)
    fields = SIZES.get(match[1].replace("Coder-", "")) if match else None
    return from_hf(fields, name) if fields else None
