import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlswarm_jax import identity, launch
from rlswarm_jax.launch import Launcher, LaunchError, assign, environment

ENV = os.environ | {"PYTHONPATH": str(Path(launch.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
SLEEP = "import time; time.sleep(600)"
# starts a process of its own and says which; deaf to SIGTERM
DEAF = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}]).pid)
time.sleep(600)
"""
# the same, but follows its parent: ends cleanly when it is gone (node 0), or never of itself (the others)
FOLLOWER = f"""
import signal, subprocess, sys, threading
from rlswarm_jax.launch import follow_parent
gone = threading.Event()
follow_parent(gone.set if sys.argv[1] == "0" else lambda: print("deaf"), grace=0.2)
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}]).pid)
gone.wait()
"""
PARENT = """
import json, os, signal, sys, time
from pathlib import Path
from rlswarm_jax import launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
members = launch.assign(Path(sys.argv[1]), 2, seed=0)
with launch.Launcher(members, lambda m: [sys.executable, "-c", sys.argv[2], str(m.index)], lambda m: os.environ) as l:
    try:
        l.start()
        while l.running:
            l.poll()
            time.sleep(0.02)
    except KeyboardInterrupt:
        print("interrupted")
print(json.dumps(l.states()))
"""


def wait_for(condition, seconds=30.0):
    """What `condition` gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def process_in(log):
    """The process whose id a program wrote as the first line of its log."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return psutil.Process(int(lines[0])) if lines and lines[0].endswith("\n") else None


def gone(process):
    """Whether it has ended: where nobody reaps an orphan, what is left of it is a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    return True


@pytest.fixture
def start(tmp_path):
    """Starts a swarm whose nodes all run a Python program; it is stopped in the end."""
    with contextlib.ExitStack() as stack:

        def start(program, nodes=1, **options):
            members = assign(tmp_path, nodes, seed=0)
            options = {"restart_delay": 0.01} | options
            launcher = Launcher(
                members, lambda m: [sys.executable, "-c", program, str(m.index)], lambda _: ENV, **options
            )
            stack.enter_context(launcher)
            launcher.start()
            return launcher, members

        yield start


def run_to_end(launcher):
    exits = []
    wait_for(lambda: exits.extend(launcher.poll()) or not launcher.running)
    return exits


# --- folders, keys, ports


def test_a_swarm_that_is_assigned_again_keeps_its_addresses(tmp_path):
    members = assign(tmp_path / "run", 4, seed=0)
    assert [m.folder for m in members] == [tmp_path / "run" / f"node-{i}" for i in range(4)]
    assert len({m.port for m in members}) == 4 and all(m.folder.is_dir() for m in members)
    first = members[0]
    assert first.address == f"/ip4/127.0.0.1/tcp/{first.port}/p2p/{identity.peer_id(first.author)}"
    assert assign(tmp_path / "run", 4, seed=0) == members


def test_a_port_that_somebody_took_is_given_to_nobody(tmp_path):
    members = assign(tmp_path, 3, seed=0)
    with socket.create_server((members[1].host, members[1].port)):
        others = assign(tmp_path, 3, seed=0)
        assert members[1].port not in {m.port for m in others}
        assert [m.author for m in others] == [m.author for m in members]
        assert assign(tmp_path, 3, seed=0) == others


@pytest.mark.parametrize(
    "content", ["", "[1, 2", "7", "{}", '{"a": 1, "b": 2}', "[70000, 70001]", '["a", "b"]', "\xff"]
)
def test_a_spoiled_list_of_ports_is_replaced(tmp_path, content):
    (tmp_path / launch.PORTS_FILE).write_bytes(content.encode("latin-1"))
    members = assign(tmp_path, 2, seed=0)
    assert json.loads((tmp_path / launch.PORTS_FILE).read_text()) == [m.port for m in members]


def test_keys_on_a_loopback_host_are_a_function_of_the_seed(tmp_path):
    members = assign(tmp_path, 2, seed=7)
    assert [m.author for m in members] == [identity.simulated(7, i).author for i in range(2)]
    for member in members:
        key = member.folder / launch.KEY_FILE
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert identity.load_or_create(key).author == member.author
    assert [m.author for m in assign(tmp_path, 3, seed=8)[:2]] == [m.author for m in members]  # kept


