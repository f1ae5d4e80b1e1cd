"""Conversations through a checkpoint's own template, and Qwen3's thinking switch."""

import functools
import json
import shutil

import pytest

from rlswarm_jax import qwen
from tests.qwen import make_golden

# What the end of Qwen3's own template does.
SWITCH = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
CONVERSATION = [{"role": "user", "content": "1+1?"}]
OPEN = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
SHUT = OPEN + "<think>\n\n</think>\n\n"


def checkpoint(directory, template, *, in_config=False):
    shutil.copytree(make_golden.FIXTURES / make_golden.CHAT, directory)
    if in_config:
        (directory / "chat_template.jinja").unlink()
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    else:
        (directory / "chat_template.jinja").write_text(template)
    return qwen.load(directory)


@pytest.fixture(scope="module")
def switch(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("chat") / "switch", SWITCH)


@pytest.fixture(scope="module")
def none():
    return qwen.load(make_golden.FIXTURES / make_golden.CHAT)


@pytest.mark.parametrize(("thinking", "text"), [(None, OPEN), (True, OPEN), (False, SHUT)])
def test_the_switch_is_what_transformers_renders(switch, thinking, text):
    assert switch.tokenizer.encode(CONVERSATION, thinking) == switch.tokenizer.encode(text)


def test_thinking_is_a_generation_option(switch):
    generate = functools.partial(qwen.generate, switch, max_new_tokens=6, seed=5)
    for thinking, text in ((None, OPEN), (True, OPEN), (False, SHUT)):
        assert generate([CONVERSATION], thinking=thinking).text == generate([text]).text
    assert generate([CONVERSATION], thinking=False).text != generate([CONVERSATION]).text


def test_a_template_in_the_tokenizers_config(tmp_path):
    policy = checkpoint(tmp_path / "x", SWITCH, in_config=True)
    assert policy.tokenizer.encode(CONVERSATION, False) == policy.tokenizer.encode(SHUT)


def test_the_switch_survives_saving(switch, tmp_path):
    qwen.save(switch, tmp_path)
    again = qwen.load(tmp_path).tokenizer
    assert again.encode(CONVERSATION, False) == switch.tokenizer.encode(SHUT)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_without_the_switch_says_so(none, thinking):
    with pytest.raises(ValueError, match=r"qwen3_tied has no thinking switch: leave `thinking` out"):
        qwen.generate(none, [CONVERSATION], thinking=thinking)


def test_plain_text_has_no_switch(switch):
    with pytest.raises(ValueError, match="`thinking` is an option of the chat template"):
        qwen.generate(switch, ["1+1?"], thinking=False)


def test_no_template_at_all():
    with pytest.raises(ValueError, match="no chat template"):
        qwen.load(make_golden.FIXTURES / "qwen2_tied").tokenizer.encode(CONVERSATION, True)


def test_what_a_template_refuses_is_said_in_its_words(tmp_path):
    policy = checkpoint(tmp_path / "x", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="refuses the conversation: roles must alternate"):
        policy.tokenizer.encode(CONVERSATION)
