"""Nodes that play by hand under a chain: what they said, committed to and claimed, to be tampered with."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from rlswarm_jax.audit import commit
from rlswarm_jax.audit.claims import Audit, Standing, audit
from rlswarm_jax.chain import ledger
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.chain.virtual import VirtualCoordinator
from rlswarm_jax.game.chain import Moment
from rlswarm_jax.game.effects import Commit, Gather, Hear, Publish, Sample
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.game.rules import Game
from rlswarm_jax.identity import Identity, peer_id
from rlswarm_jax.records import schema
from rlswarm_jax.records.envelope import SignedRecord, open_envelope, seal
from rlswarm_jax.records.schema import STAGES, Record
from tests.game.hand_driver import ALICE, BOB, ME, Speaker, answer, say, three_stages

HEADS = dict.fromkeys((ME, ALICE, BOB), Speaker())
Tamper = Callable[[Record, Mapping[Identity, list[SignedRecord]]], Record]  # of what all have said so far
Heard = Callable[[int, str, Identity, Identity], bool]  # round, stage, speaker, listener


@dataclasses.dataclass(frozen=True)
class Put:
    """What a node puts on the chain in a round of it. records: content hashes. claims: by stage's number.

    count: of records, if another than there are. states: hashes before and after.
    """

    round: int
    who: Identity
    records: list[bytes]
    claims: dict[int, int]
    votes: list[Identity]
    config: bytes
    states: tuple[bytes, bytes]
    count: int | None = None

    @property
    def hash(self) -> str:
        return f"0x{self.round}{self.who.author.hex()[:8]}"


@dataclasses.dataclass(frozen=True)
class World:
    """game: an observer's."""

    game: Game
    said: dict[Identity, list[SignedRecord]]
    puts: list[Put]
    beacons: list[bytes]

    def put(self, who: Identity, round_: int) -> Put:
        return next(put for put in self.puts if (put.who, put.round) == (who, round_))

    def replace(self, put: Put, **fields: Any) -> "World":
        """With something else on the chain."""
        return dataclasses.replace(
            self, puts=[dataclasses.replace(one, **fields) if one is put else one for one in self.puts]
        )

    def rounds(self) -> list[ledger.Round]:
        return [self._round(number, beacon) for number, beacon in enumerate(self.beacons)]

    def _round(self, number: int, beacon: bytes) -> ledger.Round:
        puts = [(put, account_of(put.who.author)) for put in self.puts if put.round == number]
        commitments, rewards, votes = [], [], []
        for put, account in puts:
            root, *ends = ("0x" + one.hex() for one in (commit.root(put.records), put.records[0], put.records[-1]))
            count = len(put.records) if put.count is None else put.count
            hashes = ("0x" + one.hex() for one in (*put.states, put.config))
            commitments.append(ledger.Commitment(account, root, *ends, count, *hashes, put.hash))
            rewards += [ledger.Reward(account, stage, put.claims.get(stage, 0), put.hash) for stage in range(3)]
            if put.votes:
                winners = [peer_id(winner.author) for winner in put.votes]
                votes.append(ledger.Vote(account, winners, put.hash))
        return ledger.Round(number, "0x" + beacon.hex(), "", commitments, rewards, votes)

    def check(self, without: Iterable[SignedRecord] = (), judge=None, **fields: Any) -> Audit:
        """fields: of the observer's game."""
        gone = {signed.hash for signed in without}
        here = [signed for said in self.said.values() for signed in said if signed.hash not in gone]
        game = dataclasses.replace(self.game, **fields)
        return audit(game, self.rounds(), here, judge or make_judge(game))


def make_judge(game: Game):
    return lambda items: [game.mixture.score(*item) for item in items]


def of(found: Audit, put: Put) -> Standing:
    account = account_of(put.who.author)
    return next(one for one in found.standings if (one.round, one.account) == (put.round, account))


