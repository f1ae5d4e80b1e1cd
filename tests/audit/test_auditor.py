"""A live node's audits: what it makes of what an author shows, and that nobody waits for it."""

import collections
import time
from concurrent.futures import Future

import msgspec
import numpy as np
import pytest

from rlswarm_jax.audit import auditor as module
from rlswarm_jax.audit import patches
from rlswarm_jax.audit.archive import Archive, Shelves
from rlswarm_jax.audit.auditor import Auditor
from rlswarm_jax.game.effects import Audit
from rlswarm_jax.qwen import tensors_hash
from rlswarm_jax.qwen.verdict import Replay, Rounding
from rlswarm_jax.records.audits import Case, shown_for
from rlswarm_jax.records.schema import ANSWER, NOT_PRODUCED, PRODUCED, UNDECIDED, WITHHELD, Verdict
from rlswarm_jax.records.trust import Trust
from rlswarm_jax.swarm.transport import NotShownError
from tests.game.hand_driver import ALICE, BOB, ME, make_game, play, record_of, signed

OTHER = {"w": np.arange(8, dtype="<f4")}
NAME = tensors_hash(OTHER)


class Network:
    """A transport that gives what it is told to, when it is told to."""

    def __init__(self):
        self.asked: list[tuple] = []
        self.futures: list[Future] = []

    def fetch_weights(self, author, weights, have, limit) -> Future:
        self.asked.append((author, weights, list(have), limit))
        self.futures.append(Future())
        return self.futures[-1]


class World:
    """Alice's record, as this node has it, and what a replay of it says."""

    def __init__(self, tmp_path, lead=9.0, seconds=0.0, share=1.0, weights=NAME, witnesses=None):
        self.witnesses, self.round = witnesses, 2
        self.network, self.ran = Network(), []
        record = record_of(ALICE)
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        self.signed = signed(type(record)(**fields | {"weights": weights}), ALICE)
        self.game = make_game(ME)
        state = play(self.game, arrived=[self.signed]).state
        self.sheets = state.sheets

        def run(tensors, claimed):
            self.ran.append((tensors, claimed))
            time.sleep(seconds)
            tokens = [len(one) for one in claimed[0].completions]
            rounding = Rounding(1e-4, 1e-5)
            return [Replay(np.full(n, -3.0), np.full((n, 2), lead), np.full(n, 0.5), rounding) for n in tokens]

        archive = Archive(tmp_path / "weights", 1 << 20, 8)
        self.evidence = Archive(tmp_path / "evidence", 1 << 20, 8)
        self.auditor = Auditor(archive, run, self.network, share, 1 << 20, self.evidence)

    def audit(self, *cases):
        effect = Audit(list(cases), self.sheets, {b"": b""})
        held = {self.signed.hash: self.signed}
        return self.auditor.audit(self.game, effect, held, self.round, (), self.witnesses)

    def case(self, index=0):
        return Case(self.signed.hash, index)

    def finding(self, **shown):
        """Of Alice's first group, once she has shown something, or not."""
        assert self.audit(self.case()) == []
        (future,) = self.network.futures
        if "error" in shown:
            future.set_exception(shown["error"])
        else:
            future.set_result(shown["parts"])
        (found,) = self.audit()
        assert found.author == ALICE.author and (found.verdict.record, found.verdict.index) == (self.signed.hash, 0)
        return found.verdict


def test_a_case_waits_for_the_weights_and_then_is_decided_by_a_replay(tmp_path):
    world = World(tmp_path)
    verdict = world.finding(parts=[patches.encode(OTHER, None)])
    assert (verdict.finding, verdict.tokens) == (
        PRODUCED,
        sum(len(c.tokens_T) for c in world.signed.record.groups[0].completions),
    )
    assert verdict.bits > 20 and world.network.asked == [(ALICE.author, NAME, [], 1 << 20)]
    ((tensors, (claimed,)),) = world.ran
    assert np.array_equal(tensors["w"], OTHER["w"]) and len(claimed.completions) == 4


