"""Makes the checkpoints of `fixtures/`: small random Qwens by Hugging Face's own classes, and their logits.

    pip install torch==2.13.0 transformers
    python tests/qwen/make_golden.py

Run it again only to add a fixture: torch promises no equal random numbers across versions. Each directory is
what `save_pretrained` writes, a character-level `tokenizer.json`, and `golden.npz` with

    tokens_BT   int32     random tokens
    logits_BTV  float32   of the saved weights, computed in float32 with eager attention
    greedy_BT   int32     what `generate` appends to tokens_BT, without a stop token
"""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

FIXTURES = Path(__file__).parent / "fixtures"
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
SPECIAL = ("<|im_start|>", "<|im_end|>")
IM_END = len(CHARACTERS) + 1
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": 103,  # more than the tokenizer has, as in the real models; not a square
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": IM_END,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2_untied": {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": False},
    "qwen2_tied": {
        "model_type": "qwen2",
        "hidden_size": 42,
        "num_attention_heads": 7,  # 7 heads on 1, as in Qwen2.5-0.5B
        "num_key_value_heads": 1,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "qwen3_tied": {"model_type": "qwen3", "head_dim": 12, "rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3_untied": {
        "model_type": "qwen3",
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 24,
        "rope_theta": 1e5,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}
SHARDED, BFLOAT16, CHAT = "qwen2_untied", "qwen3_untied", "qwen3_tied"


def random_model(name: str, seed: int):
    """A float32 Hugging Face model of `ARCHITECTURES[name]`, every parameter random, biases and norms too."""
    import torch
    import transformers

    fields = _COMMON | ARCHITECTURES[name]
    theta = fields.pop("rope_theta")
    config = transformers.AutoConfig.for_model(**fields, rope_parameters={"rope_type": "default", "rope_theta": theta})
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in path:
                weight.copy_(1 + 0.3 * noise)
            elif path.endswith("bias"):
                weight.copy_(0.5 * noise)
            elif "embed" in path:
                weight.copy_(0.25 * noise)
            else:
                weight.copy_(1.25 * noise / weight.shape[1] ** 0.5)
    return model


def hf_logits(model, tokens_BT: np.ndarray) -> np.ndarray:
    """Float32 logits `[B, T, V]`."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens_BT, np.int64))).logits.numpy()


def hf_greedy(model, tokens_BT: np.ndarray, new_tokens: int) -> np.ndarray:
    """The `[B, new_tokens]` int32 tokens that Hugging Face's greedy decoding appends, end tokens ignored."""
    import torch
    import transformers

    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    ids = torch.from_numpy(np.asarray(tokens_BT, np.int64))
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens)
    return out[:, ids.shape[1] :].numpy().astype(np.int32)


def character_tokenizer() -> tokenizers.Tokenizer:
    """One token per character; what it does not know it drops, as byte-pair encoding without merges does."""
    vocab = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def random_tokens(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, _COMMON["vocab_size"], shape, np.int32)


def write_fixture(name: str, seed: int) -> None:
    import torch
    import transformers

    directory = FIXTURES / name
    model = random_model(name, seed)
    if name == BFLOAT16:
        model = model.to(torch.bfloat16)
    if name == CHAT:  # chat checkpoints name their stop tokens here, and often more of them than config.json
        model.generation_config.eos_token_id = [IM_END, IM_END - 1]
    model.save_pretrained(directory, max_shard_size="40KB" if name == SHARDED else "5GB")
    character_tokenizer().save(str(directory / "tokenizer.json"))
    if name == CHAT:
        fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[1]}
        (directory / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")
        (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    saved = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens_BT = random_tokens(seed, (2, 24))
    np.savez_compressed(
        directory / "golden.npz",
        tokens_BT=tokens_BT,
        logits_BTV=hf_logits(saved, tokens_BT),
        greedy_BT=hf_greedy(saved, tokens_BT, 16),
    )


if __name__ == "__main__":
    for seed, name in enumerate(ARCHITECTURES):
        write_fixture(name, seed)
