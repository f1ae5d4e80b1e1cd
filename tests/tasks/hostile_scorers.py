"""Sends code to the scorer of every dataset under an audit hook, in a process of its own.

    python -m tests.tasks.hostile_scorers FILE

Prints JSON: the datasets, digests of their problems, what the interpreter was asked to do while answers were scored,
which answers were right, how many a scorer refused by raising, how many CPU seconds the slowest exact score took, what
codeio's programs wrote, and the most memory in MiB. FILE must not come into being.
"""

import contextlib
import json
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rlswarm_jax.tasks import Problem
from rlswarm_jax.tasks.reasoning import COMPACT, ReasoningTask
from tests.tasks.gym_datasets import every_dataset, problems_digest, task


class Touch:
    """Unpickling it would make the file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def code(marker: str) -> list[str]:
    """Texts that do something if they are evaluated, and texts that take for ever if they are worked out."""
    call = f"open({marker!r}, 'w')"
    system = f"__import__('os').system('touch {marker}')"
    harmful = [
        call,
        system,
        f"[{system}]",
        f"({system},)",
        f"[[{system}, 1], [0, 1]]",
        f"[['Q', {call}], ['_', '_']]",
        f"[{call} for _ in (1,)]",
        f"(lambda: {call})()",
        f"lambda x: {call}",
        f"f'{{{call}}}'",
        f"{{{call}: 1}}",
        f'{{"0": "{call}"}}',
        f'["{call}"]',
        f"exec({call!r})",
        f"S('{call}')",
        f"sympify({call!r})",
        f"exp({call})",
        f"x + {call}",
        f"1 + {call} * 0",
        "Symbol.__init__.__globals__",
        f"Symbol.__init__.__globals__['__builtins__']['open']({marker!r}, 'w')",
        "[].__class__.__base__.__subclasses__()",
        "x.__class__.__mro__[1].__subclasses__()",
        f"!!python/object/apply:builtins.open [{marker}, w]",
        f"import os; os.system('touch {marker}')",
        f"$(touch {marker})",
        f"`touch {marker}`",
        pickle.dumps(Touch(marker), 0).decode("latin-1"),
        pickle.dumps(Touch(marker)).decode("latin-1"),
        "{0.__class__.__init__.__globals__}",
        "%(x)s %n %s" * 50,
        f"square[1.0, 1.0]; move(box_red, {call})",
    ]
    endless = [
        "9**9**9**9",
        "10**10**10",
        "((((2**99)**99)**99)**99)**99",
        "2**" * 90 + "2",
        "factorial(10**9)",
        "(1/3)**(10**9)",
        "exp(exp(exp(exp(exp(9**99)))))",
        "1e999999999",
        "-1e-999999999",
        "1/3e999999999",
        "0x" + "f" * 9_000,
        "9" * 9_999,
        "9" * 4_000 + "/7",
        "nan",
        "inf",
        "-infinity + nanj",
        "A+" + "9" * 9_000,
        "A+999999999 B-999999999",
        "R999999999 U999999999",
        "F" + "9" * 9_000,
        "2 × " * 2_000 + "2",
        "9" * 5_000 + " × 3",
        "¬" * 9_000 + "P",
        "P ∨ " * 2_000 + "P",
        "∨".join(f"p{i}" for i in range(40)),
        "∧".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        "(P→" * 2_000 + "P" + ")" * 2_000,
        "'x' * 10**12",
        "[0] * 10**12",
        "UDLR" * 2_400,
        "move(" + ", " * 4_900,
        "x" * 9_999,
        "(" * 4_999 + "1" + ")" * 4_999,
        "[" * 9_999,
        "[" * 4_999 + "]" * 4_999,
        '{"a":' * 1_900 + "1" + "}" * 1_900,
        "-" * 9_999,
        "1," * 4_999,
        "\n".join("0" * 99 for _ in range(99)),
        "(" * 50_000 + ")" * 50_000,
        "\0",
        "\ud800",
        "\u202e\ufeff",
    ]
    return harmful + endless


def disguised(right: str) -> list[str]:
    """Texts whose value is the right answer, or which hold it, and large ones: to an exact score all are wrong."""
    value = [form.format(right) for form in ("str('{}')", "({})", "+{}", "0 + {}", "'{}'", '"{}"', "({}, 0)[0]")]
    big = [text * 1_000_000 for text in ("x", "9", " ", "\n", "\0", "(", "[", "İ", "\ud800", f"{right} ", "<answer>")]
    nested = ["(" * 100_000 + right + ")" * 100_000, "[" * 500_000 + "]" * 500_000]
    odd = [f"{right}\0", f"\0{right}", "\u202e" + right, "\ufeff" + right, right + "\ud800"]
    return value + big + nested + odd


def pairs() -> Iterator[tuple[ReasoningTask, Problem]]:
    """A problem of every dataset, to be scored as it is by default and, so that its own scorer is reached, graded.

    Exactly, too, if it has a compact form.
    """
    for dataset in every_dataset():
        graded = task(dataset, "graded")
        problem = graded.problem(1)
        yield task(dataset), problem
        yield graded, problem
        if dataset in COMPACT:
            yield task(dataset, "exact"), problem


def _leaves(event: str, arguments: tuple) -> bool:
    """Whether something is written or leaves the process; imports only read and list."""
    if event == "open":
        return isinstance(arguments[1], str) and bool(set("wax+") & set(arguments[1]))
    return event.startswith(("os.", "shutil.", "socket.", "subprocess.")) and event not in ("os.listdir", "os.scandir")


def peak_memory_mb() -> int:
    """Of this program: what getrusage says on Linux begins with the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) // 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024**2