def test_what_was_drawn_otherwise_is_not_produced(tmp_path):
    verdict = World(tmp_path, lead=-2.0).finding(parts=[patches.encode(OTHER, None)])
    assert verdict.finding == NOT_PRODUCED


@pytest.mark.parametrize(("withheld", "finding"), [(True, WITHHELD), (False, UNDECIDED)])
def test_who_is_there_and_shows_nothing_withholds(tmp_path, withheld, finding):
    assert World(tmp_path).finding(error=NotShownError("no", withheld)).finding == finding


@pytest.mark.parametrize(("rounds", "finding"), [(0, WITHHELD), (1, UNDECIDED)])
def test_who_does_not_show_weights_of_longer_ago_than_anybody_keeps_them_withholds_nothing(tmp_path, rounds, finding):
    """An auditor may come back after long, or be slow."""
    world = World(tmp_path)
    world.round = world.signed.record.round + shown_for(world.game.max_staleness) + rounds
    assert world.finding(error=NotShownError("no", withheld=True)).finding == finding
    again = World(tmp_path)
    again.round = world.round
    assert again.finding(parts=[b"x"]).finding == finding


def test_other_weights_than_the_record_names_are_none(tmp_path):
    other = patches.encode({"w": np.ones(8, "<f4")}, None)
    damaged = bytearray(patches.encode(OTHER, None))
    damaged[-1] ^= 1
    for parts in ([other], [bytes(damaged)], [b"x"]):
        world = World(tmp_path)
        assert world.finding(parts=parts).finding == WITHHELD and world.ran == []


@pytest.mark.parametrize("shows", [True, False])
@pytest.mark.parametrize("author", ["silent", "damaged"])
def test_what_an_author_does_not_show_a_witness_does_and_owes_it_to_nobody(tmp_path, author, shows):
    world = World(tmp_path, lead=-2.0)
    world.witnesses = {world.signed.hash: BOB.author}
    assert world.audit(world.case()) == []
    if author == "silent":
        world.network.futures[0].set_exception(NotShownError("no", withheld=True))
    else:
        world.network.futures[0].set_result([b"x"])
    assert world.audit() == [] and [asked[:3] for asked in world.network.asked[1:]] == [(BOB.author, NAME, [])]
    if shows:
        world.network.futures[1].set_result([patches.encode(OTHER, None)])
    else:
        world.network.futures[1].set_exception(NotShownError("no", withheld=True))
    (found,) = world.audit()
    assert (found.author, found.verdict.finding) == (ALICE.author, NOT_PRODUCED if shows else UNDECIDED)


@pytest.mark.parametrize(("lead", "kept"), [(-2.0, True), (9.0, False)])
def test_weights_by_which_somebody_was_found_out_are_shown_on(tmp_path, lead, kept):
    """Also after a restart: whoever is to judge it can ask for them, whatever their author does."""
    world = World(tmp_path, lead=lead)
    world.finding(parts=[patches.encode(OTHER, None)])
    shelves = Shelves(world.auditor.archive, Archive(tmp_path / "evidence", 1 << 20, 8))
    parts = [shelves.read(part.hash, 0, part.size) for part in shelves.path(NAME, [])]
    assert parts == ([patches.encode(OTHER, None)] if kept else [])
    assert shelves.read(b"?" * 32, 0, 9) == b""


def test_weights_of_another_kind_of_model_are_undecided(tmp_path):
    world = World(tmp_path)

    def run(tensors, claimed):
        raise ValueError("these tensors are not the model's")

    world.auditor._run = run
    assert world.finding(parts=[patches.encode(OTHER, None)]).finding == UNDECIDED


def test_weights_that_were_seen_are_not_asked_for_again(tmp_path):
    world = World(tmp_path)
    world.finding(parts=[patches.encode(OTHER, None)])
    (found,) = world.audit(world.case(1))
    assert found.verdict.finding == PRODUCED and len(world.network.asked) == 1


