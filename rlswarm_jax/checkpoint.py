"""Checkpoints of a run: train states and whatever bytes go with them, written whole or not at all (orbax)."""

import errno
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlswarm_jax.grpo.learner import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every save, and pages of what it raises too


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
        """Starts writing in the background. Raises CheckpointError if there is no room, or this or the last failed."""
        items = ocp.args.Composite(
            states=ocp.args.StandardSave(list(states)),
            extra=ocp.args.StandardSave({"bytes": np.frombuffer(extra, np.uint8)}),
        )
        needed = len(extra) + sum(leaf.nbytes for leaf in jax.tree.leaves(list(states)))
        try:
            if shutil.disk_usage(self._directory).free < needed:  # orbax would find out in the middle, in its threads
                raise OSError(errno.ENOSPC, f"No space left on device, {needed / 1e6:.1f} MB are needed")
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._not_written(error) from None

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
        """Waits for what is being written. Raises CheckpointError if it can't be: then the one before is the last."""
        try:
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()
        except (OSError, ValueError) as error:
            raise self._not_written(error) from None

    def _not_written(self, error: Exception) -> CheckpointError:
        """orbax writes aside and renames what is whole; its words are a page, of which the disk's are the last."""
        full = "No space left on device"
        why = (
            error.strerror if isinstance(error, OSError) else full if full in str(error) else str(error).split("\n")[0]
        )
        return CheckpointError(
            f"cannot write a checkpoint to {self._directory}: {why}; what was there before is whole."
        )
