import json

import pytest

from rlswarm_jax.metrics import MetricsError, MetricsLog, read_rows, whole_bytes


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


@pytest.mark.parametrize("has_key", [False, True])
def test_auto_is_online_only_where_the_user_is_logged_in(tmp_path, monkeypatch, has_key):
    wandb = pytest.importorskip("wandb")
    started = {}

    class Run:
        def __init__(self):
            self.summary = started.setdefault("summary", {})

        def define_metric(self, *_, **__): ...
        def log(self, values):
            started.setdefault("rows", []).append(values)

        def finish(self):
            started["finished"] = True

    monkeypatch.setattr(wandb, "init", lambda **options: started.update(options) or Run())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if has_key:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(row(2))
    mode = log.start_wandb("auto", workdir=tmp_path, project="p", group="g", config={})
    assert mode == started["mode"] == ("online" if has_key else "offline")
    assert started["group"] == "g"
    log.write(row(3))
    assert started["rows"] == [{"round": r, "node0/reward/mean": 0.5} for r in (2, 3)]  # what was there, too
    log.close({"x": 1})
    assert started["finished"] and started["summary"] == {"x": 1}
