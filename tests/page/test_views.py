"""What the page says of a run is what its files say: against the rows and the records, read by other means."""

import collections
import json
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax import files
from rlswarm_jax.game.effects import Learn, Publish
from rlswarm_jax.grpo.advantages import judged
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.page import texts
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.lineage import authors_of, lessons, lineage
from rlswarm_jax.page.now import now
from rlswarm_jax.page.rounds import round_view
from rlswarm_jax.page.rows import Log, thinned
from rlswarm_jax.page.trust import network
from rlswarm_jax.page.views import AskedWrongError, answer
from rlswarm_jax.page.weigh import advantages
from rlswarm_jax.records.schema import CRITIQUE
from rlswarm_jax.status import Awaited, Network, Parting, Peer, Status
from tests.game.hand_driver import ALICE, BOB, ME
from tests.page.runs import NODES, ROUNDS, play, write


@pytest.fixture(scope="module")
def played():
    return play()


@pytest.fixture(scope="module", params=["simulated", "swarm", "node"])
def folder(request, played, tmp_path_factory):
    found = Folder(write(tmp_path_factory.mktemp("run"), played, request.param))
    found.refresh()
    assert found.kind == request.param
    return found


def learned(played, who, author):
    """What a node learned from an author, by the rounds' own effects."""
    effects = [one[who].one(Learn) for one in played]
    return [group for effect in effects for group in effect.groups if group.author == author.author]


def test_the_matrix_and_the_flow_are_what_was_learned_from(folder, played):
    found = lineage(folder)
    for row, member in enumerate(folder.members):
        who = next(one for one in NODES if one.author == member.author)
        for column, author in enumerate(found["authors"]):
            other = next(one for one in NODES if one.author.hex() == author["author"])
            if other is who:
                assert found["own"][row] == len(learned(played, who, who))
                continue
            count = len(learned(played, who, other))
            assert found["counts"][row][column] == sum(found["flow"]["learners"][row][column]) == count
    assert any(map(sum, found["counts"])), "nobody learned from anybody, and the test shows nothing"


def test_a_cell_opens_the_very_groups(folder, played):
    me = folder.member(0)
    found = lessons(folder, me, ALICE.author.hex(), None)["groups"]
    wanted = learned(played, ME, ALICE)
    assert len(found) == len(wanted) > 0
    by_slot = {(group.round, group.stage, group.index): group for group in wanted}
    for one in found:
        group = by_slot[one["round"], one["stage"], one["index"]]
        said = {record.round: record for record in (p[ALICE].records[group.stage] for p in played)}[group.round]
        (record,) = [of for of in said.groups if of.index == group.index]
        assert [text["text"] for text in one["texts"]] == [completion.text for completion in record.completions]
        assert one["rewards"] == pytest.approx(group.rewards)
        expected = judged(group.rewards, [1] * 4, advantage="std", pass_k=4, overlong_buffer=0, max_new_tokens=9)
        assert one["advantages"] == pytest.approx(group.weight * expected, abs=1e-3)


def test_pages_of_groups_together_are_all_of_them_once(folder, played, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.page.lineage.PAGE", 1)
    seen, before = [], None
    while True:
        page = lessons(folder, folder.member(0), ALICE.author.hex(), before)
        seen += [(g["learned"], g["round"], g["stage"], g["index"]) for g in page["groups"]]
        before = page["next"]
        if before is None:
            break
    assert len(seen) == len(set(seen)) == len(learned(played, ME, ALICE))


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]), min_size=6, max_size=6),  # each size is compiled anew
    st.sampled_from(["std", "none", "leave_one_out", "pass_at_k"]),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_advantages_are_the_learner_s(rewards, how, k):
    sizes = [1] * len(rewards)
    expected = judged(rewards, sizes, advantage=how, pass_k=k, overlong_buffer=0.0, max_new_tokens=8)
    assert np.allclose(advantages(rewards, how, k), expected, rtol=2e-3, atol=2e-3)


def test_a_round_shows_what_was_said_and_who_voted_for_whom(folder, played):
    round_ = ROUNDS[-1]
    found = round_view(folder, folder.member(0), round_)
    records = played[-1][ME].records
    assert [stage["stage"] for stage in found["stages"]] == list(records)
    for stage in found["stages"]:
        for group, of in zip(stage["groups"], records[stage["stage"]].groups, strict=True):
            assert [text["text"] for text in group["texts"]] == [one.text for one in of.completions]
    everyone = {who: played[-1][who] for who in NODES}
    hashes = {one.said[stage].hash: who for who, one in everyone.items() for stage in one.said}
    for problem in found["votes"]:
        for vote in problem["votes"]:
            (who,) = [one for one in NODES if friendly_name(one.author) == vote["by"]]
            (group,) = [g for g in everyone[who].records[CRITIQUE].groups if g.index == problem["index"]]
            wanted = "none of them" if group.vote == 0 else friendly_name(hashes[group.parents[group.vote - 1]].author)
            assert vote["for"] == wanted
    assert sum(len(problem["votes"]) for problem in found["votes"]) == 6  # three critics of two problems