def test_keys_elsewhere_are_nobody_elses(tmp_path):
    here, there = (assign(tmp_path / name, 2, seed=7, host="0.0.0.0") for name in ("here", "there"))
    derived = {identity.simulated(7, i).author for i in range(2)}
    assert len({m.author for m in here + there} | derived) == 6
    assert stat.S_IMODE((here[0].folder / launch.KEY_FILE).stat().st_mode) == 0o600
    assert [m.author for m in assign(tmp_path / "here", 2, seed=7, host="0.0.0.0")] == [m.author for m in here]


def test_a_derived_key_never_leaves_the_machine(tmp_path):
    assign(tmp_path, 1, seed=7)
    with pytest.raises(LaunchError, match="anyone can derive the key"):
        assign(tmp_path, 1, seed=7, host="0.0.0.0")


def test_what_cannot_be_assigned_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((tmp_path, 0, "127.0.0.1"), "at least 1"),
        ((tmp_path, 1, "localhost"), "not an IP address"),
        ((tmp_path, 1, "192.0.2.1"), "address of this machine"),  # RFC 5737: nobody's address
        ((tmp_path / "file", 1, "127.0.0.1"), "choose another folder"),
    ):
        with pytest.raises(LaunchError, match=message):
            assign(*arguments[:2], seed=0, host=arguments[2])
    assign(tmp_path / "run", 1, seed=0)[0].folder.joinpath(launch.KEY_FILE).chmod(0o644)
    with pytest.raises(identity.KeyFileError, match="read by others"):
        assign(tmp_path / "run", 1, seed=0)


# --- devices


