import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.journal import Entry, Journal, JournalError, look

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def entry(node=0, round_=0, step=0, result=b"") -> Entry:
    return Entry(node, round_, step, "Learn", result, 0.5 * step)


def test_rows_come_back_in_the_order_of_their_steps_whatever_order_they_were_written_in(path):
    journal = Journal(path)
    slots = itertools.product((0, 1), (0, 1, 2), range(4))
    entries = [entry(node, round_, step, bytes([node, round_, step])) for node, round_, step in slots]
    for one in random.Random(0).sample(entries, len(entries)):
        journal.write(one)
    for node in (0, 1):
        assert journal.read(node, 1) == [e for e in entries if e.node == node and e.round >= 1]
    assert journal.read(2, 0) == [] and journal.read(0, 3) == []


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 2**32 - 1), texts, st.binary(max_size=99), st.floats(0.0, allow_nan=False))
def test_a_row_keeps_every_bit(node, round_, kind, result, at):
    journal = Journal(Path(":memory:"))
    journal.write(Entry(node, round_, 1, kind, result, at))
    (found,) = journal.read(node, 0)
    assert found == Entry(node, round_, 1, kind, result, at) and str(found.at) == str(at)


def test_a_step_can_be_written_once(path):
    journal = Journal(path)
    journal.write(entry(result=b"first"))
    with pytest.raises(JournalError, match=r"journal\.sqlite.*UNIQUE"):
        journal.write(entry(result=b"second"))
    assert [e.result for e in journal.read(0, 0)] == [b"first"]
    for free in (entry(node=1), entry(round_=1), entry(step=1)):
        journal.write(free)


def test_truncating_forgets_what_was_written_after_an_offset(path):
    journal = Journal(path)
    assert journal.offset == 0
    for step in range(3):
        journal.write(entry(step=step))
    offset = journal.offset
    journal.write(entry(node=1))
    journal.write(entry(step=3))
    assert journal.offset == offset + 2
    journal.truncate(offset)
    assert journal.read(1, 0) == [] and [e.step for e in journal.read(0, 0)] == [0, 1, 2]
    assert journal.offset == offset
    journal.write(entry(step=3, result=b"again"))  # the step is free again
    assert journal.offset > offset and journal.read(0, 0)[-1].result == b"again"
    journal.truncate(0)
    assert journal.read(0, 0) == []


def test_pruning_forgets_one_node_s_earlier_rounds(path):
    journal = Journal(path)
    for node in (0, 1):
        for round_ in range(4):
            journal.write(entry(node, round_))
    offset = journal.offset
    journal.prune(0, 2)
    assert [e.round for e in journal.read(0, 0)] == [2, 3]
    assert [e.round for e in journal.read(1, 0)] == [0, 1, 2, 3]
    assert journal.offset == offset


def test_an_offset_means_the_same_after_everything_was_pruned(path):
    """Ids are never given out twice: a checkpoint's offset must not come to name a later row."""
    journal = Journal(path)
    for round_ in range(3):
        journal.write(entry(round_=round_))
    before = journal.offset
    journal.prune(0, 3)
    journal.write(entry(round_=3))
    assert journal.offset > before
    journal.truncate(before)
    assert journal.read(0, 0) == []


def test_a_pruned_journal_stays_small(path):
    journal = Journal(path)
    for round_ in range(300):
        journal.write(entry(round_=round_, result=os.urandom(10_000)))
        journal.prune(0, round_ - 1)
    journal.close()
    assert path.stat().st_size < 500_000  # of three megabytes written


def test_a_journal_goes_on_where_it_was_closed(path):
    journal = Journal(path)
    journal.write(entry())
    offset = journal.offset
    journal.close()
    again = Journal(path)
    assert again.offset == offset and again.read(0, 0) == [entry()]
    with pytest.raises(JournalError, match="UNIQUE"):
        again.write(entry())


WRITER = """
import sys
from pathlib import Path
from rlswarm_jax.journal import Entry, Journal

journal = Journal(Path(sys.argv[1]))
for step in range(10**9):
    journal.write(Entry(0, 0, step, "Publish", b"signed bytes %d" % step, 0.0))
    print(step, flush=True)  # "others have seen it"
"""


