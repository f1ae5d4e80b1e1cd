"""Whether an answer is the right one: the same text, the same number, or the same mathematics.

No check executes what it reads. math-verify would: its route for plain expressions, and sympy's own `sympify`, hand
text to `eval`. Here it sees LaTeX only, and only text made of known characters and commands; what is left for sympy
to evaluate are runs of digits (tests/tasks/hostile_math.py watches it).
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import logging
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from rlswarm_jax.tasks import cells, latex
from rlswarm_jax.tasks.base import fold

MAX_TEXT = 10_000  # characters
MAX_NUMBER = 100
MAX_MATH = 500
SMALL = Fraction(1, 10**6)
MAX_DEPTH = 10  # of brackets: the time to parse them grows with its square, seconds from 20 on

_NUMBER = re.compile(r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.(?P<part>[0-9]*))?", re.ASCII)
_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|\\\\|\\[{}]|[{}]")

_CHARACTERS = re.compile(r"[A-Za-z0-9\s\\{}()\[\]|.,;:+\-*/^_=<>!%&$€£°π∞√×·÷−≤≥≠∪∩∈∅αβγδλμσφω]*")
_ATTRIBUTE = re.compile(r"__|\.\s*[A-Za-z_\\{]|[A-Za-z_)}\]]\s*\.\s*[A-Za-z0-9_]")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_PUNCTUATION = re.compile(r"\s*[.,;]?\s*\Z")
_DELIMITERS = re.compile(r"\\?[$€£¥₹]|\\[()\[\]]")
_COMMANDS = set("{}%\\|") | set(
    re.findall(
        r"\w+",
        """frac sqrt binom boxed fbox cdot times div pm mp pi infty le leq ge geq lt gt ne neq approx in cup cap
        setminus emptyset varnothing circ begin end lfloor rfloor lceil rceil max min gcd sin cos tan cot sec csc
        arcsin arccos arctan sinh cosh tanh log ln exp text textbf textit textrm mathrm mathbf mathit mathbb mbox
        alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi varphi omega Delta Omega ldots dots""",
    )
)


@dataclasses.dataclass(frozen=True)
class Check:
    """How answers are compared.

    seconds: most that one comparison may take, 0 for a quick one. right: whether (accepted answer, answer) say the
    same. readable: whether an accepted answer is one that any answer could ever equal. reads: whether it is more than
    a text to this check, quickly; a parser may still fail at it. canonical: as `Task` has it. versions: what its
    verdicts depend on besides this project's code.
    """

    seconds: float
    right: Callable[[str, str], bool]
    readable: Callable[[str], bool]
    reads: Callable[[str], bool]
    canonical: Callable[[str], str]
    versions: Callable[[], tuple[str, ...]] = tuple


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` whose braces balance (`\{` is no brace), None without one."""
    opened: list[re.Match[str]] = []
    found = (-1, -1)
    for match in _BRACE.finditer(text):
        if match[0] == "}" and opened:
            opening = opened.pop()
            if opening[0] != "{":
                found = max(found, (opening.end(), match.start()))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match)
    return text[slice(*found)].strip() if found[0] >= 0 else None


def number(text: str) -> Fraction | None:
    """The number that a text is, exactly: 1,234.50 or $5 or -3/4 or 50% (a half), and None for any other text.

    Thousands are grouped by three or not at all. A fraction is of two such numbers. Neither units nor exponents nor
    sums are read; nor is any text of more than `MAX_NUMBER` characters.
    """
    if len(text) > MAX_NUMBER:
        return None
    text = "".join(text.split()) if re.fullmatch(r"\s*[-+−]?\s*\\?[$€£]?\s*\S+\s*", text) else ""
    text = text.replace("\\$", "$").replace("\\%", "%").replace("−", "-")
    percent, text = text.endswith("%"), text.removesuffix("%")
    sign = -1 if text[:1] == "-" else 1
    text = text[1:] if text[:1] in ("-", "+") else text
    text = text[1:] if text[:1] in ("$", "€", "£") else text
    above, slash, below = text.partition("/")
    value, divisor = _decimal(above), _decimal(below) if slash else Fraction(1)
    if value is None or not divisor:
        return None
    return sign * value / divisor / (100 if percent else 1)


def _decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None or not (match["whole"] or match["part"]):
        return None
    digits, part = (match["whole"] or "0").replace(",", ""), match["part"] or ""
    return Fraction(int(digits + part), 10 ** len(part))


def _final(text: str) -> str:
    boxed = last_boxed(text)
    return text if boxed is None else boxed


