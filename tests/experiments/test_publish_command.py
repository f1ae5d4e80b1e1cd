"""`experiments.publish` as a user runs it: what a run learned goes to a hub, onto its chain, and comes back checked."""

import hashlib
import json
import logging
import shutil
import time

import huggingface_hub
import msgspec
import pytest
import safetensors.numpy

from experiments import publish
from rlswarm_jax import assets, files, identity, qwen
from rlswarm_jax.chain import calls, devnet
from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.deployment import Rules, deploy
from rlswarm_jax.chain.local import SETTINGS
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.journal import look
from rlswarm_jax.publish.background import Background
from rlswarm_jax.publish.queue import Queue
from rlswarm_jax.qwen import lora, peft
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import folder, simulated
from tests.chain.client_world import COMMITMENT
from tests.experiments.test_export import SMALL
from tests.grpo import tiny
from tests.publish.conftest import hub
from tests.publish.hub import TOKEN
from tests.qwen import test_owners_files as owners

__all__ = ["hub"]  # a fixture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished simulation of two nodes, each of which published after each round."""
    directory = tmp_path_factory.mktemp("publish") / "run"
    to = [f"--config.publish.to={directory.parent}/out/{{node}}", "--config.publish.every=1"]
    to += ["--config.profile.rounds=()", "--config.checkpoints.best=False"]
    offer = Background.offer
    with tiny.optimizations(False), pytest.MonkeyPatch.context() as patched:  # so slow that none takes another's place
        patched.setattr(Background, "offer", lambda self, one: (offer(self, one), self.finish(lambda: False)))
        assert simulated.run(cli.parse([*SMALL, *to, f"--workdir={directory}"])) == 0
    return directory


