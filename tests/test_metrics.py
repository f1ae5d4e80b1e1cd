import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlswarm_jax.metrics import MetricsError, MetricsLog, read_rows, whole_bytes

CHECKOUT = Path(__file__).parent.parent


def row(round_: int) -> dict:
    return {"node": 0, "round": round_, "reward/mean": 0.5}


def test_rows_are_appended_and_read_back(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for round_ in range(3):
        log.write(row(round_))
    assert log.offset == (tmp_path / "m.jsonl").stat().st_size
    log.close()
    assert read_rows(tmp_path / "m.jsonl") == [row(0), row(1), row(2)]


def test_a_resumed_run_cuts_back_to_the_checkpoints_offset(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(row(0))
    offset = log.offset
    log.write(row(1))
    log.close()
    log = MetricsLog(tmp_path / "m.jsonl", keep_bytes=offset)
    log.write(row(7))
    log.close()
    assert read_rows(tmp_path / "m.jsonl") == [row(0), row(7)]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    whole = json.dumps(row(0)) + "\n"
    (tmp_path / "m.jsonl").write_text(whole + whole[:9])
    assert read_rows(tmp_path / "m.jsonl") == [row(0)]
    assert whole_bytes(tmp_path / "m.jsonl") == len(whole) and whole_bytes(tmp_path / "none.jsonl") == 0
    log = MetricsLog(tmp_path / "m.jsonl", whole_bytes(tmp_path / "m.jsonl"))
    log.write(row(1))
    assert read_rows(tmp_path / "m.jsonl") == [row(0), row(1)]


def test_a_full_disk_and_a_missing_folder_are_named_errors(tmp_path):
    with pytest.raises(MetricsError, match="nowhere"):
        MetricsLog(tmp_path / "nowhere" / "m.jsonl")


@pytest.mark.skipif(not __import__("os").path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_a_named_error(tmp_path):
    (tmp_path / "m.jsonl").symlink_to("/dev/full")
    with pytest.raises(MetricsError, match="No space left"):
        MetricsLog(tmp_path / "m.jsonl").write(row(0))


KEY = {"WANDB_API_KEY": "0" * 40}


@pytest.mark.parametrize(
    ("environment", "handed_over", "mode"),
    [
        ({}, "nothing", "disabled"),
        (KEY, None, "online"),  # None: wandb's own settings files have a say
        (KEY | {"WANDB_MODE": "offline"}, "offline", "offline"),
        (KEY | {"WANDB_MODE": "dryrun"}, "offline", "offline"),
        (KEY | {"WANDB_MODE": " Offline "}, "offline", "offline"),
        (KEY | {"WANDB_MODE": "disabled"}, "nothing", "disabled"),
        (KEY | {"WANDB_MODE": "of course"}, "nothing", "disabled"),
        (KEY | {"WANDB_DISABLED": "true"}, "nothing", "disabled"),
        (KEY | {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "nothing", "disabled"),
        (KEY | {"WANDB_DISABLED": "false", "WANDB_MODE": "offline"}, "offline", "offline"),
        (KEY | {"WANDB_DISABLED": "", "WANDB_MODE": ""}, None, "online"),
        ({"WANDB_MODE": "online"}, "online", "online"),
        ({"WANDB_MODE": "run"}, "online", "online"),
        ({"WANDB_MODE": "shared"}, "shared", "shared"),
    ],
)
def test_auto_obeys_the_environment_and_else_is_online_where_one_is_logged_in(
    tmp_path, monkeypatch, environment, handed_over, mode
):
    wandb = pytest.importorskip("wandb")
    started = {"mode": "nothing"}

    class Run:
        disabled = False

        def __init__(self):
            self.summary = started.setdefault("summary", {})
            self.settings = SimpleNamespace(mode=started["mode"] or "online")

        def define_metric(self, *_, **__): ...
        def log(self, values):
            started.setdefault("rows", []).append(values)

        def finish(self):
            started["finished"] = True

    monkeypatch.setattr(wandb, "init", lambda **options: started.update(options) or Run())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(row(2))
    labels = {"tags": ["t"], "run_id": "abc"}
    assert log.start_wandb("auto", workdir=tmp_path, project="p", group="g", config={}, **labels) == mode
    assert started["mode"] == handed_over
    log.write(row(3))
    log.close({"x": 1})
    if mode == "disabled":
        assert len(started) == 1
        return
    assert (started["group"], started["tags"], started["id"]) == ("g", ("t",), "abc")
    assert started["rows"] == [{"round": r, "node0/reward/mean": 0.5} for r in (2, 3)]  # what was there, too
    assert started["finished"] and started["summary"] == {"x": 1}


def test_what_keeps_wandb_from_starting_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", init)
    log = MetricsLog(tmp_path / "m.jsonl")
    mode = log.start_wandb("online", workdir=tmp_path, project="p", group="g", config={})
    assert mode.startswith("disabled, as it cannot start: ") and "No space left" in mode
    log.write(row(0))
    log.close()


START = """
import pathlib, sys
from rlswarm_jax.metrics import MetricsLog
log = MetricsLog(pathlib.Path("m.jsonl"))
print(log.start_wandb("auto", workdir=pathlib.Path("."), project="p", group="g", config={}))
log.close({})
"""


def test_nothing_is_sent_where_the_environment_says_offline(tmp_path):
    """By the real library, to a service of our own; without the word it is called."""
    pytest.importorskip("wandb")
    called = []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            called.append(self.path)
            self.send_error(400)

        do_GET = do_POST

        def log_message(self, *_): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "PYTHONPATH": str(CHECKOUT), "NO_PROXY": "*"}
        for words, calls in (({"WANDB_MODE": "offline"}, False), ({}, True)):
            clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
            settings = clean | KEY | own | words | {"HOME": str(tmp_path)}
            done = subprocess.run(
                [sys.executable, "-c", START], cwd=tmp_path, env=settings, capture_output=True, text=True
            )
            assert done.stdout.splitlines()[-1] == "offline", done.stderr  # a service that refuses is one out of reach
            assert bool(called) is calls
        server.shutdown()
