import ast
import copy
import csv
import decimal
import json
import math
import operator
import re
import sys
import types
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from rlswarm_jax.tasks import TaskError, cells, make_mixture, rows
from rlswarm_jax.tasks.base import HELD_OUT_ONE_IN, fold
from rlswarm_jax.tasks.dataset import Counts, DatasetTask

WORDS = {"path": "embedded:word_problems", "check": "numeric"}
ROWS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n), "level": n % 3} for n in range(200)]


def write(file: Path, given=ROWS) -> str:
    """Rows as a file of the kind that its name says."""
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in given))
        case ".json":
            file.write_text(json.dumps(given))
        case ".csv":
            with file.open("w", newline="") as target:
                writer = csv.DictWriter(target, list(given[0]))
                writer.writeheader()
                writer.writerows(given)
        case ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(given), file)
    return str(file)


def everything(task: DatasetTask, split="train"):
    """All problems of a split: enough seeds that none is missed."""
    seen = {}
    for seed in range(20 * len(ROWS)):
        problem = task.problem(seed, split)
        seen.setdefault(problem.question, problem)
    return seen


# --- the data set that comes with the package

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def arithmetic(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp), ast.dump(node)
    return OPERATORS[type(node.op)](arithmetic(node.left), arithmetic(node.right))


def test_the_word_problems_are_answered_right():
    found = [row for _, row in rows.read("embedded:word_problems").rows]
    assert len(found) >= 60
    assert len({fold(row["question"]) for row in found}) == len({row["compact"] for row in found}) == len(found)
    for row in found:
        assert set(row) == {"question", "compact", "answer", "expression"}
        assert arithmetic(ast.parse(row["expression"], mode="eval").body) == Fraction(row["answer"]), row
        assert row["compact"] == row["expression"] + "="
        assert row["question"].isascii() and row["question"].endswith(("?", "fraction."))


def test_the_word_problems_are_a_task():
    mixture = make_mixture({"words": {"kind": "dataset", "compact": "compact", **WORDS}, "gcd": {}})
    task = mixture.tasks["words"]
    assert task.seconds == 0 and sum((task.counts.train, task.counts.held_out)) >= 60
    problems = [task.problem(seed) for seed in range(50)]
    for problem in problems:
        assert problem.task == "words" and problem.verifiable
        assert mixture.score(problem, problem.answers[0]) == 1.0
        assert mixture.score(problem, f"  {Fraction(problem.answers[0]) * 7}/7 ") == float(
            "/" not in problem.answers[0]
        )
        assert mixture.score(problem, problem.answers[0] + "1") == mixture.score(problem, "") == 0.0
    assert {"train", "held_out"} == {task.problem(0, split).split for split in ("train", "held_out")}


# --- every kind of source


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_rows_are_the_same_from_every_kind_of_file(tmp_path, suffix):
    path = write(tmp_path / f"data{suffix}")
    task = DatasetTask("sums", {"path": path, "columns": ["level"]})
    first = DatasetTask("sums", {"path": write(tmp_path / "first.jsonl"), "columns": ("level",)})
    for seed in range(100):
        problem = task.problem(seed)
        assert problem == first.problem(seed)
        assert int(problem.data["level"]) == first.problem(seed).data["level"]
    if suffix != ".csv":  # which has no numbers, only texts
        assert task.fingerprint == first.fingerprint


