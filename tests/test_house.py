"""The house's floors: every import goes to the same floor or down, and none comes back to where it began.

Imports count wherever they stand in a file, also within functions; only those for type checking alone do not.
"""

import ast
import functools
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# a room is a folder or a file of rlswarm_jax, or a folder beside it
FLOORS = [
    "rlswarm_jax environment errors files machine assets compilation identity keystore randomness journal metrics "
    "status disk",
    "records tasks qwen parallel launch evaluation speed",
    "swarm chain grpo game",
    "adversaries audit engine engines evaluator speed checkpoint publish",
    "keeper juror node simulated_node simulate multihost exam",
    "configs reporting page",
    "running",
    "experiments",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
OURS = {"rlswarm_jax", "experiments", "configs", "tests", "benchmarks"}
UNSEEN = {"jinja2": "transformers renders chat templates with it, and does not ask for it"}
FOREIGN = {
    "torch",
    "tunix",
    "genrl",
    "trl",
    "datasets",
    "atheris",
}  # peers that tests and benchmarks meet where they are installed, ...
WRITTEN = {"first_reward", "pasted_words"}  # and modules that tests write
LONGEST = 265  # lines of a command, its page of help among them
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    files = [path for top in ("rlswarm_jax", "experiments", "configs") for path in (root / top).rglob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules among those known that a file imports, at any depth."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known or {str(node.module)}
        waiting += node.orelse if for_types_alone(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    return found & known


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def graph(root: Path = ROOT) -> Graph:
    files = modules(root)
    return {name: imported(parsed(path), set(files)) - {name} for name, path in files.items()}


def room(module: str) -> str:
    top, *inner = module.split(".")
    return inner[0] if top == "rlswarm_jax" and inner else top


def rooms(of: Graph) -> Graph:
    found: Graph = {room(module): set() for module in of}
    for module, others in of.items():
        found[room(module)] |= {room(other) for other in others} - {room(module)}
    return found


def circle(of: Graph) -> list[str]:
    """One, if there is any: what is left when whatever imports nothing that is left is taken away, again and again."""
    left = {name: set(others) for name, others in of.items()}
    while done := [name for name, others in left.items() if not others & left.keys()]:
        for name in done:
            del left[name]
    if not left:
        return []
    walk = [min(left)]
    while walk.count(walk[-1]) == 1:
        walk.append(min(left[walk[-1]] & left.keys()))
    return walk[walk.index(walk[-1]) :]


def upward(of: Graph) -> list[str]:
    steps = [(module, other) for module, others in of.items() for other in others]
    return sorted(f"{a} imports {b}" for a, b in steps if FLOOR[room(b)] > FLOOR[room(a)])


def test_every_room_has_a_floor():
    found = graph()
    assert len(found) > 150 and {room(module) for module in found} == FLOOR.keys()


def test_no_import_goes_up():
    assert upward(graph()) == []


def test_no_module_and_no_room_imports_itself_by_a_detour():
    assert circle(graph()) == []
    assert circle(rooms(graph())) == []


def third_party(*folders: str) -> set[str]:
    """Top-level packages that are imported in some folders, wherever in a file; also by `import_module("...")`."""
    found: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
            elif isinstance(node, ast.Call) and "import_module" in vars(node.func).values():  # an id, or an attr
                found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - OURS


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Distributions that pyproject.toml asks for, by their normal names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return {normal(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in asked}


INSTALLED = functools.cache(metadata.packages_distributions)


def distributions(package: str) -> set[str]:
    return {normal(name) for name in INSTALLED().get(package, [package])}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    used = {package: distributions(package) for package in third_party("rlswarm_jax", "experiments", "configs")}
    asked = declared()
    optional = declared("datasets", "slurm") - asked
    missing = {package for package, names in used.items() if not names & (asked | optional)}
    assert missing == set(), "imported, and not among the dependencies of pyproject.toml"
    idle = asked - set().union(*used.values()) - UNSEEN.keys()
    assert idle == set(), "among the dependencies of pyproject.toml, and nowhere imported"
    tested = {package: distributions(package) for package in third_party("tests", "benchmarks")}
    known = declared("dev", "datasets")
    assert {package for package, names in tested.items() if not names & known} <= FOREIGN | WRITTEN


def test_no_command_is_long():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "experiments").glob("*.py")}
    assert len(lengths) == 15 and max(lengths.values()) <= LONGEST, lengths


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def late():\n    from rlswarm_jax.swarm import session\n", "circle"),
        ("if True:\n    import rlswarm_jax.swarm.session\n", "circle"),
        ("try:\n    from rlswarm_jax.swarm.session import Session\nexcept ImportError:\n    pass\n", "circle"),
        ("class A:\n    def b(self):\n        from rlswarm_jax import engine\n", "up"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlswarm_jax.swarm import session\n", ""),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from rlswarm_jax.swarm import session\n", "circle"),
    ],
)
def test_the_check_itself_sees_a_circle_and_a_climb(tmp_path, source, complaint):
    """Each as a further line of a file that `rlswarm_jax.swarm.session` imports."""
    for name, text in {
        "rlswarm_jax/__init__": "",
        "rlswarm_jax/engine": "",
        "rlswarm_jax/swarm/__init__": "",
        "rlswarm_jax/swarm/session": "from rlswarm_jax.swarm import host\nclass Session: pass\n",
        "rlswarm_jax/swarm/host": source,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    found = graph(tmp_path)
    assert bool(circle(found)) == (complaint == "circle")
    assert bool(upward(found)) == (complaint == "up")
