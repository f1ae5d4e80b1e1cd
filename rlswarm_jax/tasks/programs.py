"""Rows of programming problems as they are published, and their tests with the expected values taken out."""

import ast
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rlswarm_jax.tasks.base import TaskError
from rlswarm_jax.tasks.harness import encode

LAYOUTS = "'test_list' (MBPP), 'test' and 'entry_point' (HumanEval), or 'io'"
_NUMBER = re.compile(r"-?0x[0-9a-f]{1,260}(\.[0-9a-f]{1,20})?(p[+-]\d{1,4})?")  # as `encode` writes int and float


@dataclasses.dataclass(frozen=True)
class Test:
    """One thing that an answer must get right.

    kind "value": `source` is an expression whose value, as text of `harness.encode`, is `accepted`, or is a number near
    to `near`: (number, relative, absolute difference). "assert": `source` are statements that must not raise. "io":
    the program that reads `source` must write `accepted`.
    """

    kind: Literal["value", "assert", "io"]
    source: str
    accepted: tuple[str, ...] = ()
    near: tuple[float, float, float] | None = None

    def passes(self, said: str) -> bool:
        """Whether it is right what the answer's process said, in time linear in it."""
        if self.kind == "io":
            return _lines(said) == _lines(self.accepted[0])
        if self.near is None:
            return said in self.accepted
        wanted, relative, absolute = self.near
        try:
            value = float.fromhex(said) if _NUMBER.fullmatch(said) else math.nan
        except OverflowError:
            return False
        return math.isclose(value, wanted, rel_tol=relative, abs_tol=absolute)


@dataclasses.dataclass(frozen=True)
class Row:
    """text: the problem. prompt: the beginning of the function that the answer goes on with, if there is one.

    setup: sources to run before the answer. reference: a right answer, "" if none is known.
    """

    text: str
    tests: tuple[Test, ...]
    setup: tuple[str, ...] = ()
    prompt: str = ""
    entry_point: str = ""
    reference: str = ""

    @property
    def forgeable(self) -> bool:
        """Whether some verdict is reached inside the sandbox, where a hostile answer could change it."""
        return any(test.kind == "assert" for test in self.tests)


def parse_row(fields: Mapping[str, Any]) -> Row:
    """A row of any of the layouts. Raises TaskError that says what is wrong with it."""
    if "test_list" in fields:
        return _mbpp(fields)
    if "entry_point" in fields and "test" in fields:
        return _humaneval(fields)
    if "io" in fields:
        return _io(fields)
    raise TaskError(f"a problem needs the fields {LAYOUTS}, this has {', '.join(map(repr, fields)) or 'none'}")


def _mbpp(fields: Mapping[str, Any]) -> Row:
    asserts = _texts(fields, "test_list")
    if not asserts:
        raise TaskError("'test_list' is empty")
    text = _text(fields, "text") if "text" in fields else _text(fields, "prompt")  # the sanitised edition says prompt
    setup = (*_texts(fields, "test_imports", ()), _text(fields, "test_setup_code", ""))
    tests = tuple(test for source in asserts for test in parse_tests(source))
    question = f"{text.strip()}\nIt should pass this test:\n{asserts[0].strip()}"
    return Row(question, tests, tuple(filter(str.strip, setup)), reference=_text(fields, "code", ""))


def _humaneval(fields: Mapping[str, Any]) -> Row:
    prompt, name = _text(fields, "prompt"), _text(fields, "entry_point")
    if not name.isidentifier():
        raise TaskError(f"'entry_point' is {name!r}, expected the name of a function")
    prompt = prompt if prompt.endswith("\n") else prompt + "\n"
    question = f"Complete this Python function:\n{prompt}"
    reference = _text(fields, "canonical_solution", "")
    return Row(question, _parse_check(_text(fields, "test")), (), prompt, name, reference)


def _io(fields: Mapping[str, Any]) -> Row:
    """`io` is a list of pairs: what the program reads, and what it must write."""
    pairs = fields["io"]
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise TaskError("'io' must be a list of pairs of texts, what a program reads and what it must write")
    tests = tuple(Test("io", given, (wanted,)) for given, wanted in pairs)
    example = f"For the input\n{pairs[0][0].rstrip()}\nit should print\n{pairs[0][1].rstrip()}"
    question = f"{_text(fields, 'text').strip()}\n{example}"
    return Row(question, tests, reference=_text(fields, "code", ""))


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise TaskError(f"the field {name!r} must be a text" if name in fields else f"the field {name!r} is missing")
    return value


