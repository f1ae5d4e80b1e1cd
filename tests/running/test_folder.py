"""What a run's folder is to a second start: empty, another's, or a run to go on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import common, quickstart
from rlswarm_jax import files, identity
from rlswarm_jax.errors import DiskError, UsageError
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.running import folder

CHECKOUT = Path(__file__).parent.parent.parent


def config_of(**changes):
    config = quickstart.get_config("simulate-smoke")
    config.update_from_flattened_dict(changes)
    return config


def said(journal: Path, kind: str) -> None:
    journal.parent.mkdir(parents=True, exist_ok=True)
    opened = Journal(journal)
    opened.write(Entry(0, 0, 0, kind, b"record", 0.0))
    opened.close()


def begun(workdir: Path, **changes) -> Path:
    folder.prepare_folder(config_of(**changes), workdir, False)
    said(workdir / "journal.sqlite", "Publish")
    return workdir


def stored(workdir: Path) -> dict:
    return json.loads((workdir / "config.json").read_text())


def fails(*arguments: str) -> None:
    command = [sys.executable, "-m", "experiments.run", "--config=configs/solo.py:smoke", *arguments]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("resume", [False, True])
def test_a_first_start_that_failed_blocks_nothing(tmp_path, resume):
    """A typo in the model's path, said by a run: neither the corrected command nor --resume could go on."""
    workdir = tmp_path / "run"
    fails("--config.model.path=/no/such/model", f"--workdir={workdir}")
    assert (workdir / "config.json").exists()
    assert folder.prepare_folder(config_of(), workdir, resume) is False
    assert stored(workdir)["model"]["path"] == "embedded"


@pytest.mark.parametrize("left", ["journal.sqlite", "node-0/journal.sqlite"])
def test_a_journal_in_which_nothing_was_said_is_none(tmp_path, left):
    folder.prepare_folder(config_of(seed=3), tmp_path / "run", False)
    journal = tmp_path / "run" / left
    said(journal, "Sample")  # and then a prompt was too long
    before = Journal(journal)
    assert folder.prepare_folder(config_of(), tmp_path / "run", False) is False
    after = Journal(journal)
    assert after.id == before.id and after.read(0, 0) == []  # a key still knows it


@pytest.mark.parametrize("left", ["journal.sqlite", "node-0/journal.sqlite", "node-12/journal.sqlite"])
def test_a_run_that_has_spoken_is_never_begun_anew(tmp_path, left):
    folder.prepare_folder(config_of(seed=3), tmp_path / "run", False)
    said(tmp_path / "run" / left, "Publish")
    with pytest.raises(UsageError, match="add --resume"):
        folder.prepare_folder(config_of(seed=3), tmp_path / "run", False)
    with pytest.raises(UsageError, match=r"another config\.seed"):
        folder.prepare_folder(config_of(), tmp_path / "run", True)
    assert Journal(tmp_path / "run" / left).read(0, 0)


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/20/states", "node-1/checkpoints/4/states"])
def test_what_was_learned_is_not_lost_where_the_journal_was_pruned(tmp_path, left):
    folder.prepare_folder(config_of(seed=3), tmp_path / "run", False)
    (tmp_path / "run" / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / left).write_text("{}\n")
    with pytest.raises(UsageError, match="add --resume"):
        folder.prepare_folder(config_of(), tmp_path / "run", False)
    assert (tmp_path / "run" / left).exists()


def test_a_damaged_journal_may_hold_anything(tmp_path):
    folder.prepare_folder(config_of(), tmp_path / "run", False)
    (tmp_path / "run" / "journal.sqlite").write_bytes(b"?" * 4096)
    with pytest.raises(UsageError, match="add --resume"):
        folder.prepare_folder(config_of(), tmp_path / "run", False)


