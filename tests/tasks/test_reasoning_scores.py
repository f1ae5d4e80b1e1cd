"""Scorers that replace reasoning-gym's: they agree with it where it is right, and run and pay for nothing else."""

import contextlib
import fractions
import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.tasks import expressions, reasoning_scores
from rlswarm_jax.tasks.expressions import ExpressionError, Polynomials, Symbolic, Whole, read
from tests.tasks.gym_datasets import solution, task

# --- agreement with the originals, on texts that are harmless to evaluate


def ours(name, seed=0):
    return functools.partial(reasoning_scores.scorer_of(name), task(name)._dataset, entry(name, seed))


def original(name, seed=0):
    return lambda text: float(task(name)._dataset.score_answer(text, entry(name, seed)))


def entry(name, seed=0):
    return task(name, "graded").problem(seed).data


def lists(text):
    """The rows of a matrix as Python and JSON would write them, and wrongly."""
    rows = [line.split() for line in text.split("\n")]
    yield str([[int(cell) if cell.isdigit() else cell for cell in row] for row in rows])
    yield str(tuple(tuple(row) for row in rows))
    yield str(rows)
    yield str(rows)[:-1]
    yield str(rows[:-1])
    yield str([*rows, 5])


def near(text):
    """Texts like this one: no more, and no less, than digits, letters, operators and brackets."""
    yield from (text, text[:-1], text[1:], text + "0", text.replace("1", "2"), text.replace(" ", ""), text.swapcase())
    yield from ("0", "1", "x", "No", "[]", "[1, 2]", "1, 2", "0, 0", "-1", "1/2")


