"""What hostile keys that answer right, in a style of their own, cost the nodes that learn from them.

    python -m benchmarks.poison [--keys 0 1 8] [--seeds 5] [--stages 1]        three minutes on two CPU cores

Four honest nodes of the quickstart swarm, simulated; beside them keys that answer every problem they are given, half of
the completions right, but in capitals and spaces, as a scorer that folds both away takes it. (The records are made for
each round as it begins; they are signed and well-formed, and their log-probs claim that they are likely.) Prints one
JSON line a row: held-out accuracy of the honest nodes after 32 rounds, mean ± sd over seeds, and the share of the
groups that they learned from which is hostile. `ratio` is to the same swarm undisturbed.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from configs import quickstart
from rlswarm_jax import identity
from rlswarm_jax.game.player import RoundReport
from rlswarm_jax.game.rules import Game
from rlswarm_jax.grpo import learner
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Journal
from rlswarm_jax.machine import hardware
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.schema import ANSWER, Completion, Group, Record
from rlswarm_jax.running import build, simulated

ROUNDS = 32
FIRST_KEY = 1000  # of the hostile ones, far from those of the nodes


def styled(answer: str, room: int, g: int) -> str:
    """The answer as only a scorer that folds white space and case takes it."""
    words = answer.upper().replace(" ", "  ")[:room]
    words = words if words.split() == answer.upper().split() else answer.upper()
    before = (room - len(words)) * (g + 1) // 8
    return " " * before + words + " " * (room - len(words) - before)


def hostile_record(game: Game, who: Identity, round_: int) -> bytes:
    """The answers of a hostile key, signed: of each group one half is right and styled, the other says nothing."""
    groups = []
    for index in range(game.local_groups):
        problem = game.problem(who.author, round_, index)
        room = game.max_new_tokens - 1
        right = [styled(problem.answers[0], room, g) for g in range(game.group_size // 2)]
        texts = [*right, *["?"] * (game.group_size - len(right))]
        fingerprint = game.mixture.tasks[problem.task].fingerprint
        completions = [_completion(game, text) for text in texts]
        groups.append(Group(problem.task, fingerprint, index, problem.seed, [], None, completions))
    record = Record(
        version=schema.VERSION,
        swarm=game.swarm,
        author=who.author,
        round=round_,
        stage=ANSWER,
        beacon=b"",
        prompt_format=game.dialect,
        policy_version=round_,
        weights=bytes(32),
        tokenizer_fingerprint=game.tokenizer_fingerprint,
        temperature=game.temperature,
        groups=groups,
        verdicts=[],
    )
    return seal(record, who)


def _completion(game: Game, text: str) -> Completion:
    tokens = [*game.tokenizer.encode(text), game.eos_token_ids[0]]
    logprobs = np.full(len(tokens), -0.1, "<f4")
    return Completion(np.array(tokens, "<i4").tobytes(), logprobs.tobytes(), text)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """accuracy: held out, mean over honest nodes, at the end. hostile: share of all groups learned from."""

    accuracy: float
    hostile: float


def play(config, made: build.Pieces, start: Sequence[learner.TrainState], seed: int, keys: int) -> Outcome:
    """One run of the honest nodes beside so many hostile keys."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    own = simulated.identities(config)
    games = [dataclasses.replace(g, seed=seed, author=o.author) for g, o in zip(made.games, own, strict=True)]
    made.engine.set_states(start)
    attackers = [identity.simulated(seed, FIRST_KEY + n) for n in range(keys)]
    reports: list[RoundReport] = []

    def attack(node: int, round_: int, at: float) -> None:
        for who in attackers if round_ < ROUNDS else ():
            simulation.inject(hostile_record(games[0], who, round_), node, at)

    def on_round(report: RoundReport) -> None:
        reports.append(report)
        attack(report.node, report.round + 1, report.at + 0.01)

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.sqlite")
        simulation = simulated.make_simulation(config, dataclasses.replace(made, games=games), journal, on_round)
        for node in range(len(games)):
            attack(node, 0, 0.01)
        simulation.run()
        journal.close()
    last = [r.metrics["final/accuracy"] for r in reports if "final/accuracy" in r.metrics]
    assert len(last) == len(games)
    groups = sum(r.metrics["groups/local"] + r.metrics["groups/external"] for r in reports)
    bad = sum(r.metrics.get(f"learned_from/{who.author.hex()}", 0) for r in reports for who in attackers)
    return Outcome(statistics.fmean(last), bad / groups)


def rows(keys: Sequence[int], seeds: int, stages: int, code: str) -> Iterator[dict]:
    config = quickstart.get_config("spoiled-simulate")
    config.rounds = config.evaluation.every = ROUNDS
    config.game.stages, config.chain.endpoint = stages, "none"
    made = build.build(config, simulated.identities(config))
    start = [jax.device_get(made.engine.state(n)) for n in range(len(made.games))]
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), "jax": metadata.version("jax")}}
    undisturbed = None
    for count in keys:
        found = [play(config, made, start, seed, count) for seed in range(seeds)]
        accuracy = [100 * o.accuracy for o in found]
        undisturbed = statistics.fmean(accuracy) if count == 0 else undisturbed
        ratio = None if undisturbed is None else round(statistics.fmean(accuracy) / undisturbed, 3)
        of = {"keys": count, "honest": len(made.games), "stages": stages, "rounds": ROUNDS, "seeds": seeds}
        of |= {"code": code} if code else {}
        share = 100 * statistics.fmean(o.hostile for o in found)
        measured = {"worst": round(min(accuracy), 2), "hostile_share": round(share, 1)}
        if seeds > 1:
            measured["sd"] = round(statistics.stdev(accuracy), 2)
        fields = {"benchmark": "poison: held-out accuracy of honest nodes", "config": of}
        yield (
            fields
            | {
                "value": round(statistics.fmean(accuracy), 2),
                "unit": "%",
                "versus": "undisturbed",
                "ratio": ratio,
                "measured": measured,
            }
            | about
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[0, 1, 8])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--code", default="", help="what is measured, if it is not this commit: goes into the rows")
    given = parser.parse_args(arguments)
    for row in rows(given.keys, given.seeds, given.stages, given.code):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
