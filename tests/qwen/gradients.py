"""A GRPO batch with every kind of row, and Hugging Face's gradients of its loss by an independent torch loss."""

from pathlib import Path

import numpy as np

from rlswarm_jax.grpo.learner import LearnerConfig
from tests.grpo import tiny
from tests.qwen import variants

CASES = ("qwen2-gqa7", "qwen3-untied", "qwen3-yarn")
NEW_TOKENS, TIME = 6, 14
CONFIG = LearnerConfig(learning_rate=1e-3, clip_low=0.2, clip_high=0.28, dual_clip=3.0, temperature=0.7)
PROMPTS = np.array([8, 3, 5, 1, 7, 4], np.int32)
LENGTHS = np.array([6, 4, 6, 2, 0, 5], np.int32)  # one row only fills the shape
ADVANTAGES = np.array([1.5, -0.8, 0.6, 2.0, 1.0, -1.2], np.float32)
KNOWN = np.array([True, True, True, True, True, False])  # the last is taken to be on-policy


def batch(case: str, old_logprobs_BC: np.ndarray) -> tiny.Padded:
    rng = np.random.RandomState(7)
    tokens_BT = rng.randint(0, variants.CONFIGS[case]["vocab_size"], (len(PROMPTS), TIME)).astype(np.int32)
    return tiny.padded(
        tokens_BT=tokens_BT,
        prompt_lengths_B=PROMPTS,
        completion_lengths_B=LENGTHS,
        advantages_B=ADVANTAGES,
        old_logprobs_BC=old_logprobs_BC.astype(np.float32),
        old_known_B=KNOWN,
    )


def hf_gradients(case: str, directory: Path) -> dict[str, np.ndarray]:
    """Of the loss summed over tokens, by Hugging Face's tensor names; `loss`, `clipped` (the fraction of tokens whose
    objective is the clipped one) and `old_logprobs_BC` too.

    Written token by token from PPO's equation 7, row by row and without padding, over Hugging Face's model.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = np.random.RandomState(11)
    old_BC = np.zeros((len(PROMPTS), NEW_TOKENS))
    tokens_BT = batch(case, old_BC).tokens_BT
    loss, clipped = torch.zeros(()), []
    for row, (prompt, length) in enumerate(zip(PROMPTS.tolist(), LENGTHS.tolist(), strict=True)):
        if length == 0:
            continue
        ids = torch.tensor(tokens_BT[row : row + 1, : prompt + length].astype(np.int64))
        tempered = model(ids).logits[0] / CONFIG.temperature
        for t in range(length):
            where = prompt + t
            now = torch.log_softmax(tempered[where - 1], dim=-1)[ids[0, where]]
            if KNOWN[row]:  # a policy somewhat apart, so that some ratios leave the bounds on either side
                old_BC[row, t] = np.float32(now.item() + rng.uniform(-0.6, 0.6))
                ratio = torch.exp(now - torch.tensor(old_BC[row, t], dtype=torch.float32))
            else:
                ratio = torch.exp(now - now.detach())
            plain = ratio * float(ADVANTAGES[row])
            bounded = torch.clamp(ratio, 1 - CONFIG.clip_low, 1 + CONFIG.clip_high) * float(ADVANTAGES[row])
            clipped.append(bool(bounded < plain))
            loss = loss - torch.minimum(plain, bounded)
    loss.backward()
    found = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    extra = {"loss": np.float32(loss.item()), "clipped": np.float32(np.mean(clipped)), "old_logprobs_BC": old_BC}
    return found | extra
