"""What a group of completions did to the loss: its advantages, and the part of the loss that they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlswarm_jax.grpo.presets import PRESETS, resolved
from rlswarm_jax.page.rows import Row
from rlswarm_jax.records.schema import STAGES

EPS = 1e-6
ADVANTAGE = {  # by the loss's `advantage`
    "std": "its reward less the mean of its group, divided by the standard deviation of the group (GRPO)",
    "none": "its reward less the mean of its group, not divided by the group's spread (Dr. GRPO)",
    "leave_one_out": "its reward less the mean of the others of its group, not divided by their spread (RLOO)",
    "pass_at_k": "what it adds to the best of {k} that are drawn from its group, less the mean of such draws, divided "
    "by their standard deviation (pass@k)",
}


def advantages(rewards_G: Sequence[float], how: str, pass_k: int) -> list[float]:
    """As `grpo.advantages.group_advantages` of one group, in NumPy alone and float64."""
    rewards = np.array(rewards_G, np.float64)
    if how == "pass_at_k":
        return _pass_at_k(rewards, pass_k).tolist()
    centred = rewards - rewards.mean()
    if how == "leave_one_out":
        centred *= len(rewards) / (len(rewards) - 1)
    scale = rewards.std() + EPS if how == "std" else 1.0
    return (np.zeros_like(rewards) if np.ptp(rewards) == 0 else centred / scale).tolist()


def _pass_at_k(rewards: np.ndarray, k: int) -> np.ndarray:
    """Of the best of each choice of k: the mean over choices that one is in, less that of all, over their deviation."""
    size, order = len(rewards), np.argsort(rewards, kind="stable")
    ranked = rewards[order]
    best = np.array([math.comb(j, k - 1) / math.comb(size, k) for j in range(size)])
    mean = ranked @ best
    deviation = math.sqrt(best @ (ranked - mean) ** 2)
    found = np.empty(size)
    for place in range(size):
        # one is the best of its choice with k - 1 below it; else the best is another, above it
        value = math.comb(place, k - 1) * ranked[place]
        value += sum(math.comb(j - 1, k - 2) * ranked[j] for j in range(place + 1, size) if k > 1)
        found[order[place]] = value / math.comb(size - 1, k - 1)
    return (found - mean) / (deviation + EPS)


class Scales:
    """How a config's loss weighs completions. Whatever is not known (another version's config) is None then."""

    def __init__(self, config: Mapping[str, Any]):
        self._learn: dict[str, Any] = {}
        learn = config.get("learn", {})
        if learn.get("loss") in PRESETS:
            self._learn = resolved(learn)
        self._weights = dict(zip(STAGES, config.get("game", {}).get("weights", (1.0, 1.0, 1.0)), strict=False))
        self._most = int(config.get("sampling", {}).get("max_new_tokens", 0))

    def says(self) -> str:
        """What an advantage is in this run; "" where its loss is of another version."""
        if not self._learn:
            return ""
        found = ADVANTAGE[self._learn["advantage"]].format(k=self._learn.get("pass_k", 4))
        if self._learn.get("overlong_buffer"):
            found += ", where completions that come near the longest length earn less than is shown"
        if any(weight != 1 for weight in self._weights.values()):
            found += f", times its stage's weight ({', '.join(f'{s} {w:g}' for s, w in self._weights.items())})"
        return f"A completion's advantage is {found}."

    def left_out(self, *, external: bool) -> str:
        """Which completions of groups that were learned from took no part, and why; "" if all did."""
        whose = "external" if external else "local"
        if not self._learn.get(f"positive_only_{whose}"):
            return ""
        of = "peers'" if external else "its own"
        return f"Of {of} completions a node learns from those alone that earned more than their group's mean."

    def advantages(self, stage: str, rewards: Sequence[float]) -> list[float] | None:
        """Of a group's completions, times its stage's weight; None where lengths have a part in it."""
        if not self._learn or self._learn.get("overlong_buffer"):
            return None
        found = advantages(rewards, self._learn["advantage"], int(self._learn.get("pass_k", 4)))
        return [round(self._weights.get(stage, 1.0) * value, 4) for value in found]

    def part(self, row: Row, external: bool, advantages_G: Sequence[float] | None, lengths_G: Sequence[int]) -> Any:
        """What the group adds to the round's loss as the update begins, where all ratios are 1; None if not known.

        All groups' together are `learn/loss`, where there was one update and nothing but the surrogate in the loss.
        """
        tokens, rows = row.get("learn/tokens", 0), row.get("learn/rows_local", 0) + row.get("learn/rows_external", 0)
        how = self._learn.get("aggregation")
        left_out = row.get("learn/unlikely_fraction", 0) or row.get("learn/low_ess_groups", 0)  # it isn't known of whom
        if advantages_G is None or not tokens or not rows or left_out or self._learn.get("mask_truncated", False):
            return None
        positive = self._learn.get(f"positive_only_{'external' if external else 'local'}", False)
        kept = [(a, n) for a, n in zip(advantages_G, lengths_G, strict=True) if not (positive and a <= 0)]
        if how == "tokens":
            return -sum(a * n for a, n in kept) / tokens
        if how == "sequences":
            return -sum(a for a, _ in kept) / rows
        return -sum(a * n for a, n in kept) / (rows * self._most) if how == "constant" and self._most else None

    def learned(self, external: bool, advantages_G: Sequence[float] | None) -> list[bool] | None:
        """Which completions took part."""
        if advantages_G is None:
            return None
        positive = self._learn.get(f"positive_only_{'external' if external else 'local'}", False)
        return [not (positive and advantage <= 0) for advantage in advantages_G]
