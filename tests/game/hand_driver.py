"""Plays rounds by hand: a driver whose model is a table of answers, so that no JAX is needed."""

import collections
import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlswarm_jax import assets, tasks
from rlswarm_jax.game.chain import Moment
from rlswarm_jax.game.effects import (
    Audit,
    Commit,
    Evaluate,
    Gather,
    Hear,
    Learn,
    Pin,
    Publish,
    Replay,
    Sample,
    Sampled,
    Score,
    Verify,
)
from rlswarm_jax.game.prompts import FORMATS, NONE, NOTHING, View
from rlswarm_jax.game.quote import unquote
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.qwen.tokenizer import Tokenizer, load_tokenizer
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE, STAGES, Record
from rlswarm_jax.tasks.verifier import Scores

ME, ALICE, BOB, MALLORY = (simulated(11, node) for node in range(4))
GROUP_SIZE = 4
WEIGHTS = b"\7" * 32  # their name, whatever was learned
STATE_HASH = b"\5" * 32  # after every commitment
END = 0  # the embedded tokenizer's end of sequence


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(assets.SPOILED, 97)


TASKS = {
    "spell_backward": {"min_word_len": 5, "max_word_len": 8},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 4, "max_digits": 4},
}


@functools.cache
def mixture() -> tasks.Mixture:
    return tasks.make_mixture(TASKS)


