"""A round of a node for a person: what it was asked, what it said, what that earned, and how critics voted."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.cells import chop_cells
from rich.console import Console
from rich.text import Text

from rlswarm_jax.audit.journals import Source
from rlswarm_jax.audit.played import Played, needed
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Sampled
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import Scored, Turn
from rlswarm_jax.grpo.advantages import judged
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.records.schema import CRITIQUE, REVISE


def visible(text: str) -> str:
    """One line of anybody's text: characters that act on a terminal, or turn others around, by their numbers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class RoundPage:
    """What is printed of a round, in order. how: what advantages are, as `grpo.advantages.judged` takes it."""

    def __init__(self, console: Console, game: Game, played: Played, scores: Scored, how: Mapping[str, Any]):
        self._console, self._game, self._played, self._how = console, game, played, how
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
        lengths = [len(sampled.tokens) for sampled in turn.completions]
        advantages_G = judged(earned, lengths, max_new_tokens=self._game.max_new_tokens, **self._how)
        return earned, self._game.weight(turn.stage) * advantages_G

    def _says(self, turn: Turn, sampled: Sampled) -> list[str]:
        words = [f"{len(sampled.tokens)} tokens"]
        if not sampled.tokens or sampled.tokens[-1] not in self._game.eos_token_ids:
            words.append("cut off")
        if turn.stage == CRITIQUE and turn.reading:
            named = self._game.prompt_format.named(sampled.text, turn.reading.numbers)
            return [*words, f"names {self._choice(turn, named)}"]
        answer = turns.answer(self._game, turn, sampled.text)
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
        known = [turn for turn in self._played.external if needed(self._game, [turn]) <= self.scores.keys()]
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
