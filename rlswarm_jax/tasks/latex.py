r"""LaTeX as people and models write it, rewritten as the LaTeX that a parser of expressions expects.

    tidy(r"2 \frac 1 2 \mathrm{~cm}")  ->  r"2 \frac{1}{2}"

Arguments without braces get them, spacing and the sizes of brackets go, and so does the unit of a number. It reads
and writes text, runs nothing, and takes time linear in the text but for the depth of what is nested.
"""

import re

MAX_GROUPS = 100  # that stand inside one another; a parser can take fewer

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\s+|.", re.DOTALL)
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_WORD = re.compile(r"\\[A-Za-z]+")
_ENDS_IN_WORD = re.compile(r"\\[A-Za-z]+\Z")
_SIDE_BY_SIDE = re.compile(r"(?P<numbers>[0-9.]+(?: [0-9.]+)+)(?: ?/ ?(?P<below>[0-9]+))?")
_MIXED = re.compile(r"([0-9]+) ([1-9][0-9]*)")
_GROUPED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_SPACES = {"~", r"\,", r"\:", r"\;", r"\>", "\\ ", r"\quad", r"\qquad", r"\thinspace", r"\enspace"}
_NOTHING = {rf"\{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")}
_NOTHING |= {r"\!", r"\left", r"\right", r"\middle", r"\displaystyle", r"\textstyle"}
_SAME = {  # other names of what a parser knows
    "−": "-", "–": "-", "±": r"\pm", "∞": r"\infty", "²": "^{2}", "³": "^{3}", "°": r"^{\circ}",
    r"\degree": r"^{\circ}",
    r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|", r"\leqslant": r"\le", r"\geqslant": r"\ge",
}  # fmt: skip
_ALPHABETS = ("text", "textbf", "textit", "textrm", "mbox", "mathrm", "mathbf", "mathit", "mathbb", "operatorname")
_ARGUMENTS = {rf"\{name}": 1 for name in ("sqrt", "boxed", "fbox", *_ALPHABETS)} | {r"\frac": 2, r"\binom": 2}
_INFIX = {*"+-*/^_=<>&", r"\cdot", r"\times", r"\div", r"\pm", r"\mp", r"\le", r"\leq", r"\ge", r"\geq", r"\lt", r"\gt"}
_NO_ARGUMENT = {"", "}", "^", "_", "&", r"\\"}
_SIGNS = {"+", "-", r"\pm", r"\mp"}
_INFIX |= {r"\ne", r"\neq", r"\cup", r"\cap"}

_LETTER_UNITS = "m|s|h|g|t|l|L|N|J|W|V|A|K|C|F"
_SHORT_UNITS = (
    "[nmcdk]m|[mk]?g|[mcdk]?[lL]|lbs?|oz|ft|in|yd|mi|gal|hrs?|mins?|secs?|ms|mph|km?ph|kmh|[kM]?Hz|[kM]?Pa|kJ|[kM]W|kWh"
    "|mA|mol|rad|deg|sq|cu|USD|EUR|GBP"
)
_LONG_UNITS = (
    "(?:centi|milli|kilo|deci|nano|micro)?(?:met(?:er|re)s?|grams?|lit(?:er|re)s?)|inch(?:es)?|foot|feet|yards?|miles?"
    "|pounds?|ounces?|tons?|gallons?|quarts?|pints?|cups?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|degrees?"
    "|radians?|dollars?|cents?|euros?|rupees?|units?|square|cubic|squared|cubed|people|times"
)
_UNIT_NAME = rf"(?:{_LONG_UNITS}|{_SHORT_UNITS}|{_LETTER_UNITS})(?![A-Za-z])"
_UNIT = rf"(?:{_UNIT_NAME}|\\(?:text|textrm|mbox|mathrm|operatorname)\{{\s*{_UNIT_NAME}\s*\}})(?:\s*\^\{{-?[0-9]\}})?"
_JOIN = r"\s*(?:/|\*|\\cdot|(?<![A-Za-z])per(?![A-Za-z])|(?=\\)|(?<=\s))\s*"
_QUANTITY = re.compile(
    r"(?P<value>[-+]?\s*(?:[0-9.,]+\s*)?(?:[0-9]|\\frac\{[0-9]+\}\{[0-9]+\}|\\sqrt\{[0-9]+\}|\\pi))\s*"
    rf"(?:\^\{{\\circ\}}\s*(?:(?:\\(?:text|mathrm)\{{\s*)?[CF](?:\s*\}})?)?"
    rf"|(?:(?<=\s)|(?=\\)|(?!(?:{_LETTER_UNITS})(?![A-Za-z]))){_UNIT}(?:{_JOIN}{_UNIT})*)"
)


class LatexError(ValueError):
    """Text whose meaning would have to be guessed: unmatched braces, a missing argument, two numbers side by side."""


def tidy(text: str) -> str:
    r"""The same mathematics with every argument in braces, and without spacing, sizes of brackets, or a number's unit.

    An argument is as TeX reads it, one digit, letter or command; but `\frac123` is 1/23, `x^10` the tenth power and
    `\log_10 5` to the base of ten, as they are meant. Numbers that spaces part in groups of three are one. Raises
    LatexError.
    """
    reader = _Reader(text)
    tidied = reader.sequence("")
    quantity = _QUANTITY.fullmatch(tidied)
    return quantity["value"] if quantity else tidied