def test_a_folder_that_datasets_saved_is_read_by_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {"train": datasets.Dataset.from_list(ROWS[:150]), "test": datasets.Dataset.from_list(ROWS[150:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    task = DatasetTask("sums", {"path": str(tmp_path / "both"), "held_out_split": "test"})
    assert task.counts == Counts(150, 50, 0, 0)
    assert [row for _, row in rows.read(str(tmp_path / "one")).rows] == ROWS[:150]
    with pytest.raises(TaskError, match=r"no split 'dev'; it has train, test"):
        rows.read(str(tmp_path / "both"), "dev")
    (tmp_path / "other").mkdir()
    with pytest.raises(TaskError, match="not a folder that datasets has saved"):
        rows.read(str(tmp_path / "other"))


class Hub(types.ModuleType):
    """Stands in for the datasets library: what is asked of it, and what it says."""

    def __init__(self, answer):
        super().__init__("datasets")
        self.asked = []
        self.answer = answer
        self.exceptions = types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))

    def load_dataset(self, path, name=None, *, split, revision):
        self.asked.append((path, name, split, revision))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer[split]


def test_a_hub_id_is_asked_of_datasets(monkeypatch):
    """GSM8K as it is on the hub: the answer ends a rationale, test is held out."""
    known = {"question": "What is  1 + 1?", "answer": "By counting.\n#### 2"}
    train = [
        {"question": f"{n} dozen?", "answer": f"{n} times 12 is <<{n}*12={12 * n}>>\n#### {12 * n:,}"}
        for n in range(99)
    ]
    hub = Hub({"train": [*train, known], "test": [{**known, "question": "what is 1 + 1?"}, *train[:3], *train[:2]]})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    task = DatasetTask(
        "gsm8k",
        dict(path="openai/gsm8k", subset="main", held_out_split="test", answer_after="####", check="numeric"),
    )
    assert hub.asked == [("openai/gsm8k", "main", "train", None), ("openai/gsm8k", "main", "test", None)]
    assert task.counts == Counts(train=96, held_out=4, repeated=2, in_both=4)
    problem = everything(task)["98 dozen?"]
    assert problem.answers == ("1,176",)
    assert task.score(problem, "1176") == task.score(problem, "$1,176.00") == 1.0
    assert task.score(problem, "1177") == task.score(problem, "98 times 12") == 0.0


@pytest.mark.parametrize(
    "error", [ConnectionError("no network\nmore"), ValueError("no network"), OSError("no network")]
)
def test_a_hub_that_cannot_be_reached_is_one_clear_sentence(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "datasets", Hub(error))
    with pytest.raises(TaskError, match=r"^data set 'a/b' .* cannot be had from .* hub or its cache: no network\.$"):
        rows.read("a/b")


def test_what_is_not_installed_is_an_error_that_says_how_to_install_it(monkeypatch, tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    (tmp_path / "folder").mkdir()
    for module in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    for path in ("openai/gsm8k", str(tmp_path / "folder"), str(tmp_path / "data.parquet")):
        with pytest.raises(TaskError, match=r"not installed: pip install 'rlswarm_jax\[datasets\]'"):
            rows.read(path)
    rows.read(write(tmp_path / "data.jsonl"))  # which needs neither


# --- what a row becomes


def test_columns_have_the_names_that_the_config_says(tmp_path):
    given = [
        {"problem": f"p{n}", "solution": rf"So \boxed{{9}}, no: \boxed{{\frac{{{n}}}{{7}}}}.", "short": f"{n}:7="}
        for n in range(40)
    ]
    path = write(tmp_path / "math.jsonl", given)
    task = DatasetTask(
        "math",
        dict(path=path, question="problem", answer="solution", answer_boxed=True, compact="short", check="math"),
    )
    assert task.seconds == 5
    problem = everything(task)["p3"] if "p3" in everything(task) else everything(task, "held_out")["p3"]
    assert (problem.compact, problem.answers, problem.data) == ("3:7=", (r"\frac{3}{7}",), None)
    assert task.score(problem, "3/7") == task.score(problem, r"it is \boxed{\dfrac{6}{14}}") == 1.0
    assert task.score(problem, "3/8") == task.score(problem, "9") == 0.0


def test_a_template_takes_columns_by_name_and_nothing_else(tmp_path):
    given = [{"a": n, "b": "$a {a.__class__}", "answer": n} for n in range(20)]
    path = write(tmp_path / "data.jsonl", given)
    task = DatasetTask("sums", {"path": path, "template": "$a for $$5 {a.__class__} ${b}"})
    assert set(everything(task)) | set(everything(task, "held_out")) == {
        f"{n} for $5 {{a.__class__}} $a {{a.__class__}}" for n in range(20)
    }
    with pytest.raises(TaskError, match=r"data.jsonl, line 1: there is no column 'c'; there are 'a', 'b', 'answer'"):
        DatasetTask("sums", {"path": path, "template": "$c"})
    with pytest.raises(TaskError, match=r"template .* has a \$ that names no column"):
        DatasetTask("sums", {"path": path, "template": "$5"})


def test_messages_are_a_question(tmp_path):
    given = [
        {"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{n}+1"}], "answer": n + 1}
        for n in range(30)
    ]
    task = DatasetTask("sums", {"path": write(tmp_path / "data.jsonl", given), "question": "prompt"})
    assert everything(task).keys() <= {f"Add.\n\n{n}+1" for n in range(30)}


