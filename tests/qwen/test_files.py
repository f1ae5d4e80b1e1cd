"""Checkpoint files: what is refused and by which name, what saving leaves, and the hub's cache."""

import json
import math
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import qwen
from rlswarm_jax.qwen import tensors
from tests.qwen import make_golden, variants

SHARDED, PLAIN = "sharded", "qwen3-gqa2"
INDEX = "model.safetensors.index.json"
ROOT = Path(__file__).parents[2]


def refuses(directory, *named):
    with pytest.raises(ValueError) as error:
        qwen.load(directory)
    for words in named:
        assert str(words) in str(error.value)


def same_params(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), one, other))


def edit_index(directory, edit):
    index = json.loads((directory / INDEX).read_text())
    edit(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


class TestTensors:
    def test_every_missing_unexpected_and_misshapen_tensor_is_named(self, tmp_path):
        directory = variants.write(PLAIN, tmp_path)
        stored = safetensors.numpy.load_file(directory / "model.safetensors")
        for layer in (0, 1):
            del stored[f"model.layers.{layer}.mlp.up_proj.weight"]
        del stored["model.norm.weight"]
        stored["model.layers.1.self_attn.q_proj.bias"] = np.ones(32, np.float32)
        stored["model.layers.2.mlp.up_proj.weight"] = np.ones((40, 24), np.float32)
        for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
            stored[name] = stored[name].T.copy()
        safetensors.numpy.save_file(stored, directory / "model.safetensors")
        refuses(
            directory,
            directory,
            "3 tensors missing: model.layers.{0,1}.mlp.up_proj.weight, model.norm.weight",
            "2 tensors unexpected: model.layers.1.self_attn.q_proj.bias, model.layers.2.mlp.up_proj.weight",
            "'model.layers.0.mlp.down_proj.weight' is (40, 24), expected (24, 40)",
            "'model.layers.1.self_attn.k_proj.weight' is (24, 16), expected (16, 24)",
        )

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_every_number_widens_exactly(self, dtype, tmp_path):
        """Denormals, infinities and signed zeros too; the hidden size is that of all 16-bit numbers there are."""
        numbers = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(variants.DTYPES[dtype])
        directory = variants.write(PLAIN, tmp_path)
        stored = variants.tensors(variants.CONFIGS[PLAIN], dtype)
        (rows, width), name = stored["model.embed_tokens.weight"].shape, "model.embed_tokens.weight"
        for part in np.array_split(numbers, math.ceil(numbers.size / (rows * width))):
            stored[name] = np.resize(part, (rows, width))
            safetensors.numpy.save_file(stored, directory / "model.safetensors")
            policy = qwen.load(directory)
            found = np.asarray(policy.params["embed"])
            expected = stored[name].astype(np.float32)
            number = ~np.isnan(expected)
            assert found.dtype == np.float32
            assert (found.view(np.uint32) == expected.view(np.uint32))[number].all() and np.isnan(found[~number]).all()

    @pytest.mark.parametrize("padding", range(0, 64, 8))
    def test_params_do_not_change_with_their_file(self, padding, tmp_path):
        """At some alignments an array could share the file's memory."""
        directory = variants.write(PLAIN, tmp_path)
        path = directory / "model.safetensors"
        raw = path.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        path.write_bytes(struct.pack("<Q", size + padding) + raw[8 : 8 + size] + b" " * padding + raw[8 + size :])
        params = qwen.load(directory).params
        before = qwen.fingerprint(params)
        with path.open("r+b") as file:
            file.seek(8 + size + padding)
            file.write(bytes(len(raw) - 8 - size))
        assert qwen.fingerprint(params) == before

    def test_numbers_at_odd_addresses(self, tmp_path):
        directory = variants.write(PLAIN, tmp_path)
        expected, path = qwen.load(directory).params, directory / "model.safetensors"
        raw = path.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        path.write_bytes(struct.pack("<Q", size + 1) + raw[8 : 8 + size] + b" " + raw[8 + size :])
        assert same_params(qwen.load(directory).params, expected)


class TestIndex:
    def test_a_shard_that_the_index_names_is_missing(self, tmp_path):
        directory = variants.write(SHARDED, tmp_path)
        lost = "model-00002-of-00003.safetensors"
        names = safetensors.numpy.load_file(directory / lost).keys()
        (directory / lost).unlink()
        refuses(directory, directory / lost, "does not exist", tensors.listed(names))

    def test_a_tensor_in_two_shards(self, tmp_path):
        directory = variants.write(SHARDED, tmp_path)
        twice = directory / "model-00003-of-00003.safetensors"
        stored = safetensors.numpy.load_file(twice) | {"model.norm.weight": np.ones(32, np.float32)}
        safetensors.numpy.save_file(stored, twice)
        refuses(directory, "'model.norm.weight' is in both", twice.name, "model-00001-of-00003.safetensors")

    def test_an_index_that_does_not_say_what_is_there(self, tmp_path):
        wrong = variants.write(SHARDED, tmp_path / "wrong")
        edit_index(wrong, lambda names: names.update({"model.norm.weight": "model-00002-of-00003.safetensors"}))
        refuses(wrong, wrong / INDEX, "disagree", "model.norm.weight")
        less = variants.write(SHARDED, tmp_path / "less")
        edit_index(less, lambda names: names.pop("lm_head.weight"))
        refuses(less, less / INDEX, "lm_head.weight")

    def test_a_shard_that_the_index_does_not_name_is_not_read(self, tmp_path):
        directory = variants.write(SHARDED, tmp_path)
        (directory / "other.safetensors").write_bytes(b"nonsense")
        qwen.load(directory)

    def test_a_single_file_goes_before_an_index_as_in_transformers(self, tmp_path):
        directory = variants.write(PLAIN, tmp_path)
        (directory / INDEX).write_text("nonsense")
        qwen.load(directory)

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\0b", 3])
    def test_names_that_lead_out_of_the_directory(self, name, tmp_path):
        directory = variants.write(SHARDED, tmp_path / "inside")
        (directory / "sub").mkdir()
        for outside in (tmp_path / "secret.safetensors", directory / "sub" / "x.safetensors"):
            shutil.copy(directory / "model-00001-of-00003.safetensors", outside)
        edit_index(directory, lambda names: names.update({"model.norm.weight": name}))
        refuses(directory, directory / INDEX, repr(name), "not the name of a file in its directory")

    @pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"weight_map": []}', b"[" * 100_000, b"\xff"], ids=repr)
    def test_nonsense(self, content, tmp_path):
        directory = variants.write(SHARDED, tmp_path)
        (directory / INDEX).write_bytes(content)
        refuses(directory, directory / INDEX, "not a readable index")


