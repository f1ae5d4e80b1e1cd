"""The published sizes exist abstractly: right number of parameters, right shapes, without a byte of weights.

`PUBLISHED` holds the shape-giving fields of the `config.json` files on the hub, and the number of parameters stated
there (`safetensors.parameters`; Qwen3-0.6B and 1.7B, whose files hold the tied head twice, less the second one).
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rlswarm_jax import qwen
from rlswarm_jax.qwen import config as qwen_config
from rlswarm_jax.qwen import model
from tests.qwen import variants


def qwen2(d: int, f: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool, length: int) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": f,
        "max_position_embeddings": length,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": length,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


def qwen3(d: int, f: int, layers: int, heads: int, tied: bool) -> dict:
    fields = qwen2(d, f, layers, heads, 8, 151936, tied, 40960)
    more = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128}
    return fields | more | {"eos_token_id": 151645, "rope_scaling": None, "sliding_window": None}


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen2-0.5B": (qwen2(896, 4864, 24, 14, 2, 151936, True, 131072), 494_032_768),
    "Qwen2-1.5B": (qwen2(1536, 8960, 28, 12, 2, 151936, True, 131072), 1_543_714_304),
    "Qwen2-7B": (qwen2(3584, 18944, 28, 28, 4, 152064, False, 131072), 7_615_616_512),
    "Qwen2.5-0.5B": (qwen2(896, 4864, 24, 14, 2, 151936, True, 32768), 494_032_768),
    "Qwen2.5-1.5B": (qwen2(1536, 8960, 28, 12, 2, 151936, True, 131072), 1_543_714_304),
    "Qwen2.5-3B": (qwen2(2048, 11008, 36, 16, 2, 151936, True, 32768), 3_085_938_688),
    "Qwen2.5-7B": (qwen2(3584, 18944, 28, 28, 4, 152064, False, 131072), 7_615_616_512),
    "Qwen2.5-Coder-0.5B": (qwen2(896, 4864, 24, 14, 2, 151936, True, 32768), 494_032_768),
    "Qwen2.5-Coder-1.5B": (qwen2(1536, 8960, 28, 12, 2, 151936, True, 32768), 1_543_714_304),
    "Qwen2.5-Coder-3B": (qwen2(2048, 11008, 36, 16, 2, 151936, True, 32768), 3_085_938_688),
    "Qwen2.5-Coder-7B": (qwen2(3584, 18944, 28, 28, 4, 152064, False, 32768), 7_615_616_512),
    "Qwen3-0.6B": (qwen3(1024, 3072, 28, 16, True), 596_049_920),
    "Qwen3-1.7B": (qwen3(2048, 6144, 28, 16, True), 1_720_574_976),
    "Qwen3-4B": (qwen3(2560, 9728, 36, 32, True), 4_022_468_096),
    "Qwen3-8B": (qwen3(4096, 12288, 36, 32, False), 8_190_735_360),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    fields, published = PUBLISHED[name]
    config = qwen_config.from_hf(fields)
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.eval_shape(lambda: jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published
    assert config.num_parameters == published
    assert sum(map(_product, variants.shapes(fields).values())) == published
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if name.startswith(("Qwen2.5-", "Qwen3-")) and "C" not in name]
)
def test_a_forward_pass_has_the_right_shapes(name):
    config = qwen_config.from_hf(PUBLISHED[name][0])
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        model.param_shapes(config),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    tokens_BT = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    logits_BTV = jax.eval_shape(lambda params, tokens: qwen.logits(params, config, tokens), shapes, tokens_BT)
    assert logits_BTV.shape == (2, 8, PUBLISHED[name][0]["vocab_size"]) and logits_BTV.dtype == jnp.float32


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_written_config_alike(name):
    import transformers

    config = qwen_config.from_hf(PUBLISHED[name][0])
    theirs = transformers.AutoConfig.for_model(**qwen_config.to_hf(config)).to_dict()
    assert qwen_config.from_hf(theirs) == config


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)
