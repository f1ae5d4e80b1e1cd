"""What the nodes of a run have learned: whose checkpoints are where, and the newest of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import BEST_FOLDER, CHECKPOINT_FOLDER, METRICS_FILE, node_folders
from rlswarm_jax.metrics import read_rows

if TYPE_CHECKING:  # it loads jax, which names and folders do without
    from rlswarm_jax.grpo.learner import TrainState


@dataclasses.dataclass(frozen=True)
class Trained:
    """A node of a run: its name, the folder of its checkpoints, and which of the states in them are its own."""

    name: str
    folder: Path
    index: int


def nodes_of(run: Path, config: ml_collections.ConfigDict) -> list[Trained]:
    """The nodes of a run: of processes with a folder each, or all in this one."""
    if own := node_folders(run):
        return [Trained(_names(path).get(0, path.name), path, 0) for path in own]
    names, count = _names(run), config.swarm.nodes if config.driver == "simulate" else 1
    return [Trained(names.get(node, f"node-{node}"), run, node) for node in range(count)]


def _names(directory: Path) -> dict[int, str]:
    """What its metrics call the nodes, by their number in this folder."""
    path = directory / METRICS_FILE
    return {row["node"]: row["name"] for row in read_rows(path)} if path.exists() else {}


def choose(nodes: Sequence[Trained], name: str | None, run: Path) -> Trained:
    """The node of that name or number, or the first. Raises UsageError that lists the names."""
    for number, node in enumerate(nodes):
        if name in (None, node.name, str(number), f"node-{number}"):
            return node
    raise UsageError(f"{run} has no node {name!r}; its nodes are {', '.join(node.name for node in nodes)}.")


def load_states(directory: Path, like: "TrainState", nodes: int, best: bool = False) -> "list[TrainState]":
    """The newest states of all nodes of a run, simulated (one checkpoint) or live (one of each node).

    best: instead of the newest, those that were right most often on held-out problems. Raises UsageError or
    CheckpointError if they are not there, or of another model.
    """
    own = node_folders(directory)
    if own and len(own) != nodes:
        raise UsageError(f"{directory} is a run of {len(own)} nodes; set --config.swarm.nodes={len(own)}.")
    if best:
        places = [path / BEST_FOLDER / "0" for path in own]
        places = places or [directory / BEST_FOLDER / str(node) for node in range(nodes)]
        if not all(place.is_dir() for place in places):
            asked = "a run keeps it with --config.checkpoints.best=True, from its first evaluation on"
            raise UsageError(f"{directory} has no best checkpoint of each node: {asked}.")
        return [state for place in places for state in _newest(place, [like])]
    if not own:
        return _newest(directory / CHECKPOINT_FOLDER, [like] * nodes)
    return [state for path in own for state in _newest(path / CHECKPOINT_FOLDER, [like])]


def _newest(folder: Path, like: "Sequence[TrainState]") -> "list[TrainState]":
    if not folder.is_dir():
        raise UsageError(f"{folder.parent} has no checkpoints: give --checkpoint the folder of a run.")
    from rlswarm_jax.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder)
    try:
        if (found := checkpoints.newest(like)) is None:
            raise UsageError(f"{folder.parent} has no complete checkpoint yet.")
        return found.states
    finally:
        checkpoints.close()