def play(
    speakers: Mapping[Identity, Speaker] = HEADS,
    rounds: int = 8,
    heard: Heard = lambda round_, stage, speaker, listener: True,
    silent: int = 0,
    tamper: Mapping[Identity, Tamper] | None = None,
    own: Mapping[Identity, Mapping[str, Any]] | None = None,
    leaves: Collection[tuple[Identity, int, str]] = (),
    **fields: Any,
) -> World:
    """All of them play all rounds, two of them to one of the chain's. silent: first rounds in which no chain is heard.

    tamper: who says other things than they should, to everybody, and commits to those. own: fields of single games.
    leaves: who leaves which round when they listen in a stage, not the last, or before it begins if that is none.
    """
    fields = {"chain_every": 2} | fields
    games = {who: three_stages(who, **{"rounds": rounds} | fields | dict((own or {}).get(who, {}))) for who in speakers}
    states = dict.fromkeys(speakers, NodeState(round=0))
    chain = VirtualCoordinator(
        17, quorum=len(speakers)
    )  # by its beacons HEADS earn something in every stage of a round
    beacons = [chain.moments()[-1][1]]
    said: dict[Identity, list[SignedRecord]] = {who: [] for who in speakers}
    puts: list[Put] = []
    renamed: dict[bytes, bytes] = {}  # records that were tampered with
    for round_ in range(rounds):
        mail = collections.defaultdict[tuple[Identity, str], list[SignedRecord]](list)
        playing = {who: _Playing(games[who], states[who], speakers[who], who) for who in speakers}
        for who, one in playing.items():
            if (who, round_, "") in leaves:
                one.leave()
        while any(not one.ended for one in playing.values()):
            for who, one in playing.items():
                while not one.ended:
                    match one.effect:
                        case Hear():
                            one.go_on([] if round_ < silent else [Moment(*moment) for moment in chain.moments()])
                        case Publish(record):
                            signed = open_envelope(seal(_with_parents(record, renamed), who))
                            if tamper and who in tamper:
                                signed = open_envelope(seal(tamper[who](signed.record, said), who))
                            renamed[schema.content_hash(schema.encode(record))] = signed.hash
                            said[who].append(signed)
                            for other in speakers.keys() - {who}:
                                if heard(round_, record.stage, who, other):
                                    mail[other, record.stage].append(signed)
                            one.go_on(None)
                        case Gather() if not one.listened:
                            one.listened = True
                            if (who, round_, one.effect.stage) in leaves:
                                one.leave()
                            break  # until the others have spoken
                        case Gather(stage=stage):
                            one.listened = False
                            one.go_on(mail[who, stage])
                        case Commit():
                            puts.append(_put(who, one.effect, games, renamed))
                            chain.commit(who.author, puts[-1].round, commit.root(puts[-1].records))
                            one.go_on(puts[-1].states[1])
                            if (beacon := chain.moments()[-1][1]) != beacons[-1]:
                                beacons.append(beacon)
                        case effect:
                            one.go_on(one.answer(effect))
        states = {who: one.state for who, one in playing.items()}
    return World(three_stages(**fields), said, puts, beacons)


def _with_parents(record: Record, renamed: Mapping[bytes, bytes]) -> Record:
    groups = [replace(group, parents=[renamed.get(h, h) for h in group.parents]) for group in record.groups]
    return replace(record, groups=groups)


def _put(who: Identity, effect: Commit, games: Mapping[Identity, Game], renamed: Mapping[bytes, bytes]) -> Put:
    work, by_author = effect.work, {other.author: other for other in games}
    claims = {STAGES.index(stage): amount for stage, amount in work.earned.items() if amount}
    records, votes = [renamed[h] for h in work.records], [by_author[author] for author in work.best]
    states = effect.before, hashlib.sha256(who.author + records[-1]).digest()
    return Put(effect.moment.round, who, records, claims, votes, games[who].agreement, states)


class _Playing:
    """One node's round."""

    def __init__(self, game: Game, state: NodeState, speaker: Speaker, who: Identity):
        self._game, self._before, self._speaker, self._who = game, state, speaker, who
        self._account, self._round = state.account, play_round(game, state)
        self.ended, self.listened, self._heard = False, False, False
        self._published: list[bytes] = []
        self.effect: Any = None
        self.go_on(None)

    def go_on(self, result: Any) -> None:
        if isinstance(self.effect, Hear) and not self._heard:  # what comes later in a round is for the next one
            self._heard = True
            self._account = self._account.hear(result, take=self._before.round % self._game.chain_every == 0)
        if isinstance(self.effect, Publish):
            self._published.append(schema.content_hash(schema.encode(self.effect.record)))
        try:
            self.effect = self._round.send(result)
        except StopIteration as stop:
            self.ended, (self.state, _) = True, stop.value

    def leave(self) -> None:
        """As `Player.abandon` does."""
        assert len(self._published) < len(self._game.stages)
        self.ended, account = True, self._account.add(self._published, [])
        self.state = dataclasses.replace(self._before, round=self._before.round + 1, account=account)

    def answer(self, effect: Any) -> Any:
        if isinstance(effect, Sample):
            return self._say(effect.prompts)
        return answer(self._game, self._before, effect, (), self._speaker, self._who)

    def _say(self, prompts: Sequence[Sequence[int]]) -> Any:
        at, chain = self._before.round, self._account.beacon
        return [say(self._game, at, p, prompt, self._speaker, chain) for p, prompt in enumerate(prompts)]