def test_rewards_of_own_groups_are_there_whether_they_teach_or_not(folder, played):
    found = round_view(folder, folder.member(0), 0)
    effect = played[0][ME].one(Learn)
    own = {(g.stage, g.index): g.rewards for g in [*effect.groups, *effect.idle] if not g.external}
    shown = {(s["stage"], g["index"]): g["rewards"] for s in found["stages"] for g in s["groups"]}
    assert shown.keys() == own.keys() and all(shown[at] == pytest.approx(own[at]) for at in own)
    assert effect.idle, "all groups teach, and the test shows less than it says"


def test_rows_are_taken_as_they_come_and_anew_when_they_are_cut_back(tmp_path):
    path, log = tmp_path / files.METRICS_FILE, Log(tmp_path / files.METRICS_FILE)
    line = json.dumps({"node": 0, "name": "a", "round": 0, "reward/mean": 0.5}) + "\n"
    assert not log.refresh()
    path.write_text(line + line[:20])
    assert log.refresh() and len(log.courses[0]) == 1
    path.write_text(line + line.replace('"round": 0', '"round": 1') + "no json\n")
    assert log.refresh() and list(log.courses[0].rounds) == [0, 1] and log.skipped == 1
    assert not log.refresh()
    path.write_text(line.replace("0.5", "0.25"))  # a resumed run has cut its rows back
    assert log.refresh() and log.courses[0].column("reward/mean") == [(0, 0.25)]
    assert log.courses[0].row(0)["reward/mean"] == 0.25


@given(st.lists(st.floats(0, 1), min_size=1, max_size=900))
@settings(max_examples=40, deadline=None)
def test_thinning_keeps_the_mean_and_the_ends(values):
    found = thinned(list(enumerate(values)), 50)
    assert len(found) <= 50 and found[-1][0] == len(values) - 1
    sizes = np.diff([-1, *(round_ for round_, _ in found)])
    assert np.average([value for _, value in found], weights=sizes) == pytest.approx(np.mean(values), abs=1e-3)


def test_it_says_who_is_waited_for_and_why(tmp_path, played):
    """Alice and Bob are in the critiques of a round that ME has only begun."""
    directory = write(tmp_path, played, "swarm")
    for index, who in enumerate(NODES):
        journal = Journal(directory / f"node-{index}" / files.JOURNAL_FILE)
        journal.write(Entry(0, 3, 0, "begin", b"", 400.0))
        said = [(e, r) for e, r in zip(played[-1][who].effects, played[-1][who].results, strict=True)]
        raws = [r for e, r in said if isinstance(e, Publish)]
        for step in range(2 if who is not ME else 0):
            journal.write(Entry(0, 3, 1 + step, Publish.__name__, _packed(raws[step]), 401.0))
        journal.close()
    folder = Folder(directory)
    folder.refresh()
    nodes = {node["name"]: node for node in now(folder)["nodes"]}
    for who in (ALICE, BOB):
        node = nodes[friendly_name(who.author)]
        assert node["doing"] == "waits for critiques of its peers"
        assert [one["name"] for one in node["waiting"]] == [friendly_name(ME.author)]
        assert node["waiting"][0]["why"] == "it begins the round"
    assert not nodes[friendly_name(ME.author)]["waiting"]


def _packed(raw):
    import msgspec

    return msgspec.msgpack.encode(raw)


@pytest.fixture
def told(tmp_path, played):
    """A swarm of which two nodes say what they do: ME waits for both others, ALICE learns."""
    directory = write(tmp_path, played, "swarm")
    for index in range(len(NODES)):
        (directory / f"node-{index}" / files.NODE_FILE).write_text(json.dumps({"pid": os.getpid()}))
    ban = Parting(BOB.peer_id, "it sent too much that is wrong, last: network/malformed", time.monotonic() + 40)
    net = Network([Peer(ALICE.peer_id, True, time.monotonic() - 9), Peer(BOB.peer_id, False, 0.0)], [ban])
    made = {who: Status(directory / f"node-{i}" / files.STATUS_FILE) for i, who in enumerate((ME, ALICE))}
    made[ME].network = lambda: net
    made[ALICE].begins("learns", 2, "")
    made[ME].begins("waits for its peers' answers", 3, "answer", at_most=30.0)
    awaited = [Awaited(one.author, "is connected; it is 1 round behind") for one in (ALICE, BOB)]
    made[ME]._written = 0.0
    made[ME].waits_for(awaited, time.monotonic() + 12)
    return directory, made


def test_a_live_node_s_own_word_counts_for_whom_it_waits(told):
    folder = Folder(told[0])
    folder.refresh()
    nodes = {node["name"]: node for node in now(folder)["nodes"]}
    mine, alice, bob = (nodes[friendly_name(who.author)] for who in NODES)
    assert (mine["doing"], mine["round"], mine["state"]) == ("waits for its peers' answers", 3, "")
    assert mine["since"] < 5 and 5 < mine["until"] <= 12
    names = [friendly_name(who.author) for who in (ALICE, BOB)]
    assert [one["name"] for one in mine["waiting"]] == names
    assert mine["waiting"][0]["why"] == "it is connected; it is 1 round behind; it learns"
    assert mine["waiting"][1]["why"] == "it is connected; it is 1 round behind"  # nobody knows what Bob does
    assert alice["doing"] == "learns" and not alice["waiting"] and "until" not in alice
    assert bob["doing"] != "learns", "by its journal"
    folder.over = True  # as an exported page is written
    assert all(not node["waiting"] for node in now(folder)["nodes"])


