"""Groups of completions as they are played, a node's own and its peers' alike: read, put before others, and scored."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np

from rlswarm_jax import randomness
from rlswarm_jax.game.effects import Claimed, Sampled
from rlswarm_jax.game.prompts import NONE
from rlswarm_jax.game.rewards import answer_reward, chance, contested, critique_reward, names_best, revise_reward
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import (
    Reading,
    Said,
    Sheet,
    Sheets,
    consensus,
    most_said,
    read,
    read_parents,
    speaks,
    vote,
    votes_on,
)
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE, STAGES, Completion, Group, RecordError
from rlswarm_jax.tasks import Problem

Scored = Mapping[tuple[Problem, str], float]  # scores by problem and answer
NO_CHAIN = {b"": b""}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One author's completions in a stage, with what they were asked.

    reading: what they were shown, in the stages that show something. vote: as the author's record says it. chain:
    the beacon it was played under.
    """

    author: bytes
    round: int
    stage: str
    index: int
    problem: Problem
    prompt: list[int]
    reading: Reading | None
    completions: list[Sampled]
    vote: int | None = None
    external: bool = False
    chain: bytes = b""


Read = tuple[dict[int, Turn], dict[int, str], Sheet]  # as `read_record` has it, and what the record says to others

# --- own turns


def ask(game: Game, sheets: Sheets, round_: int, stage: str, chain: bytes = b"") -> list[Turn]:
    """What a node is to sample in a stage; a problem of which nobody has said anything is not criticised.

    Nor is one whose prompt cannot be made from what others wrote: that must not stop this node.
    """
    turns = []
    for index in game.indices(stage):
        problem = game.problem(game.author, round_, index, chain)
        at = (game.author, round_, stage, index, problem)
        if stage == ANSWER:
            turns.append(Turn(*at, game.prompt(game.author, stage, problem, None), None, [], chain=chain))
        elif reading := read(sheets, game.seat(game.author, round_, stage, index, chain)):
            with contextlib.suppress(RecordError):
                prompt = _prompt(game, game.author, stage, problem, reading)
                turns.append(Turn(*at, prompt, reading, [], chain=chain))
    return turns


def ask_again(game: Game, turn: Turn) -> Turn:
    """What a node is to sample in the place of an answer to a problem of its own: the next problem drawn there."""
    index = turn.index + game.local_groups
    problem = game.problem(game.author, turn.round, index, turn.chain)
    prompt = game.prompt(game.author, turn.stage, problem, None)
    return dataclasses.replace(turn, index=index, problem=problem, prompt=prompt, completions=[])


def sample_keys(game: Game, turn: Turn) -> list[list[int]]:
    """Of each of a turn's completions, two words of uint32."""
    at = (game.beacon(turn.round, turn.chain), turn.author, turn.stage, turn.index)
    return [randomness.key_data("sample", *at, g).tolist() for g in range(game.group_size)]


def claimed(game: Game, turn: Turn) -> Claimed:
    """What its author says of a turn, to be replayed."""
    return Claimed(turn.prompt, [s.tokens for s in turn.completions], sample_keys(game, turn))


def claim(
    game: Game, sheets: Sheets, signed: SignedRecord, index: int, beacons: Mapping[bytes, bytes]
) -> Claimed | None:
    """A peer's group, to be replayed here; None if it cannot be: it cannot be used either, or was sampled otherwise."""
    record = signed.record
    group = next((group for group in record.groups if group.index == index), None)
    alike = record.tokenizer_fingerprint == game.tokenizer_fingerprint and record.temperature == game.temperature
    if group is None or not alike:
        return None
    try:
        return claimed(game, _read_group(game, sheets, signed, group, beacons))
    except RecordError:
        return None


