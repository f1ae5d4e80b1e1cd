"""A machine that is left alone: its terminal goes, its clock jumps, it is suspended, its disk is full and is not."""

import contextlib
import itertools
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax import launch
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.status import READY
from tests.swarm.live import Node
from tests.swarm.live import swarm as connected
from tests.table_node import SEED
from tests.test_kill import KILLED, NODES, Swarm, last_round, played, rows, slot
from tests.test_launch import run_to_end, start  # noqa: F401
from tests.test_node import Live, Wire, play, short_waits  # noqa: F401
from tests.waits import wait_for

CHECKOUT = Path(__file__).parent.parent

# --- the terminal

TALKS = """
import sys, time, pathlib
from rlswarm_jax.running.folder import stop_on_signal
path = pathlib.Path(sys.argv[1])
with stop_on_signal() as stopping:
    for number in range(10_000):
        print("round", number, flush=True)
        path.write_text(str(number))
        time.sleep(0.02)
        if stopping:
            break
path.with_name("stopped").write_text(str(len(stopping)))
"""


def on_a_terminal(path: Path, *begin: str) -> tuple[subprocess.Popen, int]:
    """The process, which leads a session, and the terminal's other end."""
    ours, theirs = pty.openpty()
    command = [*begin, sys.executable, "-c", TALKS, str(path)]

    def lead() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead, close_fds=True
    )
    os.close(theirs)
    return process, ours


def number(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else -1


def test_a_run_whose_terminal_is_gone_goes_on_and_stops_when_it_is_told_to(tmp_path):
    path = tmp_path / "number"
    process, terminal = on_a_terminal(path)
    wait_for(lambda: number(path) > 3, "it plays")
    os.close(terminal)  # a hang-up, and from now on writing there is an error
    at = number(path)
    wait_for(lambda: number(path) > at + 20 or process.poll() is not None, "it goes on")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0 and (tmp_path / "stopped").read_text() == "1"


def test_whoever_ignores_hang_ups_keeps_ignoring_them(tmp_path):
    """nohup, say, which has put the output elsewhere."""
    script = "import signal; from rlswarm_jax.running.folder import stop_on_signal\n"
    script += "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script += "with stop_on_signal(): assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN; print('heard')"
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


# --- the clock


@pytest.fixture
def jumping(monkeypatch):
    """A clock that is set by up to a day, either way, at each look at it."""
    rng, true = random.Random(7), time.time
    monkeypatch.setattr(time, "time", lambda: true() + rng.uniform(-86_400, 86_400))


def test_nodes_whose_clocks_jump_play_as_if_they_did_not(tmp_path, jumping):
    wire = Wire()
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2), stages=3, deadline=20.0) for i in range(2)]
    told = [node.node.status for node in nodes]
    states = []
    for status in told:
        begins = status.begins
        status.begins = lambda *a, begins=begins, status=status, **k: (begins(*a, **k), states.append(status.state()))
    began = time.monotonic()
    play(*nodes)
    assert time.monotonic() - began < 20, "nobody waited for a deadline"
    for node in nodes:
        assert node.rounds() == list(range(6)) and node.total("peers/given_up") == 0
        assert node.total("records/received") == 6 * 3
    assert {state for state, _ in states} <= {READY, "starting"}


@pytest.mark.slow
def test_a_network_whose_clocks_jump_delivers(jumping):
    nodes: list[Node] = []

    def begin(*arguments, **config) -> Node:
        nodes.append(Node(*arguments, **config))
        return nodes[-1]

    try:
        a, b, c = connected(begin, 3)
        sent = [node.publish(round_) for round_ in range(4) for node in (a, b, c)]
        for node in (a, b, c):
            wait_for(lambda node=node: len(node.records) == 8, "all that the others said arrives")
            assert set(node.records) < set(sent)
        time.sleep(2.5)  # heartbeats go by
        last = a.publish(99)
        for node in (b, c):
            wait_for(lambda node=node: last in node.records, "and goes on to")
        assert a.sees(b, c) and not any(node.count("network/restarts") for node in nodes)
    finally:
        for node in nodes:
            node.gossip.close()


# --- suspended


@pytest.fixture
def swarm(tmp_path):
    made = Swarm(tmp_path)
    yield made
    for process in made.processes.values():
        process.send_signal(signal.SIGCONT)
    made.stop()


