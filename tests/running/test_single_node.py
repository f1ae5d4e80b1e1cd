"""What someone meets who runs a single node by hand."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rlswarm_jax.identity import Identity, author_of, create, friendly_name, simulated
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.running import node
from tests.grpo import tiny
from tests.small import SHAPES
from tests.swarm.live import Node

CHECKOUT = Path(__file__).parent.parent.parent


def start(workdir: Path, *arguments: str, variant: str = ":smoke") -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.run", f"--config=configs/node.py{variant}", *SHAPES, *arguments]
    command.append(f"--workdir={workdir}")
    pipe, environment = subprocess.PIPE, os.environ | tiny.QUICKLY
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(workdir: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(workdir, *arguments)
    said, complained = process.communicate(timeout=300)
    return process.returncode, said, complained


@pytest.fixture
def taken_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_in_use_is_one_sentence(tmp_path, taken_port):
    code, _, complained = run(tmp_path / "run", f"--config.swarm.port={taken_port}")
    assert code == 75 and len(complained.splitlines()) == 1
    assert complained.startswith("error: cannot listen on") and f"tcp/{taken_port}" in complained
    assert "in use" in complained and "config.swarm.port" in complained
    assert "cannot listen on" in (tmp_path / "run" / "log.txt").read_text()


def test_a_log_is_bounded_and_a_full_disk_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlswarm_jax.disk.LOG_BYTES", 2000)
    logger = logging.getLogger("rlswarm_jax.test")
    logger.setLevel(logging.INFO)
    with node.logged(tmp_path):
        for i in range(500):
            logger.info("line %d", i)
    logger.info("after the end")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log.txt", "log.txt.1"] and all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    text = (tmp_path / "log.txt").read_text()
    assert "line 499" in text and text.splitlines()[-1].endswith("ended") and "after the end" not in text
    with node.logged(Path("/dev/full/nowhere")):
        logger.info("unheard")
    assert "Logging error" not in capsys.readouterr().err


def test_a_key_file_that_cannot_be_used_is_one_sentence_and_is_never_shown(tmp_path):
    secret = b"\x42" * 32
    open_to_all = tmp_path / "open.key"
    create(open_to_all, Identity(secret))
    open_to_all.chmod(0o644)
    empty = tmp_path / "empty.key"
    empty.touch(0o600)
    cases = {open_to_all: "can be read by others", empty: "holds no secp256k1 key", tmp_path: "Is a directory"}
    for number, (path, wrong) in enumerate(cases.items()):
        code, said, complained = run(tmp_path / str(number), f"--config.swarm.key={path}")
        assert code == 2 and len(complained.splitlines()) == 1 and wrong in complained and str(path) in complained
        assert secret.hex() not in said + complained


@pytest.mark.slow
def test_an_unreachable_bootnode_is_one_sentence_and_does_not_stop_a_node(tmp_path, taken_port):
    nobody = f"/ip4/127.0.0.1/tcp/{taken_port}/p2p/{simulated(1, 1).peer_id}"
    workdir = tmp_path / "run"
    code, said, complained = run(workdir, f"--config.swarm.bootnodes=('{nobody}',)", "--config.disk.megabytes=1")
    assert (code, complained) == (0, "")
    assert sum("cannot be reached" in line and nobody in line for line in said.splitlines()) == 1
    log = (workdir / "log.txt").read_text()
    assert nobody in log and "listens on /ip4/" in log
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["round"] for row in rows] == list(range(6))
    assert sum(row.get("network/unreachable", 0) for row in rows) > 0
    # a quota that its own checkpoints exceed: it is counted, said once, and it goes on
    measured = [row for row in rows if "disk/over" in row]
    assert [row["round"] for row in measured] == [0, 2, 4] and measured[-1]["disk/over"] > 0
    taken = {part: sum(row[f"disk/{part}"] for row in measured) for part in ("journal", "checkpoints", "weights")}
    assert min(taken.values()) > 0 and log.count("nothing more can go") == 1


def wait_until(what, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def asked(url: str, path: str) -> dict:
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(url + path, timeout=10) as answer:
        return json.load(answer)
    return {"state": "not ready"}


def saved_in(folder: Path) -> int:
    """The round before which the newest checkpoint was written."""
    return max(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def newcomer():
    """A peer by other rules than those of configs/node.py."""
    found: list[Node] = []

    def come(bootnode: str) -> Node:
        found.append(Node([bootnode], swarm="rlswarm"))
        found[-1].gossip.tell_rules({"swarm.name": "rlswarm", "seed": "7", "chain.contract": "none"})
        return found[-1]

    yield come
    for one in found:
        one.gossip.close()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A node that plays, and the folder it is in; its key lies beside that."""
    tmp_path = tmp_path_factory.mktemp("nodes")
    process = start(tmp_path / "first", f"--config.swarm.key={tmp_path / 'shared.key'}", variant="")
    wait_until((tmp_path / "first" / "node.json").exists)
    yield process, tmp_path
    process.kill()
    process.wait()


def test_a_folder_has_one_process_and_a_key_one_journal(first):
    _, tmp_path = first
    second = start(tmp_path / "first", "--resume", variant="")
    _, complained = second.communicate(timeout=60)
    assert second.returncode == 75 and "another process is using" in complained
    code, _, complained = run(tmp_path / "other", f"--config.swarm.key={tmp_path / 'shared.key'}")
    assert code == 75 and "another process is using" in complained and "shared.key" in complained


