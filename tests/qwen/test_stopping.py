import dataclasses
import functools

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import qwen
from rlswarm_jax.qwen import stopping
from rlswarm_jax.qwen.tokenizer import Tokenizer
from tests.qwen import test_sampling as base

CORPUS = ["ab aab abba baab \n", "né déjà été 😀🎉 ok 😀", "ab abab é😀é a😀b"] * 3
THINK, END = "<think>", "<|end|>"


def byte_level_tokenizer(vocab_size, alphabet):
    """Byte-pair encoding as the real models have it, trained on `CORPUS`, with an added token of either kind."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([END])
    backend.add_tokens([THINK])
    return backend


@functools.cache
def every_byte():
    """A tokenizer that can write any text, and two ids that stand for nothing."""
    backend = byte_level_tokenizer(300, tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return Tokenizer(backend, backend.get_vocab_size() + 2, {})


def states_along(table, tokens):
    states = [0]
    for token in tokens:
        states.append(int(table.next_XV[states[-1], token]))
    return states[1:]


pieces = st.lists(
    st.one_of(st.just(b""), st.text("abé😀", max_size=4).map(str.encode), st.binary(max_size=2)), min_size=1
)
strings = st.lists(st.text("abé😀", min_size=1, max_size=5), min_size=1, max_size=5)


@st.composite
def texts_in_pieces(draw):
    """Bytes of tokens, stop strings, and a text; characters are cut in two between tokens."""
    whole = "".join(draw(st.lists(st.sampled_from(["a", "b", "é", "😀"]), min_size=1, max_size=12))).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    vocab = draw(pieces) + parts
    tokens = draw(st.lists(st.integers(0, len(vocab) - 1), max_size=4)) + list(
        range(len(vocab) - len(parts), len(vocab))
    )
    return vocab, draw(strings), tokens


class TestStopTable:
    @settings(deadline=None, max_examples=300)
    @given(texts_in_pieces())
    def test_a_text_is_finished_as_soon_as_it_holds_a_string(self, case):
        vocab, stops, tokens = case
        table = stopping.stop_table(stops, vocab)
        for n, state in enumerate(states_along(table, tokens)):
            written = b"".join(vocab[token] for token in tokens[: n + 1])
            held = any(s.encode() in written for s in stops)
            assert (state == table.found) == held
            assert held == any(s in written.decode(errors="replace") for s in stops)

    def test_a_string_is_found_across_tokens_inside_one_and_behind_a_false_start(self):
        table = stopping.stop_table(["aab", "ß"], [b"a", b"b", b"xaaby", b"\xc3", b"\x9f", b""])
        found = {
            tokens: table.found in states_along(table, tokens)
            for tokens in [(0, 0, 0, 1), (0, 1, 0, 1), (2,), (3, 4), (3, 5, 4), (3, 0, 4), (5, 0, 5, 0, 5, 1)]
        }
        assert [tokens for tokens, yes in found.items() if not yes] == [(0, 1, 0, 1), (3, 0, 4)]

    @pytest.mark.parametrize("strings_", [[""], ["a", ""], ["a" * 257], ["é" * 64, "b" * 129]], ids=len)
    def test_an_empty_string_or_too_many_bytes_are_refused(self, strings_):
        with pytest.raises(ValueError, match="must not be empty, nor longer than 256 bytes together"):
            stopping.stop_table(strings_, [b"a"])

    def test_as_many_bytes_as_are_allowed_work(self):
        table = stopping.stop_table(["é" * 64, "b" * 128], [b"b", "é".encode()])
        assert (
            states_along(table, [0] * 128)[-2:] != [table.found] * 2
            and states_along(table, [0] * 128)[-1] == table.found
        )
        assert states_along(table, [1] * 64)[-1] == table.found not in states_along(table, [1] * 63)

    @settings(max_examples=200)
    @given(st.text("ab", max_size=10), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
    def test_a_text_is_cut_before_the_first_string(self, text, stops):
        cut = stopping.cut_at_stop(text, stops)
        assert text.startswith(cut) and not any(s in cut for s in stops)
        assert cut == text or any(text[len(cut) :].startswith(s) for s in stops)


class TestTokenBytes:
    @settings(deadline=None, max_examples=200)
    @given(st.one_of(st.text(), st.text("abé😀 \n", max_size=20), st.sampled_from(CORPUS)))
    def test_a_texts_tokens_add_up_to_its_utf_8(self, text):
        ids = every_byte().encode(text)
        raw = b"".join(token_bytes()[i] for i in ids)
        assert raw == text.encode() == every_byte().decode(ids).encode()

    @settings(deadline=None, max_examples=200)
    @given(st.data())
    def test_any_tokens_add_up_to_what_they_decode_to(self, data):
        ids = data.draw(st.lists(st.integers(0, every_byte().vocab_size - 1), max_size=20))
        assert b"".join(token_bytes()[i] for i in ids).decode(errors="replace") == every_byte().decode(ids)

    def test_a_special_token_adds_nothing_and_another_added_one_its_content(self):
        backend = every_byte().backend
        assert token_bytes()[backend.token_to_id(END)] == b""
        assert token_bytes()[backend.token_to_id(THINK)] == THINK.encode()
        assert token_bytes()[-2:] == [b"", b""] and len(token_bytes()) == every_byte().vocab_size

    def test_a_tokenizer_of_characters_adds_them(self):
        policy = base.policy(base.NAME)
        table = policy.tokenizer.token_bytes()
        assert [table[i].decode() for i in policy.tokenizer.encode("Az! \n")] == list("Az! \n")
        assert [table[i] for i in policy.config.eos_token_ids] == [b"", b""] and table[102] == b""


@functools.cache
def token_bytes():
    return every_byte().token_bytes()


STOPS = ("é", "😀", "ab", "b\n", THINK)
STOP_TOKENS = tuple(range(1, 97, 16))
NEW_TOKENS = 40


@functools.cache
def policy():
    """The shallow model with byte-pair tokens: characters come in pieces, and some ids stand for nothing."""
    backend = byte_level_tokenizer(60, [])
    assert backend.get_vocab_size() < base.shallow().config.vocab_size
    return dataclasses.replace(base.shallow(), tokenizer=Tokenizer(backend, base.shallow().config.vocab_size, {}))


@functools.cache
def generation(stop, stop_token_ids):
    return qwen.generate(
        policy(),
        ["ab", "déjà"],
        group_size=16,
        max_new_tokens=NEW_TOKENS,
        temperature=1.5,
        seed=1,
        stop=stop,
        stop_token_ids=stop_token_ids,
    )


class TestGenerate:
    def test_a_completion_ends_at_the_first_token_that_ends_it_and_its_text_before_the_string(self):
        free, out = generation((), ()), generation(STOPS, STOP_TOKENS)
        ends = {*policy().config.eos_token_ids, *STOP_TOKENS}
        reasons = []
        for place in np.ndindex(out.lengths_PG.shape):
            p, g = place
            tokens = free.tokens_PGT[place][: free.lengths_PG[place]].tolist()
            for n in range(1, len(tokens) + 1):
                text = policy().tokenizer.decode(tokens[:n])
                reason = "eos" if tokens[n - 1] in ends else "stop" if any(s in text for s in STOPS) else "length"
                if reason != "length":
                    break
            assert (out.lengths_PG[place], out.finish[p][g]) == (n, reason)
            assert out.tokens_PGT[place].tolist() == tokens[:n] + [0] * (NEW_TOKENS - n)
            np.testing.assert_allclose(out.logprobs_PGT[place][:n], free.logprobs_PGT[place][:n], rtol=0, atol=base.TAU)
            before = [text[: text.index(s)] for s in STOPS if s in text]
            assert out.text[p][g] == min(before, key=len, default=text)
            reasons.append(reason)
        assert min(reasons.count(reason) for reason in ("eos", "stop")) >= 4

    def test_without_stop_strings_only_the_checkpoints_tokens_end_a_completion(self):
        free = generation((), ())
        finished = {reason for group in free.finish for reason in group}
        assert finished <= {"eos", "length"} and "length" in finished
        for p, g in np.ndindex(free.lengths_PG.shape):
            last = free.tokens_PGT[p, g, free.lengths_PG[p, g] - 1]
            assert (free.finish[p][g] == "eos") == (last in policy().config.eos_token_ids)
            assert free.finish[p][g] == "eos" or free.lengths_PG[p, g] == NEW_TOKENS
