"""Computes again, from records, what a run's page shows: a process that the page starts when somebody asks.

    python -m rlswarm_jax.running.again DIR

A question on each line of its input, JSON, and an answer on each of its output: `equal` (None where it can't be told),
`what` it did, in how it `differs`, and the `command` that does the same by hand; or `error`, a sentence. Nothing in the
folder is changed.
"""

import contextlib
import dataclasses
import functools
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rlswarm_jax.audit import claims, journals, samples
from rlswarm_jax.audit.evidence import make_judge, read_chain, read_journals
from rlswarm_jax.audit.played import Played, needed, read_round
from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.devnet import DevnetError
from rlswarm_jax.chain.errors import ChainError
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import JOURNAL_FILE, METRICS_FILE, node_folders
from rlswarm_jax.game import turns
from rlswarm_jax.game.chain import by_tag
from rlswarm_jax.game.prompts import FAMILIES
from rlswarm_jax.game.rewards import contested, names_best
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import vote
from rlswarm_jax.game.turns import Scored, Turn
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import JournalError, look_at
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.page.problems import asked
from rlswarm_jax.page.texts import MAX_TEXT, named, shown
from rlswarm_jax.records.schema import CRITIQUE, NOT_PRODUCED, PRODUCED, REVISE
from rlswarm_jax.running import account, build, evidence
from rlswarm_jax.running.folder import read_config
from rlswarm_jax.tasks.verifier import VerifierError

MOST_DIFFERENCES = 20
TOLERANCE = 1e-6  # metrics.jsonl has rewards with six digits
Answer = dict[str, Any]


