"""reasoning-gym's datasets, as the tests meet them: which there are, and how their problems are solved."""

import collections
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from rlswarm_jax.tasks.base import Problem
from rlswarm_jax.tasks.reasoning import ReasoningTask

AUDIT = Path(__file__).parents[2] / "docs" / "tasks-audit.md"

# Options with which generators that take seconds take less.
QUICK = {
    "futoshiki": {"min_board_size": 4, "max_board_size": 4, "max_difficulty": 1},
    "knight_swap": {"max_attempts": 5},
    "sokoban": {"max_boxes": 4, "max_w": 7, "max_h": 7},
    "rush_hour": {"max_moves": 3},
    "zebra_puzzles": {"num_people": 2, "num_characteristics": 2},
}
# A tenth of a second for a problem, or more.
SLOW = {
    "countdown",
    "futoshiki",
    "intermediate_integration",
    "knight_swap",
    "puzzle24",
    "quantum_lock",
    "sokoban",
    "sudoku",
}


@functools.cache
def audit() -> dict[str, list[str]]:
    """The table of the audit: what is said of each dataset."""
    rows = AUDIT.read_text().split("## The audit")[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows if row.startswith("| ")]
    return {name: said for name, *said in cells[1:]}


def every_dataset() -> list[str]:
    return list(audit())


@functools.cache
def task(dataset: str, score: str = "threshold") -> ReasoningTask:
    return ReasoningTask(dataset, {"score": score, **QUICK.get(dataset, {})})


def problems_digest(task: ReasoningTask) -> str:
    """Of a few problems: processes that make the same have the same."""
    problems = [task.problem(seed) for seed in range(1 if task.dataset in SLOW else 4)]
    return hashlib.sha256(repr([(problem.question, problem.answers) for problem in problems]).encode()).hexdigest()


def solution(problem: Problem) -> str:
    """A right answer: the dataset's own, or found from the question of those that tell none."""
    if problem.answers:
        return problem.answers[0]
    return {"boxnet": _boxnet, "rush_hour": _rush_hour}[problem.task](problem.question)


def _boxnet(question: str) -> str:
    """Each box goes to its target's square, first down or up and then right or left, one step at a time."""
    seen = re.findall(r"Agent\[(\S+), (\S+)\]: I am in \S+ \S+ I can observe \[(.*?)\]", question)
    squares = [((float(x), float(y)), re.findall(r"'(\w+)'", things)) for x, y, things in seen]
    steps = []
    for place, things in squares:
        for box in [thing for thing in things if thing.startswith("box_")]:
            at, target = list(place), box.replace("box", "target")
            goal = next(place for place, things in squares if target in things)
            for axis in (0, 1):
                while at[axis] != goal[axis]:
                    before = f"Agent[{at[0]}, {at[1]}]"
                    at[axis] += 1 if goal[axis] > at[axis] else -1
                    steps.append({before: f"move({box}, square[{at[0]}, {at[1]}])"})
            steps.append({f"Agent[{at[0]}, {at[1]}]": f"move({box}, {target})"})
    return json.dumps(steps)


Cars = frozenset[tuple[str, tuple[tuple[int, int], ...]]]  # letter and the cells it stands on, (row, column)


def _rush_hour(question: str) -> str:
    """The fewest moves by breadth-first search."""
    rows = re.search(r"Board:\n((?:\S{6}\n?){6})", question)[1].split()
    cells = collections.defaultdict(list)
    for (row, line), column in itertools.product(enumerate(rows), range(6)):
        cells[line[column]].append((row, column))
    walls = set(cells.pop("x", []))
    cells.pop(".")
    start: Cars = frozenset((letter, tuple(places)) for letter, places in cells.items())
    paths, waiting = {start: ""}, collections.deque([start])
    while waiting:
        cars = waiting.popleft()
        if next(places for letter, places in cars if letter == "A")[-1][1] == 5:
            return paths[cars].strip()
        for move, moved in _moves(cars, walls):
            if moved not in paths:
                paths[moved] = f"{paths[cars]} {move}"
                waiting.append(moved)
    raise AssertionError("there is no way out")


def _moves(cars: Cars, walls: set[tuple[int, int]]) -> Iterator[tuple[str, Cars]]:
    taken = walls.union(*(places for _, places in cars))
    for letter, places in cars:
        along = 1 if places[0][0] == places[1][0] else 0
        for sign, step in (("+", 1), ("-", -1)):
            moved = tuple((row + step * (1 - along), column + step * along) for row, column in places)
            inside = all(0 <= value < 6 for place in moved for value in place)
            if inside and not set(moved) & (taken - set(places)):
                yield f"{letter}{sign}1", cars - {(letter, places)} | {(letter, moved)}