def safetensors_file(path, header, body=bytes(64), size=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + body)
    return path


def entry(dtype="F32", shape=(4, 4), offsets=(0, 64)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class TestHeaders:
    def test_a_plain_one(self, tmp_path):
        found = tensors.read_header(safetensors_file(tmp_path / "x", {"a": entry(), "__metadata__": {"format": "pt"}}))
        assert found["a"].shape == (4, 4) and found["a"].end - found["a"].start == 64

    @pytest.mark.parametrize(
        ("header", "words"),
        [
            ({"a": entry(offsets=(0, 128), shape=(4, 8))}, "end at byte"),
            ({"a": entry(offsets=(0, 32), shape=(4, 2))}, "end at byte"),
            ({"a": entry(offsets=(0, 60))}, "'a' of shape [4, 4] and dtype F32 cannot lie at [0, 60]"),
            ({"a": entry(offsets=(64, 0))}, "cannot lie"),
            ({"a": entry(offsets=(-64, 0))}, "none below 0"),
            ({"a": entry(shape=(-4, -4))}, "none below 0"),
            ({"a": entry(shape=(4.0, 4))}, "whole numbers"),
            ({"a": entry(shape=(True, 16))}, "whole numbers"),
            ({"a": entry(shape=(1 << 62, 1 << 62))}, "cannot lie"),
            ({"a": entry(offsets=(0, float("nan")))}, "whole numbers"),
            ({"a": entry(offsets=(0, 32, 64))}, "cannot lie"),
            ({"a": entry(dtype="I64")}, "'a' has dtype 'I64'"),
            ({"a": entry(dtype="F8_E4M3")}, "'F8_E4M3'"),
            ({"a": entry(), "b": entry()}, "'b' begins at byte"),
            ({"a": entry(), "b": entry(shape=(2, 4), offsets=(32, 64))}, "'b' begins at byte"),
            ({"a": entry(shape=(2, 4), offsets=(32, 64))}, "'a' begins at byte"),
            ({"a": [1]}, "'a' needs dtype"),
            ({"a": {"dtype": "F32", "shape": [4, 4]}}, "'a' needs dtype"),
            ([], "not an object"),
            (b'{"a": 1, "a": 2}', "twice"),
            (b"[" * 100_000, ""),
            (b"1" * 5_000, ""),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_hostile_ones_are_refused(self, header, words, tmp_path):
        path = safetensors_file(tmp_path / "x.safetensors", header)
        with pytest.raises(ValueError) as error:
            tensors.read_header(path)
        assert f"{path} is not a readable safetensors file" in str(error.value) and words in str(error.value)

    @pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 10_000_001, 1_000], ids=str)
    def test_headers_longer_than_the_file(self, size, tmp_path):
        with pytest.raises(ValueError, match=f"header of {size} bytes"):
            tensors.read_header(safetensors_file(tmp_path / "x", {"a": entry()}, size=size))

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_what_is_read_is_what_the_safetensors_library_reads(self, tmp_path_factory, data):
        """Headers near a good one: whatever is accepted is accepted there too, with the same numbers."""
        small = st.integers(-1, 9) | st.sampled_from([16, 24, 32, 48, 64, 1 << 63])
        entries = st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "f32"]),
                "shape": st.lists(small, max_size=3),
                "data_offsets": st.lists(small, min_size=2, max_size=2) | st.just([0, 16]) | st.just([16, 32]),
            }
        )
        header = data.draw(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries, max_size=3))
        length = data.draw(st.sampled_from([0, 16, 32, 48]))
        path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
        safetensors_file(path, header, np.arange(length, dtype=np.uint8).tobytes())
        try:
            found = tensors.read_header(path)
        except ValueError:
            return
        if "__metadata__" in header:  # the library wants strings in it, which nothing here reads
            header.pop("__metadata__")
            safetensors_file(path, header, np.arange(length, dtype=np.uint8).tobytes())
            found = tensors.read_header(path)
        theirs = safetensors.numpy.load_file(path)
        assert found.keys() == theirs.keys()
        for name, stored in found.items():
            assert stored.dtype == theirs[name].dtype and stored.shape == theirs[name].shape
            if theirs[name].size:
                assert stored.map().tobytes() == theirs[name].tobytes()


