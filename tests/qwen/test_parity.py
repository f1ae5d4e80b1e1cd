import dataclasses
import functools
import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from rlswarm_jax import qwen
from rlswarm_jax.qwen import config as qwen_config
from rlswarm_jax.qwen import model, sampling
from tests.qwen import make_golden

FIXTURES = make_golden.FIXTURES
NAMES = sorted(make_golden.ARCHITECTURES)
TOLERANCE = 2e-5

logits = jax.jit(qwen.logits, static_argnums=1)


@functools.cache
def policy(name):
    return qwen.load(FIXTURES / name)


def greedy(params, config, tokens_BT, new_tokens):
    sample = sampling.make_sampler(config, max_new_tokens=new_tokens, temperature=0.0, eos_token_ids=())
    keys_PGM = np.zeros((len(tokens_BT), 1, 2), np.uint32)
    return sample(params, sampling.make_tile(tokens_BT.tolist(), keys_PGM, prompt_slots=tokens_BT.shape[1])).tokens_PGT[
        :, 0
    ]


def assert_bit_equal(params, other):
    assert jax.tree.structure(params) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def stored_tensors(directory):
    return {name: t for f in directory.glob("*.safetensors") for name, t in safetensors.numpy.load_file(f).items()}


class TestAgainstStoredHuggingFaceResults:
    @pytest.mark.parametrize("name", NAMES)
    def test_logits_are_those_of_hugging_face(self, name):
        golden = np.load(FIXTURES / name / "golden.npz")
        ours_BTV = logits(policy(name).params, policy(name).config, golden["tokens_BT"])
        assert ours_BTV.dtype == jnp.float32
        np.testing.assert_allclose(ours_BTV, golden["logits_BTV"], rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("name", ["qwen2_untied", "qwen3_untied"])
    def test_greedy_decoding_gives_hugging_faces_tokens(self, name):
        golden = np.load(FIXTURES / name / "golden.npz")
        tokens_BT = greedy(policy(name).params, policy(name).config, golden["tokens_BT"], 16)
        np.testing.assert_array_equal(tokens_BT, golden["greedy_BT"])

    @pytest.mark.parametrize("name", NAMES)
    def test_num_parameters_counts_what_is_stored(self, name):
        stored = sum(t.size for t in stored_tensors(FIXTURES / name).values())
        assert policy(name).config.num_parameters == stored

    def test_stop_tokens_of_config_and_generation_config_are_both_read(self):
        end, start = make_golden.IM_END, make_golden.IM_END - 1
        assert policy(make_golden.CHAT).config.eos_token_ids == (end, start)
        assert policy("qwen2_tied").config.eos_token_ids == (end,)

    def test_configs_of_transformers_4_and_5_read_alike(self):
        fields = json.loads((FIXTURES / "qwen3_untied" / "config.json").read_text())
        theta = fields.pop("rope_parameters")["rope_theta"]
        old = fields | {"rope_theta": theta, "rope_scaling": None, "torch_dtype": fields.pop("dtype")}
        assert theta == 1e5
        assert qwen_config.from_hf(old) == policy("qwen3_untied").config


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # torch and JAX fight over the cores of one process
    return torch


def open_with_hugging_face(directory, torch, **kwargs):
    import transformers

    kwargs = {"dtype": torch.float32, "attn_implementation": "eager"} | kwargs
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **kwargs)


@pytest.mark.parametrize("name", NAMES)
class TestAgainstLiveHuggingFace:
    def test_load_reads_what_hugging_face_saves(self, name, torch, tmp_path):
        theirs = make_golden.random_model(name, seed=100)
        theirs.save_pretrained(tmp_path)
        make_golden.character_tokenizer().save(str(tmp_path / "tokenizer.json"))
        ours = qwen.load(tmp_path)
        tokens_BT = make_golden.random_tokens(100, (3, 40))
        assert ours.config.num_parameters == theirs.num_parameters()
        np.testing.assert_allclose(
            logits(ours.params, ours.config, tokens_BT),
            make_golden.hf_logits(theirs, tokens_BT),
            rtol=0,
            atol=TOLERANCE,
        )
        np.testing.assert_array_equal(
            greedy(ours.params, ours.config, tokens_BT, 32), make_golden.hf_greedy(theirs, tokens_BT, 32)
        )

    def test_hugging_face_reads_what_save_writes(self, name, torch, tmp_path):
        qwen.save(policy(name), tmp_path)
        again, report = open_with_hugging_face(tmp_path, torch, output_loading_info=True)
        assert not any(report.values()), report
        tokens_BT = make_golden.random_tokens(101, (3, 24))
        original = make_golden.hf_logits(open_with_hugging_face(FIXTURES / name, torch), tokens_BT)
        np.testing.assert_array_equal(make_golden.hf_logits(again, tokens_BT), original)
        np.testing.assert_allclose(
            logits(policy(name).params, policy(name).config, tokens_BT), original, rtol=0, atol=TOLERANCE
        )

    def test_hugging_face_sees_the_dtype_that_was_saved(self, name, torch, tmp_path):
        qwen.save(qwen.load(FIXTURES / name, dtype=jnp.bfloat16), tmp_path)
        assert open_with_hugging_face(tmp_path, torch, dtype="auto").dtype == torch.bfloat16


