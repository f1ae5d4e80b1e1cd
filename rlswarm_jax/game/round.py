"""A node's round, as a plain generator that does no I/O.

`play_round` yields effects and receives their results; a driver fulfils them (`simulate.py` for N nodes in one
process). The same code therefore runs live, simulated, and again from a journal.
"""

import collections
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from rlswarm_jax import randomness
from rlswarm_jax.game.effects import Effect, Evaluate, Gather, Learn, Metrics, Publish, Sample, Sampled, Score
from rlswarm_jax.game.prompts import PromptFormat
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.pool import Pool, ScoredGroup
from rlswarm_jax.records.schema import ANSWER, Completion, Group, Record, RecordError
from rlswarm_jax.tasks import Mixture, Problem

MAX_NAMED = 32  # authors that a round's metrics name


@dataclasses.dataclass(frozen=True)
class Game:
    """What does not change from round to round for one node."""

    swarm: str
    seed: int
    author: bytes
    mixture: Mixture
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    tokenizer_fingerprint: str
    weights_fingerprint: str
    eos_token_ids: tuple[int, ...]
    rounds: int
    local_groups: int
    external_groups: int
    group_size: int
    temperature: float
    max_new_tokens: int
    max_staleness: int
    evaluate_every: int

    def beacon(self, round_: int) -> bytes:
        """Common randomness of a round where no chain gives one."""
        return randomness.digest("problem", "beacon", self.seed, round_)

    def problem(self, author: bytes, round_: int, index: int) -> Problem:
        """The problem that an author has at an index of a round: nobody chooses their problems."""
        beacon = self.beacon(round_)
        task = self.mixture.pick(randomness.seed("problem", beacon, author, "mixture", index))
        return self.mixture.tasks[task].problem(randomness.seed("problem", beacon, author, task, index))

    def prompt_tokens(self, problem: Problem) -> list[int]:
        return self.prompt_format.encode(problem, self.tokenizer)


@dataclasses.dataclass(frozen=True)
class NodeState:
    """What a node carries from one round to the next, besides its weights: a value."""

    round: int = 0
    policy_version: int = 0
    pool: Pool = dataclasses.field(default_factory=Pool)


Round = Generator[Effect, Any, tuple[NodeState, Metrics]]


def play_round(game: Game, state: NodeState) -> Round:
    """One round of one node; returns its next state and the round's metrics."""
    metrics: Metrics = {}
    round_, beacon = state.round, game.beacon(state.round)
    if round_ % game.evaluate_every == 0:
        metrics |= _prefixed("held_out/", (yield Evaluate()))

    problems = [game.problem(game.author, round_, index) for index in range(game.local_groups)]
    prompts = [game.prompt_tokens(problem) for problem in problems]
    sampled = yield Sample(prompts, _sample_keys(game, beacon))
    answer_of = game.prompt_format.answer
    answers = [(p, answer_of(s.text)) for p, group in zip(problems, sampled, strict=True) for s in group]
    rewards = _by_group((yield Score(answers)), [len(group) for group in sampled])
    yield Publish(_make_record(game, state, problems, sampled))
    own = [
        _scored(game.author, round_, index, False, prompts[index], group, rewards[index])
        for index, group in enumerate(sampled)
    ]
    metrics |= _sampling_metrics(sampled, rewards)

    arrived = yield Gather(round_, ANSWER)
    readable, unused = _readable_groups(game, arrived)
    peer_answers = [(r.problem, answer_of(s.text)) for r in readable for s in r.completions]
    peer_rewards = _by_group((yield Score(peer_answers)), [len(r.completions) for r in readable])
    external = [
        _scored(r.author, r.round, r.index, True, r.prompt, r.completions, reward)
        for r, reward in zip(readable, peer_rewards, strict=True)
    ]
    pool = state.pool.add(external).expire(round_ - game.max_staleness)  # a late record may be too old already
    drawn, pool = pool.draw(game.external_groups, beacon, game.author)
    local = [group for group in own if group.has_advantage][: game.local_groups]
    learned = yield Learn(local + drawn)

    metrics |= _prefixed("learn/", learned)
    metrics |= _exchange_metrics(round_, arrived, external, unused, local, drawn)
    if round_ + 1 == game.rounds:
        metrics |= _prefixed("final/", (yield Evaluate()))
    version = state.policy_version + int(learned.get("updates", 0))
    return NodeState(round_ + 1, version, pool), metrics


