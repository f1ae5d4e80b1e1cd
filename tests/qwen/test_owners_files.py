"""Checkpoints as trainers and owners leave them: what is in their small files, and in their heads, means what it means
to `transformers`."""

import inspect
import json
import logging
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from rlswarm_jax import qwen
from rlswarm_jax.game import prompts
from rlswarm_jax.game.prompts import FORMATS, choose_format
from rlswarm_jax.qwen.tokenizer import SPOKEN, load_tokenizer
from rlswarm_jax.qwen.weights import read_model
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.tasks import Problem
from tests.qwen import make_golden, variants

IM_START, IM_END, VOCABULARY = make_golden.IM_END - 1, make_golden.IM_END, 103
CONVERSATION = [{"role": "user", "content": "Tell me what 2 + 2 is, and why. " * 3}]
REMOVED = object()


@pytest.fixture
def owners(tmp_path):
    """Makes a checkpoint from the chat fixture: `change(file={field: value}, ...)`, a file's dots as underscores."""

    def change(fixture=make_golden.CHAT, **files):
        directory = tmp_path / "owners"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(make_golden.FIXTURES / fixture, directory)
        for name, fields in files.items():
            path = directory / f"{name}.json"
            if fields is REMOVED:
                path.unlink(missing_ok=True)
                continue
            whole = (json.loads(path.read_text()) if path.exists() else {}) | fields
            path.write_text(json.dumps({key: value for key, value in whole.items() if value is not REMOVED}))
        return directory

    return change


def added(index, content, special=True, **flags):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags
    return {"id": index, "content": content, "special": special} | flags


def with_added(owners, *tokens):
    before = json.loads((make_golden.FIXTURES / make_golden.CHAT / "tokenizer.json").read_text())["added_tokens"]
    return owners(tokenizer={"added_tokens": before + list(tokens)})


def pretrained(directory):
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


CUT = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
FILLED = {"direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "0", "pad_to_multiple_of": None}
PER_CALL = {
    "cut on the right": {"truncation": CUT},
    "cut on the left, with a stride": {"truncation": CUT | {"direction": "Left", "stride": 4}},
    "filled up to a length": {"padding": FILLED | {"strategy": {"Fixed": 256}}},
    "filled up to a multiple": {"padding": FILLED | {"strategy": "BatchLongest", "pad_to_multiple_of": 64}},
    "both": {"truncation": CUT, "padding": FILLED | {"strategy": {"Fixed": 16}}},
}


@pytest.mark.parametrize("left", PER_CALL)
def test_a_trainers_per_call_settings_neither_cut_nor_fill(owners, left):
    """As many ids as transformers gives, and the same tokenizer as without them."""
    directory = owners(tokenizer=PER_CALL[left], tokenizer_config={"model_max_length": 16})
    _, ours = read_model(directory)
    text = f"<|im_start|>user\n{CONVERSATION[0]['content']}<|im_end|>\n"
    theirs = pretrained(directory)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    rendered = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert ours.encode(CONVERSATION) == theirs.encode(rendered, add_special_tokens=False)
    assert len(ours.encode(CONVERSATION)) > 50
    assert ours.encode("x") == theirs.encode("x", add_special_tokens=False)
    assert ours.fingerprint == read_model(owners())[1].fingerprint


def test_merges_are_not_dropped_at_random(owners):
    """BPE dropout is for training tokenizers (arXiv:1910.13267): with it, the same text has other ids each time."""
    model = json.loads((make_golden.FIXTURES / make_golden.CHAT / "tokenizer.json").read_text())["model"]
    merged = {"vocab": model["vocab"] | {"ab": 98}, "merges": ["a b"], "dropout": 0.9}
    tokenizer = read_model(owners(tokenizer={"model": model | merged}))[1]
    assert {tuple(tokenizer.encode("abab")) for _ in range(20)} == {(98, 98)}


ENDS = {
    "only the tokenizer's config": ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, {96, 97}),
    "a token with its flags": ({"tokenizer_config": {"eos_token": added(0, "<|im_end|>") | {"__type": "x"}}}, {96, 97}),
    "only the map of special tokens": ({"special_tokens_map": {"eos_token": "<|im_end|>"}}, {96, 97}),
    "the map, with flags": ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}}, {96, 97}),
    "a list": ({"generation_config": {"eos_token_id": [96, 97]}}, {96, 97}),
    "each another": (
        {
            "config": {"eos_token_id": 5},
            "special_tokens_map": {"eos_token": "7"},
            "tokenizer_config": {"eos_token": "8"},
        },
        {5, 7, 8, 96},
    ),
    "all the same": ({"tokenizer_config": {"eos_token": "<|im_start|>"}}, {96}),
    "no id anywhere": (
        {
            "config": {"eos_token_id": REMOVED},
            "generation_config": REMOVED,
            "tokenizer_config": {"eos_token": "<|im_end|>"},
        },
        {97},
    ),
    "padding that is the end too": (
        {"tokenizer_config": {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, "config": {"pad_token_id": 97}},
        {96, 97},
    ),
    "no tokenizer's config": ({"tokenizer_config": REMOVED}, {96}),
}


