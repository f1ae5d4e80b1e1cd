"""A round is shown as it was: against what the nodes of a round by hand were asked, said and earned."""

import io
import json
import re
import statistics
import unicodedata

import pytest
from rich.console import Console

from configs import quickstart
from experiments import show
from rlswarm_jax import files
from rlswarm_jax.audit.played import Played
from rlswarm_jax.game.effects import Learn, encode_result
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.reporting.round_page import RoundPage
from tests.game.hand_driver import ALICE, BOB, ME, TASKS, Speaker, play_together, three_stages, tokenizer

ROUND = 1
NODES = (ME, ALICE, BOB)


def config():
    """Of the game that `three_stages` plays."""
    made = quickstart.get_config("simulate-smoke")
    made.seed, made.rounds = 17, 10
    made.swarm.name, made.swarm.local_groups, made.swarm.max_staleness, made.swarm.nodes = "tests", 3, 2, 3
    made.game.shared, made.sampling.group_size, made.evaluation.every = 2, 4, 4
    made.game.derivation_reward = 0.0
    made.chain.endpoint = "none"
    with made.unlocked():
        made.tasks = TASKS
    return made


@pytest.fixture(scope="module")
def played():
    """A round in which Bob is wrong always, so that he has nothing to teach."""
    return play_together({ME: Speaker(), ALICE: Speaker(), BOB: Speaker(lambda p, g, right: f"{p}z")})


def write(directory, played, index, *, without=()):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / files.CONFIG_FILE).write_text(config().to_json_best_effort())
    journal = Journal(directory / files.JOURNAL_FILE)
    for entry in rows_of(played, index):
        if entry.kind not in without:
            journal.write(entry)
    journal.close()


def rows_of(played, index):
    yield Entry(index, ROUND, 0, "begin", b"", 0.0)
    for step, (effect, result) in enumerate(zip(played.effects, played.results, strict=True), start=1):
        yield Entry(index, ROUND, step, type(effect).__name__, encode_result(effect, result), 0.0)


@pytest.fixture
def simulated(tmp_path, played):
    """One journal of all nodes."""
    for index, who in enumerate(NODES):
        write(tmp_path / "run", played[who], index)
    row = {"node": 0, "name": friendly_name(ME.author), "round": ROUND, f"learned_from/{ALICE.author.hex()}": 2.0}
    (tmp_path / "run" / files.METRICS_FILE).write_text(json.dumps(row) + "\n")
    return tmp_path / "run"


@pytest.fixture
def live(tmp_path, played):
    """A journal for each node."""
    for index, who in enumerate(NODES):
        write(tmp_path / "swarm" / f"node-{index}", played[who], 0)
    return tmp_path / "swarm"


def shown(capsys, *arguments):
    code = show.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def groups(text):
    """(stage, index) -> [(reward, advantage, text)] of what is printed in full."""
    found = {}
    for part in re.split(r"\n(?=(?:answer|critique|revise), problem )", text)[1:]:
        head = re.match(r"(\w+), problem (\d+)", part)
        rows = re.findall(r"^completion \d+: reward ([\d.]+), advantage ([-+][\d.]+).*\n  │ (.*)$", part, re.MULTILINE)
        found[head[1], int(head[2])] = [(float(reward), float(advantage), text) for reward, advantage, text in rows]
    return found