def next_round(state: NodeState, latest_rounds: dict[bytes, int], voters: int) -> NodeState:
    """The state at the round to play next: a node that most of its peers have left behind joins them.

    latest_rounds: in which a peer was heard last; of `voters` peers in all, some may have said nothing yet.
    """
    ahead, majority = sorted(latest_rounds.values(), reverse=True), voters // 2 + 1
    if len(ahead) >= majority and ahead[majority - 1] > state.round:
        return dataclasses.replace(state, round=ahead[majority - 1])
    return state


@dataclasses.dataclass(frozen=True)
class _Readable:
    """A peer's group whose problem this node has rebuilt and whose text it has checked."""

    index: int
    author: bytes
    round: int
    problem: Problem
    prompt: list[int]
    completions: list[Sampled]


def _readable_groups(game: Game, arrived: Sequence[SignedRecord]) -> tuple[list[_Readable], collections.Counter]:
    """The groups of peers' records that this node can score, and how many it cannot, by cause."""
    readable, unused = [], collections.Counter[str]()
    for signed in arrived:
        taken: set[int] = set()
        for group in signed.record.groups:
            try:
                if group.index in taken:
                    raise RecordError("foreign problem", f"index {group.index} comes twice")
                readable.append(_read_group(game, signed, group))
                taken.add(group.index)
            except RecordError as error:
                unused[error.cause] += 1
    return readable, unused


def _read_group(game: Game, signed: SignedRecord, group: Group) -> _Readable:
    record = signed.record
    task = game.mixture.tasks.get(group.task)
    if task is None or task.fingerprint != group.task_fingerprint:
        raise RecordError("unknown task", f"{group.task!r} {group.task_fingerprint!r}")
    if record.prompt_format != game.prompt_format.name or group.parents or record.stage != ANSWER:
        raise RecordError("unknown prompt", f"{record.prompt_format!r}, stage {record.stage!r}")
    if group.index >= game.local_groups:  # else one author could offer many times what the others can
        raise RecordError("foreign problem", f"index {group.index}, a node has {game.local_groups} problems a round")
    problem = game.problem(record.author, record.round, group.index)
    if (problem.task, problem.seed) != (group.task, group.problem_seed):
        raise RecordError("foreign problem", f"index {group.index} of round {record.round} is another problem")
    same_tokenizer = record.tokenizer_fingerprint == game.tokenizer_fingerprint
    completions = [_read_completion(game, c, same_tokenizer) for c in group.completions]
    if len(completions) != game.group_size:
        raise RecordError("misshapen group", f"{len(completions)} completions, {game.group_size} are played")
    prompt = game.prompt_tokens(problem)
    return _Readable(group.index, record.author, record.round, problem, prompt, completions)


def _read_completion(game: Game, completion: Completion, same_tokenizer: bool) -> Sampled:
    """With the same tokenizer the ids must say what the text says; with another the text is encoded anew."""
    if not same_tokenizer:
        try:
            tokens = game.tokenizer.encode(completion.text)
        except ValueError as error:
            raise RecordError("text mismatch", str(error)) from None
        if not 1 <= len(tokens) <= game.max_new_tokens:
            raise RecordError("misshapen group", f"a text of {len(tokens)} tokens here")
        if game.tokenizer.decode(tokens) != completion.text:  # a special token's name, an unknown character
            raise RecordError("text mismatch", f"{completion.text[:40]!r} cannot be said in this node's tokens")
        return Sampled(tokens, [], completion.text, False)
    tokens_T = completion.tokens_T
    if len(tokens_T) > game.max_new_tokens or tokens_T.max() >= game.tokenizer.vocab_size:
        raise RecordError("misshapen group", f"{len(tokens_T)} tokens, largest id {tokens_T.max()}")
    if np.isin(tokens_T[:-1], game.eos_token_ids).any():
        raise RecordError("text mismatch", f"{completion.text[:40]!r} goes on behind its end")
    if game.tokenizer.decode(tokens_T.tolist()) != completion.text:
        raise RecordError("text mismatch", f"{completion.text[:40]!r} is not what the ids say")
    return Sampled(tokens_T.tolist(), completion.logprobs_T.tolist(), completion.text, False)


