"""Who checked whom and what they found; and the network: who hears whom, what was refused and why."""

import collections
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rlswarm_jax.page.folder import GATHER, PUBLISH, Folder, Member, records_of
from rlswarm_jax.page.lineage import authors_of
from rlswarm_jax.page.rows import averaged, summed, thinned
from rlswarm_jax.page.texts import named
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import FINDINGS, NOT_PRODUCED
from rlswarm_jax.status import name_of

MOST_VERDICTS, MOST_ROWS, MOST_FILE = 120, 64, 1 << 24
LATEST = 60  # rounds of records that are looked through for verdicts
SAMPLES_FILE, CLAIMS_FILE = "samples.json", "claims.json"  # as experiments.audit writes them


def trust(folder: Folder) -> dict[str, Any]:
    members, names = folder.members, folder.names
    sums = {member.index: member.course.totals("audit/") for member in members}
    audits = {index: _audits(total) for index, total in sums.items()}
    records = _latest(folder)
    distrusted = [
        {"by": named(member.name), "whom": named(names.get(author, author[:8])), "rounds": int(total)}
        for member in members
        for author, total in sorted(member.course.totals("audit/distrusted/").items())
    ]
    return {
        "findings": list(FINDINGS),
        "nodes": [
            {
                "name": named(member.name),
                **audits[member.index],
                "tokens": int(sums[member.index].get("tokens", 0)),
                "own": {name: int(sums[member.index].get(f"own_{name}", 0)) for name in FINDINGS},
                "equivocations": int(member.course.last("records/equivocations") or 0),
            }
            for member in members
        ],
        "verdicts": _verdicts(records, names),
        "distrusted": distrusted[:MOST_ROWS],
        "audits": summed(audits.values()),
        "verdict": verdict(folder),
        "samples": _samples(folder, names),
        "claims": _claims(folder, names),
    }


def verdict(folder: Folder) -> str:
    """Whether anybody was found out, in a sentence."""
    sums = [member.course.totals("audit/") for member in folder.members]
    found = summed(map(_audits, sums))
    caught = {author for member in folder.members for author in member.course.totals("audit/distrusted/")}
    names = sorted(named(folder.names.get(author, author[:8])) for author in caught)[:8]
    if names:
        return f"Found out, and not trusted now: {', '.join(names)}."
    if not found.get("answered"):
        return "Nobody was found out; but no check of others' samples has come to an end here."
    heard = sum(member.course.total("groups/received") for member in folder.members)  # each by all but its author
    heard /= max(1, len(folder.members) - 1)
    checked = f"of about {heard:,.0f} groups of peers {int(found['answered']):,} were drawn again"
    return (
        f"Nobody was found out: {checked}; {int(found['produced']):,} are proven to be sampled as was said, and "
        f"{int(found['undecided']):,} say too little to tell."
    )


def _audits(total: Mapping[str, float]) -> dict[str, int]:
    """Of one auditor: drawn, and what became of these, which adds up to it. open: nothing is found yet."""
    found: dict[str, int] = {name: int(total.get(f"found/{name}", 0)) for name in FINDINGS}
    answered = sum(found.values())
    drawn = max(int(total.get("cases", 0)), answered)
    return {"drawn": drawn, "answered": answered, **found, "open": drawn - answered}


def _latest(folder: Folder) -> dict[bytes, SignedRecord]:
    """Records of the latest rounds, by content hash: what the nodes said, and what a single one heard."""
    found: dict[bytes, SignedRecord] = {}
    for member in folder.members:
        if not len(member.course):
            continue
        last = max(member.course.rounds)
        kinds = (PUBLISH, GATHER) if folder.kind == "node" else (PUBLISH,)
        for entry in folder.entries(member, range(max(0, last - LATEST), last + 2), *kinds):
            found |= {signed.hash: signed for signed in records_of(entry)}
    return found