VARIANTS = {
    "binary_matrix": lists,
    "n_queens": lists,
    "spiral_matrix": lambda text: (str(text.split()), str([int(digit) for digit in text.split()]), f"[{text}]"),
    "string_insertion": lambda text: (str(list(text)), str(tuple(text)), str([text]), f"'{text}'"),
    "bitwise_arithmetic": lambda text: (str(int(text, 0)), bin(int(text, 0)), text.upper(), str(int(text, 0) + 1)),
    "countdown": lambda text: (
        f"({text})",
        f"-(-({text}))",
        f"({text}) + 1 - 1",
        f"1*({text})",
        text.replace("+", "-"),
    ),
    "puzzle24": lambda text: (f"({text})", f"+({text})", text.replace("*", "+"), text.replace("+", "-")),
    "number_sorting": lambda text: (text.replace("'", '"'), text.replace("'", ""), str(eval(text)[::-1]), f"[{text}]"),
    "polynomial_multiplication": lambda text: (
        f"({text})",
        f"{text} + 0",
        f"0 - ({text}) * -1",
        f"({text}) / 1",
        f"({text}) / 2 * 2",
        f"{text} + 1",
        text.replace("+", "-"),
        text.replace("**2", "**3"),
    ),
    "prime_factorization": lambda text: (
        " × ".join(reversed(text.split(" × "))),
        text.replace(" ", ""),
        str(math.prod(int(factor) for factor in text.split(" × "))),
        f"{text} × 1",
        f"{text} × 2",
    ),
    "simple_integration": lambda text: (
        text.replace("C", "7"),
        text.removesuffix(" + C"),
        f"2*({text})/2",
        f"2*({text})",
        f"{text} + E**pi - sqrt(2)",
        text.replace("**", "*"),
        text.replace("+", "-"),
    ),
    "coin_flip": lambda text: (
        str(fractions.Fraction(text)),
        f"{float(text):.6f}",
        f"+{text}",
        str(float(text) / 2),
        str(1 - float(text)) if float(text) != 0.5 else "2",
    ),
}
VARIANTS["intermediate_integration"] = VARIANTS["simple_integration"]
STRICTER = {"coin_flip", "number_sorting", "prime_factorization"}  # not all that they paid a little for pays with ours


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_replaced_scorer_agrees_with_the_original(name):
    seen = set()
    for seed in range(2 if "integration" in name else 4):
        right = str(entry(name, seed)["answer"])
        for text in [*near(right), *VARIANTS[name](right)]:
            try:
                expected = original(name, seed)(text)
            except ValueError:  # prime_factorization raises
                expected = 0.0
            found = ours(name, seed)(text)
            seen.add(found)
            if name in STRICTER or name == "puzzle24":
                assert (found == 1) <= (expected == 1), (text, right)
                assert text != right or found == 1
            elif name == "countdown":
                assert (found == 1) == (expected == 1), (text, right)
            else:
                assert found == expected, (text, right)
    assert {0.0, 0.01, 0.05} & seen and 1.0 in seen


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("puzzle24", "6 * 4 * 1 * 1", "numbers of another problem"),
        ("complex_arithmetic", "nan", "no number"),
        ("coin_flip", "0", "the first digit of most"),
        ("quantum_lock", "{prose}", "letters of a sentence"),
        ("sokoban", "{prose}", "letters of a sentence"),
        ("game_of_life_halting", "False, I think", "any text"),
        ("intermediate_integration", "Integral({question}, {variable})", "the question"),
        ("simple_integration", "Integral({question}, {variable})", "the question"),
        ("number_sorting", "{off}", "each number a little off"),
        ("polynomial_equations", "{answer}, if not open", "no number"),
    ],
)
def test_what_the_original_pays_in_full_for_nothing_is_not_right(name, text, says):
    """The original does pay it, for one of twenty problems at least: without that the test would say nothing."""
    for seed in range(20):
        data = entry(name, seed)["metadata"]
        answer = solution(task(name, "graded").problem(seed))
        sent = text.format(
            answer=answer,
            prose=" then ".join(answer) if name == "sokoban" else " go ".join(filter(str.isalpha, answer)),
            question=data.get("integrand"),
            variable=data.get("variable"),
            off=str([float(value) + 0.001 for value in data.get("sorted_numbers", ())]),
        )
        if name in ("puzzle24", "coin_flip") and ours(name, seed)(sent) == 1:
            continue  # these are its numbers
        assert ours(name, seed)(sent) < reasoning_scores.RIGHT_FROM, says
        if original(name, seed)(sent) == 1:
            return
    raise AssertionError("the original does not pay for it")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rubiks_cube", "R999999999"),
        ("rush_hour", "A+999999999"),
        ("coin_flip", "1e999999999"),
        ("propositional_logic", "∨".join(f"p{number}" for number in range(60))),
        ("countdown", "9**9**9**9"),
        ("simple_integration", "10**10**10"),
        ("simple_integration", "((((2**99)**99)**99)**99)**99"),
        ("polynomial_multiplication", "((((2**99)**99)**99)**99)**99"),
        ("polynomial_multiplication", "x**99**99**99"),
        ("intermediate_integration", "(" * 4_999 + "x" + ")" * 4_999),
    ],
)
@pytest.mark.timeout(20)  # the originals take years, or all memory
def test_what_would_never_end_is_refused(name, text):
    assert ours(name)(text) <= 0.05


def test_moves_within_the_bounds_still_count():
    """What is fenced off is only what no solution needs: a car has five places to go."""
    for seed in range(5):
        problem = task("rush_hour", "graded").problem(seed)
        right = solution(problem)
        assert task("rush_hour").score(problem, right) == 1.0
        assert task("rush_hour").score(problem, right + " A+9") == 1.0  # it is out already
        assert task("rush_hour").score(problem, "A-1") == 0.0


# --- expressions


