"""Scores hostile answers under an audit hook, in a process of its own: an audit hook cannot be taken off again.

    python -m tests.tasks.hostile FILE

Prints JSON: what the interpreter was asked to do while answers were scored, which answers scored, the slowest
score in CPU seconds, and a digest of the problems. FILE must not come into being.
"""

import hashlib
import json
import pickle
import sys
import time

from rlswarm_jax.tasks import make_mixture
from rlswarm_jax.tasks.reasoning import COMPACT


class Touch:
    """Unpickling it would make the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def answers(marker: str, right: str) -> list[str]:
    """Texts that do something if they are evaluated, and texts whose value is the right answer."""
    call = f"open({marker!r}, 'w')"
    code = [
        call,
        f"__import__('os').system('touch {marker}')",
        f"__import__('subprocess').run(['touch', {marker!r}])",
        f"[].__class__.__base__.__subclasses__() and {call}",
        f"(lambda: {call})()",
        f"[{call} for _ in (1,)]",
        f"exec({call!r})",
        f"{{{call}: 1}}",
        f"f'{{{call}}}'",
        f"!!python/object/apply:builtins.open [{marker}, w]",
        f"import os; os.system('touch {marker}')",
        f"$(touch {marker})",
        f"`touch {marker}`",
        pickle.dumps(Touch(marker), 0).decode("latin-1"),
        pickle.dumps(Touch(marker)).decode("latin-1"),
        f"{right} if {call} else {right}",
        f"{right} # {call}",
        f"{right}; {call}",
        f"({call}, {right})[1]",
        f"str({right!r})",
        f"({right})",
        f"+{right}",
        f"0 + {right}",
        f"'{right}'",
        f'"{right}"',
        "9**9**9**9",
        "'x' * 10**12",
        "[0] * 10**12",
    ]
    big = [text * 1_000_000 for text in ("x", "9", " ", "\n", "\0", "(", "[", "İ", "\ud800", f"{right} ", "<answer>")]
    nested = ["(" * 100_000 + right + ")" * 100_000, "[" * 500_000 + "]" * 500_000]
    odd = ["\0", f"{right}\0", f"\0{right}", "\ud800", "\u202e" + right, "\ufeff" + right, right + "\ud800"]
    return code + big + nested + odd


def main(marker: str) -> None:
    events: list[str] = []
    watching = False
    sys.addaudithook(lambda event, _: events.append(event) if watching else None)

    watching = True
    eval("1 + 1")
    open("/dev/null").close()
    watching = False
    control = sorted(set(events))
    events.clear()

    digest, scored, slowest = hashlib.sha256(), [], 0.0
    for name in sorted(COMPACT):
        mixture = make_mixture({name: {}})
        for seed in range(50):
            digest.update(repr(mixture.problem(seed)).encode())
        problem = mixture.problem(3)
        assert mixture.score(problem, problem.answers[0]) == 1.0
        for answer in answers(marker, problem.answers[0]):
            started = time.process_time()
            watching = True
            score = mixture.score(problem, answer)
            watching = False
            slowest = max(slowest, time.process_time() - started)
            if score != 0:
                scored.append([name, ascii(answer[:60])])
    found = {"control": control, "events": events, "scored": scored, "slowest": slowest, "problems": digest.hexdigest()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
