"""Arithmetic that peers write, read without `eval`: a small grammar over whatever numbers the reader brings along.

    sum     = product (("+" | "-") product)*
    product = signed (("*" | "/") signed)*
    signed  = ("+" | "-")* power
    power   = atom ("**" signed)?
    atom    = number | name | name "(" sum ")" | "(" sum ")"

`read` calls a function for each of these and builds no text, so nothing in an expression can reach the interpreter.
Lengths, depths, digits and exponents are bounded.
"""

import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol

MAX_TOKENS = 1_000
MAX_DEPTH = 50
MAX_DIGITS = 30
MAX_EXPONENT = 100
MAX_BITS = 10_000  # of a number raised to a power

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?)|([A-Za-z][A-Za-z0-9_]*)|(\*\*|[-+*/()]))")


class ExpressionError(ValueError):
    """Text that is no expression of the grammar, or is too long, deep or large."""


class Algebra(Protocol):
    """The values of an expression; any of these may raise ExpressionError for what it does not have."""

    def number(self, digits: str) -> Any: ...
    def name(self, name: str) -> Any: ...
    def call(self, function: str, value: Any) -> Any: ...
    def negative(self, value: Any) -> Any: ...
    def combine(self, sign: str, left: Any, right: Any) -> Any: ...


def read(text: str, algebra: Algebra) -> Any:
    """The value of an expression. Raises ExpressionError, or ZeroDivisionError where the algebra does."""
    return _Reader(_tokens(text), algebra).everything()


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    place, text = 0, text.strip()
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None or len(tokens) == MAX_TOKENS:
            raise ExpressionError("the text is no expression, or too long a one.")
        tokens.append(found[0].strip())
        place = found.end()
        if found[1] and len(found[1]) > MAX_DIGITS:
            raise ExpressionError(f"a number has more than {MAX_DIGITS} digits.")
    return tokens