@st.composite
def arithmetic(draw, depth=3):
    """An expression of whole numbers, its value (None for a division by zero) and the numbers in it."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 10**6))
        return str(number), fractions.Fraction(number), [number]
    (left, a, used), (right, b, more) = draw(arithmetic(depth - 1)), draw(arithmetic(depth - 1))
    sign = draw(st.sampled_from("+-*/"))
    value = None
    if a is not None and b is not None and not (sign == "/" and b == 0):
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]
    if draw(st.booleans()):
        return f"-(({left}){sign}({right}))", None if value is None else -value, used + more
    return f"( {left} ) {sign} ({right})", value, used + more


@settings(max_examples=100)
@given(arithmetic())
def test_an_expression_is_worth_what_its_parts_are(drawn):
    text, value, used = drawn
    algebra = Whole()
    if value is None:
        with pytest.raises(ZeroDivisionError):
            read(text, algebra)
    else:
        assert read(text, algebra) == value and algebra.used == used


@pytest.mark.parametrize(
    "text",
    ["1+2*3", "2*3+1", "8/4/2", "8-4-2", "-2*-3", "--2", "2--3", "-(1+2)*3", "7", " 1 + 2 ", "1-2+3", "12/5*10", "+1"],
)
def test_precedence_is_python_s(text):
    assert read(text, Whole()) == fractions.Fraction(eval(text)).limit_denominator(1000)


@pytest.mark.parametrize("text", ["2**3", "-2**2", "2**-1", "-2**-2", "2**3**2", "(2**3)**2", "2*3**2", "2**2*3"])
def test_precedence_of_powers_is_python_s(text):
    assert float(read(text, Symbolic())) == eval(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1 2", "1+", "*1", "(1", "1)", "()", "1;2", "1//2", "1%2", "x", "f(1)", "1.5", "a.b", "1_0", "0x1"),
        *("1e5", "1=1", "[1]", "'1'", "1\0", "１", "²", "2^3", "2**3", "9" * 31, "1+" * 999 + "1"),
        "(" * 51 + "1" + ")" * 51,
    ],
)
def test_what_is_no_arithmetic_is_an_error(text):
    with pytest.raises(ExpressionError):
        read(text, Whole())


@settings(max_examples=200)
@given(
    st.text(st.sampled_from("0123456789+-*/() xyEe.,_[]'\"fopen"), max_size=30), st.sampled_from([Whole, Polynomials])
)
def test_any_text_is_a_value_or_an_error(text, algebra):
    with contextlib.suppress(ExpressionError, ZeroDivisionError):
        read(text, algebra())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=3),
        min_size=2,
        max_size=3,
    )
)
def test_a_polynomial_is_what_sympy_makes_of_it_but_only_written_out(factors):
    import sympy

    x, y = sympy.symbols("x y")
    product = sympy.prod([sum(c * x**n * y**m for c, n, m in terms) for terms in factors])
    expanded = sympy.expand(product)
    found = read(str(expanded), Polynomials())
    expected = sympy.Poly(expanded, x, y).as_dict()
    assert {tuple(dict(key).get(name, 0) for name in "xy"): value for key, value in found.items()} == expected
    if sum(factor.is_Add and not factor.is_number for factor in product.args) > 1 and product.is_Mul:
        with pytest.raises(ExpressionError, match="not written out"):
            read(str(product), Polynomials())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exp(x)*sin(2*x)", lambda s, x: s.exp(x) * s.sin(2 * x)),
        ("-x**2/2 + C", lambda s, x: -(x**2) / 2 + s.Symbol("C")),
        ("E**x - pi", lambda s, x: s.exp(x) - s.pi),
        ("sqrt(1 - 4*x**2)", lambda s, x: s.sqrt(1 - 4 * x**2)),
        ("log(x)*atan(x)/3", lambda s, x: s.log(x) * s.atan(x) / 3),
        ("2*sqrt(3)*(x - 8/3)**(3/2)", lambda s, x: 2 * s.sqrt(3) * (x - s.Rational(8, 3)) ** s.Rational(3, 2)),
    ],
)
def test_symbols_and_functions_are_sympy_s(text, expected):
    import sympy

    assert sympy.simplify(read(text, Symbolic()) - expected(sympy, sympy.Symbol("x"))) == 0


@pytest.mark.parametrize(
    "name", ["Integral", "eval", "Symbol", "sympify", "S", "lambdify", "Function", "open", "factorial"]
)
def test_no_function_but_the_listed_is_known(name):
    with pytest.raises(ExpressionError, match=r"no function of that name; expected one of .*sin"):
        read(f"{name}(x)", Symbolic())
    assert name not in expressions.FUNCTIONS