def test_what_was_written_survives_sigkill(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    seen += [int(line) for line in process.stdout.read().splitlines() if line]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    found = Journal(path).read(0, 0)
    assert [e.step for e in found] == list(range(len(found))) and len(found) >= len(seen)
    assert all(e.result == b"signed bytes %d" % e.step for e in found)


TOGETHER = """
import os, sys
from pathlib import Path
from rlswarm_jax.journal import Entry, Journal

journal = Journal(Path(sys.argv[1]), together=10)
for step in range(25):
    journal.write(Entry(0, 0, step, "Learn", b"", 0.0))
    if step == int(sys.argv[2]):
        assert journal.offset == step + 1
assert len(journal.read(0, 0)) == 25
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("asked", "kept"), [(99, 20), (22, 23), (3, 24)])
def test_rows_that_are_written_together_are_kept_whole_and_all_once_the_offset_was_asked_for(path, asked, kept):
    assert subprocess.run([sys.executable, "-c", TOGETHER, str(path), str(asked)]).returncode == -signal.SIGKILL
    assert [entry.step for entry in Journal(path).read(0, 0)] == list(range(kept))


def test_a_journal_that_is_closed_has_all_rows(path):
    journal = Journal(path, together=10)
    journal.write(entry())
    assert journal.read(0, 0) == [entry()] and Journal(path).read(0, 0) == []
    journal.close()
    assert Journal(path).read(0, 0) == [entry()]


# --- what a disk can do


def test_a_path_that_cannot_be_opened_is_an_error_that_names_it(tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_bytes(b"this is not a database, and long enough to be read as one" * 100)
    for name in ("directory", "missing/journal.sqlite", "text"):
        with pytest.raises(JournalError, match=rf"cannot open the journal .*{name}"):
            Journal(tmp_path / name)


FULL = """
import resource, signal, sys
from pathlib import Path
from rlswarm_jax.journal import Entry, Journal, JournalError, look

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
journal.write(Entry(0, 0, 0, "Publish", b"kept", 0.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # the disk is full
refused = 0
for act in (
    lambda step: journal.write(Entry(0, 0, step, "Publish", bytes(100_000), 0.0)),
    lambda step: journal.prune(0, step),
    lambda step: journal.truncate(1),
):
    try:
        for step in range(1, 20):
            act(step)
    except JournalError as error:
        assert "journal.sqlite" in str(error), error
        refused += 1
print(refused)
"""


def test_a_full_disk_is_a_journal_error_and_loses_nothing_written(path):
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    assert Journal(path).read(0, 0)[0].result == b"kept"


def test_a_damaged_file_is_a_journal_error(path):
    journal = Journal(path)
    for step in range(200):
        journal.write(entry(step=step, result=bytes(1000)))
    journal.close()
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + b"\xa5" * (len(raw) - 4096))
    damaged = Journal(path)
    acts: list[Callable] = [
        lambda: damaged.read(0, 0),
        lambda: damaged.offset,
        lambda: damaged.truncate(1),
        lambda: damaged.prune(0, 9),
    ]
    for act in acts:
        with pytest.raises(JournalError, match=r"journal\.sqlite"):
            act()


def test_a_journal_that_another_process_holds_is_a_journal_error(path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"timeout": 0.05}))
    journal, other = Journal(path), connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked"):
        journal.write(entry())
    other.execute("ROLLBACK")
    journal.write(entry())
    assert journal.read(0, 0) == [entry()]


def test_the_rows_of_a_kind_in_its_newest_round_are_found_in_order(tmp_path):
    journal = Journal(tmp_path / "j.sqlite", durable=["Publish"])
    assert journal.last(0, "Publish") == []
    for round_ in (1, 3, 2):
        for step, kind in reversed(list(enumerate(("Sample", "Publish", "Gather", "Publish", "Gather")))):
            journal.write(Entry(0, round_, step, kind, bytes([round_, step]), 0.0))
    journal.write(Entry(0, 4, 0, "Sample", b"nothing was published yet", 0.0))
    journal.write(Entry(1, 9, 0, "Publish", b"another node's", 0.0))
    assert journal.last(0, "Publish") == [Entry(0, 3, step, "Publish", bytes([3, step]), 0.0) for step in (1, 3)]


def test_durable_rows_are_written_through_and_others_are_not(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.sqlite", durable=["Publish"])
    levels = {}
    for step, kind in enumerate(("Sample", "Publish", "Gather")):
        journal.write(Entry(0, 0, step, kind, b"", 0.0))
        ((levels[kind],),) = journal._db.execute("PRAGMA synchronous").fetchall()
    assert levels == {"Sample": 1, "Publish": 2, "Gather": 1}  # 1 is NORMAL, 2 is FULL


def test_a_journal_keeps_its_number_and_no_other_has_it(tmp_path):
    journals = [Journal(tmp_path / f"{n}.sqlite") for n in range(3)]
    numbers = [journal.id for journal in journals]
    assert len(set(numbers)) == 3 and all(numbers)
    journals[0].close()
    assert Journal(tmp_path / "0.sqlite").id == numbers[0]


# --- somebody else looks


def test_a_look_finds_the_rows_of_a_kind_while_another_writes_and_changes_nothing(path):
    journal = Journal(path)
    written = [entry(round_=r, step=s, result=bytes([r, s])) for r in range(3) for s in range(2)]
    for one in written[:4]:
        journal.write(one._replace(kind="Publish") if one.step else one)
    found = look(path, ["Publish"])  # it is in the WAL still
    assert found == [one._replace(kind="Publish") for one in written[:4] if one.step]
    journal.write(written[4])
    journal.close()
    before = path.read_bytes(), sorted(path.parent.iterdir())
    assert look(path, ["Learn", "Publish"])[-1] == written[4] and look(path, ["Gather"]) == []
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


def test_a_look_at_what_is_no_journal_is_one_sentence(path):
    with pytest.raises(JournalError, match="there is no journal"):
        look(path, ["Learn"])
    path.write_bytes(b"not a database" * 99)
    with pytest.raises(JournalError, match="cannot read the journal"):
        look(path, ["Learn"])
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE other (a)").connection.commit()
    with pytest.raises(JournalError, match="no such table"):
        look(path, ["Learn"])
