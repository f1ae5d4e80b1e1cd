from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from rlswarm_jax.checkpoint import CheckpointError, Checkpoints
from rlswarm_jax.grpo.learner import TrainState


def state(seed: int, size: int = 3) -> TrainState:
    params = {"layers": [{"q": jax.random.normal(jax.random.key(seed), (size, 2))}], "norm": jax.numpy.ones(2)}
    return TrainState(params, optax.adamw(1e-3).init(params), jax.numpy.int32(seed))


def equal(ours, theirs) -> bool:
    return jax.tree.structure(ours) == jax.tree.structure(theirs) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def test_what_was_saved_comes_back_bit_for_bit_and_in_its_form(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.latest is None
    extra = bytes(range(256)) * 3
    checkpoints.save(4, [state(1), state(2)], extra)
    checkpoints.close()
    again = Checkpoints(tmp_path / "c")
    assert again.latest == 4
    states, found = again.restore(4, [state(8), state(9)])
    assert equal(states, [state(1), state(2)]) and found == extra
    again.close()


def test_only_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.save(step, [state(step)], b"x")
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_checkpoint_of_another_shape_is_an_error_that_says_where(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, [state(1)], b"x")
    checkpoints.close()
    again = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        again.restore(1, [state(1, size=5)])
    again.close()


def test_a_folder_that_cannot_be_made_is_an_error_that_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        Checkpoints(tmp_path / "file" / "c")


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, [state(1)], b"x")
    checkpoints._manager.wait_until_finished()
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=16))
        with pytest.raises(CheckpointError, match=r"No space left on device.*what was there before is whole\.$"):
            checkpoints.save(2, [state(2)], b"y")
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.latest == 1 and equal(again.restore(1, [state(8)])[0], [state(1)])
    again.close()


def test_what_fails_in_the_background_is_said_at_the_close(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def fails():
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']\n" * 9)

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fails)
    with pytest.raises(CheckpointError, match=r"^[^\n]*: No space left on device; what was there before is whole\.$"):
        checkpoints.close()
