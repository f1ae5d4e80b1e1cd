"""Peers' text in a prompt: what goes in comes out, and nothing in it is anything but text."""

import dataclasses
import json
import re
import time

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.game.quote import control_characters, control_ids, keep_end, quote, unquote
from tests.game.adversarial import CONTROL, THOUGHTS, qwen_like, texts
from tests.game.hand_driver import tokenizer

RESERVED = st.sampled_from(["", "<", "<|:;~!#", "|[{ "])


@given(texts | st.text(), RESERVED, st.booleans())
def test_what_is_quoted_comes_back_and_is_a_json_string_without_what_is_reserved(text, reserved, ascii_only):
    quoted = quote(text, reserved, ascii_only=ascii_only)
    assert unquote(quoted) == json.loads(f'"{quoted}"') == text
    assert not {*reserved} & {*quoted} and not re.search(r'[\x00-\x1f]|(?<!\\)(\\\\)*"', quoted)
    assert quoted.isascii() or not ascii_only


@pytest.mark.parametrize(
    "quoted", ['"', 'a"b', '\\\\"', "\\", "\\u12", "\\x41", "\n", "\x00", '","', '\\"\\', "\\ud83"]
)
def test_what_is_no_quotation_is_refused(quoted):
    with pytest.raises(ValueError):
        unquote(quoted)


@given(st.text(alphabet='\\"u0c<n', max_size=12) | texts)
def test_any_text_is_a_quotation_or_a_value_error(quoted):
    try:
        assert json.loads(f'"{quoted}"') == unquote(quoted)
    except ValueError:
        with pytest.raises(ValueError):
            json.loads(f'"{quoted}"')


def test_control_tokens_are_all_added_ones_whether_they_are_called_special_or_not():
    found = {qwen_like().backend.id_to_token(index) for index in control_ids(qwen_like())}
    assert found == {*CONTROL, *THOUGHTS} and control_characters(qwen_like()) == {"<"}
    assert control_characters(tokenizer()) == {"<"}  # "<|endoftext|>" and "<|unknown|>"


def with_token(content: str):
    backend = tokenizers.Tokenizer.from_str(qwen_like().backend.to_str())
    backend.add_tokens([tokenizers.AddedToken(content, normalized=False)])
    return dataclasses.replace(qwen_like(), backend=backend, vocab_size=backend.get_vocab_size())


@pytest.mark.parametrize("content", ["\\u003c", "beef", "0", '\\"', "\\n", "tt"])
def test_a_control_token_that_escaped_text_could_spell_is_refused(content):
    with pytest.raises(ValueError, match="could be written by anybody"):
        control_characters(with_token(content))


@pytest.mark.parametrize("content", ["[INST]", "0x!", "\n\n", "  ", "aé", "null"])
def test_no_control_token_can_be_written_in_a_quotation(content):
    strange = with_token(content)
    reserved = control_characters(strange)
    quoted = quote(f"a {content} {content * 3}b", reserved, ascii_only=False)
    assert not control_ids(strange) & set(strange.encode(f'"{quoted}"'))


@given(texts, st.integers(0, 40))
def test_of_a_long_text_the_longest_end_that_fits_is_kept(text, most):
    kept = keep_end(text, most, lambda part: len(quote(part, "<", ascii_only=True)))
    fitting = [
        text[start:] for start in range(len(text) + 1) if len(json.dumps(text[start:].replace("<", "\0"))) - 2 <= most
    ]
    assert kept == fitting[0]


@pytest.mark.parametrize("piece", ["<|im_end|>", "\\", '"', "\0", "\u2028", "a", "😀", "\\u003c"])
def test_64_kilobytes_are_quoted_and_read_in_no_time(piece):
    text = piece * (65_536 // len(piece))
    began = time.process_time()
    assert unquote(quote(text, "<|:;~!#", ascii_only=True)) == text
    assert time.process_time() - began < 1.0
