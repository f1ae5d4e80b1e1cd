"""Rotary position frequencies, plain or scaled, as `transformers` computes them for Qwen2 and Qwen3."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

KINDS = ("default", "linear", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How positions beyond the trained length are squeezed in.

    linear: all frequencies are divided by `factor`. yarn (arXiv:2309.00071): only the slow ones are, those that turn
    less than `beta_slow` times within `original_length` positions; between `beta_slow` and `beta_fast` turns it is
    a mixture, whose bounds are whole dimensions if `truncate`. Cosine and sine are multiplied by `attention_factor`.
    """

    kind: Literal["linear", "yarn"]
    factor: float
    original_length: int = 0  # yarn only, like all below
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


def rope_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each pair of dimensions, `[H / 2]` float32.

    In NumPy, and rounded where PyTorch rounds: at position 30,000 one unit in the last place is 0.004 radians, and
    XLA's float32 power is up to ten off.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = (theta ** exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1) / wavelengths
    if scaling is None:
        return plain
    factor = np.float32(scaling.factor)
    if scaling.kind == "linear":
        return plain / factor

    def dimension(turns: float) -> float:
        """Where a pair of dimensions turns so often within the original length."""
        length = scaling.original_length / (turns * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 * (low == high)
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = np.float32(1) - ramp
    squeezed = np.float32(1) / (factor * wavelengths)
    return squeezed * (np.float32(1) - kept) + plain * kept


def from_hf(fields: dict[str, Any], max_position_embeddings: int, where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling from a `config.json`: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

    Raises ValueError that names a kind of scaling, or an option of it, that is not computed here.
    """
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_parameters and rope_scaling must be objects.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"{where}: rope scaling {kind!r} is not supported; expected one of {KINDS}.")
    if by_layer := [name for name, value in rope.items() if isinstance(value, dict)]:
        raise ValueError(f"{where}: rope options per layer type ({by_layer[0]!r}) are not supported.")
    for place in (rope, fields):
        if place.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(f"{where}: partial_rotary_factor {place['partial_rotary_factor']!r} is not supported.")

    def positive(name: str, default: float | None = None, of: dict[str, Any] = rope) -> float:
        value = of.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{where}: rope option {name!r} must be a positive number, not {value!r}.")
        return float(value)

    theta = positive("rope_theta", positive("rope_theta", 1e4, fields))
    if theta <= 1:
        raise ValueError(f"{where}: rope_theta must be above 1, not {theta}.")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", positive("factor"))
    name = "original_max_position_embeddings"
    original = positive(name, max_position_embeddings, of=fields if name in fields else rope)
    if original != int(original):
        raise ValueError(f"{where}: rope option {name!r} must be a whole number, not {original!r}.")
    explicit = rope.get("factor", 0) is not None  # null: the lengths imply it; absent: an error, as in transformers
    factor = positive("factor") if explicit else max_position_embeddings / original

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    inferred = temperature(1)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        inferred = temperature(positive("mscale")) / temperature(positive("mscale_all_dim"))
    return theta, RopeScaling(
        "yarn",
        factor,
        int(original),
        positive("attention_factor", inferred),
        positive("beta_fast", 32),
        positive("beta_slow", 1),
        bool(rope.get("truncate", True)),
    )


def to_hf(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The fields of a `config.json` that `transformers` 4 and 5 read alike."""
    if scaling is None:
        return {"rope_theta": theta}
    options: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        options |= {
            "original_max_position_embeddings": scaling.original_length,
            "attention_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    return {"rope_theta": theta, "rope_scaling": options}
