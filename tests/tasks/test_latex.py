"""LaTeX as people write it: what math-verify takes, this does; and what has only one meaning has it however written."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.tasks.checks import CHECKS, screened
from rlswarm_jax.tasks.latex import LatexError, incomplete, tidy

FORMS = {  # of what is right: as math-verify, too, says of each
    "0.5": [
        *(r"\frac12", r"\frac 1 2", r"\frac{1}2", r"\frac 1{2}", r"\frac {1} {2}", r"\dfrac 1 2", r"\tfrac12"),
        *(r"\cfrac 1 2", r"{\frac 1 2}", r"\displaystyle\frac 1 2", r"x=\frac 1 2", r"\boxed{\frac 1 2}"),
        *(r"\frac{1}{2} \mathrm{~cm}", r"\frac{1}{2}\,\text{m}", "1/2", "50%", r"50 \%"),
    ],
    "2.5": [
        *(r"2 \frac 1 2", r"2\frac12", r"2 \frac{1}{2}", r"2\,\frac{1}{2}", r"2\dfrac 1 2", r"2\frac 1 2 \text{ cm}"),
        r"\boxed{2 \frac 1 2 \mathrm{~cm}}",
    ],
    "5": [
        *("5~cm", "5 cm", r"5\;\text{cm}", r"5 \mathrm{~cm}", r"5\text{ cm}^2", r"5 \mathrm{~cm}^{2}", "5 cm²"),
        *(r"5\text{ m/s}", r"5 \mathrm{~m/s}", r"5 \mathrm{~m} / \mathrm{s}", r"5 \operatorname{cm}", r"5 \text{~cm}"),
        *(r"5 \mathrm{~m} / \mathrm{s}^{2}", r"5 \mathrm{~km}/\mathrm{h}", "x = 5 cm", "5 meters", "5 apples"),
        *(r"\boxed 5", r"\fbox{5}", r"\boxed{\boxed{5}}", r"\boxed{5} \text{ cm}", "5,", "5;", "5.", r"\$5", "$5"),
        *("5°", r"5^\circ", r"5^{\circ}", r"5\degree", r"5^{\circ} \mathrm{C}", "5 degrees", r"5\%", "5 percent"),
    ],
    "1000": ["1{,}000", r"1\!000", r"1,\!000", "1,000", r"\$1{,}000", r"10^3", r"1 \times 10^3", "1,000 km"],
    r"\frac{1}{23}": [r"\frac1{23}", r"\frac 1 23", "1/23"],
    r"-\frac{3}{4}": [r"-\frac 3 4", "-0.75", r"- \frac 3 4"],
    r"\frac{\sqrt{3}}{2}": [r"\frac{\sqrt 3}2", r"\sqrt{3}/2", r"\sqrt 3/2"],
    r"\sqrt{2}": [r"\sqrt2", r"\sqrt 2", r"\frac2{\sqrt2}", r"2^{\frac 1 2}"],
    r"\log_{2} 3": [r"\log_2 3", r"\log_{2}{3}", r"\log_2(3)", r"\log_2 {3}"],
    "3": [r"\log_28", r"\log_2 8", r"\log_2 (8)", r"\log_{2}8", r"\lfloor 3.5\rfloor"],
    r"\log_{2}{12}": [r"\log_2 12", r"\log_{2}12"],
    "10": [r"\binom{5}{2}", r"\tbinom{5}{2}", r"\dbinom {5} {2}"],
    "x^{2}": ["x^2", "x^ 2", r"x\cdot x"],
    "3x^{2}": ["x^2 3", "3x^2"],
    "x_{1}": ["x_1", "x_ 1"],
    r"e^{\pi}": [r"e^\pi"],
    r"\left(\frac{1}{2},3\right)": [r"(\frac 1 2, 3)", r"\left( \frac12, 3 \right)", "(1/2,3)"],
    r"\{1,2\}": [r"\left\{1,2\right\}", r"\{2,\, 1\}"],
    "|x|": [r"\left|x\right|", r"\lvert x\rvert"],
    "[0.5,3)": [r"\left[\frac 1 2, 3\right)", r"[ \frac12 ,3)"],
    r"(-\infty,0.5]": [r"(-\infty, \frac 1 2]", r"\left(-\infty, \dfrac 1 2\right]"],
    r"1\le x\le 2": [r"1\leq x\leqslant 2", r"1 \le x \leq 2"],
    r"\pm 2": ["2, -2", "±2", r"\pm2"],
    r"2\pm\sqrt{3}": [r"2 \pm \sqrt 3"],
    "3.14": [r"x\approx 3.14"],
    r"\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}": [r"\begin{pmatrix} \frac 1 2 \\ 3 \end{pmatrix}"],
}
QUANTITIES = [
    "5 m/s",
    "5 cm^2",
    "5 km/h",
    "5 dollars",
    "5 square meters",
    "5 miles per hour",
    "5 mL",
    "5 m s^{-1}",
    "€5",
]
QUANTITIES += ["5 m/s^2", "5\\,cm", "5 cubic feet", "£5", "5 L", "5 USD", "5 kilometers per hour"]
WRONG = [  # and so does math-verify
    (r"\frac 1 2", "2"), (r"\frac 1 2", "12"), (r"\frac 1 2", r"\frac 2 1"), (r"\sqrt 2", "2"), (r"\sqrt[3]{2}", "2"),
    (r"\log_2 3", r"\log_3 2"), ("x_1", "x"), ("x^2", "2x"), (r"2 \frac 1 2", "1"), (r"2 \frac 1 2", "3"), ("2x", "2"),
    ("5 m/s", "6 m/s"), (r"5 \mathrm{~cm}", "6 cm"), ("2m^2", "3m^2"), ("2m^2", "2"), ("3n+2m^2", "3n+2"), ("5", "5x"),
    ("5", "not 5"), ("5", "5, 6"), ("50%", "5"), ("1,000", "1"), ("(1,2)", "(2,1)"), ("[1,2]", "(1,2)"), ("x=5", "6"),
    (r"3\text{ km}", "3000"), (r"\binom{5}{2}", "5/2"), (r"90^\circ", "91"), (r"\pm 2", "2"),
]  # fmt: skip
TEX = [  # where math-verify does not read TeX as TeX does
    (r"\sqrt[3]2", r"\sqrt[3]{2}"),
    (r"\sqrt[3] 2", "2^{1/3}"),
    (r"\binom 5 2", "10"),
    (r"\binom52", "10"),
    (r"\frac\pi2", r"\frac{\pi}{2}"),
    (r"\frac ab", r"\frac{a}{b}"),
    (r"x^\frac12", r"\sqrt{x}"),
    ("2^-1", "0.5"),
    (r"2~\frac{1}{2}", "2.5"),
    (r"1\,000", "1000"),
    (r"\log_10 100", "2"),
    (r"\bigl(1,2\bigr)", "(1,2)"),
    (r"\mathbb R", r"\mathbb{R}"),
    ("5\u00a0cm", "5"),
]


def math_verify(gold: str, answer: str, form: str = "${}$") -> bool:
    """Its own verdict. form: plain text it reads in another way, as a number and what follows."""
    from math_verify import parse, verify

    wanted, found = (parse(form.format(text), parsing_timeout=None) for text in (gold, answer))
    return bool(verify(wanted, found, timeout_seconds=None))


@pytest.mark.parametrize(("gold", "answer"), [(gold, form) for gold, forms in FORMS.items() for form in forms])
def test_what_math_verify_takes_is_taken(gold, answer):
    assert math_verify(gold, answer)
    assert CHECKS["math"].right(gold, answer) and CHECKS["math"].right(answer, gold)


@pytest.mark.parametrize("text", QUANTITIES)
def test_a_number_with_its_unit_is_the_number(text):
    assert math_verify(text, "5", "{}")
    assert CHECKS["math"].right(text, "5") and CHECKS["math"].right("5", text)
    assert not CHECKS["math"].right(text, "6") and not CHECKS["math"].right("5", text.replace("5", "6"))


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_what_math_verify_refuses_is_refused(gold, answer):
    assert not math_verify(gold, answer)
    assert not CHECKS["math"].right(gold, answer) and not CHECKS["math"].right(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), TEX)
def test_an_argument_is_what_it_is_to_tex(gold, answer):
    assert CHECKS["math"].right(gold, answer) and CHECKS["math"].right(answer, gold)


@st.composite
def expressions(draw, depth=2):
    """The same expression twice: with all braces and no spaces, and as people write it."""
    space = draw(st.sampled_from(["", " ", r"\,", r"\;", "~", r"\!", "  "]))
    if not depth or draw(st.booleans()):
        atom = draw(st.sampled_from(["1", "7", "x", r"\pi", r"\alpha"]))
        return atom, atom
    (full, loose), (other, loose_other) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    kind = draw(st.sampled_from(["frac", "sqrt", "binom", "power", "index", "sum"]))

    def braced(text, plain):
        bare = plain in ("1", "7", "x", r"\pi", r"\alpha") and draw(st.booleans())
        return f" {text}" if bare else f"{{{space}{text}}}"

    first, second = braced(loose, full), braced(loose_other, other)
    match kind:
        case "frac" | "binom":
            command = draw(
                st.sampled_from([r"\frac", r"\dfrac", r"\tfrac"] if kind == "frac" else [r"\binom", r"\dbinom"])
            )
            return rf"\{kind}{{{full}}}{{{other}}}", f"{command}{first}{space}{second}"
        case "sqrt":
            return rf"\sqrt{{{full}}}", rf"\sqrt{space}{first}"
        case "power" | "index":
            mark = "^" if kind == "power" else "_"
            return f"y{mark}{{{full}}}", f"y{mark}{space}{first}"
    return f"({full}+{other})", rf"\left({space}{loose}{space}+{space}{loose_other}\right)"


@settings(deadline=None)
@given(expressions())
def test_braces_and_spaces_change_nothing(pair):
    full, loose = pair
    assert tidy(loose).replace(" ", "") == tidy(full).replace(" ", "")
    assert tidy(full) == tidy(tidy(full))


@settings(deadline=None)
@given(st.text(st.sampled_from(r"\{}[]()^_+-/.,~! 17xfracsqrtlog" + "\u00a0"), max_size=60))
def test_any_text_is_tidied_or_refused(text):
    try:
        tidied = tidy(text)
    except LatexError:
        return
    assert tidied.count("{") >= text.count("{") - text.count(r"\left")
    assert isinstance(incomplete(tidied), bool)


@pytest.mark.parametrize(
    "text", ["1 2", "1 2 3", "3 1000", "1000 000", "1, 2 3", "{", "}", r"\frac{1", r"\sqrt[3{2}", "{" * 200]
)
def test_what_would_have_to_be_guessed_is_refused(text):
    with pytest.raises(LatexError):
        tidy(text)
    assert screened(text) == ""


def test_no_text_takes_long_to_tidy():
    started = time.process_time()
    units = [
        "5 m ",
        "m/",
        "9",
        r"\frac",
        r"\sqrt",
        "^",
        "x^-",
        "1 ",
        "square ",
        r"\log_",
        " per",
        "-",
        "1 000 ",
        r"\text{m}",
        "^{\\circ}",
    ]
    for unit in units:
        for text in ("5 " + unit * (500 // len(unit)), unit * (500 // len(unit))):
            screened(text)
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "text", ["(1, 2", r"\frac{1}", "x=", "2+", r"\sqrt", r"\begin{pmatrix}1", "[1", "1)", "=3", r"\{1", ""]
)
def test_what_no_parser_could_make_sense_of_is_not_read(text):
    assert not CHECKS["math"].reads(text)
    assert not CHECKS["math"].right(text, "7")


@pytest.mark.parametrize("text", [*FORMS, *(form for forms in FORMS.values() for form in forms), *QUANTITIES])
def test_what_can_be_right_is_read(text):
    assert CHECKS["math"].reads(text)
