"""What the nodes of a swarm have agreed on, and what follows from it for a round."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rlswarm_jax import randomness
from rlswarm_jax.game.prompts import PromptFormat
from rlswarm_jax.game.readings import Readings
from rlswarm_jax.game.rewards import PAY_VERSION, Rewards
from rlswarm_jax.game.stages import Reading, Seat
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.records import schema
from rlswarm_jax.records.agreement import (
    CHAIN,
    CHAIN_ID,
    END_TOKENS,
    NO_CHAIN,
    PROMPTS,
    RECORDS,
    TOKENIZER,
    agreement_of,
)
from rlswarm_jax.records.schema import ANSWER, STAGES
from rlswarm_jax.tasks import Mixture, Problem

if TYPE_CHECKING:
    from rlswarm_jax.game.round import NodeState, Round
    from rlswarm_jax.game.turns import Turn
    from rlswarm_jax.records.pool import Pool


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Of a node that means ill.

    says: from its game, the turns of a stage as it played them, and what it holds of peers, the turns that it publishes
    instead. plays: from its game and state, and the honest round, the one that it plays.
    """

    says: "Callable[[Game, Sequence[Turn], Pool], list[Turn]] | None" = None
    plays: "Callable[[Game, NodeState, Round], Round] | None" = None


RECORDS_VERSION = f"{schema.VERSION}.{PAY_VERSION}"  # of what nodes say, and of what it is worth
SHARED = b"shared"  # the author of problems that all nodes have
MAX_TASKS = 24  # that the rules name; of more, they say what all of them hash to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What nodes must have in common to find each other's records right, and worth the same: all of it is hashed.

    local_groups: problems that a node answers in a round, the first `shared` of which all nodes have: those are
    criticised and revised. redraws: how often another is drawn in the place of one of the others, where its answers all
    earn the same. shown, critics: most answers of others, and critiques, that a node is shown of a problem.
    show_votes: and how the critics voted. stand_by: whether a revision may be to stand by the first answer. stages:
    those that are played, in order. contract, chain_id: address of the coordinator, and its chain (empty and 0:
    simulated; None: problems are drawn from `seed`, and there is no chain). `chain` in a method's parameters: the
    coordinator's beacon that is in force, 32 bytes; empty without one.
    """

    swarm: str
    seed: int
    mixture: Mixture
    prompt_format: PromptFormat
    local_groups: int
    group_size: int
    stages: tuple[str, ...] = STAGES[:1]
    shared: int = 0
    redraws: int = 0
    shown: int = 3
    critics: int = 3
    show_votes: bool = True
    stand_by: bool = True
    rewards: Rewards = dataclasses.field(default_factory=Rewards)
    contract: str | None = None
    chain_id: int = 0

    @functools.cached_property
    def dialect(self) -> str:
        """What a record calls its prompts: nodes whose games show different things do not understand each other."""
        rules = f"{self.local_groups} {self.shared} {self.shown} {self.critics} {self.show_votes}"
        return f"{self.prompt_format.name}/{hashlib.sha256(rules.encode()).hexdigest()[:8]}"

    @property
    def terms(self) -> dict[str, str]:
        """The rules in readable parts, each called as the config's field that decides it, as far as one does."""
        tasks = self.mixture.parts
        if len(tasks) > MAX_TASKS:
            tasks = {"": f"{len(tasks)} tasks, {self.mixture.fingerprint}"}
        chance = {CHAIN: NO_CHAIN, "seed": self.seed}  # what problems are drawn from
        if self.contract is not None:
            chance = {CHAIN: self.contract.lower(), CHAIN_ID: self.chain_id}
        return {
            RECORDS: RECORDS_VERSION,
            "swarm.name": self.swarm,
            **{f"tasks.{name}".rstrip("."): part for name, part in tasks.items()},
            PROMPTS: self.prompt_format.name,
            "game.stages": str(len(self.stages)),
            "swarm.local_groups": str(self.local_groups),
            "game.shared": str(self.shared),
            "game.redraws": str(self.redraws),
            "game.shown": str(self.shown),
            "game.critics": str(self.critics),
            "game.show_votes": str(self.show_votes),
            "game.stand_by": str(self.stand_by),
            "sampling.group_size": str(self.group_size),
            **{f"game.{name}_reward": str(float(paid)) for name, paid in dataclasses.asdict(self.rewards).items()},
            **{name: str(value) for name, value in chance.items()},
        }

    def beacon(self, round_: int, chain: bytes = b"") -> bytes:
        """Common randomness of a round: from the chain's beacon, or without a chain from the swarm's seed."""
        return randomness.digest("problem", "beacon", chain or self.seed, round_)

    def problem(self, author: bytes, round_: int, index: int, chain: bytes = b"") -> Problem:
        """The problem that an author has at an index of a round: nobody chooses their problems."""
        beacon, whose = self.beacon(round_, chain), SHARED if index < self.shared else author
        task = self.mixture.pick(randomness.seed("problem", beacon, whose, "mixture", index))
        return self.mixture.tasks[task].problem(randomness.seed("problem", beacon, whose, task, index))

    def indices(self, stage: str) -> range:
        """The problems that a stage is about."""
        return range(self.local_groups if stage == ANSWER else self.shared)

    def place(self, stage: str, index: int) -> int | None:
        """Which problem of a stage an index is of, or one drawn in its place; None if it is of none.

        So an author has one group at each place, be it of the first problem there or of the last that may be drawn.
        """
        drawn, place = divmod(index, self.local_groups)
        if index in self.indices(stage):
            return index
        return place if stage == ANSWER and drawn <= self.redraws and place >= self.shared else None

    def seat(self, reader: bytes, round_: int, stage: str, index: int, chain: bytes = b"") -> Seat:
        return Seat(self.beacon(round_, chain), reader, round_, stage, index, self.shown, self.critics, chain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game(Rules):
    """One node's game: the rules, and what the node has of its own, in which it may differ from others.

    external_groups: of peers, that it learns from each round, and with `fill` one more for each of its own that teaches
    nothing; groups that teach nothing are learned from if `flat`. min_staleness, max_staleness: rounds that a peer's
    group is old when it is. max_length_ratio: of peers' completions that teach something, their length to the mean of
    the node's own of that stage, at most (0: any). choose: which of them are taken first (`records.teachers.WORTH`).
    weights: of the stages' samples in the loss. max_prompt_tokens: that this node's model reads; where others have
    written more, it leaves the problem out. reads: authors whose records it reads in a round, at most (0: all).
    auditors: how many check each author's records. rechecks: completions of its own that a node replays in a round.
    chain_every: rounds after which the chain is heard, and committed to (0: there is none). state_hash: of the train
    state that it begins with. rotations: of the keys that this node had before. readings: of records, kept for all
    nodes of this process that play by the same rules; None where there is but one. strategy: of a node that means ill.
    """

    author: bytes
    tokenizer: Tokenizer
    tokenizer_fingerprint: str
    eos_token_ids: tuple[int, ...]
    rounds: int
    external_groups: int
    temperature: float
    max_new_tokens: int
    max_staleness: int
    evaluate_every: int
    min_staleness: int = 0
    max_length_ratio: float = 0.0
    fill: bool = False
    flat: bool = False
    choose: str = "turns"
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    max_prompt_tokens: int = 2**31
    reads: int = 0
    rotations: tuple[schema.Rotation, ...] = ()
    auditors: int = 0
    rechecks: int = 0
    chain_every: int = 0
    state_hash: bytes = b""
    readings: Readings | None = dataclasses.field(default=None, compare=False, repr=False)
    strategy: Strategy | None = None

    @property
    def terms(self) -> dict[str, str]:
        """And what binds only nodes that have the same tokenizer: what ends a completion is one of its ids."""
        ends = " ".join(map(str, sorted(self.eos_token_ids)))
        return super().terms | {TOKENIZER: self.tokenizer_fingerprint, END_TOKENS: ends}

    @functools.cached_property
    def eyes(self) -> tuple:
        """What, of a node's own, decides how it reads records."""
        return self.seed, self.tokenizer_fingerprint, self.eos_token_ids, self.max_new_tokens, self.max_prompt_tokens

    @property
    def agreement(self) -> bytes:
        """32 bytes that stand for the terms: see `agreement_of`."""
        return agreement_of(self.terms)

    def agrees(self, agreement: bytes, same_tokenizer: bool) -> bool:
        """Whether somebody with that agreement plays this game. same_tokenizer: as this one, by their records."""
        ours, half = self.agreement, len(self.agreement) // 2
        return agreement == ours if same_tokenizer else agreement[:half] == ours[:half]

    def prompt(self, author: bytes, stage: str, problem: Problem, reading: Reading | None) -> list[int]:
        """Token ids of what an author is asked in a stage. Raises ValueError where they cannot be right."""
        personas = self.prompt_format.personas
        persona = personas[randomness.seed("pool", "persona", author) % len(personas)] if personas else ""
        if reading is None:
            return self.prompt_format.encode(problem, self.tokenizer, persona=persona)
        view = reading.view(lambda text: self.mixture.canonical(problem, text), self.show_votes)
        return self.prompt_format.encode(problem, self.tokenizer, stage, view, persona)

    def weight(self, stage: str) -> float:
        return self.weights[STAGES.index(stage)]
