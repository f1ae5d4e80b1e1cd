"""Runs an answer against tests, inside the sandbox, and reports the values that its functions give.

The text of this file is the program that code.py gives the sandbox, alone: it imports the standard library only. On
standard input come the sources to run and the tests. An expected value never comes in here: for each test the value of
an expression goes out, as the text of `encode`, and is compared outside. Whatever the answer does to this process, it
can say no more than a wrong or a right value, and to say the right one it must know it.
"""

import marshal
import os
import sys
import types


def encode(value: object) -> str:
    """One line of text, the same for values that are equal: 1, 1.0 and True; a set in any order; never 1 and "1".

    Raises TypeError for a value that has no literal, RecursionError for one that contains itself.
    """
    match value:
        case None:
            return "None"
        case int():
            return hex(value)  # decimals are limited to 4300 digits
        case float():
            return hex(int(value)) if value.is_integer() else value.hex()
        case complex():
            return encode(value.real) if value.imag == 0 else f"c({encode(value.real)},{encode(value.imag)})"
        case str():
            return ascii(str(value))
        case bytes() | bytearray():
            return repr(bytes(value))
        case tuple():
            return f"({','.join(map(encode, value))})"
        case list():
            return f"[{','.join(map(encode, value))}]"
        case set() | frozenset():
            return f"set{{{','.join(sorted(map(encode, value)))}}}"
        case dict():
            return f"{{{','.join(sorted(f'{encode(key)}:{encode(item)}' for key, item in value.items()))}}}"
    raise TypeError(f"a value of type {type(value).__name__} is not compared")


def load(sources: list[str], prompt: str, entry_point: str) -> dict[str, object]:
    """The names that the sources define, one after the other. Raises what they raise.

    prompt: the beginning of a function that the last source goes on with, if the two together are one; otherwise the
    last source stands for itself, after the prompt where that is whole.
    """
    module = types.ModuleType("answer")
    sys.modules["answer"] = module  # dataclasses look their module up
    names = vars(module)
    *before, last = sources
    if prompt:
        try:
            compile(prompt + last, "answer", "exec")
            before, last = before, prompt + last
        except SyntaxError:
            pass
    for source in (*before, last):
        exec(compile(source, "answer", "exec", dont_inherit=True), names)
    if entry_point:
        names["candidate"] = names[entry_point]
    return names


def main() -> None:
    order = marshal.loads(sys.stdin.buffer.read())
    results = os.dup(1)
    os.dup2(2, 1)  # what the answer prints is not a result
    names = load(order["sources"], order["prompt"], order["entry_point"])
    for kind, source in order["tests"]:
        line = "-"
        try:
            if kind == "value":
                line = encode(eval(compile(source, "test", "eval"), names))
            else:
                exec(compile(source, "test", "exec"), names)
                line = order["nonce"]
        except BaseException as error:
            print(f"{source[:200]}: {type(error).__name__}: {error}"[:1000], file=sys.stderr)
        os.write(results, line.encode() + b"\n")


if __name__ == "__main__":
    main()
