"""The pieces of a report: sections with tables, for Markdown and terminal alike."""

from collections.abc import Sequence
from dataclasses import dataclass

Table = Sequence[Sequence[str]]  # the header, then the rows


@dataclass(frozen=True)
class Section:
    """A piece of the report; whatever is empty is left out.

    optional: columns of the table that a narrow terminal goes without, the first of them first.
    """

    title: str
    text: str = ""
    table: Table = ()
    images: Sequence[str] = ()
    code: str = ""
    optional: Sequence[str] = ()


def markdown_table(table: Table) -> str:
    """A Markdown table; under a header, all columns but the first to the right."""
    rule = [":--", *["--:" if any(table[0]) else ":--"] * (len(table[0]) - 1)]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table[0], rule, *table[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
