"""A node's round, as a plain generator that does no I/O.

`play_round` yields effects and receives their results; a driver fulfils them (`simulate.py` for N nodes in one
process). The same code therefore runs live, simulated, and again from a journal. What a group of completions is asked,
says and earns is in `turns.py`; what is shown to whom in `stages.py`.
"""

import collections
import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from rlswarm_jax import randomness
from rlswarm_jax.game import turns
from rlswarm_jax.game.chain import Account, amount, by_tag, tag
from rlswarm_jax.game.effects import (
    Audit,
    Claimed,
    Commit,
    Effect,
    Evaluate,
    Gather,
    Hear,
    Learn,
    Metrics,
    Pin,
    Publish,
    Replay,
    Sample,
    Score,
    Verify,
)
from rlswarm_jax.game.rewards import RIGHT, Rewards
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.stages import Sheets
from rlswarm_jax.game.turns import Scored, Turn
from rlswarm_jax.records import audits, schema
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.pool import Pool, ScoredGroup
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, FINDINGS, MAX_VERDICTS, REVISE, Announcing, Record, Verdict
from rlswarm_jax.records.teachers import WORTH, Teachers
from rlswarm_jax.records.trust import Trust, contradictory
from rlswarm_jax.tasks import Problem

MAX_NAMED = 32  # authors that a round's metrics name
NOBODY = frozenset[bytes]()
Item = tuple[Problem, str]


@dataclasses.dataclass(frozen=True)
class NodeState:
    """What a node carries from one round to the next, besides its weights: a value.

    sheets: what was said in the latest rounds, which late records may answer to. account: its account of the chain.
    teachers: how useful its peers' groups were. trust: whom it does not trust, by what was found in audits.
    """

    round: int = 0
    policy_version: int = 0
    pool: Pool = dataclasses.field(default_factory=Pool)
    sheets: Sheets = dataclasses.field(default_factory=dict)
    account: Account = dataclasses.field(default_factory=Account)
    teachers: Teachers = dataclasses.field(default_factory=Teachers)
    trust: Trust = dataclasses.field(default_factory=Trust)


Round = Generator[Effect, Any, tuple[NodeState, Metrics]]


def play_round(game: Game, state: NodeState) -> Round:
    """One round of one node; returns its next state and the round's metrics."""
    honest = _play_round(game, state)
    return game.strategy.plays(game, state, honest) if game.strategy and game.strategy.plays else honest


