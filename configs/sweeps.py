"""The form of a study of many runs, which a config's `get_sweep(variant)` returns beside its `get_config`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sweep:
    """Named points, each played with all seeds.

    points: by name, the fields in which one differs from the config: {"4-4": {"swarm.local_groups": 4}}.
    seeds: of which each is a run. baseline: the point that others are compared with; "": the first.
    """

    points: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    baseline: str = ""
