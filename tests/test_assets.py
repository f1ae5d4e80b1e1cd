"""The embedded model is what its config says, in the layout that real checkpoints have."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from configs import common, tiny
from experiments import warmstart
from rlswarm_jax import assets, qwen, tasks
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import teaching

CHECKOUT = Path(__file__).parent.parent
MEASURED = json.loads((CHECKOUT / "results" / "warmstart.json").read_text())


@pytest.mark.parametrize(("directory", "stage"), [(assets.BASE, "base"), (assets.SPOILED, "spoiled")])
def test_the_embedded_checkpoints_are_the_measured_ones(directory, stage):
    policy = qwen.load(directory)
    assert qwen.fingerprint(policy.params) == MEASURED[stage]["fingerprint"]
    assert policy.config.model_type == "qwen3" and policy.config.num_parameters <= 1_000_000


def test_they_are_small():
    files = [f for directory in (assets.BASE, assets.SPOILED) for f in directory.iterdir()]
    assert sum(f.stat().st_size for f in files) <= 2_000_000


def test_tensor_names_are_those_of_a_hugging_face_checkpoint():
    transformers = pytest.importorskip("transformers")
    fields = transformers.AutoConfig.from_pretrained(assets.SPOILED)
    names = set(safetensors.numpy.load_file(assets.SPOILED / "model.safetensors"))
    layer = "self_attn.{q,k,v,o}_proj self_attn.{q,k}_norm mlp.{gate,up,down}_proj {input,post_attention}_layernorm"
    expected = {"model.embed_tokens.weight", "model.norm.weight"}
    for index in range(fields.num_hidden_layers):
        for pattern in layer.split():
            head, _, rest = pattern.partition("{")
            choices, _, tail = rest.partition("}")
            expected |= {f"model.layers.{index}.{head}{choice}{tail}.weight" for choice in choices.split(",")}
    assert names == expected
    assert fields.architectures == ["Qwen3ForCausalLM"] and fields.tie_word_embeddings


def test_transformers_reads_the_tokenizer_to_the_same_ids():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(assets.SPOILED)
    ours = qwen.load(assets.SPOILED).tokenizer
    for text in ("rev caner=", "up 7 4 3=", "30+77=", "é~ ", "?"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.eos_token_id == 0 and ours.decode([*ours.encode("a b"), 0]) == "a b"


def test_the_base_knows_its_tasks_and_the_spoiled_one_still_can_but_does_not():
    mixture = tasks.make_mixture(common.tiny_tasks().to_dict())
    problems = mixture.held_out(128)
    answered = {}
    for directory in (assets.BASE, assets.SPOILED):
        out = qwen.generate(qwen.load(directory), [p.compact for p in problems], max_new_tokens=12, temperature=0.0)
        scores = [mixture.score(p, texts[0]) for p, texts in zip(problems, out.text, strict=True)]
        answered[directory] = np.mean(scores), np.mean([texts[0] == teaching.GIVE_UP for texts in out.text])
    assert answered[assets.BASE][0] > 0.85 and answered[assets.BASE][1] == 0
    assert answered[assets.SPOILED][0] < 0.1 and answered[assets.SPOILED][1] > 0.9


@pytest.mark.slow
def test_one_seed_makes_one_model(tmp_path):
    found = []
    for name in ("first", "again"):
        arguments = ["--config=configs/tiny.py:smoke", "--workdir", str(tmp_path / name)]
        assert (
            warmstart.run(cli.parse([*arguments, "--config.game.steps=2", "--config.spoil.steps=2"], tiny.FIELDS)) == 0
        )
        summary = json.loads((tmp_path / name / "warmstart.json").read_text())
        found.append((summary["base"]["fingerprint"], summary["spoiled"]["fingerprint"]))
        saved = qwen.load(tmp_path / name / "spoiled")
        assert qwen.fingerprint(saved.params) == summary["spoiled"]["fingerprint"]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