def test_another_seed_has_other_keys_after_a_start_that_failed(tmp_path):
    workdir = tmp_path / "run"
    folder.prepare_folder(config_of(seed=3), workdir, False)
    for index, own in enumerate((identity.simulated(3, 0), identity.Identity(b"7" * 32))):
        (workdir / f"node-{index}").mkdir()
        identity.create(workdir / f"node-{index}" / "node.key", own)
    folder.prepare_folder(config_of(), workdir, False)
    assert not (workdir / "node-0" / "node.key").exists()  # anyone can derive it
    assert (workdir / "node-1" / "node.key").exists()  # nobody can


def test_files_that_are_no_runs_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds files but no run"):
        folder.prepare_folder(config_of(), tmp_path / "mine", True)
    for content in ("", "[1]", "{"):
        (tmp_path / "mine" / "config.json").write_text(content)
        with pytest.raises(UsageError, match="is not JSON of a config"):
            folder.prepare_folder(config_of(), tmp_path / "mine", True)


# --- a run that another version began


@pytest.mark.parametrize("absent", ["learn.clip_low", "chain", "game.personas", "tasks", "wandb.mode"])
def test_a_field_that_a_stored_config_lacks_has_its_default_which_is_said_once(tmp_path, absent, capsys):
    workdir = begun(tmp_path / "run", **{"wandb.mode": "auto"})
    old = stored(workdir)
    *sections, leaf = absent.split(".")
    del (old[sections[0]] if sections else old)[leaf]
    (workdir / "config.json").write_text(json.dumps(old))
    config = config_of(**{"wandb.mode": "auto"})
    capsys.readouterr()
    if absent == "chain":
        config.chain.endpoint = "devnet"
    assert folder.prepare_folder(config, workdir, True) is True
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 1 and f"config.{absent}" in told and "whose defaults hold" in told
    assert folder.prepare_folder(config, workdir, True) is True
    assert capsys.readouterr().out == ""


def test_another_value_than_the_default_of_a_new_field_is_another_run(tmp_path):
    workdir = begun(tmp_path / "run")
    old = stored(workdir)
    del old["learn"]["clip_low"]
    (workdir / "config.json").write_text(json.dumps(old))
    with pytest.raises(UsageError, match=r"another config\.learn\.clip_low"):
        folder.prepare_folder(config_of(**{"learn.clip_low": 0.1}), workdir, True)


def test_a_field_that_is_no_more_is_said_once(tmp_path, capsys):
    workdir = begun(tmp_path / "run")
    old = stored(workdir)
    old["learn"]["momentum"], old["oracle"] = 0.9, {"url": "x"}
    (workdir / "config.json").write_text(json.dumps(old))
    capsys.readouterr()
    assert folder.prepare_folder(config_of(), workdir, True) is True
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 1 and "learn.momentum, oracle" in told and "are no more" in told
    assert folder.prepare_folder(config_of(), workdir, True) is True
    assert capsys.readouterr().out == ""


# --- a file takes the place of another when it is whole


def test_a_file_that_could_not_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "report.md"
    files.write_whole(path, "old")
    (tmp_path / "report.partial.md").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"cannot write .*report\.md: No space left on device\.") as raised:
        files.write_whole(path, "new" * 10_000)
    assert raised.value.code == 1 and path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    with pytest.raises(UsageError) as raised:
        files.write_whole(tmp_path / "nowhere" / "x", "")
    assert raised.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops_at_once(number, capfd):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), folder.stop_on_signal("one moment") as received:
        os.kill(os.getpid(), number)
        assert received == [number] and "one moment" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # is interrupted
        raise AssertionError
    assert signal.getsignal(number) is before


def test_the_config_of_an_older_run_has_the_defaults_of_later_fields(tmp_path):
    stored = json.loads(quickstart.get_config().to_json_best_effort())
    del stored["swarm"]["announce"], stored["audit"]
    (tmp_path / files.CONFIG_FILE).write_text(json.dumps(stored))
    found = folder.read_config(tmp_path)
    assert found.audit.auditors == common.FIELDS["audit.auditors"].default and tuple(found.swarm.announce) == ()
    assert found.rounds == stored["rounds"] and found.is_locked
