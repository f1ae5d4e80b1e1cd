"""What a run has learned, as others open it: runs of all three drivers, and what cannot be exported."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments import export
from rlswarm_jax import assets, files, qwen
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.qwen import lora, peft
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import build, simulated
from tests.grpo import tiny
from tests.qwen import test_owners_files as owners

CHECKOUT = Path(__file__).parent.parent.parent
SMALL = [
    "--config=configs/solo.py:smoke",
    "--config.swarm.nodes=2",
    "--config.rounds=3",
    "--config.checkpoint_every=2",
    "--config.evaluation.problems=4",
    "--config.evaluation.rows=4",
    "--config.swarm.local_groups=2",
    "--config.sampling.group_size=8",
    "--config.learn.learning_rate=0.1",
    "--config.model.path=embedded:base",
    "--config.sampling.temperature=1.5",  # so that answers differ
    "--config.evaluation.every=1",
    "--config.checkpoints.best=True",
    "--config.profile.rounds=(1,2)",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished simulation of two nodes."""
    directory = tmp_path_factory.mktemp("export") / "run"
    with tiny.optimizations(False):
        assert simulated.run(cli.parse([*SMALL, f"--workdir={directory}"])) == 0
    return directory


def test_the_best_on_held_out_problems_is_kept_and_exported(run, tmp_path):
    rows = read_rows(run / files.METRICS_FILE)
    for node in (0, 1):
        measured = [(row["held_out/accuracy"], -row["round"]) for row in rows if row["node"] == node]
        measured += [(row["final/accuracy"], -row["round"] - 1) for row in rows if "final/accuracy" in row][node:][:1]
        accuracy, round_ = max(measured)  # the first of them
        best = Checkpoints(run / files.BEST_FOLDER / str(node), keep=1)
        assert best.latest == -round_
        (state,), told = best.restore(
            -round_, [build.first_state(config := export.read_config(run), qwen.load(build.model_path(config)))]
        )
        assert json.loads(told) == {"round": -round_, "accuracy": accuracy}
        best.close()
        policy = exported(run, tmp_path / str(node), "--node", str(node), "--best")
        assert qwen.fingerprint(policy.params) == qwen.fingerprint(state.params)


