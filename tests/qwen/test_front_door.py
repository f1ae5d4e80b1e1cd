import functools

import jax
import numpy as np
import pytest
import scipy.special

from rlswarm_jax import qwen
from tests.qwen import make_golden

CONVERSATION = [{"role": "user", "content": "1+1?"}]
RENDERED = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = ["two plus two is", RENDERED, "x", "x"]
TEMPERATURE = 0.8


@functools.cache
def policy():
    return qwen.load(make_golden.FIXTURES / make_golden.CHAT)


def generate(prompts, seed):
    return qwen.generate(policy(), prompts, group_size=5, max_new_tokens=8, temperature=TEMPERATURE, seed=seed)


@functools.cache
def generation():
    return generate(PROMPTS, seed=3)


def assert_equal(one, other):
    assert one.text == other.text
    for field in ("tokens_PGT", "lengths_PG", "logprobs_PGT"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_every_prompt_gets_its_group_of_completions():
    out = generation()
    assert out.tokens_PGT.shape == out.logprobs_PGT.shape == (4, 5, 8)
    assert out.lengths_PG.shape == (4, 5) and [len(group) for group in out.text] == [5] * 4
    assert (out.tokens_PGT.dtype, out.lengths_PG.dtype, out.logprobs_PGT.dtype) == (
        np.int32,
        np.int32,
        np.float32,
    )


def test_text_is_the_completion_decoded_without_its_stop_token():
    out = generation()
    characters = dict(enumerate(make_golden.CHARACTERS))
    stopped = 0
    for p, g in np.ndindex(4, 5):
        tokens = out.tokens_PGT[p, g, : out.lengths_PG[p, g]].tolist()
        assert out.text[p][g] == policy().tokenizer.decode(tokens)
        assert out.text[p][g] == "".join(characters.get(token, "") for token in tokens)
        stopped += tokens[-1] in policy().config.eos_token_ids
    assert stopped > 0


def test_the_seed_decides_the_completions():
    assert_equal(generate(PROMPTS, seed=3), generation())
    for other in (4, 3 + 2**32):
        assert not np.array_equal(generate(PROMPTS, seed=other).tokens_PGT, generation().tokens_PGT)


def test_no_two_completions_of_a_call_share_noise():
    same_prompt = generation().tokens_PGT[2:].reshape(10, 8)
    assert len({row.tobytes() for row in same_prompt}) == 10
    assert len(set(same_prompt[:, 0])) > 5


def test_logprobs_are_the_models_at_the_sampling_temperature():
    out = generation()
    for p, prompt in enumerate(PROMPTS):
        ids = policy().tokenizer.encode(prompt)
        texts = np.zeros((5, 48), np.int32)
        texts[:, : len(ids)] = ids
        texts[:, len(ids) : len(ids) + 8] = out.tokens_PGT[p]
        logits_GTV = np.asarray(full_logits(policy().params, policy().config, texts), np.float64)
        logprobs_GTV = scipy.special.log_softmax(logits_GTV / TEMPERATURE, axis=-1)[:, len(ids) - 1 :][:, :8]
        expected_GT = np.take_along_axis(logprobs_GTV, out.tokens_PGT[p][..., None], axis=-1)[..., 0]
        written_GT = np.arange(8) < out.lengths_PG[p][:, None]
        np.testing.assert_allclose(out.logprobs_PGT[p], np.where(written_GT, expected_GT, 0), rtol=0, atol=1e-5)


full_logits = jax.jit(qwen.logits, static_argnums=1)


def test_a_conversation_goes_through_the_checkpoints_own_template():
    conversations = [CONVERSATION if prompt is RENDERED else prompt for prompt in PROMPTS]
    assert_equal(generate(conversations, seed=3), generation())


def test_no_special_tokens_are_added_to_raw_text():
    assert policy().tokenizer.encode("Az!") == [make_golden.CHARACTERS.index(c) for c in "Az!"]


def test_a_conversation_needs_a_template():
    without = qwen.load(make_golden.FIXTURES / "qwen2_tied")
    with pytest.raises(ValueError, match="no chat template"):
        qwen.generate(without, [CONVERSATION], max_new_tokens=1)


@pytest.mark.parametrize(
    "request_",
    [
        {"prompts": []},
        {"prompts": ["x"], "group_size": 0},
        {"prompts": ["x"], "max_new_tokens": 0},
        {"prompts": ["x"], "temperature": -1.0},
    ],
    ids=lambda r: str(list(r)[-1]),
)
def test_an_empty_request_is_refused(request_):
    with pytest.raises(ValueError, match=f"generate needs.*{list(request_)[-1]}"):
        qwen.generate(policy(), **request_)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        qwen.generate(policy(), ["x", ""], max_new_tokens=1)


def greedy_text(prompts, **options):
    return qwen.generate(policy(), prompts, max_new_tokens=6, temperature=0.0, **options)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("two plus two is", ["two plus two is"]),
        (CONVERSATION, [CONVERSATION]),
        (tuple(CONVERSATION), [CONVERSATION]),
        (CONVERSATION[0], [CONVERSATION]),
        ((prompt for prompt in ["x", "yy"]), ["x", "yy"]),
        (np.array(["x", "yy"]), ["x", "yy"]),
    ],
    ids=["text", "conversation", "tuple of messages", "message", "generator", "array"],
)
def test_a_single_prompt_is_one_and_any_iterable_is_several(given, meant):
    assert_equal(greedy_text(given), greedy_text(meant))


@pytest.mark.parametrize(
    "prompts", [["x", 5], ["x", None], b"xy", [["x"]], [{"content": "x"}], [[]], [[CONVERSATION]], [CONVERSATION, {}]]
)
def test_what_is_no_prompt_is_said_with_what_would_be_one(prompts):
    with pytest.raises(ValueError, match=r"a prompt is a text or a conversation, \[\{'role': .*not "):
        greedy_text(prompts)


def test_a_single_stop_is_one():
    (texts,) = generation().text[:1]
    stop = max(texts, key=len)[1:3]
    assert len(stop) == 2
    ask = {"group_size": 5, "max_new_tokens": 8, "temperature": TEMPERATURE, "seed": 3}
    out = qwen.generate(policy(), PROMPTS[0], stop=stop, **ask)
    assert_equal(out, qwen.generate(policy(), PROMPTS[:1], stop=[stop], **ask))
    assert out.text == [[text.partition(stop)[0] for text in texts]] != [texts]
    assert "stop" in out.finish[0]
    token = int(generation().tokens_PGT[0, 0, 0])
    out = qwen.generate(policy(), PROMPTS[0], stop_token_ids=token, **ask)
    assert (out.lengths_PG[0, 0], out.finish[0][0]) == (1, "eos")


def test_prompt_and_completion_are_held_against_what_the_model_was_made_for():
    most = policy().config.max_position_embeddings
    qwen.generate(policy(), ["x", "y" * (most - 1)], max_new_tokens=1, temperature=0.0)
    with pytest.raises(
        ValueError, match=f"prompt 1 has {most - 1} tokens.*max_new_tokens 2 exceeds the {most} positions"
    ):
        qwen.generate(policy(), ["x", "y" * (most - 1)], max_new_tokens=2, temperature=0.0)


@pytest.mark.parametrize("how", [str, "{}".format, "{!s:<12}".format])
def test_verdicts_print_their_names(how):
    assert [how(verdict).strip() for verdict in sorted(qwen.Verdict)] == ["NOT_PRODUCED", "UNDECIDED", "PRODUCED"]
    assert "PRODUCED" in repr([qwen.Verdict.PRODUCED]) and int(qwen.Verdict.NOT_PRODUCED) == -1
