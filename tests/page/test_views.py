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
from rlswarm_jax.page.learning import alike, learning
from rlswarm_jax.page.lineage import authors_of, by_chance, lessons, lineage
from rlswarm_jax.page.now import now
from rlswarm_jax.page.problems import make_problems
from rlswarm_jax.page.rounds import round_view
from rlswarm_jax.page.rows import Log, recent, thinned
from rlswarm_jax.page.trust import network, trust
from rlswarm_jax.page.views import AskedWrongError, answer
from rlswarm_jax.page.weigh import Scales, advantages
from rlswarm_jax.records.schema import CRITIQUE
from rlswarm_jax.status import Awaited, Network, Parting, Peer, Status
from tests.experiments.test_show import config
from tests.game.hand_driver import ALICE, BOB, ME, mixture
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


@pytest.mark.parametrize(
    ("learn", "said", "divided"),
    [
        ({}, ", divided by the standard deviation of the group", True),
        ({"loss": "dr_grpo"}, ", not divided by the group's spread", False),
        ({"loss": "rloo"}, "less the mean of the others", False),
        ({"advantage": "pass_at_k", "pass_k": 3}, "the best of 3", True),
        ({"loss": "of another version"}, "", None),
    ],
)
def test_what_an_advantage_is_said_to_be_is_what_this_run_does(learn, said, divided):
    config_ = json.loads(config().to_json_best_effort())
    config_["learn"] |= learn
    scales = Scales(config_)
    assert said in scales.says() and bool(said) == bool(scales.says())
    spread, twice = (scales.advantages("answer", [0.0, r, r, r]) for r in (1.0, 2.0))
    if said:  # what is divided by the spread does not depend on the unit of rewards
        assert (spread == pytest.approx(twice, abs=1e-3)) == divided


def test_shares_are_called_uneven_no_oftener_than_chance_makes_them_so():
    random = np.random.default_rng(0)
    found = [by_chance(random.multinomial(300, [1 / 3] * 3)) for _ in range(2000)]
    for level in (0.5, 0.1, 0.02):
        assert np.mean(np.array(found) < level) == pytest.approx(level, abs=4 * (level / 2000) ** 0.5)
    assert by_chance([203, 193, 193]) > 0.5 and by_chance([300, 150, 139]) < 1e-9
    assert by_chance([300]) is None and by_chance([9, 0, 0]) is None, "nothing can be said of these"


def test_a_preference_is_one_only_beyond_chance(tmp_path, played):
    def taught(groups):
        def change(row):
            return {k: v for k, v in row.items() if not k.startswith("learned_from/")} | (
                {f"learned_from/{who.author.hex()}": n for who, n in zip((ALICE, BOB), groups, strict=True)}
                if row["node"] == 0
                else {}
            )

        return change

    for name, groups, even in (("even", (20.0, 19.0), True), ("uneven", (30.0, 9.0), False)):
        folder = Folder(write(tmp_path / name, played, "simulated", taught(groups)))
        folder.refresh()
        (why,) = [one for one in lineage(folder)["why"] if one]
        assert why["even"] is even and (why["groups"], why["authors"]) == (3 * groups[0], 2)


def test_of_audits_that_were_drawn_each_is_answered_or_open(tmp_path, played):
    def audited(row):
        found = {"produced": 1.0, "undecided": 2.0, "not produced": 1.0 if row["node"] == 1 else 0.0}
        return row | {"audit/cases": 5.0} | {f"audit/found/{name}": n for name, n in found.items()}

    folder = Folder(write(tmp_path, played, "simulated", audited))
    folder.refresh()
    found = trust(folder)
    for node in [*found["nodes"], found["audits"]]:
        assert node["drawn"] == node["answered"] + node["open"] and node["open"] > 0
        assert node["answered"] == sum(node[name] for name in found["findings"])
    assert (
        found["audits"]["drawn"] == 45 and found["audits"]["not produced"] == 3 and found["audits"]["undecided"] == 18
    )


def test_whether_anybody_was_found_out_is_a_sentence(tmp_path, played):
    def said(name, **audits):
        found = {f"audit/{name}": n for name, n in audits.items()}
        folder = Folder(write(tmp_path / name, played, "simulated", lambda row: row | found | {"groups/received": 9.0}))
        folder.refresh()
        assert now(folder)["verdict"] == trust(folder)["verdict"]
        return now(folder)["verdict"]

    assert "no check of others' samples has come to an end" in said("a")
    honest = said("b", cases=3.0, **{"found/produced": 2.0, "found/undecided": 1.0})
    rows = len(ROUNDS) * len(NODES)
    assert honest == (
        f"Nobody was found out: of about {9 * rows // (len(NODES) - 1)} groups of peers {3 * rows} were drawn again; "
        f"{2 * rows} are proven to be sampled as was said, and {rows} say too little to tell."
    )
    caught = said("c", cases=1.0, **{"found/not produced": 1.0, f"distrusted/{BOB.author.hex()}": 1.0})
    assert caught == f"Found out, and not trusted now: {friendly_name(BOB.author)}."


