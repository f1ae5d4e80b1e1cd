"""What scorers do to themselves they do to nobody else: parallel, bounded, counted, once."""

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlswarm_jax.tasks import make_mixture, process, verifier, worker
from rlswarm_jax.tasks.base import split_of
from rlswarm_jax.tasks.verifier import Verifier, VerifierError
from tests.tasks.escapes import needs_sandbox
from tests.tasks.scorers import WAIT

CHECKOUT = Path(__file__).parents[2]
KIND = {"kind": "tests.tasks.scorers:Scorers"}
USERS = ("JUDGE_KEY", "HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "no_proxy", "HOME", "XDG_CACHE_HOME", "WITH\nLINES")


class Bench:
    """Verifiers of tasks "long", whose scorers have a minute, "brief", whose have no time at all, and "quick"."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, []

    def verifier(self, workers: int = 1, **options) -> Verifier:
        common = KIND | {"folder": str(self.folder)} | options
        quick = common | {"kind": "tests.tasks.scorers:Quick"}
        tasks = {"long": common, "brief": common | {"seconds": 0.1}, "quick": quick}
        self.mixture = make_mixture(tasks)
        self.made.append(Verifier(tasks, self.mixture, workers))
        return self.made[-1]

    def items(self, *answers: str, task: str = "long", seed: int = 0, split="train"):
        return [(self.mixture.tasks[task].problem(seed, split), answer) for answer in answers]

    @property
    def calls(self) -> collections.Counter[str]:
        """How often a scorer was called, by answer."""
        path = self.folder / "calls"
        return collections.Counter(line[1:-1] for line in path.read_text().splitlines() if path.exists())

    def wait(self, name: str) -> None:
        until = time.monotonic() + WAIT
        while not (self.folder / name).exists():
            assert time.monotonic() < until, f"no {name}"
            time.sleep(0.01)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    for each in made.made:
        each.close()


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + WAIT
    while not all(map(gone, pids)):
        assert time.monotonic() < until, [pid for pid in pids if not gone(pid)]
        time.sleep(0.01)


# --- scores


def test_the_worker_scores_the_same_problem_in_the_order_asked(bench):
    """The answer names the problem's seed and split, so a worker that made another one would give 0."""
    score = bench.verifier(workers=2).score
    wanted, items = [], []
    for index in range(60):
        seed, split = 2**62 + index, ("train", "held_out")[index % 2]
        right = index % 3 > 0
        items += bench.items(f"name_it {split} {seed if right else 0}", seed=seed, split=split)
        wanted.append(float(right))
    assert score(items) == verifier.Scores(wanted, {})
    shuffled = random.Random(0).sample(range(60), 60)
    assert score([items[i] for i in shuffled]).scores == [wanted[i] for i in shuffled]
    assert bench.verifier(workers=1).score(items[::-1]).scores == wanted[::-1]
    assert score([]) == verifier.Scores([], {})


def test_what_is_no_score_is_an_error_and_nothing_else_suffers(bench, caplog):
    answers = ["say 0.25", "fail", "say nan", "say 2", "say -0.1", "say inf", "say text", "say none", "no_such_method"]
    answers += ["leave", "say np", "say 1 \ud800\0", "chatter", "fail again", "say 1"]
    scored = bench.verifier(workers=1).score(bench.items(*answers))
    assert scored.scores == [0.25, *[0.0] * 9, 0.5, 1.0, 1.0, 0.0, 1.0]
    assert scored.failures == {"error": 10}
    assert len({item[:2] for item in bench.calls}) and sum(bench.calls.values()) == len(answers)  # one worker took all
    (warning,) = [record.getMessage() for record in caplog.records]  # one of a kind: answers come from strangers
    assert "'long'" in warning and "no such" in warning and "\x1b" not in warning and "\n" not in warning


def test_quick_tasks_start_nothing(bench, caplog):
    tasks = {"quick": {"kind": "tests.tasks.scorers:Quick", "folder": str(bench.folder), "odd": object()}}
    bench.mixture = make_mixture(tasks)
    threads = threading.active_count()
    with Verifier(tasks, bench.mixture) as quick:
        items = bench.items("say 0.5", "fail", "say nan", "say " + "1" * 70_000, task="quick")
        quick.begin(items)
        assert not bench.folder.joinpath("calls").exists()
        assert quick.score(items) == verifier.Scores([0.5, 0.0, 0.0, 0.0], {"error": 2})
        assert not descendants() and threading.active_count() == threads
    assert sum(bench.calls.values()) == 3  # nobody reads an answer of that length


# --- parallel, in the background, once


def test_two_items_are_scored_at_once(bench):
    """Each waits for what the other one does."""
    scored = bench.verifier(workers=2).score(bench.items("meet a b", "meet b a"))
    assert scored.scores == [1.0, 1.0]


def test_begin_returns_while_scorers_run_and_score_takes_what_was_begun(bench):
    made = bench.verifier(workers=1)
    items = bench.items("meet begun go", "say 0.5")
    made.begin(items)
    bench.wait("begun")
    made.begin(items)
    (bench.folder / "go").touch()
    assert made.score([*items, *items]).scores == [1.0, 0.5] * 2
    made.begin(items)
    assert set(bench.calls.values()) == {1}


def test_an_item_is_scored_once_whoever_asks_and_whatever_came_of_it(bench, monkeypatch):
    monkeypatch.setattr(verifier, "GRACE", 0.1)
    made = bench.verifier(workers=2)
    items = [*bench.items("meet started go", "fail", "die", "say 0.5"), *bench.items("hang", task="brief")]
    found = []
    threads = [threading.Thread(target=lambda: found.append(made.score(items * 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    bench.wait("started")
    (bench.folder / "go").touch()
    for thread in threads:
        thread.join()
    assert found == [verifier.Scores([1.0, 0.0, 0.0, 0.5, 0.0] * 2, {"crash": 2, "error": 2, "timeout": 2})] * 4
    assert made.score(items[1:2]).failures == {"error": 1}
    calls = bench.calls
    assert calls.pop("die") <= 2  # another try, where the worker had served before
    assert set(calls.values()) == {1}
    # the same text for another problem, or of the other side, is another item
    others = [*bench.items("say 0.5", seed=1), *bench.items("say 0.5", split="held_out")]
    assert made.score(others).scores == [0.5, 0.5] and bench.calls["say 0.5"] == 3


def test_what_somebody_waits_for_goes_first(bench):
    made = bench.verifier(workers=1)
    made.begin(bench.items("meet busy go"))
    bench.wait("busy")
    made.begin(bench.items("say 0.1", "say 0.2", "say 0.3"))
    items = [*bench.items("put go", task="quick"), *bench.items("say 0.3", "say 0.4")]  # the first when all are asked
    assert made.score([*items, *bench.items("say 0.1")]).scores == [1.0, 0.3, 0.4, 0.1]
    made.score(bench.items("say 0.2"))
    assert list(bench.calls) == ["meet busy go", "put go", "say 0.3", "say 0.4", "say 0.1", "say 0.2"]


def test_memory_is_bounded(bench, monkeypatch):
    monkeypatch.setattr(verifier, "QUEUE", 2)
    monkeypatch.setattr(verifier, "MEMO", 3)
    made = bench.verifier(workers=1)
    made.begin(bench.items("meet busy go"))
    bench.wait("busy")
    made.begin(bench.items("put a", "put b", "put c", "put d"))  # the older two are forgotten
    waiting = threading.Thread(target=made.score, args=[bench.items("put e")])  # what is waited for is not
    waiting.start()
    (bench.folder / "go").touch()
    waiting.join()
    bench.wait("c"), bench.wait("d")
    assert made.score(bench.items("put a", "put b")).scores == [1.0, 1.0]
    assert bench.calls == {"meet busy go": 1} | {f"put {name}": 1 for name in "abcde"}
    made.score(bench.items("put b", "meet busy go"))  # the latest is remembered, the first no more
    assert bench.calls == {"meet busy go": 2} | {f"put {name}": 1 for name in "abcde"}


# --- what hangs, dies, lies or hoards


def test_what_hangs_is_killed_with_all_it_started_and_the_others_come_back(bench, monkeypatch):
    monkeypatch.setattr(verifier, "GRACE", 3.0)
    made = bench.verifier(workers=2)
    items = [*bench.items("say 1", "say 0.5"), *bench.items("hang", task="brief"), *bench.items("say 0.25", "say 0.75")]
    assert made.score(items) == verifier.Scores([1.0, 0.5, 0.0, 0.25, 0.75], {"timeout": 1})
    pids = json.loads((bench.folder / "pids").read_text())
    wait_until_gone(pids if sys.platform == "linux" else pids[:2])
    assert made.score(bench.items("say 0.1", "say 0.2")).scores == [0.1, 0.2]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux only")
def test_what_dies_lies_or_hoards_is_a_crash_of_that_item_only(bench):
    answers = ["die", "garbage long", "garbage noise", "garbage forged", "garbage empty", "hog"]
    scored = bench.verifier(workers=1).score(bench.items(*answers, "say 1"))
    assert scored == verifier.Scores([0.0] * 6 + [1.0], {"crash": 6})


@pytest.mark.parametrize("ruin", ["late_garbage", "late_death"])
def test_an_item_is_not_blamed_for_what_an_earlier_one_did_to_its_worker(bench, ruin):
    made = bench.verifier(workers=1)
    assert made.score(bench.items(ruin)).scores == [1.0]
    assert made.score(bench.items("be_next")) == verifier.Scores([0.75], {})
    assert bench.calls["be_next"] == 2


def test_a_forged_reason_does_not_reach_the_terminal(bench, caplog):
    assert bench.verifier().score(bench.items("forge")).failures == {"error": 1}
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "x x x" in warning and warning.isprintable() and len(warning) < 500


# --- the process


def test_a_worker_has_no_jax_and_no_core_files_and_its_parent_s_environment(bench, monkeypatch):
    for name in USERS:
        monkeypatch.setenv(name, f"of {name}\nand é")
    monkeypatch.setenv("PYTHONPATH", str(bench.folder))
    monkeypatch.delenv("LANG", raising=False)
    assert bench.verifier().score(bench.items("describe")).scores == [1.0]
    about = json.loads((bench.folder / "about").read_text())
    assert about["pid"] != os.getpid()
    assert "rlswarm_jax.tasks" in about["modules"] and "jax" not in about["modules"]
    about["environ"].pop("LC_CTYPE", "")  # which Python sets where nothing says another
    assert about["environ"] == {k: v for k, v in os.environ.items() if k != "LC_CTYPE"} | process.GIVEN
    core, memory = about["limits"]
    assert core == [0, 0]
    assert about["to nowhere"] == [True] * 3
    if sys.platform == "linux":
        assert worker.MEMORY <= memory[0] < 2 * worker.MEMORY


@needs_sandbox
def test_a_program_sees_nothing_of_the_environment_that_its_worker_sees(tmp_path, monkeypatch):
    """As it is scored, or wherever it looks for it."""
    monkeypatch.setenv("JUDGE_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "Look.", "io": [["", "nothing\n"]]}) + "\n")
    tasks = {"look": {"kind": "code", "path": str(tmp_path / "rows.jsonl")}}
    mixture = make_mixture(tasks)
    split = "train" if split_of("look", mixture.tasks["look"]._rows[0].text) == "train" else "held_out"
    look = (
        "import glob, os\n"
        "found = [repr(dict(os.environ)), repr(os.environb)]\n"
        "for path in ['/proc/self/environ', '/proc/1/environ', *glob.glob('/proc/*/environ')]:\n"
        "    try:\n"
        "        found.append(open(path).read())\n"
        "    except OSError:\n"
        "        pass\n"
        "print('something' if any(w in t for t in found for w in ('JUDGE', 'HF_', 'hidden')) else 'nothing')\n"
    )
    with Verifier(tasks, mixture, 1) as verifier:
        problem = mixture.tasks["look"].problem(0, split)
        assert verifier.score([(problem, look), (problem, "print('else')")]).scores == [1.0, 0.0]


def test_a_task_of_the_working_directory(tmp_path):
    (tmp_path / "my_tasks.py").write_text("from tests.tasks.scorers import Scorers\nmake = Scorers\n")
    (tmp_path / "play.py").write_text(
        f"import sys; sys.path[:0] = ['', {str(CHECKOUT)!r}]\n"
        "from rlswarm_jax.tasks import make_mixture\n"
        "from rlswarm_jax.tasks.verifier import Verifier\n"
        "tasks = {'mine': {'kind': 'my_tasks:make', 'folder': '.', 'sizes': (1, 2)}}\n"
        "mixture = make_mixture(tasks)\n"
        "with Verifier(tasks, mixture) as verifier:\n"
        "    print(verifier.score([(mixture.problem(5), 'name_it train 5')]).scores)\n"
    )
    command = [sys.executable, "-I", "play.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.stdout, done.stderr) == ("[1.0]\n", "")


@pytest.mark.parametrize("how", ["killed", "exits"])
def test_a_parent_that_is_gone_leaves_nothing_behind(tmp_path, how):
    program = (
        "import os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from rlswarm_jax.tasks import make_mixture\n"
        "from rlswarm_jax.tasks.verifier import Verifier\n"
        f"tasks = {{'long': {KIND | {'folder': str(tmp_path)}!r}}}\n"
        "mixture = make_mixture(tasks)\n"
        "verifier = Verifier(tasks, mixture)\n"
        "verifier.begin([(mixture.problem(0), 'hang')])\n"
        "while not Path(sys.argv[1], 'pids').exists() or sys.argv[2] == 'killed':\n"
        "    time.sleep(0.01)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), how]
    with subprocess.Popen(command, cwd=CHECKOUT) as parent:
        until = time.monotonic() + WAIT
        while not (tmp_path / "pids").exists():
            assert parent.poll() in (None, 0) and time.monotonic() < until
            time.sleep(0.01)
        if how == "killed":
            parent.send_signal(signal.SIGKILL)
        assert parent.wait(WAIT) == (-signal.SIGKILL if how == "killed" else 0)
    pids = json.loads((tmp_path / "pids").read_text())
    wait_until_gone(pids if sys.platform == "linux" else pids[:2])


@pytest.mark.parametrize("fate", ["killed", "stopped", "kept stopped"])
def test_a_guard_that_is_killed_or_stopped_keeps_no_scorer_alive(bench, fate, monkeypatch):
    monkeypatch.setattr(process, "END_SECONDS", 0.2 if fate == "kept stopped" else WAIT)
    made = bench.verifier()
    made.begin(bench.items("hang"))
    bench.wait("pids")
    scorer, guard, *started = json.loads((bench.folder / "pids").read_text())
    os.kill(guard, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
    if fate == "kept stopped":
        monkeypatch.setattr(subprocess.Popen, "send_signal", lambda *_: None)
    made.close()
    if sys.platform == "linux":
        wait_until_gone([scorer, guard, *(started if fate == "stopped" else [])])
    for pid in started:  # nobody is left to do it
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    wait_until_gone([guard])


# --- the end


def test_closing_ends_what_is_in_flight_and_who_waits_for_it(bench):
    made = bench.verifier(workers=1)
    raised = []

    def wait():
        with pytest.raises(VerifierError, match="closed") as error:
            made.score(bench.items("hang", "say 1"))
        raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    bench.wait("pids")
    made.close()
    waiting.join(WAIT)
    assert raised and not descendants()
    made.close()
    made.begin(bench.items("say 1"))
    with pytest.raises(VerifierError, match="closed"):
        made.score(bench.items("say 1"))
    assert not descendants()


def test_closing_while_a_worker_starts(bench):
    made = bench.verifier(workers=2)
    made.begin(bench.items("say 1", "say 0.5"))
    made.close()
    assert not descendants()
    bench.verifier().close()  # one that never started any


@pytest.mark.parametrize(
    ("options", "said"),
    [({"only_in": os.getpid()}, "files are not here"), ({"fickle": True}, "fingerprint")],
)
def test_tasks_that_a_worker_cannot_make_are_said_to_whoever_asks(bench, options, said):
    made = bench.verifier(workers=2, **options)
    for answers in (["say 1", "say 0.5"], ["say 0.25"]):
        with pytest.raises(VerifierError, match=said):
            made.score(bench.items(*answers))
    made.close()
    assert not descendants()


def test_a_worker_that_does_not_start_is_tried_again_and_then_explained(bench, monkeypatch):
    monkeypatch.setattr(verifier, "START_TRIES", 2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(verifier.NoWorkerError, match=r"no worker starts.*No such file"):
        bench.verifier().score(bench.items("say 1"))


def test_options_that_cannot_be_told_are_refused(tmp_path):
    tasks = {"long": KIND | {"folder": str(tmp_path), "odd": object()}}
    with pytest.raises(VerifierError, match="plain"):
        Verifier(tasks, make_mixture(tasks))
    with pytest.raises(VerifierError, match="at least one worker"):
        Verifier({}, make_mixture(tasks), workers=0)


# --- what peers' answers may cost


def test_one_whose_answers_take_long_is_not_scored_further_and_everybody_else_is(bench, monkeypatch):
    monkeypatch.setattr(verifier, "SHARE", 0.5)
    made = bench.verifier(workers=1)
    hog, peer, own = frozenset([b"hog"]), frozenset([b"peer"]), frozenset()
    slow = bench.items(*[f"nap 0.2 {number}" for number in range(12)])
    theirs, mine = bench.items("say 0.5", "say 0.25"), bench.items("nap 0.2 own", "say 0.75")
    items = [*slow, *theirs, *mine]
    scored = made.score(items, [hog] * 12 + [peer] * 2 + [own] * 2)
    assert scored.scores[12:] == [0.5, 0.25, 1.0, 0.75]
    assert scored.costly == list(range(scored.costly[0], 12)) and 1 <= scored.costly[0] <= 3
    assert scored.failures == {"costly": len(scored.costly)} and not any(scored.scores[n] for n in scored.costly)
    # the next round has its own share, and what was not scored is not remembered as if it had been
    again = made.score(slow[-2:], [hog] * 2)
    assert again.scores == [1.0, 1.0] and not again.costly


def test_what_all_peers_answers_take_is_bounded_too(bench, monkeypatch):
    monkeypatch.setattr(verifier, "SHARE", 0.3)
    made = bench.verifier(workers=1)
    items = bench.items(*[f"nap 0.2 {number}" for number in range(20)])
    scored = made.score(items, [frozenset([b"key %d" % number]) for number in range(20)])
    assert 14 <= len(scored.costly) <= 19  # 4 * 0.3 s, of 4 s
    assert made.score(items).costly == []  # its own answers a node scores whatever they cost


def test_an_answer_of_several_is_scored_if_one_of_them_has_not_spent_their_share(bench, monkeypatch):
    monkeypatch.setattr(verifier, "SHARE", 0.3)
    made = bench.verifier(workers=1)
    hog, both = frozenset([b"hog"]), frozenset([b"hog", b"peer"])
    items = bench.items(*[f"nap 0.2 {number}" for number in range(4)], "say 0.5")
    scored = made.score(items, [*[hog] * 4, both])
    assert scored.scores[-1] == 0.5 and 4 not in scored.costly and scored.costly