def _prompt(game: Game, author: bytes, stage: str, problem: Problem, reading: Reading | None) -> list[int]:
    """Raises RecordError where what it quotes cannot be said in this node's tokens, or it is longer than they read."""
    try:
        prompt = game.prompt(author, stage, problem, reading)
    except ValueError as error:
        raise RecordError("text mismatch", str(error)) from None
    if len(prompt) > game.max_prompt_tokens:
        raise RecordError("misshapen group", f"a prompt of {len(prompt)} tokens, at most {game.max_prompt_tokens} fit")
    return prompt


def sampled(game: Game, turn: Turn, completions: list[Sampled]) -> Turn:
    """A turn with its completions and, of a critic, what they vote for."""
    turn = dataclasses.replace(turn, completions=completions)
    return dataclasses.replace(turn, vote=vote(named_by(game, turn))) if turn.stage == CRITIQUE else turn


def to_group(game: Game, turn: Turn) -> Group:
    completions = [
        Completion(
            tokens=np.array(s.tokens, "<i4").tobytes(),
            logprobs=np.minimum(np.array(s.logprobs, "<f4"), 0).tobytes(),
            text=s.text,
        )
        for s in turn.completions
    ]
    problem = turn.problem
    fingerprint = game.mixture.tasks[problem.task].fingerprint
    parents = turn.reading.parents if turn.reading else []
    return Group(problem.task, fingerprint, turn.index, problem.seed, parents, turn.vote, completions)


# --- peers' turns


def read_records(
    game: Game,
    sheets: dict[bytes, Sheet],
    records: Iterable[SignedRecord],
    *,
    last: bool,
    beacons: Mapping[bytes, bytes] = NO_CHAIN,
) -> tuple[list[Turn], list[SignedRecord], collections.Counter]:
    """The turns that this node can score, records to be tried again, and how many groups it cannot use, by cause.

    Adds to `sheets` what the records say, an earlier stage's before a later one's. last: nothing is tried again.
    beacons: of the chain, by what records call them.
    """
    turns: list[Turn] = []
    waiting, unused = [], collections.Counter[str]()
    for signed in sorted(records, key=in_time):
        found, causes, sheet = _read(game, sheets, signed, beacons)
        flaws = collections.Counter(causes.values())
        if flaws.keys() & {"unknown parent", "unknown beacon"} and not last:  # it may come
            waiting.append(signed)
            continue
        turns += found.values()
        unused += flaws
        sheets[signed.hash] = sheet
    return turns, waiting, unused


def _read(game: Game, sheets: Sheets, signed: SignedRecord, beacons: Mapping[bytes, bytes]) -> Read:
    """As `read_record`, and what the record says to others; not again where somebody here has read it as this node."""

    def anew() -> Read:
        found, flaws = read_record(game, sheets, signed, beacons)
        at = (record.author, record.round, record.stage)
        return found, flaws, to_sheet(game, *at, found.values(), beacons.get(record.beacon, b""))

    record = signed.record
    if game.readings is None:
        return anew()
    parents = [sheets.get(parent) for group in record.groups for parent in group.parents]
    return game.readings.of((signed.hash, beacons.get(record.beacon), *game.eyes), parents, anew)


def read_record(
    game: Game, sheets: Sheets, signed: SignedRecord, beacons: Mapping[bytes, bytes]
) -> tuple[dict[int, Turn], dict[int, str]]:
    """A record's turns by index, and why its other groups cannot be used, by their place in the record.

    sheets: of the stages before, which it may answer to.
    """
    found: dict[int, Turn] = {}
    flaws: dict[int, str] = {}
    taken = set[int | None]()
    for place, group in enumerate(signed.record.groups):
        try:
            problem = game.place(signed.record.stage, group.index)
            if problem in taken - {None}:
                raise RecordError("foreign problem", f"a problem in the place of index {group.index} comes twice")
            found[group.index] = _read_group(game, sheets, signed, group, beacons)
            taken.add(problem)
        except RecordError as error:
            flaws[place] = error.cause
    return found, flaws


