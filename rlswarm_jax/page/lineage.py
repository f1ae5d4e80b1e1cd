"""Who learned from whom: how many groups, when, and the very groups with their texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import chdtrc

from rlswarm_jax.page.folder import Folder, Member
from rlswarm_jax.page.rounds import group_view, kept_rounds
from rlswarm_jax.page.rows import Row
from rlswarm_jax.page.texts import named
from rlswarm_jax.page.weigh import Scales
from rlswarm_jax.records.schema import STAGES, Group

MOST_AUTHORS, MOST_BINS = 24, 48
PAGE = 6  # groups at a time
LEVEL = 0.01  # how often shares that are even by chance alone are called uneven, over all learners of a run
FEWEST = 5  # groups that an even share must have, before anything is said of shares (Cochran's rule)
CHOOSING = {  # by config.swarm.choose; `records.pool.Pool.draw` lets authors take turns whatever is chosen
    "turns": "authors take turns, whatever they earned: each gives one group before any gives a second, and who comes "
    "first is by lot",
    "reward": "authors take turns, and in a turn those come first whose group earned most",
    "variety": "authors take turns, and in a turn those come first whose group has the most different completions",
    "useful": "authors take turns, and in a turn those come first whose groups have taught the most, or are not known "
    "well yet",
}


def authors_of(folder: Folder) -> list[str]:
    """The nodes, then whoever else was learned from, those of whom most was first; in hex."""
    own = [member.author.hex() for member in folder.members if member.author]
    counts: dict[str, float] = {}
    for member in folder.members:
        for author, groups in member.course.totals("learned_from/").items():
            counts[author] = counts.get(author, 0) + groups
    others = sorted((a for a in counts if a not in own), key=lambda author: (-counts[author], author))
    return [*own, *others][: max(MOST_AUTHORS, len(own))]


def lineage(folder: Folder) -> dict[str, Any]:
    authors, names, members = authors_of(folder), folder.names, folder.members
    totals = [member.course.totals("learned_from/") for member in members]
    first = min((m.course.rounds[0] for m in members if len(m.course)), default=0)
    last = max((m.course.rounds[-1] for m in members if len(m.course)), default=0)
    width = max(1, -(-(last - first + 1) // MOST_BINS))
    flows = [_flow(member, authors, first, width) for member in members]
    return {
        "learners": [{"index": m.index, "name": named(m.name), "author": m.author.hex()} for m in members],
        "authors": [{"author": author, "name": named(names.get(author, author[:8]))} for author in authors],
        "counts": [[int(total.get(author, 0)) for author in authors] for total in totals],
        "others": [int(sum(v for a, v in total.items() if a not in authors)) for total in totals],
        "own": [int(member.course.total("groups/local")) for member in members],
        "flow": {"first": first, "last": last, "width": width, "learners": flows},
        "why": [_why(folder, member, names) for member in members],
        "choosing": CHOOSING.get(folder.config["swarm"].get("choose", "turns"), ""),
        "drawing": _drawing(folder.config["swarm"]),
        "advantage": Scales(folder.config).says(),
    }


def _drawing(swarm: Mapping[str, Any]) -> str:
    """What a node draws from, in sentences."""
    reads, groups = int(swarm.get("reads", 0)), int(swarm.get("external_groups", 0))
    read = f"records of {reads} authors, drawn anew each round" if reads else "what all its peers send"
    flat = "" if swarm.get("flat") else " in which completions differ in reward: others teach nothing"
    own = int(swarm.get("local_groups", 0))
    fill = f"one for each of {own} places that groups of its own leave empty, as they teach nothing"
    parts = [f"up to {groups} groups"] * bool(groups or not swarm.get("fill")) + [fill] * bool(swarm.get("fill"))
    drawn = ", and ".join(parts)
    return (
        f"A node reads {read}, and scores all of it itself. Each round it draws {drawn}, at most twice an even share "
        f"of one author, from those of the last {int(swarm.get('max_staleness', 4))} rounds{flat}."
    )


def _flow(member: Member, authors: Sequence[str], first: int, width: int) -> list[list[int]]:
    """By author, groups in each span of rounds."""
    found = []
    bins = 1 + (max(member.course.rounds, default=first) - first) // width
    for author in authors:
        counts = [0] * bins
        for round_, groups in member.course.column(f"learned_from/{author}"):
            counts[(round_ - first) // width] += int(groups)
        found.append(counts)
    return found


def _why(folder: Folder, member: Member, names: dict[str, str]) -> dict[str, Any] | None:
    """What is known of why one learned most from whom it did."""
    totals = member.course.totals("learned_from/")
    if not totals or not sum(totals.values()):
        return None
    most = max(totals, key=lambda author: (totals[author], author))
    heard, taught = member.course.totals("received_from/"), member.course.taught.get(most)
    other = folder.of_author(bytes.fromhex(most))
    shares = [totals.get(author, 0.0) for author in totals.keys() | {a for a, records in heard.items() if records}]
    chance = by_chance(shares)
    found = {
        "learner": named(member.name),
        "author": named(names.get(most, most[:8])),
        "hex": most,
        "groups": int(totals[most]),
        "of": int(sum(totals.values())),
        "authors": len(shares),
        "chance": chance,
        "even": chance is None or chance >= LEVEL / len(folder.members),
        "records": int(heard.get(most, 0)),
        "own_reward": _mean(member),
        "their_reward": _mean(other) if other else None,
    }
    if taught:
        found |= {"reward": taught.reward / taught.groups, "stages": dict(taught.stages.most_common())}
    return found


def by_chance(groups: Sequence[float]) -> float | None:
    """How often shares of an even draw are at least as uneven as these; None where there are too few to say.

    groups: of each author. Pearson's chi-square test. Authors who take turns come out more even than an even draw.
    """
    even = sum(groups) / max(1, len(groups))
    if len(groups) < 2 or even < FEWEST:
        return None
    return float(chdtrc(len(groups) - 1, sum((count - even) ** 2 for count in groups) / even))


def _mean(member: Member) -> float | None:
    rewards = [value for _, value in member.course.column("reward/mean")]
    return sum(rewards) / len(rewards) if rewards else None


def lessons(folder: Folder, learner: Member, author: str, before: int | None) -> dict[str, Any]:
    """The groups that a node learned from one author, the newest first, a few at a time.

    before: rounds from there on are left out; the answer's `next` is where the next ones are. author: in hex; of the
    node's own groups "".
    """
    course, found = learner.course, []
    column = dict(course.column(f"learned_from/{author}" if author else "groups/local"))
    rounds = [r for r in sorted(column, reverse=True) if column[r] and (before is None or r < before)]
    scales, following = Scales(folder.config), None
    for place, round_ in enumerate(rounds):
        at = course.place(round_)
        if at is None:
            continue
        row = course.row(at)
        found += [_lesson(folder, learner, author, row, lesson, scales) for lesson in taught_in(row, author)]
        if len(found) >= PAGE and place + 1 < len(rounds):
            following = round_
            break
    return {
        "learner": learner.index,
        "author": author,
        "node": own.index if (own := folder.of_author(bytes.fromhex(author))) else None,
        "name": named(folder.names.get(author, author[:8])) if author else named(learner.name),
        "groups": found,
        "unused": scales.left_out(external=bool(author)),
        "next": following,
    }


def taught_in(row: Row, author: str) -> list[tuple[int, str, int, list[float]]]:
    """Round, stage, index and rewards of what was learned from an author in a round."""
    told = [one for one in row.get("lessons", ()) if one[0] == author and one[5]]
    return [(of, stage, index, rewards) for _, of, stage, index, rewards, _ in told if stage in STAGES]


def _lesson(
    folder: Folder, learner: Member, author: str, row: Row, lesson: tuple[int, str, int, list[float]], scales: Scales
) -> dict[str, Any]:
    of, stage, index, rewards = lesson
    who = bytes.fromhex(author) if author else learner.author
    signed = folder.record(learner, who, of, stage)
    group: Group | None = None
    if signed is not None:
        group = next((one for one in signed.record.groups if one.index == index), None)
    shown = {"learned": row["round"], "round": of, "stage": stage, "index": index, "here": group is not None}
    if group is None:  # a simulation writes its journal some rounds at a time
        shown["soon"] = not folder.over and of > max(kept_rounds(folder, learner), default=-1)
    return shown | group_view(folder, group, stage, rewards, row, scales, external=bool(author), learned=True)
