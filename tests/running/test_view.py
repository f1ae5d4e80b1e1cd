"""What a person sees while it runs, on terminals of all widths and on none."""

import io
import re
import time

import pytest
from rich.console import Console

from rlswarm_jax.running import view as module
from rlswarm_jax.running.view import SwarmView

NAMES = [f"keen-raven-{i:04d}" for i in range(12)]
ROW = {
    "reward/mean": 0.5,
    "held_out/accuracy": 0.875,
    "records/received": 123456,
    "records/published": 3,
    "records/rejected/unknown beacon": 4,
    "groups/external": 4.0,
    "groups/received": 18.0,
    "groups/unused/unknown task": 2.0,
}
LIVE = {"peers/connected": 3.0, "chain/round": 12.0, "chain/waiting": 7.0}


def terminal(width, **options):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, record=True, **options)


def drawn(width, live=True, nodes=12):
    """The table once all nodes have played a round."""
    console = terminal(width)
    view = SwarmView(console, NAMES[:nodes], 24, [0] * nodes)
    for node in range(nodes if live else 0):
        view.state(node, "playing")
    view.catch_up(ROW | (LIVE if live else {}) | {"node": node, "round": 0} for node in range(nodes))
    view.begin()
    console.print(view._render())
    return console.export_text()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 160])
@pytest.mark.parametrize("live", [True, False])
def test_a_table_is_never_wider_than_the_terminal_and_every_node_has_one_row(width, live):
    text = drawn(width, live)
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines() if re.match(r" *\d+ ", line)]
    assert [row[0] for row in rows] == [str(i) for i in range(12)]  # a node has its number, and one line
    assert all("0.50" in row and "87.5" in row for row in rows)
    assert "…" not in text or width < 60


def test_what_matters_least_is_left_out_first():
    everything = drawn(160)
    for title in ("node", "process", "peers", "round", "chain", "reward", "accuracy", "records", "out", "rejected"):
        assert title in everything
    at_80 = drawn(80)
    for title in ("node", "peers", "round", "reward", "accuracy", "groups"):
        assert title in at_80
    assert all(name in at_80 for name in NAMES)
    at_60 = drawn(60)
    assert all(name in at_60 for name in NAMES) and "chain" not in at_60 and "records" not in at_60
    assert "keen" not in drawn(30) and "reward" in drawn(30)


def test_until_the_first_round_has_ended_it_says_that_it_compiles_and_moves():
    console = terminal(80)
    view = SwarmView(console, NAMES[:2], 12, [0, 0])
    frames = set()
    for _ in range(4):
        console.print(view._render())
        before = console.export_text()
        frames.add(before.splitlines()[-1][:2])
        time.sleep(0.15)
    assert "compiling, once, a minute or two" in before and "0/24" not in before
    assert max(map(len, before.splitlines())) <= 80
    assert len(frames) > 1  # it moves
    view.update(ROW | {"node": 0, "round": 0})
    console.print(view._render())
    after = console.export_text()
    assert "1/24" in after and "compiling" not in after


def test_a_terminal_shows_it_by_itself_while_the_process_is_busy():
    console = terminal(80)
    with SwarmView(console, NAMES[:2], 12, [0, 0]):
        time.sleep(1.0)
    shown = console.file.getvalue()
    assert len(set(re.findall(r"(.) compiling, once, a minute or two", shown))) > 1


def test_a_resumed_run_compiles_too_and_shows_what_was_there():
    console = terminal(100)
    view = SwarmView(console, NAMES[:1], 24, [5])
    view.catch_up([ROW | {"node": 0, "round": round_} for round_ in range(5)])
    console.print(view._render())
    text = console.export_text()
    assert "compiling" in text and "5/24" not in text and str(5 * 123456) in text


def test_without_a_terminal_a_line_says_so_once_in_a_while(monkeypatch):
    monkeypatch.setattr(module, "REMIND", 0.05)
    console = Console(file=io.StringIO(), width=80)
    with SwarmView(console, NAMES[:1], 10, [0]) as view:
        until = time.monotonic() + 20
        while console.file.getvalue().count("still compiling") < 2 and time.monotonic() < until:
            time.sleep(0.01)
        view.update(ROW | {"node": 0, "round": 0})
        said = console.file.getvalue()
        time.sleep(0.2)
        assert console.file.getvalue() == said  # nothing more of it once a round has ended
    lines = said.splitlines()
    assert lines[0].startswith("compiling, once, a minute or two")
    assert sum(line.startswith("still compiling, for") for line in lines) >= 2
    assert "round 1 of 10" in lines[-1]