@pytest.mark.parametrize("layout", ["simulated", "live"])
def test_every_own_completion_is_there_with_what_it_earned(layout, request, played, capsys):
    directory = request.getfixturevalue(layout)
    for index, who in enumerate(NODES):
        code, text, _ = shown(capsys, directory, "--round", ROUND, "--node", index)
        assert code == 0 and friendly_name(who.author) in text.splitlines()[0]
        found, records = groups(text), played[who].records
        expected = {(stage, group.index): group for stage, record in records.items() for group in record.groups}
        assert found.keys() == expected.keys()
        rewards = {(g.stage, g.index): g.rewards for g in played[who].one(Learn).groups if not g.external}
        for at, group in expected.items():
            assert [text for _, _, text in found[at]] == [completion.text for completion in group.completions]
            earned = [reward for reward, _, _ in found[at]]
            assert earned == pytest.approx(rewards.get(at, [earned[0]] * 4), abs=0.005)
            spread = statistics.pstdev(earned)
            for reward, advantage, _ in found[at]:
                wanted = (reward - statistics.fmean(earned)) / spread if spread else 0.0
                assert advantage == pytest.approx(wanted, abs=0.006)
        assert "computed again" not in text


def test_prompts_votes_and_teachers_are_shown(simulated, played, capsys):
    _, text, _ = shown(capsys, simulated)  # the last round of the first node
    for effect in played[ME].effects:
        for prompt in getattr(effect, "prompts", ()):
            decoded = tokenizer().backend.decode(prompt, skip_special_tokens=False)
            assert f"  │ {decoded}\n" in text
    critiques = played[ME].records["critique"].groups
    votes = re.findall(r"^votes for (.*)$", text, re.MULTILINE)
    assert len(votes) == len(critiques)
    for vote, group in zip(votes, critiques, strict=True):
        view = played[ME].shown(three_stages(ME), "critique")[group.index]
        assert repr(view.answers[group.vote - 1]) in vote if group.vote else vote == "none of them"
    assert f"and from {friendly_name(ALICE.author)}: 2 groups" in text
    assert "heard: 6 records of 2 peers" in text


def test_peers_are_shown_in_a_line_and_in_full_if_asked_for(simulated, played, capsys):
    _, brief, _ = shown(capsys, simulated)
    _, full, _ = shown(capsys, simulated, "--peers")
    lines = [line for line in brief.splitlines() if line.startswith(f"{friendly_name(BOB.author)}, round")]
    assert len(lines) == sum(len(record.groups) for record in played[BOB].records.values())
    said = {c.text for record in played[ALICE].records.values() for group in record.groups for c in group.completions}
    assert all(f"  │ {text}\n" in full for text in said)
    assert len(full) > 2 * len(brief)


def test_scores_that_are_gone_are_computed_again_and_that_is_said(tmp_path, played, capsys):
    write(tmp_path / "whole", played[ME], 0)
    write(tmp_path / "pruned", played[ME], 0, without=("begin", "Evaluate", "Sample", "Verify", "Score", "Learn"))
    _, whole, _ = shown(capsys, tmp_path / "whole")
    code, pruned, _ = shown(capsys, tmp_path / "pruned")
    assert code == 0 and "they were computed again" in pruned
    assert groups(pruned) == groups(whole)


def test_scores_are_as_they_were_then(tmp_path, played, capsys):
    """A scorer that ran out of time gave 0 for what is right."""
    timed_out = [
        entry._replace(result=encode_result(effect, type(result)([0.0] * len(result.scores), {"timeout": 1})))
        if (entry.kind == "Score")
        else entry
        for entry, effect, result in zip(
            list(rows_of(played[ME], 0))[1:], played[ME].effects, played[ME].results, strict=True
        )
    ]
    directory = tmp_path / "run"
    write(directory, played[ME], 0, without=[effect.__class__.__name__ for effect in played[ME].effects])
    journal = Journal(directory / files.JOURNAL_FILE)
    for entry in timed_out:
        journal.write(entry)
    journal.close()
    _, text, _ = shown(capsys, directory)
    answers = [row for (stage, _), rows in groups(text).items() if stage == "answer" for row in rows]
    assert answers and all(reward == 0 for reward, _, _ in answers)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--round", "7"], "round 7 of {me} is not in its journal; there are 1."),
        (["--node", "9"], "there is no node '9' in {dir}; there are 0 {me}, 1 {alice}, 2 {bob}."),
    ],
)
def test_what_is_not_there_is_one_sentence_that_says_what_is(simulated, capsys, arguments, says):
    names = {"me": friendly_name(ME.author), "alice": friendly_name(ALICE.author), "bob": friendly_name(BOB.author)}
    code, out, err = shown(capsys, simulated, *arguments)
    assert (code, out, err) == (2, "", f"error: {says.format(dir=simulated, **names)}\n")


