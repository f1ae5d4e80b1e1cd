"""A live node that is two processes, among others over libp2p; and what becomes of it when one of them dies."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from configs import node
from rlswarm_jax import files, multihost, parallel
from rlswarm_jax.errors import UsageError
from rlswarm_jax.game.effects import Learn, Sample
from rlswarm_jax.identity import create, simulated
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import folder
from tests.grpo import tiny

CHECKOUT = Path(__file__).parent.parent
ROUNDS, SEED = 4, 5
ARGUMENTS = [
    f"--config.rounds={ROUNDS}",
    f"--config.checkpoint_every={ROUNDS}",
    "--config.evaluation.problems=16",
    "--config.evaluation.rows=16",
    # a model that knows its tasks, hot enough to be wrong now and then: there is something to learn in so few rounds
    "--config.model.path=rlswarm_jax/assets/tiny-qwen3-base",
    "--config.sampling.temperature=2.0",
    "--config.learn.positive_only_external=False",
    "--config.swarm.deadline=0.0",  # a stage waits for all, for ever
]


def start(workdir: Path, *arguments: str, program: tuple[str, ...] = ("-m", "experiments.run")) -> subprocess.Popen:
    workdir.parent.mkdir(exist_ok=True)
    command = [sys.executable, *program, "--config=configs/node.py:smoke", *ARGUMENTS, *arguments]
    with (workdir.parent / f"{workdir.name}.txt").open("ab") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=CHECKOUT, env=os.environ | tiny.QUICKLY, stdout=log, stderr=log
        )


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class TwoProcesses:
    """A node's leader and its follower, which leaves the parts of the weights that it held in the end."""

    def __init__(self, tmp_path: Path, *arguments: str):
        self.folder, self.follower_folder = tmp_path / "leader", tmp_path / "follower"
        told = [*arguments, "--config.devices.processes=2", f"--config.devices.coordinator=127.0.0.1:{free_port()}"]
        following = f"from tests import test_multihost; test_multihost.follower({str(tmp_path / 'held')!r})"
        self.leader = start(self.folder, *told)
        self.follower = start(self.follower_folder, *told, "--config.devices.process=1", program=("-c", following))

    def said(self) -> str:
        return "".join(path.with_suffix(".txt").read_text() for path in (self.folder, self.follower_folder))

    def kill(self) -> None:
        for process in (self.leader, self.follower):
            process.kill()
            process.wait()


def follower(path: str) -> None:
    """The program of a follower, which keeps what it held."""
    from experiments import run

    follow = multihost.follow

    def watched(engine, channel):
        code = follow(engine, channel)
        leaves = jax.tree.leaves(engine.state(0))
        parts = [[(shard.index, np.asarray(shard.data)) for shard in leaf.addressable_shards] for leaf in leaves]
        Path(path).write_bytes(pickle.dumps(parts))
        return code

    multihost.follow = watched
    cli.main(run.run, "")


def one_process(workdir: Path):
    """The state that a node of one process comes to by what a node's journal holds."""
    from rlswarm_jax.game.player import Player
    from rlswarm_jax.identity import load_or_create
    from rlswarm_jax.journal import Journal
    from rlswarm_jax.running import build

    config = ml_collections.ConfigDict(json.loads((workdir / files.CONFIG_FILE).read_text()))
    config.devices.fsdp = 1
    own = load_or_create(workdir / "node.key")
    made, journal = build.build(config, [own]), Journal(workdir / files.JOURNAL_FILE)
    player, learned = Player(0, made.games[0], own, journal), 0
    for entry in journal.read(0, 0):
        effect = player.feed(entry).effect
        if isinstance(effect, Learn):
            learned += made.engine.learn({0: effect})[0]["updates"]
    assert player.finished and learned > 1
    return jax.device_get(made.engine.state(0))


def at_the_end(workdir: Path, like):
    """The state that a node saved after its last round."""
    from rlswarm_jax.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / files.CHECKPOINT_FOLDER)
    (state,), _ = checkpoints.restore(ROUNDS, [like])
    checkpoints.close()
    return state


def assert_followed(path: Path, state) -> None:
    """What the follower held are parts of the leader's state, bit for bit."""
    for leaf, parts in zip(jax.tree.leaves(state), pickle.loads(path.read_bytes()), strict=True):
        for index, part in parts:
            assert np.asarray(leaf)[index].tobytes() == part.tobytes()