class TestSaveAndLoad:
    @pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_saved_policy_loads_bit_equal(self, name, dtype, tmp_path):
        before = qwen.load(FIXTURES / name, dtype)
        qwen.save(before, tmp_path / "new" / "directory")
        after = qwen.load(tmp_path / "new" / "directory", dtype)
        assert_bit_equal(after.params, before.params)
        assert after.config == before.config
        assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
        assert after.tokenizer.files.items() >= before.tokenizer.files.items()

    @pytest.mark.parametrize("name", NAMES)
    def test_save_writes_hugging_faces_names_and_layout(self, name, tmp_path):
        dtype = jnp.bfloat16 if name == make_golden.BFLOAT16 else np.float32
        qwen.save(qwen.load(FIXTURES / name, dtype), tmp_path)
        theirs, ours = stored_tensors(FIXTURES / name), stored_tensors(tmp_path)
        assert ours.keys() == theirs.keys()
        for tensor in theirs:
            assert ours[tensor].dtype == theirs[tensor].dtype
            np.testing.assert_array_equal(ours[tensor], theirs[tensor], err_msg=tensor)

    def test_a_saved_tokenizer_encodes_in_transformers_as_in_load(self, tmp_path):
        import transformers

        qwen.save(policy(make_golden.CHAT), tmp_path)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        text = "What is 2 + 2?<|im_end|>\n"
        assert theirs.encode(text, add_special_tokens=False) == policy(make_golden.CHAT).tokenizer.encode(text)

    def test_a_tied_head_stored_a_second_time_is_ignored(self, tmp_path):
        def tie(tensors):
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

        directory = edited("qwen2_tied", tmp_path, tensors=tie)
        assert_bit_equal(qwen.load(directory).params, policy("qwen2_tied").params)

    def test_a_fingerprint_tells_one_changed_bit_and_the_dtype(self):
        params = jax.device_get(policy("qwen2_tied").params)
        original = qwen.fingerprint(params)
        assert original == qwen.fingerprint(policy("qwen2_tied").params)
        changed = jax.tree.map(np.copy, params)
        changed["layers"][1]["down"].view(np.uint32)[3, 4] ^= 1
        halved = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        assert len({original, qwen.fingerprint(changed), qwen.fingerprint(halved)}) == 3

    def test_fresh_parameters_fill_every_shape_and_no_two_share_noise(self):
        config = dataclasses.replace(policy("qwen2_untied").config, num_layers=1)
        params = jax.jit(lambda key: model.init_params(config, key, scale=0.5))(jax.random.key(0, impl="rbg"))
        assert jax.tree.map(jnp.shape, params) == model.param_shapes(config)
        layer = params["layers"][0]
        assert np.all(layer["input_norm"] == 1) and np.all(layer["q_bias"] == 0)
        assert not np.any(layer["k"] == layer["v"]) and not np.any(layer["gate"] == layer["up"])
        assert np.std(params["embed"]) == pytest.approx(0.5, rel=0.05)


def edited(name, tmp_path, *, config=None, tensors=None):
    """A copy of a fixture with `config` merged into its config.json and its tensors edited in place."""
    directory = tmp_path / name
    shutil.copytree(FIXTURES / name, directory)
    if config:
        path = directory / "config.json"
        fields = json.loads(path.read_text()) | config
        path.write_text(json.dumps({k: v for k, v in fields.items() if v != "remove"}))
    if tensors:
        path = directory / "model.safetensors"
        stored = safetensors.numpy.load_file(path)
        tensors(stored)
        safetensors.numpy.save_file(stored, path)
    return directory


def assert_load_refuses(directory, *named):
    with pytest.raises(ValueError) as error:
        qwen.load(directory)
    for words in named:
        assert str(words) in str(error.value)


