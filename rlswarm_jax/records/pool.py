"""What a node can learn from: groups of completions it has scored itself."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable

import msgspec
import numpy as np

from rlswarm_jax import randomness


class ScoredGroup(msgspec.Struct, array_like=True, frozen=True):
    """A group with the rewards *this* node gave it.

    author, round, stage, index: which of the author's prompts it answers; there is one record for each of the first
    three. logprobs: None where the author's behaviour log-probs cannot be used (another tokenizer). weight: of its
    advantages.
    """

    author: bytes
    round: int
    index: int
    external: bool
    prompt: list[int]
    tokens: list[list[int]]
    logprobs: list[list[float]] | None
    rewards: list[float]
    stage: str = "answer"
    weight: float = 1.0

    @property
    def slot(self) -> tuple[int, bytes, str, int]:
        """What names the group, oldest first."""
        return self.round, self.author, self.stage, self.index

    @property
    def has_advantage(self) -> bool:
        """Whether the completions differ in reward, and it counts: other groups teach nothing."""
        return self.weight > 0 and max(self.rewards) > min(self.rewards)

    @property
    def reward(self) -> float:
        """Mean over the completions."""
        return float(np.mean(self.rewards))

    @property
    def variety(self) -> float:
        """Of the completions, the share that are each a text of their own."""
        return len(set(map(tuple, self.tokens))) / len(self.tokens)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Peers' groups with an advantage, not yet learned from. A value: every operation gives a new pool."""

    groups: tuple[ScoredGroup, ...] = ()
    capacity: int = 1024

    def add(self, groups: Iterable[ScoredGroup], flat: bool = False) -> "Pool":
        """With more groups; those without an advantage are left out, unless `flat` ones are wanted.

        When it is full, the oldest of whoever has most in it go: who sends many crowds out none but themselves.
        """
        known = {group.slot: group for group in self.groups}
        known |= {group.slot: group for group in groups if flat or group.has_advantage}
        newest = sorted(known.values(), key=lambda group: (-group.round, _chance(group.slot)))
        kept = sorted(_in_turns(newest)[: self.capacity], key=lambda group: group.slot)
        return dataclasses.replace(self, groups=tuple(kept))

    def expire(self, oldest_round: int) -> "Pool":
        """Without groups from before `oldest_round`."""
        return dataclasses.replace(self, groups=tuple(g for g in self.groups if g.round >= oldest_round))

    def without(self, authors: Collection[bytes]) -> "Pool":
        return dataclasses.replace(self, groups=tuple(g for g in self.groups if g.author not in authors))

    def draw(
        self,
        count: int,
        *fields: randomness.Field,
        most: int | None = None,
        until: float = math.inf,
        worth: Callable[[ScoredGroup], float] = lambda group: 0.0,
    ) -> tuple[list[ScoredGroup], "Pool"]:
        """Up to `count` groups without replacement, up to `most` of them of one author, and the pool without them.

        until: the newest round that is drawn from. worth: what is taken first; of equal worth, by chance.

        Authors take turns: each gives a group before any gives another, so what an author offers, be it ever so much,
        is drawn no oftener than what the others do. The draw is a function of the *set* of groups and of `fields`:
        authors and each one's groups are ranked by a hash of what names them. Unless `worth` looks at it, what a group
        says has no part in it, so nobody can grind it, and rounding cannot change who is learned from.
        """

        authors = {group.author for group in self.groups}
        ranks = {author: randomness.digest("pool", *fields, "author", author) for author in authors}

        def rank(group: ScoredGroup) -> tuple[float, bytes, bytes]:
            return -worth(group), ranks[group.author], randomness.digest("pool", *fields, *group.slot)

        ranked = sorted((group for group in self.groups if group.round <= until), key=rank)
        chosen = _in_turns(ranked, most)[:count]
        slots = {group.slot for group in chosen}
        rest = tuple(group for group in self.groups if group.slot not in slots)
        return chosen, dataclasses.replace(self, groups=rest)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode((self.capacity, self.groups))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Pool":
        capacity, groups = msgspec.msgpack.decode(raw, type=tuple[int, tuple[ScoredGroup, ...]])
        return cls(groups, capacity)


@functools.lru_cache(maxsize=1 << 14)
def _chance(slot: tuple) -> bytes:
    return randomness.digest("pool", *slot)


def _in_turns(groups: Iterable[ScoredGroup], most: int | None = None) -> list[ScoredGroup]:
    """Everybody's first, then everybody's second, and so on up to `most`; otherwise in the order given."""
    turns = collections.defaultdict[int, list[ScoredGroup]](list)
    given = collections.Counter[bytes]()
    for group in groups:
        turns[given[group.author]].append(group)
        given[group.author] += 1
    return [group for turn in sorted(turns)[:most] for group in turns[turn]]
