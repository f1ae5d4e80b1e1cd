"""Checkpoints of a run: train states and whatever bytes go with them, written whole or not at all (orbax)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlswarm_jax.grpo.learner import TrainState

logging.getLogger("absl").setLevel(logging.WARNING)  # orbax reports every save


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says where."""


class Checkpoints:
    """The last two checkpoints of a run, each a list of states and a byte string."""

    def __init__(self, directory: Path):
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        if jax.process_count() > 1:  # whoever plays has whole states, and waits for no other process
            alone = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix="checkpoints",
            )
            options = ocp.CheckpointManagerOptions(max_to_keep=2, create=False, multiprocessing_options=alone)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoints to {directory}: {error}.") from None

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, states: Sequence[TrainState], extra: bytes) -> None:
        """Starts writing in the background. Raises CheckpointError if this or the last write failed."""
        items = ocp.args.Composite(
            states=ocp.args.StandardSave(list(states)),
            extra=ocp.args.StandardSave({"bytes": np.frombuffer(extra, np.uint8)}),
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot write a checkpoint to {self._directory}: {error}.") from None

    def restore(self, step: int, like: Sequence[TrainState]) -> tuple[list[TrainState], bytes]:
        """The states, in the form of `like`, and the bytes. Raises CheckpointError if they do not fit it."""
        abstract: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, list(like))
        items = ocp.args.Composite(states=ocp.args.StandardRestore(abstract), extra=ocp.args.StandardRestore())
        try:
            found = self._manager.restore(step, args=items)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"cannot read checkpoint {step} in {self._directory}: {error}.") from None
        for wanted, there in zip(jax.tree.leaves(abstract), jax.tree.leaves(found["states"]), strict=True):
            if wanted.shape != there.shape:
                wrong = f"an array of shape {there.shape} where {wanted.shape} is expected"
                raise CheckpointError(f"checkpoint {step} in {self._directory} is of another model: it holds {wrong}.")
        return found["states"], np.asarray(found["extra"]["bytes"]).tobytes()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
