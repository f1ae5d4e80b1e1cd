"""Whom a node learns from first: how useful what its peers offered has been, and what else a group can be worth."""

import collections
import math
from collections.abc import Callable, Iterable, Mapping

import msgspec

from rlswarm_jax.records.pool import ScoredGroup

DISCOUNT = 0.95  # of what was seen a round ago
BONUS = 0.5  # of what is not known well
MOST = 256  # authors that are remembered: keys are free to make


class Teacher(msgspec.Struct, array_like=True, frozen=True):
    """Of one author, discounted sums: groups seen, and those of them that taught something."""

    groups: float = 0.0
    useful: float = 0.0


class Teachers(msgspec.Struct, array_like=True, frozen=True):
    """By author; a value. Which peers to try is a bandit: the discounted upper confidence bound of arXiv:0805.3415."""

    known: Mapping[bytes, Teacher] = {}

    def seen(self, groups: Iterable[ScoredGroup]) -> "Teachers":
        """After a round in which these were offered; all that was seen before counts a little less."""
        offered = collections.Counter[bytes]()
        useful = collections.Counter[bytes]()
        for group in groups:
            offered[group.author] += 1
            useful[group.author] += group.has_advantage
        found = {}
        for author in self.known.keys() | offered.keys():
            before = self.known.get(author, Teacher())
            found[author] = Teacher(
                DISCOUNT * before.groups + offered[author], DISCOUNT * before.useful + useful[author]
            )
        most = sorted(found.items(), key=lambda item: (-item[1].groups, item[0]))[:MOST]
        return Teachers(dict(sorted(most)))

    def bound(self, author: bytes) -> float:
        """The most that a group of an author is likely to be worth; whoever is not known is taken for the average."""
        total = sum(teacher.groups for teacher in self.known.values())
        if not total:
            return 0.0
        average = sum(teacher.useful for teacher in self.known.values()) / total
        teacher = self.known.get(author, Teacher())
        groups = 1 + teacher.groups
        return (average + teacher.useful) / groups + BONUS * math.sqrt(math.log(1 + total) / groups)


# by config.swarm.choose: what is taken first, of equal worth by chance
WORTH: Mapping[str, Callable[[Teachers], Callable[[ScoredGroup], float]]] = {
    "turns": lambda teachers: lambda group: 0.0,
    "reward": lambda teachers: lambda group: group.reward,
    "variety": lambda teachers: lambda group: group.variety,
    "useful": lambda teachers: lambda group: teachers.bound(group.author),
}
