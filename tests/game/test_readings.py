"""Reading once for all nodes of a process changes nothing but how often it is done."""

import collections
import itertools

import pytest

from rlswarm_jax.game import turns
from rlswarm_jax.game.readings import VARIANTS, Readings
from rlswarm_jax.game.stages import Said, Sheet
from rlswarm_jax.records.schema import ANSWER, CRITIQUE
from tests.game.hand_driver import ALICE, BOB, ME, Speaker, play_together

ALL = dict.fromkeys((ME, ALICE, BOB), Speaker())


def late(stage, speaker, listener):
    """ALICE's answers reach BOB with the critiques, who cannot read in time what answers to them."""
    return CRITIQUE if (stage, speaker, listener) == (ANSWER, ALICE, BOB) else stage


@pytest.mark.parametrize("records", [64, 1])
@pytest.mark.parametrize("heard", [lambda stage, speaker, listener: stage, late], ids=["in time", "late"])
def test_nodes_who_share_what_was_read_play_as_those_who_read_for_themselves(heard, records):
    alone, together = play_together(ALL, heard), play_together(ALL, heard, readings=Readings(records))
    for who in ALL:
        assert together[who].state == alone[who].state and together[who].metrics == alone[who].metrics
        assert together[who].effects[-1] == alone[who].effects[-1]  # what is learned from
    assert any(played.external for played in alone.values())


def test_a_record_is_read_once_for_all_who_heard_the_same(monkeypatch):
    read, counts = turns.read_record, collections.Counter()

    def counted(game, sheets, signed, beacons):
        counts[signed.hash] += 1
        return read(game, sheets, signed, beacons)

    monkeypatch.setattr(turns, "read_record", counted)
    together = play_together(ALL, readings=Readings(64))
    assert counts == dict.fromkeys((signed.hash for played in together.values() for signed in played.said.values()), 1)
    counts.clear()
    play_together(ALL)
    assert set(counts.values()) == {2}  # by each of the two others


def test_what_others_said_is_part_of_what_is_read_and_only_the_latest_is_kept():
    sheets = [Sheet(b"a", 1, ANSWER, {0: Said(str(n), str(n))}) for n in range(VARIANTS + 1)]
    readings, made = Readings[int](2), itertools.count()

    def read(key, *parents):
        return readings.of(key, parents, lambda: next(made))

    assert [read("a", sheet) for sheet in sheets[:2]] == [0, 1]
    assert [read("a", Sheet(b"a", 1, ANSWER, {0: Said(str(n), str(n))})) for n in range(2)] == [0, 1]  # equal ones
    assert read("a", None) == 2 and read("b", None) == 3
    assert [read("a", sheet) for sheet in sheets[2:]] == [4, 5, 6]
    assert read("a", sheets[0]) == 7  # of too many variants the first is gone
    assert (read("b", None), read("c", None), read("b", None), read("a", sheets[0])) == (3, 8, 3, 9)