def test_a_data_set_without_answers_has_problems_that_nobody_scores(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"question": f"Q{n}"} for n in range(30)])
    task = DatasetTask("open", {"path": path, "check": "none"})
    problem = task.problem(1)
    assert not problem.verifiable and problem.answers == () and task.seconds == 0
    assert task.score(problem, "") == task.score(problem, "Q1") == 0.0


# --- problems by seed, and what is held out


def test_a_problem_is_a_function_of_its_seed(tmp_path):
    path = write(tmp_path / "data.jsonl")
    first, second = (DatasetTask("sums", {"path": path}) for _ in range(2))
    seeds = [0, 1, 2**32, 2**63 - 1]
    assert [first.problem(seed) for seed in seeds] == [second.problem(seed) for seed in reversed(seeds)][::-1]
    assert [first.problem(seed).seed for seed in seeds] == seeds
    assert first.problem(0) != first.problem(2**32)
    assert len(everything(first)) == first.counts.train  # each of its rows comes
    assert {first.problem(seed) for seed in range(9)} != {
        DatasetTask("other", {"path": path}).problem(seed) for seed in range(9)
    }


def test_one_row_in_eight_is_held_out_and_the_same_ones_in_every_task(tmp_path):
    path = write(tmp_path / "data.jsonl")
    task = DatasetTask("sums", {"path": path})
    shuffled = [{**row, "question": f"  {row['question'].upper()} "} for row in reversed(ROWS)]
    other = DatasetTask("other", {"path": write(tmp_path / "other.jsonl", shuffled), "check": "numeric"})
    train, held_out = everything(task), everything(task, "held_out")
    assert not train.keys() & held_out.keys() and train.keys() | held_out.keys() == {row["question"] for row in ROWS}
    assert {fold(question) for question in everything(other, "held_out")} == {fold(question) for question in held_out}
    expected = len(ROWS) / HELD_OUT_ONE_IN
    assert abs(len(held_out) - expected) < 4 * (expected * (1 - 1 / HELD_OUT_ONE_IN)) ** 0.5


def test_a_question_in_both_files_is_held_out_only_and_counted(tmp_path, caplog):
    again = {**ROWS[3], "question": " what is 3  + 3? "}  # the same but for case and white space
    train = write(tmp_path / "train.jsonl", [*ROWS[:100], ROWS[0]])
    held_out = write(tmp_path / "test.jsonl", [again, *ROWS[90:120], ROWS[119]])
    task = DatasetTask("sums", {"path": train, "held_out_path": held_out})
    assert task.counts == Counts(train=89, held_out=31, repeated=2, in_both=11)
    assert "11 training rows are left out" in caplog.text
    questions = [{fold(question) for question in everything(task, split)} for split in ("train", "held_out")]
    assert not questions[0] & questions[1]
    assert questions[1] == {fold(row["question"]) for row in [again, *ROWS[90:120]]}


