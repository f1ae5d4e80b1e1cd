"""A node's round, read again from its journal: what was asked, said and earned, its own and what it heard."""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from rlswarm_jax.game import turns
from rlswarm_jax.game.chain import MOMENTS, Account, Moment, by_tag
from rlswarm_jax.game.effects import Gather, Hear, Learn, Publish, Score, decode_result
from rlswarm_jax.game.player import BEGIN
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import Sheet
from rlswarm_jax.game.turns import Scored, Turn
from rlswarm_jax.journal import Entry, Journal, JournalError
from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.records.trust import Trust
from rlswarm_jax.tasks.verifier import Item


@dataclasses.dataclass
class Played:
    """A round. own, heard: signed records, in order. turns: own, then those of others that could be used.

    unread: of own records, groups whose problem or prompt cannot be made here, by hash and place, with the cause.
    unused: of others' groups, by cause. sheets: what all records of this round and those before say.
    """

    own: list[SignedRecord] = dataclasses.field(default_factory=list)
    heard: list[SignedRecord] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    external: list[Turn] = dataclasses.field(default_factory=list)
    unread: dict[tuple[bytes, int], str] = dataclasses.field(default_factory=dict)
    unused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    sheets: dict[bytes, Sheet] = dataclasses.field(default_factory=dict)


def records(entry: Entry) -> list[bytes]:
    """The signed bytes of a journaled Publish or Gather. Raises JournalError for a row that holds none."""
    try:
        if entry.kind == Publish.__name__:
            return [msgspec.msgpack.decode(entry.result, type=bytes)]
        return msgspec.msgpack.decode(entry.result, type=list[bytes]) if entry.kind == Gather.__name__ else []
    except msgspec.MsgspecError:
        raise JournalError(f"the journal is damaged: a row of round {entry.round} holds no records.") from None


def published(journal: Journal, node: int) -> dict[bytes, list[bytes]]:
    """Content hashes of what a node's peers said, as far as its journal has it, in the order of publication, by author.

    Of two records for one slot the one that was heard first: it is the one that was checked.
    """
    heard = (raw for entry in journal.read(node, 0) if entry.kind == Gather.__name__ for raw in records(entry))
    first: dict[tuple[bytes, int, str], SignedRecord] = {}
    for signed in map(open_envelope, heard):
        first.setdefault((signed.record.author, signed.record.round, signed.record.stage), signed)
    said = collections.defaultdict[bytes, list[bytes]](list)
    for signed in sorted(first.values(), key=turns.in_time):
        said[signed.record.author].append(signed.hash)
    return dict(said)


@dataclasses.dataclass
class Kept:
    """Records of earlier rounds, by content hash, and what it takes to make their prompts again."""

    records: dict[bytes, SignedRecord] = dataclasses.field(default_factory=dict)
    sheets: dict[bytes, Sheet] = dataclasses.field(default_factory=dict)
    beacons: dict[bytes, bytes] = dataclasses.field(default_factory=dict)


def kept(game: Game, journal: Journal, node: int, wanted: Collection[bytes]) -> Kept:
    """Of the rounds of some records, as far as a node's journal has them."""
    if not wanted:
        return Kept()
    entries = journal.read(node, 0)
    said = {signed.hash: signed for entry in entries for signed in map(open_envelope, records(entry))}
    rounds = {said[record].record.round for record in wanted if record in said}
    found = Kept(beacons={b"": b"", **by_tag(_moments(entries))})
    for signed in sorted((one for one in said.values() if one.record.round in rounds), key=turns.in_time):
        record = signed.record
        read, _ = turns.read_record(game, found.sheets, signed, found.beacons)
        at = record.author, record.round, record.stage
        found.sheets[signed.hash] = turns.to_sheet(game, *at, read.values(), found.beacons.get(record.beacon, b""))
        found.records[signed.hash] = signed
    return found


def needed(game: Game, played: Iterable[Turn]) -> set[Item]:
    """Answers, with their problems, whose scores say what some turns earned."""
    return {item for turn in played for item in turns.to_score(game, turn)}


