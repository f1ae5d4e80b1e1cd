"""Folders of runs, played by hand: three nodes, three rounds, with all that a run writes and the page reads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rlswarm_jax import files
from rlswarm_jax.game.effects import Learn, encode_result
from rlswarm_jax.game.player import lessons_of
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, Journal
from tests.experiments.test_show import config
from tests.game.hand_driver import ALICE, BOB, ME, Played, Speaker, play_together

NODES = (ME, ALICE, BOB)
ROUNDS = range(3)


def play(rounds: Sequence[int] = ROUNDS) -> list[dict]:
    """By round, what each node's was: Bob is wrong always, and teaches nothing."""
    speakers = {ME: Speaker(), ALICE: Speaker(), BOB: Speaker(lambda p, g, right: f"{p}z{g}")}
    states = dict.fromkeys(NODES, NodeState(round=rounds[0]))
    found = []
    for _ in rounds:
        played = play_together(speakers, states=states, external_groups=2)
        states = {who: one.state for who, one in played.items()}
        found.append(played)
    return found


def rows(played: Played, index: int, round_: int) -> list[Entry]:
    steps = zip(played.effects, played.results, strict=True)
    written = [(type(effect).__name__, encode_result(effect, result)) for effect, result in steps]
    return [
        Entry(index, round_, step, kind, raw, 100.0 * round_ + step)
        for step, (kind, raw) in enumerate([("begin", b""), *written])
    ]


def metrics_row(played: Played, index: int, name: str, round_: int) -> dict:
    told = {"node": index, "name": name, "round": round_, "wall_seconds": round_ + 1.0}
    return told | played.metrics | {"lessons": lessons_of(played.one(Learn))}


def write(
    directory: Path, found: Sequence[dict], kind: str = "simulated", change: Callable[[dict], dict] = lambda row: row
) -> Path:
    """kind: as `Folder.kind` calls it; of a single node the folder is ME's."""
    for index, who in enumerate(NODES if kind != "node" else NODES[:1]):
        home = directory / f"node-{index}" if kind == "swarm" else directory
        inner = 0 if kind == "swarm" else index
        home.mkdir(parents=True, exist_ok=True)
        journal = Journal(home / files.JOURNAL_FILE)
        with (home / files.METRICS_FILE).open("a") as log:
            for round_, played in zip(ROUNDS, found, strict=False):
                for entry in rows(played[who], inner, round_):
                    journal.write(entry)
                row = change(metrics_row(played[who], inner, friendly_name(who.author), round_))
                log.write(json.dumps(row) + "\n")
        journal.close()
        made = config()
        made.driver = {"simulated": "simulate", "swarm": "live", "node": "node"}[kind]
        for place in {home, directory}:
            (place / files.CONFIG_FILE).write_text(made.to_json_best_effort())
    return directory
