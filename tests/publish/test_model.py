"""What is saved has the hash that records name, in either dtype, and is hashed again from its files alone."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax import assets, qwen
from rlswarm_jax.publish import model
from rlswarm_jax.publish.model import Weights
from rlswarm_jax.publish.targets import PublishError


@pytest.fixture(scope="module")
def policy():
    return qwen.load(assets.BASE)


def by_hand(tensors, kind):
    lines = []
    for name, array in sorted(tensors.items()):
        shape = ",".join(map(str, array.shape))
        lines.append(f"{name} {kind} {shape} {hashlib.sha256(array.tobytes()).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).digest()


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_files_have_the_hash_of_what_samples(policy, tmp_path, dtype, kind):
    tensors = qwen.to_tensors(policy.params, policy.config, dtype)
    model.save(tmp_path, Weights(tensors), policy.config, policy.tokenizer, "embedded")
    assert model.hash_of(tmp_path) == Weights(tensors).hash == by_hand(tensors, kind)
    there = qwen.load(tmp_path)
    assert there.config.tie_word_embeddings == ("lm_head" not in policy.params)
    tokens_BT = np.arange(12).reshape(2, 6)
    cast = qwen.from_tensors({n: t.astype(np.float32) for n, t in tensors.items()}, policy.config)
    expected, found = (np.asarray(qwen.logits(p, policy.config, tokens_BT)) for p in (cast, there.params))
    np.testing.assert_array_equal(found, expected)


def test_one_bit_is_another_hash(policy, tmp_path):
    tensors = qwen.to_tensors(policy.params, policy.config, "bfloat16")
    model.save(tmp_path, Weights(tensors), policy.config, policy.tokenizer, "embedded")
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)
    assert model.hash_of(tmp_path) != Weights(tensors).hash
    path.write_bytes(raw[:-5])
    with pytest.raises(PublishError, match=r"no weights that can be read: .*not a readable safetensors file"):
        model.hash_of(tmp_path)


def test_an_untied_head_is_a_part_of_it(policy, tmp_path):
    tensors = qwen.to_tensors(policy.params, policy.config, "float32")
    head = np.array(jnp.asarray(tensors["model.embed_tokens.weight"]) * 2)
    untied = tensors | {"lm_head.weight": head}
    model.save(tmp_path, Weights(untied), policy.config, policy.tokenizer, "embedded")
    assert not qwen.load(tmp_path).config.tie_word_embeddings
    assert model.hash_of(tmp_path) == by_hand(untied, "F32") != Weights(tensors).hash