def test_nodes_run_on_the_cpu_and_see_no_card():
    base = {"PATH": "/bin", "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0"}
    expected = {"PATH": "/bin", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    found = environment(0, 4, "cpu", None, base)
    assert found.pop("PJRT_NPROC").isdecimal() and found == expected
    assert base == {"PATH": "/bin", "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0"}


def test_nodes_on_the_cpu_share_its_cores_as_xla_s_threads_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(launch, "_cores", lambda: 8)
    threads = {nodes: environment(0, nodes, "cpu", None, {})["PJRT_NPROC"] for nodes in (1, 3, 8, 100)}
    assert threads == {1: "8", 3: "2", 8: "1", 100: "1"}
    assert environment(0, 4, "cpu", None, {"PJRT_NPROC": "5"})["PJRT_NPROC"] == "5"
    assert "PJRT_NPROC" not in environment(0, 4, "cpu", None, {"NPROC": "5"})
    assert "PJRT_NPROC" not in environment(0, 4, "gpu", ["0"], {})


def test_one_node_alone_is_the_run_that_a_wandb_agent_asked_for():
    base = {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r", "WANDB_PROJECT": "p"}
    first, second = (environment(index, 2, "cpu", None, base) for index in (0, 1))
    assert base.items() <= first.items()
    assert "WANDB_SWEEP_ID" not in second and "WANDB_RUN_ID" not in second and second["WANDB_PROJECT"] == "p"


@pytest.mark.parametrize(
    ("visible", "base", "cards"),
    [
        (["0"], {}, ["0", "0", "0", "0"]),
        (["0", "1"], {}, ["0", "1", "0", "1"]),
        ([str(i) for i in range(8)], {}, ["0", "1", "2", "3"]),
        (["0"], {"CUDA_VISIBLE_DEVICES": "2,3"}, ["2", "3", "2", "3"]),
        (None, {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,-1,GPU-c"}, ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]),
    ],
)
def test_nodes_share_the_visible_cards_in_turn(visible, base, cards):
    found = [environment(i, 4, "gpu", visible, base) for i in range(4)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == cards
    assert {each["XLA_PYTHON_CLIENT_PREALLOCATE"] for each in found} == {"false"}
    assert {each["JAX_PLATFORMS"] for each in found} == {"cuda"}
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in each for each in found)


def test_what_the_user_chose_for_jax_stays():
    base = {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".4"}
    found = environment(0, 1, "gpu", ["0"], base)
    assert {name: found[name] for name in base} == base


def test_a_tpu_host_runs_one_process():
    assert environment(0, 1, "tpu", None, {})["JAX_PLATFORMS"] == "tpu"
    with pytest.raises(LaunchError, match="one process, not 2"):
        environment(0, 2, "tpu", None, {})


def test_devices_that_cannot_be_had_are_an_error():
    with pytest.raises(LaunchError, match="cpu, gpu, tpu"):
        environment(0, 1, "npu", None, {})
    for visible, base in (([], {}), (["0"], {"CUDA_VISIBLE_DEVICES": ""}), (["0"], {"CUDA_VISIBLE_DEVICES": "-1"})):
        with pytest.raises(LaunchError, match="no GPU"):
            environment(0, 1, "gpu", visible, base)


def test_gpus_are_found_by_their_folder_or_by_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "PROC_GPUS", tmp_path / "gpus")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.visible_gpus() == []
    tool = tmp_path / "nvidia-smi"
    listing = "GPU 0: H100 (UUID: GPU-a)\n  MIG 1g.10gb Device 0: (UUID: MIG-b)\nGPU 1: H100 (UUID: GPU-c)"
    tool.write_text(f"#!{sys.executable}\nprint({listing!r})\n")
    tool.chmod(0o755)
    assert launch.visible_gpus() == ["0", "1"]
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert launch.visible_gpus() == ["0"]
    assert environment(3, 4, "gpu", None, {})["CUDA_VISIBLE_DEVICES"] == "0"


# --- processes


def test_a_process_that_crashes_is_restarted_so_often_and_no_more(start):
    program = "import sys; print('trying'); print('the disk is full\\x1b[31m\\n'); sys.exit(3)"
    launcher, (member,) = start(program, max_restarts=2)
    assert launcher.states() == {0: "running"} and launcher.running
    exits = run_to_end(launcher)
    assert [(e.code, e.restarted) for e in exits] == [(3, True), (3, True), (3, False)]
    assert {e.reason for e in exits} == {"ended with code 3: the disk is full[31m"}  # no control character
    assert launcher.states() == {0: "failed"} and launcher.pids() == {}
    assert (member.folder / launch.LOG_FILE).read_text().count("trying") == 3


def test_a_reason_quotes_this_try_only_and_not_a_whole_page(start, tmp_path):
    program = f"""
import os, sys
print("x" * 100_000 if not os.path.exists({str(tmp_path / "again")!r}) else "", end="")
open({str(tmp_path / "again")!r}, "w")
sys.exit(1)
"""
    launcher, _ = start(program, max_restarts=1)
    assert [e.reason for e in run_to_end(launcher)] == [f"ended with code 1: {'x' * 300}", "ended with code 1"]


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (2, "failed"), (130, "stopped")])
def test_what_a_restart_cannot_mend_is_not_restarted(start, code, state):
    launcher, _ = start(f"import sys; print('why'); sys.exit({code})")
    (found,) = run_to_end(launcher)
    assert (found.code, found.restarted, found.reason) == (code, False, f"ended with code {code}: why")
    assert launcher.states() == {0: state}


def test_a_killed_process_is_restarted_and_the_other_goes_on(start):
    launcher, _ = start(SLEEP, nodes=2)
    before = launcher.pids()
    os.kill(before[0], signal.SIGKILL)
    (found,) = wait_for(launcher.poll)
    assert (found.member.index, found.code, found.restarted) == (0, -9, True)
    assert found.reason == "killed by SIGKILL"
    assert launcher.states() == {0: "restarting", 1: "running"}
    wait_for(lambda: not launcher.poll() and launcher.states()[0] == "running")
    after = launcher.pids()
    assert after[0] != before[0] and after[1] == before[1]
    assert {e.reason for e in launcher.stop()} == {"killed by SIGTERM"}
    assert launcher.states() == {0: "stopped", 1: "stopped"} and not launcher.running
    assert launcher.stop() == [] == launcher.poll()


def test_restarts_wait_twice_as_long_each_time_unless_the_node_was_up_for_long(start, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: clock[0])
    launcher, _ = start(SLEEP, restart_delay=10.0, max_restarts=2)

    def kill_and_wait(seconds):
        """Whether a process that is killed is back after so many seconds and not before."""
        os.kill(launcher.pids()[0], signal.SIGKILL)
        while not (exits := launcher.poll()):
            pass
        clock[0] += seconds - 0.1
        assert launcher.poll() == [] and launcher.pids() == {}
        clock[0] += 0.2
        assert launcher.poll() == []
        return exits[0].restarted and launcher.states() == {0: "running"}

    assert kill_and_wait(10.0)
    assert kill_and_wait(20.0)
    clock[0] += launch.STEADY_SECONDS
    assert kill_and_wait(10.0)


def test_a_program_that_cannot_be_started_is_an_error_and_leaves_nothing(tmp_path):
    members = assign(tmp_path, 2, seed=0)
    with (
        pytest.raises(LaunchError, match="nowhere"),
        Launcher(members, lambda m: [[sys.executable, "-c", SLEEP], ["nowhere"]][m.index], lambda _: ENV) as launcher,
    ):
        try:
            launcher.start()
        finally:
            first = psutil.Process(launcher.pids()[0])
    assert gone(first)


def test_a_restart_that_fails_counts_as_one(tmp_path):
    commands = [[sys.executable, "-c", "raise SystemExit(1)"], ["nowhere"], [sys.executable, "-c", ""]]
    with Launcher(
        assign(tmp_path, 1, seed=0), lambda _: commands.pop(0), lambda _: ENV, restart_delay=0.01
    ) as launcher:
        launcher.start()
        exits = run_to_end(launcher)
    assert [e.restarted for e in exits] == [True, True, False] and "nowhere" in exits[1].reason
    assert launcher.states() == {0: "finished"}


def test_stop_ends_who_ignores_it_and_what_it_started(start):
    launcher, (member,) = start(DEAF, stop_seconds=0.2)
    grandchild = wait_for(lambda: process_in(member.folder / launch.LOG_FILE))
    (found,) = launcher.stop()
    assert (found.code, found.reason) == (-9, "killed: it did not stop within 0.2 s")
    assert launcher.states() == {0: "stopped"} and not launcher.running
    wait_for(lambda: gone(grandchild))


def test_an_interrupted_stop_kills_at_once(start, monkeypatch):
    launcher, (member,) = start(DEAF, stop_seconds=600.0)
    grandchild = wait_for(lambda: process_in(member.folder / launch.LOG_FILE))

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(launch.time, "sleep", interrupt)
        launcher.stop()
    assert launcher.states() == {0: "stopped"}
    wait_for(lambda: gone(grandchild))


def test_what_a_crashed_node_started_dies_with_it(start):
    launcher, (member,) = start(DEAF, max_restarts=0)
    grandchild = wait_for(lambda: process_in(member.folder / launch.LOG_FILE))
    os.kill(launcher.pids()[0], signal.SIGKILL)
    run_to_end(launcher)
    wait_for(lambda: gone(grandchild))


# --- the life line


@pytest.fixture
def parent(tmp_path):
    """Starts a parent of two nodes in a group of its own, as a terminal would."""
    with contextlib.ExitStack() as stack:

        def parent(program):
            command = [sys.executable, "-c", PARENT, str(tmp_path), program]
            process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield parent


def test_a_killed_parent_leaves_no_process_behind(parent, tmp_path):
    process = parent(FOLLOWER)
    logs = [tmp_path / f"node-{i}" / launch.LOG_FILE for i in range(2)]
    grandchildren = [wait_for(lambda log=log: process_in(log)) for log in logs]
    family = [child.parent() for child in grandchildren] + grandchildren
    assert {child.ppid() for child in family[:2]} == {process.pid}
    process.kill()
    wait_for(lambda: all(gone(each) for each in family))
    assert [("deaf" in log.read_text()) for log in logs] == [False, True]  # a clean end, and the end of patience


def test_ctrl_c_reaches_the_nodes_only_through_their_parent(parent, tmp_path):
    process = parent("""
import signal
awaited = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
print("ready")
while True:  # of two that wait, the lower number comes first: SIGINT
    received = signal.sigwait(awaited)
    print(received.name)
    if received == signal.SIGTERM:
        raise SystemExit(130)
""")
    logs = [tmp_path / f"node-{i}" / launch.LOG_FILE for i in range(2)]
    wait_for(lambda: all(log.exists() and log.read_text() for log in logs))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output.split("\n", 1)[0] == "interrupted"
    assert json.loads(output.splitlines()[-1]) == {"0": "stopped", "1": "stopped"}
    assert {log.read_text() for log in logs} == {"ready\nSIGTERM\n"}


def test_a_node_started_by_hand_follows_nobody():
    program = (
        "import threading; from rlswarm_jax import launch; launch.follow_parent(print); print(threading.active_count())"
    )
    found = subprocess.run([sys.executable, "-c", program], env=ENV, stdin=subprocess.DEVNULL, capture_output=True)
    assert found.stdout == b"1\n"
    terminal, end = os.openpty()
    found = subprocess.run([sys.executable, "-c", program], env=ENV, stdin=end, capture_output=True)
    assert found.stdout == b"1\n"
    os.close(terminal)
    os.close(end)


def test_importing_the_launcher_is_quick():
    program = "import sys, rlswarm_jax.launch; print({'jax', 'numpy', 'libp2p', 'trio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], env=ENV, capture_output=True).stdout == b"set()\n"