def test_a_compact_form_is_never_in_both_splits(tmp_path):
    """A model that sees only the compact form must not be trained on what it is tested on."""
    given = [{"question": f"Q{n}", "answer": n % 50, "compact": f"c{n % 50}"} for n in range(200)]
    path = write(tmp_path / "data.jsonl", given)
    other = write(tmp_path / "other.jsonl", [{"question": f"R{n}", "answer": n, "compact": f"c{n}"} for n in range(9)])
    for more in ({}, {"held_out_path": other}):
        task = DatasetTask("sums", {"path": path, "compact": "compact", **more})
        train, held_out = ({p.compact for p in everything(task, split).values()} for split in ("train", "held_out"))
        assert not train & held_out and len(train | held_out) == 50


def test_a_split_that_is_empty_is_an_error(tmp_path):
    path = write(tmp_path / "data.jsonl", ROWS[:1])
    task = DatasetTask("sums", {"path": path})
    split = "held_out" if task.counts.train else "train"
    with pytest.raises(TaskError, match=f"'sums' has no {split} problems, .* is too small"):
        task.problem(0, split)


def test_a_fingerprint_tells_apart_what_makes_or_scores_problems_differently(tmp_path, monkeypatch):
    path = write(tmp_path / "data.jsonl")
    prints = {}

    def of(label, options, name="sums"):
        prints[label] = DatasetTask(name, {"path": path, **options}).fingerprint

    of("first", {})
    of("check", {"check": "numeric"})
    of("math", {"check": "math"})
    of("slower", {"check": "math", "seconds": 6})
    of("columns", {"columns": ("level",)})
    of("question", {"template": "$question "})
    of("compact", {"compact": "answer"})
    of("name", {}, "other")
    of("held out", {"held_out_path": write(tmp_path / "test.jsonl", ROWS[:3])})
    of("an answer", {"path": write(tmp_path / "answer.jsonl", [*ROWS[:-1], {**ROWS[-1], "answer": "4"}])})
    of("order", {"path": write(tmp_path / "order.jsonl", ROWS[::-1])})
    of("fewer", {"path": write(tmp_path / "fewer.jsonl", ROWS[:-1])})
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9.9")
    of("another math-verify", {"check": "math"})
    assert len(set(prints.values())) == len(prints)
    of("elsewhere", {"path": write(tmp_path / "copy.json")})  # the same rows are the same task wherever they lie
    assert prints["elsewhere"] == prints["first"]


# --- what is refused

