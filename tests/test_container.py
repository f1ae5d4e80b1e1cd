"""The container file: built and run where there is a daemon, else read, and its steps done in a plain folder."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlswarm_jax.running import arguments as cli
from tests.grpo import tiny
from tests.small import SHAPES
from tests.waits import wait_for

ROOT = Path(__file__).parent.parent
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE"}
KNOWN |= {"STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@functools.cache
def steps() -> list[tuple[str, str]]:
    """Instruction and argument, lines that go on joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]
    assert all(len(one) == 2 and one[0] in KNOWN for one in found), found
    return found  # type: ignore[return-value]


def of(instruction: str) -> list[str]:
    return [argument for name, argument in steps() if name == instruction]


def words(instruction: str) -> list[str]:
    """In exec form: of a shell's form process 1 would be a shell, which passes no signal on."""
    return json.loads(re.search(r"\[.*\]$", of(instruction)[0])[0])


def copied() -> list[str]:
    return [argument.split()[0] for argument in of("COPY")]


def test_it_is_no_root_keeps_all_in_one_volume_and_copies_what_there_is():
    assert steps()[0][0] == "FROM" and of("USER") == ["10001:10001"] and of("VOLUME") == ["/data"]
    names = [name for name, _ in steps()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert all((ROOT / source).exists() for source in copied())
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied()), ".dockerignore leaves out what is copied, or sends what is not"
    for value in re.findall(r"=(\S+)", of("ENV")[0]):
        assert value.startswith("/data") or "/" not in value, "it may write to the volume alone"


def test_what_it_starts_is_a_run_that_its_health_check_asks():
    config = cli.parse([*words("ENTRYPOINT")[3:], *words("CMD")]).config
    cli.check(config)
    assert config.driver == "node" and str(config.swarm.port) in of("EXPOSE")[0]
    assert f"http://{config.swarm.health}/healthz" in " ".join(words("HEALTHCHECK"))
    assert words("ENTRYPOINT")[:3] == ["python", "-m", "experiments.run"] and "--resume" in words("ENTRYPOINT")
    document = (ROOT / "Dockerfile").read_text()
    assert "--read-only" in document and "--cap-drop ALL" in document


def test_the_lock_is_installed_as_make_does():
    make = (ROOT / "Makefile").read_text()
    run = " ".join(of("RUN"))
    for option in ("--no-deps", "--no-build-isolation", "-r requirements.lock"):
        assert option in make and option in run
    (shell,) = re.findall(r'"\$\((sed .*?)\)"', run)
    setuptools = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert re.fullmatch(r"setuptools==[\d.]+", setuptools)


def read_only(folder: Path) -> list[str]:
    """What a command begins with that shall not be able to write there; nothing where that can't be had."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && shift 0 && exec "$@"'
    start = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c", script, str(folder)]
    try:
        tried = subprocess.run([*start, "touch", str(folder / "x")], capture_output=True, timeout=30)
    except FileNotFoundError:
        return []
    return start if b"Read-only" in tried.stderr else []


@pytest.mark.slow
def test_its_steps_in_a_plain_folder_make_a_node_that_is_well_stops_and_goes_on(tmp_path):
    app, data = tmp_path / "app", tmp_path / "data"
    app.mkdir()
    data.mkdir()
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
        copy(ROOT / source, app / source)
    compile_ = next(argument for argument in of("RUN") if "compileall" in argument).split()
    assert subprocess.run([sys.executable, *compile_[1:]], cwd=app, timeout=300).returncode == 0
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        health, port = (one.getsockname()[1] for one in (free, other))

    def here(word: str) -> str:
        return word.replace("/data", str(data)).replace(":9464", f":{health}").replace("=4001", f"={port}")

    def command(instruction: str) -> list[str]:
        return [sys.executable, *map(here, words(instruction)[1:])]

    settings = dict(pair.split("=", 1) for pair in here(of("ENV")[0]).split())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | tiny.QUICKLY | settings
    started = [*read_only(app), *command("ENTRYPOINT"), *words("CMD"), *SHAPES, "--config.wandb.mode=disabled"]
    log = (tmp_path / "log").open("wb")
    asked = command("HEALTHCHECK")

    def well() -> bool:
        return subprocess.run(asked, capture_output=True, timeout=30).returncode == 0

    for time_ in ("first", "again"):
        before = len(rows(data))
        process = subprocess.Popen(started, cwd=app, env=environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: process.poll() is not None or (well() and len(rows(data)) > before + 1), time_, 300.0)  # noqa: B023
            assert process.poll() is None, (tmp_path / "log").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 130
        finally:
            process.kill()
            process.wait()
        assert not well(), "nobody is there"
    played = [row["round"] for row in rows(data)]
    assert played == list(range(len(played)))
    assert sorted(path.name for path in app.iterdir()) == sorted(copied()), "it has written into its own root"


def rows(data: Path) -> list[dict]:
    path = data / "node" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@functools.cache
def daemon() -> str:
    for program in ("docker", "podman"):
        if shutil.which(program) and subprocess.run([program, "info"], capture_output=True).returncode == 0:
            return program
    return ""


@pytest.mark.slow
def test_it_is_built_and_runs_without_root_on_a_read_only_root(tmp_path):
    name, program = f"rlswarm-test-{os.getpid()}", daemon()
    if not program:
        pytest.skip("neither docker nor podman runs here")

    def do(*arguments: str, seconds: float = 60.0) -> str:
        done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    do("build", "-t", name, ".", seconds=1800)
    confined = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    try:
        do("run", "-d", "--init", "--name", name, *confined, name, "--config=configs/node.py:smoke", *SHAPES)
        assert do("exec", name, "id", "-u").strip() == "10001"
        deadline = time.monotonic() + 600
        while "running" in (state := do("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name)):
            assert time.monotonic() < deadline
            time.sleep(2)
        assert state.split() == ["exited", "0"], do("logs", name)[-2000:]
    finally:
        subprocess.run([program, "rm", "-fv", name], capture_output=True)
        subprocess.run([program, "rmi", "-f", name], capture_output=True)