def _texts(fields: Mapping[str, Any], name: str, default: Iterable[str] = ()) -> tuple[str, ...]:
    values = fields.get(name, list(default))
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TaskError(f"the field {name!r} must be a list of texts")
    return tuple(values)


def parse_tests(source: str) -> tuple[Test, ...]:
    """The tests that an assert says; one of kind "assert" for what is not understood. Raises TaskError.

    Understood are, with literals for the expected: `f(x) == 3`, `3 == f(x)`, `f(x) is None`, `f(x) in (1, 2)`, `f(x)`,
    `not f(x)`, `abs(f(x) - 0.5) < 1e-6`, `math.isclose(f(x), 0.5, rel_tol=1e-3)`, and several of these with `and`.
    """
    parsed = _statements(_parse(source).body)
    return (Test("assert", source),) if parsed is None else parsed


def _parse_check(source: str) -> tuple[Test, ...]:
    """The same for the body of HumanEval's `check(candidate)`, all of it or nothing."""
    functions = [node for node in _parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not functions:
        raise TaskError("'test' does not define check(candidate)")
    parsed = _statements(functions[-1].body)
    return (Test("assert", f"{source}\ncheck(candidate)"),) if parsed is None else parsed


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TaskError(f"the test {source[:60]!r} is not Python: {error}") from None


def _statements(body: Iterable[ast.stmt]) -> tuple[Test, ...] | None:
    """None if any is not understood, or there is nothing to test."""
    tests: list[Test] = []
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.Assert):
            return None
        found = _conditions(statement.test)
        if found is None:
            return None
        tests += found
    return tuple(tests) or None


def _conditions(node: ast.expr) -> list[Test] | None:
    match node:
        case ast.Constant(True):
            return []
        case ast.BoolOp(ast.And(), values):
            found = [_conditions(value) for value in values]
            return None if None in found else [test for tests in found for test in tests or ()]
        case ast.Call(ast.Name("isclose") | ast.Attribute(ast.Name("math"), "isclose"), [value, wanted], keywords):
            return _isclose(value, wanted, keywords)
        case ast.Compare(
            ast.Call(ast.Name("abs"), [ast.BinOp(value, ast.Sub(), wanted)], []), [ast.Lt() | ast.LtE()], [most]
        ):
            return _near(value, wanted, 0.0, _literal(most))
        case ast.Compare(left, [ast.Eq() | ast.Is()], [right]):
            return _equal(left, right) or (_equal(right, left) if isinstance(node.ops[0], ast.Eq) else None)
        case ast.Compare(left, [ast.In()], [ast.List(several) | ast.Tuple(several) | ast.Set(several)]):
            return _equal(left, *several)
        case ast.Call():
            return [Test("value", f"bool({ast.unparse(node)})", (encode(True),))]
        case ast.UnaryOp(ast.Not(), ast.Call()):
            return [Test("value", f"bool({ast.unparse(node.operand)})", (encode(False),))]
    return None


def _literal(node: ast.expr) -> Any:
    """The value of a literal, Ellipsis for anything else."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ...


def _equal(value: ast.expr, *wanted: ast.expr) -> list[Test] | None:
    try:
        return [Test("value", ast.unparse(value), tuple(encode(_literal(one)) for one in wanted))]
    except TypeError:  # Ellipsis has no encoding
        return None


def _isclose(value: ast.expr, wanted: ast.expr, keywords: list[ast.keyword]) -> list[Test] | None:
    options = {"rel_tol": 1e-9, "abs_tol": 0.0} | {str(key.arg): _literal(key.value) for key in keywords}
    return _near(value, wanted, options["rel_tol"], options["abs_tol"]) if len(options) == 2 else None


def _near(value: ast.expr, wanted: ast.expr, relative: Any, absolute: Any) -> list[Test] | None:
    if _literal(wanted) is ...:
        value, wanted = wanted, value
    numbers = (_literal(wanted), relative, absolute)
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return None
    if min(relative, absolute) < 0:
        return None
    return [Test("value", ast.unparse(value), near=(float(numbers[0]), float(relative), float(absolute)))]


def _lines(text: str) -> list[str]:
    """Lines without the white space at their ends, or empty ones at the end of all."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
