"""A node shows the weights of its last rounds, within bounds and after any kill; an auditor finds what is wrong."""

import errno
import hashlib
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.audit import archive, patches
from rlswarm_jax.audit.archive import Archive
from rlswarm_jax.audit.patches import PatchError
from rlswarm_jax.audit.shown import MOST, NotHereError, Shown, assemble
from rlswarm_jax.errors import UsageError
from rlswarm_jax.qwen import tensors_hash
from tests.audit.test_patches import changed, drawn
from tests.qwen.test_naming import same

SHAPES = {"embed": (60, 40), "norm": (40,), "up": (40, 50)}
WHOLE = 2 * (2400 + 40 + 2000) + 200  # bytes, about


def versions(count, entries=30, dtype="BF16", seed=0):
    """Weights of which each differs from the one before in some entries: sparse patches of about 150 bytes."""
    rng, found = np.random.default_rng(seed), [drawn(dtype, **SHAPES)]
    for number in range(1, count):
        at = rng.choice(4440, min(entries, 4440), replace=False).tolist()
        found.append(changed(found[-1], at, seed=number))
    return found


def noise(count):
    """Weights of which each is a whole patch."""
    return [drawn("F32", seed=seed, **SHAPES) for seed in range(count)]


def filled(folder, weights, max_bytes=1 << 30, keep=1000):
    made = Archive(folder, max_bytes, keep)
    for round_, tensors in enumerate(weights):
        assert made.add(tensors, round_) == tensors_hash(tensors)
    return made


def fetched(made, part):
    """As an auditor fetches it, in ranges."""
    pieces = [made.read(part.hash, start, 100) for start in range(0, part.size, 100)]
    raw = b"".join(pieces)
    assert (hashlib.sha256(raw).digest(), len(raw)) == (part.hash, part.size)
    assert made.read(part.hash, part.size, 100) == b""
    return raw


def shows(made, tensors, shown=None):
    """Whether these weights can be had from it, bit by bit."""
    shown, name = shown or Shown(1 << 30), tensors_hash(tensors)
    path = made.path(name, shown.names)
    if not path:
        return False
    assert same(assemble([fetched(made, part) for part in path], shown, name), tensors)
    return True


def stored(made):
    """Bytes that it takes."""
    folder = getattr(made._store, "_folder", None)
    if folder is None:
        return sum(map(len, made._store._patches.values()))
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return tmp_path / "weights" if request.param == "disk" else None


class TestShowing:
    @pytest.mark.parametrize("weights", [versions(12), noise(3)], ids=["sparse", "whole"])
    def test_all_that_is_kept_can_be_shown(self, folder, weights):
        made = filled(folder, weights)
        assert all(shows(made, tensors) for tensors in weights)
        assert made.unkept == made.damaged == 0

    def test_whoever_has_seen_some_gets_less(self, folder):
        weights = versions(10)
        made, shown = filled(folder, weights), Shown(1 << 30)
        assert shows(made, weights[2], shown)
        path = made.path(tensors_hash(weights[8]), shown.names)
        assert len(path) == 6 and path[0].parent == tensors_hash(weights[2])
        assert sum(part.size for part in path) < WHOLE / 4
        assert shows(made, weights[8], shown) and made.path(tensors_hash(weights[8]), shown.names) == []

    def test_what_never_was_can_not(self, folder):
        made = filled(folder, versions(3))
        assert made.path(bytes(32), []) == [] and made.read(bytes(32), 0, 100) == b""

    def test_the_same_weights_again_are_not_written(self, folder):
        weights = versions(3)
        made = filled(folder, weights)
        before = stored(made), made.path(tensors_hash(weights[2]), [])
        for round_ in range(3, 9):
            made.add(weights[2], round_)
            made.add(weights[1], round_)  # of a node that went back to a checkpoint
        assert (stored(made), made.path(tensors_hash(weights[2]), [])) == before

    def test_after_going_back_the_next_stands_on_what_it_came_from(self, folder):
        weights = versions(4)
        made = filled(folder, weights)
        made.add(weights[1], 4)
        other = changed(weights[1], [5, 6, 7], seed=9)
        made.add(other, 5)
        assert made.path(tensors_hash(other), [tensors_hash(weights[1])])[0].parent == tensors_hash(weights[1])
        assert all(shows(made, tensors) for tensors in [*weights, other])

    def test_what_the_learner_writes_over_later_stays_as_it_was(self, folder):
        first, second = versions(2)
        mine = {name: array.copy()[...] for name, array in first.items()}  # views, as those of a device's memory
        made = Archive(folder, 1 << 30, 1000)
        made.add(mine, 0)
        for name in mine:
            mine[name][...] = second[name]
        made.add(second, 1)
        assert shows(made, first) and shows(made, second)