def _same_text(gold: str, answer: str) -> bool:
    return len(answer) <= MAX_TEXT and fold(answer) == fold(gold)


def _same_number(gold: str, answer: str) -> bool:
    if len(answer) > MAX_TEXT:
        return False
    answer, gold = _final(answer), _final(gold)
    value = number(answer)
    return value == number(gold) if value is not None else fold(answer) == fold(gold) != ""


def _canonical_number(text: str) -> str:
    value = number(_final(text)) if len(text) <= MAX_TEXT else None
    return fold(text) if value is None else str(value)


def _same_mathematics(gold: str, answer: str) -> bool:
    """math-verify's verdict. What it takes for the same beyond algebra: 50% is 50 and a half; 5 cm is 5; x = 5 is 5;
    decimals are equal if they are to six places, but for those that have no digit there.
    """
    if len(answer) > MAX_TEXT:
        return False
    answer, gold = _final(answer), _final(gold)
    if fold(answer) == fold(gold):
        return bool(answer.strip())
    answer, gold = (cells.spellings(text.strip())[-1] for text in (answer, gold))  # or 1e-5 would be a sum
    values = number(answer), number(gold)
    if None not in values and (values[0] == values[1] or any(abs(value) < SMALL for value in values if value)):
        return values[0] == values[1]  # to math-verify 0.0000001 is nothing
    found_latex, wanted_latex = screened(answer), screened(gold)
    if not found_latex or not wanted_latex:
        return False
    import sympy
    from math_verify import verify

    found, wanted = _parse(found_latex), _parse(wanted_latex)
    if not found or not wanted or not verify(wanted, found, timeout_seconds=None):
        return False
    # of two equations it compares the solutions, so all those that have none would be the same
    both = isinstance(wanted[0], sympy.Eq) and isinstance(found[0], sympy.Eq)
    return not both or bool(sympy.solve(wanted[0], list(wanted[0].free_symbols)))


def screened(text: str) -> str:
    r"""A text as LaTeX that is safe to parse, "" for one that is not: too long, or of unknown characters or commands.

    Left out on purpose: quotes, attribute access, and commands that allocate or iterate as much as they are told
    (\operatorname{zeros}, \sum, \int). Two numbers side by side are refused but for 1 1/2: math-verify would add them.
    """
    if len(text) > MAX_MATH:
        return ""
    try:
        text = latex.tidy(_PUNCTUATION.sub("", _DELIMITERS.sub("", text)))
    except latex.LatexError:
        return ""
    safe = (
        len(text) <= 2 * MAX_MATH
        and _CHARACTERS.fullmatch(text)
        and not _ATTRIBUTE.search(text)
        and _COMMANDS.issuperset(_COMMAND.findall(text))
        and max(itertools.accumulate((c in "([{") - (c in ")]}") for c in text), default=0) <= MAX_DEPTH
    )
    return text if safe else ""


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> list[Any]:
    # Without math-verify's own time limit: it is an alarm, which works in a main thread only, cannot end one long
    # multiplication, and would call off an alarm of ours. Who calls `right` ends the process instead.
    from math_verify import parse

    return parse(f"${text}$", extraction_config=_latex_only(), fallback_mode="no_fallback", parsing_timeout=None)


@functools.cache
def _latex_only() -> tuple[Any, ...]:
    from math_verify import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it is without its time limit
    return (LatexExtractionConfig(),)


def _canonical_mathematics(text: str) -> str:
    text = _final(text) if len(text) <= MAX_TEXT else text
    value = None if "%" in text else number(text)
    return fold(text) if value is None else str(value)


def _mathematics_versions() -> tuple[str, ...]:
    _latex_only()  # imports it now, a second, not while the first answer is timed
    return tuple(
        f"{name} {importlib.metadata.version(name)}" for name in ("math-verify", "latex2sympy2-extended", "sympy")
    )


def _reads_mathematics(gold: str) -> bool:
    gold = cells.spellings(_final(gold).strip())[-1]
    return number(gold) is not None or not latex.incomplete(screened(gold))


def _reads_number(gold: str) -> bool:
    return number(_final(gold)) is not None


def _reads_text(gold: str) -> bool:
    return bool(gold.strip())


CHECKS: Mapping[str, Check] = {
    "exact": Check(0.0, _same_text, _reads_text, _reads_text, fold),
    "numeric": Check(0.0, _same_number, _reads_number, _reads_number, _canonical_number),
    "math": Check(
        5.0, _same_mathematics, _reads_text, _reads_mathematics, _canonical_mathematics, _mathematics_versions
    ),
}
