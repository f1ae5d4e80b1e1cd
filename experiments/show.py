"""Shows a round of one node as it was: what it was asked, what it said, what that earned, and how it voted.

    python -m experiments.show runs/quickstart --round 140             node 0 of a swarm
    python -m experiments.show runs/quickstart --round 140 --node 2    another one, by its number or its name
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
import collections
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.cells import chop_cells
from rich.console import Console
from rich.text import Text

from rlswarm_jax.audit.played import Played, read_round, records
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE, METRICS_FILE
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Publish, Sampled
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import Scored, Turn
from rlswarm_jax.grpo.advantages import group_advantages
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, JournalError, kept, look_at
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.schema import CRITIQUE, REVISE, RecordError
from rlswarm_jax.running import build
from rlswarm_jax.tasks.verifier import VerifierError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a node's rounds are written. directory: with config, journal and metrics. index: in the journal.

    rounds: those that are there, in order.
    """

    directory: Path
    index: int
    author: bytes
    rounds: list[int]

    @property
    def name(self) -> str:
        return friendly_name(self.author)


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
        raise UsageError(f"round {round_} of {source.name} is not in its journal; there are {_spans(source.rounds)}.")
    config = read_config(source.directory)
    try:
        game = build.described(config)
        first = max(0, round_ - game.max_staleness)  # what comes late answers to what was said before
        rows = look_at(source.directory / JOURNAL_FILE, source.index, range(first, round_ + 1))
        game = dataclasses.replace(game, author=source.author, weights_fingerprint=_first(rows).weights_fingerprint)
        played, scores = read_round(game, round_, rows)
        scale, positive_only = config.learn.advantage_scale, config.learn.positive_only_local
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{source.directory / CONFIG_FILE} is the config of another version: {error}.") from None
    page = _Page(console, game, played, scores or {}, scale)
    page.head(source, round_)
    if played.unread:
        causes = ", ".join(sorted(set(played.unread.values())))
        page.say(
            f"The prompts of {len(played.unread)} groups cannot be made again here ({causes}): only texts are shown."
        )
    if scores is None or not _needed(game, played.turns) <= scores.keys():
        page.say("The scores of this round are not in the journal: they were computed again.")
        page.scores = score_again(config, game, [*played.turns, *played.external])
    for turn in played.turns:
        page.turn(turn)
    page.texts_alone()
    page.others(peers)
    page.learned(_row(source, round_), positive_only)


# --- what is in the folder


def find(directory: Path, node: str) -> Source:
    """A node of a swarm by its number or name. Raises UsageError or JournalError if there is none."""
    homes = sorted((path for path in directory.glob("node-*") if path.is_dir()), key=lambda p: (len(p.name), p.name))
    if not homes and not (directory / JOURNAL_FILE).is_file():
        raise UsageError(f"{directory} is the folder of no node and of no swarm: there is no journal in it.")
    there = [source for home in homes or [directory] for source in _sources(home)]
    numbers = {home.name.removeprefix("node-"): home for home in homes}
    for source in there:
        number = str(source.index) if not homes else source.directory.name.removeprefix("node-")
        if node in (number, source.name) or (not node and source is there[0]):
            return source
    if not there or node in numbers:
        raise UsageError(f"the journal of {numbers.get(node, directory)} holds no round yet.")
    names = ", ".join(f"{i} {source.name}" for i, source in enumerate(there))
    raise UsageError(f"there is no node {node!r} in {directory}; there are {names}.")


def _sources(directory: Path) -> Iterator[Source]:
    path = directory / JOURNAL_FILE
    if not path.is_file():  # a node that has not begun
        return
    for index, rounds in kept(path, Publish.__name__).items():
        entries = look_at(path, index, range(rounds[-1], rounds[-1] + 1))
        yield Source(directory, index, _first(entries).author, rounds)


def _first(rows: Sequence[Entry]) -> Any:
    """The first record that a node has published in some rows."""
    raw = next(raw for entry in rows if entry.kind == Publish.__name__ for raw in records(entry))
    try:
        return open_envelope(raw).record
    except RecordError as error:
        raise JournalError(f"the journal is damaged: {error}.") from None