HOSTILE = {  # file name: (content, what the error says)
    "cut.jsonl": (b'{"question": "a", "answer": "1"}\n{"question": "b"', r"cut.jsonl, line 2: it is not JSON"),
    "list.jsonl": (b'\n\n["a", "1"]\n', r"list.jsonl, line 3: it holds a list; expected an object"),
    "latin.jsonl": (b'{"question": "a", "answer": "1"}\n{"question": "\xe9"}', r"latin.jsonl, line 2: it is not UTF-8"),
    "huge.jsonl": (b'{"question": "' + b"a" * 1_000_001, r"huge.jsonl, line 1: it is longer than 1,000,000 bytes"),
    "deep.jsonl": (b"[" * 500_000, r"deep.jsonl, line 1: it is nested too deeply"),
    "digits.jsonl": (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", r"digits.jsonl, line 1: .*digits"),
    "nan.jsonl": (b'{"question": "a", "answer": NaN}', r"nan.jsonl, line 1: .*NaN is no number"),
    "missing.jsonl": (
        b'{"question": "a", "reply": "1"}',
        r"line 1: there is no column 'answer'; there are 'question', 'reply'",
    ),
    "number.jsonl": (
        b'{"question": "a", "answer": "1"}\n{"question": "b", "answer": [1]}',
        r"line 2: 'answer' is a list",
    ),
    "null.jsonl": (b'{"question": null, "answer": "1"}', r"line 1: 'question' is a NoneType; expected text"),
    "truth.jsonl": (b'{"question": "a", "answer": true}', r"line 1: 'answer' is a bool"),
    "blank.jsonl": (b'{"question": " ", "answer": "1"}', r"line 1: 'question' is empty"),
    "half.jsonl": (rb'{"question": "\ud800", "answer": "1"}', r"line 1: 'question' has half a surrogate pair"),
    "empty.jsonl": (b"", r"empty.jsonl is empty"),
    "lines.jsonl": (b"\n \n", r"lines.jsonl is empty"),
    "empty.json": (b"", r"empty.json is empty"),
    "object.json": (b'{"question": "a"}', r"object.json holds a dict; expected an array"),
    "item.json": (b'[{"question": "a", "answer": "1"}, 7]', r"item.json, row 2: it holds a int"),
    "latin.json": (b'[{"question": "\xe9"}]', r"latin.json is not UTF-8 .*byte 15"),
    "deep.json": (b"[" * 500_000, r"deep.json: it is nested too deeply"),
    "empty.csv": (b"", r"empty.csv is empty"),
    "header.csv": (b"question,answer\n", r"header.csv is empty"),
    "twice.csv": (b"answer,answer\n1,2\n", r"twice.csv, line 1: two columns have the same name"),
    "more.csv": (b"question,answer\na,1\nb,2,3\n", r"more.csv, line 3: it has 3 fields, the header 2"),
    "open.csv": (b'question,answer\na,1\n"b,2\n', r"open.csv, line 3: it is not CSV"),
    "field.csv": (b"question,answer\na," + b"1" * 200_000, r"field.csv, line 2: it is not CSV: field larger"),
    "latin.csv": (b"question,answer\n\xe9,1\n", r"latin.csv, line 2: it is not UTF-8"),
    "blank.csv": (b"question,answer\na,1\n,2\n", r"blank.csv, line 3: 'question' is empty"),
    "bad.parquet": (b"question,answer\n", r"bad.parquet is not Parquet"),
    "data.txt": (b"question", r"data.txt is of no known kind; expected a name that ends in .jsonl"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_not_right_is_an_error_that_says_where_and_why(tmp_path, name):
    content, says = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(TaskError, match=says):
        DatasetTask("sums", {"path": str(tmp_path / name)})


def test_files_of_other_systems_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfquestion,answer\r\n"a\r\nb",1\r\n\r\nc,2\r\n')
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"question": "a\\r\\nb", "answer": "1"}\r\n{"question": "c", "answer": "2"}'
    )
    expected = [{"question": "a\r\nb", "answer": "1"}, {"question": "c", "answer": "2"}]
    for name in ("a.csv", "a.jsonl"):
        assert [row for _, row in rows.read(str(tmp_path / name)).rows] == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "has no path; the options of a data set are path, split"),
        ({"path": "embedded:none"}, "expected embedded:programs or word_problems"),
        ({"path": "nowhere/data.jsonl"}, "nowhere/data.jsonl cannot be read: No such file"),
        ({"path": "/nowhere/data"}, "there is no file or folder '/nowhere/data', and no hub id looks like this"),
        ({**WORDS, "answers": "answer"}, "an option 'answers'; the options of a data set are .*answer_after"),
        ({**WORDS, "check": "fuzzy"}, "check 'fuzzy'; expected exact, numeric, math or none"),
        ({**WORDS, "answer": ""}, "no column for the answer; say which, or check='none'"),
        ({**WORDS, "question": 3}, "question=3, a int where none can be"),
        ({**WORDS, "seconds": -1}, "seconds=-1"),
        ({**WORDS, "columns": ["level"]}, "no column 'level'; there are 'question', 'compact', 'answer', 'expression'"),
        ({**WORDS, "held_out_split": "test"}, "a file, which has no splits; say its held_out_path"),
        ({**WORDS, "answer": "question"}, "word_problems.jsonl, line 1: check 'numeric' can compare nothing with"),
        ({**WORDS, "answer_after": "####"}, "line 1: 'answer' has no '####'"),
        ({**WORDS, "answer_boxed": True}, r"line 1: 'answer' has no \\boxed"),
    ],
)
def test_options_that_cannot_be_are_an_error_that_says_what_can(options, says):
    with pytest.raises(TaskError, match=says):
        make_mixture({"words": {"kind": "dataset", **options}})


