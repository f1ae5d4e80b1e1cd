"""What an answer to a reasoning-gym problem is worth, dataset by dataset; docs/tasks-audit.md says why.

reasoning-gym's own `score_answer` evaluates answers as Python in nine datasets, can be made to hang or to fill the
memory in four, and pays in full for some answers that are wrong. A scorer here is a function
`(dataset, entry, text) -> float`, of reasoning-gym's dataset and entry and an answer without surrounding space:

- `OURS` are replaced: quick, total, and they run no code but this project's.
- `ISOLATED` are ours too, but use sympy or go on to reasoning-gym's once they have seen that the answer is harmless.
- All others are reasoning-gym's, read and found to run nothing they are given. They may still raise, or take long.
"""

import contextlib
import copy
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from rlswarm_jax.tasks.base import fold
from rlswarm_jax.tasks.expressions import ExpressionError, Polynomials, Symbolic, Whole, read

Entry = Mapping[str, Any]
Scorer = Callable[[Any, Entry, str], float]

# One accepted answer, whose format the question gives: by default an answer is right if it is that one after white
# space and case are folded. reasoning-gym's scorers of these add partial pay, or pay for what contains the answer.
_UNIQUE = """
    ab acre aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation binary_matrix
    caesar_cipher calendar_arithmetic chain_sum circuit_logic color_cube_rotation count_bits count_primes
    course_schedule dice emoji_mystery family_relationships figlet_font futoshiki game_of_life_halting gcd
    gsm_symbolic isomorphic_strings largest_island lcm leg_counting letter_counting letter_jumble
    list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack
    number_filtering number_sequence number_sorting path_star products ransom_note rearc rectangle_count
    rotate_matrix rotten_oranges self_reference sentence_reordering simple_equations simple_geometry
    spell_backward spiral_matrix string_insertion string_manipulation string_ting string_synthesis sudoku
    survo syllogism time_intervals tsumego word_sequence_reversal zebra_puzzles
"""
UNIQUE = frozenset(_UNIQUE.split())

# They tell no right answer, so there is none to be compared with.
UNANSWERED = frozenset({"boxnet", "rush_hour"})

# A score of 0.99 is right, as answers are rounded; but not where it is a share of cells or characters.
RIGHT_FROM = 0.99
RIGHT_FROM_OF = {"codeio": 1.0, "game_of_life": 1.0}


def library(dataset: Any, entry: Entry, text: str) -> float:
    """reasoning-gym's own score. Raises whatever it raises."""
    with contextlib.redirect_stdout(io.StringIO()):  # some print what they refuse
        return float(dataset.score_answer(text, copy.deepcopy(entry)))  # one notes what it found in the entry


def same(dataset: Any, entry: Entry, text: str) -> float:
    return float(fold(text) == fold(str(entry["answer"])))


def literal(text: str) -> Any:
    """A list or tuple of lists, tuples, strings and numbers, as Python or JSON write them. Raises ValueError."""
    try:
        return json.loads(text.translate(str.maketrans("()'", '[]"')))
    except RecursionError:
        raise ValueError("the brackets are nested too deep.") from None


def _as_list(join: Callable[[Any], str], share: float) -> Scorer:
    """1 for the answer as it is asked for, `share` for the same as a Python list that `join` makes text of."""

    def score(dataset: Any, entry: Entry, text: str) -> float:
        accepted = entry["metadata"].get("valid_answers", [entry["answer"].strip()])
        if text in accepted:
            return 1.0
        try:
            return share * (join(literal(text)) in accepted)
        except (TypeError, ValueError):
            return 0.0

    return score