@pytest.mark.slow
def test_two_processes_are_one_node_among_others(tmp_path):
    keys = [tmp_path / f"{name}.key" for name in ("pair", "single")]
    identities = [create(key, simulated(SEED, index)) for index, key in enumerate(keys)]
    pair_peer, single_peer = (own.peer_id for own in identities)
    port = free_port()
    single = start(
        tmp_path / "single",
        f"--config.swarm.key={keys[1]}",
        f"--config.swarm.port={port}",
        f"--config.swarm.peers=('{pair_peer}',)",
    )
    pair = TwoProcesses(
        tmp_path,
        f"--config.swarm.key={keys[0]}",
        f"--config.swarm.peers=('{single_peer}',)",
        f"--config.swarm.bootnodes=('/ip4/127.0.0.1/tcp/{port}/p2p/{single_peer}',)",
    )
    try:
        codes = [process.wait(400) for process in (single, pair.leader, pair.follower)]
        assert codes == [0, 0, 0], pair.said() + (tmp_path / "single.txt").read_text()
    finally:
        pair.kill()
        single.kill()
    for workdir, other in ((pair.folder, identities[1]), (tmp_path / "single", identities[0])):
        rows = read_rows(workdir / files.METRICS_FILE)
        assert [row["round"] for row in rows] == list(range(ROUNDS))
        assert sum(row["learn/updates"] for row in rows) > 1
        assert any(row.get(f"learned_from/{other.author.hex()}") for row in rows)
    assert not pair.follower_folder.exists()
    create(pair.folder / "node.key", identities[0])  # where `one_process` looks for it
    with tiny.optimizations(False):
        alone = one_process(pair.folder)
    ours = at_the_end(pair.folder, alone)
    assert_followed(tmp_path / "held", ours)
    assert ours.step == alone.step
    tiny.assert_close(ours.params, alone.params, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_processes_keep_near_to_a_reference_as_one_does(tmp_path, fsdp):
    """With all that a loss can ask of other policies; parameters whole on each of them, or split over the two."""
    pair = TwoProcesses(
        tmp_path,
        f"--config.devices.fsdp={fsdp}",
        "--config.learn.loss=grpo",
        "--config.learn.reference_every=2",
        "--config.learn.updates_per_round=2",
        "--config.learn.entropy_top=0.5",
        "--config.game.redraws=1",
    )
    try:
        codes = [process.wait(400) for process in (pair.leader, pair.follower)]
        assert codes == [0, 0], pair.said()
    finally:
        pair.kill()
    assert any(row.get("learn/kl", 0) > 0 for row in read_rows(pair.folder / files.METRICS_FILE))
    with tiny.optimizations(False):
        alone = one_process(pair.folder)
    ours = at_the_end(pair.folder, alone)
    assert_followed(tmp_path / "held", ours)
    assert int(ours.reference.epoch) == int(alone.reference.epoch) == 1
    tiny.assert_close(ours.reference.params, alone.reference.params, 1e-3)
    tiny.assert_close(ours.params, alone.params, 1e-3)


@pytest.mark.slow
def test_a_node_ends_when_a_process_of_it_dies_and_goes_on_when_all_are_started_again(tmp_path):
    """With its parameters split over the two: neither could compute a thing alone."""
    options = "--config.devices.fsdp=2", "--config.rounds=40", "--config.checkpoint_every=3"
    pair = TwoProcesses(tmp_path, *options)
    rows = pair.folder / files.METRICS_FILE
    try:
        until = time.monotonic() + 400
        while not rows.exists() or len(read_rows(rows)) < 5:
            assert time.monotonic() < until and pair.leader.poll() is None, pair.said()
            time.sleep(0.05)
        pair.follower.send_signal(signal.SIGKILL)
        assert pair.leader.wait(2 * multihost.HEARTBEAT) not in (0, 2, 130)  # so that a launcher starts it again
        assert "processes of this node" in pair.said() or "another task died" in pair.said()
        played = [row["round"] for row in read_rows(rows)]
        pair = TwoProcesses(tmp_path, *options, "--resume")
        while len(read_rows(rows)) < len(played) + 3:
            assert time.monotonic() < until and pair.leader.poll() is None, pair.said()
            time.sleep(0.05)
        pair.leader.send_signal(signal.SIGTERM)
        assert (pair.leader.wait(60), pair.follower.wait(60)) == (130, 130), pair.said()
    finally:
        pair.kill()
    played = [row["round"] for row in read_rows(rows)]
    assert played == list(range(len(played)))


@pytest.mark.slow
def test_processes_with_different_configs_are_no_node(tmp_path):
    port = free_port()
    told = "--config.devices.processes=2", f"--config.devices.coordinator=127.0.0.1:{port}"
    leader = start(tmp_path / "leader", *told)
    other = start(tmp_path / "other", *told, "--config.devices.process=1", "--config.learn.learning_rate=1.0")
    try:
        assert other.wait(120) == 2
        assert leader.wait(2 * multihost.HEARTBEAT) not in (0, 2, 130)
    finally:
        for process in (leader, other):
            process.kill()
            process.wait()
    said = (tmp_path / "other.txt").read_text()
    assert "error: process 0 of this node was started with another config.learn.learning_rate." in said


@pytest.mark.slow
def test_devices_of_other_processes_take_part_only_where_they_are_meant_to(tmp_path):
    """Two nodes in one job would else be averaged without a word."""
    code = "from tests import test_multihost; test_multihost.sums({}, {}, {!r})"
    port, paths = free_port(), [tmp_path / "0", tmp_path / "1"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(process, port, str(path))],
            cwd=CHECKOUT,
            env=os.environ | tiny.devices(2),
        )
        for process, path in enumerate(paths)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    found = [json.loads(path.read_text()) for path in paths]
    own = [[0, 2, 4, 6], [20, 22, 24, 26]]
    for process in (0, 1):
        for backend in ("shard_map", "pmap"):
            assert found[process][backend] == [sum(own[process]) / 2, own[process]]
        assert found[process]["all"] == [sum(own[0]) / 2, own[0]]
        assert "pmap backend is for the devices of one process" in found[process]["refused"]


