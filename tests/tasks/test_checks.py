import json
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.tasks import checks
from rlswarm_jax.tasks.checks import CHECKS, last_boxed, number, screened

MATHEMATICS = [  # accepted answer, answer, whether it is right
    ("1/2", "0.5", True),
    ("0.5", "1/2", True),
    ("0.5", ".5", True),
    ("1000", "1,000", True),
    ("1,000", "1000", True),
    ("1234567", "1,234,567", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac12", "1/2", True),
    (r"\frac{1}{2}", r"\dfrac{2}{4}", True),
    (r"1\frac{1}{2}", "3/2", True),
    ("1 1/2", "3/2", True),
    ("3/2", "1 1/2", True),
    (r"2\sqrt{2}", r"\sqrt{8}", True),
    (r"2\sqrt{2}", "2*sqrt(2)", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    ("1+x", "x+1", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("[0,1)", "[0, 1)", True),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)", True),
    (r"\{1,2\}", r"\{2, 1\}", True),
    ("1, 2", "2, 1", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    ("x>3", "3<x", True),
    ("5", "x=5", True),
    ("5", "5 cm", True),
    ("5", r"5\text{ cm}", True),
    ("5", r"\$5", True),
    ("5", "$5$", True),
    ("5", "5.", True),
    ("5", r"so it is \boxed{5}", True),
    ("5", r"first \boxed{6}, no: \boxed{5}", True),
    ("90", r"90^\circ", True),
    ("-5", "−5", True),
    (r"50\%", "0.5", True),
    (r"\frac{1}{3}", "0.333333", True),
    ("10!", "3628800", True),
    ("Evelyn", " evelyn ", True),
    ("Evelyn", r"\text{Evelyn}", True),
    ("naïve?", "Naïve?", True),  # is no mathematics, but the same text
    ("5", "", False),
    ("5", " ", False),
    ("5", "6", False),
    ("5", "55", False),
    ("5", "5 or 6", False),
    ("5", "5, 6", False),
    ("5", r"\{5, 6\}", False),
    ("5", r"\pm 5", False),
    ("5", "x", False),
    ("5", "?", False),
    ("5", "the answer is 5", False),
    ("5", r"first \boxed{5}, no: \boxed{6}", False),
    ("3", "1 2", False),  # math-verify alone adds them
    (r"\frac{1}{3}", "0.33", False),
    (r"\frac{1}{3}", "3", False),
    (r"2\sqrt{2}", r"2\sqrt{3}", False),
    ("1+x", "x-1", False),
    ("1+x", "1+y", False),
    ("[0,1)", "(0,1)", False),
    ("[0,1)", "[0,2)", False),
    (r"\{1,2\}", r"\{1,2,3\}", False),
    ("x>3", r"x\ge 3", False),
    ("x>3", "x>2", False),
    ("x^2=-1", "1=2", False),  # math-verify alone takes all equations without a solution for the same
    ("Evelyn", "Evelin", False),
]


@pytest.mark.parametrize(("gold", "answer", "right"), MATHEMATICS)
def test_answers_that_are_the_same_mathematics_are_right(gold, answer, right):
    assert CHECKS["math"].right(gold, answer) is right


NUMBERS = {
    "1,234.50": Fraction(2469, 2),
    "1234.5": Fraction(2469, 2),
    "$5": Fraction(5),
    r"\$5": Fraction(5),
    "-$5": Fraction(-5),
    "€1,000": Fraction(1000),
    "3/4": Fraction(3, 4),
    "-3/4": Fraction(-3, 4),
    "6/8": Fraction(3, 4),
    "0.75": Fraction(3, 4),
    ".75": Fraction(3, 4),
    "75%": Fraction(3, 4),
    r"75\%": Fraction(3, 4),
    "+7": Fraction(7),
    " 7\n": Fraction(7),
    "7.": Fraction(7),
    "007": Fraction(7),
    "−7": Fraction(-7),
    "0.1": Fraction(1, 10),
    "100000000000000000000.1": Fraction(10**21 + 1, 10),
}
NO_NUMBERS = [
    "",
    " ",
    ".",
    "$",
    "%",
    "/",
    "-",
    "1/0",
    "1/",
    "/2",
    "1,23",
    "1,2345",
    "12,34,567",
    "1e3",
    "5 apples",
    "5 5",
]
NO_NUMBERS += [
    "1/2/3",
    "--7",
    "$-5",
    "nan",
    "inf",
    "infinity",
    "0x10",
    "1_000",
    "٣",
    "７",
    "1+1",
    "9" * 101,
    "½",
    "\ud800",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_a_text_is_the_number_that_it_says(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_any_other_text_is_no_number_and_never_right(text):
    assert number(text) is None
    assert not CHECKS["numeric"].right("7", text)


@given(st.integers(-(10**40), 10**40), st.integers(0, 6))
def test_decimals_are_exact(units, places):
    digits = str(abs(units)).zfill(places + 1)
    whole, part = (digits[:-places], digits[-places:]) if places else (digits, "")
    sign = "-" if units < 0 else ""
    expected = Fraction(units, 10**places)
    assert number(f"{sign}{whole}.{part}") == number(f"{sign}{int(whole):,}.{part}") == expected
    assert number(f"{expected.numerator}/{expected.denominator}") == expected


@given(st.sampled_from(sorted(NUMBERS)), st.sampled_from(sorted(NUMBERS)))
def test_numbers_are_compared_and_counted_by_value(gold, answer):
    check = CHECKS["numeric"]
    same = NUMBERS[gold] == NUMBERS[answer]
    assert check.right(gold, answer) is same
    assert (check.canonical(gold) == check.canonical(answer)) is same
    assert check.right(gold, rf"\boxed{{{answer}}}") is same


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_quick_checks_have_a_verdict_on_any_text_at_all(text):
    folded = " ".join(text.split()).lower()
    assert CHECKS["exact"].right("a  B", text) is (folded == "a b")
    for check in CHECKS.values():
        assert isinstance(check.canonical(text), str)
    assert CHECKS["numeric"].right("1", text) is (number(last_boxed(text) or text) == 1)


def test_answers_that_say_the_same_are_counted_as_one():
    canonical = CHECKS["math"].canonical
    assert canonical("1,000") == canonical(" 1000.0 ") == canonical(r"\boxed{1000}") != canonical("1001")
    assert canonical("X + 1") == canonical("x  + 1")
    assert canonical("50%") != canonical("0.5")  # of which one may be right and the other wrong


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{5}", "5"),
        (r"a \boxed{1} b \boxed{\frac{1}{2}} c", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {x}", "x"),
        (r"\boxed{[0, 1\}", None),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", ""),
        ("5", None),
        ("}}{", None),
    ],
)
def test_the_last_box_with_balanced_braces_is_found(text, inside):
    assert last_boxed(text) == inside


def test_an_answer_that_is_as_long_as_it_likes_is_quickly_wrong():
    for text in (r"\boxed{" * 100_000, "{" * 1_000_000, "9" * 1_000_000, " " * 1_000_000, "(" * 11 + "7" + ")" * 11):
        for check in CHECKS.values():
            assert not check.right("7", text)


@pytest.mark.parametrize(
    "text",
    [
        r"\operatorname{zeros}{10^5,10^5}",  # takes all memory
        r"\sum_{i=1}^{10^9} i",
        r"\int_0^1 x",
        r"\prod_{i=1}^{9} i",
        r"\variable{x}",
        "x.free_symbols",
        "f(x).doit",
        "().x",
        "__class__",
        "open('x')",
        'x"',
        "`x`",
        "#x",
        "1 2",
        "x" * 501,
        "(" * 11 + "7" + ")" * 11,
        "х",  # Cyrillic
        "\0",
    ],
)
def test_what_is_not_plainly_mathematics_is_not_parsed(text):
    assert screened(text) == ""


def test_time_limits_of_math_verify_are_off(monkeypatch):
    """They are alarms: in a worker they would call off that of whoever limits it, and elsewhere they raise."""
    import signal

    def alarmed(*_):
        raise AssertionError("an alarm was set")

    for name in ("alarm", "setitimer", "signal"):
        monkeypatch.setattr(signal, name, alarmed)
    checks._parse.cache_clear()
    assert CHECKS["math"].right("x^2-4", "(x-2)(x+2)")


def test_no_answer_is_executed_as_it_is_checked(tmp_path):
    """sympy evaluates generated code, of numbers and of templates of its own; of an answer, digits are all it has."""
    marker = tmp_path / "marker"
    command = [sys.executable, "-m", "tests.tasks.hostile_math", str(marker)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    # the hook sees what it is there to see, and the parser has been reached
    assert found["control"] == {"compiled": ["len('x')"], "names": ["len"], "other": ["open"]}
    assert found["passed"] > 100
    for source in found["compiled"]:
        words = set(re.findall(r"[^\W\d]\w*", source))
        numbers = re.fullmatch(r"Integer \(\d+ \)|Float \('[\d.]+' \)|from sympy import \*", source)
        assert numbers or all(re.fullmatch(r"def|if|else|return|None|A|B|k|[abr]\d+|monomial_\w+", w) for w in words)
    assert {name for name in found["names"] if not name.startswith("monomial_")} <= {"Integer", "Float", "sympy"}
    assert found["other"] == []
    assert found["scored"] == []
    assert not marker.exists()