def _rows(cell: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda rows: "\n".join(" ".join(cell(value) for value in row) for row in rows)


def _only_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a string is expected.")
    return value


def bitwise_arithmetic(dataset: Any, entry: Entry, text: str) -> float:
    """A whole number to any of Python's bases."""
    try:
        return float(len(text) <= 1_000 and int(text, 0) == int(entry["answer"], 0))
    except ValueError:
        return 0.0


def coin_flip(dataset: Any, entry: Entry, text: str) -> float:
    """A fraction or decimal within 1e-4 and 1 % of the probability; 0 is otherwise near enough to small ones."""
    text = text.replace(",", "")
    if not re.fullmatch(r"[+-]?[0-9]{1,40}(/[0-9]{1,40}|(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?)", text):
        return 0.0
    try:
        answer, right = Fraction(text), Fraction(entry["answer"])
    except ZeroDivisionError:
        return 0.0
    return float(abs(answer - right) <= min(Fraction(1, 10_000), right / 100))


def _makes(entry: Entry, text: str, target: int) -> float:
    algebra = Whole()
    try:
        value = read(text, algebra)
    except (ExpressionError, ZeroDivisionError):
        return 0.01
    if sorted(algebra.used) != sorted(entry["metadata"]["numbers"]):
        return 0.05
    return 1.0 if value == target else 0.05


def countdown(dataset: Any, entry: Entry, text: str) -> float:
    return _makes(entry, text, entry["metadata"]["target"])


def puzzle24(dataset: Any, entry: Entry, text: str) -> float:
    """reasoning-gym's takes any four numbers, not those of the problem: `6*4*1*1` is right for all of them."""
    return _makes(entry, text, 24)


def number_sorting(dataset: Any, entry: Entry, text: str) -> float:
    """The sorted numbers; reasoning-gym's lets each of them be wrong by 1."""
    try:
        found = [float(number) for number in literal(text)]
    except (TypeError, ValueError):
        return 0.0
    return float(found == [float(number) for number in entry["metadata"]["sorted_numbers"]])


def polynomial_multiplication(dataset: Any, entry: Entry, text: str) -> float:
    """The polynomial written out; the question itself, a product of sums, is not that."""
    try:
        return float(read(text, Polynomials()) == read(entry["answer"], Polynomials()))
    except (ExpressionError, ZeroDivisionError):
        return 0.0


def prime_factorization(dataset: Any, entry: Entry, text: str) -> float:
    """The prime factors in any order; half for others with the same product."""
    factors = [factor.strip() for factor in text.split("×")]
    if len(factors) > 100 or not all(re.fullmatch("[0-9]{1,30}", factor) for factor in factors):
        return 0.0
    found, right = (sorted(map(int, numbers)) for numbers in (factors, entry["answer"].split("×")))
    if found == right:
        return 1.0
    return 0.5 if math.prod(found) == math.prod(right) else 0.01


OURS: Mapping[str, Scorer] = {
    "binary_matrix": _as_list(_rows(str), 0.1),
    "bitwise_arithmetic": bitwise_arithmetic,
    "coin_flip": coin_flip,
    "countdown": countdown,
    "game_of_life_halting": same,  # reasoning-gym's takes any text at all for "True"
    "n_queens": _as_list(_rows(_only_text), 0.5),
    "number_sorting": number_sorting,
    "polynomial_multiplication": polynomial_multiplication,
    "prime_factorization": prime_factorization,
    "puzzle24": puzzle24,
    "spiral_matrix": _as_list(lambda values: " ".join(map(str, values)), 0.1),
    "string_insertion": _as_list("".join, 0.1),
}


def antiderivative(dataset: Any, entry: Entry, text: str) -> float:
    """Whether the derivative is the integrand, as far as sympy can tell.

    reasoning-gym's takes `Integral(integrand, x)` for an answer; here that is no function.
    """
    import sympy

    data = entry["metadata"]
    try:
        answer, integrand = read(text, Symbolic()), read(data["integrand"], Symbolic())
    except ExpressionError:
        return 0.0
    difference = sympy.diff(answer, sympy.Symbol(data["variable"])) - integrand
    return float(sympy.simplify(difference) == 0)


def _only_if(harmless: Callable[[Entry, str], bool]) -> Scorer:
    return lambda dataset, entry, text: library(dataset, entry, text) if harmless(entry, text) else 0.0


def _numbers(entry: Entry, text: str) -> bool:
    """Only numbers: reasoning-gym's passes over what is none."""
    number = r"\s*[+-]?[0-9]{1,30}(\.[0-9]{0,30})?\s*"
    return text.count(",") < 100 and bool(re.fullmatch(f"({number}(,{number})*)?", text))


def _complex(entry: Entry, text: str) -> bool:
    """Digits and signs alone: reasoning-gym's pays in full for nan, which is no distance from anything."""
    return not re.search(r"[^0-9ij.()\s+-]", text)


def _propositions(entry: Entry, text: str) -> bool:
    """Only variables of the problem: each further one doubles the truth table."""
    names = {name.strip() for name in re.split("[∧∨¬→↔()]", text)} - {""}
    return len(text) <= 300 and names <= set(entry["metadata"]["variables"])


def _few_repeats(entry: Entry, text: str) -> bool:
    """No move many times: reasoning-gym's goes through each of F+1000000000."""
    return all(len(digits) <= 2 for digits in re.findall(r"\d+", text))


ISOLATED: Mapping[str, Scorer] = {
    "complex_arithmetic": _only_if(_complex),
    "intermediate_integration": antiderivative,
    "polynomial_equations": _only_if(_numbers),
    "pool_matrix": _only_if(lambda entry, text: not re.search(r"[^0-9.\s+-]", text)),
    "propositional_logic": _only_if(_propositions),
    "quantum_lock": _only_if(lambda entry, text: not re.search(r"[^A-Ca-c→>,\s-]", text)),  # else any prose is a code
    "rubiks_cube": _only_if(_few_repeats),
    "rush_hour": _only_if(_few_repeats),
    "simple_integration": antiderivative,
    "sokoban": _only_if(lambda entry, text: not re.search(r"[^LRUD,\s]", text)),  # else any prose is a walk
}


def scorer_of(dataset: str) -> Scorer:
    return OURS.get(dataset) or ISOLATED.get(dataset) or library
