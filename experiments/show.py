"""Shows a round of one node as it was: what it was asked, what it said, what that earned, and how it voted.

    python -m experiments.show runs/quickstart --round 100             node 0 of a swarm
    python -m experiments.show runs/quickstart --round 100 --node 2    another one, by its number or its name
    python -m experiments.show runs/node                               the last round of a node started by hand
    python -m experiments.show runs/quickstart --peers                 with what its peers said, in full

DIR is the folder of a live swarm, of one of its nodes, of a node started by hand or of a simulated swarm; nothing in
it is changed, and who plays there may be running. It shows, for each stage and problem, the prompt, each completion
with its reward and its advantage (over its group's mean, times the stage's weight; before the learner clips anything,
or leaves out what is not positive), what a critic votes for, and what the critics of the swarm voted for.

Journals are cut off behind checkpoints, so of a long run only the latest rounds are there; of a node with a chain,
those of the last config.chain.keep. Where the scores of a round are gone, answers are scored again, and that is said.
What is written by models may hold anything: characters that could act on a terminal are shown by their numbers. The
config in DIR may name modules of tasks, which are imported: let it be your own. Exit code 2: there is nothing to show.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from rlswarm_jax.audit.journals import Source, find
from rlswarm_jax.audit.played import needed, read_round
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE, METRICS_FILE
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import Scored, Turn
from rlswarm_jax.grpo.objective import resolved
from rlswarm_jax.journal import JournalError, look_at
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.reporting.round_page import RoundPage
from rlswarm_jax.running import build
from rlswarm_jax.running.folder import read_config
from rlswarm_jax.tasks.verifier import VerifierError


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        run(arguments.folder, arguments.round, arguments.node, arguments.peers, Console())
    except (UsageError, JournalError, VerifierError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.show", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="DIR", type=Path, help="of a swarm or of a node")
    parser.add_argument("--round", metavar="N", type=int, help="which one; by default the last that is there")
    parser.add_argument("--node", metavar="K", default="", help="its number in the swarm, or its name; by default 0")
    parser.add_argument("--peers", action="store_true", help="what its peers said, in full")
    return parser


def run(directory: Path, round_: int | None, node: str, peers: bool, console: Console) -> None:
    """Raises UsageError or JournalError, in one sentence, where there is no such round."""
    source = find(directory, node)
    round_ = source.rounds[-1] if round_ is None else round_
    if round_ not in source.rounds:
        raise UsageError(f"round {round_} of {source.name} is not in its journal; there are {spans(source.rounds)}.")
    config = read_config(source.directory)
    try:
        game = build.described(config)
        first = max(0, round_ - game.max_staleness)  # what comes late answers to what was said before
        rows = look_at(source.directory / JOURNAL_FILE, source.index, range(first, round_ + 1))
        game = dataclasses.replace(game, author=source.author)
        played, scores = read_round(game, round_, rows)
        learn = resolved(config.learn)
        positive_only = learn["positive_only_local"]
        how = {name: learn[name] for name in ("advantage", "pass_k", "overlong_buffer")}
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{source.directory / CONFIG_FILE} is the config of another version: {error}.") from None
    page = RoundPage(console, game, played, scores or {}, how)
    page.head(source, round_)
    if played.unread:
        causes = ", ".join(sorted(set(played.unread.values())))
        page.say(
            f"The prompts of {len(played.unread)} groups cannot be made again here ({causes}): only texts are shown."
        )
    if scores is None or not needed(game, played.turns) <= scores.keys():
        page.say("The scores of this round are not in the journal: they were computed again.")
        page.scores = score_again(config, game, [*played.turns, *played.external])
    for turn in played.turns:
        page.turn(turn)
    page.texts_alone()
    page.others(peers)
    page.learned(_row(source, round_), positive_only)


def score_again(config: ml_collections.ConfigDict, game: Game, played: Sequence[Turn]) -> Scored:
    items = sorted(needed(game, played), key=lambda item: (item[0].task, item[0].seed, item[1]))
    with build.make_verifier(config, game) as verifier:
        verifier.begin(items)
        return dict(zip(items, verifier.score(items).scores, strict=True))


def _row(source: Source, round_: int) -> Mapping[str, Any]:
    """Of metrics.jsonl; empty where the round has none yet."""
    path = source.directory / METRICS_FILE
    rows = read_rows(path) if path.is_file() else []
    mine = [
        row for row in rows if isinstance(row, dict) and (row.get("node"), row.get("round")) == (source.index, round_)
    ]
    return mine[-1] if mine else {}


def spans(rounds: Sequence[int]) -> str:
    """Numbers for people: 3, 7 to 9."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans)


if __name__ == "__main__":
    sys.exit(main())
