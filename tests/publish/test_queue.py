"""What is to be published is not lost by a kill, a hub that is away or a full disk, and is sent once."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rlswarm_jax import files
from rlswarm_jax.publish import background
from rlswarm_jax.publish.background import Background, Offer
from rlswarm_jax.publish.model import Weights
from rlswarm_jax.publish.queue import Entry, Queue
from rlswarm_jax.publish.targets import AwayError, Folder, PublishError
from tests.publish.conftest import of_process

RAW = os.urandom(1 << 21)


def entry(number: int, to: str, node: int = 0) -> Entry:
    return Entry(f"{number:064x}"[::-1], node, "bold-elk", number, to)


def write(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(RAW)
    (directory / "config.json").write_text("{}")


def staged(folder: Path, to: str, number: int = 1) -> Queue:
    queue = Queue(folder)
    assert queue.stage(entry(number, to), write)
    return queue


def test_it_is_sent_once_and_where_it_is_stays_written_down(tmp_path):
    queue, to = staged(tmp_path, str(tmp_path / "out")), str(tmp_path / "out")
    assert queue.waiting() == [entry(1, to)] and not queue.sent()
    done = queue.send(entry(1, to))
    assert queue.sent() == [done] and Path(done.uri.removeprefix("file://"), "config.json").read_text() == "{}"
    assert not queue.waiting() and not list(queue.root.iterdir())
    assert not queue.stage(entry(1, to), write)  # it is there
    assert queue.stage(entry(1, to), write, again=True) and queue.send(entry(1, to)) == done
    assert queue.sent() == [done]


def test_of_a_node_and_a_place_only_the_newest_waits(tmp_path):
    queue, to = staged(tmp_path, "a"), "a"
    queue.stage(entry(1, "b"), write)
    queue.stage(entry(1, to, node=1), write)
    queue.stage(entry(2, to), write)
    assert {(one.round, one.to, one.node) for one in queue.waiting()} == {(2, "a", 0), (1, "b", 0), (1, "a", 1)}
    assert len(list(queue.root.iterdir())) == 6


def test_what_cannot_be_written_leaves_what_was(tmp_path):
    queue = staged(tmp_path, "a")

    def full(directory: Path) -> None:
        write(directory)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(files.DiskError, match=r"cannot write .*/publish: No space left on device\."):
        queue.stage(entry(2, "a"), full)
    assert queue.waiting() == [entry(1, "a")] and len(list(queue.root.iterdir())) == 2


@pytest.mark.parametrize("torn", [b'{"weights": "00', b"\xff\xfe", b"[]\n", b'{"weights": 1}\n'])
def test_half_a_line_hides_no_other(tmp_path, torn):
    queue = staged(tmp_path, str(tmp_path / "out"))
    (tmp_path / files.PUBLISHED_FILE).write_bytes(torn)
    (queue.root / "odd.json").write_bytes(torn)
    done = queue.send(queue.waiting()[0])
    assert queue.sent() == [done]


KILLED = """
import pathlib, sys
from rlswarm_jax.publish.queue import Queue
queue = Queue(pathlib.Path(sys.argv[1]))
print(queue.send(queue.waiting()[0]).uri)
"""


def sending(hub, folder, **more):
    command, pipe = [sys.executable, "-c", KILLED, str(folder)], subprocess.PIPE
    environment = os.environ | of_process(hub, HF_HUB_DISABLE_PROGRESS_BARS="1", **more)
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("when", ["in mid-upload", "before the commit is answered"])
def test_a_kill_while_it_is_sent_leaves_it_whole_and_once(hub, tmp_path, when):
    queue, stuck, released = staged(tmp_path, "hf://ada/qwen"), threading.Event(), threading.Event()
    if when == "in mid-upload":
        hub.slow = 0.2
        stuck = hub.uploading
    else:
        hub.committed = lambda: (stuck.set(), released.wait(30))
    process = sending(hub, tmp_path)
    assert stuck.wait(30)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    released.set()
    hub.slow, hub.committed = 0.0, lambda: None
    assert queue.waiting() and not queue.sent()
    before = len(hub.repos["ada/qwen"].commits)
    assert before == (1 if when == "in mid-upload" else 2)
    said, complained = sending(hub, tmp_path).communicate(timeout=60)
    assert said.startswith("hf://ada/qwen@"), complained
    commits = hub.repos["ada/qwen"].commits
    assert len(commits) == 2 and said.strip().endswith(commits[-1][0])
    assert commits[-1][1]["model.safetensors"] == RAW and commits[-1][1]["config.json"] == b"{}"
    assert [one.uri for one in queue.sent()] == [said.strip()] and not queue.waiting()


# --- in the background


def offer(number: int, node: int = 0) -> Offer:
    return Offer(node, "bold-elk", number, Weights({"w": np.full(4, number, np.float32)}))


@pytest.fixture
def started(tmp_path):
    """Makes a background that sends to a folder, and ends it."""
    with contextlib.ExitStack() as held:

        def start(to: str = "", **options) -> tuple[Background, Queue]:
            queue = Queue(tmp_path)

            def stage(one: Offer) -> None:
                queue.stage(Entry(one.weights.hash.hex(), one.node, one.name, one.round, to), write)

            to = to or str(tmp_path / "out")
            made = Background(queue, stage, **options)
            held.callback(made.close)
            return made, queue

        yield start


def test_what_is_offered_is_sent_and_counted_for_its_node(started, tmp_path):
    made, queue = started()
    made.offer(offer(3, node=1))
    made.offer(offer(4))
    assert made.finish(lambda: False) == ""
    assert sorted((one.node, one.round) for one in queue.sent()) == [(0, 4), (1, 3)]
    assert made.take_counts(0) == made.take_counts(1) == {"publish/sent": 1.0} and not made.take_counts(0)


def test_a_place_that_is_away_costs_a_line_and_is_asked_again_ever_later(started, monkeypatch, caplog):
    asked, away = [], threading.Event()

    def put(self, folder, *rest):
        asked.append(time.monotonic())
        if not away.is_set():
            raise AwayError("the hub is away.")
        return "there"

    monkeypatch.setattr(Folder, "put", put)
    monkeypatch.setattr(background, "FIRST", 0.1)
    caplog.set_level("INFO", "rlswarm_jax.publish")
    made, queue = started()
    began = time.monotonic()
    made.offer(offer(1))
    assert time.monotonic() - began < 0.05  # the round goes on
    while len(asked) < 4:
        time.sleep(0.01)
    waits = np.diff(asked[:4])
    assert all(
        low < wait < high + 0.2 for wait, low, high in zip(waits, (0.05, 0.1, 0.2), (0.1, 0.2, 0.4), strict=True)
    )
    made.offer(offer(2))  # takes the other's place
    away.set()
    while not queue.sent():
        time.sleep(0.01)
    assert made.finish(lambda: False) == "" and queue.sent()[-1].round == 2
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("weights are not published: the hub is away. The node goes on, and tries again.") == 1
    counts = made.take_counts(0)
    assert counts["publish/failed"] >= 4 and 1 <= counts["publish/sent"] <= 2 and "publish/waiting" not in counts


def test_at_the_end_it_is_given_up_after_a_few_tries_and_sent_at_the_next_start(started, monkeypatch):
    def put(self, folder, *rest):
        raise PublishError("the token has expired.")

    made, queue = started()
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", put)
        made.offer(offer(1))
        began = time.monotonic()
        assert made.finish(lambda: False) == "the token has expired." and time.monotonic() - began < 5
        assert made.take_counts(0)["publish/waiting"] == 1.0
        made.close()
    assert [one.round for one in queue.waiting()] == [1]
    later, queue = started()
    assert later.finish(lambda: False) == "" and [one.round for one in queue.sent()] == [1]


def test_what_another_process_sends_is_left_to_it_for_now(started, tmp_path, monkeypatch):
    from rlswarm_jax.running import folder

    monkeypatch.setattr(background, "FIRST", 0.1)
    (tmp_path / files.PUBLISH_FOLDER).mkdir()
    made, queue = started(alone=lambda: folder.lock(queue.root))
    with folder.lock(tmp_path / files.PUBLISH_FOLDER):
        made.offer(offer(1))
        assert "another process is using" in made.finish(lambda: False)
        assert not queue.sent()
    assert made.finish(lambda: False) == "" and len(queue.sent()) == 1


def test_its_thread_has_a_low_priority(started):
    found = []
    made, _ = started(
        alone=lambda: (
            (found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())), None)[1]
            or contextlib.nullcontext()
        )
    )
    made.offer(offer(1))
    assert made.finish(lambda: False) == ""
    if sys.platform == "linux":
        assert set(found) == {min(19, os.getpriority(os.PRIO_PROCESS, 0) + background.NICE)}


def test_an_entry_is_told_as_it_was(tmp_path):
    one = Entry("ab", 2, 'x"\n', 7, "hf://ada/qwen", True, "hf://ada/qwen@1")
    assert msgspec.json.decode(msgspec.json.encode(one), type=Entry) == one