class Again:
    """One folder's. What is dear to make is made once."""

    def __init__(self, directory: Path):
        self.directory = directory

    def answer(self, asked: Mapping[str, Any]) -> Answer:
        """Raises UsageError and what its parts raise, each a sentence."""
        found: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "prompts": self.prompts,
            "reward": self.rewards,
            "vote": self.votes,
            "claim": self.claim,
            "verdict": self.verdict,
            "ledger": self.ledger,
        }
        return found[asked["what"]](asked)

    def _command(self, *words: str) -> str:
        return shlex.join(["python", "-m", *words])

    # --- a round of a node

    @functools.lru_cache(maxsize=4)  # noqa: B019  the process is one folder's
    def _played(self, node: str, round_: int) -> tuple[Game, Played, Scored]:
        """What was said, read again, and scored again: not as the journal has it."""
        source = journals.find(self.directory, node)
        config = read_config(source.directory)
        game = dataclasses.replace(self._game(source.directory), author=source.author)
        first = max(0, round_ - game.max_staleness)
        rows = look_at(source.directory / JOURNAL_FILE, source.index, range(first, round_ + 1))
        if not any(row.round == round_ for row in rows):
            raise UsageError(f"round {round_} is not in the journal any more.")
        played, _ = read_round(game, round_, rows)
        every = needed(game, [*played.turns, *played.external])
        items = sorted(every, key=lambda item: (item[0].task, item[0].seed, item[1]))
        with build.make_verifier(config, game) as verifier:
            verifier.begin(items)
            scores = dict(zip(items, verifier.score(items).scores, strict=True))
        return game, played, scores

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _game(self, directory: Path) -> Game:
        return build.described(read_config(directory))

    def prompts(self, asked: Mapping[str, Any]) -> Answer:
        game, played, scores = self._played(str(asked.get("node", "0")), int(asked["round"]))
        author = bytes.fromhex(asked.get("author", "")) or game.author
        shown = [turn for turn in [*played.turns, *played.external] if turn.author == author]
        return {"turns": [self._turn(game, scores, turn) for turn in shown]}

    def _turn(self, game: Game, scores: Scored, turn: Turn) -> Answer:
        prompt = game.tokenizer.backend.decode(turn.prompt, skip_special_tokens=False)
        return {
            "stage": turn.stage,
            "index": turn.index,
            **asked(game.mixture, turn.problem, game.prompt_format.family is FAMILIES["compact"]),
            "prompt": shown(prompt, 4 * MAX_TEXT),
            "says": [self._says(game, scores, turn, sampled.text) for sampled in turn.completions],
        }

    def _says(self, game: Game, scores: Scored, turn: Turn, text: str) -> str:
        """What was read out of a completion, and what that is worth."""
        if turn.stage == CRITIQUE and turn.reading:
            return self._criticises(game, scores, turn, text)
        answer = turns.answer(game, turn, text)
        if not answer.strip():
            return "no answer is found in it"
        read = "" if answer == text else f"read as {named(repr(answer))}: "
        if turn.stage == REVISE and game.stand_by and game.prompt_format.keeps(text):
            read = f"stands by its first answer, {named(repr(answer))}: "
        return read + _worth(scores.get((turn.problem, answer)))

    def _criticises(self, game: Game, scores: Scored, turn: Turn, text: str) -> str:
        assert turn.reading is not None
        which = game.prompt_format.named(text, turn.reading.numbers)
        if which is None:
            return "names no answer, and earns nothing"
        texts = [said.answer or "" for said in turn.reading.answers]
        name = (
            f"names answer {which}, {named(repr(texts[which - 1]))}"
            if which
            else "says that none of the answers is right"
        )
        if not turn.problem.verifiable:
            return f"{name}: nothing can tell whether that is so"
        worths = [scores[turn.problem, answer] for answer in texts]
        if not contested(worths):
            found = f"{name}: earns nothing by that, as all that it was shown are worth the same"
        else:
            found = f"{name}: {'that is so, which earns 1' if names_best(which, worths) else 'that is not so'}"
        if pays := game.rewards.derivation:
            own = game.prompt_format.derived(text)
            worth = scores.get((turn.problem, own), 0.0)
            earned = f"right, which earns {pays * worth:g}" if worth else "not right"
            found += f"; its own answer {named(repr(own))} is {earned}"
        return found

    def rewards(self, asked: Mapping[str, Any]) -> Answer:
        """Of a node's own groups: its answers are scored anew, against what it wrote down that they earned."""
        node, round_ = str(asked.get("node", "0")), int(asked["round"])
        game, played, scores = self._played(node, round_)
        told = self._told(node, round_)
        differs, checked = [], 0
        for turn in played.turns:
            earned = turns.rewards(game, played.sheets, turn, scores)
            written = told.get((turn.stage, turn.index))
            if written is None:
                continue
            checked += len(earned)
            if any(abs(a - b) > TOLERANCE for a, b in zip(earned, written, strict=True)):
                differs.append(f"{turn.stage} {turn.index}: written down {written}, found again {earned}")
        what = f"{checked} completions of round {round_} were scored again, from records and problems derived anew."
        return self._found(differs if checked else None, what if checked else NOT_WRITTEN, self._show(node, round_))

    def votes(self, asked: Mapping[str, Any]) -> Answer:
        """What critics' completions name, counted again, against the votes that their records say."""
        node, round_ = str(asked.get("node", "0")), int(asked["round"])
        game, played, _ = self._played(node, round_)
        critics = [turn for turn in [*played.turns, *played.external] if turn.stage == CRITIQUE and turn.reading]
        differs = [
            f"{friendly_name(turn.author)}, problem {turn.index}: its record says {turn.vote}, it is {counted}"
            for turn in critics
            if (counted := vote(turns.named_by(game, turn))) != turn.vote
        ]
        false = played.unused["false vote"]
        differs += [f"{false} groups of peers had votes that do not follow, and were left unused"] if false else []
        agreed = {
            turn.index: turns.voted_for(game, played.sheets, round_, turn.index, turn.problem, turn.chain)
            for turn in critics
        }
        of = "; ".join(f"problem {i}: {'none' if a is None else named(repr(a))}" for i, a in sorted(agreed.items()))
        what = f"{len(critics)} votes were counted again. The critics together name {of or 'nothing'}."
        return self._found(differs if critics else None, what, self._show(node, round_))

    def _show(self, node: str, round_: int) -> str:
        of = ["--node", node] if node else []
        return self._command("experiments.show", str(self.directory), "--round", str(round_), *of)

    def _told(self, node: str, round_: int) -> dict[tuple[str, int], list[float]]:
        """What metrics.jsonl has of a node's own groups."""
        source = journals.find(self.directory, node)
        rows = [
            row
            for row in read_rows(source.directory / METRICS_FILE)
            if (row.get("node"), row.get("round")) == (source.index, round_)
        ]
        lessons = rows[-1].get("lessons", []) if rows else []
        return {(stage, index): rewards for author, _, stage, index, rewards, _ in lessons if not author}

    # --- the chain, and what was sampled

    def ledger(self, asked: Mapping[str, Any]) -> Answer:
        """All that the chain has, read now."""
        home = self._homes()[0]
        config = read_config(home)
        with tempfile.TemporaryDirectory() as directory:
            url, index = account.address(config.chain.endpoint), Path(directory) / "events.sqlite"
            found = ledger.read_ledger(url, config.chain.contract, config.chain.id, index)
        return msgspec.to_builtins(found)

    def claim(self, asked: Mapping[str, Any]) -> Answer:
        """All that the chain has of a commitment and its claims, judged by the records that are here."""
        number, who = int(asked["round"]), str(asked["account"])
        audited = self._audited(self._stamp())
        found = next((one for one in audited.standings if (one.round, one.account) == (number, who)), None)
        if found is None:
            raise UsageError("the chain has no such commitment.")
        differs = [] if found.verdict == claims.RIGHT else [f"the commitment: {found.verdict}"]
        for one in found.claims:
            if one.verdict != claims.RIGHT and one.worth is not None:
                worth = f"{one.worth.low / 1e6:.6f} to {one.worth.high / 1e6:.6f}"
                differs.append(f"stage {one.stage}: claimed {one.claimed / 1e6:.6f}, worth {worth}: {one.verdict}")
        unsure = not found.against and not found.right
        what = (
            f"the Merkle root of {len(found.records)} records, and what they earned, were found again"
            f" ({found.missing} records are not here)."
        )
        answer = self._found(differs, what, self._command("experiments.audit", str(self.directory), "--groups", "0"))
        return answer | ({"equal": None} if unsure else {})

    def _stamp(self) -> tuple[float, ...]:
        """Changes when there are other records."""
        return tuple((home / JOURNAL_FILE).stat().st_mtime for home in self._homes())

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _audited(self, stamp: tuple[float, ...]) -> claims.Audit:
        nodes = self._homes()
        config = read_config(nodes[0])
        game = build.observed(config)
        records = read_journals(nodes)
        with evidence.endpoint(config, nodes[0]) as (rpc, contract, first):
            rounds = read_chain(rpc, contract, first)
            game = dataclasses.replace(game, contract=contract, chain_id=config.chain.id)
        with build.make_verifier(config, game) as verifier:
            return claims.audit(game, rounds, records.values(), make_judge(verifier))

    def verdict(self, asked: Mapping[str, Any]) -> Answer:
        """A replay of one group, with the weights that its record names, against what each auditor said of it."""
        record, index = bytes.fromhex(asked["record"]), int(asked["index"])
        records = read_journals(self._homes())
        said = [
            (one.record.author, verdict)
            for one in records.values()
            for verdict in one.record.verdicts
            if (verdict.record, verdict.index) == (record, index)
        ]
        if record not in records or not said:
            raise UsageError("the record that the verdict is about is not in a journal here any more.")
        command = self._command("experiments.audit", str(self.directory))
        found = self._replayed(records[record], index, records)
        if found is None:
            return self._found(None, "the weights that the record names are not here any more.", command)
        judged = [(friendly_name(by), v.finding) for by, v in said if v.finding in (PRODUCED, NOT_PRODUCED)]
        what = (
            f"{found.judgement.tokens} tokens were replayed: {found.finding}, {found.judgement.bits:.1f} bits, margin"
            f" {found.judgement.statistic:+.2f}; "
            f"{', '.join(f'{by} had found {finding}' for by, finding in judged) or 'nobody had judged them'}."
        )
        differs = [f"{by}: {finding}, it is {found.finding}" for by, finding in judged if finding != found.finding]
        return self._found(differs if judged else None, what, command)

    def _replayed(self, signed: Any, index: int, records: Mapping[bytes, Any]) -> samples.Replayed | None:
        run, weights = self._weights()
        if signed.record.weights not in weights:
            return None
        parents = {p for group in signed.record.groups for p in group.parents} | {signed.hash}
        parents |= {p for h in parents & records.keys() for g in records[h].record.groups for p in g.parents}
        chosen = [records[name] for name in sorted(parents & records.keys())]
        config = read_config(self._homes()[0])
        beacons = {b"": b""}
        if signed.record.beacon:
            with evidence.endpoint(config, self._homes()[0]) as (rpc, contract, first):
                beacons |= by_tag(claims.moments(read_chain(rpc, contract, first)))
        game = build.observed(config)
        found = samples.replay(game, chosen, beacons, weights, run, len(signed.record.groups))
        return next((one for one in found.replayed if (one.record, one.index) == (signed.hash, index)), None)

    def _weights(self) -> tuple[Any, samples.Weights]:
        """What replays, made once; the weights that are at hand now."""
        return self._engine[0], {**self._engine[1], **evidence.kept_weights(self._homes())}

    @functools.cached_property
    def _engine(self) -> tuple[Any, samples.Weights]:
        return evidence.engine(read_config(self._homes()[0]))

    def _homes(self) -> list[Path]:
        found = node_folders(self.directory) or [self.directory]
        return [home for home in found if (home / JOURNAL_FILE).is_file()] or found

    def _found(self, differs: Sequence[str] | None, what: str, command: str) -> Answer:
        """differs: None where it can't be told."""
        equal = None if differs is None else not differs
        return {"equal": equal, "what": what, "differs": list(differs or ())[:MOST_DIFFERENCES], "command": command}


def _worth(score: float | None) -> str:
    return {None: "not scored", 1.0: "right", 0.0: "not right"}.get(score, f"scored {score}")


NOT_WRITTEN = "the round is not in metrics.jsonl with its groups: it was left, or has not ended."


CANNOT = (UsageError, JournalError, VerifierError, ChainError, DevnetError, OSError)


def main(directory: Path) -> int:
    answers, again = sys.stdout, Again(directory)
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = again.answer(json.loads(line))
        except CANNOT as error:
            found = {"error": str(error)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # a question, or a config of another version
            found = {"error": f"that cannot be computed here ({type(error).__name__}: {named(str(error))})."}
        answers.write(json.dumps(found, default=str) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