def _make_record(game: Game, state: NodeState, problems: list[Problem], sampled: list[list[Sampled]]) -> Record:
    groups = [
        Group(
            task=problem.task,
            task_fingerprint=game.mixture.tasks[problem.task].fingerprint,
            index=index,
            problem_seed=problem.seed,
            parents=[],
            completions=[
                Completion(
                    tokens=np.array(s.tokens, "<i4").tobytes(),
                    logprobs=np.minimum(np.array(s.logprobs, "<f4"), 0).tobytes(),
                    text=s.text,
                )
                for s in group
            ],
        )
        for index, (problem, group) in enumerate(zip(problems, sampled, strict=True))
    ]
    return Record(
        version=schema.VERSION,
        swarm=game.swarm,
        author=game.author,
        round=state.round,
        stage=ANSWER,
        prompt_format=game.prompt_format.name,
        policy_version=state.policy_version,
        weights_fingerprint=game.weights_fingerprint,
        tokenizer_fingerprint=game.tokenizer_fingerprint,
        temperature=game.temperature,
        groups=groups,
    )


def _sample_keys(game: Game, beacon: bytes) -> np.ndarray:
    return np.array(
        [
            [randomness.key_data("sample", beacon, game.author, ANSWER, p, g) for g in range(game.group_size)]
            for p in range(game.local_groups)
        ]
    ).reshape(game.local_groups, game.group_size, 2)


def _scored(
    author: bytes,
    round_: int,
    index: int,
    external: bool,
    prompt: list[int],
    completions: list[Sampled],
    rewards: list[float],
) -> ScoredGroup:
    tokens = [s.tokens for s in completions]
    logprobs = [s.logprobs for s in completions] if all(s.logprobs for s in completions) else None
    return ScoredGroup(author, round_, index, external, prompt, tokens, logprobs, rewards)


def _by_group(rewards: list[float], sizes: list[int]) -> list[list[float]]:
    found = iter(rewards)
    return [[next(found) for _ in range(size)] for size in sizes]


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {prefix + name: value for name, value in metrics.items()}


def _sampling_metrics(sampled: list[list[Sampled]], rewards: list[list[float]]) -> Metrics:
    completions = [s for group in sampled for s in group]
    return {
        "reward/mean": float(np.mean(rewards)) if rewards else 0.0,
        "reward/pass_at_group": float(np.mean([max(group) >= 1.0 for group in rewards])) if rewards else 0.0,
        "reward/zero_advantage_fraction": float(np.mean([max(g) == min(g) for g in rewards])) if rewards else 0.0,
        "sample/length_mean": float(np.mean([len(s.tokens) for s in completions])) if completions else 0.0,
        "sample/truncated_fraction": float(np.mean([not s.ended for s in completions])) if completions else 0.0,
        "records/published": 1.0,
    }


def _exchange_metrics(
    round_: int,
    arrived: Sequence[SignedRecord],
    external: list[ScoredGroup],
    unused: collections.Counter,
    local: list[ScoredGroup],
    drawn: list[ScoredGroup],
) -> Metrics:
    metrics = {
        "records/received": float(len(arrived)),
        "groups/received": float(len(external)),
        "groups/received_with_advantage": float(sum(group.has_advantage for group in external)),
        "groups/local": float(len(local)),
        "groups/external": float(len(drawn)),
        "groups/staleness_mean": float(np.mean([round_ - g.round for g in drawn])) if drawn else 0.0,
    }
    metrics |= {f"groups/unused/{cause}": float(count) for cause, count in sorted(unused.items())}
    speakers = collections.Counter(signed.record.author.hex() for signed in arrived)
    teachers = collections.Counter(group.author.hex() for group in drawn)
    named = sorted(speakers.items(), key=lambda item: (-item[1], item[0]))[:MAX_NAMED]  # keys are free to make
    metrics |= {f"received_from/{author}": float(count) for author, count in sorted(named)}
    return metrics | {f"learned_from/{author}": float(count) for author, count in sorted(teachers.items())}