class _Reader:
    """Recursive descent, a method for each line of the grammar."""

    def __init__(self, tokens: list[str], algebra: Algebra):
        self._tokens = [*tokens, ""]  # an empty token ends them
        self._place = 0
        self._depth = 0
        self._algebra = algebra

    def everything(self) -> Any:
        value = self._sum()
        if self._tokens[self._place]:
            raise ExpressionError("something follows the expression.")
        return value

    def _take(self, *wanted: str) -> str:
        token = self._tokens[self._place]
        if token not in wanted:
            return ""
        self._place += 1
        return token

    def _sum(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"the expression is nested more than {MAX_DEPTH} deep.")
        value = self._product()
        while sign := self._take("+", "-"):
            value = self._algebra.combine(sign, value, self._product())
        self._depth -= 1
        return value

    def _product(self) -> Any:
        value = self._signed()
        while sign := self._take("*", "/"):
            value = self._algebra.combine(sign, value, self._signed())
        return value

    def _signed(self) -> Any:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return self._algebra.negative(value) if negative else value

    def _power(self) -> Any:
        value = self._atom()
        if not self._take("**"):
            return value
        self._depth += 1  # a tower of powers nests to the right
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"the expression is nested more than {MAX_DEPTH} deep.")
        value = self._algebra.combine("**", value, self._signed())
        self._depth -= 1
        return value

    def _atom(self) -> Any:
        token = self._tokens[self._place]
        if token in ("", "**", "*", "/", "+", "-", ")"):
            raise ExpressionError("a number, a name or a bracket is missing.")
        self._place += 1
        if token[0].isdigit():
            return self._algebra.number(token)
        if token != "(" and not self._take("("):
            return self._algebra.name(token)
        value = self._sum()
        if not self._take(")"):
            raise ExpressionError("a bracket is not closed.")
        return value if token == "(" else self._algebra.call(token, value)


ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Whole:
    """Exact arithmetic by + - * / on whole numbers, which it notes as it meets them."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def number(self, digits: str) -> Fraction:
        if "." in digits:
            raise ExpressionError("only whole numbers may be used.")
        self.used.append(int(digits))
        return Fraction(digits)

    def name(self, name: str) -> Fraction:
        raise ExpressionError("only numbers may be used.")

    def call(self, function: str, value: Fraction) -> Fraction:
        raise ExpressionError("only numbers may be used.")

    def negative(self, value: Fraction) -> Fraction:
        return -value

    def combine(self, sign: str, left: Fraction, right: Fraction) -> Fraction:
        if sign not in ARITHMETIC:
            raise ExpressionError("only + - * / may be used.")
        return ARITHMETIC[sign](left, right)


Monomial = tuple[tuple[str, int], ...]  # (variable, exponent), sorted
Expanded = dict[Monomial, Fraction]  # coefficients, none of them 0


class Polynomials:
    """Polynomials that are written out: a product of sums is refused, whatever it is worth."""

    def number(self, digits: str) -> Expanded:
        if "." in digits:
            raise ExpressionError("only whole numbers and fractions may be used.")
        return _expanded({(): Fraction(digits)})

    def name(self, name: str) -> Expanded:
        return {((name, 1),): Fraction(1)}

    def call(self, function: str, value: Expanded) -> Expanded:
        raise ExpressionError("a polynomial has no functions.")

    def negative(self, value: Expanded) -> Expanded:
        return {key: -coefficient for key, coefficient in value.items()}

    def combine(self, sign: str, left: Expanded, right: Expanded) -> Expanded:
        if sign in "+-":
            factor = 1 if sign == "+" else -1
            return _expanded({key: left.get(key, 0) + factor * right.get(key, Fraction(0)) for key in {*left, *right}})
        if sign == "**":
            return self._power(left, _constant(right))
        if sign == "/":
            right = {(): 1 / _constant(right)}
        elif any(len(one) > 1 and other.keys() - {()} for one, other in ((left, right), (right, left))):
            raise ExpressionError("the product of sums is not written out.")
        return _expanded({_times(a, b): x * y for a, x in left.items() for b, y in right.items()})

    def _power(self, base: Expanded, exponent: Fraction) -> Expanded:
        if exponent.denominator != 1 or not 0 <= exponent <= MAX_EXPONENT or len(base) > 1:
            raise ExpressionError("an exponent must be a small whole number, over one term.")
        power = int(exponent)
        if any(_bits(coefficient) * power > MAX_BITS for coefficient in base.values()):
            raise ExpressionError("the power is too large.")
        raised = {tuple((v, n * power) for v, n in key if power): x**power for key, x in base.items()}
        if any(n > MAX_EXPONENT for key in raised for _, n in key):
            raise ExpressionError("an exponent is too large.")
        return raised or _expanded({(): Fraction(power == 0)})


def _expanded(terms: Mapping[Monomial, Any]) -> Expanded:
    return {key: Fraction(coefficient) for key, coefficient in terms.items() if coefficient}


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _constant(value: Expanded) -> Fraction:
    if value.keys() - {()}:
        raise ExpressionError("a number is expected, not a variable.")
    return value.get((), Fraction(0))


def _times(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for variable, exponent in right:
        powers[variable] = powers.get(variable, 0) + exponent
    return tuple(sorted(powers.items()))


_FUNCTIONS = "exp log ln sqrt sin cos tan cot sec csc asin acos atan acot sinh cosh tanh asinh acosh atanh Abs erf"
FUNCTIONS = frozenset(_FUNCTIONS.split())


class Symbolic:
    """sympy's expressions of real functions, built from its own objects; no text reaches sympy but a symbol's name."""

    def __init__(self) -> None:
        import sympy  # a second: only a node that plays needs it

        self._sympy = sympy

    def number(self, digits: str) -> Any:
        return self._sympy.Float(digits) if "." in digits else self._sympy.Integer(int(digits))

    def name(self, name: str) -> Any:
        constants = {"pi": self._sympy.pi, "E": self._sympy.E}
        return constants[name] if name in constants else self._sympy.Symbol(name)

    def call(self, function: str, value: Any) -> Any:
        if function not in FUNCTIONS:
            raise ExpressionError(f"there is no function of that name; expected one of {' '.join(sorted(FUNCTIONS))}.")
        return getattr(self._sympy, function)(value)

    def negative(self, value: Any) -> Any:
        return -value

    def combine(self, sign: str, left: Any, right: Any) -> Any:
        if sign != "**":
            return ARITHMETIC[sign](left, right)
        # 10**10**10 would be worked out at once
        if right.is_number and not (right.is_real and abs(right) <= MAX_EXPONENT):
            raise ExpressionError("an exponent is too large.")
        if left.is_Rational and right.is_number and _bits(Fraction(left.p, left.q)) * abs(right) > MAX_BITS:
            raise ExpressionError("the power of a number is too large.")
        return left**right
