import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from rlswarm_jax.checkpoint import Best, CheckpointError, Checkpoints
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


class TestDamaged:
    """The one before is used, loudly."""

    @staticmethod
    def three(folder: Path) -> Path:
        """Of larger arrays too, which orbax keeps in files of their own."""
        checkpoints = Checkpoints(folder, keep=3)
        for step in (1, 2, 3):
            checkpoints.save(step, [state(step, size=200_000)], bytes([step]))
        checkpoints.close()
        return folder

    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory) -> Path:
        return self.three(tmp_path_factory.mktemp("checkpoints") / "whole")

    @staticmethod
    def largest(step: Path) -> Path:
        return max((file for file in step.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)

    @staticmethod
    def cut(step: Path) -> None:
        file = TestDamaged.largest(step)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    @staticmethod
    def flip(step: Path) -> None:
        file = TestDamaged.largest(step)
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)

    @staticmethod
    def lose(step: Path) -> None:
        TestDamaged.largest(step).unlink()

    @staticmethod
    def cut_the_index(step: Path) -> None:
        (step / "states" / "_METADATA").write_text("{")

    @staticmethod
    def half_an_item(step: Path) -> None:
        shutil.rmtree(step / "extra")

    @staticmethod
    def empty(step: Path) -> None:
        shutil.rmtree(step)
        step.mkdir()

    @pytest.mark.parametrize("how", ["cut", "flip", "lose", "cut_the_index", "half_an_item", "empty"])
    def test_the_one_before_is_used(self, whole, tmp_path, caplog, how):
        folder = tmp_path / "c"
        shutil.copytree(whole, folder)
        getattr(self, how)(folder / "3")
        checkpoints, like = Checkpoints(folder, keep=3), [state(9, size=200_000)]
        with caplog.at_level(logging.ERROR):
            found = checkpoints.newest(like)  # who only looks changes nothing
        assert found is not None and (found.step, found.extra, found.damaged) == (2, b"\2", 1)
        assert equal(found.states, [state(2, size=200_000)]) and (folder / "3").exists()
        assert f"checkpoint 3 in {folder}" in caplog.text and "The one before it is used, of step 2." in caplog.text
        assert checkpoints.newest(like, repair=True).step == 2
        checkpoints.save(3, [state(5, size=200_000)], b"again")  # the run comes to that step again
        checkpoints.close()
        again = Checkpoints(folder, keep=3)
        found = again.newest(like)
        assert (found.step, found.extra, found.damaged) == (3, b"again", 0) and (folder / "damaged-3").exists()
        again.close()

    def test_bytes_that_still_decode_are_known_by_their_digest(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, [state(1)], b"x")
        checkpoints._manager.wait_until_finished()
        restored = checkpoints._manager.restore

        def other(step, args):
            found = restored(step, args=args)
            if "states" in found:
                found["states"][0].params["norm"] = found["states"][0].params["norm"].at[1].add(1e-7)
            return found

        monkeypatch.setattr(checkpoints._manager, "restore", other)
        with pytest.raises(CheckpointError, match="is damaged: it is not what was written"):
            checkpoints.newest([state(9)])
        checkpoints.close()

    def test_where_none_is_whole_it_is_an_error_and_nothing_is_moved(self, whole, tmp_path):
        folder = tmp_path / "c"
        shutil.copytree(whole, folder)
        for step in ("1", "2", "3"):
            self.cut(folder / step)
        checkpoints = Checkpoints(folder, keep=3)
        with pytest.raises(CheckpointError, match="checkpoint 3"):
            checkpoints.newest([state(9, size=200_000)], repair=True)
        assert {path.name for path in folder.iterdir()} == {"1", "2", "3"}
        checkpoints.close()


def test_as_many_are_kept_as_one_wants_and_a_run_keeps_what_leads_from_the_oldest(tmp_path):
    for keep, needed in {1: [None, 1, 2, 3], 2: [None, 1, 2, 3], 3: [None, None, 1, 2]}.items():
        checkpoints = Checkpoints(tmp_path / str(keep), keep)
        found = []
        for step in range(1, 5):
            checkpoints.save(step, [state(step)], b"x")
            found.append(checkpoints.needed)
        checkpoints.close()
        assert sorted(path.name for path in (tmp_path / str(keep)).iterdir()) == [str(s) for s in range(5 - keep, 5)]
        assert found == needed
        again = Checkpoints(tmp_path / str(keep), keep)
        assert again.latest == 4 and again.needed in (needed[-1], None)
        again.close()


def test_the_best_is_the_first_of_the_highest_accuracy_across_restarts(tmp_path, caplog):
    def stored() -> tuple[int, list[TrainState]]:
        checkpoints = Checkpoints(tmp_path / "best", keep=1)
        found = checkpoints.newest([state(9)])
        checkpoints.close()
        return found.step, found.states

    for offers in ([(0, 0.25), (20, 0.5), (40, 0.4)], [(60, 0.5), (80, 0.75)], [(100, 0.1)]):
        best = Best(tmp_path / "best")
        for round_, accuracy in offers:
            best.offer(round_, accuracy, state(round_))
        best.close()
    assert stored()[0] == 80 and equal(stored()[1], [state(80)])
    shutil.rmtree(tmp_path / "best" / "80" / "extra")
    best = Best(tmp_path / "best")
    assert "the best checkpoint so far can't be read" in caplog.text
    best.offer(80, 0.2, state(3))
    best.close()
    assert stored()[0] == 80 and equal(stored()[1], [state(3)])
