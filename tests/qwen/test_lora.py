"""Adapters compute what the paper says, alone are trained, and are files that PEFT opens."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rlswarm_jax import qwen
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.grpo import learner
from rlswarm_jax.grpo.residuals import size
from rlswarm_jax.qwen import lora, model, peft
from rlswarm_jax.qwen.lora import LoraConfig
from tests.grpo import tiny
from tests.qwen import variants

DEEP = dataclasses.replace(tiny.CONFIG, num_layers=2, qkv_bias=True)
SOME = LoraConfig(rank=3, alpha=6.0)
ODD = LoraConfig(rank=2, alpha=5.0, targets=("q", "v", "down"), layers=(1,))


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    with tiny.optimizations(False):
        yield


@functools.cache
def base():
    return model.init_params(DEEP, jax.random.key(1), scale=0.3)


def adapter(about=SOME, config=DEEP):
    """One that adds something."""
    rng = np.random.default_rng(0)
    drawn = lora.init(config, about, jax.random.key(2))
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), drawn)


def by_numpy(about=SOME):
    """The base with `alpha / rank * a @ b` added to each map."""
    made = jax.tree.map(np.array, base())
    for index, layer in enumerate(adapter(about)["layers"]):
        for name, low in layer.items():
            made["layers"][index][name] += about.alpha / about.rank * np.asarray(low["a"]) @ np.asarray(low["b"])
    return made


def batch():
    return tiny.make_batch(seed=5, rows=12, known="mixed")


def learns(about=SOME, **changes):
    return learner.Learner(dataclasses.replace(tiny.LEARNER, lora=about, **changes), DEEP, base=base())


class TestForward:
    @pytest.mark.parametrize("about", [SOME, ODD])
    def test_beside_the_weights_or_in_them_it_is_what_numpy_adds(self, about):
        tokens_BT = np.random.default_rng(0).integers(0, DEEP.vocab_size, (3, 7))
        wanted = qwen.logits(by_numpy(about), DEEP, tokens_BT)
        assert np.abs(wanted - qwen.logits(base(), DEEP, tokens_BT)).max() > 0.1
        for params in (lora.attached(base(), adapter(about), about), lora.merged(base(), adapter(about), about)):
            np.testing.assert_allclose(qwen.logits(params, DEEP, tokens_BT), wanted, rtol=0, atol=1e-4)

    def test_a_new_one_adds_nothing(self):
        tokens_BT = np.random.default_rng(0).integers(0, DEEP.vocab_size, (3, 7))
        new = lora.attached(base(), lora.init(DEEP, SOME, jax.random.key(0)), SOME)
        np.testing.assert_array_equal(qwen.logits(new, DEEP, tokens_BT), qwen.logits(base(), DEEP, tokens_BT))

    def test_it_begins_as_peft_does(self):
        """Uniform within 1 / sqrt(in) (Kaiming's with a = sqrt(5)), and zero; no two maps alike."""
        layers = lora.init(dataclasses.replace(DEEP, intermediate_size=4096), SOME, jax.random.key(0))["layers"]
        down = np.asarray(layers[0]["down"]["a"])
        assert np.abs(down).max() <= 1 / 64 and np.abs(down).max() > 0.99 / 64 and abs(down.std() * 64 - 3**-0.5) < 0.02
        assert all(not low["b"].any() for layer in layers for low in layer.values())
        assert not np.array_equal(layers[0]["q"]["a"], layers[1]["q"]["a"])
        assert not np.array_equal(layers[0]["q"]["a"], layers[0]["v"]["a"])

    def test_what_has_no_adapter_is_not_copied(self):
        made = lora.merged(base(), adapter(ODD), ODD)
        same = jax.tree.map(lambda x, y: x is y, made, base())
        other = [jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(same) if not x]
        assert other == [f"['layers'][1]['{name}']" for name in ("down", "q", "v")]


class TestTraining:
    def test_its_gradient_is_that_of_the_weights_by_the_chain_rule(self):
        """Of `w + s a b` with respect to a and b: `s g b'` and `s a' g`."""
        state = dataclasses.replace(learns().init(base()), params=adapter())
        found = learns().sums(state, batch())[1]
        plain = learner.Learner(tiny.LEARNER, DEEP)
        whole = plain.sums(plain.init(by_numpy()), batch())[1]
        scale = SOME.alpha / SOME.rank
        wanted = {
            "layers": [
                {
                    name: {"a": scale * g[name] @ low["b"].T, "b": scale * low["a"].T @ g[name]}
                    for name, low in own.items()
                }
                for g, own in zip(whole["layers"], adapter()["layers"], strict=True)
            ]
        }
        tiny.assert_close(found, wanted, 1e-4)

    def test_it_alone_is_trained_and_kept(self):
        before = jax.tree.map(np.array, base())
        made = learns()
        state = made.init(base())
        count = lora.num_parameters(DEEP, SOME)
        assert sum(x.size for x in jax.tree.leaves(state)) == 3 * count + 2 < DEEP.num_parameters
        for _ in range(2):
            state, metrics = made.step(state, batch(), 1e-3)
        assert metrics["updates"] == 1 and state.step == 2
        tiny.assert_bit_equal(base(), before)
        assert all(np.abs(low["b"]).max() > 1e-4 for layer in state.params["layers"] for low in layer.values())
        merged = made.policy(state.params)
        moved = np.asarray(merged["layers"][1]["up"]) - before["layers"][1]["up"]
        assert np.linalg.matrix_rank(moved, tol=1e-6) == SOME.rank

    def test_over_a_base_in_half_precision_the_adapter_is_float32(self):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base())
        made = learner.Learner(dataclasses.replace(tiny.LEARNER, lora=SOME, dtype="bfloat16"), DEEP, base=half)
        state, metrics = made.step(made.init(half), batch(), 1e-3)
        assert metrics["updates"] == 1 and {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
        assert {str(x.dtype) for x in jax.tree.leaves(made.policy(state.params))} == {"bfloat16"}

    def test_another_policy_s_log_probs_are_without_dropout(self):
        noisy, quiet = (learns(dataclasses.replace(SOME, dropout=p)) for p in (0.5, 0.0))
        one, other = (made.logprobs(adapter(), batch())[0] for made in (noisy, quiet))
        np.testing.assert_array_equal(one, other)

    def test_dropout_is_a_function_of_the_update_and_of_the_text(self):
        made = learns(dataclasses.replace(SOME, dropout=0.5))
        state = dataclasses.replace(made.init(base()), params=adapter())
        one, again = (jax.device_get(made.sums(state, batch())) for _ in range(2))
        tiny.assert_bit_equal(one, again)
        later = made.sums(dataclasses.replace(state, step=jnp.int32(1)), batch())
        assert not np.array_equal(later[1]["layers"][0]["q"]["a"], one[1]["layers"][0]["q"]["a"])
        parts = [made.sums(state, tiny.rows_of(batch(), part)) for part in (slice(0, 5), slice(5, 12))]
        tiny.assert_close(made.add(*parts)[1], one[1], 1e-5)

    def test_from_a_checkpoint_it_goes_on_bit_for_bit(self, tmp_path):
        made = learns(dataclasses.replace(SOME, dropout=0.5))
        state, _ = made.step(made.init(base()), batch(), 1e-3)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, [state], b"extra")
        (back,), _ = checkpoints.restore(1, [state])
        checkpoints.close()
        assert size(back) < size(base())
        tiny.assert_bit_equal(made.step(back, batch(), 1e-3), made.step(state, batch(), 1e-3))

    def test_dropout_leaves_a_share_and_its_mean(self):
        x_BTI = jnp.ones((4, 50, 64))
        out = model._dropped(x_BTI, jax.random.split(jax.random.key(0), 4), 0.25)
        np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
        assert abs(np.asarray(out).mean() - 1) < 0.02 and not np.array_equal(out[0], out[1])
        shorter = model._dropped(x_BTI[:, :20], jax.random.split(jax.random.key(0), 4), 0.25)
        np.testing.assert_array_equal(shorter, out[:, :20])