def main(marker: str) -> None:
    watching, making, sent = False, False, ""
    events: list[list[str]] = []

    written: list[str] = []

    def note(event: str, arguments: tuple) -> None:
        if making and _leaves(event, arguments):
            written.append(ascii(f"{event} {arguments}"))
        if watching and event != "builtins.id":  # copy.deepcopy asks for that
            events.append([event, ascii(sent[:60])])

    sys.addaudithook(note)
    watching = True
    eval("1 + 1")
    open("/dev/null").close()
    watching = False
    control = sorted({event for event, _ in events})
    events.clear()

    seen, problems, right, raised, slowest = set(), {}, [], 0, 0.0
    for one, problem in pairs():
        seen.add(one.dataset)
        problems[one.dataset] = problems_digest(task(one.dataset, "graded"))
        known = problem.answers[0] if problem.answers else "1"
        for text in (known, "1", "x", "[1]", '{"1": 1}', "nan", "(1, 2)"):  # what a scorer imports, it imports now
            with contextlib.suppress(Exception):
                one.score(problem, text)
        with_it = [f"{known} # {marker}", f"[{known}, open({marker!r}, 'w')]", f"({known}) if open({marker!r}) else 0"]
        payloads, exact = code(marker), one.dataset in COMPACT and one is task(one.dataset, "exact")
        if exact:
            payloads, with_it = payloads + with_it + disguised(known), []
        for sent in payloads + with_it:
            started, watching = time.process_time(), True
            try:
                score = one.score(problem, sent)
            except Exception:  # the scorer of another's library: what raises counts as a failure of the answer
                score, raised = 0.0, raised + 1
            finally:
                watching = False
            if exact:
                slowest = max(slowest, time.process_time() - started)
            if not (score == 0 if exact else 0 <= score < 1 if sent in payloads else 0 <= score <= 1):
                right.append([one.name, ascii(sent[:60]), score])
    codeio = task("codeio")
    making = True
    for seed in range(400):
        codeio.problem(seed)
    making = False
    memory = peak_memory_mb()
    found = {"control": control, "events": events, "right": right, "raised": raised, "memory": memory}
    found["slowest"] = slowest
    print(json.dumps({"datasets": sorted(seen), "problems": problems, "written": written, **found}))


if __name__ == "__main__":
    main(sys.argv[1])
