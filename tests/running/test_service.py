"""What a supervisor is given: systemd and launchd take it, and it starts the run that it was printed for."""

import os
import plistlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlswarm_jax.errors import BROKEN, DONE, INTERRUPTED, MAY_PASS, MEND, UsageError
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import notify, service, start
from rlswarm_jax.status import Status
from tests.waits import wait_for

CHECKOUT = Path(__file__).parent.parent.parent
NODE = ["--config=configs/node.py"]
ODD = ['--config.swarm.name=it\'s 100% "odd" $HOME \\ here']
systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")


def parsed(*words: str):
    return cli.parse([*words])


def lines(text: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


def unit(*words: str) -> str:
    return service.text("systemd", parsed(*words))


UNITS = {
    "a node": NODE,
    "a swarm": ["--config=configs/quickstart.py:smoke"],
    "odd words": [*NODE, *ODD],
    "a folder with a blank": [*NODE, "--workdir", "/var/lib/my runs/100%"],
    "programs": [*NODE, "--config.tasks={'code': {'weight': 1.0, 'kind': 'code'}}"],
}


@systemd
@pytest.mark.parametrize("words", UNITS.values(), ids=UNITS)
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path, words):
    path = tmp_path / "rlswarm.service"
    path.write_text(unit(*words))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    wrong = path.read_text().replace("KillMode=mixed", "KillMode=mixt")
    path.write_text(wrong)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert "mixt" in done.stderr, "the check itself sees what is wrong"


@systemd
def test_it_is_exposed_little(tmp_path):
    path = tmp_path / "rlswarm.service"
    path.write_text(unit(*NODE).replace(f"User={os.environ.get('USER', 'root')}", "User=nobody"))
    least = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(path)]
    assert subprocess.run(least, capture_output=True, timeout=60).returncode == 0
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert subprocess.run(least, capture_output=True, timeout=60).returncode != 0


def started(text: str) -> list[str]:
    """The words of ExecStart, as systemd.service(5) has them read: quotes, backslashes, %% and $$."""
    (line,) = lines(text, "ExecStart")
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


@pytest.mark.parametrize("words", UNITS.values(), ids=UNITS)
def test_it_starts_the_same_run_from_anywhere(words, monkeypatch, tmp_path):
    wanted, text = parsed(*words), unit(*words, "--print-service")
    assert lines(text, "WorkingDirectory") == [str(Path.cwd())]
    command = started(text)
    assert command[:3] == [sys.executable, "-m", "experiments.run"]
    monkeypatch.chdir(tmp_path)
    found = parsed(*command[3:])
    assert found.config.to_json_best_effort() == wanted.config.to_json_best_effort()
    assert found.workdir == CHECKOUT / wanted.workdir and found.resume and not found.service
    properties = plistlib.loads(service.plist(wanted).encode())["ProgramArguments"]
    assert properties[properties.index("-m") - 1 :][3:][0].startswith("--config=/")


def test_what_it_may_write_is_where_runs_are(tmp_path):
    text = unit(*NODE, "--workdir", str(tmp_path / "runs" / "mine"))
    assert str(tmp_path) in lines(text, "ReadWritePaths")[0], "the folder above is not there yet"
    assert lines(text, "ProtectSystem") == ["strict"] and lines(text, "PrivateTmp") == ["no"]
    assert "%%" not in text and "{" not in text