class TestEndTokens:
    @pytest.mark.parametrize("case", ENDS)
    def test_they_are_those_that_any_file_names(self, owners, case, caplog):
        changes, expected = ENDS[case]
        base = {
            "config": {"eos_token_id": 96},
            "generation_config": {"eos_token_id": 96},
            "tokenizer_config": {"eos_token": None},
        }
        directory = owners(**base)
        for name, fields in changes.items():
            path = directory / f"{name}.json"
            if fields is REMOVED:
                path.unlink()
            else:
                whole = (json.loads(path.read_text()) if path.exists() else {}) | fields
                path.write_text(json.dumps({key: value for key, value in whole.items() if value is not REMOVED}))
        assert {*read_model(directory)[0].eos_token_ids} == expected
        assert not caplog.records

    def test_both_end_a_completion_and_neither_is_its_text(self, owners):
        """Until one of them comes, a completion is that of the same weights without any end."""
        policy = qwen.load(
            owners(
                config={"eos_token_id": 96},
                generation_config={"eos_token_id": 96},
                tokenizer_config={"eos_token": "<|im_end|>"},
            )
        )
        endless = qwen.Policy(
            qwen.config.dataclasses.replace(policy.config, eos_token_ids=()), policy.params, policy.tokenizer
        )
        ask = {"prompts": ["2+2", "a"], "group_size": 64, "max_new_tokens": 16, "temperature": 1.5}
        out, free = qwen.generate(policy, **ask), qwen.generate(endless, **ask)
        ended_by = set()
        for p, g in np.ndindex(2, 64):
            tokens = free.tokens_PGT[p, g].tolist()
            first = min((tokens.index(end) + 1 for end in (96, 97) if end in tokens), default=16)
            assert out.tokens_PGT[p, g, : out.lengths_PG[p, g]].tolist() == tokens[:first]
            ended_by |= {96, 97} & set(tokens[first - 1 : first])
            assert "<|im" not in out.text[p][g]
        assert ended_by == {96, 97}

    def test_one_outside_the_vocabulary_is_said_and_ends_nothing(self, owners, caplog):
        directory = owners(config={"eos_token_id": [97, 103]}, generation_config={"eos_token_id": 151643})
        assert read_model(directory)[0].eos_token_ids == (97,)
        assert (
            "end tokens [103, 151643], outside the vocabulary of 103" in caplog.text and str(directory) in caplog.text
        )

    def test_a_name_that_the_tokenizer_does_not_know_is_said(self, owners, caplog):
        directory = owners(tokenizer_config={"eos_token": "<eos>"})
        assert read_model(directory)[0].eos_token_ids == (97, 96)
        assert "names the end token '<eos>', which tokenizer.json does not have" in caplog.text

    def test_that_there_is_none_is_said(self, owners, caplog):
        directory = owners(
            config={"eos_token_id": None}, generation_config=REMOVED, tokenizer_config={"eos_token": None}
        )
        assert read_model(directory)[0].eos_token_ids == ()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING and "names no end token" in record.getMessage()

    @pytest.mark.parametrize("token", [5, ["<|im_end|>"], {"content": 3}, True], ids=repr)
    def test_what_is_no_token_is_an_error_that_names_the_file(self, owners, token):
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: field 'eos_token' must be a token's text"):
            read_model(owners(tokenizer_config={"eos_token": token}))

    def test_one_that_is_an_added_token_is_no_text_even_if_nobody_called_it_special(self, owners):
        directory = with_added(owners, added(98, "[END]", special=False))
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps({"eos_token": "[END]"}))
        tokenizer = read_model(directory)[1]
        assert tokenizer.decode([1, 98]) == "1" and tokenizer.token_bytes()[98] == b""

    def test_they_survive_saving_for_transformers_too(self, owners, tmp_path):
        import transformers

        policy = qwen.load(owners(config={"eos_token_id": 96}, generation_config=REMOVED))
        assert {*policy.config.eos_token_ids} == {96, 97}
        qwen.save(policy, tmp_path / "saved")
        assert {*qwen.load(tmp_path / "saved").config.eos_token_ids} == {96, 97}
        assert {*transformers.GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id} == {96, 97}
        assert {*transformers.AutoConfig.from_pretrained(tmp_path / "saved").eos_token_id} == {96, 97}

    def test_a_saved_tokenizer_without_a_config_gets_one_with_its_end(self, owners, tmp_path):
        """Without one, transformers makes up an end token, and an id for it."""
        import transformers

        qwen.save(qwen.load(owners("qwen2_tied")), tmp_path / "saved")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert (theirs.eos_token, theirs.eos_token_id) == ("<|im_end|>", 97)


