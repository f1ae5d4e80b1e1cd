"""reasoning-gym, held to give the same item for the same seed in every process."""

import contextlib
import copy
import dataclasses
import decimal
import functools
import importlib
import importlib.util
import io
import random
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# They plan all their items when they are made, so a small dataset is made for each item. In acre six, two and two of
# ten items are of its three kinds.
PLANNED = frozenset({"acre", "gsm_symbolic", "list_functions"})
PLANNED_ITEMS = 10

_ONE_AT_A_TIME = threading.RLock()


def factory(dataset: str | None = None) -> Any:
    """reasoning_gym.factory, which knows all datasets, or at least one of that name if there is one.

    A second to import all of them: only a node that plays something else than the usual needs that.
    """
    with _ONE_AT_A_TIME:
        if dataset is not None and "reasoning_gym" not in sys.modules:
            _import_alone(dataset)
            found = sys.modules.get("reasoning_gym.factory")
            if found is not None and dataset in found.DATASETS:
                return found
        return _all()


def _import_alone(dataset: str) -> None:
    """The module of that name, without its packages' own, which import all others; they are as if never named after."""
    spec = importlib.util.find_spec("reasoning_gym")
    root = Path(next(iter(spec.submodule_search_locations or ())) if spec else "")
    files = list(root.glob(f"*/{dataset}.py")) if dataset.isidentifier() else []
    if len(files) != 1 or re.search(r"^[ \t]+(from|import) ", files[0].read_text(), re.MULTILINE):
        return  # none of that name, or one that imports more of the package when it is used
    packages = {"reasoning_gym": root, f"reasoning_gym.{files[0].parent.name}": files[0].parent}
    for name, path in packages.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    try:
        importlib.import_module(f"{name}.{dataset}")
    finally:
        for name in packages:
            del sys.modules[name]


@functools.cache
def _all() -> Any:
    # It imports pycosat at once, a C extension without wheels, for zebra_puzzles alone: there sympy's solver does. And
    # cellpylib for game_of_life alone, with which comes matplotlib: that is another second.
    early, late = "pycosat", "cellpylib"
    pycosat, cellpylib = types.ModuleType(early), types.ModuleType(late)
    pycosat.itersolve = _itersolve  # type: ignore[attr-defined]
    cellpylib.__getattr__ = lambda name: getattr(importlib.import_module(late), name)  # type: ignore[method-assign]
    stand_ins = [one for one in (pycosat, cellpylib) if sys.modules.setdefault(one.__name__, one) is one]
    try:
        importlib.import_module("reasoning_gym")
        return importlib.import_module("reasoning_gym.factory")
    finally:
        for one in stand_ins:  # sympy looks for pycosat too, and would call what is not there
            del sys.modules[one.__name__]


def _itersolve(clauses: list[tuple[int, ...]]) -> Iterator[list[int]]:
    """pycosat's: all solutions of a formula in conjunctive normal form, as lists of signed variables 1 to n."""
    from sympy.assumptions.cnf import EncodedCNF
    from sympy.logic.algorithms.dpll2 import dpll_satisfiable

    count = max(abs(literal) for clause in clauses for literal in clause)
    formula = EncodedCNF([set(clause) for clause in clauses], {number: number for number in range(1, count + 1)})
    for solution in dpll_satisfiable(formula, all_models=True):
        if solution:
            yield [number if solution[number] else -number for number in range(1, count + 1)]


def make(name: str, config: Any) -> Any:
    """The dataset of that name. Raises whatever it raises for a config that it refuses."""
    dataset = factory(name).DATASETS[name][0](config=config)
    REPAIRS.get(name, lambda dataset: None)(dataset)
    return dataset


def item(name: str, dataset: Any, index: int) -> dict[str, Any]:
    """An item by a 64-bit index; nothing else decides on it. Raises whatever the dataset raises for some indices."""
    with _contained(index):
        if name in PLANNED:
            planned = make(name, dataclasses.replace(dataset.config, seed=index))
            return planned[index % PLANNED_ITEMS]
        dataset = copy.copy(dataset)  # one remembers at which item it failed
        dataset.size = 2**32
        if name == "codeio":
            type(dataset)._jsonl_data = dataset.programs  # else it has those of whichever was made last
        return dataset[index % 2**32]  # NumPy's seeds have no more bits


@contextlib.contextmanager
def _contained(seed: int) -> Iterator[None]:
    """The interpreter's own dice at a seed, and all as it was afterwards.

    Programs of codeio and list_functions roll them, pool_matrix seeds NumPy's, decimal_arithmetic sets the precision
    and bf prints. One thread at a time, as the interpreter has but one of each.
    """
    import numpy as np

    with _ONE_AT_A_TIME, decimal.localcontext(), contextlib.redirect_stdout(io.StringIO()):
        kept, kept_by_numpy = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_by_numpy)


# --- datasets that draw from a set of strings, whose order is another in every process


class _Ordered(tuple[str, ...]):
    """A set in its order, for who takes a list or a difference of it."""

    def __sub__(self, other: Iterable[str]) -> "_Ordered":
        return _Ordered(value for value in self if value not in set(other))


class _Sorted(frozenset[str]):
    """A set that is gone through in order."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))


def _knights(dataset: Any) -> None:
    sys.modules[type(dataset).__module__].frozenset = _Sorted  # type: ignore[attr-defined]


# codeio makes its problems by running programs it comes with, which a language model wrote. Left out are those that
# could answer otherwise in another process, or do more than reckon: one writes a file where it stands.
_RECKONING = """
    abc bisect cmath collections copy dataclasses decimal enum fractions functools heapq itertools json math numbers
    numpy operator queue random re scipy statistics string sympy typing
"""
_IMPORT = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)
_MORE = re.compile(
    r"\b(set|frozenset|union|intersection|hash|__hash__|id|time|date|datetime|uuid|secrets|default_rng)\b"
    r"|\b(open|os|sys|io|eval|exec|exit|quit|globals|__import__|tofile|save|savetxt|dump|memmap|lambdify)\b"
    r"|urandom|SystemRandom|\{[^{}:]+\}"
)


def _only_reckons(program: Mapping[str, str]) -> bool:
    code = f"{program['code_sample']}\n{program['input_generator']}"
    return set(_IMPORT.findall(code)) <= set(_RECKONING.split()) and not _MORE.search(code)


def _programs(dataset: Any) -> None:
    dataset.programs = list(filter(_only_reckons, type(dataset)._jsonl_data))


def _letters(dataset: Any) -> None:
    dataset.letters = _Ordered(sorted(dataset.letters))


def _monomials(dataset: Any) -> None:
    drawn = dataset._get_monomials
    dataset._get_monomials = lambda rng: sorted(drawn(rng), key=str)


def _neighbours(dataset: Any) -> None:
    graphs = dataset.word_graphs
    dataset.word_graphs = {
        length: {word: sorted(near) for word, near in graph.items()} for length, graph in graphs.items()
    }


REPAIRS: Mapping[str, Callable[[Any], None]] = {
    "codeio": _programs,
    "isomorphic_strings": _letters,
    "knight_swap": _knights,
    "polynomial_multiplication": _monomials,
    "ransom_note": _letters,
    "word_ladder": _neighbours,
}
