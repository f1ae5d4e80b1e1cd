"""Plays rounds by hand: a driver whose model is a table of answers, so that no JAX is needed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from rlswarm_jax import assets, tasks
from rlswarm_jax.game.effects import Evaluate, Gather, Learn, Publish, Sample, Sampled, Score
from rlswarm_jax.game.prompts import FORMATS
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.qwen.tokenizer import Tokenizer, load_tokenizer
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.schema import Record
from rlswarm_jax.tasks.verifier import Scores

ME, ALICE, BOB, MALLORY = (simulated(11, node) for node in range(4))
GROUP_SIZE = 4
END = 0  # the embedded tokenizer's end of sequence


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(assets.SPOILED, 97)


@functools.cache
def mixture() -> tasks.Mixture:
    return tasks.make_mixture(
        {
            "spell_backward": {"min_word_len": 5, "max_word_len": 8},
            "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 4, "max_digits": 4},
        }
    )


def make_game(identity: Identity = ME, **fields) -> Game:
    game = Game(
        swarm="tests",
        seed=5,
        author=identity.author,
        mixture=mixture(),
        tokenizer=tokenizer(),
        prompt_format=FORMATS["compact"],
        tokenizer_fingerprint=tokenizer().fingerprint,
        weights_fingerprint="w",
        eos_token_ids=(END,),
        rounds=10,
        local_groups=3,
        external_groups=2,
        group_size=GROUP_SIZE,
        temperature=1.0,
        max_new_tokens=12,
        max_staleness=2,
        evaluate_every=4,
    )
    return dataclasses.replace(game, **fields)


Model = Callable[[int, int, str], str]  # index of the prompt, of the completion, right answer -> text


def half_right(p: int, g: int, right: str) -> str:
    """Every group teaches: completion 0 is right, the others are wrong each in its own way."""
    return right if g == 0 else f"{p}x{g}"


def all_right(p: int, g: int, right: str) -> str:
    return right


def all_wrong(p: int, g: int, right: str) -> str:
    return f"{p}x{g}"


def sampled(game: Game, text: str, salt: int = 0) -> Sampled:
    tokens = [*game.tokenizer.encode(text), END]
    logprobs = [-0.125 * (1 + (salt + t) % 7) for t in range(len(tokens))]  # exact in float32
    return Sampled(tokens, logprobs, text, True)


@dataclasses.dataclass
class Played:
    """What happened in one round."""

    effects: list
    results: list
    state: NodeState
    metrics: dict[str, float]

    def one(self, kind: type):
        (found,) = (effect for effect in self.effects if isinstance(effect, kind))
        return found

    @property
    def learned(self) -> list:
        return self.one(Learn).groups

    @property
    def external(self) -> list:
        return [group for group in self.learned if group.external]

    @property
    def unused(self) -> dict[str, float]:
        prefix = "groups/unused/"
        return {name.removeprefix(prefix): n for name, n in self.metrics.items() if name.startswith(prefix)}


def play(
    game: Game,
    state: NodeState | None = None,
    arrived: Sequence[SignedRecord] = (),
    model: Model = half_right,
    identity: Identity = ME,
) -> Played:
    state = NodeState(round=1) if state is None else state
    generator = play_round(game, state)
    effects: list[Any] = []
    results: list[Any] = []
    result = None
    while True:
        try:
            effect = generator.send(result)
        except StopIteration as stop:
            return Played(effects, results, *stop.value)
        result = answer(game, state, effect, arrived, model, identity)
        effects.append(effect)
        results.append(result)
        if isinstance(effect, Publish):
            result = None


def answer(game, state, effect, arrived, model, identity):
    match effect:
        case Evaluate():
            return {"accuracy": 0.5}
        case Sample():
            problems = [game.problem(game.author, state.round, index) for index in range(len(effect.prompts))]
            return [
                [sampled(game, model(p, g, problem.answers[0]), 3 * p + g) for g in range(effect.keys_PGM.shape[1])]
                for p, problem in enumerate(problems)
            ]
        case Score():
            return Scores([game.mixture.score(*item) for item in effect.items], {})
        case Publish():
            return seal(effect.record, identity)
        case Gather():
            return list(arrived)
        case Learn():
            return {"loss": 0.25, "updates": 1.0}


@functools.cache
def record_of(identity: Identity, round_: int = 1, model: Model = half_right, local_groups: int = 3) -> Record:
    """The honest record of a peer."""
    game = make_game(identity, local_groups=local_groups)
    return play(game, NodeState(round=round_), model=model, identity=identity).one(Publish).record


def signed(record: Record, identity: Identity) -> SignedRecord:
    """The record in the name of `identity`, as it arrives."""
    return open_envelope(seal(record, identity))
