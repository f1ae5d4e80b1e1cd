"""What a round asks of its driver, and how the answers are written down."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from rlswarm_jax.game.chain import Moment, Work
from rlswarm_jax.game.stages import Sheets
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import open_envelope
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.records.schema import Record
from rlswarm_jax.records.trust import Audited
from rlswarm_jax.tasks import Problem
from rlswarm_jax.tasks.verifier import Scores

Metrics = dict[str, float]


class Sampled(msgspec.Struct, array_like=True, frozen=True):
    """One completion: ids with the end of sequence, float32 log-probs, text, and whether it ended by itself."""

    tokens: list[int]
    logprobs: list[float]
    text: str
    ended: bool


@dataclasses.dataclass(frozen=True)
class Pin:
    """-> the name of the weights that this round samples with, 32 bytes; from here on the driver can show them."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """-> list per prompt of G `Sampled`. prompts: token ids. keys_PGM: `[P, G, 2]` uint32 key data, consumed."""

    prompts: list[list[int]]
    keys_PGM: np.ndarray


@dataclasses.dataclass(frozen=True)
class Verify:
    """-> None. These (problem, answer text) will have to be scored: the driver may begin while the device computes.

    payers: who said each, as for `Score`.
    """

    items: list[tuple[Problem, str]]
    payers: list[frozenset[bytes]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Score:
    """-> `Scores`, in [0, 1], one for each (problem, answer text).

    payers: for each the authors whose it is, among whom the time that scoring takes is shared out; none: this node's.
    """

    items: list[tuple[Problem, str]]
    payers: list[frozenset[bytes]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Publish:
    """-> None. The driver signs, journals and sends."""

    record: Record


@dataclasses.dataclass(frozen=True)
class Gather:
    """-> list of `SignedRecord` not handed over before, when all live peers have spoken or at the deadline.

    Of an author who signed two for one stage of a round both are among them, once: that is the proof of it.
    beacon: the round's; with `Game.reads` it draws whose records these are, and who is waited for. without: authors
    that are not waited for.
    """

    round: int
    stage: str
    beacon: bytes = b""
    without: frozenset[bytes] = frozenset()


@dataclasses.dataclass(frozen=True)
class Learn:
    """-> metrics. groups: what to take the gradient on; empty is allowed and changes nothing. round: of the game.

    idle: the node's own groups that teach nothing, for whoever tells what was played.
    """

    groups: list[ScoredGroup]
    round: int = 0
    idle: list[ScoredGroup] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """-> {"accuracy": fraction right by greedy decoding, "problems": n, "accuracy/<task>": ...}."""


@dataclasses.dataclass(frozen=True)
class Hear:
    """-> list of `Moment`: the latest rounds of the coordinator that this node knows of, in order; nobody waits.

    beyond: but for a round after this one the driver waits a while.
    """

    beyond: int | None = None


@dataclasses.dataclass(frozen=True)
class Commit:
    """-> the train state's hash, 32 bytes. The driver puts the commitment, its claims and votes down for the chain.

    before: the train state's hash at the last commitment.
    """

    moment: Moment
    work: Work
    before: bytes


class Claimed(msgspec.Struct, array_like=True, frozen=True):
    """Completions of one prompt, and the keys that they are said to be drawn with: uint32 words of each."""

    prompt: list[int]
    completions: list[list[int]]
    keys: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Replay:
    """-> metrics: what a replay of own completions says, with the weights that learn: they should be those that sample.

    Consumes nothing: the keys are those of the completions. claimed: one each. logprobs: of its tokens, as the sampler
    gave them.
    """

    claimed: list[Claimed]
    logprobs: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Audit:
    """-> list of `Audited`: what was found since the last time; nobody waits for these cases' verdicts.

    sheets: as this node has them, from which prompts are made. beacons: of the chain, by what records call them.
    """

    cases: list[Case]
    sheets: Sheets
    beacons: Mapping[bytes, bytes]


Effect = Pin | Replay | Audit | Sample | Verify | Score | Publish | Gather | Learn | Evaluate | Hear | Commit

_RESULTS: dict[type, Any] = {
    Pin: bytes,
    Replay: Metrics,
    Audit: list[Audited],
    Sample: list[list[Sampled]],
    Verify: None,
    Score: Scores,
    Publish: bytes,  # the signed bytes that were sent
    Gather: list[bytes],  # the records' signed bytes
    Learn: Metrics,
    Evaluate: Metrics,
    Hear: list[Moment],
    Commit: bytes,
}


def encode_result(effect: Effect, result: Any) -> bytes:
    """An effect's result as the journal keeps it."""
    if isinstance(effect, Gather):
        result = [signed.raw for signed in result]
    return msgspec.msgpack.encode(result)


def decode_result(effect: Effect, raw: bytes) -> Any:
    """What the generator is given for a journaled effect, whose kind the caller has checked."""
    result = msgspec.msgpack.decode(raw, type=_RESULTS[type(effect)])
    if isinstance(effect, Gather):
        return [open_envelope(signed) for signed in result]
    return None if isinstance(effect, Publish) else result