def _play_round(game: Game, state: NodeState) -> Round:
    """In each stage it samples, tells its peers, and hears them; then it scores all that was said, and learns."""
    metrics: Metrics = {}
    round_, account, sheets = state.round, state.account, dict(state.sheets)
    if game.chain_every:
        account = account.hear((yield Hear()), take=round_ % game.chain_every == 0)
    chain, beacons = account.beacon, by_tag(account.moments) or {b"": b""}
    beacon = game.beacon(round_, chain)
    if round_ % game.evaluate_every == 0:
        metrics |= _prefixed("held_out/", (yield Evaluate()))

    weights = yield Pin()
    trust = state.trust
    distrusted = trust.distrusted(round_)

    own: list[Turn] = []
    external: list[Turn] = []
    arrived: list[SignedRecord] = []
    waiting: list[SignedRecord] = []
    unused = collections.Counter[str]()
    published: list[bytes] = []
    redrawn, caught = 0, NOBODY
    for stage in game.stages:
        asked = turns.ask(game, _of_trusted(sheets, distrusted), round_, stage, chain)
        answers = (yield _sample(game, asked)) if asked else []
        played = [turns.sampled(game, turn, group) for turn, group in zip(asked, answers, strict=True)]
        if stage == ANSWER and game.redraws:
            played, redrawn = yield from _redraw(game, sheets, played)
        own += played
        if slow := _slow(game, played):
            yield Verify(list(slow), list(slow.values()))
        told = game.strategy.says(game, played, state.pool) if game.strategy and game.strategy.says else played
        verdicts = state.trust.unsaid[:MAX_VERDICTS] if stage == game.stages[0] else []  # as `Trust.tell` forgets
        record = _make_record(game, state, stage, tag(chain), weights, told, verdicts)
        yield Publish(record)
        published.append(schema.content_hash(schema.encode(record)))
        sheets[published[-1]] = turns.to_sheet(game, game.author, round_, stage, told, chain)

        heard = yield Gather(round_, stage, beacon, distrusted)
        if (followed := trust.succeed((signed.record for signed in heard), round_)) is not trust:
            trust, distrusted = followed, followed.distrusted(round_)
        if exposed := contradictory(heard):
            trust, caught = trust.expose(exposed, round_), caught | exposed
            distrusted = trust.distrusted(round_)
        arrived += [signed for signed in heard if signed.record.author not in exposed]
        if game.chain_every and any(signed.record.beacon not in beacons for signed in [*waiting, *heard]):
            beacons |= by_tag((yield Hear()))  # others may have heard of a new round before this one began
        last, due = stage == game.stages[-1], [signed for signed in heard if signed.record.round <= round_]
        theirs, waiting, flaws = turns.read_records(game, sheets, [*waiting, *due], last=last, beacons=beacons)
        before = len(external) + len(theirs)
        external, theirs = ([turn for turn in of if turn.author not in distrusted] for of in (external, theirs))
        external += theirs
        unused += flaws + collections.Counter(distrusted=before - len(external))
        if slow := _slow(game, theirs):
            yield Verify(list(slow), list(slow.values()))

    revised = [turn for turn in own if turn.stage == REVISE]
    agreed = {t.index: turns.voted_for(game, sheets, round_, t.index, t.problem, chain) for t in revised}
    items = _said_by(game, own + external)
    items |= dict.fromkeys([(turn.problem, agreed[turn.index] or "") for turn in revised], NOBODY)
    scored = yield Score(list(items), list(items.values()))
    scores = dict(zip(items, scored.scores, strict=True))
    costly = {list(items)[place] for place in scored.costly}
    paid = [turn for turn in external if not costly or not costly.intersection(turns.to_score(game, turn))]
    if len(paid) < len(external):
        unused["costly"] = len(external) - len(paid)
    everything = own + paid
    earned = [turns.rewards(game, sheets, turn, scores) for turn in everything]
    ways = {turn.problem.task for turn in own if any(turns.lenient(game, turn, scores))}
    lengths = _mean_lengths(own)
    played_for = zip(everything, earned, strict=True)
    taught = [turns.teaches(game, turn, rewards, scores, ways, lengths) for turn, rewards in played_for]
    groups = [turns.to_scored(game, turn, rewards) for turn, rewards in zip(everything, taught, strict=True)]
    local = [group for group in groups if not group.external and (game.flat or group.has_advantage)]
    idle = [group for group in groups if not (group.external or game.flat or group.has_advantage)]
    drawn, pool, teachers = _draw(game, state, groups, len(local), sheets, beacon, distrusted)
    if own and game.rechecks:
        metrics |= yield _recheck(game, own, beacon)
    learned = yield Learn(local + drawn, round_, idle)
    if game.chain_every:
        worth = [(t.author if t.external else t.stage, amount(r)) for t, r in zip(everything, earned, strict=True)]
        account = yield from _commit(game, account.add(published, worth), round_)
        metrics["chain/round"] = float(account.round)
    if game.auditors:
        trust, found = yield from _audit(game, state, trust, account, sheets, arrived, beacons)
        metrics |= found
    if game.auditors or trust.offenders:
        metrics["audit/distrusted"] = float(len(trust.distrusted(round_ + 1)))
        named = sorted(author.hex() for author in trust.distrusted(round_ + 1))[:MAX_NAMED]
        metrics |= {f"audit/distrusted/{author}": 1.0 for author in named}
    if trust.heirs:
        metrics["peers/rotated"] = float(len(trust.heirs))
    if caught:
        metrics["audit/equivocators"] = float(len(caught))

    for stage in game.stages:
        of_stage = [(t, rewards) for t, rewards in zip(own, earned[: len(own)], strict=True) if t.stage == stage]
        found = _sampling_metrics(of_stage) | _prefixed("reward/", _pass_rate(game, sheets, of_stage, scores))
        metrics |= _prefixed("" if stage == ANSWER else f"{stage}/", found)
        if stage != ANSWER:
            metrics[f"{stage}/groups"] = float(len(of_stage))
    metrics |= _game_metrics(game, own, scores, agreed)
    metrics |= {f"score/failed/{cause}": float(count) for cause, count in sorted(scored.failures.items())}
    if game.mixture.unread:
        metrics["score/unread_answers"] = float(game.mixture.unread)
    metrics |= _prefixed("learn/", learned)
    external_groups = [group for group in groups if group.external]
    metrics |= _exchange_metrics(round_, arrived, external_groups, unused, local, drawn)
    if game.max_length_ratio:
        metrics["groups/overlong"] = float(sum(any(turns.overlong(game, turn, lengths)) for turn in paid))
    metrics["records/published"] = float(len(game.stages))
    metrics["sample/completions"] = float(sum(len(turn.completions) for turn in own) + redrawn * game.group_size)
    metrics["sample/tokens"] = float(sum(len(s.tokens) for turn in own for s in turn.completions))
    if game.redraws:
        metrics["sample/redrawn"] = float(redrawn)
    if round_ + 1 == game.rounds:
        metrics |= _prefixed("final/", (yield Evaluate()))
    version = state.policy_version + int(learned.get("updates", 0))
    recent = {h: sheet for h, sheet in sheets.items() if sheet.round > round_ - game.max_staleness}
    return NodeState(round_ + 1, version, pool, recent, account, teachers, trust), metrics