def incomplete(text: str) -> bool:
    """Whether a tidy text lacks something that no parser could do without: a bracket or an operand."""
    tokens = [token for token in _TOKEN.findall(text) if not token.isspace()]
    brackets = [token for token in tokens if token in {"(", ")", "[", "]", r"\{", r"\}", r"\begin", r"\end"}]
    depth = 0
    for token in brackets:
        depth += 1 if token in {"(", "[", r"\{", r"\begin"} else -1
        if depth < 0:
            return True
    return bool(depth or not tokens or tokens[-1] in _INFIX or tokens[0] in _INFIX - _SIGNS)


class _Reader:
    """Reads tokens once, from left to right; each method returns what it has read as tidy text."""

    def __init__(self, text: str):
        self._tokens = [_SAME.get(token, token) for token in _TOKEN.findall(text)]
        self._tokens.reverse()  # the next one is the last
        self._depth = 0

    def sequence(self, closing: str) -> str:
        """Up to `closing`, which it takes; "" is the end of the text."""
        self._depth += 1
        if self._depth > MAX_GROUPS:
            raise LatexError("groups are nested too deeply.")
        items: list[str] = []
        while self._tokens and self._tokens[-1] != closing:
            items.append(self._item(items))
        if closing:
            if not self._tokens:
                raise LatexError(f"a {closing} is missing.")
            self._tokens.pop()
        self._depth -= 1
        return _joined(items)

    def _item(self, before: list[str]) -> str:
        token = self._tokens.pop()
        if token == "}":
            raise LatexError("a } closes nothing.")
        if token == "{":
            return f"{{{self.sequence('}')}}}"
        if token in _SPACES or token.isspace():
            return " "
        if token in _NOTHING:
            if token in (r"\left", r"\right") and self._next() == ".":
                self._tokens.pop()
            return ""
        if token in _ARGUMENTS:
            return self._command(token)
        if token == "^" or (token == "_" and _last(before) != r"\log"):
            return token + self._argument(whole=True)
        if token == "_":
            return token + self._argument(whole=self._base_is_whole())
        return token

    def _command(self, token: str) -> str:
        option = ""
        if token == r"\sqrt" and self._next() == "[":
            self._tokens.pop()
            option = f"[{self.sequence(']')}]"
        if _ARGUMENTS[token] == 1:
            return token + option + self._argument()
        bare = bool(_NUMBER.fullmatch(self._next()))
        return token + self._argument() + self._argument(whole=bare)

    def _next(self) -> str:
        """The next token that is no space, which stays."""
        while self._tokens and (self._tokens[-1] in _SPACES | {r"\!"} or self._tokens[-1].isspace()):
            self._tokens.pop()
        return self._tokens[-1] if self._tokens else ""

    def _argument(self, whole: bool = False) -> str:
        """In braces, or "" before a bracket. whole: all digits of a number, and its sign; else TeX's one."""
        sign = ""
        while (token := self._next()) in ("-", "+") and whole:
            sign += self._tokens.pop()
        if token == "{":
            self._tokens.pop()
            return f"{{{sign}{self.sequence('}')}}}"
        if _NUMBER.fullmatch(token):
            self._tokens.pop()
            if not whole and len(token) > 1 and token[0] != ".":
                self._tokens.append(token[1:])
                token = token[0]
            return f"{{{sign}{token}}}"
        if token.isalpha() or token in _ARGUMENTS or _WORD.fullmatch(token):
            self._tokens.pop()
            return f"{{{sign}{self._command(token) if token in _ARGUMENTS else token}}}"
        if token in _NO_ARGUMENT:
            raise LatexError("an argument is missing.")
        return sign  # a ( or | and what follows: for the parser to make sense of

    def _base_is_whole(self) -> bool:
        r"""Whether the digits after `\log_` are all of its base, as something to take the logarithm of follows them."""
        self._next()
        after = next((token for token in reversed(self._tokens[:-1]) if not token.isspace()), "")
        return after[:1].isalnum() or after in ("{", "(") or (after[:1] == "\\" and after not in _INFIX)


def _last(items: list[str]) -> str:
    return next((item for item in reversed(items) if item.strip()), "")


def _joined(items: list[str]) -> str:
    text = ""
    for item in items:
        if item[:1].isalpha() and _ENDS_IN_WORD.search(text):
            text += " "  # \pi x is not \pix
        text += "" if item == " " == text[-1:] else item
    return _SIDE_BY_SIDE.sub(_one_number, text.strip())


def _one_number(match: re.Match[str]) -> str:
    """Of numbers that spaces part: a mixed one, or one in groups of three. Raises LatexError for others."""
    numbers, below = match["numbers"], match["below"]
    if below and (mixed := _MIXED.fullmatch(numbers)):
        return rf"{mixed[1]}\frac{{{mixed[2]}}}{{{below}}}"
    if _GROUPED.fullmatch(numbers):
        return numbers.replace(" ", "") + (f"/{below}" if below else "")
    raise LatexError("two numbers stand side by side.")
