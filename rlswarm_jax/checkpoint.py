"""Checkpoints of a run: train states and whatever bytes go with them, written whole or not at all (orbax)."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlswarm_jax.grpo.learner import TrainState

log = logging.getLogger("rlswarm_jax.checkpoint")
# what orbax and the libraries below it raise for files that are cut, changed or gone
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every save, and pages of what it raises too


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says where."""


class Restored(NamedTuple):
    """A checkpoint, and how many newer ones were passed over because they are damaged."""

    step: int
    states: list[TrainState]
    extra: bytes
    damaged: int


class Checkpoints:
    """The last checkpoints of a run, each a list of states and a byte string. keep: how many.

    Each has a digest of its own content, so that one which a disk has changed, cut or lost a part of is known for it.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self._directory, self._keep = directory.absolute(), keep
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._steps = sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoints to {directory}: {error}.") from None

    @functools.cached_property
    def _manager(self) -> Any:
        """orbax's; half a second of imports, which a node's first round need not wait for."""
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        if jax.process_count() > 1:  # whoever plays has whole states, and waits for no other process
            alone = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix="checkpoints",
            )
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=False, multiprocessing_options=alone)
        return ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest(self) -> int | None:
        return self._steps[-1] if self._steps else None

    @property
    def needed(self) -> int | None:
        """The oldest one that may still be gone back to; None while there are fewer than are kept.

        Of two at least: the newest may not be whole yet if the process is killed now.
        """
        least = max(2, self._keep)
        return self._steps[-least] if len(self._steps) >= least else None

    def save(self, step: int, states: Sequence[TrainState], extra: bytes) -> None:
        """Starts writing in the background. Raises CheckpointError if there is no room, or this or the last failed."""
        import orbax.checkpoint as ocp

        found = {"bytes": np.frombuffer(extra, np.uint8), "digest": np.frombuffer(_digest(states, extra), np.uint8)}
        items = ocp.args.Composite(states=ocp.args.StandardSave(list(states)), extra=ocp.args.StandardSave(found))
        needed = len(extra) + sum(leaf.nbytes for leaf in jax.tree.leaves(list(states)))
        try:
            if shutil.disk_usage(self._directory).free < needed:  # orbax would find out in the middle, in its threads
                raise OSError(errno.ENOSPC, f"No space left on device, {needed / 1e6:.1f} MB are needed")
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._not_written(error) from None
        self._steps = [*self._steps, step][-max(2, self._keep) :]

    def newest(self, like: Sequence[TrainState], *, repair: bool = False) -> Restored | None:
        """The newest that is as it was saved; None if there is none at all. A damaged one is said in the log.

        repair: move damaged ones aside, so that the run that goes on from an older one can write its own. Raises
        CheckpointError if there are some, and none that fits `like`.
        """
        wrong: list[tuple[int, CheckpointError]] = []
        for step in reversed(self._steps):
            try:
                states, extra = self.restore(step, like)
            except CheckpointError as error:
                wrong.append((step, error))
                continue
            for bad, why in wrong:
                log.error("%s The one before it is used, of step %d.", why, step)
                if repair:
                    self.set_aside(bad)
            return Restored(step, states, extra, len(wrong))
        if wrong:
            raise wrong[0][1]
        return None

    def restore(self, step: int, like: Sequence[TrainState]) -> tuple[list[TrainState], bytes]:
        """The states, in the form of `like`, and the bytes. Raises CheckpointError if damaged, or not of it."""
        import orbax.checkpoint as ocp

        abstract: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, list(like))
        items = ocp.args.Composite(states=ocp.args.StandardRestore(abstract), extra=ocp.args.StandardRestore())
        found = self._restored(step, items)
        for wanted, there in zip(jax.tree.leaves(abstract), jax.tree.leaves(found["states"]), strict=True):
            if wanted.shape != there.shape:
                wrong = f"an array of shape {there.shape} where {wanted.shape} is expected"
                raise CheckpointError(f"checkpoint {step} in {self._directory} is of another model: it holds {wrong}.")
        extra = np.asarray(found["extra"]["bytes"]).tobytes()
        saved = found["extra"].get("digest")  # versions before had none
        if saved is not None and np.asarray(saved).tobytes() != _digest(found["states"], extra):
            raise CheckpointError(f"checkpoint {step} in {self._directory} is damaged: it is not what was written.")
        return found["states"], extra

    def _restored(self, step: int, items: Any) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, UNREADABLE):  # orbax raises that one, too
                raise
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"cannot read checkpoint {step} in {self._directory}: {why}.") from None

    def extra(self, step: int) -> bytes:
        """The bytes alone. Raises CheckpointError."""
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(extra=ocp.args.StandardRestore())
        return np.asarray(self._restored(step, items)["extra"]["bytes"]).tobytes()

    def set_aside(self, step: int) -> None:
        """Out of the way of another one of that step."""
        there, aside = self._directory / str(step), self._directory / f"damaged-{step}"
        for earlier in self._directory.glob("damaged-*"):
            shutil.rmtree(earlier, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            there.rename(aside)
        self._steps.remove(step)
        self._manager.reload()

    def close(self) -> None:
        """Waits for what is being written. Raises CheckpointError if it can't be: then the one before is the last."""
        if "_manager" not in vars(self):
            return
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


class Best:
    """The state that was right most often on held-out problems, of all that were measured: a folder of its own."""

    def __init__(self, directory: Path):
        self._checkpoints, self.accuracy = Checkpoints(directory, keep=1), -1.0
        if (step := self._checkpoints.latest) is not None:
            try:
                self.accuracy = float(json.loads(self._checkpoints.extra(step))["accuracy"])
            except (CheckpointError, ValueError, KeyError, TypeError) as error:
                log.error("the best checkpoint so far can't be read, and the next one takes its place: %s", error)
                self._checkpoints.set_aside(step)

    def offer(self, round_: int, accuracy: float, state: TrainState) -> None:
        """round_: that these weights are about to play. Raises CheckpointError as `Checkpoints.save`."""
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            told = json.dumps({"round": round_, "accuracy": accuracy})
            self._checkpoints.save(round_, [state], told.encode())

    def close(self) -> None:
        """As `Checkpoints.close`."""
        self._checkpoints.close()


def _digest(states: Sequence[TrainState], extra: bytes) -> bytes:
    """SHA-256 over the arrays' bytes, types and shapes, and over `extra`."""
    found = hashlib.sha256(len(extra).to_bytes(8, "big") + extra)
    for leaf in jax.tree.leaves(list(states)):
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.digest()