class TestRefusals:
    def test_missing_tensors(self, tmp_path):
        lost = "model.layers.1.mlp.up_proj.weight"
        directory = edited("qwen2_tied", tmp_path, tensors=lambda t: t.pop(lost))
        assert_load_refuses(directory, "1 tensors missing", lost)

    def test_a_missing_untied_head(self, tmp_path):
        directory = edited("qwen2_tied", tmp_path, config={"tie_word_embeddings": False})
        assert_load_refuses(directory, "missing", "lm_head.weight")

    def test_a_missing_shard(self, tmp_path):
        directory = edited("qwen2_untied", tmp_path)
        shard = directory / "model-00002-of-00003.safetensors"
        lost = safetensors.numpy.load_file(shard).keys()
        shard.unlink()
        assert_load_refuses(directory, shard, "does not exist", *(n for n in lost if "layers" not in n))

    def test_unexpected_tensors(self, tmp_path):
        extra = "model.layers.0.self_attn.q_norm.weight"
        directory = edited("qwen2_tied", tmp_path, tensors=lambda t: t.update({extra: np.ones(6, np.float32)}))
        assert_load_refuses(directory, "1 tensors unexpected", extra)

    def test_misshapen_tensors(self, tmp_path):
        wrong = "model.layers.0.mlp.down_proj.weight"
        directory = edited("qwen2_tied", tmp_path, tensors=lambda t: t.update({wrong: t[wrong].T.copy()}))
        assert_load_refuses(directory, wrong, "(56, 42)", "expected (42, 56)")

    def test_tensors_that_are_not_numbers_of_a_known_dtype(self, tmp_path):
        wrong = "model.norm.weight"
        directory = edited("qwen2_tied", tmp_path, tensors=lambda t: t.update({wrong: t[wrong].astype(int)}))
        assert_load_refuses(directory, wrong, "I64")

    @pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", None])
    def test_other_architectures(self, model_type, tmp_path):
        assert_load_refuses(edited("qwen2_tied", tmp_path, config={"model_type": model_type}), repr(model_type))

    def test_sliding_windows(self, tmp_path):
        assert_load_refuses(edited("qwen2_tied", tmp_path, config={"use_sliding_window": True}), "use_sliding_window")

    def test_other_activations(self, tmp_path):
        assert_load_refuses(edited("qwen2_tied", tmp_path, config={"hidden_act": "gelu"}), "hidden_act", "'gelu'")

    def test_a_config_without_a_size(self, tmp_path):
        assert_load_refuses(edited("qwen2_tied", tmp_path, config={"num_hidden_layers": "remove"}), "num_hidden_layers")

    @pytest.mark.parametrize("kept", [0, 4, 200, 20_000, -1], ids=lambda n: f"{n} bytes")
    def test_truncated_safetensors(self, kept, tmp_path):
        path = edited("qwen2_tied", tmp_path) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        assert_load_refuses(path.parent, path, "not a readable safetensors file")

    @pytest.mark.parametrize(
        "header", [b"[]", b"{", b"\xff\xfe", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [1]}}'], ids=repr
    )
    def test_safetensors_with_a_nonsense_header(self, header, tmp_path):
        path = edited("qwen2_tied", tmp_path) / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        assert_load_refuses(path.parent, path, "not a readable safetensors file")

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_missing_files(self, name, tmp_path):
        path = edited("qwen2_tied", tmp_path) / name
        path.unlink()
        assert_load_refuses(path.parent, path, "does not exist")

    @pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
    @pytest.mark.parametrize("content", [b'{"model_type": "qwe', b"[1, 2]", b"\xff\xfe"], ids=repr)
    def test_files_of_nonsense(self, name, content, tmp_path):
        path = edited("qwen2_tied", tmp_path) / name
        path.write_bytes(content)
        assert_load_refuses(path.parent, path)

    def test_a_directory_without_weights(self, tmp_path):
        path = edited("qwen2_tied", tmp_path) / "model.safetensors"
        path.unlink()
        assert_load_refuses(path.parent, path.parent, "neither model.safetensors nor model.safetensors.index.json")

    def test_what_is_not_a_directory(self, tmp_path):
        assert_load_refuses(tmp_path / "nowhere", tmp_path / "nowhere", "does not exist")
        assert_load_refuses(FIXTURES / "qwen2_tied" / "config.json", FIXTURES / "qwen2_tied" / "config.json")
        assert_load_refuses("./nowhere", "./nowhere")
        assert_load_refuses("a/b/c", "a/b/c")

    def test_a_hub_id_the_hub_does_not_give(self, monkeypatch):
        def snapshot_download(*args, **kwargs):
            raise OSError("the hub is unreachable\nand more")

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        assert_load_refuses("owner/name", "'owner/name'", "the hub is unreachable")

    def test_a_tokenizer_that_encodes_to_nothing(self, tmp_path):
        directory = edited("qwen2_tied", tmp_path)
        tokenizers.Tokenizer(tokenizers.models.BPE(vocab={}, merges=[])).save(str(directory / "tokenizer.json"))
        with pytest.raises(ValueError, match=r"'1 \+ 1 = '.*no tokens"):
            qwen.generate(qwen.load(directory), ["1 + 1 = "], max_new_tokens=1)

    def test_a_tokenizer_with_ids_beyond_the_vocabulary(self, tmp_path):
        directory = edited("qwen2_tied", tmp_path)
        backend = make_golden.character_tokenizer()
        backend.add_tokens([f"<{i}>" for i in range(6)])
        backend.save(str(directory / "tokenizer.json"))
        loaded = qwen.load(directory)
        assert loaded.tokenizer.encode("a<4>")[-1] == loaded.config.vocab_size - 1
        with pytest.raises(ValueError, match=r"id 103.* 103 embeddings"):
            qwen.generate(loaded, ["a<5>"], max_new_tokens=1)