def test_one_that_stands_still_is_called_stalled_though_it_cannot_say_so(told, monkeypatch):
    folder = Folder(told[0])
    folder.refresh()
    later = time.time() + 10_000
    monkeypatch.setattr("rlswarm_jax.page.now.time.time", lambda: later)
    nodes = {node["name"]: node for node in now(folder)["nodes"]}
    mine = nodes[friendly_name(ME.author)]
    assert mine["state"] == "stalled" and mine["doing"].startswith("it waits for its peers' answers for ")


def test_the_network_says_who_is_in_the_mesh_and_who_is_refused_and_why(told):
    folder = Folder(told[0])
    folder.refresh()
    found = network(folder)
    me, alice, bob = (friendly_name(who.author) for who in NODES)
    assert [(one["node"], one["peer"], one["mesh"]) for one in found["mesh"]] == [(me, alice, True), (me, bob, False)]
    assert found["mesh"][0]["seconds"] == pytest.approx(9, abs=2)
    (ban,) = found["banned"]
    assert (ban["node"], ban["peer"]) == (me, bob) and ban["why"].endswith("network/malformed")
    assert 30 < ban["seconds"] <= 40


def test_what_others_made_of_a_status_is_bounded_and_harmless(told):
    directory, _ = told
    path = directory / "node-0" / files.STATUS_FILE
    found = json.loads(path.read_text())
    found["doing"] = "learns\x1b[2J" + "x" * 5000
    found["waiting"] = [{"author": f"a\u202e{i}" * 50, "why": "y" * 5000} for i in range(500)]
    for which in ("banned", "left"):
        found[which] = [{"peer": "z" * 400, "why": "\x00" * 400, "at": 1e12} for _ in range(300)]
    path.write_text(json.dumps(found))
    folder = Folder(directory)
    folder.refresh()
    for name in ("now", "network"):
        raw = answer(folder, name, {})
        assert len(raw) < 64_000 and b"\\u001b" not in raw and b"\\u202e" not in raw and b"\\u0000" not in raw


def test_the_last_warning_is_a_sentence_and_shows_no_key(tmp_path, played):
    directory = write(tmp_path, played, "swarm")
    key = "ab" * 32
    (directory / "node-1" / "log.txt").write_text(f"12:00:00 well\n12:00:01 WARNING no answer from {key}\nfine\n")
    folder = Folder(directory)
    folder.refresh()
    error = now(folder)["error"]
    assert error["node"] == friendly_name(ALICE.author) and error["text"].startswith("12:00:01 WARNING no answer")
    assert key not in json.dumps(error)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # a text, which the page puts there as one
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("abc\u202edef", "abc\\u202edef"),
        ("a\u2066b\u200b", "a\\u2066b\\u200b"),
        ("two\nlines", "two\nlines"),
        ("nul\x00", "nul\\x00"),
    ],
)
def test_characters_that_act_are_shown_by_their_numbers(text, seen):
    assert texts.shown(text) == {"text": seen}


def test_a_megabyte_is_cut_and_its_length_said():
    found = texts.shown("x" * 1_000_000)
    assert len(found["text"]) == texts.MAX_TEXT and found["of"] == 1_000_000


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("round", {"round": "-1"}),
        ("round", {"round": "1e9"}),
        ("round", {"node": "99"}),
        ("lessons", {"author": "../../node.key"}),
        ("lessons", {"author": "zz" * 33}),
        ("__class__", {}),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(folder, name, given):
    with pytest.raises(AskedWrongError, match=r"\.$"):
        answer(folder, name, given)


def test_every_view_of_a_long_run_is_bounded(tmp_path, played):
    """5,000 rounds of a node with 40 strangers to learn from."""
    directory = write(tmp_path, played)
    strangers = [f"02{i:064x}" for i in range(40)]
    with (directory / files.METRICS_FILE).open("a") as log:
        for round_ in range(3, 5000):
            row = {"node": 0, "name": friendly_name(ME.author), "round": round_, "reward/mean": 0.5}
            row[f"learned_from/{strangers[round_ % 40]}"] = 1.0
            log.write(json.dumps(row) + "\n")
    folder = Folder(directory)
    folder.refresh()
    sizes = {name: len(answer(folder, name, {})) for name in ("now", "learning", "lineage", "trust", "network")}
    assert max(sizes.values()) < 100_000, sizes
    found = lineage(folder)
    assert len(authors_of(folder)) <= 24 and found["others"][0] > 0
    counts = collections.Counter({m.index: sum(m.course.totals("learned_from/").values()) for m in folder.members})
    assert sum(found["counts"][0]) + found["others"][0] == counts[0]