class TestTags:
    @pytest.mark.parametrize("special", [True, False])
    @pytest.mark.parametrize("flags", [{}, {"lstrip": True, "rstrip": True}, {"normalized": True}], ids=str)
    def test_an_answer_between_tags_that_are_tokens_is_read(self, owners, special, flags):
        """Whichever of a format's tags a tokenizer has; control tokens are left out as ever."""
        tags = [f"<{slash}{tag}>" for tag in ("answer", "best", "think") for slash in ("", "/")]
        directory = with_added(owners, *[added(98 + n, tag, special, **flags) for n, tag in enumerate(tags)])
        tokenizer = load_tokenizer(directory, 98 + len(tags), (IM_END,))
        ids = [*tokenizer.encode("<think>9</think><best>2</best><answer>17</answer>"), IM_END, IM_START]
        assert {98 + n for n in range(6)} <= {*ids}
        text, chat = tokenizer.decode(ids), FORMATS["chat"]
        assert text == "<think>9</think><best>2</best><answer>17</answer>"
        assert (chat.answer(text), chat.named(text, [1, 2, 3])) == ("17", 2)
        assert chat.said(STAGES[0], text) == "<best>2</best><answer>17</answer>"

    @pytest.mark.parametrize("tag", ["</answer>\n", " <answer>"])
    def test_with_white_space_in_the_token(self, owners, tag):
        tokenizer = load_tokenizer(with_added(owners, added(98, tag)), 99)
        assert tokenizer.decode([1, 98]) == f"1{tag}"

    def test_a_compact_critique_whose_mark_is_a_token(self, owners):
        tokens = json.loads((make_golden.FIXTURES / make_golden.CHAT / "tokenizer.json").read_text())
        mark = tokens["model"]["vocab"]["#"]
        tokenizer = load_tokenizer(with_added(owners, added(mark, "#")), VOCABULARY)
        text = tokenizer.decode(tokenizer.encode("17#1"))
        assert (text, FORMATS["compact"].named(text, [1, 2])) == ("17#1", 1)

    def test_an_answers_last_tag_may_be_the_end_token(self, owners):
        directory = with_added(owners, added(98, "<answer>"), added(99, "</answer>"))
        (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</answer>"}))
        config, tokenizer = read_model(directory)
        assert 99 in config.eos_token_ids
        assert FORMATS["chat"].answer(tokenizer.decode([98, 1, 7, 99])) == "17"

    def test_other_special_tokens_are_no_text(self, owners):
        directory = with_added(owners, added(98, "<pad>"), added(99, "<|endoftext|>"), added(100, "<tool>", False))
        assert load_tokenizer(directory, VOCABULARY).decode([1, 98, 99, 100]) == "1<tool>"

    def test_a_stop_string_made_of_a_special_token_stops(self, owners):
        """What is decoded is what stop strings are looked for in."""
        tokenizer = load_tokenizer(with_added(owners, added(98, "</answer>")), VOCABULARY)
        pieces = tokenizer.token_bytes()
        assert pieces[98] == b"</answer>" and pieces[IM_END] == b""
        for index, piece in enumerate(pieces):
            assert piece.decode() == tokenizer.decode([index])

    def test_the_list_has_every_tag_that_the_formats_are_made_of(self):
        """Those of all prompts, and those that their readers look for."""
        view, problem = prompts.View(("1", "2"), (1, 0), ("c",), (1, 2)), Problem("", 0, "1 + 1", "1+1", ("2",))
        texts = [inspect.getsource(prompts)]
        for stage in STAGES:
            texts += [m["content"] for m in FORMATS["chat"].family.render(stage, problem, view, "")]
        tags = set(re.findall(r"<(/?[a-z]+)(?=[ >])", "\n".join(texts)))
        assert {"answer", "/answer", "best", "/best", "/think", "critique"} <= tags
        assert {f"<{tag}>" for tag in tags} <= SPOKEN
        assert {*prompts._COMPACT_RESERVED} <= SPOKEN


class TestAddedTokens:
    def test_those_that_only_the_tokenizers_config_has(self, owners):
        tokens = {"98": {"content": "<tool>", "special": False}, "99": {"content": "<|x|>", "special": True}}
        known = {"96": {"content": "<|im_start|>", "special": True}}
        directory = owners(tokenizer_config={"added_tokens_decoder": known | tokens})
        ours, theirs = read_model(directory)[1], pretrained(directory)
        text = "1<tool>2<|x|>3<|im_end|>"
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False) == [1, 98, 2, 99, 3, 97]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)

    @pytest.mark.parametrize(
        ("tokens", "words"),
        [
            ({"120": {"content": "<tool>"}}, "'<tool>' has id 120, but 98 by tokenizer.json"),
            ({"5": {"content": "<|im_end|>"}}, r"'<\|im_end\|>' has id 5, but 97 by tokenizer.json"),
            ({"98": "<tool>"}, "added_tokens_decoder is not ids and their tokens"),
            (["<tool>"], "added_tokens_decoder is not ids and their tokens"),
        ],
        ids=str,
    )
    def test_what_the_two_files_disagree_on_is_refused(self, owners, tokens, words):
        with pytest.raises(ValueError, match=words):
            read_model(owners(tokenizer_config={"added_tokens_decoder": tokens}))


