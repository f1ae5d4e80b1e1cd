"""What was learned: held-out accuracy, reward, by task and by stage, and the swarm beside nodes alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlswarm_jax.evaluation import wilson
from rlswarm_jax.files import ALONE, ALONE_FOLDER, METRICS_FILE
from rlswarm_jax.page.folder import Folder, Member
from rlswarm_jax.page.rows import Log, averaged, recent, thinned
from rlswarm_jax.page.texts import named

MOST_LINES = 32  # nodes that have a line of their own
GAME = {
    "game/first": "first answer",
    "game/vote": "the critics' vote",
    "game/revised": "revised answer",
    "critique/best": "contested: critic names a best",
    "critique/first": "contested: always the first",
}
STAGES = {"reward/mean": "answers", "critique/reward/mean": "critiques", "revise/reward/mean": "revisions"}


def measured(member: Member, metric: str = "accuracy") -> list[tuple[int, float]]:
    """(rounds learned from by then, value) wherever it was measured."""
    final = [(r + 1, v) for r, v in member.course.column(f"final/{metric}")]
    return member.course.column(f"held_out/{metric}") + final


def learning(folder: Folder) -> dict[str, Any]:
    members, problems = folder.members, int(folder.config.get("evaluation", {}).get("problems", 0))
    curves = [measured(member) for member in members]
    swarm = averaged(curves)
    tasks = sorted({task for member in members for task in member.course.names("held_out/accuracy/")})
    return {
        "held_out": {
            "problems": problems,
            "lines": [_line(m.name, curve) for m, curve in zip(members, curves, strict=True)][:MOST_LINES],
            "mean": thinned(swarm),
            "base": _base(folder),
            "ends": [_end(member, curve, problems) for member, curve in zip(members, curves, strict=True)],
        },
        "reward": {
            "lines": [{"name": named(m.name), "points": recent(m.course.column("reward/mean"), 120)} for m in members][
                :MOST_LINES
            ],
        },
        "stages": [_averaged(members, name, label) for name, label in STAGES.items()],
        "game": [_averaged(members, name, label) for name, label in GAME.items()],
        "tasks": [
            {"name": named(task), "points": thinned(averaged(measured(m, f"accuracy/{task}") for m in members))}
            for task in tasks
        ],
        "alone": (alone := _alone(folder, swarm)),
        "sharing": _sharing(alone, problems),
        "teaching": {
            "live": _averaged(members, "reward/zero_advantage_fraction", "groups that teach nothing"),
            "entropy": _averaged(members, "learn/entropy", "entropy of what is sampled, nats a token"),
        },
    }


def _sharing(alone: Sequence[Mapping[str, Any]], problems: int) -> str:
    """Whether the swarm does better than nodes alone, after the last round at which all were measured; and sooner."""
    curves = [dict(one["points"]) for one in alone]
    common = set.intersection(*map(set, curves)) - {0.0} if curves else set()
    if not common:
        return ""
    last = max(common)
    swarm, *others = (curve[last] for curve in curves)
    said, times = [], [_reached(curves[0], swarm / 2)]
    for one, curve, value in zip(alone[1:], curves[1:], others, strict=True):
        how = "within chance of it" if alike(swarm, value, problems) else "less" if swarm > value else "more"
        said.append(f"a node {one['name']}, {100 * value:.1f} % ({how})")
        times.append(f"of a node {one['name']} {_reached(curve, swarm / 2)}")
    return (
        f"After {last:.0f} rounds a node of the swarm is right on {100 * swarm:.1f} % of the held-out problems; "
        f"{'; '.join(said)}. Half of that was first measured {'; '.join(times)}. "
        "It is one run of each: how much that differs from run to run is not known here."
    )


def alike(one: float, other: float, problems: int) -> bool:
    """Whether two proportions may be the same: 0 is in the 95 % interval of their difference (Newcombe 1998)."""
    if not problems:
        return one == other
    (low, high), (least, most) = wilson(one, problems), wilson(other, problems)
    gap = one - other
    return gap - math.hypot(one - low, most - other) <= 0 <= gap + math.hypot(high - one, other - least)


def _reached(curve: Mapping[float, float], level: float) -> str:
    rounds = [round_ for round_, value in sorted(curve.items()) if round_ and value >= level]
    return f"after {rounds[0]:.0f} rounds" if rounds else "never"


def _line(name: str, curve: Sequence[tuple[int, float]], most: int = 240) -> dict[str, Any]:
    return {"name": named(name), "points": thinned(curve, most)}


def _averaged(members: Sequence[Member], column: str, label: str) -> dict[str, Any]:
    return {"name": label, "points": recent(averaged(member.course.column(column) for member in members))}


def _end(member: Member, curve: Sequence[tuple[int, float]], problems: int) -> dict[str, Any]:
    """Before and after, with 95 % Wilson intervals."""
    before, after = (curve[0][1], curve[-1][1]) if curve else (None, None)
    return {
        "name": named(member.name),
        "before": before,
        "after": after if len(curve) > 1 else None,
        "interval": list(wilson(after, problems)) if after is not None and len(curve) > 1 and problems else None,
        "rounds": curve[-1][0] if curve else 0,
    }


def _base(folder: Folder) -> float | None:
    found = (folder.summary or {}).get("held_out_accuracy")
    return found.get("base") if isinstance(found, dict) else None


def _alone(folder: Folder, swarm: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    found = []
    for kind, label in ALONE.items():
        log = Log(folder.directory / ALONE_FOLDER / kind / METRICS_FILE)
        log.refresh()
        alone = [Member(index, index, log.path.parent, b"", course) for index, course in log.courses.items()]
        if alone:
            found.append({"name": label, "points": thinned(averaged(map(measured, alone)))})
    return [{"name": "this swarm", "points": thinned(swarm)}, *found] if found else []