def hash_by_hand(path):
    """The name of weights, as docs/wire-format.md has it, with the library safetensors."""
    kinds, lines = {"float32": "F32", "bfloat16": "BF16"}, []
    for name, array in sorted(safetensors.numpy.load_file(path).items()):
        shape = ",".join(map(str, array.shape))
        lines.append(f"{name} {kinds[array.dtype.name]} {shape} {hashlib.sha256(array.tobytes()).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def says(capsys, *arguments, code=0):
    assert publish.main([*map(str, arguments)]) == code
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    return said.err if code not in (0, 1) else said.out


def published(workdir):
    return Queue(workdir).sent()


class TestARun:
    def test_every_node_published_after_each_round_what_its_records_of_the_next_name(self, run):
        """But for rounds in which it learned nothing: the same weights are not published twice."""
        sent, names = published(run), json.loads((run / files.SUMMARY_FILE).read_text())["weights"]
        rows = look(run / files.JOURNAL_FILE, ["Pin"])
        pinned = {(row.node, row.round): msgspec.msgpack.decode(row.result, type=bytes).hex() for row in rows}
        assert {node for node, round_ in pinned if round_} == {0, 1}
        for node, name in enumerate(names):
            own = [one for one in sent if one.node == node]
            assert [one.round for one in own] == sorted({one.round for one in own}) and own[0].round == 0
            for round_ in (round_ for other, round_ in pinned if other == node and round_):
                assert pinned[node, round_] == [one for one in own if one.round < round_][-1].weights
            for one in own:
                there = run.parent / "out" / name / one.weights[:16]
                assert one.uri == there.as_uri() and one.name == name
                assert hash_by_hand(there / "model.safetensors") == one.weights
            assert qwen.fingerprint(qwen.load(there).params) == names[name]
        assert len({one.weights for one in sent}) == len(sent) in (2, 3) and not list(
            (run / files.PUBLISH_FOLDER).iterdir()
        )

    def test_a_library_opens_it_and_computes_the_same(self, run, capsys):
        for one in published(run):
            there = run.parent / "out" / one.name / one.weights[:16]
            owners.same_as_hugging_face(qwen.load(there), there, vocabulary=qwen.load(assets.BASE).config.vocab_size)
            card = (there / "README.md").read_text()
            assert f"after round {one.round}" in card and str(run.parent) not in card

    def test_the_metrics_count_it(self, run):
        rows = [json.loads(line) for line in (run / files.METRICS_FILE).read_text().splitlines()]
        assert all(name in ("publish/sent", "publish/waiting") for row in rows for name in row if "publish/" in name)


class TestToAHub:
    def test_one_commit_which_comes_back_by_its_hash(self, run, hub, tmp_path, capsys):
        said = says(capsys, run, "--repo", "ada/qwen", "--node", "1")
        (oid, held) = hub.repos["ada/qwen"].commits[-1]
        name = [*json.loads((run / files.SUMMARY_FILE).read_text())["weights"]][1]
        assert said.startswith(f"{name} after round 2: hf://ada/qwen@{oid}\n")
        api = huggingface_hub.HfApi()
        there = api.snapshot_download("ada/qwen", revision=oid, local_dir=tmp_path / "there")
        assert {"config.json", "tokenizer.json", "generation_config.json", "README.md"} <= held.keys()
        policy = qwen.load(there)
        assert qwen.fingerprint(policy.params) == json.loads((run / files.SUMMARY_FILE).read_text())["weights"][name]
        owners.same_as_hugging_face(policy, there, vocabulary=qwen.load(assets.BASE).config.vocab_size)
        assert f"hash 0x{hash_by_hand(tmp_path / 'there' / 'model.safetensors')}" in said
        again = says(capsys, run, "--repo", "ada/qwen", "--node", "1")
        assert again == said and len(hub.repos["ada/qwen"].commits) == 2

    def test_the_token_is_in_no_file(self, run, hub, capsys, caplog):
        caplog.set_level(logging.DEBUG)
        says(capsys, run, "--repo", "ada/other", "--private")
        assert hub.repos["ada/other"].private and f"Bearer {TOKEN}" in hub.headers
        hub.token = "another"
        assert "does not take the token" in says(capsys, run, "--repo", "ada/other", code=2)
        files_ = [path for path in run.parent.rglob("*") if path.is_file()]
        assert len(files_) > 20 and not [path for path in files_ if TOKEN.encode() in path.read_bytes()]
        assert TOKEN not in caplog.text
        assert not any(
            TOKEN.encode() in raw for repo in hub.repos.values() for _, f in repo.commits for raw in f.values()
        )

    def test_a_hub_that_is_away_may_pass(self, run, hub, capsys):
        hub.faults = lambda method, path: 503
        assert "answers 503 for hf://ada/qwen: it may pass." in says(capsys, run, "--repo", "ada/qwen", code=75)

    def test_what_is_asked_wrongly_is_a_sentence(self, run, tmp_path, capsys, monkeypatch):
        config = json.loads((run / files.CONFIG_FILE).read_text())
        on = ("--rpc", "http://127.0.0.1:9", "--contract", "0x" + "1" * 40, "--chain-id", "7")
        for arguments, sentence in {
            (): "whose weights?",
            (run, "--repo", "qwen"): "that is no place for weights: expected hf://USER/NAME",
            (run, "--to", "sftp://ada:pw@host/x"): "that is no place for weights",
            (tmp_path, "--to", "x"): "is the folder of no run",
            (run, "--to", "x", "--node", "nobody"): "has no node 'nobody'",
            ("--verify", "hf://ada/qwen"): "by which chain? Give --rpc",
            ("--verify", "file://x/y"): "that is no place for weights",
            ("--verify", tmp_path / "nowhere", run): "has no chain: give --rpc",
            ("--verify", tmp_path / "nowhere", *on): "there are no weights at",
            ("--verify", tmp_path, *on): "there are no weights that can be read",
        }.items():
            assert sentence in says(capsys, *arguments, code=2)
            assert "pw" not in sentence
        shutil.copytree(run, tmp_path / "plain", ignore=shutil.ignore_patterns(files.CHECKPOINT_FOLDER))
        config["publish"]["to"] = ""
        (tmp_path / "plain" / files.CONFIG_FILE).write_text(json.dumps(config))
        assert "where to? Give --repo" in says(capsys, tmp_path / "plain", code=2)
        assert "has no checkpoint yet" in says(capsys, tmp_path / "plain", "--to", tmp_path / "x", code=2)


def test_of_a_run_with_an_adapter_that_alone_is_published(tmp_path, hub, capsys):
    adapter = ["--config.lora.rank=4", "--config.lora.dropout=0.1", "--config.lora.targets=('q', 'down')"]
    with tiny.optimizations(False):
        assert simulated.run(cli.parse([*SMALL, *adapter, f"--workdir={tmp_path / 'run'}"])) == 0
        said = says(capsys, tmp_path / "run", "--repo", "ada/adapter")
        held = hub.repos["ada/adapter"].commits[-1][1]
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md", ".gitattributes"} == held.keys()
        there = tmp_path / "there"
        there.mkdir()
        for name, raw in held.items():
            (there / name).write_bytes(raw)
        about, base = peft.read_config(there), qwen.load(assets.BASE)
        merged = lora.merged(base.params, peft.read(there, base.config, about), about)
    fingerprint, _ = json.loads((tmp_path / "run" / files.SUMMARY_FILE).read_text())["weights"].values()
    assert qwen.fingerprint(merged) == fingerprint and about.rank == 4
    assert f"hash 0x{hash_by_hand(there / 'adapter_model.safetensors')}" in said
    assert json.loads(held["adapter_config.json"])["base_model_name_or_path"] == "embedded:base"  # no path of here


# --- on a chain


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with devnet.running(tmp_path_factory.mktemp("chain")) as running:
        owner = identity.simulated(7, 7)
        made = deploy(Endpoint(running.url), owner, devnet.CHAIN_ID, Rules(min_seconds=0, max_seconds=600, quorum=1))
        yield running.url, made.address


@pytest.fixture
def node(run, network, tmp_path):
    """The folder of a live node that has played and settled, and where its chain is."""
    url, contract = network
    home = tmp_path / "node"
    home.mkdir()
    shutil.copytree(run / files.CHECKPOINT_FOLDER, home / files.CHECKPOINT_FOLDER)
    for name in (files.METRICS_FILE, files.JOURNAL_FILE):
        shutil.copy(run / name, home / name)
    config = json.loads((run / files.CONFIG_FILE).read_text()) | {"driver": "simulate"}
    return home, config, url, contract


def chained(node, index=0):
    """Makes it a single node's, of a key of its own."""
    home, config, url, contract = node
    from experiments.export import read_config
    from rlswarm_jax.checkpoint import Checkpoints
    from rlswarm_jax.running import build

    (home / files.CONFIG_FILE).write_text(json.dumps(config))
    old = read_config(home)
    first = build.first_state(old, build.load_policy(old))
    from rlswarm_jax.running.trained import load_states

    state = load_states(home, first, 2)[index]
    shutil.rmtree(home / files.CHECKPOINT_FOLDER)
    kept = Checkpoints(home / files.CHECKPOINT_FOLDER)
    kept.save(3, [state], b"extra")
    kept.close()
    chain = {"endpoint": url, "contract": contract, "id": devnet.CHAIN_ID, "confirmations": 0}
    config = config | {"driver": "node", "chain": config["chain"] | chain, "publish": config["publish"] | {"to": ""}}
    (home / files.CONFIG_FILE).write_text(json.dumps(config))
    own = identity.load_or_create(home / "node.key")
    (home / files.CHAIN_FOLDER).mkdir()
    return home, own, url, contract


def client_of(home, own, url, contract):
    return Coordinator(
        Endpoint(url), contract, own, home / files.CHAIN_FOLDER, chain_id=devnet.CHAIN_ID, settings=SETTINGS
    )


def settled(home, own, url, contract):
    client = client_of(home, own, url, contract)
    client.register()
    now = client.status()
    client.settle(now.round, now.beacon, COMMITMENT, [0, 0, 0], [])
    until = time.monotonic() + 20
    while not client.idle() and time.monotonic() < until:
        time.sleep(client.step())
    assert client.idle(), client.wishes()
    client.close()
    return now.round


class TestOnAChain:
    def test_it_is_on_record_and_verified_until_somebody_changes_it(self, node, hub, capsys):
        home, own, url, contract = chained(node)
        round_ = settled(home, own, url, contract)
        said = says(capsys, home, "--repo", "ada/chained")
        assert f"on record after round {round_} of the chain" in said
        uri, digest = said.split()[4], said.split()[6]
        on = ("--rpc", url, "--contract", contract, "--chain-id", devnet.CHAIN_ID)
        for asked in ((uri, home), (uri, *on), ("hf://ada/chained", *on)):
            found = says(capsys, "--verify", *asked)
            who = f"{identity.friendly_name(own.author)}, account {calls.account_of(own.author)}"
            assert digest in found and f"published by {who}, which committed to 9 records," in found and uri in found
        assert says(capsys, home, "--repo", "ada/chained") == said  # again: nothing new
        client = client_of(home, own, url, contract)
        assert [wish.state for wish in client.wishes() if wish.kind == "weights"] == ["done"]
        client.close()
        held = hub.repos["ada/chained"].commits[-1][1]
        raw = bytearray(held["model.safetensors"])
        raw[-1] ^= 1
        held["model.safetensors"] = bytes(raw)
        found = says(capsys, "--verify", uri, *on, code=1)
        assert f"NOT WHAT WAS PUBLISHED: the weights at {uri} have another hash than" in found and digest in found
        hub.repos["ada/chained"].commits.append(("f" * 40, held))
        found = says(capsys, "--verify", "hf://ada/chained", *on, code=1)
        assert "NOT WHAT WAS PUBLISHED" in found

    def test_weights_that_nobody_put_there(self, node, run, network, capsys):
        url, contract = network
        on = ("--rpc", url, "--contract", contract, "--chain-id", devnet.CHAIN_ID)
        found = says(capsys, "--verify", published(run)[0].uri, *on, code=1)
        assert f"nobody has put weights of this hash on record at {contract} on chain {devnet.CHAIN_ID}." in found

    def test_what_waits_for_a_settlement_or_the_endpoint_is_said_and_done_later(
        self, node, tmp_path, capsys, monkeypatch
    ):
        home, own, url, contract = chained(node, index=1)
        to = ("--to", tmp_path / "out")
        assert "it is not on the chain: the node has settled no round" in says(capsys, home, *to)
        round_ = settled(home, own, url, contract)
        monkeypatch.setattr(publish, "PATIENCE", 1.0)
        assert "the chain has not taken it yet" in says(capsys, home, *to, "--rpc", "http://127.0.0.1:9")
        monkeypatch.setattr(publish, "PATIENCE", 60.0)
        assert f"on record after round {round_}" in says(capsys, home, *to)
        assert "published by" in says(capsys, "--verify", published(home)[0].uri, home)

    def test_a_running_node_puts_it_there_itself(self, node, tmp_path, capsys):
        home, *_ = chained(node)
        with folder.lock(home):
            said = says(capsys, home, "--to", tmp_path / "out")
        assert "is running: it puts this on its chain itself" in said
        assert len(published(home)) == 1

    def test_without_its_key(self, node, tmp_path, capsys):
        home, *_ = chained(node)
        (home / "node.key").unlink()
        said = says(capsys, home, "--to", tmp_path / "out", code=2)
        assert "only who has it can put this on the chain" in said and not (home / "node.key").exists()