class TestSave:
    @pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
    def test_shards(self, dtype, tmp_path):
        before = qwen.load(variants.write(SHARDED, tmp_path / "theirs"), dtype)
        qwen.save(before, tmp_path / "ours", max_shard_bytes=9_000)
        files = sorted((tmp_path / "ours").glob("*.safetensors"))
        assert [f.name for f in files] == [
            f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
        ]
        held = {file.name: safetensors.numpy.load_file(file) for file in files}
        index = json.loads((tmp_path / "ours" / INDEX).read_text())
        assert index["weight_map"] == {name: file for file, found in held.items() for name in found}
        assert index["metadata"]["total_size"] == sum(t.nbytes for found in held.values() for t in found.values())
        for found in held.values():
            assert len(found) == 1 or sum(t.nbytes for t in found.values()) <= 9_000
        stored = {name: tensor for found in held.values() for name, tensor in found.items()}
        original = variants.tensors(variants.CONFIGS["qwen3-untied"])
        assert stored.keys() == original.keys()
        for name, tensor in original.items():
            np.testing.assert_array_equal(stored[name], tensor.astype(dtype))
        assert same_params(qwen.load(tmp_path / "ours", dtype).params, before.params)

    def test_a_file_is_what_the_library_writes(self, tmp_path):
        """Metadata that transformers asks for, 8-byte aligned, nothing else."""
        qwen.save(qwen.load(variants.write(PLAIN, tmp_path / "theirs")), tmp_path / "ours")
        with safetensors.safe_open(tmp_path / "ours" / "model.safetensors", "np") as file:
            assert file.metadata() == {"format": "pt"}
        (size,) = struct.unpack("<Q", (tmp_path / "ours" / "model.safetensors").read_bytes()[:8])
        assert size % 8 == 0
        assert {p.name for p in (tmp_path / "ours").iterdir()} == {
            "model.safetensors",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }

    def test_saving_over_a_checkpoint_replaces_it(self, tmp_path):
        first = qwen.load(variants.write(PLAIN, tmp_path / "a"))
        second = qwen.Policy(first.config, jax.tree.map(lambda w: w + 1, first.params), first.tokenizer)
        for policy in (first, second):
            qwen.save(policy, tmp_path / "out")
            assert same_params(qwen.load(tmp_path / "out").params, policy.params)

    def test_another_checkpoints_shards_are_not_mixed_with_ours(self, tmp_path):
        policy = qwen.load(variants.write(SHARDED, tmp_path))
        with pytest.raises(ValueError, match=r"another checkpoint's model-00001-of-00003\.safetensors"):
            qwen.save(policy, tmp_path)
        assert same_params(qwen.load(tmp_path).params, policy.params)

    def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(self, tmp_path):
        """A limit on the size of files stands for the disk's."""
        policy = qwen.load(variants.write(PLAIN, tmp_path))
        bigger = qwen.Policy(policy.config, jax.tree.map(lambda w: w + 1, policy.params), policy.tokenizer)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(qwen.SaveError) as error:
                qwen.save(bigger, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(error.value) == f"cannot save 0.0 MB of weights to {tmp_path}: File too large."
        assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
        assert same_params(qwen.load(tmp_path).params, policy.params)

    def test_a_directory_that_cannot_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        policy = qwen.load(variants.write(PLAIN, tmp_path / "a"))
        with pytest.raises(qwen.SaveError, match=r"cannot save .* to .*file/x: Not a directory"):
            qwen.save(policy, tmp_path / "file" / "x")

    def test_a_kill_while_saving_leaves_no_checkpoint(self, tmp_path):
        script = f"""
import os, signal
from rlswarm_jax import qwen
from rlswarm_jax.qwen import weights
policy = qwen.load({str(variants.write(PLAIN, tmp_path / "a"))!r})
original, calls = weights.at, []
def dies(tree, path):
    calls.append(path)
    if len(calls) == 60:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(tree, path)
weights.at = dies
qwen.save(policy, {str(tmp_path / "out")!r})
"""
        assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -9
        (staged,) = (tmp_path / "out").iterdir()
        assert (staged / "model.safetensors").stat().st_size > 0
        for directory in (tmp_path / "out", staged):
            refuses(directory, directory / "config.json", "does not exist")
        qwen.save(qwen.load(tmp_path / "a"), tmp_path / "out")
        assert not staged.exists() and same_params(qwen.load(tmp_path / "out").params, qwen.load(tmp_path / "a").params)


def hub_cache(root, case=PLAIN, name="owner/model", ref="main", commit="c" * 40):
    """A checkpoint as `huggingface_hub` caches it: blobs, and snapshots of symbolic links to them."""
    repo = root / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for path in variants.write(case, root / "written").iterdir():
        blob = repo / "blobs" / f"{hash(path.name):x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        path.replace(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


class TestHub:
    @pytest.mark.parametrize("case", [PLAIN, SHARDED])
    def test_what_is_cached_is_loaded_offline(self, case, cache, tmp_path):
        hub_cache(cache, case)
        expected = qwen.load(variants.write(case, tmp_path / "plain"))
        assert same_params(qwen.load("owner/model").params, expected.params)

    def test_a_revision(self, cache):
        hub_cache(cache, ref="v1")
        qwen.load("owner/model@v1")
        refuses("owner/model", "'owner/model'")
        refuses("owner/model@v2", "'owner/model@v2'")

    def test_what_is_not_cached_is_one_clear_sentence_offline(self, cache):
        refuses("owner/other", "'owner/other'", cache, "HF_HUB_OFFLINE is set", "hf download owner/other", "directory")

    def test_without_a_network_too(self, cache, monkeypatch):
        """Nothing answers at the hub's address."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        hub_cache(cache)
        qwen.load("owner/model")
        refuses("owner/other", "'owner/other'", cache, "the hub cannot be reached", "hf download owner/other")

    def test_a_half_cached_snapshot_names_the_file(self, cache):
        snapshot = hub_cache(cache)
        (snapshot / "model.safetensors").unlink()
        refuses("owner/model", snapshot, "neither model.safetensors")

    def test_a_name_that_is_none(self, cache):
        refuses("owner/na me", "'owner/na me'")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process's memory")
def test_loading_needs_less_than_half_the_weights_memory_beside_them(tmp_path):
    """Peak of everything resident, mapped files included, over what was there before; 100 MB of bfloat16, kept."""
    fields = variants.CONFIGS[PLAIN] | {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8}
    drawn = {name: np.ones(shape, variants.DTYPES["bfloat16"]) for name, shape in variants.shapes(fields).items()}
    safetensors.numpy.save_file(drawn, tmp_path / "model.safetensors")
    script = f"""
import re, jax, jax.numpy as jnp
from pathlib import Path
from rlswarm_jax.qwen import config, weights
def resident(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
jax.block_until_ready(jnp.ones(3) + 1)
before = resident("VmRSS")
params = weights.load_params(Path({str(tmp_path)!r}), config.from_hf({fields!r}), jnp.bfloat16)
print((resident("VmHWM") - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert 0.9 < float(done.stdout) < 1.5, done.stderr


def test_a_place_is_given_every_parameter_once_as_it_is_kept(tmp_path):
    directory = make_golden.FIXTURES / "qwen3_untied"
    seen = {}

    def place(path, array):
        assert path not in seen and array.flags.c_contiguous
        seen[path] = array
        return jax.device_put(array)

    placed, plain = (qwen.load(directory, **options).params for options in ({"place": place}, {}))
    assert jax.tree.structure(placed) == jax.tree.structure(plain)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(placed), jax.tree.leaves(plain), strict=True):
        names = tuple(getattr(part, "key", getattr(part, "idx", None)) for part in path)
        np.testing.assert_array_equal(seen[names], theirs)
        np.testing.assert_array_equal(ours, theirs)
