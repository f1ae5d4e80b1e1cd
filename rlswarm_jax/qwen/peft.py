"""Adapters to and from directories as the library PEFT has them: `adapter_config.json`, `adapter_model.safetensors`."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlswarm_jax.qwen import lora
from rlswarm_jax.qwen.config import QwenConfig, read_json
from rlswarm_jax.qwen.lora import Adapter, LoraConfig
from rlswarm_jax.qwen.naming import LAYER_NAMES, Tensors
from rlswarm_jax.qwen.tensors import listed, read_header, write_file
from rlswarm_jax.qwen.weights import SaveError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODULES = {name: LAYER_NAMES[name][0].removesuffix(".weight") for name in lora.TARGETS}  # "self_attn.q_proj"
_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d{1,5})\.(\w+\.\w+)\.lora_([AB])\.weight")
# what is computed otherwise than here if it has another value than these
_PLAIN = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_rslora": (False,),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "lora_bias": (False,),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
}


def read_config(directory: Path) -> LoraConfig:
    """What kind of adapter a directory holds. Raises ValueError that names what is missing or not supported."""
    path = directory / CONFIG
    fields = read_json(path)
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {fields.get('peft_type')!r} is not supported; expected 'LORA'.")
    for name, plain in _PLAIN.items():
        if name in fields and fields[name] not in plain:
            raise ValueError(f"{path}: {name}={fields[name]!r} is not supported; expected {plain[0]!r}.")
    numbers = {}
    for name, least, most in (("r", 1, 1 << 16), ("lora_alpha", 1e-6, 1e6), ("lora_dropout", 0, 0.99)):
        value = fields.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{path}: {name} is {value!r}; expected a number from {least} to {most}.")
        numbers[name] = value
    if not isinstance(numbers["r"], int):
        raise ValueError(f"{path}: r is {numbers['r']!r}; expected a whole number.")
    places = [(int(match[1]), match[2]) for match in map(_NAME.fullmatch, read_header(directory / TENSORS)) if match]
    layers = tuple(sorted({layer for layer, _ in places}))
    targets = tuple(name for name in lora.TARGETS if any(module == MODULES[name] for _, module in places))
    found = numbers["r"], float(numbers["lora_alpha"]), float(numbers["lora_dropout"]), targets, layers
    return LoraConfig(*found, path=str(directory))


def read(directory: Path, config: QwenConfig, adapter: LoraConfig) -> Adapter:
    """Its tensors, float32. Raises ValueError that names every one that is missing, unexpected or misshapen."""
    lora.check(adapter, config)
    stored, wanted = read_header(directory / TENSORS), lora.shapes(config, adapter)
    expected = dict(_names(wanted))
    wrong = []
    for names, what in ((expected.keys() - stored, "missing"), (stored.keys() - expected, "unexpected")):
        if names:
            wrong.append(f"{len(names)} tensors {what}: {listed(names)}")
    for name in expected.keys() & stored:
        layer, target, part = expected[name]
        shape = wanted["layers"][layer][target][part][::-1]
        if stored[name].shape != shape:
            wrong.append(f"tensor {name!r} is {stored[name].shape}, expected {shape}")
    if wrong:
        raise ValueError(f"{directory / TENSORS}: {'; '.join(sorted(wrong))}.")
    found: Adapter = {"layers": [{target: {} for target in layer} for layer in wanted["layers"]]}
    for name, (layer, target, part) in expected.items():
        found["layers"][layer][target][part] = jnp.asarray(np.array(stored[name].map().T, np.float32, order="C"))
    return found


def to_tensors(adapter: Adapter) -> Tensors:
    """By PEFT's names and in its layout, float32 and C-contiguous, on the host."""

    def of(leaf: Any) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(leaf, np.float32).T)

    return {name: of(adapter["layers"][layer][target][part]) for name, (layer, target, part) in _names(adapter)}


def save(directory: Path, adapter: Adapter, about: LoraConfig, base: str) -> None:
    """A directory that `peft.PeftModel.from_pretrained` opens on the base. base: its path or hub id.

    Raises SaveError if the files cannot be written.
    """
    save_tensors(directory, to_tensors(adapter), about, base)


def save_tensors(directory: Path, tensors: Mapping[str, np.ndarray], about: LoraConfig, base: str) -> None:
    """The same of an adapter as `to_tensors` gives it."""
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": about.rank,
        "lora_alpha": about.alpha,
        "lora_dropout": about.dropout,
        "target_modules": [MODULES[name].partition(".")[2] for name in lora.TARGETS if name in about.targets],
        "layers_to_transform": sorted(about.layers) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    staged = directory / ".saving"
    try:
        staged.mkdir(parents=True, exist_ok=True)
        write_file(staged / TENSORS, {name: ("F32", x.shape) for name, x in tensors.items()}, tensors.__getitem__)
        (staged / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        for file in (TENSORS, CONFIG):
            (staged / file).replace(directory / file)
    except OSError as error:
        raise SaveError(f"cannot save the adapter to {directory}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _names(adapter: Adapter) -> list[tuple[str, tuple[int, str, str]]]:
    """PEFT's names, and where each is in an adapter."""
    return [
        (f"base_model.model.model.layers.{index}.{MODULES[target]}.lora_{part.upper()}.weight", (index, target, part))
        for index, layer in enumerate(adapter["layers"])
        for target in layer
        for part in ("a", "b")
    ]