def next_round(state: NodeState, latest_rounds: dict[bytes, int], voters: int) -> NodeState:
    """The state at the round to play next: a node that most of its peers have left behind joins them.

    latest_rounds: in which a peer was heard last; of `voters` peers in all, some may have said nothing yet.
    """
    ahead, majority = sorted(latest_rounds.values(), reverse=True), voters // 2 + 1
    if len(ahead) >= majority and ahead[majority - 1] > state.round:
        return dataclasses.replace(state, round=ahead[majority - 1])
    return state


def _commit(game: Game, account: Account, round_: int) -> Generator[Effect, Any, Account]:
    """Commits where it is time; after the last round to all that is left, even if that takes another beacon."""
    last = round_ + 1 == game.rounds
    if last and not account.due and account.moments:
        account = account.hear((yield Hear(beyond=account.round)), take=True)
    if account.due and (last or (round_ + 1) % game.chain_every == 0):
        account = account.settle(
            (yield Commit(account.moments[-1], account.work, account.state_hash or game.state_hash))
        )
    return account


def _audit(
    game: Game,
    state: NodeState,
    trust: Trust,
    account: Account,
    sheets: Sheets,
    arrived: Sequence[SignedRecord],
    beacons: Mapping[bytes, bytes],
) -> Generator[Effect, Any, tuple[Trust, Metrics]]:
    """Has peers' records checked that were published before the present beacon was known, and what others accuse.

    With a chain, once for each of its rounds; without one, those of the round before.
    """
    round_, before = state.round, state.account.beacon
    is_due = account.beacon != before if game.chain_every else True
    at = (before, None) if game.chain_every else (b"", round_ - 1)
    theirs = {h: sheet for h, sheet in sheets.items() if sheet.author != game.author}
    trust = trust.remember({h: s.author for h, s in theirs.items()}, round_, audits.shown_for(game.max_staleness))
    known = {record: author for record, (author, _) in trust.heard.items()}
    trust = trust.tell(MAX_VERDICTS).hear((signed.record for signed in arrived), known, round_)
    due = {h: s.author for h, s in theirs.items() if is_due and s.chain == at[0] and at[1] in (None, s.round)}
    cases = audits.drawn(game.author, due, game.beacon(round_, account.beacon), game.auditors)
    cases += trust.to_repeat(known, game.author, round_)
    found = yield Audit(cases, dict(sheets), beacons)
    trust = trust.find(found, round_)
    findings = collections.Counter(one.verdict.finding for one in found)
    metrics = {f"audit/found/{finding}": float(findings[finding]) for finding in FINDINGS}
    metrics |= {"audit/cases": float(len(cases)), "audit/tokens": float(sum(one.verdict.tokens for one in found))}
    return trust, metrics


