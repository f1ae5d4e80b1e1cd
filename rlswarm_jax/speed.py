"""How fast a node samples and learns, and what share of its device's arithmetic that is."""

from collections.abc import Iterable, Mapping

from rlswarm_jax.qwen.config import QwenConfig

# dense bfloat16 products in FLOP/s, as the makers state them, by how jax calls a device (the longest name that fits)
PEAK = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "Tesla V100": 125e12,  # float16
    "Tesla T4": 65e12,  # float16
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def train_flops(model: QwenConfig, lengths: Iterable[int]) -> float:
    """Of one forward and backward pass over texts of so many tokens: 6 P + 12 L N H T each token (PaLM,
    arXiv:2204.02311, appendix B).

    P is what multiplies: all parameters but an embedding that is only looked up. No padding, nothing computed twice.
    """
    lookup = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    multiplied = model.num_parameters - lookup
    attention = 12 * model.num_layers * model.num_heads * model.head_dim
    return float(sum(length * (6 * multiplied + attention * length) for length in lengths))


def peak_flops(device_kind: str) -> float | None:
    """In FLOP/s; None for what the table lacks, such as CPUs."""
    fitting = [name for name in PEAK if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK[max(fitting, key=len)] if fitting else None


def of_round(metrics: Mapping[str, float], sampling: float, learning: float, peak: float | None) -> dict[str, float]:
    """Of a round that took so many seconds. peak: of all the node's devices."""
    found = {}
    if sampling > 0 and "sample/tokens" in metrics:
        found["speed/sampled"] = metrics["sample/tokens"] / sampling
    if learning > 0 and metrics.get("learn/text_tokens") and metrics["learn/updates"]:
        found["speed/learned"] = metrics["learn/text_tokens"] / learning
        found["speed/learn_flops"] = metrics["learn/flops"] / learning
        if peak:
            found["speed/mfu"] = found["speed/learn_flops"] / peak
    return found