# --- numbers

# what a file says; the accepted answer, how else a person would write it, and what is another number
NUMBERS = {
    "0.00001": ("0.00001", ["0.00001"], ["0.0001", "e-5", "0", "1"]),
    "1e-7": ("1e-7", ["1e-7", "0.0000001"], ["0.000001", "e-7", "0", "1"]),
    "1E+22": ("1E+22", ["1e+22", "10000000000000000000000"], ["1000000000000000000000", "1"]),
    "1e3": ("1e3", ["1e3", "1000"], ["100", "13"]),
    "-2.5e-3": ("-2.5e-3", ["-0.0025"], ["0.0025", "-2.5"]),
    "3.0": ("3.0", ["3.0", "3"], ["30", "3.1"]),
    "2.50": ("2.50", ["2.50", "2.5"], ["2.05"]),
    "-0.0": ("-0.0", ["-0.0", "0"], ["1"]),
    "0.1000000000000000055": ("0.1000000000000000055", ["0.1000000000000000055"], ["0.2"]),
    "12345678901234567890123": ("12345678901234567890123", ["12345678901234567890123"], ["12345678901234567890124"]),
    "-7": ("-7", ["-7"], ["7"]),
}


def only(path, **options):
    """The one problem of a data set, and its task."""
    task = DatasetTask("sums", {"path": str(path), **options})
    return task, task.problem(0, "train" if task.counts.train else "held_out")


@pytest.mark.parametrize("check", ["exact", "numeric", "math"])
@pytest.mark.parametrize("digits", NUMBERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_number_of_a_file_is_right_as_it_stands_there_and_as_a_person_writes_it(tmp_path, suffix, digits, check):
    file = tmp_path / f"data{suffix}"
    row = f'{{"question": "How much is {digits}?", "answer": {digits}, "more": {digits}}}'
    text = {".jsonl": row, ".json": f"[{row}]", ".csv": f"question,answer\nHow much is {digits}?,{digits}\n"}
    file.write_text(text[suffix])
    task, problem = only(file, check=check, template="How much is $answer?")
    written, right, wrong = NUMBERS[digits]
    assert problem.answers[0] == written and problem.question == f"How much is {digits}?"
    if suffix == ".csv" and check == "exact" and "e" not in digits.lower():
        right = [written]  # a text: nobody knows that it is a number
    assert [task.score(problem, text) for text in right] == [1.0] * len(right)
    assert [task.score(problem, text) for text in wrong] == [0.0] * len(wrong)


BINARY = {  # (Arrow's type, value): as a person writes it
    ("float64", 0.00001): "0.00001",
    ("float64", 1e22): "1" + 22 * "0",
    ("float64", 3.0): "3",
    ("float64", -0.0): "0",
    ("float64", 1e-7): "0.0000001",
    ("float64", 0.1): "0.1",
    ("float32", 0.1): "0.1",
    ("float32", 1e-5): "0.00001",
    ("float16", 0.1): "0.1",
    ("int64", 2**62): str(2**62),
    ("uint64", 2**64 - 1): str(2**64 - 1),
    ("int8", -7): "-7",
    ("decimal128(30, 10)", decimal.Decimal("0.0000100000")): "0.00001",
    ("decimal128(30, 0)", decimal.Decimal("12345678901234567890123")): "12345678901234567890123",
}


@pytest.mark.parametrize(("kind", "value"), BINARY)
def test_a_number_of_a_table_is_right_as_a_person_writes_it(tmp_path, kind, value):
    pyarrow = pytest.importorskip("pyarrow")
    numpy = pytest.importorskip("numpy")
    from pyarrow import parquet

    made = pyarrow.decimal128(*map(int, re.findall(r"\d+", kind)[1:])) if "dec" in kind else getattr(pyarrow, kind)()
    given = numpy.float16(value) if kind == "float16" else value
    columns = {"question": ["How much?", "And?"], "answer": pyarrow.array([given, None], made)}
    parquet.write_table(pyarrow.table(columns).slice(0, 1), tmp_path / "data.parquet")
    for check in ("exact", "numeric", "math"):
        task, problem = only(tmp_path / "data.parquet", check=check)
        assert task.score(problem, BINARY[kind, value]) == 1.0
        assert task.score(problem, BINARY[kind, value] + "1") == task.score(problem, "e-5") == 0.0
    assert "e" not in problem.answers[-1]
    parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
    with pytest.raises(TaskError, match=r"row 2: 'answer' is a NoneType; expected text"):
        only(tmp_path / "data.parquet")


def test_numbers_of_other_libraries_are_numbers():
    import numpy as np

    given = [np.float32(0.1), np.float64(1e-5), np.int64(-3), np.uint8(7), np.float16(0.1), decimal.Decimal("1E+3")]
    assert [cells.text(value) for value in given] == ["0.1", "0.00001", "-3", "7", "0.1", "1000"]
    for value in (True, np.bool_(True), None, math.nan, -math.inf, decimal.Decimal("NaN"), np.float32("inf")):
        with pytest.raises(ValueError, match="is "):
            cells.text(value)


@drawn(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["e", "E"]))
def test_a_float_is_written_without_an_exponent_and_is_the_same(value, mark):
    assert Fraction(cells.text(value)) == Fraction(repr(value)) and float(cells.text(value)) == value
    assert "e" not in cells.text(value)
    written = cells.Written(f"{value!r}".replace("e", mark))
    assert written == copy.deepcopy(written) == value and copy.deepcopy(written).digits == written.digits
    assert {Fraction(one) for one in cells.spellings(written.digits, True)} == {Fraction(repr(value))}