def in_time(signed: SignedRecord) -> tuple[int, int, bytes]:
    """By round and stage: what others may answer to comes before their answers."""
    stage = signed.record.stage
    return signed.record.round, (*STAGES, stage).index(stage), signed.hash


def _read_group(game: Game, sheets: Sheets, signed: SignedRecord, group: Group, beacons: Mapping[bytes, bytes]) -> Turn:
    record = signed.record
    chain = beacons.get(record.beacon)
    if chain is None:
        raise RecordError("unknown beacon", f"{record.beacon.hex()!r}")
    task = game.mixture.tasks.get(group.task)
    if task is None or task.fingerprint != group.task_fingerprint:
        raise RecordError("unknown task", f"{group.task!r} {group.task_fingerprint!r}")
    if record.prompt_format != game.dialect or record.stage not in game.stages:
        raise RecordError("unknown prompt", f"{record.prompt_format!r}, stage {record.stage!r}")
    if game.place(record.stage, group.index) is None:  # else one author could offer many times what the others can
        raise RecordError("foreign problem", f"index {group.index} in stage {record.stage!r}")
    problem = game.problem(record.author, record.round, group.index, chain)
    if (problem.task, problem.seed) != (group.task, group.problem_seed):
        raise RecordError("foreign problem", f"index {group.index} of round {record.round} is another problem")
    reading = None
    if record.stage != ANSWER:
        seat = game.seat(record.author, record.round, record.stage, group.index, chain)
        reading = read_parents(sheets, seat, group.parents)
    elif group.parents:
        raise RecordError("wrong parents", "an answer answers to nobody")
    if len(group.completions) != game.group_size:  # before any of them is read: that costs
        raise RecordError("misshapen group", f"{len(group.completions)} completions, {game.group_size} are played")
    same_tokenizer = record.tokenizer_fingerprint == game.tokenizer_fingerprint
    completions = [_read_completion(game, c, same_tokenizer) for c in group.completions]
    prompt = _prompt(game, record.author, record.stage, problem, reading)
    at = (record.author, record.round, record.stage, group.index)
    turn = Turn(*at, problem, prompt, reading, completions, group.vote, external=True, chain=chain)
    if group.vote != (vote(named_by(game, turn)) if record.stage == CRITIQUE else None):
        raise RecordError("false vote", f"a vote for {group.vote} in stage {record.stage!r}")
    return turn


def _read_completion(game: Game, completion: Completion, same_tokenizer: bool) -> Sampled:
    """With the same tokenizer the ids must say what the text says; with another the text is encoded anew."""
    if not same_tokenizer:
        if len(completion.text) > game.max_new_tokens * game.tokenizer.longest_token:
            raise RecordError("misshapen group", f"a text of {len(completion.text)} characters")
        try:
            tokens = game.tokenizer.encode(completion.text)
        except ValueError as error:
            raise RecordError("text mismatch", str(error)) from None
        if not 1 <= len(tokens) <= game.max_new_tokens:
            raise RecordError("misshapen group", f"a text of {len(tokens)} tokens here")
        if game.tokenizer.decode(tokens) != completion.text:  # a special token's name, an unknown character
            raise RecordError("text mismatch", f"{completion.text[:40]!r} cannot be said in this node's tokens")
        return Sampled(tokens, [], completion.text, False)
    tokens = completion.tokens_T.tolist()
    if len(tokens) > game.max_new_tokens or max(tokens) >= game.tokenizer.vocab_size:
        raise RecordError("misshapen group", f"{len(tokens)} tokens, largest id {max(tokens)}")
    if not set(tokens[:-1]).isdisjoint(game.eos_token_ids):
        raise RecordError("text mismatch", f"{completion.text[:40]!r} goes on behind its end")
    if game.tokenizer.decode(tokens) != completion.text:
        raise RecordError("text mismatch", f"{completion.text[:40]!r} is not what the ids say")
    return Sampled(tokens, completion.logprobs_T.tolist(), completion.text, False)