def test_no_secret_goes_into_it(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "ENDPOINT"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    text = unit(*NODE)
    assert "hush" not in text and "Environment=JAX_ENABLE_X64=0" in text
    assert "hush" not in service.plist(parsed(*NODE))


def test_programs_of_others_have_their_namespaces():
    assert "RestrictNamespaces" in unit(*NODE) and "RestrictNamespaces" not in unit(*UNITS["programs"])


def test_a_code_restarts_or_not_as_the_documents_say():
    text, page = unit(*NODE), (CHECKOUT / "docs" / "operate.md").read_text()
    assert lines(text, "RestartPreventExitStatus") == [str(MEND)] and lines(text, "Restart") == ["on-failure"]
    assert lines(text, "SuccessExitStatus") == [str(INTERRUPTED)]
    for code, again in {DONE: "no", INTERRUPTED: "no", MEND: "no", MAY_PASS: "yes", BROKEN: "yes"}.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {code} |")]
        assert row.split("|")[3].strip().startswith(again)


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["--print-service"], "systemd"),
        (["--print-service", "launchd"], "launchd"),
        (["-print-service=launchd"], "launchd"),
    ],
    ids=["bare", "a word", "a value"],
)
def test_it_is_printed_and_nothing_is_done(argv, kind, tmp_path, capsys):
    arguments = parsed(*argv[:1], *argv[1:], *NODE, "--workdir", str(tmp_path / "run"))
    assert arguments.service == kind and "print-service" not in str(arguments.words) + str(service.command(arguments))
    assert start.run(arguments) == DONE and not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    assert printed.startswith("# rlswarm_jax-node" if kind == "systemd" else "<?xml")


def test_another_supervisor_is_one_sentence():
    with pytest.raises(UsageError, match=r"no service 'upstart'; expected .*\.$"):
        start.run(parsed("--print-service=upstart", *NODE))


# --- launchd


def shell(script: str) -> list[str]:
    made = plistlib.loads(service.plist(parsed(*NODE)).encode())
    words = made["ProgramArguments"]
    assert words[:2] == ["/bin/sh", "-c"] and made["KeepAlive"] == {"SuccessfulExit": False}
    return [*words[:4], sys.executable, "-c", script]


@pytest.mark.parametrize(
    ("code", "seen"), [(DONE, 0), (INTERRUPTED, 0), (MEND, 0), (MAY_PASS, MAY_PASS), (BROKEN, BROKEN)]
)
def test_launchd_sees_success_where_nothing_is_to_be_started_again(code, seen):
    assert subprocess.run(shell(f"raise SystemExit({code})"), timeout=30).returncode == seen
    killed = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run(shell(killed), capture_output=True, timeout=30).returncode not in (0, 2, 130)


def test_launchd_s_request_to_stop_comes_to_the_run_once(tmp_path):
    script = f"""
import signal, sys, time, pathlib
got = []
def stop(*_):
    got.append(1)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(tmp_path / "up")!r}).touch()
while not got:
    time.sleep(0.05)
time.sleep(0.5)
pathlib.Path({str(tmp_path / "got")!r}).write_text(str(len(got)))
sys.exit(130)
"""
    process = subprocess.Popen(shell(script))
    wait_for((tmp_path / "up").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0 and (tmp_path / "got").read_text() == "1"


# --- what systemd is told


@pytest.fixture
def channel(tmp_path, monkeypatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(path))
        made.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "150000")
        yield made


def test_systemd_hears_of_a_node_until_it_is_stalled(channel):
    told = Status()

    def next_with(begin: str, without: str = "?") -> str:
        for _ in range(100):
            said = channel.recv(1000).decode()
            if said.startswith(begin) and without not in said:
                return said
        raise AssertionError(f"{begin} was not said")

    with notify.told(told):
        assert channel.recv(1000) == b"READY=1"
        assert "WATCHDOG=1" in next_with("STATUS=starting")
        told.begins("learns", 4, "")
        said = next_with("STATUS=ready")
        assert "it learns in round 4" in said and "WATCHDOG=1" in said
        told._clock = lambda: time.monotonic() + 10_000
        assert "WATCHDOG" not in next_with("STATUS=stalled")
        told._clock = time.monotonic
        assert "WATCHDOG=1" in next_with("STATUS=ready")
    assert next_with("STOPPING=1")


def test_without_systemd_nothing_is_told(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with notify.told(Status()):
        pass
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    with notify.told(Status()):
        pass  # it is away, and that ends nothing
