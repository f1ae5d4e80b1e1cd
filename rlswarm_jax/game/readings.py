"""What records say, read once for all nodes of a process: in a simulation each reads what all others write."""

import collections
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from rlswarm_jax.game.stages import Sheet

Read = TypeVar("Read")
VARIANTS = 4  # of what a record's readers have heard of those that it answers to


class Readings(Generic[Read]):
    """The latest `records` that were read, and what came of it. Nobody may change what they are given.

    Reading is pure: it follows from the record, the rules, how its reader reads (together the key), and from what the
    records said that it answers to, as the reader heard them (parents; None for one that they did not hear).
    """

    def __init__(self, records: int):
        self._most = records
        self._known: collections.OrderedDict[Hashable, list[tuple[Sequence[Sheet | None], Read]]] = (
            collections.OrderedDict()
        )

    def of(self, key: Hashable, parents: Sequence[Sheet | None], read: Callable[[], Read]) -> Read:
        """What was read before, or is now."""
        variants = self._known.setdefault(key, [])
        self._known.move_to_end(key)
        for heard, found in variants:
            if heard == parents:
                return found
        variants.append((parents, read()))
        del variants[:-VARIANTS]
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return variants[-1][1]
