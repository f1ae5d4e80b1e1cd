"""Makes `fixtures/variants.npz` and `fixtures/gradients.npz`: what Hugging Face computes from `variants.py`.

    pip install torch==2.13.0 transformers
    python -m tests.qwen.make_variants

variants.npz holds the logits `[B, T, V]` of every case, computed in float32 with eager attention, and those of
`BFLOAT16` computed in bfloat16 too (`NAME/bfloat16`). gradients.npz holds what `gradients.hf_gradients` returns, as
`CASE/NAME`.
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.qwen import gradients, variants


def hf_logits(directory: Path, tokens_BT: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Float32 logits `[B, T, V]` of a checkpoint directory, computed in `dtype`."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT.astype(np.int64))).logits.float().numpy()


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in variants.CASES:
            directory = variants.write(case, Path(scratch) / case)
            found[case] = hf_logits(directory, variants.tokens(case))
            if case in variants.BFLOAT16:
                found[f"{case}/bfloat16"] = hf_logits(directory, variants.tokens(case), "bfloat16")
        slopes = {
            f"{case}/{name}": array
            for case in gradients.CASES
            for name, array in gradients.hf_gradients(case, Path(scratch) / case).items()
        }
    np.savez(variants.FIXTURES / "variants.npz", **found)
    np.savez_compressed(variants.FIXTURES / "gradients.npz", **slopes)


if __name__ == "__main__":
    main()