def test_shares_that_may_be_the_same_are_told_from_others_up_to_the_ends_of_the_scale():
    assert alike(1.0, 511 / 512, 512) and alike(511 / 512, 1.0, 512) and alike(0.9, 0.89, 512) and alike(0.3, 0.3, 0)
    assert not alike(1.0, 0.98, 512) and not alike(0.0, 0.02, 512) and not alike(0.9, 0.85, 512)


def test_a_reward_is_the_same_wherever_it_stands(folder):
    last = {line["name"]: line["points"][-1] for line in learning(folder)["reward"]["lines"]}
    for node in now(folder)["nodes"]:
        assert last[node["name"]] == [ROUNDS[-1], node["reward"]] and node["reward"] is not None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.integers(5, 240))
@settings(max_examples=40, deadline=None)
def test_a_figure_that_jumps_is_the_mean_of_ten_rounds(values, most):
    found = recent(list(enumerate(values)), most)
    assert len(found) <= most and found[-1][0] == len(values) - 1
    for round_, mean in found:
        assert mean == pytest.approx(np.mean(values[max(0, round_ - 9) : round_ + 1]), abs=1e-4)


def test_whether_sharing_helped_is_said_where_nodes_alone_were_measured(folder, played, tmp_path):
    assert learning(folder)["sharing"] == ""

    def measured(value):
        return lambda row: row | {"final/accuracy": value} if row["round"] == ROUNDS[-1] else row

    directory = write(tmp_path, played, "simulated", measured(0.9))
    for kind, value in ((files.SAMPLED, 0.5), (files.TOGETHER, 0.89)):
        write(directory / files.ALONE_FOLDER / kind, played, "simulated", measured(value))
    found = Folder(directory)
    found.refresh()
    said = learning(found)["sharing"]
    assert said.startswith("After 3 rounds a node of the swarm is right on 90.0 % of the held-out problems; ")
    assert "first measured after 3 rounds; of a node alone that samples as much as one after 3 rounds; of a" in said
    assert "samples as much as one, 50.0 % (less)" in said and "as much as all, 89.0 % (within chance of it)" in said


def test_trouble_of_the_network_is_a_sentence(tmp_path, played):
    trouble = {"records/rejected/bad signature": 2.0, "network/unreachable": 1.0, "network/bytes_in": 9.0}
    folder = Folder(write(tmp_path / "a", played, "swarm", lambda row: row | trouble))
    folder.refresh()
    assert now(folder)["trouble"] == (
        "Trouble on the network: records refused: 18 (bad signature); 9 times a bootnode could not be reached."
    )
    calm = Folder(write(tmp_path / "b", played, "swarm"))
    calm.refresh()
    assert now(calm)["trouble"] == "There was no trouble on the network."


def test_a_name_leads_to_whom_it_names_and_one_that_two_have_to_nobody(tmp_path, played, monkeypatch):
    folder = Folder(write(tmp_path, played, "node"))
    folder.refresh()
    people = now(folder)["people"]
    assert people[friendly_name(ALICE.author)] == ALICE.author.hex() and friendly_name(ME.author) in people
    monkeypatch.setattr("rlswarm_jax.page.folder.friendly_name", lambda author: friendly_name(ME.author))
    assert friendly_name(ME.author) not in now(folder)["people"]


def test_what_was_asked_is_made_again_by_its_seed():
    config_ = json.loads(config().to_json_best_effort())
    found = make_problems(config_)
    problem = mixture().tasks["chain_sum"].problem(7)
    asked = found("chain_sum", "7")
    assert asked["question"]["text"] == problem.compact and asked["full"]["text"] == problem.question
    assert asked["right"] == list(problem.answers) and "the same text" in asked["judged"]
    assert found("no such task", "7") is None and found("chain_sum", "x") is None
    chat = make_problems(config_ | {"model": {"prompts": "auto", "path": "a/folder"}})("chain_sum", "7")
    assert chat["question"]["text"] == problem.question and chat["full"] is None
    assert make_problems(config_ | {"tasks": {"x": {"kind": "no.such:thing"}}})("x", "7") is None


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