def test_two_nodes_find_each_other_and_one_goes_on_when_the_other_stops(first, newcomer):
    """As the README says it, in two terminals."""
    first, tmp_path = first
    told = json.loads((tmp_path / "first" / "node.json").read_text())
    assert told["pid"] == first.pid and told["addresses"][0].endswith(told["peer_id"])
    assert (tmp_path / "shared.key").stat().st_mode & 0o777 == 0o600
    rows = {name: tmp_path / name / "metrics.jsonl" for name in ("first", "second")}
    wait_until(lambda: rows["first"].exists() and read_rows(rows["first"]))  # there is a round to come late for
    wait_until(lambda: asked(told["health"], "/readyz")["state"] == "ready")
    second = start(tmp_path / "second", f"--config.swarm.bootnodes={told['addresses']}", variant="")
    author = author_of(told["peer_id"]).hex()
    learned = f"learned_from/{author}"
    wait_until(lambda: rows["second"].exists() and any(learned in row for row in read_rows(rows["second"])))
    wait_until(lambda: any(peer["mesh"] for peer in asked(told["health"], "/healthz")["peers"]))
    stranger = newcomer(told["addresses"][0])
    wait_until(lambda: stranger.count("network/other_rules"))  # both know by what rules they play
    peers = tmp_path / "second" / "peers.json"
    wait_until(lambda: told["addresses"][0] in json.loads(peers.read_text())["peers"])  # after five seconds
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 130 and "--resume goes on" in said and "Records received" in said
    assert saved_in(tmp_path / "second") >= read_rows(rows["second"])[-1]["round"] + 1
    joined = read_rows(rows["second"])[0]["round"]
    assert joined > 0 and joined <= read_rows(rows["first"])[-1]["round"]
    stopped_at = read_rows(rows["first"])[-1]["round"]
    wait_until(lambda: read_rows(rows["first"])[-1]["round"] > stopped_at + 3)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(60) == 130 and not (tmp_path / "first" / "node.json").exists()
    assert saved_in(tmp_path / "first") >= read_rows(rows["first"])[-1]["round"] + 1
    assert any(row["peers/connected"] == 1 for row in read_rows(rows["first"]))
    kept = {name: json.loads((tmp_path / name / "peers.json").read_text()) for name in ("first", "second")}
    assert (
        kept["first"]["port"] == int(told["addresses"][0].split("/")[4])
        and told["addresses"][0] in kept["second"]["peers"]
    )
    log = (tmp_path / "first" / "log.txt").read_text()
    assert "others join it with: python -m experiments.run --config configs/node.py" in log
    assert f"{friendly_name(stranger.author)} ({stranger.identity.peer_id}) plays by other rules" in log


def test_a_key_signs_for_one_journal_only(first):
    """In another folder a node would start at round 0 again, and contradict what it has signed."""
    process, tmp_path = first
    process.send_signal(signal.SIGINT)
    process.wait(60)
    code, _, complained = run(tmp_path / "third", f"--config.swarm.key={tmp_path / 'shared.key'}")
    assert code == 2 and "shared.key has signed records that are not in the journal here" in complained
    assert len(complained.splitlines()) == 1


def test_a_launched_node_says_by_its_exit_code_whether_another_try_can_help(tmp_path, taken_port):
    from configs import node
    from rlswarm_jax.running import folder

    def launched(**swarm) -> tuple[int, str]:
        config = node.get_config("smoke")
        config.swarm.update(swarm)
        (tmp_path / "config.json").write_text(config.to_json_best_effort())
        command = [sys.executable, "-m", "rlswarm_jax.running.node", str(tmp_path)]
        done = subprocess.run(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, said = launched(port=taken_port)
    assert code == 75 and "in use" in said
    with folder.lock(tmp_path):
        code, said = launched()
    assert code == 75 and "another process is using" in said
    (tmp_path / "node.key").chmod(0o644)
    code, said = launched()
    assert code == 2 and "can be read by others" in said


def test_a_key_copied_without_its_journal_is_refused_and_a_new_one_is_not(tmp_path):
    from rlswarm_jax import identity
    from rlswarm_jax.errors import UsageError
    from rlswarm_jax.journal import Journal
    from rlswarm_jax.running import node

    key, journal = tmp_path / "node.key", tmp_path / "journal.sqlite"
    own = identity.load_or_create(key)
    with node._claimed(key, journal):  # made by hand, and never used
        opened = Journal(journal)
        node._claim(key, opened)
        opened.close()
    assert identity.load_or_create(key).author == own.author and key.stat().st_mode & 0o777 == 0o600
    with node._claimed(key, journal):
        pass  # a restart
    moved = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-moved"))
    with node._claimed(moved / "node.key", moved / "journal.sqlite"):
        pass  # the whole folder
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy2(key, alone / "node.key")
    for fresh in (False, True):
        if fresh:
            Journal(alone / "journal.sqlite").close()
        with (
            pytest.raises(UsageError, match=r"has signed records that are not .* take its whole folder"),
            node._claimed(alone / "node.key", alone / "journal.sqlite"),
        ):
            pass
