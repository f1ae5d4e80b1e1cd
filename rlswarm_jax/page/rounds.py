"""A round of a node, step by step, from its records: what it and its peers said, how they voted, what it earned."""

import collections
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlswarm_jax import journal
from rlswarm_jax.journal import JournalError
from rlswarm_jax.page.folder import PUBLISH, Folder, Member
from rlswarm_jax.page.rows import Row
from rlswarm_jax.page.texts import named, shown
from rlswarm_jax.page.weigh import Scales
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import CRITIQUE, Group

MOST_GROUPS, MOST_HEARD = 64, 64
TOLD = (
    *("reward/mean", "critique/reward/mean", "revise/reward/mean", "learn/loss", "learn/tokens", "learn/updates"),
    *("groups/local", "groups/external", "groups/received", "groups/received_with_advantage", "records/received"),
)


def kept_rounds(folder: Folder, member: Member) -> list[int]:
    """Rounds whose records are in the node's journal."""
    with contextlib.suppress(JournalError):
        return journal.kept(member.journal, PUBLISH).get(member.inner, [])
    return []


def group_view(
    folder: Folder,
    group: Group | None,
    stage: str,
    rewards: Sequence[float] | None,
    row: Row | None,
    scales: Scales,
    *,
    external: bool,
    learned: bool,
) -> dict[str, Any]:
    """A group with what is known of it; group: None where its record is not here any more."""
    found: dict[str, Any] = {"learned_from": learned}
    weighed = scales.advantages(stage, rewards) if rewards else None
    if rewards:
        found |= {"rewards": list(rewards), "advantages": weighed}
    if group is None:
        return found
    lengths = [len(completion.tokens_T) for completion in group.completions]
    found |= {
        "task": named(group.task),
        "seed": str(group.problem_seed),
        "vote": group.vote,
        "lengths": lengths,
        "texts": [shown(completion.text) for completion in group.completions],
    }
    if learned and row is not None and weighed is not None and len(weighed) == len(lengths):
        found["used"] = scales.learned(external, weighed)
        found["part"] = scales.part(row, external, weighed, lengths)
        found["loss"] = row.get("learn/loss")
    return found


def round_view(folder: Folder, member: Member, round_: int) -> dict[str, Any]:
    """Without prompts, which take the game."""
    at = member.course.place(round_)
    row: Row = member.course.row(at) if at is not None else {}
    own = folder.published(member, round_)
    heard = folder.heard(member, range(round_, round_ + 1))
    names = folder.names
    authors = {one.hash: one.record.author for one in [*own, *heard]}
    rewards = {(s, i): (r, learned) for a, _, s, i, r, learned in row.get("lessons", ()) if not a}
    scales = Scales(folder.config)
    stages = [_stage(folder, one, rewards, row, scales, authors, names) for one in own]
    kept = kept_rounds(folder, member)
    return {
        "node": member.index,
        "name": named(member.name),
        "round": round_,
        "kept": [kept[0], kept[-1]] if kept else None,
        "played": bool(row),
        "figures": {name: row[name] for name in TOLD if name in row},
        "version": own[0].record.policy_version if own else None,
        "beacon": own[0].record.beacon.hex() if own else "",
        "stages": stages,
        "votes": _votes([*own, *heard], round_, names),
        "heard": _heard(heard, names),
        "unheard": max(0, len(heard) - MOST_HEARD),
        "taught": _taught(row, names),
        "unused": {named(k.removeprefix("groups/unused/")): v for k, v in row.items() if k.startswith("groups/unused")},
    }


def _stage(
    folder: Folder,
    signed: SignedRecord,
    rewards: Mapping[tuple[str, int], tuple[list[float], bool]],
    row: Row,
    scales: Scales,
    authors: Mapping[bytes, bytes],
    names: Mapping[str, str],
) -> dict[str, Any]:
    record, groups = signed.record, []
    for group in record.groups[:MOST_GROUPS]:
        earned, learned = rewards.get((record.stage, group.index), (None, False))
        one = group_view(folder, group, record.stage, earned, row, scales, external=False, learned=learned)
        parents = [authors.get(parent) for parent in group.parents]
        who = [named(names.get(a.hex(), a.hex()[:8])) if a else "a record of an earlier round" for a in parents]
        one |= {"index": group.index, "shared": group.index < _shared(folder), "shown": who}
        if record.stage == CRITIQUE:
            one["voted"] = who[group.vote - 1] if group.vote and group.vote <= len(who) else None
        groups.append(one)
    return {"stage": record.stage, "hash": signed.hash.hex(), "groups": groups, "verdicts": len(record.verdicts)}


def _shared(folder: Folder) -> int:
    return int(folder.config.get("game", {}).get("shared", 0)) if len(folder.stages) > 1 else 0


def _votes(records: Sequence[SignedRecord], round_: int, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of each shared problem, who voted for whose answer. What answers of one number say may be the same text."""
    authors = {one.hash: one.record.author for one in records}
    found: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for one in sorted(records, key=lambda signed: signed.record.author):
        if one.record.stage == CRITIQUE and one.record.round == round_:
            for group in one.record.groups[:MOST_GROUPS]:
                chosen = group.parents[group.vote - 1] if group.vote and group.vote <= len(group.parents) else None
                author = authors.get(chosen) if chosen else None
                what = "nobody" if group.vote is None else "none of them" if not group.vote else ""
                whose = named(names.get(author.hex(), author.hex()[:8])) if author else what or "a record not here"
                found[group.index].append({"by": named(names.get(one.record.author.hex(), "?")), "for": whose})
    return [{"index": index, "votes": votes[:MOST_HEARD]} for index, votes in sorted(found.items())]


def _heard(heard: Sequence[SignedRecord], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "author": one.record.author.hex(),
            "name": named(names.get(one.record.author.hex(), one.record.author.hex()[:8])),
            "round": one.record.round,
            "stage": named(one.record.stage),
            "groups": len(one.record.groups),
            "verdicts": len(one.record.verdicts),
        }
        for one in heard[:MOST_HEARD]
    ]


def _taught(row: Row, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """What of others was learned from in the round."""
    return [
        {"author": a, "name": named(names.get(a, a[:8])), "round": of, "stage": named(stage), "index": i, "rewards": r}
        for a, of, stage, i, r, learned in row.get("lessons", ())
        if a and learned
    ][:MOST_GROUPS]