def test_a_column_that_is_kept_still_holds_numbers(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": 0.5, "level": 1e-5, "list": [0.25, 1]}')
    _, problem = only(tmp_path / "data.jsonl", columns="all")
    assert problem.data == {"question": "a", "answer": 0.5, "level": 1e-5, "list": [0.25, 1]}
    assert isinstance(problem.data["level"], float) and problem.data["level"] * 2 == 2e-5


@pytest.mark.parametrize("value", ["1e400", "-1e999"])
def test_a_number_that_no_machine_holds_is_an_error(tmp_path, value):
    (tmp_path / "data.jsonl").write_text(f'{{"question": "a", "answer": {value}}}')
    with pytest.raises(TaskError, match=r"line 1: 'answer' is -?inf, no number"):
        only(tmp_path / "data.jsonl")


# --- messages

TEXT = {"type": "text", "text": "what is 2+2?"}
MESSAGES = [  # what stands in the column, what the prompt is
    ([{"role": "user", "content": [TEXT]}], "what is 2+2?"),
    ([{"role": "user", "content": "what is 2+2?"}], "what is 2+2?"),
    ([{"role": "user", "content": [TEXT, {"type": "text", "text": "Say it."}]}], "what is 2+2?\nSay it."),
    ([{"role": "system", "content": [{"type": "text", "text": "Add."}]}, {"role": "user", "content": [TEXT]}],
     "Add.\n\nwhat is 2+2?"),
    ([{"role": "system", "content": None}, {"role": "user", "content": [TEXT]}], "what is 2+2?"),
    ([{"role": "user", "content": [TEXT]}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
     "what is 2+2?"),
    ([{"role": "user", "content": [TEXT], "name": None}, {"role": "tool", "content": "4"}], "what is 2+2?\n\n4"),
    ([{"role": "user", "content": ["what is 2+2?"]}], "what is 2+2?"),
    ([{"role": "user", "content": [{"type": "input_text", "text": "what is 2+2?"}]}], "what is 2+2?"),
    ([{"role": "user", "content": [{"text": "what is 2+2?"}, {"type": "text", "text": None}]}], "what is 2+2?"),
    ([TEXT], "what is 2+2?"),
    ({"role": "user", "content": [TEXT]}, "what is 2+2?"),
]  # fmt: skip
NO_MESSAGES = [  # and why it is none
    ([{"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": "x"}}]}], "of type 'image_url'"),
    ([{"role": "user", "content": [{"type": "image"}, TEXT]}], "a part of type 'image', which is no text: leave such"),
    ([{"role": "user", "content": None}], "is empty"),
    ([{"role": "user", "content": []}], "is empty"),
    ([{"role": "user", "content": 7}], "a message whose content is a int; expected text or parts"),
    ([{"role": "user", "content": [7]}], "a part of type 'int'"),
    ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "a part of type 'text'"),
    ([], "is a list; expected text"),
    ([1], "is a list; expected text"),
]


