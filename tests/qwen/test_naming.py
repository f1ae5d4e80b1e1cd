"""Weights as Hugging Face's tensors, and their name, which anybody computes from a safetensors file."""

import dataclasses
import hashlib
import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from rlswarm_jax import qwen
from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.config import from_hf
from tests.qwen import variants

TIED_WITH_BIASES, UNTIED, TIED, UNTIED_WITH_BIASES = "qwen2-gqa7", "qwen3-untied", "qwen3-gqa2", "qwen2-untied"
CASES = [TIED_WITH_BIASES, UNTIED_WITH_BIASES, TIED, UNTIED]
KINDS = {"float32": "F32", "bfloat16": "BF16"}


def hash_of_file(path):
    """As docs/wire-format.md has it, from the file's own header and bytes."""
    with safetensors.safe_open(path, "np") as file:
        names = sorted(file.keys())
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, text = json.loads(raw[8 : 8 + size]), ""
    for name in names:
        start, end = header[name]["data_offsets"]
        shape = ",".join(str(n) for n in header[name]["shape"])
        text += f"{name} {header[name]['dtype']} {shape} {hashlib.sha256(raw[8 + size :][start:end]).hexdigest()}\n"
    return hashlib.sha256(text.encode()).digest()


def config():
    return from_hf(variants.CONFIGS[TIED], "tiny")


def numbers(dtype="float32"):
    return {"b": np.arange(6, dtype=dtype).reshape(2, 3), "a": np.ones(4, dtype)}


def same(one, other):
    """Names, dtypes, shapes and every bit."""
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape, one[n].tobytes()) == (other[n].dtype, other[n].shape, other[n].tobytes())
        for n in one
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
class TestOfCheckpoints:
    def policy(self, case, path, dtype="float32"):
        return qwen.load(variants.write(case, path / "written"), dtype)

    def test_the_hash_is_that_of_what_was_saved(self, case, dtype, tmp_path):
        """The float32 policy is named in the dtype that samples."""
        policy = self.policy(case, tmp_path)
        cast = jax.tree.map(lambda x: np.asarray(x).astype(dtype), policy.params)
        qwen.save(qwen.Policy(policy.config, cast, policy.tokenizer), tmp_path / "saved")
        tensors = qwen.to_tensors(policy.params, policy.config, dtype)
        assert qwen.tensors_hash(tensors) == hash_of_file(tmp_path / "saved" / "model.safetensors")
        assert ("lm_head.weight" in tensors) == (case in (UNTIED, UNTIED_WITH_BIASES))

    def test_tensors_are_those_of_the_file(self, case, dtype, tmp_path):
        policy = self.policy(case, tmp_path, dtype)
        tensors = qwen.to_tensors(policy.params, policy.config, dtype)
        assert same(tensors, {n: a.astype(dtype) for n, a in variants.tensors(variants.CONFIGS[case]).items()})
        assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in tensors.values())

    def test_and_back(self, case, dtype, tmp_path):
        policy = self.policy(case, tmp_path, dtype)
        tensors = qwen.to_tensors(policy.params, policy.config, dtype)
        found = qwen.from_tensors(tensors, policy.config)
        assert jax.tree.structure(found) == jax.tree.structure(policy.params)
        for ours, loaded in zip(*map(jax.tree.leaves, (found, policy.params)), strict=True):
            assert ours.dtype == loaded.dtype == dtype and (np.asarray(ours) == np.asarray(loaded)).all()
        kept = qwen.fingerprint(found)
        for array in tensors.values():
            if array.flags.writeable:
                array[...] = 7
        assert qwen.fingerprint(found) == kept

    def test_params_of_numpy_have_the_same_name(self, case, dtype, tmp_path):
        policy = self.policy(case, tmp_path)
        named = [qwen.to_tensors(p, policy.config, dtype) for p in (policy.params, jax.device_get(policy.params))]
        assert same(*named)

    def test_an_accelerator_turns_and_casts_to_the_same(self, case, dtype, tmp_path, monkeypatch):
        policy = self.policy(case, tmp_path)
        named = qwen.to_tensors(policy.params, policy.config, dtype)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert same(qwen.to_tensors(policy.params, policy.config, dtype), named)


