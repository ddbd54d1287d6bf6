"""Rows of text for people: a drawn table in a terminal, plain aligned lines in a pipe or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_rows(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    colours: Mapping[str, str] | None = None,
) -> None:
    """Print `rows` of plain text below `head`.

    Where the console is no terminal every row is one line, never cut or folded, so that grep and cut work on it.
    colours: the colour of a cell that holds exactly this text.
    """
    if console.is_terminal:
        table = Table(title=escape(title) or None, title_justify="left")
        for name in head:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(_coloured(cell, colours or {}) for cell in row))
        console.print(table)
        return
    if title:
        console.print(title, markup=False, highlight=False, soft_wrap=True)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _coloured(cell: str, colours: Mapping[str, str]) -> str:
    return f"[{colours[cell]}]{escape(cell)}[/]" if cell in colours else escape(cell)
