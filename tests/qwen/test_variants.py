"""Logits of every structural variant equal Hugging Face's, stored and live."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax import qwen
from rlswarm_jax.qwen import config as qwen_config
from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.rope import rope_frequencies
from tests.qwen import make_variants, variants

TOLERANCE = 2e-5
# In bfloat16 both err by its rounding, and by no more than each other; the largest logit here is about 4.5.
BFLOAT16_TOLERANCE, BFLOAT16_RATIO = 0.25, 1.25

logits = jax.jit(qwen.logits, static_argnums=1)


@functools.cache
def golden():
    return dict(np.load(variants.FIXTURES / "variants.npz"))


def ours(case, tmp_path, dtype=np.float32):
    policy = qwen.load(variants.write(case, tmp_path), dtype)
    return np.asarray(logits(policy.params, policy.config, variants.tokens(case)))


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


@pytest.mark.parametrize("case", variants.CASES)
def test_logits_are_those_of_hugging_face(case, tmp_path):
    np.testing.assert_allclose(ours(case, tmp_path), golden()[case], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", variants.BFLOAT16)
def test_bfloat16_errs_no_more_than_hugging_faces(case, tmp_path):
    exact, theirs = golden()[case], golden()[f"{case}/bfloat16"]
    found = ours(case, tmp_path, jnp.bfloat16)
    assert rms(found - exact) < BFLOAT16_RATIO * rms(theirs - exact)
    for other in (exact, theirs):
        np.testing.assert_allclose(found, other, rtol=0, atol=BFLOAT16_TOLERANCE)


def test_the_cases_differ_where_they_should():
    """A scaling that were ignored would show."""
    stored = golden()
    scaled = [case for case in variants.CONFIGS if "yarn-" in case and case != "qwen3-yarn-options"]
    for case in scaled:
        assert rms(stored[case] - stored["qwen3-yarn"]) > 0.01


@pytest.mark.parametrize("name", variants.CONFIGS)
def test_num_parameters_counts_the_tensors(name):
    config = qwen_config.from_hf(variants.CONFIGS[name])
    assert config.num_parameters == sum(np.prod(shape) for shape in variants.shapes(variants.CONFIGS[name]).values())


@pytest.mark.parametrize("name", variants.CONFIGS)
def test_a_config_survives_being_written(name):
    config = qwen_config.from_hf(variants.CONFIGS[name])
    assert hash(config) == hash(qwen_config.from_hf(json.loads(json.dumps(qwen_config.to_hf(config)))))
    assert config == qwen_config.from_hf(qwen_config.to_hf(config))


class TestConfigsAsTransformersReadsThem:
    """transformers' configuration classes do without torch."""

    @pytest.mark.parametrize("name", variants.CONFIGS)
    def test_what_it_writes_is_read_alike(self, name, tmp_path):
        import transformers

        fields = {k: v for k, v in variants.CONFIGS[name].items() if k != "model_type"}
        kind = variants.CONFIGS[name]["model_type"]
        transformers.AutoConfig.for_model(kind, **fields).save_pretrained(tmp_path)
        assert qwen_config.read_config(tmp_path) == qwen_config.from_hf(variants.CONFIGS[name])

    @pytest.mark.parametrize("name", ["qwen2-yarn", "qwen3-yarn-mscale", "qwen2-linear", "qwen3-gqa2"])
    def test_it_reads_what_we_write(self, name):
        import transformers

        ours = qwen_config.to_hf(qwen_config.from_hf(variants.CONFIGS[name]))
        theirs = transformers.AutoConfig.for_model(**ours)
        assert qwen_config.from_hf(theirs.to_dict()) == qwen_config.from_hf(variants.CONFIGS[name])

    @pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
    def test_missing_fields_have_its_defaults(self, kind):
        import transformers

        required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        theirs = transformers.AutoConfig.for_model(kind).to_dict()
        written = {"model_type": kind} | {name: theirs[name] for name in required}
        assert qwen_config.from_hf(written) == qwen_config.from_hf(theirs)


def refused(fields, *named):
    with pytest.raises(ValueError) as error:
        qwen_config.from_hf(variants.CONFIGS["qwen3-gqa2"] | fields, "the/config.json")
    for words in ("the/config.json", *named):
        assert words in str(error.value)