# --- what turns say to others


def to_sheet(game: Game, author: bytes, round_: int, stage: str, turns: Iterable[Turn], chain: bytes = b"") -> Sheet:
    """What an author has said in a stage, of the shared problems."""
    said = {turn.index: _said(game, turn) for turn in turns if turn.index < game.shared}
    return Sheet(author, round_, stage, said, chain)


def _said(game: Game, turn: Turn) -> Said:
    beacon, how = game.beacon(turn.round, turn.chain), game.prompt_format
    spoken = turn.completions[speaks(beacon, turn.author, turn.stage, turn.index, game.group_size)].text
    if turn.stage != CRITIQUE:
        return Said(how.said(turn.stage, spoken), answer(game, turn, spoken))
    assert turn.reading is not None
    votes_for = None if turn.vote is None else turn.reading.answers[turn.vote - 1].answer if turn.vote else ""
    return Said(how.said(turn.stage, spoken), votes_for)


def named_by(game: Game, turn: Turn) -> list[int | None]:
    """What each of a critic's completions names."""
    assert turn.reading is not None
    return [game.prompt_format.named(s.text, turn.reading.numbers) for s in turn.completions]


# --- what turns earn


def to_score(game: Game, turn: Turn) -> list[tuple[Problem, str]]:
    """The answers whose scores `rewards` needs."""
    shown = [said.answer or "" for said in turn.reading.answers] if turn.reading else []
    shown = shown[:1] if turn.stage == REVISE else shown
    return [(turn.problem, text) for text in shown + answers(game, turn)]


def answers(game: Game, turn: Turn) -> list[str]:
    """What each completion answers; of critiques nothing, unless that is paid for."""
    how, texts = game.prompt_format, [s.text for s in turn.completions]
    if turn.stage == CRITIQUE:
        return list(map(how.derived, texts)) if game.rewards.derivation and turn.problem.verifiable else []
    return [answer(game, turn, text) for text in texts]


def answer(game: Game, turn: Turn, text: str) -> str:
    """Of an answer or a revision, which may be to stand by the first answer."""
    if game.stand_by and turn.stage == REVISE and turn.reading and game.prompt_format.keeps(text):
        return turn.reading.answers[0].answer or ""
    return game.prompt_format.answer(text)


def rewards(game: Game, sheets: Sheets, turn: Turn, scores: Scored) -> list[float]:
    """What each completion earns."""
    problem, weights, reading = turn.problem, game.rewards, turn.reading
    if turn.stage == CRITIQUE:
        assert reading is not None
        shown = [scores[problem, said.answer or ""] for said in reading.answers] if problem.verifiable else None
        derived = [scores[problem, text] for text in answers(game, turn)] or [0.0] * len(turn.completions)
        named = named_by(game, turn)
        return [critique_reward(n, shown, weights, own) for n, own in zip(named, derived, strict=True)]
    said = answers(game, turn)
    if turn.stage == ANSWER:
        return [answer_reward(scores[problem, text], bool(text.strip()), weights) for text in said]
    assert reading is not None
    first = scores[problem, reading.answers[0].answer or ""]
    # where an answer can be verified, saying what the others say is worth nothing by itself
    agreed = None if problem.verifiable else voted_for(game, sheets, turn.round, turn.index, problem, turn.chain)
    canonical = functools.partial(game.mixture.canonical, problem)
    return [
        revise_reward(
            scores[problem, text],
            first,
            agreed is not None and canonical(text) == canonical(agreed),
            bool(text.strip()),
            weights,
        )
        for text in said
    ]


