"""The architecture of a Qwen2, Qwen2.5 or Qwen3 dense decoder, read from a Hugging Face `config.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rlswarm_jax.qwen import rope
from rlswarm_jax.qwen.rope import RopeScaling

MODEL_TYPES = ("qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class QwenConfig:
    """Hashable, so that it can be a static argument of `jax.jit`. Sizes by the axes of `rlswarm_jax`'s glossary."""

    model_type: str
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool  # Qwen2
    qk_norm: bool  # Qwen3
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...] = ()
    rope_scaling: RopeScaling | None = None

    @property
    def context_length(self) -> int:
        """Positions that the model was made for: `max_position_embeddings`, or what rope scaling makes of them."""
        scaling = self.rope_scaling
        if scaling is None:
            return self.max_position_embeddings
        trained = scaling.original_length if scaling.kind == "yarn" else self.max_position_embeddings
        return max(self.max_position_embeddings, int(trained * scaling.factor))

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars; a tied head counts once."""
        d, h = self.hidden_size, self.head_dim
        q, kv = self.num_heads * h, self.num_kv_heads * h
        attention = d * (q + 2 * kv) + q * d
        attention += (q + 2 * kv) * self.qkv_bias + 2 * h * self.qk_norm
        layer = attention + 3 * d * self.intermediate_size + 2 * d
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_layers * layer + d


def from_hf(fields: dict[str, Any], where: str = "config.json") -> QwenConfig:
    """Reads the fields of a `config.json`.

    Raises:
      ValueError: an architecture or an option this code would compute wrongly, or a missing field; it names it.
    """
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{where}: model_type {model_type!r} (architectures: {fields.get('architectures')}) is not supported; "
            f"expected one of {MODEL_TYPES}."
        )
    layer_types = fields.get("layer_types") or []
    if fields.get("use_sliding_window") or any(kind != "full_attention" for kind in layer_types):
        option = "use_sliding_window=true" if fields.get("use_sliding_window") else f"layer_types {set(layer_types)}"
        raise ValueError(f"{where}: {option} is not supported; full attention is.")
    if fields.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: hidden_act {fields['hidden_act']!r} is not supported; expected 'silu'.")
    if model_type == "qwen3" and fields.get("attention_bias"):
        raise ValueError(f"{where}: attention_bias=true of a Qwen3 is not supported; no published size has it.")
    if fields.get("quantization_config"):
        raise ValueError(f"{where}: quantised weights (quantization_config) are not supported.")

    def number(name: str, default: float | None = None) -> Any:
        value = fields.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: field {name!r} must be a number, not {value!r}.")
        return value

    def size(name: str, default: int | None = None) -> int:
        value = number(name, default)
        if value != int(value) or value < 1:
            raise ValueError(f"{where}: field {name!r} must be a positive whole number, not {value!r}.")
        return int(value)

    heads = size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads if "num_key_value_heads" in fields else 32)  # as transformers does
    head_dim = size("head_dim", 128 if model_type == "qwen3" else max(1, size("hidden_size") // heads))
    if heads % kv_heads:
        raise ValueError(f"{where}: {heads} attention heads cannot share {kv_heads} key/value heads evenly.")
    max_position_embeddings = size("max_position_embeddings", 32768)
    rope_theta, rope_scaling = rope.from_hf(fields, max_position_embeddings, where)
    if head_dim % 2:
        raise ValueError(f"{where}: head size {head_dim} is odd: rotary positions turn pairs of dimensions.")
    return QwenConfig(
        model_type=model_type,
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=rope_theta,
        rms_norm_eps=float(number("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        max_position_embeddings=max_position_embeddings,
        eos_token_ids=_token_ids(fields.get("eos_token_id"), where),
        rope_scaling=rope_scaling,
    )


def to_hf(config: QwenConfig) -> dict[str, Any]:
    """The fields of a `config.json` that `transformers` 4 and 5 read alike."""
    architecture = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[config.model_type]
    eos = list(config.eos_token_ids)
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "use_sliding_window": False,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }
    if config.model_type == "qwen3":
        fields["attention_bias"] = False
    return fields | rope.to_hf(config.rope_theta, config.rope_scaling)


def read_config(directory: Path) -> QwenConfig:
    """Reads `config.json` and the stop tokens of `generation_config.json`, if there is one."""
    path = directory / "config.json"
    config = from_hf(read_json(path), str(path))
    generation = directory / "generation_config.json"
    if not generation.exists():
        return config
    more = _token_ids(read_json(generation).get("eos_token_id"), str(generation))
    return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))


def _token_ids(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` may be absent, one id, or a list of ids."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"{where}: field 'eos_token_id' must be a token id or a list of them, not {value!r}.")
    return tuple(ids)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a checkpoint's file holds. Raises ValueError that names the file."""
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: a checkpoint directory needs it.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(fields).__name__}.")
    return fields