def test_a_node_goes_by_its_name_too(live, capsys):
    by_name = shown(capsys, live, "--node", friendly_name(BOB.author))
    assert by_name == shown(capsys, live, "--node", 2) and by_name[0] == 0


def test_folders_without_rounds_are_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, _, err = shown(capsys, tmp_path / "empty")
    assert code == 2 and err.count("\n") == 1 and "no node and of no swarm" in err
    (tmp_path / "swarm" / "node-0").mkdir(parents=True)
    code, _, err = shown(capsys, tmp_path / "swarm")
    assert code == 2 and err.count("\n") == 1 and "holds no round yet" in err
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / files.JOURNAL_FILE).write_bytes(b"SQLite? no" * 100)
    code, _, err = shown(capsys, broken)
    assert code == 2 and err.count("\n") == 1 and "cannot read the journal" in err


def test_a_running_node_s_journal_can_be_read(tmp_path, played, capsys):
    write(tmp_path / "run", played[ME], 0)
    journal = Journal(tmp_path / "run" / files.JOURNAL_FILE)
    journal.write(Entry(0, 2, 0, "begin", b"", 0.0))
    assert shown(capsys, tmp_path / "run")[0] == 0
    journal.close()


HOSTILE = (
    "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp\u2066\u200f\r\x00[bold red]x[/]:skull: [link=http://x]y[/link]\ud800"
)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_a_peer_writes_acts_on_the_terminal(terminal):
    console = Console(file=io.StringIO(), width=24, force_terminal=terminal, color_system=None)
    page = RoundPage(console, None, Played(), {}, {})
    page.quote(HOSTILE + "\ncompletion 0: reward 9.00" + " " * 30 + "completion 1: reward 1.00")
    printed = console.file.getvalue()
    assert all(c == "\n" or unicodedata.category(c)[0] not in "C" for c in printed)
    assert all(line.startswith("  │ ") for line in printed.splitlines())
    joined = "".join(line.removeprefix("  │ ") for line in printed.splitlines())
    assert "[bold red]x[/]:skull: [link=http://x]y[/link]" in joined and "\\x1b[2J" in joined and "\\u202e" in joined


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        show.main(["--help"])
    assert stop.value.code == 0
    assert "python -m experiments.show runs/quickstart --round 100" in capsys.readouterr().out


def test_a_late_record_is_read_with_what_was_said_in_its_round(tmp_path, capsys):
    first = play_together(dict.fromkeys(NODES, Speaker()))
    states = {who: NodeState(round=2, sheets=one.state.sheets, pool=one.state.pool) for who, one in first.items()}
    second = play_together(dict.fromkeys(NODES, Speaker()), states=states)
    late = first[BOB].said["revise"]
    write(tmp_path / "run", first[ME], 0, without=("Learn",))
    journal = Journal(tmp_path / "run" / files.JOURNAL_FILE)
    done = False
    journal.write(Entry(0, 2, 0, "begin", b"", 0.0))
    for step, (effect, result) in enumerate(zip(second[ME].effects, second[ME].results, strict=True), start=1):
        if type(effect).__name__ == "Gather" and not done:
            result, done = [late, *result], True
        journal.write(Entry(0, 2, step, type(effect).__name__, encode_result(effect, result), 0.0))
    journal.close()
    code, text, _ = shown(capsys, tmp_path / "run", "--round", 2)
    assert code == 0 and f"{friendly_name(BOB.author)}, round 1, revise, problem 0" in text