def read_round(game: Game, round_: int, entries: Sequence[Entry]) -> tuple[Played, Scored | None]:
    """A round from its rows, and those of the rounds before that it may have answered to, in order.

    Second, the scores as the journal has them; None where its rows are gone, or are not of this game. Raises
    JournalError for a journal that is damaged.
    """
    moments = _moments(entries)
    beacons = {b"": b"", **by_tag(moments)}
    sheets: dict[bytes, Sheet] = {}
    for earlier in sorted({entry.round for entry in entries if entry.round < round_}):
        sheets = _read(game, [entry for entry in entries if entry.round == earlier], sheets, beacons).sheets
    rows = [entry for entry in entries if entry.round == round_]
    played = _read(game, rows, dict(sheets), beacons)
    version = played.own[0].record.policy_version if played.own else 0
    account = Account(_known(moments, played.own[0].record.beacon) if played.own else [])
    trust = Trust(unsaid=played.own[0].record.verdicts if played.own else [])
    state = NodeState(round_, version, sheets=sheets, account=account, trust=trust)
    return played, _scores(game, state, rows, [signed.record for signed in played.own])


def _read(game: Game, rows: Sequence[Entry], sheets: dict[bytes, Sheet], beacons: Mapping[bytes, bytes]) -> Played:
    """As `play_round` hears it: what answers to a record that is not there yet is tried again in the next stage."""
    played = Played(sheets=sheets)
    waiting: list[SignedRecord] = []
    for entry in rows:
        try:
            signed = [open_envelope(raw) for raw in records(entry)]
        except RecordError as error:
            raise JournalError(
                f"the journal is damaged: a row of round {entry.round} is no record ({error})."
            ) from None
        if entry.kind == Publish.__name__:
            (own,) = signed
            found, flaws = turns.read_record(game, sheets, own, beacons)
            played.own.append(own)
            played.turns += [dataclasses.replace(turn, external=False) for turn in found.values()]
            played.unread |= {(own.hash, place): cause for place, cause in flaws.items()}
            chain = beacons.get(own.record.beacon, b"")
            sheets[own.hash] = turns.to_sheet(game, game.author, entry.round, own.record.stage, found.values(), chain)
        elif entry.kind == Gather.__name__:
            last = bool(played.own) and played.own[-1].record.stage == game.stages[-1]
            theirs, waiting, unused = turns.read_records(game, sheets, [*waiting, *signed], last=last, beacons=beacons)
            played.heard += signed
            played.external += theirs
            played.unused += unused
    return played


def _scores(game: Game, state: NodeState, rows: Sequence[Entry], own: Sequence) -> Scored | None:
    """What the verifier said then: the round's generator is fed its rows, and says which answers the scores are of."""
    round_ = play_round(game, state)
    effect = next(round_)
    said, found = iter(own), dict[Item, float]()
    for entry in rows:
        if entry.kind == BEGIN:
            continue
        if entry.kind != type(effect).__name__:
            return None
        if isinstance(effect, Publish) and effect.record != next(said):
            return None
        try:
            result = decode_result(effect, entry.result)
        except msgspec.MsgspecError:
            raise JournalError(f"the journal is damaged: step {entry.step} of round {entry.round}.") from None
        if isinstance(effect, Score):
            if len(effect.items) != len(result.scores):
                return None
            found |= zip(effect.items, result.scores, strict=True)
        effect = round_.send(result)
        if isinstance(effect, Learn):
            return found
    return None


def _moments(entries: Sequence[Entry]) -> list[Moment]:
    """What was heard of the chain in these rounds, in order; of two beacons for a round both."""
    heard: dict[Moment, None] = {}
    for entry in entries:
        if entry.kind == Hear.__name__:
            heard |= dict.fromkeys(msgspec.msgpack.decode(entry.result, type=list[Moment]))
    return sorted(heard, key=lambda moment: moment.round)


def _known(moments: Sequence[Moment], tag: bytes) -> list[Moment]:
    """Those that a node has heard of which has a beacon in force, by what records call it."""
    at = [place for place, moment in enumerate(moments) if moment.beacon.startswith(tag)] if tag else []
    return list(moments[: at[-1] + 1][-MOMENTS:]) if at else []