class TestFiles:
    @pytest.mark.parametrize("about", [SOME, ODD])
    def test_they_are_read_as_they_were_written(self, about, tmp_path):
        peft.save(tmp_path, adapter(about), about, "some/model")
        found = peft.read_config(tmp_path)
        assert dataclasses.replace(found, path="") == dataclasses.replace(about, layers=about.layers or (0, 1))
        tiny.assert_bit_equal(peft.read(tmp_path, DEEP, found), adapter(about))

    def test_they_have_peft_s_names_and_layout(self, tmp_path):
        peft.save(tmp_path, adapter(ODD), ODD, "some/model")
        tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
        modules = ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj")
        assert sorted(tensors) == [
            f"base_model.model.model.layers.1.{module}.lora_{part}.weight" for module in modules for part in "AB"
        ]
        low = adapter(ODD)["layers"][1]["down"]
        up = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
        np.testing.assert_array_equal(up, np.asarray(low["b"]).T)
        fields = json.loads((tmp_path / "adapter_config.json").read_text())
        assert (fields["r"], fields["lora_alpha"], fields["layers_to_transform"]) == (2, 5.0, [1])
        assert fields["target_modules"] == ["q_proj", "v_proj", "down_proj"]

    @pytest.mark.parametrize("about", [SOME, ODD])
    def test_peft_opens_them_with_the_same_logits(self, about, tmp_path):
        torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
        import transformers

        case = "qwen2-gqa7"
        policy = qwen.load(variants.write(case, tmp_path / "base"))
        made = adapter(about, policy.config)
        peft.save(tmp_path / "adapter", made, about, str(tmp_path / "base"))
        tokens_BT = np.random.default_rng(0).integers(0, policy.config.vocab_size, (2, 9))
        base_ = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        opened = theirs.PeftModel.from_pretrained(base_, tmp_path / "adapter").eval()
        with torch.no_grad():
            wanted = opened(torch.from_numpy(tokens_BT)).logits.numpy()
        ours = qwen.logits(lora.attached(policy.params, made, about), policy.config, tokens_BT)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)
        assert np.abs(wanted - np.asarray(qwen.logits(policy.params, policy.config, tokens_BT))).max() > 1e-2
        opened.save_pretrained(tmp_path / "again")
        back = peft.read(tmp_path / "again", policy.config, peft.read_config(tmp_path / "again"))
        tiny.assert_bit_equal(back, made)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported; expected 'LORA'"),
            ({"use_dora": True}, "use_dora=True is not supported; expected False"),
            ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
            ({"r": 0}, "r is 0; expected a number from 1"),
            ({"r": "8"}, "r is '8'; expected a number"),
            ({"lora_alpha": None}, "lora_alpha is None; expected a number"),
            ({"r": 5}, "is .2, 16., expected .5, 16."),
        ],
    )
    def test_what_is_not_one_is_refused_by_name(self, change, said, tmp_path):
        peft.save(tmp_path, adapter(ODD), ODD, "some/model")
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match=said):
            peft.read(tmp_path, DEEP, peft.read_config(tmp_path))

    def test_one_of_a_deeper_model_is_refused(self, tmp_path):
        peft.save(tmp_path, adapter(ODD), ODD, "some/model")
        with pytest.raises(ValueError, match="the adapter is of layer 1; the model's 1 count from 0"):
            peft.read(tmp_path, dataclasses.replace(DEEP, num_layers=1), peft.read_config(tmp_path))

    def test_a_tensor_that_is_missing_or_unknown_is_named(self, tmp_path):
        peft.save(tmp_path, adapter(ODD), ODD, "some/model")
        tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
        name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
        tensors["evil"] = tensors.pop(name)
        safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"1 tensors missing: {name}; 1 tensors unexpected: evil"):
            peft.read(tmp_path, DEEP, peft.read_config(tmp_path))


def test_a_state_s_hash_says_which_base_and_which_adapter():
    state = learns().init(base())
    digests = [qwen.digest(base()), qwen.digest(by_numpy())]
    hashes = {learner.state_hash(state, digest) for digest in digests}
    hashes.add(learner.state_hash(dataclasses.replace(state, params=adapter()), digests[0]))
    assert len(hashes) == 3