NAMED = [{"name": "tool_use", "template": "T{{ messages[0].content }}"}]
DEFAULT = {"name": "default", "template": "D{{ messages[0].content }}"}
TEMPLATES = {
    "null": ({"tokenizer_config": {"chat_template": None}}, None),
    "empty": ({"tokenizer_config": {"chat_template": ""}}, None),
    "absent": ({}, None),
    "named ones without a default": ({"tokenizer_config": {"chat_template": NAMED}}, None),
    "no named ones": ({"tokenizer_config": {"chat_template": []}}, None),
    "named ones with a default": ({"tokenizer_config": {"chat_template": [*NAMED, DEFAULT]}}, "Dhi"),
    "one": ({"tokenizer_config": {"chat_template": DEFAULT["template"]}}, "Dhi"),
    "of a processor": ({"chat_template": {"chat_template": DEFAULT["template"]}}, None),
}
HI = [{"role": "user", "content": "hi"}]


class TestTemplates:
    @pytest.mark.parametrize("case", TEMPLATES)
    def test_chat_where_there_is_one_for_plain_chats_else_compact(self, owners, case):
        files, rendered = TEMPLATES[case]
        directory = owners(**files)
        (directory / "chat_template.jinja").unlink()
        tokenizer = read_model(directory)[1]
        assert choose_format("auto", tokenizer).family.version.startswith("compact" if rendered is None else "chat")
        if rendered is None:
            with pytest.raises(ValueError, match="no chat template: give the prompt as plain text"):
                tokenizer.encode(HI)
        else:
            assert tokenizer.encode(HI) == tokenizer.encode(rendered)
            assert pretrained(directory).apply_chat_template(HI, tokenize=False) == rendered

    def test_files_go_before_the_config(self, owners):
        directory = owners(tokenizer_config={"chat_template": "no"})
        (directory / "chat_template.jinja").write_text("F{{ messages[0].content }}")
        assert read_model(directory)[1].encode(HI) == read_model(directory)[1].encode("Fhi")
        assert pretrained(directory).apply_chat_template(HI, tokenize=False) == "Fhi"

    def test_additional_files_without_a_default_are_no_default(self, owners):
        directory = owners(tokenizer_config={"chat_template": "no"})
        (directory / "additional_chat_templates").mkdir()
        (directory / "chat_template.jinja").rename(directory / "additional_chat_templates" / "rag.jinja")
        assert read_model(directory)[1].render_chat is None
        with pytest.raises(ValueError, match="no default specified"):
            pretrained(directory).apply_chat_template(HI, tokenize=False)

    @pytest.mark.parametrize(
        "template", [5, [1], [{"name": "default"}], [{"name": "default", "template": 5}]], ids=repr
    )
    def test_what_is_no_template_is_an_error_that_names_the_file(self, owners, template):
        directory = owners(tokenizer_config={"chat_template": template})
        (directory / "chat_template.jinja").unlink()
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: field 'chat_template' must be"):
            read_model(directory)


