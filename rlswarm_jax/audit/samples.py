"""Replays what nodes have published, offline: with the weights that records name, as far as these are at hand."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping

from rlswarm_jax import randomness
from rlswarm_jax.audit.patches import PatchError
from rlswarm_jax.audit.replays import FOUND, Run, judged
from rlswarm_jax.audit.statistics import Judgement
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Claimed
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import Sheet
from rlswarm_jax.game.turns import in_time, read_record, to_sheet
from rlswarm_jax.qwen import Tensors
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import FINDINGS, NOT_PRODUCED

Weights = Mapping[bytes, Callable[[], Tensors]]  # what loads them, by name
NO_WEIGHTS, UNREADABLE = "weights are not here", "cannot be made again"


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One group, and what its replay says."""

    author: bytes
    record: bytes
    round: int
    stage: str
    index: int
    finding: str
    judgement: Judgement


@dataclasses.dataclass
class Samples:
    """What was found. left: groups of each author that were not replayed, by why."""

    replayed: list[Replayed]
    left: dict[bytes, collections.Counter[str]]

    @property
    def wrong(self) -> list[Replayed]:
        return [one for one in self.replayed if one.finding == NOT_PRODUCED]

    def of(self, author: bytes) -> dict[str, int]:
        """How many of an author's groups are of each finding."""
        counts = collections.Counter(one.finding for one in self.replayed if one.author == author)
        return {finding: counts[finding] for finding in FINDINGS}


def replay(
    game: Game,
    records: Iterable[SignedRecord],
    beacons: Mapping[bytes, bytes],
    weights: Weights,
    run: Run,
    most: int,
) -> Samples:
    """Replays groups of each author, for each of its weights at hand at most so many; which is nobody's to choose.

    game: an observer's. records: of all authors, as they answer to each other. beacons: of the chain, by what records
    call them.
    """
    at_hand: dict[tuple[bytes, bytes], list[tuple[SignedRecord, int, Claimed]]] = collections.defaultdict(list)
    left: dict[bytes, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for signed, index, claimed in _claims(game, records, beacons):
        record = signed.record
        if claimed is None or record.weights not in weights:
            left[record.author][UNREADABLE if claimed is None else NO_WEIGHTS] += 1
        else:
            at_hand[record.weights, record.author].append((signed, index, claimed))
    found = []
    for name, of_name in itertools.groupby(sorted(at_hand, key=lambda key: key[0]), key=lambda key: key[0]):
        try:
            tensors = weights[name]()
        except (OSError, PatchError):  # damaged, or gone since: their node may be running
            for _, author in of_name:
                left[author][NO_WEIGHTS] += len(at_hand[name, author])
            continue
        for key in of_name:
            ranked = sorted(at_hand[key], key=lambda one: randomness.digest("pool", "replayed", one[0].hash, one[1]))
            for signed, index, claimed in ranked[:most]:
                judgement, record = judged(run, tensors, [claimed]), signed.record
                at = record.author, signed.hash, record.round, record.stage, index
                found.append(Replayed(*at, FOUND[judgement.verdict], judgement))
    return Samples(sorted(found, key=lambda one: (one.round, one.record, one.index)), dict(left))


def _claims(
    game: Game, records: Iterable[SignedRecord], beacons: Mapping[bytes, bytes]
) -> Iterable[tuple[SignedRecord, int, Claimed | None]]:
    """Every group with its index, and what is to be replayed of it, if it can be told."""
    beacons = {b"": b"", **beacons}
    for _, of_round in itertools.groupby(sorted(records, key=in_time), key=lambda signed: signed.record.round):
        sheets: dict[bytes, Sheet] = {}
        for signed in of_round:
            record = signed.record
            read, _ = read_record(game, sheets, signed, beacons)
            chain = beacons.get(record.beacon, b"")
            sheets[signed.hash] = to_sheet(game, record.author, record.round, record.stage, read.values(), chain)
            alike = record.tokenizer_fingerprint == game.tokenizer_fingerprint
            alike &= record.temperature == game.temperature
            for group in record.groups:
                turn = read.get(group.index) if alike else None
                yield signed, group.index, turns.claimed(game, turn) if turn else None