class TestBounds:
    def test_nobody_is_sent_more_than_two_wholes_whatever_they_have(self):
        weights = versions(150, entries=200)
        made = filled(None, weights)
        for have in ([], [tensors_hash(weights[70])], [tensors_hash(weights[148])]):
            for tensors in weights[1:]:
                path = made.path(tensors_hash(tensors), have)
                if tensors_hash(tensors) not in have:
                    assert 0 < len(path) <= archive.MAX_PARTS and sum(part.size for part in path) <= 2 * WHOLE
        assert stored(made) < 150 * WHOLE / 4

    def test_no_chain_is_longer_than_it_may_be(self):
        weights = versions(100, entries=1)
        made = filled(None, weights)
        paths = [made.path(tensors_hash(tensors), []) for tensors in weights]
        assert max(map(len, paths)) == archive.LONGEST + 1
        assert [path[0].weights for path in paths[1:]] == [
            tensors_hash(weights[number // (archive.LONGEST + 1) * (archive.LONGEST + 1)]) for number in range(1, 100)
        ]
        assert len(made.path(tensors_hash(weights[90]), [tensors_hash(weights[30])])) == 60
        assert len(made.path(tensors_hash(weights[98]), [tensors_hash(weights[30])])) == 33  # 68 would be too many

    def test_nor_more_work(self, monkeypatch):
        """Steps of one rounding everywhere take few bytes and all the time of a whole."""
        weights = [drawn("BF16", **SHAPES)]
        for _ in range(20):
            bits = {name: array.view(np.uint16) + np.uint16(1) for name, array in weights[-1].items()}
            weights.append({name: array.view(weights[0][name].dtype) for name, array in bits.items()})
        made = filled(None, weights)
        paths = [made.path(tensors_hash(tensors), []) for tensors in weights]
        assert {part.changed for path in paths for part in path} == {4440}
        assert max(map(len, paths)) == 1 + archive.MAX_CHANGES and all(shows(made, tensors) for tensors in weights)

    @pytest.mark.parametrize("make", [versions, noise])
    def test_rounds(self, folder, make):
        weights = make(9)
        made = filled(folder, weights, keep=4)
        assert [shows(made, tensors) for tensors in weights[5:]] == [True] * 4
        if make is noise:
            assert not any(shows(made, tensors) for tensors in weights[:5]) and stored(made) < 4.1 * 2 * WHOLE

    def test_weights_are_of_every_round_they_were_used_in(self, folder):
        weights = noise(4)
        made = Archive(folder, 1 << 30, 3)
        for tensors, round_ in zip([0, 0, 0, 0, 1, 2], [0, 5, 6, 7, 8, 9], strict=True):
            made.add(weights[tensors], round_)
        assert [shows(made, tensors) for tensors in weights] == [True, True, True, False]
        made.add(weights[3], 10)
        assert [shows(made, tensors) for tensors in weights] == [False, True, True, True]

    def test_what_later_ones_stand_on_is_kept_and_all_before_is_not(self, folder):
        weights = versions(80, entries=20)
        made = filled(folder, weights, keep=5)
        assert all(shows(made, tensors) for tensors in weights[66:])
        assert not any(shows(made, tensors) for tensors in weights[:66])
        assert stored(made) < 1.5 * WHOLE

    @given(data=st.data())
    @settings(deadline=None, max_examples=12)
    def test_it_takes_no_more_bytes_and_shows_the_latest(self, data):
        """Steps small and large, and rounds in which nothing is learned."""
        most, keep = data.draw(st.integers(WHOLE, 4 * WHOLE) | st.just(1 << 30)), data.draw(st.integers(1, 6))
        made, weights, round_, used = Archive(None, most, keep), versions(1), 0, []
        for entries in data.draw(st.lists(st.sampled_from([0, 1, 100, 700, 4440]), min_size=1, max_size=8)):
            weights.append(changed(weights[-1], range(entries), seed=round_))
            used.append((round_, weights[-1]))
            made.add(weights[-1], round_)
            assert stored(made) <= most and shows(made, weights[-1])
            round_ += data.draw(st.integers(1, 3))
        assert made.unkept == 0
        until = [start - 1 for start, _ in used[1:]] + [used[-1][0]]
        lately = [tensors for (_, tensors), last in zip(used, until, strict=True) if last > used[-1][0] - keep]
        assert most < 1 << 30 or all(shows(made, tensors) for tensors in lately)

    def test_where_there_is_no_room_for_a_patch_beside_a_whole_one_all_are_whole(self, folder):
        weights = versions(4, entries=700)
        made = filled(folder, weights, max_bytes=WHOLE)
        assert (
            made.unkept == 0 and stored(made) < WHOLE and [shows(made, one) for one in weights] == [False] * 3 + [True]
        )
        (part,) = made.path(tensors_hash(weights[3]), [tensors_hash(weights[2])])
        assert part.parent is None

    def test_a_disk_that_is_full_just_then_is_said_once(self, tmp_path, caplog, monkeypatch):
        weights = versions(3, entries=700)
        made, real = filled(tmp_path, weights[:1], max_bytes=WHOLE), Path.write_bytes

        def full(path, raw):
            if len(raw) > WHOLE / 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, raw)

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Path, "write_bytes", full)
            made.add(weights[1], 1)
        assert len(caplog.records) == 1 and "No space left" in caplog.text
        assert stored(made) == 0 and not shows(made, weights[1])
        made.add(weights[2], 2)
        assert shows(made, weights[2])

    def test_weights_that_are_larger_than_all_that_is_kept(self, folder, caplog):
        weights = versions(5)
        with caplog.at_level(logging.WARNING):
            made = filled(folder, weights, max_bytes=WHOLE // 2)
        assert made.unkept == 5 and stored(made) == 0 and made.path(tensors_hash(weights[4]), []) == []
        assert len(caplog.records) == 1 and f"exceeds the {WHOLE // 2} bytes" in caplog.text


class TestDisk:
    def test_it_survives_a_restart(self, tmp_path):
        weights = versions(40)
        filled(tmp_path, weights[:39], keep=50)
        made = Archive(tmp_path, 1 << 30, 50)
        assert all(shows(made, tensors) for tensors in weights[:39])
        made.add(weights[38], 39)
        made.add(weights[39], 40)
        assert all(shows(made, tensors) for tensors in weights)
        assert made.path(tensors_hash(weights[39]), [tensors_hash(weights[38])])[0].parent is not None

    def test_rounds_are_known_after_a_restart(self, tmp_path):
        weights = noise(4)
        made = Archive(tmp_path, 1 << 30, 4)
        for tensors, round_ in zip(weights[:3], [0, 10, 11], strict=True):
            made.add(tensors, round_)
        made = Archive(tmp_path, 1 << 30, 4)
        made.add(weights[3], 12)
        assert [shows(made, tensors) for tensors in weights] == [True] * 4  # the first was used until round 9

    @pytest.mark.parametrize("make", [versions, noise])
    def test_a_kill_at_any_write_leaves_what_there_was_or_what_was_to_be(self, make, tmp_path, monkeypatch):
        """Each call that changes the folder is the last one once; the node starts again and plays the round again."""
        monkeypatch.setattr(archive, "LONGEST", 3)
        weights, calls = make(12), []
        for killed in itertools.count():
            folder = tmp_path / str(killed)
            done, count = 0, 0
            with monkeypatch.context() as patch:

                def may_die(what, *arguments, real, when=killed):
                    nonlocal count
                    count += 1
                    if count > when:
                        raise KeyboardInterrupt
                    return real(what, *arguments)

                for name in ("write_bytes", "replace", "unlink"):
                    real = getattr(Path, name)
                    patch.setattr(Path, name, lambda *a, real=real: may_die(*a, real=real))
                made = Archive(folder, 1 << 30, 3)
                try:
                    for round_, tensors in enumerate(weights):
                        made.add(tensors, round_)
                        done += 1
                except KeyboardInterrupt:
                    calls.append(killed)
            made = Archive(folder, 1 << 30, 3)
            assert made.damaged == 0 and all(shows(made, tensors) for tensors in weights[max(0, done - 2) : done])
            for round_ in range(done, len(weights)):
                made.add(weights[round_], round_)
            assert all(shows(made, tensors) for tensors in weights[-3:])
            assert not list(folder.glob("*partial*"))
            if killed not in calls:
                break
        assert len(calls) > 30

    def test_half_a_write_is_cleared_away(self, tmp_path):
        weights = versions(2)
        filled(tmp_path, weights)
        (tmp_path / f"00000002-2-{'0' * 64}.partial.patch").write_bytes(b"half")
        made = Archive(tmp_path, 1 << 30, 9)
        assert made.damaged == 0 and len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "gone", "unreadable"])
    def test_a_damaged_file_is_dropped_with_what_stood_on_it(self, damage, tmp_path, caplog):
        weights = versions(6)
        filled(tmp_path, weights)
        path = sorted(tmp_path.iterdir())[2]
        raw = path.read_bytes()
        if damage == "a bit":
            path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
        elif damage == "gone":
            path.unlink()
        elif damage == "unreadable":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(raw[:-5] if damage == "cut" else b"")
        with caplog.at_level(logging.WARNING):
            made = Archive(tmp_path, 1 << 30, 9)
        assert made.damaged == (damage != "gone") and (path.name in caplog.text) == (damage != "gone")
        assert [shows(made, tensors) for tensors in weights] == [True, True, False, False, False, False]
        for round_, tensors in enumerate(weights[5:] + versions(2, seed=5)[1:], 6):
            made.add(tensors, round_)
            assert shows(made, tensors)

    @pytest.mark.parametrize("raw", [b"", b"nonsense" * 20, (40).to_bytes(8, "little") + b"\x95" + bytes(99)])
    def test_files_of_another_version_are_dropped(self, raw, tmp_path):
        weights = versions(3)
        filled(tmp_path, weights)
        (tmp_path / "3-of-another-version.patch").write_bytes(raw)
        (tmp_path / f"00000003-3-{hashlib.sha256(raw).hexdigest()}.patch").write_bytes(raw)
        (tmp_path / "notes.txt").write_text("mine")
        made = Archive(tmp_path, 1 << 30, 9)
        assert made.damaged == 2 and all(shows(made, tensors) for tensors in weights)
        assert len(list(tmp_path.iterdir())) == 4

    def test_a_full_disk_costs_the_version_and_one_warning(self, tmp_path, caplog, monkeypatch):
        weights = versions(8)
        made = filled(tmp_path, weights[:3])
        real = Path.write_bytes

        def full(path, raw):
            real(path, raw[: len(raw) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Path, "write_bytes", full)
            for round_ in (3, 4):
                assert made.add(weights[round_], round_) == tensors_hash(weights[round_])
        assert made.unkept == 2 and len(caplog.records) == 1 and "No space left on device" in caplog.text
        for round_ in (5, 6):
            made.add(weights[round_], round_)
        assert [shows(made, tensors) for tensors in weights] == [True] * 3 + [False] * 2 + [True] * 2 + [False]
        assert not list(tmp_path.glob("*partial*"))
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Path, "write_bytes", full)
            made.add(weights[7], 7)
        assert len(caplog.records) == 2

    def test_a_file_that_is_gone_while_it_is_read(self, tmp_path, caplog):
        made = filled(tmp_path, versions(1))
        (part,) = made.path(tensors_hash(versions(1)[0]), [])
        next(tmp_path.iterdir()).unlink()
        assert made.read(part.hash, 0, 10) == b"" and "No such file" in caplog.text

    def test_where_there_can_be_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot write"):
            Archive(tmp_path / "file" / "weights", 1 << 30, 9)