def test_a_trace_of_the_rounds_that_were_asked_for_is_there_and_holds_what_happened(run):
    """In the formats that TensorBoard and XProf open."""
    (trace,) = (run / files.PROFILE_FOLDER).glob("plugins/profile/*/*.trace.json.gz")
    names = [event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    # of that round of the first node, and of what the other did meanwhile: a part of two rounds at most
    assert (
        1 <= names.count("learn") <= 3 and names.count("sample") >= 1 and any("PjitFunction" in name for name in names)
    )
    (planes,) = trace.parent.glob("*.xplane.pb")
    assert b"/host:CPU" in planes.read_bytes()


def exported(run, directory, *options):
    assert export.main([str(run), *options, str(directory)]) == 0
    return qwen.load(directory)


def refuses(capsys, *arguments):
    """Returns the one sentence."""
    assert export.main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


def recorded(run):
    """The fingerprints of the last weights, by name, as the run itself noted them."""
    return json.loads((run / files.SUMMARY_FILE).read_text())["weights"]


class TestSimulated:
    def test_every_nodes_last_weights(self, run, tmp_path, capsys):
        weights = recorded(run)
        assert len(set(weights.values())) == 2
        for number, (name, fingerprint) in enumerate(weights.items()):
            for called in (name, str(number), f"node-{number}"):
                policy = exported(run, tmp_path / called, "--node", called)
                assert qwen.fingerprint(policy.params) == fingerprint
                assert name in capsys.readouterr().out

    def test_without_a_name_the_first_and_the_others_are_named(self, run, tmp_path, capsys):
        first, second = recorded(run)
        assert qwen.fingerprint(exported(run, tmp_path / "a").params) == recorded(run)[first]
        said = capsys.readouterr().out
        assert said.index(first) < said.index(f"others of this run, with --node: {second}")

    def test_the_libraries_open_it(self, run, tmp_path):
        """Hugging Face's names and layout, its tokenizer, its configs; its logits where torch happens to be."""
        import transformers

        before, policy = qwen.load(assets.BASE), exported(run, tmp_path / "a")
        tensors = safetensors.numpy.load_file(tmp_path / "a" / "model.safetensors")
        assert tensors.keys() == safetensors.numpy.load_file(assets.BASE / "model.safetensors").keys()
        up = tensors["model.layers.1.mlp.up_proj.weight"]
        np.testing.assert_array_equal(up.T, policy.params["layers"][1]["up"])
        assert not np.array_equal(up.T, before.params["layers"][1]["up"])
        for kind in (transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer):
            theirs = kind.from_pretrained(tmp_path / "a")
            assert theirs.encode("12+5=<|endoftext|>") == before.tokenizer.encode("12+5=<|endoftext|>")
        config = transformers.AutoConfig.from_pretrained(tmp_path / "a")
        assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("qwen3", 64, 2)
        generation = transformers.GenerationConfig.from_pretrained(tmp_path / "a")
        assert {*np.atleast_1d(generation.eos_token_id)} == {*before.config.eos_token_ids} == {config.eos_token_id}
        owners.same_as_hugging_face(policy, tmp_path / "a", vocabulary=before.config.vocab_size)


class TestAdapter:
    @pytest.fixture(scope="class", autouse=True)
    def compile_as_the_run_did(self):
        """Sums of base and adapter are rounded by the same programs then."""
        with tiny.optimizations(False):
            yield

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        """A finished simulation of two nodes that trained an adapter each."""
        directory = tmp_path_factory.mktemp("adapter") / "run"
        adapter = ["--config.lora.rank=4", "--config.lora.dropout=0.1", "--config.lora.targets=('q', 'down')"]
        with tiny.optimizations(False):
            assert simulated.run(cli.parse([*SMALL, *adapter, f"--workdir={directory}"])) == 0
        return directory

    def test_the_weights_are_base_and_adapter_and_the_adapter_is_peft_s(self, run, tmp_path):
        for number, fingerprint in enumerate(recorded(run).values()):
            policy = exported(run, tmp_path / f"whole{number}", "--node", str(number))
            assert qwen.fingerprint(policy.params) == fingerprint
            there = tmp_path / f"adapter{number}"
            assert export.main([str(run), "--node", str(number), "--adapter", str(there)]) == 0
            about = peft.read_config(there)
            assert (about.rank, about.targets, about.layers) == (4, ("q", "down"), (0, 1))
            base = qwen.load(assets.BASE)
            merged = lora.merged(base.params, peft.read(there, base.config, about), about)
            assert qwen.fingerprint(merged) == fingerprint
        assert len(set(recorded(run).values())) == 2

    def test_another_run_begins_with_it(self, run, tmp_path):
        assert export.main([str(run), "--adapter", str(tmp_path / "a")]) == 0
        config = cli.parse([*SMALL, f"--config.lora.path={tmp_path / 'a'}"]).config
        state = build.first_state(config, build.load_policy(config))
        trained = peft.read(tmp_path / "a", build.load_policy(config).config, peft.read_config(tmp_path / "a"))
        tiny.assert_bit_equal(state.params, trained)
        assert build.make_learner_config(config).lora.scale == 4.0


@pytest.fixture
def by_hand(run, tmp_path):
    """The folder of a run as a driver leaves it, with states whose steps tell them apart; states by folder."""

    def make(driver, folders, *, model="embedded"):
        directory = tmp_path / driver
        directory.mkdir()
        fields = json.loads((run / files.CONFIG_FILE).read_text()) | {"driver": driver}
        fields["model"]["path"] = model
        (directory / files.CONFIG_FILE).write_text(json.dumps(fields))
        config = export.read_config(directory)
        policy = qwen.load(build.model_path(config))
        states = {}
        for number, (own, name) in enumerate(folders.items()):
            place = directory / own
            place.mkdir(exist_ok=True)
            (place / files.METRICS_FILE).write_text(json.dumps({"node": 0, "name": name, "round": 0}) + '\n{"no')
            first = build.first_state(config, policy)
            states[own] = first.replace(params=jax.tree.map(lambda w, n=number: w + n + 1, first.params))
            checkpoints = Checkpoints(place / files.CHECKPOINT_FOLDER)
            checkpoints.save(2, [first], b"older")
            checkpoints.save(4, [states[own]], b"newest")
            checkpoints.close()
        return directory, states

    return make


class TestLive:
    def test_a_swarm_of_processes(self, by_hand, tmp_path, capsys):
        names = {"node-0": "bold-elk", "node-1": "shy-fox", "node-10": "calm-ox", "node-2": "odd-ant"}
        directory, states = by_hand("live", names)
        (directory / "node-0.log").write_text("")
        for called, own in {"shy-fox": "node-1", "node-2": "node-2", "0": "node-0", "3": "node-10"}.items():
            policy = exported(directory, tmp_path / f"to-{called}", "--node", called)
            assert qwen.fingerprint(policy.params) == qwen.fingerprint(states[own].params)
        sentence = refuses(capsys, directory, "--node", "nobody", tmp_path / "x")
        assert "no node 'nobody'; its nodes are bold-elk, shy-fox, odd-ant, calm-ox" in sentence
        shutil.copy(directory / files.CONFIG_FILE, directory / "node-1")  # as a launcher does
        inside = exported(directory / "node-1", tmp_path / "inside")
        assert qwen.fingerprint(inside.params) == qwen.fingerprint(states["node-1"].params)

    def test_a_single_node(self, by_hand, tmp_path):
        directory, states = by_hand("node", {".": "bold-elk"})
        for options in ((), ("--node", "bold-elk")):
            policy = exported(directory, tmp_path / f"to{len(options)}", *options)
            assert qwen.fingerprint(policy.params) == qwen.fingerprint(states["."].params)

    def test_one_without_an_adapter_has_none_to_export(self, by_hand, tmp_path, capsys):
        directory, _ = by_hand("node", {".": "bold-elk"})
        said = refuses(capsys, directory, "--adapter", tmp_path / "out")
        assert "trained the weights themselves (config.lora.rank is 0): leave out --adapter" in said

    def test_a_run_from_before_some_fields_were_there(self, by_hand, tmp_path):
        directory, states = by_hand("node", {".": "bold-elk"})
        fields = json.loads((directory / files.CONFIG_FILE).read_text())
        fields["learn"] = {"learning_rate": fields["learn"]["learning_rate"]}
        (directory / files.CONFIG_FILE).write_text(json.dumps(fields))
        policy = exported(directory, tmp_path / "out")
        assert qwen.fingerprint(policy.params) == qwen.fingerprint(states["."].params)

    def test_what_a_model_has_beside_its_weights_goes_along(self, by_hand, tmp_path):
        """Chat template, untied heads and end tokens of an owner's directory."""
        base = tmp_path / "base"
        shutil.copytree(owners.make_golden.FIXTURES / "qwen3_tied", base)
        owners.write_heads(base, True, owners.another_head)
        directory, states = by_hand("node", {".": "bold-elk"}, model=str(base))
        policy = exported(directory, tmp_path / "out")
        assert qwen.fingerprint(policy.params) == qwen.fingerprint(states["."].params)
        assert "lm_head" in policy.params and {*policy.config.eos_token_ids} == {96, 97}
        chat = [{"role": "user", "content": "1+1?"}]
        assert policy.tokenizer.encode(chat) == qwen.load(base).tokenizer.encode(chat)
        owners.same_as_hugging_face(policy, tmp_path / "out")


class TestRefusals:
    def test_a_node_that_is_not_there(self, run, tmp_path, capsys):
        sentence = refuses(capsys, run, "--node", "node-2", tmp_path / "x")
        assert f"no node 'node-2'; its nodes are {', '.join(recorded(run))}." in sentence
        assert not (tmp_path / "x").exists()

    def test_a_directory_with_something_in_it(self, run, tmp_path, capsys):
        (tmp_path / "file").write_text("mine")
        for directory in (tmp_path, tmp_path / "file"):
            assert f"{directory} is there already" in refuses(capsys, run, directory)
        assert (tmp_path / "file").read_text() == "mine"
        (tmp_path / "empty").mkdir()
        exported(run, tmp_path / "empty")

    def test_a_run_without_a_checkpoint_yet(self, run, tmp_path, capsys):
        shutil.copytree(run, tmp_path / "young", ignore=shutil.ignore_patterns(files.CHECKPOINT_FOLDER))
        sentence = refuses(capsys, tmp_path / "young", tmp_path / "x")
        assert f"{tmp_path / 'young'} has no checkpoint yet: a run writes one every 2 rounds" in sentence
        (tmp_path / "young" / files.CHECKPOINT_FOLDER).mkdir()
        assert "has no complete checkpoint yet" in refuses(capsys, tmp_path / "young", tmp_path / "x")

    @pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
    def test_what_is_no_run(self, content, tmp_path, capsys):
        if content is not None:
            (tmp_path / files.CONFIG_FILE).write_text(content)
        assert str(tmp_path) in refuses(capsys, tmp_path, tmp_path / "x")

    def test_weights_of_another_model(self, by_hand, tmp_path, capsys):
        directory, _ = by_hand("node", {".": "bold-elk"})
        fields = json.loads((directory / files.CONFIG_FILE).read_text())
        fields["model"]["path"] = str(owners.make_golden.FIXTURES / "qwen3_tied")
        (directory / files.CONFIG_FILE).write_text(json.dumps(fields))
        assert "cannot read checkpoint 4" in refuses(capsys, directory, tmp_path / "x")


def test_help_teaches():
    command = [sys.executable, "-m", "experiments.export", "--help"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    for words in ("RUN", "DIR", "--node", "experiments.export runs/quickstart", "Hugging Face", "checkpoint"):
        assert words in done.stdout