def _verdicts(records: Mapping[bytes, SignedRecord], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is said in records of others' groups, the latest first; what is against somebody before the rest."""
    found: list[dict[str, Any]] = []
    for signed in records.values():
        for verdict in signed.record.verdicts:
            judged = records.get(verdict.record)
            about = judged.record.author.hex() if judged else ""
            found.append(
                {
                    "by": named(names.get(signed.record.author.hex(), signed.record.author.hex()[:8])),
                    "round": signed.record.round,
                    "about": named(names.get(about, about[:8])) if about else "",
                    "of": judged.record.round if judged else None,
                    "stage": named(judged.record.stage) if judged else "",
                    "record": verdict.record.hex(),
                    "index": verdict.index,
                    "finding": verdict.finding,
                    "tokens": verdict.tokens,
                    "bits": round(verdict.bits, 1),
                    "statistic": round(verdict.statistic, 3),
                }
            )
    return sorted(found, key=lambda one: (one["finding"] != NOT_PRODUCED, -one["round"], one["by"], one["record"]))[
        :MOST_VERDICTS
    ]


def _file(folder: Folder, name: str) -> Any:
    path = folder.directory / name
    try:
        return json.loads(path.read_bytes()) if path.stat().st_size < MOST_FILE else None
    except (OSError, ValueError):
        return None


def _samples(folder: Folder, names: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """What experiments.audit found of each author's samples; None where it was not run."""
    found = _file(folder, SAMPLES_FILE)
    if not isinstance(found, dict) or not isinstance(found.get("authors"), dict):
        return None
    return [
        {"name": named(names.get(author, author[:8])), **{name: of.get(name, 0) for name in FINDINGS}}
        for author, of in list(found["authors"].items())[:MOST_ROWS]
        if isinstance(of, dict)
    ]


def _claims(folder: Folder, names: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """The same of claims, by account: sums in millionths."""
    found = _file(folder, CLAIMS_FILE)
    if not isinstance(found, dict) or not isinstance(found.get("accounts"), list):
        return None
    claimed: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in found["accounts"]:
        if isinstance(one, dict):
            who = str(one.get("author") or one.get("account"))
            claimed[who].update(claimed=int(one.get("claimed", 0)), verified=int(one.get("verified", 0)))
            claimed[who]["commitments"] += 1
    return [{"name": named(names.get(who, who[:10])), **sums} for who, sums in list(claimed.items())[:MOST_ROWS]]


# --- the network


def network(folder: Folder) -> dict[str, Any]:
    members, names = folder.members, folder.names
    totals = [member.course.totals("received_from/") for member in members]
    authors = authors_of(folder)
    authors += [author for author in summed(totals) if author not in authors][: MOST_ROWS - len(authors)]
    return {
        "listeners": [named(member.name) for member in members],
        "authors": [{"author": author, "name": named(names.get(author, author[:8]))} for author in authors],
        "received": [[int(total.get(author, 0)) for author in authors] for total in totals],
        "nodes": [_node(member) for member in members],
        "bytes": [
            {"name": label, "points": thinned(averaged(m.course.column(f"network/bytes_{way}") for m in members))}
            for way, label in (("in", "bytes in"), ("out", "bytes out"))
        ],
        "rejected": _causes(members, "records/rejected/"),
        "unused": _causes(members, "groups/unused/"),
        "trouble": _trouble(members),
        **_connections(folder),
        "connected": bool(any(member.course.names("network/") for member in members)),
    }


def _node(member: Member) -> dict[str, Any]:
    course = member.course
    return {
        "name": named(member.name),
        "peers": course.last("peers/connected"),
        "published": int(course.total("records/published")),
        "received": int(course.total("records/received")),
        "bytes_in": int(course.total("network/bytes_in")),
        "bytes_out": int(course.total("network/bytes_out")),
        "given_up": int(course.total("peers/given_up")),
    }


def _connections(folder: Folder) -> dict[str, list[dict[str, Any]]]:
    """Of nodes that run: with whom they are connected, whom they refuse now and who left lately, with reasons."""
    found: dict[str, list[dict[str, Any]]] = {"mesh": [], "banned": [], "left": []}
    now = time.time()
    for member in folder.members:
        if told := folder.told(member):
            own = {"node": named(member.name)}
            found["mesh"] += [
                own | {"peer": _peer(one.peer), "mesh": one.mesh, "seconds": _seconds(now, one.since)}
                for one in told.peers
            ]
            for which, partings in (("banned", told.banned), ("left", told.left[::-1])):
                found[which] += [
                    own | {"peer": _peer(one.peer), "why": named(one.why, 160), "seconds": _seconds(now, one.at)}
                    for one in partings
                ]
    found["banned"] = [one | {"seconds": -one["seconds"]} for one in found["banned"] if one["seconds"] < 0]
    return {name: rows[:MOST_ROWS] for name, rows in found.items()}


def _peer(peer: str) -> str:
    return named(name_of(peer))


def _seconds(now: float, at: float | None) -> float:
    return round(now - (at or now), 1)


def _causes(members: Iterable[Member], prefix: str) -> list[dict[str, Any]]:
    found = summed(member.course.totals(prefix) for member in members)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_ROWS]
    return [{"cause": named(cause), "count": int(count)} for cause, count in ordered]


TROUBLE = {
    "refused": "a peer that is cut off for a while, or has too many connections, streams or messages",
    "malformed": "a peer sent what the protocol does not have",
    "other_rules": "a peer plays by other rules; the log has how they differ",
    "unreachable": "a bootnode could not be reached",
    "restarts": "the network was started again after a failure",
    "held_back": "a peer that sent faster than it may was read later",
    "half open": "a connection that had said nothing was closed for another",
    "idle": "a connection of a peer that took no part was closed",
    "unanswered": "a greeting that a peer did not answer",
}


def trouble(folder: Folder) -> str:
    """What went wrong on the network, in a sentence."""
    members = folder.members
    parts = [
        f"{what}: {sum(one['count'] for one in rows):,} ({', '.join(one['cause'] for one in rows[:3])})"
        for what, rows in (
            ("records refused", _causes(members, "records/rejected/")),
            ("groups left unused", _causes(members, "groups/unused/")),
        )
        if rows
    ]
    often = [("once" if one["count"] == 1 else f"{one['count']:,} times", one["why"]) for one in _trouble(members)[:3]]
    parts += [f"{times} {why}" for times, why in often]
    return f"Trouble on the network: {'; '.join(parts)}." if parts else "There was no trouble on the network."


def _trouble(members: Iterable[Member]) -> list[dict[str, Any]]:
    """Bans and what else keeps peers apart, with the reason."""
    found = summed(member.course.totals("network/") for member in members)
    ordinary = ("bytes_in", "bytes_out", "messages_in", "messages_out", "repeated")
    return [
        {"cause": named(cause.replace("_", " ")), "count": int(count), "why": TROUBLE.get(cause, "messages not sent")}
        for cause, count in sorted(found.items(), key=lambda item: -item[1])[:MOST_ROWS]
        if cause not in ordinary and count
    ]