def stored(directory):
    return {k: v for path in directory.glob("*.safetensors") for k, v in safetensors.numpy.load_file(path).items()}


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_heads(directory, tie, change):
    """A checkpoint in one file or in two, whose matrices at both ends `change` has had."""
    tensors = change(stored(directory))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": tie}))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def another_head(tensors, dtype=np.float32):
    noise = np.random.default_rng(0).normal(size=tensors[EMBED].shape).astype(dtype)
    return tensors | {HEAD: noise}


def only_head(tensors):
    return {name: tensor for name, tensor in another_head(tensors).items() if name != EMBED}


class TestHeads:
    """What is expected are the stored tensors and NumPy's product with them; where torch is, Hugging Face's too."""

    @pytest.mark.parametrize("fixture", ["qwen3_tied", "qwen2_tied"])
    @pytest.mark.parametrize("shards", [1, 2])
    def test_another_head_than_the_config_says_is_the_head_and_is_said(self, owners, fixture, shards, caplog, tmp_path):
        directory = write_heads(owners(fixture), True, another_head)
        if shards == 2:
            split(directory)
        policy, tensors = qwen.load(directory), stored(directory)
        assert "tie_word_embeddings=true" in caplog.text and "they are not tied" in caplog.text
        np.testing.assert_array_equal(policy.params["embed"], tensors[EMBED])
        np.testing.assert_array_equal(policy.params["lm_head"], tensors[HEAD].T)
        assert policy.config.tie_word_embeddings is False
        assert policy.config.num_parameters == sum(tensor.size for tensor in tensors.values())
        same_as_hugging_face(policy, directory)
        qwen.save(policy, tmp_path / "saved")
        caplog.clear()
        again = qwen.load(tmp_path / "saved")
        assert qwen.fingerprint(again.params) == qwen.fingerprint(policy.params) and not caplog.records

    def test_the_logits_are_the_heads(self, owners):
        """Only the head is another: final states of the tied model, times the stored matrix."""
        tied = qwen.load(owners())
        states_D = np.linalg.lstsq(
            np.asarray(tied.params["embed"], np.float64),
            np.asarray(qwen.logits(tied.params, tied.config, [[1, 2]]))[0, -1],
            None,
        )[0]
        directory = write_heads(owners(), True, another_head)
        policy = qwen.load(directory)
        found_V = np.asarray(qwen.logits(policy.params, policy.config, [[1, 2]]))[0, -1]
        np.testing.assert_allclose(found_V, stored(directory)[HEAD] @ states_D, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("fixture", ["qwen3_tied", "qwen2_tied"])
    def test_a_tied_model_whose_file_has_the_head_only(self, owners, fixture, caplog):
        directory = write_heads(owners(fixture), True, only_head)
        policy = qwen.load(directory)
        np.testing.assert_array_equal(policy.params["embed"], stored(directory)[HEAD])
        assert "lm_head" not in policy.params and policy.config.tie_word_embeddings and not caplog.records
        same_as_hugging_face(policy, directory)

    def test_equal_heads_of_another_precision_are_tied(self, owners, caplog):
        """The one is the other in the dtype that is asked for."""
        directory = write_heads(owners(), True, lambda t: t | {HEAD: t[EMBED].astype(variants.DTYPES["bfloat16"])})
        assert "lm_head" in qwen.load(directory).params and caplog.records
        caplog.clear()
        assert "lm_head" not in qwen.load(directory, variants.DTYPES["bfloat16"]).params and not caplog.records

    @pytest.mark.parametrize("change", [only_head, lambda t: t], ids=["head only", "embeddings only"])
    def test_an_untied_model_needs_both(self, owners, change):
        with pytest.raises(ValueError, match=r"1 tensors missing: (lm_head|model\.embed_tokens)\.weight"):
            qwen.load(write_heads(owners(), False, change))

    def test_neither_is_missing_what_was_asked_for(self, owners):
        with pytest.raises(ValueError, match=r"1 tensors missing: model\.embed_tokens\.weight"):
            qwen.load(write_heads(owners(), True, lambda t: {k: v for k, v in t.items() if k != EMBED}))

    def test_a_head_of_another_shape_is_named(self, owners):
        with pytest.raises(ValueError, match=r"'lm_head\.weight' is \(102, 32\), expected \(103, 32\)"):
            qwen.load(write_heads(owners(), True, lambda t: t | {HEAD: t[EMBED][:-1]}))


def split(directory):
    tensors = stored(directory)
    (directory / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (name == HEAD)}-of-00002.safetensors" for name in tensors}
    for file in set(files.values()):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        safetensors.numpy.save_file(part, directory / file, {"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def same_as_hugging_face(policy, directory, vocabulary=VOCABULARY):
    """What the installed transformers computes from the directory, where torch happens to be."""
    try:
        import torch
        import transformers
    except ImportError:
        return
    torch.set_num_threads(1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens_BT = make_golden.random_tokens(3, (2, 9)) % vocabulary
    found = np.asarray(qwen.logits(policy.params, policy.config, tokens_BT))
    np.testing.assert_allclose(found, make_golden.hf_logits(theirs, tokens_BT), rtol=0, atol=5e-5)