def read_config(directory: Path) -> ml_collections.ConfigDict:
    """Raises UsageError if there is none."""
    path = directory / CONFIG_FILE
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text())).lock()
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: name the folder of a node that has run.") from None
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{path} is not the config of a node.") from None


def _row(source: Source, round_: int) -> Mapping[str, Any]:
    """Of metrics.jsonl; empty where the round has none yet."""
    path = source.directory / METRICS_FILE
    rows = read_rows(path) if path.is_file() else []
    mine = [
        row for row in rows if isinstance(row, dict) and (row.get("node"), row.get("round")) == (source.index, round_)
    ]
    return mine[-1] if mine else {}


def _spans(rounds: Sequence[int]) -> str:
    """Numbers for people: 3, 7 to 9."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans)


# --- what it was worth


def _needed(game: Game, played: Iterable[Turn]) -> set:
    return {item for turn in played for item in turns.to_score(game, turn)}


def score_again(config: ml_collections.ConfigDict, game: Game, played: Sequence[Turn]) -> Scored:
    items = sorted(_needed(game, played), key=lambda item: (item[0].task, item[0].seed, item[1]))
    with build.make_verifier(config, game) as verifier:
        verifier.begin(items)
        return dict(zip(items, verifier.score(items).scores, strict=True))


# --- for people


def visible(text: str) -> str:
    """One line of anybody's text: characters that act on a terminal, or turn others around, by their numbers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class _Page:
    """What is printed of a round, in order."""

    def __init__(self, console: Console, game: Game, played: Played, scores: Scored, scale: str):
        self._console, self._game, self._played, self._scale = console, game, played, scale
        self.scores = scores
        self._authors = {signed.hash: signed.record.author for signed in [*played.own, *played.heard]}

    def say(self, line: str, style: str = "") -> None:
        self._console.print(Text(visible(line), style), soft_wrap=True)

    def title(self, line: str) -> None:
        self._console.print()
        self.say(line, "bold cyan")

    def quote(self, text: str) -> None:
        """A text on lines that nothing but a text has."""
        bar, width = "  │ ", self._console.width
        for line in map(visible, text.split("\n")):
            # folded here, so that no folded part begins like a line of ours
            parts = chop_cells(line, max(width - len(bar), 8)) if self._console.is_terminal else [line]
            for part in parts or [""]:
                self._console.print(Text(bar + part), soft_wrap=True)

    def head(self, source: Source, round_: int) -> None:
        record = self._played.own[0].record
        self.say(f"round {round_} of {source.name}, which has learned in {record.policy_version} updates", "bold")
        if record.beacon:
            self.say(f"problems from the chain's beacon that begins with {record.beacon.hex()}")

    def turn(self, turn: Turn) -> None:
        """A group with all that is known of it."""
        shared = "all nodes have it" if turn.index < self._game.shared else "its own"
        self.title(f"{turn.stage}, problem {turn.index} ({turn.problem.task}; {shared}), prompt:")
        self.quote(self._game.tokenizer.backend.decode(turn.prompt, skip_special_tokens=False))
        if turn.problem.verifiable and turn.problem.answers:
            self.say(f"right is {' or '.join(map(repr, turn.problem.answers[:4]))}", "dim")
        earned, advantages = self._earned(turn)
        for place, sampled in enumerate(turn.completions):
            words = [f"completion {place}: reward {earned[place]:.2f}", f"advantage {advantages[place]:+.2f}"]
            words += self._says(turn, sampled)
            self.say(", ".join(words), "green" if advantages[place] > 0 else "")
            self.quote(sampled.text)
        if turn.stage == CRITIQUE:
            self.say(f"votes for {self._choice(turn, turn.vote)}")
        if turn.stage == REVISE:
            self._votes(turn)

    def _earned(self, turn: Turn) -> tuple[list[float], np.ndarray]:
        earned = turns.rewards(self._game, self._played.sheets, turn, self.scores)
        advantages_1G = group_advantages(np.array([earned], np.float32), scale=self._scale)  # type: ignore[arg-type]
        return earned, self._game.weight(turn.stage) * np.asarray(advantages_1G)[0]

    def _says(self, turn: Turn, sampled: Sampled) -> list[str]:
        words = [f"{len(sampled.tokens)} tokens"]
        if not sampled.tokens or sampled.tokens[-1] not in self._game.eos_token_ids:
            words.append("cut off")
        if turn.stage == CRITIQUE and turn.reading:
            named = self._game.prompt_format.named(sampled.text, turn.reading.numbers)
            return [*words, f"names {self._choice(turn, named)}"]
        answer = self._game.prompt_format.answer(sampled.text)
        return [*words, f"score {self.scores[turn.problem, answer]:.2f}"]

    def _choice(self, turn: Turn, which: int | None) -> str:
        """What a critic means by the number of an answer that they were shown."""
        if which is None:
            return "nobody"
        if not which:
            return "none of them"
        assert turn.reading is not None
        author = self._authors.get(turn.reading.parents[which - 1])
        whose = friendly_name(author) if author else "another"
        return f"the answer of {whose}, {turn.reading.answers[which - 1].answer!r}"

    def _votes(self, turn: Turn) -> None:
        sheets = self._played.sheets.values()
        at = (turn.round, CRITIQUE, turn.chain)
        for sheet in sorted((s for s in sheets if (s.round, s.stage, s.chain) == at), key=lambda s: s.author):
            if turn.index in sheet.said:
                voted = sheet.said[turn.index].answer
                for_ = "nobody" if voted is None else "none of them" if not voted else repr(voted)
                self.say(f"{friendly_name(sheet.author)} voted for {for_}")
        agreed = turns.voted_for(self._game, self._played.sheets, turn.round, turn.index, turn.problem, turn.chain)
        self.say(f"the critics' vote: {'none' if agreed is None else repr(agreed)}")

    def texts_alone(self) -> None:
        """Own groups of which nothing but the record is known."""
        for signed in self._played.own:
            for place, group in enumerate(signed.record.groups):
                if (cause := self._played.unread.get((signed.hash, place))) is not None:
                    self.title(f"{signed.record.stage}, problem {group.index} ({group.task}): {cause}")
                    for number, completion in enumerate(group.completions):
                        self.say(f"completion {number}:")
                        self.quote(completion.text)

    def others(self, in_full: bool) -> None:
        """What it heard; in full, or a line for each group."""
        heard = collections.Counter(signed.record.author for signed in self._played.heard)
        total = f"{heard.total()} records of {len(heard)} peers"
        self.title(f"heard: {total}, {len(self._played.external)} groups that it could use")
        for cause, count in sorted(self._played.unused.items()):
            self.say(f"groups left unused, {cause}: {count}")
        known = [turn for turn in self._played.external if _needed(self._game, [turn]) <= self.scores.keys()]
        for turn in known:
            earned, _ = self._earned(turn)
            whose = f"{friendly_name(turn.author)}, round {turn.round}, {turn.stage}, problem {turn.index}"
            self.say(f"{whose}: rewards {' '.join(f'{reward:.2f}' for reward in earned)}")
            if in_full:
                self.turn(turn)

    def learned(self, row: Mapping[str, Any], positive_only: bool) -> None:
        groups = [turn for turn in self._played.turns if np.any(self._earned(turn)[1])]
        better = ", of these the better completions only" if positive_only else ""
        own = f"{len(groups)} of its {len(self._played.turns)} groups have an advantage{better}"
        self.title(f"learned from: {own}")
        for name, count in row.items():
            if name.startswith("learned_from/"):
                self.say(
                    f"and from {friendly_name(bytes.fromhex(name.removeprefix('learned_from/')))}: {count:.0f} groups"
                )
        if not row:
            self.say("The round has no row in metrics.jsonl: it was left, or it has not ended.")


if __name__ == "__main__":
    sys.exit(main())
