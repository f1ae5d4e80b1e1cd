"""What a report is made of: sections with tables, for Markdown and terminal alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

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


def print_table(table: Table, console: Console, optional: Sequence[str] = ()) -> None:
    """The same table in a terminal, gains in colour; without columns of `optional` where it is too narrow."""
    header, left_out = list(table[0]), list[str]()
    going = [column for column in optional if column in header]
    shown, unbounded = fitted(table, header), console.options.update(max_width=10_000)
    while going and Measurement.get(console, unbounded, shown).minimum > console.width:
        left_out.append(going.pop(0))
        shown = fitted(table, [column for column in header if column not in left_out])
    console.print(shown)
    if left_out:
        console.print(Text(f"(too narrow for: {', '.join(left_out)})", style="dim"))


def fitted(table: Table, columns: Sequence[str]) -> RichTable:
    """Some columns; names and short cells are never broken, headers between words."""
    header = any(table[0])
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_header=header)
    kept = [i for i, column in enumerate(table[0]) if not header or column in columns]
    for i in kept:
        longest = max((cell_len(row[i]) for row in table[1:]), default=0)
        whole, words = longest <= (32 if i == 0 else 12), table[0][i].split()
        title = "\n".join(words) if whole and sum(map(len, words)) > longest else table[0][i]
        least = max([longest if whole else 0, *map(cell_len, title.split("\n") if whole else words)])
        justify: Literal["left", "right"] = "left" if i == 0 or table[0][i] == "changes" or not header else "right"
        shown.add_column(Text(title), justify=justify, overflow="fold", no_wrap=whole, min_width=least)
    for row in table[1:]:
        cells = [row[i] for i in kept]
        shown.add_row(*(Text(cell, style={"+": "green", "-": "red"}.get(cell[:1], "")) for cell in cells))
    return shown