@pytest.mark.parametrize(("column", "prompt"), MESSAGES)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_say_their_text_whatever_their_form(tmp_path, column, prompt, suffix):
    if suffix == ".parquet" and isinstance(column, list) and "content" in column[0]:
        kinds = {type(message["content"]) for message in column}
        if len(kinds) > 1 or any(isinstance(part, str) for part in column[0]["content"]):
            pytest.skip("a column of Arrow has one type")
    path = write(tmp_path / f"data{suffix}", [{"question": column, "answer": column}])
    _, problem = only(path)
    assert problem.question == prompt and problem.answers == (prompt,)


@pytest.mark.parametrize(("column", "says"), NO_MESSAGES)
def test_messages_without_a_text_are_an_error_that_names_the_line(tmp_path, column, says):
    path = write(tmp_path / "data.jsonl", [{"question": "a", "answer": "1"}, {"question": column, "answer": "2"}])
    with pytest.raises(TaskError, match=f"data.jsonl, line 2: 'question' .*{says}"):
        only(path)


# --- answers that the check cannot read


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_answers_that_the_check_cannot_read_are_counted_and_the_first_is_named(tmp_path, suffix, caplog):
    answers = ["5", r"\frac 1 2", "It's 7!", "(1, 2", r"\operatorname{foo}(3)", "No, never", "1 2", "x" * 501]
    given = [{"question": f"Q{n}", "answer": answer} for n, answer in enumerate(answers)]
    path = write(tmp_path / f"data{suffix}", given)
    mixture = make_mixture({"sums": {"kind": "dataset", "path": path, "check": "math"}, "gcd": {}})
    task = mixture.tasks["sums"]
    assert mixture.unread == task.unread == 5
    (said,) = [record.getMessage() for record in caplog.records if "cannot read" in record.getMessage()]
    assert record_of(caplog).name.startswith("rlswarm_jax") and record_of(caplog).levelname == "WARNING"
    where = {".jsonl": "line 3", ".csv": "line 4", ".parquet": "row 3"}[suffix]
    assert f"data{suffix}, {where}" in said and "5 of 8" in said and "It's 7!" in said and "\n" not in said
    unread = next(p for p in (*everything(task).values(), *everything(task, "held_out").values()) if p.question == "Q2")
    assert task.score(unread, "it's  7!") == 1.0 and task.score(unread, "7") == 0.0
    for check in ("exact", "none"):
        assert make_mixture({"sums": {"kind": "dataset", "path": path, "check": check}}).unread == 0


def record_of(caplog):
    return next(record for record in caplog.records if "cannot read" in record.getMessage())


def test_a_data_set_that_is_read_whole_says_nothing(tmp_path, caplog):
    path = write(tmp_path / "data.jsonl")
    assert make_mixture({"sums": {"kind": "dataset", "path": path, "check": "math"}}).unread == 0
    assert not caplog.records