@pytest.mark.slow
def test_a_node_that_was_suspended_comes_back_to_the_others_and_contradicts_nobody(swarm):
    for index in range(NODES):
        swarm.start(index)
    wait_for(lambda: last_round(swarm.folder(KILLED)) > 3, "all play", 90.0)
    swarm.processes[KILLED].send_signal(signal.SIGSTOP)
    at = last_round(swarm.folder(KILLED))
    wait_for(lambda: last_round(swarm.folder(0)) > at + 20, "the others go on without it", 180.0)
    swarm.processes[KILLED].send_signal(signal.SIGCONT)
    alone = len(played(swarm.folder(KILLED)))
    wait_for(lambda: len(played(swarm.folder(KILLED))) > alone + 8, "it goes on", 90.0)
    wait_for(lambda: last_round(swarm.folder(KILLED)) >= last_round(swarm.folder(0)) - 1, "where they are", 90.0)
    swarm.finish()
    for index in range(NODES):
        of_node = read_rows(swarm.folder(index) / "metrics.jsonl")
        assert max(row["records/equivocations"] for row in of_node) == 0
    rounds = played(swarm.folder(KILLED))
    assert rounds == sorted(set(rounds)) and max(b - a for a, b in itertools.pairwise(rounds)) > 5, "it left some out"
    of_node = read_rows(swarm.folder(KILLED) / "metrics.jsonl")
    assert sum(row["records/received"] for row in of_node[-6:]) > 6, "it hears the others again"


@pytest.mark.slow
def test_a_machine_that_was_suspended_with_all_its_nodes_goes_on(swarm):
    """Longer than their connections live without a word."""
    for index in range(NODES):
        swarm.start(index)
    wait_for(lambda: last_round(swarm.folder(0)) > 3, "all play", 90.0)
    for process in swarm.processes.values():
        process.send_signal(signal.SIGSTOP)
    time.sleep(40)
    before = [len(played(swarm.folder(index))) for index in range(NODES)]
    for process in swarm.processes.values():
        process.send_signal(signal.SIGCONT)
    for index in range(NODES):
        wait_for(lambda i=index: len(played(swarm.folder(i))) > before[i] + 10, f"node {index} goes on", 120.0)
    swarm.finish()
    for index in range(NODES):
        of_node = read_rows(swarm.folder(index) / "metrics.jsonl")
        assert sum(row["records/received"] for row in of_node[-6:]) > 6, "they hear each other again"
        assert max(row["records/equivocations"] for row in of_node) == 0


# --- a full disk, and its end


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    done = ["umount", str(disk)]
    wait_for(lambda: subprocess.run(done, capture_output=True).returncode == 0, "what was killed lets go of it")


@pytest.mark.slow
def test_a_node_whose_disk_is_full_waits_until_it_is_not_and_goes_on_where_it_stood(small_disk, monkeypatch):
    monkeypatch.setattr(launch, "FULL_WAIT", 0.1)
    (member,) = launch.assign(small_disk, 1, seed=SEED)
    told = {"folder": str(member.folder), "index": 0, "rounds": 10_000, "port": member.port, "bootnodes": []}
    told |= {"peers": [], "deadline": 30.0, "sample_seconds": 0.1, "pause": None}
    command = [sys.executable, "-m", "tests.table_node", json.dumps(told)]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    with launch.Launcher([member], lambda _: command, lambda _: environment, restart_delay=0.1) as launcher:
        launcher.start()
        wait_for(lambda: last_round(member.folder) > 6, "it plays", 90.0)
        with (small_disk / "filler").open("wb") as filler:
            exits = []
            while not exits:
                with contextlib.suppress(OSError):
                    filler.write(bytes(1 << 16))
                    filler.flush()
                exits += launcher.poll()
        (ended,) = exits
        assert ended.restarted and ended.code == 1
        signed = rows(member.folder, "Publish")
        until = time.monotonic() + 5  # many times as long as three tries take
        while time.monotonic() < until:
            assert not launcher.poll() and launcher.states() == {0: "restarting"}
            time.sleep(0.05)
        (small_disk / "filler").unlink()
        at = max((round_ for round_, _ in signed), default=0)
        wait_for(lambda: not launcher.poll() and last_round(member.folder) > at + 6, "it goes on", 90.0)
        slots = [slot(msgspec.msgpack.decode(raw, type=bytes)) for _, raw in rows(member.folder, "Publish")]
        assert len(slots) == len(set(slots))
        later = dict(rows(member.folder, "Publish"))
        assert all(later.get(round_, raw) == raw for round_, raw in signed[-1:]), "it said what it had signed"
    done = played(member.folder)
    assert done == list(range(len(done))), "no round is missing"


def test_while_the_disk_is_full_no_try_is_made_or_counted(start, monkeypatch):  # noqa: F811
    monkeypatch.setattr(launch, "FULL_WAIT", 0.02)
    full = [True]
    monkeypatch.setattr(launch, "_is_full", lambda folder: full[0])
    launcher, (member,) = start("print('trying'); raise SystemExit(1)", max_restarts=2)
    (ended,) = wait_for(launcher.poll)
    assert ended.restarted
    for _ in range(20):
        time.sleep(0.02)
        assert not launcher.poll() and launcher.running
    assert (member.folder / launch.LOG_FILE).read_text().count("trying") == 1
    full[0] = False
    exits = run_to_end(launcher)
    assert [one.restarted for one in exits] == [True, False]
