"""What `--doctor` says before anything is started, of a machine that is as it should be and of one that is not."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs import bootnode as bootnode_config
from configs import node as node_config
from configs import quickstart
from rlswarm_jax import identity, keystore
from rlswarm_jax.chain import calls
from rlswarm_jax.chain.deployment import Rules, deploy
from rlswarm_jax.errors import UsageError
from rlswarm_jax.identity import simulated
from rlswarm_jax.running import doctor, folder, machine_checks, network_checks
from rlswarm_jax.running.arguments import parse
from rlswarm_jax.running.findings import FINE, LOOK, UNKNOWN, WAIT, WRONG, Finding
from rlswarm_jax.swarm import reaching
from rlswarm_jax.tasks import sandbox
from tests.chain import fake_endpoint
from tests.chain.local_chain import CHAIN_ID, LocalChain
from tests.swarm.live import Node
from tests.waits import wait_for

OWNER, NODE = simulated(5, 0), simulated(5, 1)
NAMES = [
    *("port", "reachable", "bootnodes", "clock", "chain", "identity"),
    *("disk", "device", "memory", "weights", "sandbox"),
]


def config(**changes):
    found = node_config.get_config("smoke")
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# --- the whole


def test_a_machine_that_is_as_it_should_be_is_told_so_in_a_minute_and_nothing_is_left(tmp_path):
    began = time.monotonic()
    words = ["--config", "configs/node.py:smoke", "--workdir", str(tmp_path / "run"), "--doctor"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *words],
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and time.monotonic() - began < 60, done.stdout + done.stderr
    assert [line.split()[1] for line in lines[1:-1]] == NAMES
    assert {line.split()[0] for line in lines[1:-1]} <= {FINE, LOOK, UNKNOWN}
    assert lines[-1] == "nothing keeps this from running here" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("states", "code"),
    [([FINE], 0), ([FINE, LOOK, UNKNOWN], 0), ([FINE, WAIT], 75), ([WAIT, WRONG, FINE], 2)],
    ids=["fine", "advice", "may-pass", "to-mend"],
)
def test_the_exit_code_says_what_may_help(monkeypatch, tmp_path, states, code, capsys):
    found = {f"thing {n}": Finding(state, "said so", "do so") for n, state in enumerate(states)}
    monkeypatch.setattr(doctor, "checks_of", lambda *_: {name: lambda one=one: one for name, one in found.items()})
    assert doctor.run(config(), tmp_path) == code
    assert capsys.readouterr().out.count("said so  -> do so") == len(states)


def test_one_check_that_fails_or_never_ends_hides_no_other():
    never = threading.Event()
    checks = {"slow": lambda: never.wait() and None, "broken": lambda: 1 // 0, "good": lambda: Finding(FINE, "yes")}
    found = doctor.carry_out(checks, seconds=0.5)
    never.set()
    assert [found[name].state for name in checks] == [UNKNOWN, UNKNOWN, FINE]
    assert "ZeroDivisionError" in found["broken"].said and "0 s" in found["slow"].said


def test_what_an_endpoint_says_is_one_line_that_a_terminal_does_not_obey(capsys):
    from rich.console import Console

    Console(width=500).print(doctor.table({"chain": Finding(WRONG, "\x1b[2J\nboom [bold]" + "x" * 999)}))
    said = capsys.readouterr().out
    assert "\x1b" not in said and said.count("\n") == 1 and "[bold]" in said and len(said) < 400


def test_it_is_a_flag_of_run_alone_in_its_help_and_takes_a_config():
    given = parse(["--config", "configs/node.py:smoke", "--doctor"])
    assert given.doctor and not parse(["--config", "configs/node.py:smoke"]).doctor
    with pytest.raises(UsageError, match="did you mean --doctor"):
        parse(["--config", "configs/node.py:smoke", "--docter"])
    assert "--doctor" in Path("experiments/run.py").read_text()


# --- the network


def test_a_port_that_is_free_taken_or_impossible(tmp_path, listener):
    taken = network_checks.port(config(swarm__port=listener), tmp_path)
    assert taken.state == WAIT and f"port {listener} of 127.0.0.1 is in use" in taken.said
    assert network_checks.port(config(), tmp_path).state == FINE
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for host in ("0.0.0.0", "any"):
        assert network_checks.port(config(swarm__port=free, swarm__host=host), tmp_path).state == FINE
    away = network_checks.port(config(swarm__host="203.0.113.7"), tmp_path)
    assert away.state == WRONG and "config.swarm.host" in away.advice
    with folder.lock(tmp_path):
        assert network_checks.port(config(), tmp_path).state == LOOK


def test_who_can_reach_it_as_far_as_that_is_known(tmp_path, listener):
    states = [
        network_checks.reachable(config(**fields), tmp_path).state
        for fields in ({}, {"swarm__host": "0.0.0.0"}, {"swarm__host": "0.0.0.0", "swarm__port": 4001})
    ]
    assert states == [LOOK, LOOK, UNKNOWN]
    assert network_checks.reachable(quickstart.get_config("smoke"), tmp_path).state == FINE


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_bootnode_says_whether_it_could_dial_back_also_to_a_node_that_runs(tmp_path, monkeypatch):
    bootnode = Node()
    try:
        told = {"swarm__name": "tests", "swarm__bootnodes": [bootnode.addresses[0]], "swarm__host": "any"}
        found = network_checks.reachable(config(**told, swarm__port=free_port()), tmp_path)
        assert found.state == FINE and "/ip4/127.0.0.1/tcp/" in found.said and not bootnode.count("network/malformed")

        running = Node(bootnode.addresses[:1])
        try:
            wait_for(lambda: bootnode.sees(running), "it has come")
            (tmp_path / "node.json").write_text(json.dumps({"peer_id": running.identity.peer_id}))
            with folder.lock(tmp_path):
                found = network_checks.reachable(config(**told, swarm__port=free_port()), tmp_path)
            assert found.state == FINE and running.addresses[0].partition("/p2p/")[0] in found.said
        finally:
            running.gossip.close()

        monkeypatch.setattr(network_checks, "DIALLED_SECONDS", 3.0)
        monkeypatch.setattr(reaching.Reaching, "_answers", nobody_answers)  # as through a router that lets nothing in
        found = network_checks.reachable(config(**told, swarm__port=free_port()), tmp_path)
        assert found.state == LOOK and "could not dial it" in found.said and "announce" in found.advice
    finally:
        bootnode.gossip.close()


async def nobody_answers(self, peer, address) -> bool:
    return False


def test_bootnodes_that_answer_and_that_do_not(listener):
    def named(*ports):
        return config(swarm__bootnodes=[f"/ip4/127.0.0.1/tcp/{port}/p2p/{NODE.peer_id}" for port in ports])

    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = server.getsockname()[1]
    assert network_checks.bootnodes(config()).state == FINE
    assert network_checks.bootnodes(named(listener)).said == "1 of 1 answer"
    some, none = network_checks.bootnodes(named(listener, silent)), network_checks.bootnodes(named(silent))
    assert some.state == LOOK and str(silent) in some.advice and none.state == WAIT
    nowhere = config(swarm__bootnodes=[f"/dns4/nowhere.invalid/tcp/1/p2p/{NODE.peer_id}"])
    assert network_checks.bootnodes(nowhere).state == WAIT


def test_of_a_bootnode_what_it_has_is_looked_at(tmp_path, listener):
    changed = bootnode_config.get_config("smoke")
    with changed.unlocked():
        changed.swarm.port = listener
    found = doctor.carry_out(doctor.checks_of(changed, tmp_path))
    assert [*found] == ["port", "reachable", "bootnodes", "identity"] and found["identity"].state == FINE
    assert found["reachable"].state == UNKNOWN and f"dial port {listener} back" in found["reachable"].said


# --- the chain


@pytest.fixture(scope="module")
def network():
    chain = LocalChain(instant=True)
    chain.fund(calls.account_of(OWNER.author))
    made = deploy(chain, OWNER, CHAIN_ID, Rules())
    with fake_endpoint.serve(fake_endpoint.speak(chain, threading.Lock())) as url:
        yield chain, url, made.address


def test_a_chain_with_its_contract_and_the_node_s_account_there(network, tmp_path):
    chain, url, contract = network
    fields = {"chain__endpoint": url, "chain__contract": contract, "chain__id": CHAIN_ID}
    known = network_checks.chain(config(**fields), tmp_path)
    assert known.state == FINE and "round 0, 0 peers" in known.said and not (tmp_path / "node.key").exists()
    identity.create(tmp_path / "node.key", NODE)
    poor = network_checks.chain(config(**fields), tmp_path)
    assert poor.state == LOOK and "0.0000 coins and is not registered" in poor.said
    chain.fund(calls.account_of(NODE.author))
    assert network_checks.chain(config(**fields), tmp_path).state == FINE
    nowhere = network_checks.chain(config(**fields | {"chain__contract": "0x" + "11" * 20}), tmp_path)
    other = network_checks.chain(config(**fields | {"chain__id": 1}), tmp_path)
    assert nowhere.state == other.state == WRONG
    assert "no contract" in nowhere.said and f"serves chain {CHAIN_ID}" in other.said
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = server.getsockname()[1]
    away = network_checks.chain(config(**fields | {"chain__endpoint": f"http://127.0.0.1:{gone}"}), tmp_path)
    assert away.state == WAIT and "tries again" in away.advice
    assert network_checks.chain(config(), tmp_path).state == FINE


@pytest.mark.parametrize(("off", "state"), [(0, FINE), (-60, FINE), (60, WRONG), (-900, LOOK)])
def test_a_clock_is_compared_with_the_newest_block(monkeypatch, off, state):
    class Chain:
        class eth:
            @staticmethod
            def get_block(which):
                return {"timestamp": int(time.time()) + off}

    monkeypatch.setattr(network_checks, "_endpoint", lambda url, number: Chain)
    found = network_checks.clock(config(chain__endpoint="http://127.0.0.1:1", chain__contract="0x" + "11" * 20))
    assert found.state == state and bool(found.advice) == (state != FINE)
    assert network_checks.clock(config()).state == UNKNOWN


# --- the key


def test_a_key_that_can_be_used_and_those_that_cannot(tmp_path, monkeypatch):
    def state(place=tmp_path):
        return network_checks.key(config(), place)

    monkeypatch.setattr(keystore, "KDF_WORK", 2)
    for name in (keystore.VARIABLE, keystore.FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "node.key"
    assert state().state == FINE and not path.exists()
    identity.create(path, NODE)
    assert state().state == FINE and NODE.peer_id in state().said
    path.chmod(0o644)
    assert state().state == WRONG
    path.chmod(0o600)
    identity.mark(path, 5)
    assert state().state == WRONG and "another journal" in state().said
    path.unlink()
    identity.create(path, NODE, "correct horse")
    assert state().state == LOOK and "passphrase" in state().said
    monkeypatch.setenv(keystore.VARIABLE, "correct horse")
    assert state().state == FINE
    monkeypatch.setenv(keystore.VARIABLE, "wrong horse")
    assert state().state == WRONG
    for mark in (identity.mark_moved, identity.mark_restored, lambda key: identity.mark_given_up(key, "16Uiu2x")):
        path.unlink()
        identity.create(path, NODE)
        mark(path)
        assert state().state == WRONG, mark


# --- the machine

FITS = {"backend": "cpu", "devices": ["cpu"], "state": 10**6, "peak": 10**9, "limit": 10**10}


def test_a_disk_with_room_without_and_slow(tmp_path, monkeypatch):
    def state(**changes):
        return machine_checks.disk(config(**changes), tmp_path / "not" / "yet", lambda: FITS)

    assert state().state == FINE and not list(tmp_path.iterdir())
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(machine_checks, "_speed", lambda place, size: 5e6)
        assert state().state == LOOK
        patched.setattr(shutil, "disk_usage", lambda place: usage._replace(free=3 * 2**30))
        assert state(audit__megabytes=4096).state == WRONG

        def full(place, size):
            raise OSError(28, "No space left on device")

        patched.setattr(machine_checks, "_speed", full)
        assert "No space left" in state().said


@pytest.mark.parametrize(
    ("found", "device", "memory"),
    [
        (FITS, FINE, FINE),
        (FITS | {"peak": int(0.95e10)}, FINE, WRONG),
        ({"error": "jax did not start within 50 s"}, WRONG, UNKNOWN),
        ({"backend": "cpu", "devices": ["cpu"], "why": "no such model"}, FINE, UNKNOWN),
    ],
    ids=["fits", "too-much", "no-jax", "no-model"],
)
def test_what_jax_finds_and_what_a_round_would_take_of_it(monkeypatch, found, device, memory):
    monkeypatch.setattr(machine_checks, "visible_gpus", list)
    assert machine_checks.device(config(), lambda: found).state == device
    assert machine_checks.memory(lambda: found).state == memory
    monkeypatch.setattr(machine_checks, "visible_gpus", lambda: ["0"])
    if device == FINE:
        assert machine_checks.device(config(), lambda: found).state == LOOK


def test_the_machine_is_asked_once_in_a_process_that_may_fail(monkeypatch):
    asked = []
    machine = machine_checks.Once(lambda: asked.append(1) or FITS)
    assert machine() == machine() == FITS and len(asked) == 1

    def ended(*_, **__):
        return subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no jaxlib here\n")

    monkeypatch.setattr(subprocess, "run", ended)
    assert machine_checks.look_at_machine(config()) == {"error": "ImportError: no jaxlib here"}


def test_weights_that_are_here_damaged_or_to_be_fetched(tmp_path, monkeypatch):
    assert machine_checks.weights(config()).state == FINE
    assert machine_checks.weights(config(model__path="/no/such/model")).state == WRONG
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert machine_checks.weights(config(model__path=str(tmp_path))).state == WRONG
    monkeypatch.setattr(machine_checks, "cached", lambda name: None)
    assert "hf download Qwen/Qwen9" in machine_checks.weights(config(model__path="Qwen/Qwen9")).advice


def test_a_sandbox_is_needed_where_there_are_programs(monkeypatch):
    code = {"programs": {"kind": "code", "path": "embedded:programs"}}
    for active, tasks, state in ((True, code, FINE), (False, code, WRONG), (False, {"sums": {}}, FINE)):
        monkeypatch.setattr(sandbox, "probe", lambda active=active: sandbox.Probe(active, "as it is"))
        changed = config()
        with changed.unlocked():
            changed.tasks = tasks
        assert machine_checks.sandbox(changed).state == state
