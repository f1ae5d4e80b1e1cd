import json
import math
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.tasks import TaskError, make_mixture, sandbox
from rlswarm_jax.tasks.base import split_of
from rlswarm_jax.tasks.code import EMBEDDED, CodeTask, canonical, extract, judge, read_rows
from rlswarm_jax.tasks.harness import encode
from rlswarm_jax.tasks.programs import Row, parse_row, parse_tests
from tests.tasks.escapes import needs_sandbox

LIMITS = sandbox.Limits(seconds=3.0)
MBPP = {
    "task_id": 1,
    "text": "Write a function double(x) that doubles a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0", "assert math.isclose(double(0.5), 1.0)"],
    "test_setup_code": "import math",
    "challenge_test_list": [],
}
HUMANEVAL = {
    "task_id": "Test/0",
    "prompt": 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Adds up."""\n',
    "canonical_solution": "    return sum(numbers)\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n"
    "    assert candidate([1, 2]) == 3, 'no'\n    assert candidate([]) == 0\n",
    "entry_point": "total",
}
IO = {
    "text": "Print the sum.",
    "code": "print(sum(map(int, input().split())))",
    "io": [["1 2\n", "3\n"], ["4\n", "4\n"]],
}


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def passed(fields: dict, code: str, limits: sandbox.Limits = LIMITS) -> list[bool]:
    return judge(parse_row(fields), code, limits)


# --- right and wrong answers


@needs_sandbox
def test_every_reference_solution_is_right_and_nothing_at_all_is_not():
    rows, _ = read_rows("embedded:programs", {})
    assert len(rows) >= 30
    assert [row.text for row in rows if not all(judge(row, row.reference, LIMITS))] == []
    assert not any(row.forgeable for row in rows)
    assert not any(judge(rows[0], "pass", LIMITS)) and not any(judge(rows[-1], "pass", LIMITS))


@needs_sandbox
@pytest.mark.parametrize("fields", [MBPP, HUMANEVAL, IO], ids=["MBPP", "HumanEval", "io"])
@pytest.mark.parametrize("score", ["all", "graded"])
def test_scores(fields, score, jsonl):
    task = CodeTask("code", {"path": jsonl(fields), "score": score})
    problem = next(p for p in (task_problem(task, split) for split in ("train", "held_out")) if p)
    right = problem.answers[0]
    assert task.score(problem, right) == 1.0
    assert task.score(problem, f"Let me see.\n```python\n{right}\n```\nThat is it.") == 1.0
    for wrong in ("def double(x", "", "x" * 30_000, "\0", "\ud800", "raise SystemExit"):
        assert task.score(problem, wrong) == 0.0


@needs_sandbox
def test_a_loop_without_end_is_stopped_and_wrong(jsonl):
    assert passed(MBPP, "while True:\n    pass", sandbox.Limits(seconds=30, cpu_seconds=1)) == [False] * 3
    assert passed(IO, "import time\ntime.sleep(600)", sandbox.Limits(seconds=0.5)) == [False] * 2


def task_problem(task: CodeTask, split):
    try:
        return task.problem(1, split)
    except TaskError:
        return None


@needs_sandbox
def test_graded_pays_for_the_fraction_that_is_passed(jsonl):
    half = "def double(x):\n    return 4 if x == 2 else 1"  # right for 2 and for 0.5, not for 0
    assert passed(MBPP, half) == [True, False, True]
    hangs = "def double(x):\n    while x == 0:\n        pass\n    return 2 * x"
    assert passed(MBPP, hangs, sandbox.Limits(seconds=30, cpu_seconds=1)) == [True, False, False]
    leaves = "import os\ndef double(x):\n    return 4 if x == 2 else os._exit(0)"
    assert passed(MBPP, leaves) == [True, False, False]
    path = jsonl(MBPP)
    for score, expected in (("all", 0.0), ("graded", 2 / 3)):
        task = CodeTask("code", {"path": path, "score": score})
        problem = next(p for p in (task_problem(task, split) for split in ("train", "held_out")) if p)
        assert task.score(problem, half) == expected


@needs_sandbox
@pytest.mark.parametrize(
    "answer",
    [
        "    return sum(numbers)",
        "    total = 0\n    for n in numbers:\n        total += n\n    return total\n",
        "def total(numbers):\n    return sum(numbers)",
        "def helper(x):\n    return sum(x)\n\ndef total(numbers: List[int]) -> int:\n    return helper(numbers)",
        HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"],
    ],
    ids=["body", "long body", "function", "with a helper", "everything"],
)
def test_humaneval_takes_a_body_or_the_whole_function(answer):
    assert passed(HUMANEVAL, answer) == [True, True]
    assert passed(HUMANEVAL, answer.replace("sum(", "len(").replace("+= n", "+= 1")) == [False, True]


@needs_sandbox
def test_a_prompt_that_is_no_function_by_itself_needs_a_body_or_stands_aside():
    fields = HUMANEVAL | {"prompt": "def total(numbers):\n"}
    assert passed(fields, "    return sum(numbers)") == passed(fields, "def total(n):\n    return sum(n)") == [True] * 2


@needs_sandbox
def test_a_program_is_held_to_its_output_and_its_exit():
    assert passed(IO, "a = input()\nprint(sum(map(int, a.split())), '  ')\nprint()") == [True, True]
    assert passed(IO, "print(3)") == [True, False]
    assert passed(IO, "print(sum(map(int, input().split())))\nraise SystemExit(1)") == [False, False]
    assert passed(IO, "print(sum(map(int, input().split())))\nexit()") == [True, True]


# --- verdicts that cannot be forged


FORGERIES = {
    "says so": "print('passed'); print('ok'); print('0x4\\n' * 9)",
    "leaves": "import sys; sys.exit(0)",
    "leaves quickly": "import os; os._exit(0)",
    "equals all": """
        class Any:
            def __eq__(self, other): return True
            def __bool__(self): return True
            def __hash__(self): return 4
            def __repr__(self): return "4"
        def double(x): return Any()
    """,
    "an int that equals all": """
        class Any(int):
            def __eq__(self, other): return True
        def double(x): return Any(5)
    """,
    "no more errors": """
        import builtins
        builtins.AssertionError = builtins.Exception = type("Quiet", (BaseException,), {})
        def double(x): return None
    """,
    "other builtins": """
        import builtins
        builtins.abs = builtins.len = builtins.hex = builtins.isinstance = lambda *a: 0
        def double(x): return None
    """,
    "looks for the expected": """
        import gc, sys
        def double(x):
            seen, frame = [], sys._getframe()
            while frame:
                seen += [v for v in frame.f_locals.values() if isinstance(v, (list, tuple, dict, str))]
                frame = frame.f_back
            text = repr(seen) + repr([o for o in gc.get_objects() if isinstance(o, (list, tuple))][:5000])
            expected = "".join(map(chr, (55, 48, 48, 48, 52)))  # not to find it in this very source
            return int(expected) if expected in text or hex(int(expected)) in text else 5
    """,
    "writes to the results": """
        import os
        for fd in range(1, 20):
            try:
                os.write(fd, b"0x4\\n0x0\\n0x1\\n")
            except OSError:
                pass
        def double(x): return 5
    """,
    "rewrites the harness": """
        import sys
        main = sys.modules["__main__"]
        main.encode = lambda value: "True"
        sys._getframe(1).f_globals["encode"] = lambda value: "passed"
        def double(x): return 5
    """,
    "other frames": """
        import sys
        def trace(frame, event, arg):
            frame.f_locals["line"] = "0x4"
            return trace
        sys.settrace(trace)
        def double(x): return 5
    """,
}


@needs_sandbox
@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_verdict_is_not_forged(forgery):
    tests = ["assert double(35002) == 70004", "assert double(7) == 14", "assert abs(double(2) - 4) < 1e-6"]
    fields = MBPP | {"test_list": tests}
    assert passed(fields, "def double(x): return 2 * x") == [True] * 3
    assert passed(fields, textwrap.dedent(forgery)) == [False] * 3


@needs_sandbox
def test_the_values_that_are_expected_are_not_in_the_sandbox():
    """Whatever is sent into it is looked at here: that is what an answer could find there."""
    sent = []
    fields = MBPP | {"test_list": ["assert double(35002) == 70004", "assert double('tide') == 'tidetide'"]}
    run, row = sandbox.run, parse_row(fields)
    try:
        sandbox.run = lambda program, stdin, limits: (
            sent.append(program.encode() + stdin) or run(program, stdin, limits)
        )
        assert judge(row, "def double(x): return x + x", LIMITS) == [True, True]
    finally:
        sandbox.run = run
    assert b"35002" in sent[0] and b"'tide'" in sent[0]
    assert b"70004" not in sent[0] and hex(70004).encode() not in sent[0] and b"tidetide" not in sent[0]


@needs_sandbox
def test_statements_are_judged_inside_and_an_answer_that_knows_nothing_does_not_pass():
    fields = MBPP | {"test_list": ["assert double(2) == double(1) + double(1)", "x = double(3)\nassert x % 6 == 0"]}
    assert parse_row(fields).forgeable
    assert passed(fields, "def double(x): return 2 * x") == [True, True]
    assert passed(fields, "def double(x): return x + 1") == [False, False]
    loop = HUMANEVAL | {"test": "def check(candidate):\n    for i in range(3):\n        assert candidate([i]) == i"}
    assert passed(loop, "    return sum(numbers)") == [True] and passed(loop, "    return 0") == [False]
    for forgery in ("says so", "leaves", "leaves quickly", "writes to the results", "no more errors"):
        assert passed(fields, textwrap.dedent(FORGERIES[forgery])) == [False, False]


# --- what tests say


@pytest.mark.parametrize(
    ("source", "expressions", "right", "wrong"),
    [
        ("assert f(1) == 3", ["f(1)"], [3, 3.0], [4, "3", None, [3], 3.0000001]),
        ("assert 3 == f(1)", ["f(1)"], [3], [4]),
        ("assert f(1) == -2.5, 'why'", ["f(1)"], [-2.5], [2.5]),
        ("assert f(1) is None", ["f(1)"], [None], [0, False, "None"]),
        ("assert f(1) == (1, [2], {3: {'a'}})", ["f(1)"], [(1, [2], {3: {"a"}})], [[1, [2], {3: {"a"}}], (1, [2], {})]),
        ("assert f(1) == set()", ["f(1)"], [set(), frozenset()], [{}, [], ()]),
        ("assert f(1) in (1, 'b')", ["f(1)"], [1, "b", True], [2, "a", "1"]),
        ("assert sorted(f(1)) == [1, 2]", ["sorted(f(1))"], [[1, 2]], [(1, 2)]),
        ("assert f(1)", ["bool(f(1))"], [True], [False]),
        ("assert not f(1)", ["bool(f(1))"], [False], [True]),
        ("assert abs(f(1) - 0.5) < 1e-3", ["f(1)"], [0.5, 0.5009], [0.502, "0.5", None, float("nan"), 10**400]),
        ("assert abs(0.5 - f(1)) <= 1e-3", ["f(1)"], [0.4995], [0.4]),
        ("assert math.isclose(f(1), 100, rel_tol=0.1)", ["f(1)"], [100, 95.5], [80, float("inf")]),
        ("assert isclose(f(1), 0, abs_tol=1)", ["f(1)"], [0.5, -1], [1.5]),
    ],
)
def test_asserts_that_are_understood(source, expressions, right, wrong):
    tests = parse_tests(source)
    assert [test.source for test in tests] == expressions and all(test.kind == "value" for test in tests)
    assert all(tests[0].passes(encode(value)) for value in right)
    assert not any(tests[0].passes(encode(value)) for value in wrong)


def test_several_conditions_are_several_tests():
    assert [test.source for test in parse_tests("assert f(1) == 2 and g(3) is True\nassert h() == 1")] == [
        "f(1)",
        "g(3)",
        "h()",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "assert f(1) == g(1)",
        "assert f(1) != 3",
        "assert f(1) > 3",
        "assert 1 < f(1) < 3",
        "for i in range(3):\n    assert f(i) == i",
        "assert f(1) == 2 or f(1) == 3",
        "assert abs(f(1) - x) < 1e-3",
        "assert math.isclose(f(1), 2, rel_tol=tolerance)",
        "assert math.isclose(f(1), 2, **{})",
        "assert abs(f(1) - 1) < -1",
        "assert True",
        "assert f(1) == [1] * 3",
    ],
)
def test_others_are_left_to_the_sandbox(source):
    (test,) = parse_tests(source)
    assert (test.kind, test.source) == ("assert", source)


literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=3)
        | st.dictionaries(st.integers(0, 3) | st.text(max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(literals, literals)
def test_encodings_are_equal_exactly_where_values_are(a, b):
    assert (encode(a) == encode(b)) == (a == b)
    assert encode(a).isascii() and "\n" not in encode(a)


def test_what_has_no_encoding():
    loop: list = []
    loop.append(loop)
    for value, error in ((object(), TypeError), (len, TypeError), (range(3), TypeError), (loop, RecursionError)):
        with pytest.raises(error):
            encode(value)


@settings(deadline=None)
@given(st.text(max_size=50))
def test_any_text_that_is_said_gets_a_verdict(said):
    for source in ("assert f(1) == 3", "assert abs(f(1) - 3) < 1"):
        parse_tests(source)[0].passes(said)


# --- problems


def test_the_layouts_are_told_by_their_fields():
    mbpp, humaneval, io = parse_row(MBPP), parse_row(HUMANEVAL), parse_row(IO)
    assert "doubles a number" in mbpp.text and mbpp.text.endswith("assert double(2) == 4")
    assert "assert double(0) == 0" not in mbpp.text and mbpp.setup == ("import math",)
    assert HUMANEVAL["prompt"] in humaneval.text and "candidate" not in humaneval.text
    assert [test.source for test in humaneval.tests] == ["candidate([1, 2])", "candidate([])"]
    whole = parse_row(
        HUMANEVAL | {"test": "def check(candidate):\n    for i in range(3):\n        assert candidate([i]) == i"}
    )
    assert whole.forgeable and whole.tests[0].source.endswith("== i\ncheck(candidate)")
    assert "1 2" in io.text and "4\n" not in io.text
    sanitised = {
        "prompt": "Double.",
        "code": "",
        "test_imports": ["import math"],
        "test_list": ["assert double(1) == 2"],
    }
    assert parse_row(sanitised) == Row("Double.\nIt should pass this test:\nassert double(1) == 2",
                                       parse_tests("assert double(1) == 2"), ("import math",))  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "must be a JSON object"),
        ("{}", "needs the fields 'test_list'"),
        (json.dumps({"question": "?", "answer": "4"}), "this has 'question', 'answer'"),
        (json.dumps(MBPP | {"test_list": []}), "'test_list' is empty"),
        (json.dumps(MBPP | {"test_list": ["assert ("]}), "is not Python"),
        (json.dumps(MBPP | {"test_list": "assert f() == 1"}), "'test_list' must be a list of texts"),
        (json.dumps(MBPP | {"text": 3}), "'text' must be a text"),
        (json.dumps({k: v for k, v in HUMANEVAL.items() if k != "prompt"}), "'prompt' is missing"),
        (json.dumps(HUMANEVAL | {"entry_point": "os.system('x')"}), "expected the name of a function"),
        (json.dumps(HUMANEVAL | {"test": "x = 1"}), "does not define check"),
        (json.dumps(IO | {"io": [["1"]]}), "list of pairs"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_wrong_is_named(jsonl, line, reason):
    path = jsonl(MBPP, "\n", line)
    with pytest.raises(TaskError, match=reason) as error:
        read_rows(path, {})
    assert str(error.value).startswith(f"{path}, line 3: ")


def test_files_that_cannot_be_read(tmp_path):
    for name, content in (("missing", None), ("empty", b"\n"), ("latin", b"\xff")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(TaskError, match=name):
            read_rows(str(tmp_path / name), {})


def test_columns_can_have_other_names(jsonl):
    renamed = {"question": MBPP["text"], "checks": MBPP["test_list"]}
    rows, _ = read_rows(jsonl(renamed), {"text": "question", "test_list": "checks"})
    assert rows[0].text == parse_row(MBPP).text


@needs_sandbox
def test_problems_follow_from_seeds_and_held_out_ones_are_apart():
    task = make_mixture({"programs": {"kind": "code", "path": "embedded:programs"}}).tasks["programs"]
    train = [task.problem(seed) for seed in range(200)]
    held_out = [task.problem(seed, "held_out") for seed in range(50)]
    assert train == [task.problem(seed) for seed in range(200)]
    assert not {p.question for p in train} & {p.question for p in held_out}
    for problem in train + held_out:
        assert problem.split == split_of("programs", problem.question) and problem.answers and problem.verifiable
    rows = EMBEDDED["embedded:programs"].read_text().splitlines()
    assert len({p.question for p in train}) + len({p.question for p in held_out}) > 0.9 * len(rows)


@needs_sandbox
def test_the_fingerprint_changes_with_whatever_a_score_depends_on(jsonl):
    def fingerprint(*rows, **options):
        return CodeTask(options.pop("name", "code"), {"path": jsonl(*rows), **options}).fingerprint

    plain = fingerprint(MBPP)
    others = [
        fingerprint(MBPP, HUMANEVAL),
        fingerprint(MBPP | {"test_list": MBPP["test_list"][:2]}),
        fingerprint(MBPP | {"test_setup_code": ""}),
        fingerprint(MBPP, score="graded"),
        fingerprint(MBPP, seconds=2.0),
        fingerprint(MBPP, memory_mb=128),
        fingerprint(MBPP, name="other"),
    ]
    assert len({plain, *others}) == 1 + len(others)
    assert fingerprint(MBPP | {"task_id": 7}) == plain


@needs_sandbox
@pytest.mark.parametrize(
    "options", [{}, {"path": "x", "score": "some"}, {"path": "x", "seconds": 0}, {"path": "x", "sandbox": False}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(TaskError, match="'code' refused its options"):
        CodeTask("code", options)


# --- answers


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("x = 1", "x = 1"),
        ("    return 1\n", "    return 1\n"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("First\n```python\nx = 1\n```\nno:\n```py\nx = 2\n```\ndone", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```text\n5\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
        ("```python\nx = 1", "```python\nx = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("  ```python\n  x = 1\n  ```", "x = 1\n"),
        # in lists
        ("1. Do:\n   ```python\n   def f(x):\n       return 1\n   ```", "def f(x):\n    return 1\n"),
        ("- ```python\n  def f(x):\n      return 1\n  ```", "def f(x):\n    return 1\n"),
        ("1. ```py\n\n   x = 1\n   ```\n2. so", "\nx = 1\n"),
        ("\t```python\n\tdef f(x):\n\t\treturn 1\n\t```", "def f(x):\n\treturn 1\n"),
        ("   ```python\nx = 1\n  y = 2\n   ```", "x = 1\ny = 2\n"),  # no more is taken than is there
        ("```python\nif x:\n    y = '''\n    a'''\n```", "if x:\n    y = '''\n    a'''\n"),
        # of tildes, and of as many characters as are needed
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("~~~ {.python}\nx = '```'\n```\n~~~~\n", "x = '```'\n```\n"),
        ('````python\nx = """\n```\ny\n```\n"""\n````', 'x = """\n```\ny\n```\n"""\n'),
        ("```python\nx = 1\n`````", "x = 1\n"),
        ("````text\n```python\nx = 1\n```\n````\n", "````text\n```python\nx = 1\n```\n````\n"),
        ("```py\nx = 1\n```\n~~~\nx = 2\n~~~\n```text\n5\n```", "x = 2\n"),
        ("```py\nx = 1\n```\n~~~py\nx = 2\n```\n", "x = 1\n"),  # the other was not closed
        ("so ```x = 0``` or\n```x = 0```\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\r\nx = 1\r\ny = 2\r\n```\r\n", "x = 1\r\ny = 2\r\n"),
    ],
)
def test_the_program_in_an_answer(answer, program):
    assert extract(answer) == program


PYTHON = ["Python", "python3.11", "PY3", " python ", "{python}", "{.python .numberLines}", "{python, echo=TRUE}"]
PYTHON += [
    'python title="a b.py"',
    "python title=a.py",
    "{#one .python startFrom='3'}",
    "python:a.py",
    'title="a b.py"',
]
PYTHON += ["python,linenos", "{code-cell} python"]
OTHERS = ["pycon", "r", "{r, echo=FALSE}", "pythonic", "output", 'json title="python"', "{.json}"]


@pytest.mark.parametrize(("info", "ours"), [*((one, True) for one in PYTHON), *((one, False) for one in OTHERS)])
@pytest.mark.parametrize("mark", ["```", "~~~~"])
def test_a_block_is_of_python_whatever_else_is_said_of_it(info, ours, mark):
    answer = f"{mark}{info}\nx = 1\n{mark}"
    assert extract(answer) == ("x = 1\n" if ours else answer)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["x = 1", "  y = 2", "", "\tz", "`a`", "```", "# ~~~"]), max_size=6),
    st.sampled_from(["```", "````", "~~~", "~~~~~"]),
    st.sampled_from(["", "  ", "    ", "\t"]),
    st.sampled_from(["", "py", "{python}"]),
)
def test_what_is_in_a_block_comes_out_as_it_is(lines, mark, indent, info):
    if any(line.strip().startswith(mark) for line in lines):
        mark = mark[0] * 6
    block = "".join(f"{indent}{line}\n" for line in (mark + info, *lines, mark))
    assert extract(f"Thus:\n{block}so.") == "".join(f"{line}\n" for line in lines)


@needs_sandbox
def test_a_program_runs_out_of_any_kind_of_block():
    for answer in (
        "1. Do:\n   ```python\n   def double(x):\n       return 2 * x\n   ```",
        "```{python}\r\ndef double(x):\r\n    return 2 * x\r\n```\r\n",
    ):
        assert all(passed(MBPP, extract(answer)))


def test_the_same_program_is_the_same_vote():
    assert canonical("x=1 # one\n\n\ny = ( 2 )") == canonical("```python\nx = 1\ny = 2\n```")
    assert canonical("x = 1") != canonical("x = 2")
    assert canonical("not a program (") == "not a program ("


OPENERS = ["(", "[", "{", "-", "not ", "f(", "a.b", "lambda:", "1+", "x if x else ", "f'{", "if x:\n ", "[x for "]
OPENERS += ["(yield ", "*", "@", "'", "a=", "```\n", "```python\n", "~~~", "- ", "1. ```", '="', " ", "\0", "\ud800"]


@pytest.mark.parametrize("unit", OPENERS)
def test_no_answer_takes_long_to_read(unit):
    started = time.process_time()
    for count in (100, 4000 // len(unit), 300_000):
        canonical(unit * count)
        extract(unit * count)
    assert time.process_time() - started < 5


def test_a_number_that_is_said_is_read_in_linear_time():
    test = parse_tests("assert abs(f() - 1) < 1")[0]
    started = time.process_time()
    for said in ("0x" + "f" * 10**6, "-" * 10**6, "0x1." + "0" * 10**6, "0x1p+" + "9" * 10**6):
        assert not test.passes(said)
    assert time.process_time() - started < 2
    assert test.passes((1.5).hex()) and not test.passes(math.inf.hex())
