"""Every structural variant of a Qwen that `qwen.load` reads: its `config.json`, and weights drawn from a seed.

The weights are written out in Hugging Face's names and shapes here, apart from the code under test, by a generator
that NumPy has frozen: so only what Hugging Face computes from them is stored (`make_variants.py`).
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from tests.qwen import make_golden

FIXTURES = Path(__file__).parent / "fixtures"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e6}

_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 3,
}
_QWEN3 = _QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    # 0.5B: 14 heads on 2; 1.5B: 12 on 2; 3B: 16 on 2; 7B: 28 on 4, untied
    "qwen2-gqa7": _QWEN2 | {"hidden_size": 28, "num_attention_heads": 14, "num_key_value_heads": 2},
    "qwen2-gqa6": _QWEN2 | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "qwen2-gqa8": _QWEN2 | {"hidden_size": 32, "num_attention_heads": 16, "num_key_value_heads": 2},
    "qwen2-untied": _QWEN2
    | {"hidden_size": 28, "num_attention_heads": 7, "num_key_value_heads": 1}
    | {"tie_word_embeddings": False},
    "qwen2-no-gqa": _QWEN2 | {"num_key_value_heads": 4, "rope_theta": 1e4, "rms_norm_eps": 1e-3},
    "qwen2-head-size": _QWEN2 | {"head_dim": 10, "num_key_value_heads": 1},
    "qwen2-yarn": _QWEN2 | {"rope_scaling": {"type": "yarn"} | {k: v for k, v in YARN.items() if k != "rope_type"}},
    "qwen2-linear": _QWEN2 | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    # 0.6B and 1.7B: 16 on 8, tied; 4B: 32 on 8, N * H > D, tied; 8B: 32 on 8, untied
    "qwen3-gqa2": _QWEN3,
    "qwen3-gqa4": _QWEN3 | {"num_attention_heads": 8, "rope_theta": 5e6},
    "qwen3-untied": _QWEN3 | {"hidden_size": 32, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "qwen3-no-gqa": _QWEN3 | {"num_key_value_heads": 4, "head_dim": 4, "num_hidden_layers": 3},
    "qwen3-yarn": _QWEN3 | {"head_dim": 16, "rope_parameters": YARN},
    "qwen3-yarn-options": _QWEN3
    | {"head_dim": 16, "rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 0.5, "truncate": False}}
    | {"tie_word_embeddings": False},
    "qwen3-yarn-mscale": _QWEN3 | {"head_dim": 16, "rope_parameters": YARN | {"mscale": 1.5, "mscale_all_dim": 0.5}},
    "qwen3-yarn-attention": _QWEN3 | {"head_dim": 16, "rope_parameters": YARN | {"attention_factor": 1.3}},
}
# The same weights in other files: dtype and largest shard in bytes, None for a single file.
STORED: dict[str, tuple[str, str, int | None]] = {
    "float16": ("qwen2-untied", "float16", None),
    "bfloat16": ("qwen3-gqa2", "bfloat16", None),
    "bfloat16-qwen2": ("qwen2-gqa7", "bfloat16", None),
    "sharded": ("qwen3-untied", "float32", 24_000),
    "sharded-bfloat16": ("qwen2-yarn", "bfloat16", 10_000),
}
CASES: dict[str, tuple[str, str, int | None]] = {name: (name, "float32", None) for name in CONFIGS} | STORED
BFLOAT16 = ("bfloat16", "bfloat16-qwen2")  # those also computed in bfloat16


def shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names and shapes."""
    d, f, v = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    h = fields.get("head_dim", d // heads)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    for layer in range(fields["num_hidden_layers"]):
        to = f"model.layers.{layer}."
        for name, width in (("q", heads * h), ("k", kv_heads * h), ("v", kv_heads * h)):
            found[f"{to}self_attn.{name}_proj.weight"] = (width, d)
            if fields["model_type"] == "qwen2":
                found[f"{to}self_attn.{name}_proj.bias"] = (width,)
            elif name != "v":
                found[f"{to}self_attn.{name}_norm.weight"] = (h,)
        found[f"{to}self_attn.o_proj.weight"] = (d, heads * h)
        found |= {f"{to}mlp.{name}_proj.weight": (f, d) for name in ("gate", "up")}
        found[f"{to}mlp.down_proj.weight"] = (d, f)
        found |= {f"{to}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    if not fields["tie_word_embeddings"]:
        found["lm_head.weight"] = (v, d)
    return found


def tensors(fields: Mapping[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random everywhere, biases and norms too."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1.7, 1.7, shape)
        if "norm" in name:
            return 1 + 0.3 * noise
        if name.endswith("bias"):
            return 0.5 * noise
        return noise * (0.25 if "embed" in name else 1.25 * shape[1] ** -0.5)

    return {name: draw(name, shape).astype(DTYPES[dtype]) for name, shape in shapes(fields).items()}


def tokens(case: str) -> np.ndarray:
    """`[1, T]` int32; with yarn, T is five times the original length."""
    fields = CONFIGS[CASES[case][0]]
    time = 40 if "yarn" in CASES[case][0] else 14
    return np.random.RandomState(len(case)).randint(0, fields["vocab_size"], (1, time)).astype(np.int32)


def write(case: str, directory: Path) -> Path:
    """A checkpoint directory, in one file or in shards with an index."""
    name, dtype, shard_bytes = CASES[case]
    fields = CONFIGS[name] | {"torch_dtype": dtype}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    make_golden.character_tokenizer().save(str(directory / "tokenizer.json"))
    shards: list[dict[str, np.ndarray]] = [{}]
    for tensor, array in tensors(fields, dtype).items():
        if shard_bytes and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > shard_bytes:
            shards.append({})
        shards[-1][tensor] = array
    if len(shards) == 1:
        safetensors.numpy.save_file(shards[0], directory / "model.safetensors")
        return directory
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        safetensors.numpy.save_file(shard, directory / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