def _redraw(game: Game, sheets: Sheets, played: Sequence[Turn]) -> Generator[Effect, Any, tuple[list[Turn], int]]:
    """With other problems in the place of the node's own whose answers all earn the same, and how many were drawn.

    DAPO's dynamic sampling (arXiv:2503.14476 section 3.2), at most `redraws` times.
    """
    played, drawn, unsure = list(played), 0, list(range(len(played)))
    for _ in range(game.redraws):
        items = list(_said_by(game, [played[place] for place in unsure]))
        scores = dict(zip(items, (yield Score(items, [NOBODY] * len(items))).scores, strict=True))
        unsure = [p for p in unsure if played[p].index >= game.shared and not _is_live(game, sheets, played[p], scores)]
        if not unsure:
            break
        asked = [turns.ask_again(game, played[place]) for place in unsure]
        answers = yield _sample(game, asked)
        for place, turn, group in zip(unsure, asked, answers, strict=True):
            played[place] = turns.sampled(game, turn, group)
        drawn += len(asked)
    return played, drawn


def _is_live(game: Game, sheets: Sheets, turn: Turn, scores: Scored) -> bool:
    return turns.to_scored(game, turn, turns.rewards(game, sheets, turn, scores)).has_advantage


def _draw(
    game: Game,
    state: NodeState,
    groups: Sequence[ScoredGroup],
    local: int,
    sheets: Sheets,
    beacon: bytes,
    distrusted: frozenset[bytes],
) -> tuple[list[ScoredGroup], Pool, Teachers]:
    """Peers' groups to learn from beside so many of the node's own, what is left of the pool, and who is useful.

    Of one author at most twice an even share among those that were heard.
    """
    external = [group for group in groups if group.external]
    pool = state.pool.without(distrusted)
    pool = pool.add(external, flat=game.flat)
    pool = pool.expire(state.round - game.max_staleness)  # a late record may be too old already
    teachers = state.teachers.seen(external)
    count = game.external_groups + (max(0, game.local_groups - local) if game.fill else 0)
    heard = {sheet.author for sheet in sheets.values()} - {game.author}
    most = max(1, -(-2 * count // max(1, len(heard))))
    until, worth = state.round - game.min_staleness, WORTH[game.choose](teachers)
    drawn, pool = pool.draw(count, beacon, game.author, most=most, until=until, worth=worth)
    return drawn, pool, teachers


def _make_record(
    game: Game,
    state: NodeState,
    stage: str,
    beacon: bytes,
    weights: bytes,
    played: Sequence[Turn],
    verdicts: Sequence[Verdict],
) -> Record:
    record = Record(
        version=schema.VERSION,
        swarm=game.swarm,
        author=game.author,
        round=state.round,
        stage=stage,
        beacon=beacon,
        prompt_format=game.dialect,
        policy_version=state.policy_version,
        weights=weights,
        tokenizer_fingerprint=game.tokenizer_fingerprint,
        temperature=game.temperature,
        groups=[turns.to_group(game, turn) for turn in played],
        verdicts=list(verdicts),
    )
    if not game.rotations:
        return record
    fields = msgspec.structs.asdict(record) | {"version": schema.ANNOUNCING}
    return Announcing(**fields, rotations=list(game.rotations))


def _sample(game: Game, asked: Sequence[Turn]) -> Sample:
    keys = [turns.sample_keys(game, turn) for turn in asked]
    return Sample([turn.prompt for turn in asked], np.array(keys, np.uint32).reshape(len(asked), game.group_size, 2))


def _recheck(game: Game, own: Sequence[Turn], beacon: bytes) -> Replay:
    """Of some of a node's own completions, wherever they are."""
    every = [(turn, g) for turn in own for g in range(len(turn.completions))]
    ranked = sorted(every, key=lambda at: randomness.digest("pool", "recheck", beacon, at[0].stage, at[0].index, at[1]))
    drawn = ranked[: game.rechecks]
    claimed = [Claimed(t.prompt, [t.completions[g].tokens], [turns.sample_keys(game, t)[g]]) for t, g in drawn]
    return Replay(claimed, [turn.completions[g].logprobs for turn, g in drawn])


def _of_trusted(sheets: Sheets, distrusted: frozenset[bytes]) -> Sheets:
    """What may be shown to this node."""
    return {h: sheet for h, sheet in sheets.items() if sheet.author not in distrusted} if distrusted else sheets


def _said_by(game: Game, played: Sequence[Turn]) -> dict[Item, frozenset[bytes]]:
    """What is to be scored, and the peers whose it is; nobody's is what this node needs itself."""
    said: dict[Item, frozenset[bytes]] = {}
    for turn in played:
        for item in turns.to_score(game, turn):
            before = said.get(item)
            own = not turn.external or before == NOBODY
            said[item] = NOBODY if own else (before or NOBODY) | {turn.author}
    return said


def _slow(game: Game, played: Sequence[Turn]) -> dict[Item, frozenset[bytes]]:
    """What a verifier should begin to score now, because it takes time, and whose it is."""
    return _said_by(game, [turn for turn in played if game.mixture.tasks[turn.problem.task].seconds > 0])


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {prefix + name: value for name, value in metrics.items()}


def _sampling_metrics(played: Sequence[tuple[Turn, list[float]]]) -> Metrics:
    """Of a node's own groups of one stage; nothing of a stage that had none."""
    completions = [s for turn, _ in played for s in turn.completions]
    if not completions:
        return {}
    rewards = [earned for _, earned in played]
    return {
        "reward/mean": float(np.mean(rewards)),
        "reward/zero_advantage_fraction": float(np.mean([max(earned) == min(earned) for earned in rewards])),
        "sample/length_mean": float(np.mean([len(s.tokens) for s in completions])),
        "sample/truncated_fraction": float(np.mean([not s.ended for s in completions])),
    }


def _mean_lengths(own: Sequence[Turn]) -> dict[str, float]:
    """Tokens of a node's own completions, by stage."""
    lengths: dict[str, list[int]] = {}
    for turn in own:
        lengths.setdefault(turn.stage, []).extend(len(said.tokens) for said in turn.completions)
    return {stage: float(np.mean(of)) for stage, of in lengths.items()}


def _pass_rate(game: Game, sheets: Sheets, played: Sequence[tuple[Turn, list[float]]], scores: Scored) -> Metrics:
    """In how many groups a completion is right, whatever else is paid for."""
    unpaid = dataclasses.replace(game, rewards=Rewards())
    best = [max(turns.rewards(unpaid, sheets, turn, scores)) for turn, _ in played]
    return {"pass_at_group": float(np.mean([reward >= RIGHT for reward in best]))} if best else {}


def _game_metrics(game: Game, own: Sequence[Turn], scores: Scored, agreed: Mapping[int, str | None]) -> Metrics:
    """How often what is said of shared problems is right: the node's first answer, the swarm's vote, its revision.

    Of critiques of contested problems (`turns.Critics`): critique/best, how often they name a best answer, and what is
    had without reading; critique/contested: how many problems are.
    """

    def right(text: str | None, problem: Problem) -> bool:
        return scores[problem, text or ""] >= RIGHT

    found = {}
    own = [turn for turn in own if turn.problem.verifiable]
    if revised := [turn for turn in own if turn.stage == REVISE and turn.reading]:
        spoken = [turns.to_sheet(game, turn.author, turn.round, REVISE, [turn]).said[turn.index] for turn in revised]
        firsts = [turn.reading.answers[0].answer for turn in revised if turn.reading]
        at = [turn.problem for turn in revised]
        found["game/first"] = float(np.mean([right(text, p) for text, p in zip(firsts, at, strict=True)]))
        found["game/vote"] = float(np.mean([right(agreed[t.index], t.problem) for t in revised]))
        found["game/revised"] = float(np.mean([right(said.answer, p) for said, p in zip(spoken, at, strict=True)]))
    if critics := [turn for turn in own if turn.stage == CRITIQUE and turn.reading]:
        each = [turns.criticised(game, [turn], scores, disputed=True) for turn in critics]
        found["critique/contested"] = float(np.mean([one is not None for one in each]))
        if all_ := turns.criticised(game, critics, scores, disputed=True):
            named = {"best": all_.critic, "chance": all_.chance, "first": all_.first, "majority": all_.majority}
            found |= _prefixed("critique/", named | {"none": all_.none})
    return found


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
        "groups/staleness_max": float(max((round_ - g.round for g in drawn), default=0)),
    }
    metrics |= {f"groups/unused/{cause}": float(count) for cause, count in sorted(unused.items())}
    speakers = collections.Counter(signed.record.author.hex() for signed in arrived)
    teachers = collections.Counter(group.author.hex() for group in drawn)
    named = sorted(speakers.items(), key=lambda item: (-item[1], item[0]))[:MAX_NAMED]  # keys are free to make
    metrics |= {f"received_from/{author}": float(count) for author, count in sorted(named)}
    return metrics | {f"learned_from/{author}": float(count) for author, count in sorted(teachers.items())}
