"""What a node can learn from: groups of completions it has scored itself."""

import dataclasses
from collections.abc import Iterable

import msgspec

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


@dataclasses.dataclass(frozen=True)
class Pool:
    """Peers' groups with an advantage, not yet learned from. A value: every operation gives a new pool."""

    groups: tuple[ScoredGroup, ...] = ()
    capacity: int = 1024

    def add(self, groups: Iterable[ScoredGroup]) -> "Pool":
        """With more groups; those without an advantage are left out, the oldest go when it is full."""
        known = {group.slot: group for group in self.groups}
        known |= {group.slot: group for group in groups if group.has_advantage}
        kept = [known[slot] for slot in sorted(known)]
        return dataclasses.replace(self, groups=tuple(kept[max(0, len(kept) - self.capacity) :]))

    def expire(self, oldest_round: int) -> "Pool":
        """Without groups from before `oldest_round`."""
        return dataclasses.replace(self, groups=tuple(g for g in self.groups if g.round >= oldest_round))

    def draw(self, count: int, *fields: randomness.Field) -> tuple[list[ScoredGroup], "Pool"]:
        """Up to `count` groups without replacement, and the pool without them.

        The draw is a function of the *set* of groups and of `fields`: a group's rank is the hash of its slot with
        them. Its content has no say, so an author cannot grind it, and rounding cannot change who is learned from.
        """
        ranked = sorted(self.groups, key=lambda group: randomness.digest("pool", *fields, *group.slot))
        chosen = ranked[:count]
        slots = {group.slot for group in chosen}
        rest = tuple(group for group in self.groups if group.slot not in slots)
        return chosen, dataclasses.replace(self, groups=rest)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode((self.capacity, self.groups))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Pool":
        capacity, groups = msgspec.msgpack.decode(raw, type=tuple[int, tuple[ScoredGroup, ...]])
        return cls(groups, capacity)