def test_what_would_be_computed_wrongly_is_refused_by_name():
    refused({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "qwen3_moe", "Qwen3MoeForCausalLM")
    refused({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'", "yarn")
    refused({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'")
    refused({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'full_attention'")
    refused({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5")
    refused({"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25")
    refused({"use_sliding_window": True}, "use_sliding_window")
    refused({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types", "sliding_attention")
    refused({"attention_bias": True}, "attention_bias")
    refused({"quantization_config": {"quant_method": "gptq"}}, "quantization_config")
    refused({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads", "4 key/value heads")
    refused({"head_dim": 7}, "head size 7")


@pytest.mark.parametrize("value", [None, True, "4", 0, -1.0, float("inf"), float("nan")], ids=repr)
@pytest.mark.parametrize("option", ["factor", "original_max_position_embeddings", "beta_fast", "rope_theta"])
def test_rope_options_must_be_positive_numbers(option, value):
    if value is None:  # said to be unset: the default, as in transformers
        qwen_config.from_hf(variants.CONFIGS["qwen3-yarn"] | {"rope_parameters": variants.YARN | {option: None}})
    else:
        refused({"rope_parameters": variants.YARN | {option: value}}, repr(option), repr(value))


def test_yarn_needs_a_factor():
    refused({"rope_scaling": {"rope_type": "yarn"}}, "'factor'")


@pytest.mark.parametrize("name", ["qwen3-gqa4", "qwen3-yarn-attention"])
def test_positions_far_out_are_turned_exactly(name):
    """As far as a float32 product of position and frequency can tell."""
    config = qwen_config.from_hf(variants.CONFIGS[name] | {"head_dim": 128})
    positions_BT = np.array([[0, 1, 4097, 32767, 131071]])
    tables = jax.jit(model._rope_tables, static_argnums=0)(config, positions_BT)
    frequencies = rope_frequencies(config.rope_theta, 128, config.rope_scaling).astype(np.float64)
    angles = positions_BT[..., None, None] * frequencies
    scale = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    for found, exact in zip(tables, (np.cos(angles), np.sin(angles)), strict=True):
        assert np.all(np.abs(found - scale * exact) <= scale * (2**-24 * angles + 5e-7))


class TestAgainstLiveHuggingFace:
    @pytest.fixture(autouse=True)
    def torch(self):
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        return torch

    @pytest.mark.parametrize("case", variants.CASES)
    def test_logits(self, case, tmp_path):
        theirs = make_variants.hf_logits(variants.write(case, tmp_path), variants.tokens(case))
        np.testing.assert_allclose(theirs, golden()[case], rtol=0, atol=TOLERANCE)  # the stored ones still hold
        np.testing.assert_allclose(ours(case, tmp_path), theirs, rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("case", variants.CASES)
    def test_what_save_writes_gives_equal_logits(self, case, tmp_path):
        qwen.save(qwen.load(variants.write(case, tmp_path / "theirs")), tmp_path / "ours", max_shard_bytes=20_000)
        np.testing.assert_array_equal(
            make_variants.hf_logits(tmp_path / "ours", variants.tokens(case)),
            make_variants.hf_logits(tmp_path / "theirs", variants.tokens(case)),
        )

    def test_rope_frequencies_of_any_options(self, torch):
        """Within two units in the last place, and the factor on cosine and sine exactly."""
        import transformers
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

        transformers.logging.set_verbosity_error()
        rng = np.random.default_rng(0)
        for _ in range(200):
            options = {"original_max_position_embeddings": int(rng.choice([32, 4096, 32768]))}
            options |= {"attention_factor": 0.7, "beta_fast": 20, "beta_slow": 2.5, "truncate": False}
            options |= {"mscale": 0.8, "mscale_all_dim": 1.3}
            options = {name: value for name, value in options.items() if rng.random() < 0.5}
            scaling = {"rope_type": "yarn", "factor": float(rng.choice([1.0, 1.5, 4.0, 40.0]))} | options
            fields = {"head_dim": int(rng.choice([8, 64, 80, 128])), "rope_theta": float(rng.choice([1e4, 1e6, 5e6]))}
            fields |= {"rope_scaling": scaling, "max_position_embeddings": int(rng.choice([64, 32768, 131072]))}
            config = qwen_config.from_hf(variants.CONFIGS["qwen3-gqa2"] | fields)
            theirs = Qwen3RotaryEmbedding(transformers.Qwen3Config(**json.loads(json.dumps(fields))))
            found = rope_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
            np.testing.assert_array_max_ulp(found, theirs.inv_freq.numpy(), maxulp=2)
            assert config.rope_scaling.attention_factor == theirs.attention_scaling


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({}, 128),
        ({"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, 384),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 512),
    ],
    ids=str,
)
def test_the_context_is_as_long_as_rope_scaling_makes_it(rope, length):
    """Qwen2.5's files keep the trained length beside yarn's factor; others name the scaled one."""
    assert qwen_config.from_hf(variants.CONFIGS["qwen2-no-gqa"] | rope).context_length == length
