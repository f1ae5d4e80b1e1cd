"""Peers' text as it stands in a prompt: a quotation that cannot pose as structure, and gives itself back exactly.

A text is written as the inside of a JSON string. Every character that a prompt's structure or the name of a control
token begins with is written as its number (`<` becomes `\\u003c`), so neither can come to be in it.
"""

import json
from collections.abc import Collection

from rlswarm_jax.qwen.tokenizer import Tokenizer

ESCAPES = frozenset("\\u0123456789abcdef" + '"nrt')  # what escaped text may consist of


def quote(text: str, reserved: Collection[str], *, ascii_only: bool) -> str:
    """The inside of a JSON string that says `text`, without a raw control character, quotation mark or reserved one.

    reserved: characters, none of them of `ESCAPES`. ascii_only: everything outside ASCII is written as its number.
    """
    quoted = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
    return quoted.translate({ord(c): f"\\u{ord(c):04x}" for c in reserved})


def unquote(quoted: str) -> str:
    """What was quoted. Raises ValueError for what is not the inside of a JSON string."""
    if '"' in quoted.replace('\\"', ""):
        raise ValueError(f"{quoted[:40]!r} is not a quotation.")
    return json.loads(f'"{quoted}"')


def control_characters(tokenizer: Tokenizer) -> frozenset[str]:
    """The first character of every token that stands outside the text: end of sequence, chat roles, thoughts.

    Raises ValueError for a tokenizer in whose control tokens even escaped text could be read.
    """
    contents = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    for content in contents:
        if not content or set(content) <= ESCAPES:
            raise ValueError(f"the tokenizer's control token {content!r} could be written by anybody: use another one.")
    firsts = {next(c for c in content if c not in ESCAPES) for content in contents}
    return frozenset(firsts)


def control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that stand outside the text."""
    return frozenset(tokenizer.backend.get_added_tokens_decoder())


def keep_end(text: str, tokens: int, length) -> str:
    """The longest end of a text whose `length` is at most `tokens`: a result stands at the end.

    length: of a text once it is quoted, in tokens.
    """
    if length(text) <= tokens:
        return text
    short, long = 0, len(text)  # ends of these many characters fit, and do not
    while long - short > 1:
        middle = (short + long) // 2
        fits = length(text[len(text) - middle :]) <= tokens
        short, long = (middle, long) if fits else (short, middle)
    return text[len(text) - short :]