class TestAssembling:
    def parts(self, count=4):
        """Weights, and what leads to the last of them: a whole one, and sparse ones."""
        weights = versions(count)
        made = filled(None, weights)
        path = made.path(tensors_hash(weights[-1]), [])
        return weights, [fetched(made, part) for part in path]

    def refused(self, parts, weights, *said, shown=None):
        with pytest.raises(PatchError) as error:
            assemble(parts, shown or Shown(1 << 30), tensors_hash(weights[-1]))
        for words in said:
            assert words in str(error.value)

    def test_what_was_shown_is_checked_and_kept(self):
        weights, parts = self.parts()
        shown, name = Shown(1 << 30), tensors_hash(weights[-1])
        assert same(assemble(parts, shown, name), weights[-1])
        assert shown.names == [name] and same(assemble([], shown, name), weights[-1])

    def test_a_part_that_leads_elsewhere_than_it_says_is_named(self):
        """Also where all that follow it are right."""
        weights, parts = self.parts()
        forged = {name: array.copy() for name, array in weights[2].items()}
        forged["up"][3, 3] += 1
        third = patches.encode(forged, weights[1], weights=tensors_hash(weights[2]))
        self.refused(
            [*parts[:2], third, parts[3]],
            weights,
            f"part 3 of 4: it gives weights {tensors_hash(forged).hex()[:16]} and says",
        )

    def test_a_missing_part_is_named(self):
        weights, parts = self.parts()
        names = [tensors_hash(tensors).hex()[:16] for tensors in weights]
        self.refused([parts[0], *parts[2:]], weights, f"part 2 of 3: it stands on {names[1]}", f"leads to {names[0]}")
        self.refused(parts[:3], weights, f"3 parts lead to {names[2]}, not to weights {names[3]}")
        self.refused([*parts[:2], parts[0], *parts[1:]], weights, "part 3 of 6: it stands on nothing")

    def test_what_was_forgotten_meanwhile_is_not_held_against_the_peer(self):
        weights, parts = self.parts()
        names = [tensors_hash(tensors) for tensors in weights]
        for there, missing in ((parts[1:], names[0]), ([], names[3])):
            with pytest.raises(NotHereError, match=f"weights {missing.hex()[:16]} are not here"):
                assemble(there, Shown(1 << 30), names[3])
        shown = Shown(1 << 30)
        shown.keep(names[0], weights[0])
        assert same(assemble(parts[1:], shown, names[3]), weights[3])

    def test_a_part_that_cannot_be_read_is_named(self):
        weights, parts = self.parts()
        self.refused([*parts[:2], b"nonsense", parts[3]], weights, "part 3 of 4: its header")
        self.refused([*parts[:3], parts[3] + b"\0"], weights, "part 4 of 4: its streams")

    @given(data=st.data())
    @settings(deadline=None, max_examples=60)
    def test_any_damage_is_refused_or_does_nothing(self, data):
        weights, parts = self.parts(3)
        which = data.draw(st.integers(0, 2))
        at = data.draw(st.integers(0, len(parts[which]) - 1))
        raw = bytearray(parts[which])
        raw[at] ^= data.draw(st.integers(1, 255))
        shown = Shown(1 << 30)
        try:
            found = assemble([*parts[:which], bytes(raw), *parts[which + 1 :]], shown, tensors_hash(weights[-1]))
        except PatchError:
            assert shown.names == []
        else:
            assert same(found, weights[-1])

    def test_parts_that_are_more_work_than_honest_ones_are_not_begun(self, monkeypatch):
        monkeypatch.setattr(patches, "unchecked", lambda *_: pytest.fail("begun"))
        weights = [{"a": np.full(4000, value, np.float32)} for value in (1.0, 1.5)] * 6
        parts = [patches.encode(weights[0], None), *(patches.encode(b, a) for a, b in itertools.pairwise(weights))]
        assert patches.header(parts[1]).changed == 4000
        self.refused(parts, weights, "12 parts change more than 9 times all 4000 entries")

    def test_shown_is_bounded_by_bytes_and_forgets_what_was_not_asked_for(self):
        weights = noise(4)
        size = sum(array.nbytes for array in weights[0].values())
        shown, names = Shown(3 * size), [tensors_hash(tensors) for tensors in weights]
        for name, tensors in zip(names[:3], weights, strict=False):
            shown.keep(name, tensors)
        assert shown.get(names[0]) is weights[0]
        shown.keep(names[3], weights[3])
        assert shown.get(names[1]) is None and sorted(shown.names) == sorted([names[0], *names[2:]])
        shown.keep(bytes(32), {"a": np.zeros(4 * size, np.uint8)})
        assert shown.names == [] or bytes(32) not in shown.names


def test_shown_is_bounded_in_number_so_that_small_weights_do_not_fill_the_memory():
    shown = Shown(1 << 30)
    names = [number.to_bytes(32, "big") for number in range(3 * MOST)]
    for name in names:
        shown.keep(name, {"a": np.zeros(8, np.float32)})
    assert shown.names == names[-MOST:]


def test_what_went_wrong_is_counted_once(tmp_path):
    archive = Archive(tmp_path, 1 << 20, 4)
    archive.damaged, archive.unkept = 2, 1
    assert (
        archive.take_counts() == {"audit/weights_damaged": 2, "audit/weights_unkept": 1} and archive.take_counts() == {}
    )