def lenient(game: Game, turn: Turn, scores: Scored) -> list[bool]:
    """Which completions are right only because their scorer is lenient: they say what an accepted answer says, in
    another way (white space, case, zeros before a number).
    """
    problem, canonical = turn.problem, functools.partial(game.mixture.canonical, turn.problem)
    texts = answers(game, turn)
    accepted_anyway = [scores[problem, t] > 0 and t not in problem.answers for t in texts]
    if not any(accepted_anyway):
        return [False] * len(turn.completions)
    accepted = {canonical(answer) for answer in problem.answers}
    return [taken and canonical(t) in accepted for taken, t in zip(accepted_anyway, texts, strict=True)]


def overlong(game: Game, turn: Turn, own_lengths: Mapping[str, float]) -> list[bool]:
    """Which completions of a peer are too long to teach anything. own_lengths: this node's means, in tokens by stage.

    A price on tokens would not do: it is the same for all of a group that are alike, so a long right completion beside
    long wrong ones is as much better than their mean as a short one is beside short ones.
    """
    own = own_lengths.get(turn.stage, 0.0)
    most = game.max_length_ratio * own
    return [0 < most < len(said.tokens) for said in turn.completions]


def teaches(
    game: Game,
    turn: Turn,
    earned: Sequence[float],
    scores: Scored,
    own_ways: Set[str],
    own_lengths: Mapping[str, float],
) -> list[float]:
    """What each completion is worth to learn from, which is what it earns but for peers' ways of their own.

    A peer's that only a lenient scorer takes is worth nothing, unless this node answers the task in such ways, too:
    own_ways, the tasks of which it does. (It would learn the way, which is easily had, before the answer.) Nor is one
    that is `overlong`.
    """
    if not turn.external:
        return list(earned)
    odd = [False] * len(earned) if turn.problem.task in own_ways else lenient(game, turn, scores)
    flawed = zip(odd, overlong(game, turn, own_lengths), earned, strict=True)
    return [0.0 if is_odd or is_long else reward for is_odd, is_long, reward in flawed]


@dataclasses.dataclass(frozen=True)
class Critics:
    """How often critiques of a problem name a best answer, mean over critics; and what is had without reading.

    chance: by naming at random. first, majority, none: always the first answer shown, the first of those that say what
    most of those shown say, or that none is right.
    """

    critic: float
    chance: float
    first: float
    majority: float
    none: float


def criticised(game: Game, critics: Sequence[Turn], scores: Scored, *, disputed: bool) -> Critics | None:
    """disputed: only of critics who were shown answers that differ in worth; None if there are none."""
    found = []
    for turn in critics:
        assert turn.reading is not None
        answers, canonical = turn.reading.answers, functools.partial(game.mixture.canonical, turn.problem)
        shown = [scores[turn.problem, said.answer or ""] for said in answers]
        if contested(shown) or not disputed:
            own = [names_best(named, shown) for named in named_by(game, turn)]
            constant = [names_best(named, shown) for named in (1, most_said(answers, canonical), NONE)]
            found.append([sum(own) / len(own), chance(shown), *map(float, constant)])
    return Critics(*np.mean(found, axis=0).tolist()) if found else None


def voted_for(game: Game, sheets: Sheets, round_: int, index: int, problem: Problem, chain: bytes = b"") -> str | None:
    """What most of the critics that were heard voted for."""
    votes = votes_on(sheets, round_, CRITIQUE, index, chain)
    return consensus(votes, functools.partial(game.mixture.canonical, problem), game.beacon(round_, chain), index)


def to_scored(game: Game, turn: Turn, earned: Sequence[float]) -> ScoredGroup:
    """A turn as it is learned from."""
    return ScoredGroup(
        author=turn.author,
        round=turn.round,
        index=turn.index,
        external=turn.external,
        prompt=turn.prompt,
        tokens=[s.tokens for s in turn.completions],
        logprobs=[s.logprobs for s in turn.completions] if all(s.logprobs for s in turn.completions) else None,
        rewards=list(earned),
        stage=turn.stage,
        weight=game.weight(turn.stage),
    )
