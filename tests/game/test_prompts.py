import dataclasses
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.game.prompts import FORMATS, choose_format
from tests.game.hand_driver import mixture, tokenizer

OPEN, CLOSE = "<answer>", "</answer>"
answer_of = FORMATS["chat"].answer
pieces = st.lists(st.sampled_from([OPEN, CLOSE, "<", ">", "/", "answer", "1", " x", "\n", "<answer", "é"]), max_size=12)


def last_pair(text: str) -> str:
    """By hand: the last closing tag whose nearest earlier `<` begins an opening tag."""
    end = len(text)
    while (end := text.rfind(CLOSE, 0, end)) >= 0:
        start = text.rfind("<", 0, end)
        if start >= 0 and text.startswith(OPEN, start):
            return text[start + len(OPEN) : end]
    return ""


@given(pieces.map("".join) | st.text())
def test_the_answer_is_what_the_last_pair_of_tags_holds(text):
    assert answer_of(text) == last_pair(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>42</answer>", "42"),
        ("<answer>1</answer> no, wait: <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer><answer>2</answer></answer>", "2"),
        ("<answer>\n4 2\n</answer>.", "\n4 2\n"),
        ("42", ""),
        ("</answer>42<answer>", ""),
        ("<ANSWER>42</ANSWER>", ""),
        ("", ""),
    ],
)
def test_examples_of_answers(text, expected):
    assert answer_of(text) == expected


@pytest.mark.parametrize(
    "text", [OPEN, CLOSE, "<", OPEN + "x", OPEN + CLOSE, "<answer", "a" + CLOSE, " ", OPEN + "<" + CLOSE]
)
def test_a_megabyte_takes_linear_time(text):
    for whole in (text * (1_000_000 // len(text)), OPEN + text * (1_000_000 // len(text)), text * 99_999 + CLOSE):
        started = time.process_time()
        answer_of(whole)
        assert time.process_time() - started < 1.0


@given(st.text())
def test_in_the_compact_format_the_whole_text_is_the_answer(text):
    assert FORMATS["compact"].answer(text) == text


def test_prompts_ask_the_problem_and_never_tell_its_answer():
    for seed in range(20):
        problem = dataclasses.replace(mixture().problem(seed), answers=("SECRET",))
        prompt = FORMATS["chat"].render(problem)
        assert not isinstance(prompt, str)
        system, user = prompt
        assert user == {"role": "user", "content": problem.question} and system["role"] == "system"
        assert answer_of(system["content"].replace(" and ", "42")) == "42"  # it shows the very tags that are read
        assert FORMATS["compact"].render(problem) == problem.compact
        assert "SECRET" not in str(FORMATS["chat"].render(problem))


def test_auto_is_chat_where_the_checkpoint_has_a_chat_template():
    without, with_template = tokenizer(), dataclasses.replace(tokenizer(), render_chat=str)
    assert choose_format("auto", without).name == "compact-1"
    assert choose_format("auto", with_template).name == "chat-1"
    assert choose_format("compact", with_template).name == "compact-1"


@pytest.mark.parametrize("name", ["", "Chat", "chat-1", "no_such"])
def test_an_unknown_format_is_an_error_that_names_those_there_are(name):
    with pytest.raises(ValueError, match=f"{re.escape(repr(name))} is unknown; expected auto, compact, chat"):
        choose_format(name, tokenizer())


def test_formats_have_names_of_their_own_with_a_version():
    names = [found.name for found in FORMATS.values()]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z]+-\d+", name) for name in names)


def test_thoughts_are_switched_by_the_chat_template_and_named_in_the_format():
    ends = {None: "", True: "1", False: "0"}  # of a template that shows what it was told
    shows = dataclasses.replace(tokenizer(), render_chat=lambda messages, thinking=None: "12" + ends[thinking])
    problem = mixture().problem(3)
    for switch, thinking in (("", None), ("on", True), ("off", False)):
        chosen = choose_format("chat", shows, switch)
        assert chosen.name == "chat-1" + (f"-thinking-{switch}" if switch else "")
        assert chosen.encode(problem, shows) == shows.encode("12" + ends[thinking])


def test_a_format_without_thoughts_refuses_the_switch():
    with pytest.raises(ValueError, match="option of the chat template"):
        choose_format("compact", tokenizer(), "off")