def test_what_is_named_is_what_samples():
    """The sampler casts weights in a program of its own: every number that there is near a rounding, and denormals."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    drawn = np.concatenate([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)
    drawn = drawn[np.isfinite(drawn)]
    drawn = drawn[: drawn.size // 64 * 64].reshape(-1, 64)
    wide = dataclasses.replace(config(), hidden_size=64, vocab_size=len(drawn))
    params = jax.tree.map(lambda s: np.resize(drawn, s), model.param_shapes(wide), is_leaf=lambda x: type(x) is tuple)
    sampled = model.prepare(params, "bfloat16", 8)
    assert isinstance(sampled["layers"][0]["down"], model.Turned)  # so it lies as Hugging Face's
    for given in (params, jax.tree.map(jnp.asarray, params)):
        named = qwen.to_tensors(given, wide, "bfloat16")
        assert named["model.embed_tokens.weight"].tobytes() == np.asarray(sampled["embed"]).tobytes()
        down = np.asarray(sampled["layers"][0]["down"].weight_OI)
        assert named["model.layers.0.mlp.down_proj.weight"].tobytes() == down.tobytes()


class TestHash:
    @pytest.mark.parametrize("dtype", KINDS)
    def test_as_it_is_defined(self, dtype):
        tensors = numbers(dtype)
        a, b = (hashlib.sha256(tensors[name].tobytes()).hexdigest() for name in "ab")
        text = f"a {KINDS[dtype]} 4 {a}\nb {KINDS[dtype]} 2,3 {b}\n"
        assert qwen.tensors_hash(tensors) == hashlib.sha256(text.encode()).digest()

    def test_layout_in_memory_and_order_change_nothing(self):
        tensors = numbers()
        assert qwen.tensors_hash(tensors) == qwen.tensors_hash(dict(reversed(tensors.items())))
        assert qwen.tensors_hash(tensors) == qwen.tensors_hash({n: np.asfortranarray(a) for n, a in tensors.items()})

    def test_everything_else_does(self):
        tensors = numbers()
        flipped = {n: a.copy() for n, a in tensors.items()}
        flipped["a"][0] = np.nextafter(flipped["a"][0], np.float32(2))
        signed = {n: a.copy() for n, a in tensors.items()}
        signed["b"][0, 0] = -0.0
        others = [
            flipped,
            signed,
            {"a": tensors["b"], "b": tensors["a"]},
            tensors | {"b": tensors["b"].reshape(3, 2)},
            tensors | {"b": tensors["b"].view(np.float16)},
            tensors | {"b": tensors["b"].view(ml_dtypes.bfloat16)},
            {"a": tensors["a"]},
            tensors | {"c": np.zeros(0, np.float32)},
            tensors | {"c": np.zeros((0, 2), np.float32)},
        ]
        assert len({qwen.tensors_hash(other) for other in [tensors, *others]}) == 1 + len(others)

    @pytest.mark.parametrize("name", ["", "a b", "a\n", "ä", "a" * 257])
    def test_a_name_that_could_pass_for_another_line_has_none(self, name):
        with pytest.raises(ValueError, match="has no hash"):
            qwen.tensors_hash({name: np.ones(1, np.float32)})

    @pytest.mark.parametrize("dtype", ["float64", "int32", ml_dtypes.float8_e4m3fn, ">f4"])
    def test_nor_has_another_dtype(self, dtype):
        with pytest.raises(ValueError, match="'a' of"):
            qwen.tensors_hash({"a": np.ones(1, dtype)})


class TestWhatIsNotTheModels:
    def tensors(self):
        return variants.tensors(variants.CONFIGS[TIED])

    def refuses(self, tensors, *named):
        with pytest.raises(ValueError) as error:
            qwen.from_tensors(tensors, config())
        for words in named:
            assert words in str(error.value)

    def test_every_tensor_that_is_wrong_is_named(self):
        tensors = self.tensors()
        del tensors["model.norm.weight"]
        tensors["model.layers.1.self_attn.q_proj.bias"] = np.ones(32, np.float32)
        tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].T
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float16)
        self.refuses(
            tensors,
            "1 tensors missing: model.norm.weight",
            "1 tensors unexpected: model.layers.1.self_attn.q_proj.bias",
            "'model.layers.0.mlp.down_proj.weight' is (40, 24), expected (24, 40)",
            "1 tensors are not of one dtype of ['F32', 'F16', 'BF16']: model.layers.1.mlp.up_proj.weight",
        )

    def test_a_head_that_should_be_tied(self):
        self.refuses(self.tensors() | {"lm_head.weight": np.ones((61, 24), np.float32)}, "unexpected: lm_head.weight")

    def test_no_tensors_at_all(self):
        self.refuses({}, "tensors missing: model.embed_tokens.weight")

    def test_doubles(self):
        self.refuses({n: a.astype(np.float64) for n, a in self.tensors().items()}, "not of one dtype", "model.norm")