def test_who_leads_from_weights_that_are_not_here_any_more_is_asked_once_more_for_all(tmp_path):
    """They may have made room since the author was told of them; who does it again, told of none, withholds."""
    before = {"w": np.arange(64, dtype="<f4")}
    after = {"w": before["w"].copy()}
    after["w"][3] = 9.5
    for shows, finding in ((patches.encode(after, None), PRODUCED), (patches.encode(after, before), WITHHELD)):
        world = World(tmp_path, weights=tensors_hash(after))
        world.audit(world.case())
        world.network.futures[0].set_result([patches.encode(after, before)])
        assert world.audit() == [] and world.network.asked[1][2] == []
        world.network.futures[1].set_result([shows])
        assert [one.verdict.finding for one in world.audit()] == [finding]


def test_a_case_that_waits_is_not_begun_again(tmp_path):
    world = World(tmp_path)
    assert world.audit(world.case()) == world.audit(world.case()) == [] and len(world.network.asked) == 1


def test_what_cannot_be_replayed_here_is_undecided_and_nobody_is_asked(tmp_path):
    world = World(tmp_path)
    world.game = make_game(ME, temperature=0.5)
    (found,) = world.audit(world.case(0))
    assert found.verdict.finding == UNDECIDED and world.network.asked == []
    assert world.audit(Case(b"u" * 32, 0)) == []  # a record that is not here


@pytest.mark.parametrize("index", [3, 99, 2**32 - 1])
def test_of_a_group_that_its_record_does_not_have_nothing_was_said_that_was_not_sampled(tmp_path, index):
    """Whoever accuses its author of it is wrong, before a court and here."""
    world = World(tmp_path)
    assert index not in {group.index for group in world.signed.record.groups}
    (found,) = world.audit(world.case(index))
    verdict = found.verdict
    assert (found.author, verdict.index, verdict.finding, verdict.tokens) == (ALICE.author, index, PRODUCED, 0)
    assert world.network.asked == [] == world.ran
    accused = Trust().hear([says(verdict.record, index)], {verdict.record}, 5)
    assert accused.to_repeat({verdict.record: ALICE.author}, ME.author, 5) == [Case(verdict.record, index)]
    assert accused.find([found], 5).offenders.keys() == {BOB.author}


def says(record, index):
    """Bob's record, with an accusation."""
    lie = Verdict(record, index, NOT_PRODUCED, 9, 30.0, 8.0)
    return msgspec.structs.replace(record_of(BOB), verdicts=[lie])


def test_replays_take_no_more_than_their_share(tmp_path, monkeypatch):
    """With what it has saved up a node replays one case that takes long, and the next one once it has paid for that."""
    monkeypatch.setattr(module, "SAVED", 0.05)
    world = World(tmp_path, seconds=0.1, share=0.01)
    world.audit(world.case(0), world.case(1), world.case(2))
    for future in world.network.futures:
        future.set_result([patches.encode(OTHER, None)])
    counts = [len(world.audit()) for _ in range(4)]
    assert counts == [1, 0, 0, 0]
    world.auditor._before -= 20.0  # as if so many seconds had gone by
    assert len(world.audit()) == 1


def test_no_more_wait_than_there_is_room_for_and_none_for_ever(tmp_path, monkeypatch):
    world = World(tmp_path)
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    found = world.audit(*[world.case(n) for n in range(3)])
    assert collections.Counter(one.verdict.finding for one in found) == {UNDECIDED: 1}
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    found = world.audit()
    assert [one.verdict.finding for one in found] == [UNDECIDED] * 2 and world.ran == []


def test_the_group_that_a_beacon_draws_is_one_of_the_record(tmp_path):
    world = World(tmp_path)
    for n in range(6):
        world.audit(Case(world.signed.hash, beacon=bytes([n])))
    for future in world.network.futures:
        future.set_result([patches.encode(OTHER, None)])
    found = {one.verdict.index for one in world.audit()}
    assert found <= {group.index for group in play(make_game(ALICE), identity=ALICE).records[ANSWER].groups}
    assert len(found) > 1
