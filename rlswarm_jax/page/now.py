"""What is going on: where each node is, whom it waits for and why, and the last thing that went wrong."""

import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

from rlswarm_jax import journal
from rlswarm_jax.journal import JournalError
from rlswarm_jax.page.folder import PUBLISH, Folder, Member
from rlswarm_jax.page.lineage import authors_of
from rlswarm_jax.page.rows import recent
from rlswarm_jax.page.texts import named
from rlswarm_jax.page.trust import trouble, verdict
from rlswarm_jax.status import BEHIND, READY, STALLED, Told, harmless, name_of

LOG_FILE = "log.txt"  # of a node, as its launcher or itself writes it
TAIL = 1 << 15  # bytes of a log that are looked at
MOST_AWAITED = 16
WRONG = re.compile(r"\b(ERROR|WARNING|CRITICAL|error:|Error:)")
DOING = {  # by the last effect that is written down
    "begin": "begins the round",
    "Hear": "begins the round",
    "Evaluate": "answers held-out problems",
    "Pin": "samples {stage}s",
    "Sample": "tells its peers its {stage}s",
    "Verify": "tells its peers its {stage}s",
    "Gather": "samples {stage}s",
    "Score": "learns",
    "Replay": "learns",
    "Learn": "ends the round",
    "Commit": "ends the round",
    "Audit": "ends the round",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a node is: by its journal's last row. said: stages of the round in which it has spoken. at: seconds of
    unix time, or of a simulation's clock.
    """

    round: int
    kind: str
    said: int
    at: float

    def reads(self, stages: Sequence[str]) -> str:
        """What it does, in words."""
        if self.kind == PUBLISH:
            return f"waits for {stages[min(self.said, len(stages)) - 1]}s of its peers"
        if self.said == len(stages) and self.kind in ("Gather", "Verify", "Hear"):
            return "scores what was said"
        return DOING.get(self.kind, "plays").format(stage=stages[min(self.said, len(stages) - 1)])


def now(folder: Folder) -> dict[str, Any]:
    places, stages, status = _places(folder), folder.stages, folder.status
    told = {member.index: found for member in folder.members if (found := folder.told(member))}
    nodes = [_node(folder, member, places, told, status == "running") for member in folder.members]
    rounds = int(folder.config.get("rounds", 0))
    seconds = [member.course.last("wall_seconds") for member in folder.members]
    return {
        "name": named(folder.config.get("name", "run")),
        "kind": folder.kind,
        "status": status,
        "seed": folder.config.get("seed"),
        "rounds": rounds,
        "stages": list(stages),
        "model": named(folder.config.get("model", {}).get("path", "")),
        "tasks": [named(task) for task in folder.config.get("tasks", {})][:24],
        "seconds": max((s for s in seconds if s is not None), default=None),
        "nodes": nodes,
        "chain": _chain(folder),
        "problems": int(folder.config.get("evaluation", {}).get("problems", 0)),
        "error": _error(folder),
        "trouble": trouble(folder),
        "verdict": verdict(folder),
        "people": _people(folder),
    }


def _people(folder: Folder) -> dict[str, str]:
    """Whom a name leads to, in hex: nodes, and whoever else was heard. A name that two have leads to nobody."""
    authors = dict.fromkeys([*(m.author.hex() for m in folder.members if m.author), *authors_of(folder)])
    names = {author: named(folder.names.get(author, author[:8])) for author in authors}
    times = collections.Counter(names.values())
    return {name: author for author, name in names.items() if times[name] == 1}


def _places(folder: Folder) -> dict[int, Place]:
    found = {}
    for path in dict.fromkeys(member.journal for member in folder.members):
        with contextlib.suppress(JournalError):
            rows = {entry.node: entry for entry in journal.newest(path)}
            for member in folder.members:
                if member.journal == path and (row := rows.get(member.inner)):
                    said = journal.count(path, member.inner, row.round, PUBLISH)
                    found[member.index] = Place(row.round, row.kind, said, row.at)
    return found


def _node(
    folder: Folder, member: Member, places: dict[int, Place], told: dict[int, Told], running: bool
) -> dict[str, Any]:
    course, place, says = member.course, places.get(member.index), told.get(member.index)
    final = course.last("final/accuracy")
    played = course.rounds[-1] + 1 if len(course) else 0
    rounds = int(folder.config.get("rounds", 0))
    shown: dict[str, Any] = {
        "index": member.index,
        "name": named(member.name),
        "author": member.author.hex(),
        "round": place.round if place and running else played,
        "done": played,
        "peers": course.last("peers/connected"),
        "reward": shown_recent[-1][1] if (shown_recent := recent(course.column("reward/mean"))) else None,
        "held_out": course.last("held_out/accuracy") if final is None else final,
        "learned": course.total("groups/external"),
        "waiting": [],
        "state": "",
    }
    if not running:
        shown["doing"] = "has played all rounds" if rounds and played >= rounds else "has stopped"
    elif says:
        shown |= _says(says, told, folder)
    elif place is None:
        shown["doing"] = "plays"
    elif rounds and played >= rounds:
        shown["doing"] = "has played all rounds"
    else:
        shown["doing"] = place.reads(folder.stages)
        if folder.kind != "simulated":  # whose clock is not ours
            shown["since"] = max(0, round(time.time() - place.at, 1))
        if place.kind == PUBLISH:
            shown["waiting"] = _awaited(folder, member, place, places)
    return shown


def _says(says: Told, told: dict[int, Told], folder: Folder) -> dict[str, Any]:
    """What a live node says of itself; of whom it waits for also what they say."""
    now = time.time()
    state, reason = says.seen(now)
    others = {
        member.author.hex(): told[member.index].doing
        for member in folder.members
        if member.author and member.index in told
    }
    found = {
        "doing": named(says.doing),
        "since": max(0.0, round(now - says.since, 1)),
        "waiting": [
            {
                "name": named(name_of(one.author)),
                "why": f"it {named(one.why)}" + (f"; it {named(others[one.author])}" if one.author in others else ""),
            }
            for one in says.waiting[:MOST_AWAITED]
        ],
        "state": "" if state == READY else named(state),
    }
    if state in (BEHIND, STALLED):
        found["doing"] = named(reason, 200)
    if says.waiting and says.until is not None:
        found["until"] = round(says.until - now, 1)
    return found | ({"round": says.round} if says.round is not None else {})


def _awaited(folder: Folder, member: Member, place: Place, places: dict[int, Place]) -> list[dict[str, str]]:
    """Who has not spoken yet in the stage, and what is known of why."""
    found = []
    for other in folder.members:
        there = places.get(other.index)
        if other.index == member.index or there is None:
            continue
        if (there.round, there.said) < (place.round, place.said):
            behind = place.round - there.round
            late = f"{behind} round{'s' * (behind > 1)} behind: it " if behind else "it "
            found.append({"name": named(other.name), "why": late + there.reads(folder.stages)})
    if folder.kind == "node":
        spoke = [folder.names.get(author, author[:8]) for author in member.course.names("received_from/")]
        why = "its peers' records of this stage are not all here, and what they do is not known here"
        found += [{"name": named(name), "why": why} for name in spoke[:8]]
    return found


def _chain(folder: Folder) -> dict[str, Any] | None:
    kind = str(folder.config.get("chain", {}).get("endpoint", "none"))
    if kind == "none":
        return None
    rounds = [v for member in folder.members if (v := member.course.last("chain/round")) is not None]
    running = folder.status == "running"  # what was left in the last row is sent before a node ends
    waiting = sum(member.course.last("chain/waiting") or 0 for member in folder.members) if running else 0
    # an address of somebody's endpoint may hold a password
    shown = kind if kind in ("devnet", "anvil") and folder.kind != "simulated" else "simulated"
    if folder.kind != "simulated" and kind not in ("devnet", "anvil"):
        shown = "an endpoint of its own"
    return {"kind": shown, "round": max(rounds, default=None), "waiting": waiting}


def _error(folder: Folder) -> dict[str, str] | None:
    """The last line of a log that says that something is wrong; of all nodes, the one that was written last."""
    found: list[tuple[float, dict[str, str]]] = []
    for home in folder.homes:
        path = home / LOG_FILE
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read(TAIL).decode(errors="replace").splitlines()
            wrong = [line for line in lines if WRONG.search(line)]
            if wrong:
                who = next((member.name for member in folder.members if member.directory == home), home.name)
                found.append((path.stat().st_mtime, {"node": named(who), "text": _sentence(wrong[-1])}))
    return max(found, key=lambda one: one[0])[1] if found else None


def _sentence(line: str) -> str:
    return named(harmless(line)[:160], 160)