def sums(process: int, port: int, path: str) -> None:
    """The program of a process: sums over its own devices, and over those of both."""
    multihost.join(2, process, f"127.0.0.1:{port}")

    def run(mesh, backend, rows):
        whole = parallel.data_parallel(lambda w, x: parallel.total((w * x).sum(), mesh), mesh, backend)
        parts = parallel.split(lambda w, x: 2 * w * x, mesh, backend)
        return float(whole(np.float32(1), rows)), np.asarray(parts(np.float32(1), rows)).tolist()

    rows = np.arange(4.0, dtype=np.float32)
    found = {backend: run(parallel.local_mesh(), backend, rows + 10 * process) for backend in ("shard_map", "pmap")}
    everybody = parallel.make_mesh(jax.devices())
    found["all"] = run(everybody, "shard_map", rows)
    with pytest.raises(ValueError) as refused:
        run(everybody, "pmap", rows)
    Path(path).write_text(json.dumps(found | {"refused": str(refused.value)}))
    jax.distributed.shutdown()


class Service:
    """jax's coordination service, for a leader and a follower that take turns."""

    def __init__(self):
        self.kept = {}

    def key_value_set_bytes(self, key, value):
        assert key not in self.kept
        self.kept[key] = value

    def blocking_key_value_get_bytes(self, key, _):
        return self.kept[key]

    def wait_at_barrier(self, *_):
        pass

    def key_value_delete(self, key):
        pass


def test_a_follower_hears_what_the_leader_says(monkeypatch):
    service = Service()
    monkeypatch.setattr(multihost.distributed.global_state, "client", service)
    rng = np.random.default_rng(0)
    keys_PGM = rng.integers(0, 2**32, (2, 3, 2), dtype=np.uint32)
    logprobs = (-rng.random((1, 4)).astype(np.float32)).tolist()
    group = ScoredGroup(b"\x02" * 33, 3, 1, True, [5, 6], [[7, 8, 9, 0]], logprobs, [1.0])
    leader, follower = multihost.Channel(), multihost.Channel()
    leader.say("sample", {0: Sample([[1, 2], [3]], keys_PGM)})
    leader.say("learn", {0: Learn([group])})
    leader.say("evaluate_params", {"weights": "which follow as arrays"})
    what, requests = follower.hear()
    assert what == "sample" and requests[0].prompts == [[1, 2], [3]]
    np.testing.assert_array_equal(requests[0].keys_PGM, keys_PGM)
    assert requests[0].keys_PGM.dtype == np.uint32
    assert follower.hear() == ("learn", {0: Learn([group])})
    assert follower.hear() == ("evaluate_params", None)


@pytest.mark.parametrize(
    "x", [np.int32(3), np.float32([[-0.0, 1.0]]), np.zeros((0, 2), np.float32)], ids=["number", "matrix", "nothing"]
)
def test_arrays_from_the_leader_keep_their_bits_and_shape(x):
    found = multihost._from_the_leader(np.asarray(x))
    assert (found.shape, found.dtype, found.tobytes()) == (x.shape, x.dtype, x.tobytes())


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"fsdp": 0}, "config.devices.fsdp is 0; expected a whole number from 1 to 65,536"),
        ({"backend": "xmap"}, "config.devices.backend is 'xmap'; expected one of shard_map, pmap"),
        ({"backend": "pmap", "tensor": 2}, "config.devices.backend pmap is for one process and whole parameters"),
        ({"processes": 2}, "config.devices.coordinator is ''; expected host:port of process 0"),
        ({"processes": 2, "process": 2, "coordinator": "a:1"}, "config.devices.process is 2 of 2"),
        ({"tensor": 3}, "tensor=3 takes a multiple of 3 devices"),
    ],
)
def test_devices_that_cannot_be_used_so_are_one_sentence(changed, wrong):
    from rlswarm_jax.running import build

    config = node.get_config("smoke")
    config.devices.update(changed)
    with pytest.raises(UsageError, match=wrong):
        build.build(config, [simulated(SEED, 0)])


def test_only_a_node_by_itself_is_several_processes():
    config = node.get_config("smoke")
    config.driver, config.devices.processes = "live", 2
    with pytest.raises(UsageError, match=r"config.devices.processes is 2; driver live takes 1\."):
        cli.check(config)


def test_a_run_goes_on_with_other_devices(tmp_path):
    config = node.get_config("smoke")
    folder.prepare_folder(config, tmp_path / "run", False)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    config.devices.fsdp, config.devices.process = 4, 1
    assert folder.prepare_folder(config, tmp_path / "run", True)
    config.seed = 7
    with pytest.raises(UsageError, match=r"another config\.seed"):
        folder.prepare_folder(config, tmp_path / "run", True)
