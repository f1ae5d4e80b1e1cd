"""Checks hostile answers as mathematics under an audit hook, in a process of its own: such a hook cannot be taken off.

    python -m tests.tasks.hostile_math FILE

Prints JSON: the sources that the interpreter compiled and the names in the code that it ran while answers were
checked (modules being imported apart), what else it was asked to do, which answers were right, and how many of them
passed the screen. FILE must not come into being.
"""

import json
import os
import random
import sys

from rlswarm_jax.tasks.checks import CHECKS, screened

GOLDS = ["7", r"\frac{1}{2}", "x+1", r"\{1,2\}", "[0,1)"]
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "subprocess.",
    "socket.",
    "ctypes.",
    "open",
)
TOKENS = (
    r"exec eval open chr getattr lambda import __import__ os system S E I x f 1 2 9 ( ) [ ] { } , . ; : + - * / ^ _ = "
    r"< > ! % & \text{ \frac{ }{ \sqrt{ \begin{pmatrix} \end{pmatrix} \\ \left( \right) \cup \in \operatorname{ "
    r"\variable{ \sum_{ ' \" # @ \n"
)


def answers(marker: str) -> list[str]:
    """Texts that do something if they are evaluated, bare or from inside LaTeX, and nonsense made of their parts."""
    calls = [
        f"open({marker!r},'w')",
        f"__import__('os').system('touch {marker}')",
        "exec(chr(49)+chr(50))",  # no quotes, no dots: this one passes the screen
        "eval(input(1))",
        ") 1+2*3",  # LaTeX that does not parse, and sums that math-verify would hand to eval
        "().__class__.__base__.__subclasses__()",
        f"(lambda: open({marker!r},'w'))()",
        "x.free_symbols",
        "Symbol(x)",
        "open(0)",
        "quit()",
    ]
    wrap = (
        "{}",
        "7+{}",
        "{}*1",
        r"\text{{{}}}",
        r"\frac{{{}}}{{2}}",
        r"x_{{{}}}",
        r"f({})",
        r"\sqrt[{}]{{2}}",
        r"\mathrm{{{}}}(1)",
        r"\operatorname{{{}}}(1)",
        r"\variable{{{}}}",
        r"\boxed{{{}}}",
        r"$$ {} $$",
        r"answer: {} = 8",
    )
    made = [form.format(call) for call in calls for form in wrap]
    draw = random.Random(0)
    tokens = TOKENS.split(" ")
    made += ["".join(draw.choices(tokens, k=draw.randint(2, 7))) for _ in range(250)]
    big = [
        "(" * 200 + "8" + ")" * 200,
        "(" * 9 + "8" + ")" * 9,
        "9" * 500,
        "{" * 400,
        "x" * 100_000,
        "\\frac" * 90,
        "-" * 60,
        r"\boxed{" * 1000,
    ]
    odd = ["\0", "\ud800", "7\0", "٧", "７", "\u202e7", "7\n\n7", "nan", "zoo", "oo", r"0/0", r"\frac{7}{0}"]
    return made + big + odd


def main(marker: str) -> None:
    right = CHECKS["math"].right
    CHECKS["math"].versions()
    for gold in GOLDS:
        assert right(gold, gold + " ")  # whatever is imported or compiled once has been
        right(gold, "x^2+3")
    compiled, names, other = set(), set(), set()
    watching = False

    def hook(event: str, arguments: tuple) -> None:
        if not watching:
            return
        if event == "compile":
            source, file = arguments
            compiled.add(source.decode() if isinstance(source, bytes) else f"{source} of {file}")
        elif event == "exec":
            code = arguments[0]
            if not os.path.exists(code.co_filename):  # a module that is imported has a file
                names.update(code.co_names)
        elif event.startswith(WATCHED) and not str(arguments[:1]).endswith((".py',)", ".pyc',)")):
            other.add(event)

    sys.addaudithook(hook)
    watching = True
    eval("len('x')")
    open(os.devnull).close()
    watching = False
    control = {"compiled": sorted(compiled), "names": sorted(names), "other": sorted(other)}
    compiled.clear(), names.clear(), other.clear()

    scored, passed = [], 0
    for number, answer in enumerate(answers(marker)):
        watching = True
        passed += bool(screened(answer))
        if right(GOLDS[number % len(GOLDS)], answer):
            scored.append(ascii(answer[:80]))
        watching = False
    found = {"compiled": sorted(compiled), "names": sorted(names), "other": sorted(other)}
    print(json.dumps({"control": control, **found, "scored": scored, "passed": passed}))


if __name__ == "__main__":
    main(sys.argv[1])