def make_game(identity: Identity = ME, **fields) -> Game:
    if fields.get("chain_every"):
        fields = {"contract": ""} | fields
    game = Game(
        swarm="tests",
        seed=5,
        author=identity.author,
        mixture=mixture(),
        tokenizer=tokenizer(),
        prompt_format=FORMATS["compact"],
        tokenizer_fingerprint=tokenizer().fingerprint,
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


def true_critic(p: int, g: int, right: str, view: View) -> str:
    """Names the first right answer, or none, but for one completion that names something else."""
    truth = view.answers.index(right) + 1 if right in view.answers else NONE
    return f"{right[:6]}#{truth}" if g else f"{p}#{1 if truth == NONE else NONE}"


def half_right_again(p: int, g: int, right: str, view: View) -> str:
    return right if g == 0 else f"{p}y{g}"


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model of all stages: index of the problem, of the completion, right answer, and what is shown -> text."""

    answer: Model = half_right
    critique: Callable[[int, int, str, View], str] = true_critic
    revise: Callable[[int, int, str, View], str] = half_right_again


def asked(game: Game, round_: int, prompt: Sequence[int], chain: bytes = b"") -> tuple[str, int, View]:
    """Stage, index of the problem and what is shown, of a compact prompt for a shared problem."""
    text = game.tokenizer.decode(prompt)
    problem = functools.partial(game.problem, game.author, round_, chain=chain)
    for stage in (CRITIQUE, REVISE):
        with contextlib.suppress(ValueError):
            view = game.prompt_format.family.parse(stage, text)
            question = unquote(re.split("[|;~!]", text)[0])
            (index,) = (i for i in game.indices(stage) if problem(i).compact == question)
            return stage, index, view
    return ANSWER, -1, NOTHING


def sampled(game: Game, text: str, salt: int = 0) -> Sampled:
    tokens = [*game.tokenizer.encode(text), game.eos_token_ids[0]]
    logprobs = [-0.125 * (1 + (salt + t) % 7) for t in range(len(tokens))]  # exact in float32
    return Sampled(tokens, logprobs, text, True)


@dataclasses.dataclass
class Played:
    """What happened in one round."""

    effects: list
    results: list
    state: NodeState
    metrics: dict[str, float]

    def all(self, kind: type) -> list:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def one(self, kind: type):
        (found,) = self.all(kind)
        return found

    @property
    def records(self) -> dict[str, Record]:
        """What it published, by stage."""
        return {effect.record.stage: effect.record for effect in self.all(Publish)}

    @property
    def said(self) -> dict[str, SignedRecord]:
        """The same as it arrives."""
        published = [r for effect, r in zip(self.effects, self.results, strict=True) if isinstance(effect, Publish)]
        return {record.record.stage: record for record in map(open_envelope, published)}

    def shown(self, game: Game, stage: str) -> dict[int, View]:
        """What it was shown in a stage, by problem."""
        found = [asked(game, self.state.round - 1, p) for effect in self.all(Sample) for p in effect.prompts]
        return {index: view for of, index, view in found if of == stage}

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


Arrived = Sequence[SignedRecord] | Mapping[str, Sequence[SignedRecord]]  # in the first stage, or by stage


def play(
    game: Game,
    state: NodeState | None = None,
    arrived: Arrived = (),
    model: Model | Speaker = half_right,
    identity: Identity = ME,
    chain: Sequence[Sequence[Moment]] = (),
) -> Played:
    """chain: what it says each time that the node listens."""
    state, heard = NodeState(round=1) if state is None else state, iter(chain)
    generator = play_round(game, state)
    effects: list[Any] = []
    results: list[Any] = []
    result, beacon = None, b""
    while True:
        try:
            effect = generator.send(result)
        except StopIteration as stop:
            return Played(effects, results, *stop.value)
        if isinstance(effect, Hear):
            result = list(next(heard))
            beacon = beacon if results else in_force(game, state, result)
        else:
            result = answer(game, state, effect, arrived, model, identity, beacon)
        effects.append(effect)
        results.append(result)
        if isinstance(effect, Publish):
            result = None


def in_force(game: Game, state: NodeState, heard: Sequence[Moment]) -> bytes:
    return state.account.hear(heard, take=state.round % game.chain_every == 0).beacon


def answer(game, state, effect, arrived, model, identity, beacon=b""):
    match effect:
        case Evaluate():
            return {"accuracy": 0.5}
        case Pin():
            return WEIGHTS
        case Replay():
            return {"audit/own_produced": float(len(effect.claimed))}
        case Audit():
            return []
        case Sample():
            return [say(game, state.round, p, prompt, model, beacon) for p, prompt in enumerate(effect.prompts)]
        case Verify():
            return None
        case Score():
            return Scores([game.mixture.score(*item) for item in effect.items], {})
        case Publish():
            return seal(effect.record, identity)
        case Gather():
            by_stage = arrived if isinstance(arrived, Mapping) else {ANSWER: arrived}
            return list(by_stage.get(effect.stage, ()))
        case Learn():
            return {"loss": 0.25, "updates": 1.0}
        case Commit():
            return STATE_HASH


def say(
    game: Game, round_: int, position: int, prompt: Sequence[int], model: Model | Speaker, beacon: bytes = b""
) -> list[Sampled]:
    speaker = model if isinstance(model, Speaker) else Speaker(model)
    stage, index, view = asked(game, round_, prompt, beacon)
    p = position if stage == ANSWER else index
    right = game.problem(game.author, round_, p, beacon).answers[0]
    texts = {
        ANSWER: lambda g: speaker.answer(p, g, right),
        CRITIQUE: lambda g: speaker.critique(p, g, right, view),
        REVISE: lambda g: speaker.revise(p, g, right, view),
    }[stage]
    return [sampled(game, texts(g), 3 * p + g) for g in range(game.group_size)]


def three_stages(identity: Identity = ME, **fields) -> Game:
    """In its round 1, by `half_right`, ME's first answer to problem 0 is right and ALICE's to 1, and no others are."""
    return make_game(identity, **{"stages": STAGES, "shared": 2, "external_groups": 99, "seed": 17} | fields)


Speakers = Mapping[Identity, Model | Speaker]
Heard = Callable[[str, Identity, Identity], str | None]  # stage, speaker, listener -> the stage in which it arrives


def play_together(
    speakers: Speakers,
    heard: Heard = lambda stage, speaker, listener: stage,
    states: Mapping[Identity, NodeState] | None = None,
    chain: Sequence[Moment] = (),
    own: Mapping[Identity, Mapping[str, Any]] | None = None,
    **fields,
) -> dict[Identity, Played]:
    """One round of some nodes who hear each other, stage by stage. chain: what it says to all of them.

    own: fields of some nodes' games.
    """
    games = {who: three_stages(who, **fields, **(own or {}).get(who, {})) for who in speakers}
    states = states or dict.fromkeys(speakers, NodeState(round=1))
    rounds = {who: play_round(games[who], states[who]) for who in speakers}
    effects, results = ({who: list[Any]() for who in speakers} for _ in range(2))
    ended, mail = dict[Identity, tuple](), collections.defaultdict[tuple, list[SignedRecord]](list)
    while rounds.keys() - ended.keys():
        for who in rounds.keys() - ended.keys():  # each goes on to where it listens: what it hears was said before
            result = results[who][-1] if results[who] else None
            if effects[who] and isinstance(effects[who][-1], Gather):
                result = results[who][-1] = mail[who, effects[who][-1].stage]
            while True:
                try:
                    effect = rounds[who].send(result)
                except StopIteration as stop:
                    ended[who] = stop.value
                    break
                effects[who].append(effect)
                if isinstance(effect, Hear):
                    result = list(chain)
                else:
                    beacon = in_force(games[who], states[who], chain) if chain else b""
                    result = answer(games[who], states[who], effect, (), speakers[who], who, beacon)
                results[who].append(result)
                if isinstance(effect, Gather):
                    break
                if isinstance(effect, Publish):
                    for other in speakers.keys() - {who}:
                        mail[other, heard(effect.record.stage, who, other)].append(open_envelope(result))
                    result = None
    return {who: Played(effects[who], results[who], *ended[who]) for who in speakers}


@functools.cache
def record_of(identity: Identity, round_: int = 1, model: Model = half_right, local_groups: int = 3) -> Record:
    """The honest record of a peer."""
    game = make_game(identity, local_groups=local_groups)
    return play(game, NodeState(round=round_), model=model, identity=identity).one(Publish).record


def signed(record: Record, identity: Identity) -> SignedRecord:
    """The record in the name of `identity`, as it arrives."""
    return open_envelope(seal(record, identity))
