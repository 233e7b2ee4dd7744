"""The one style of table that every verb prints."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rl_experiments.terminal.text import printable


class PlainTable(Table):
    """A table that shows the words in it as they are: brackets in a name are no markup."""

    def __init__(self, *, title: str | None = None, **options: Any) -> None:
        shown = title and Text(printable(title), style="table.title")
        super().__init__(title=shown or None, **options)

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        """Add a column with this header."""
        super().add_column(_plain(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; a cell is a string, or something of rich's that has its own style."""
        super().add_row(*map(_plain, cells), **options)


def new_table(title: str, *columns: str, text: Collection[str] = ()) -> PlainTable:
    """Return an empty table with these columns; fill it with `add_row` and `add_section`.

    The first column holds names, which are folded where space is short. The others hold figures:
    right-aligned and never cut off. Columns that are named in `text` hold words instead.

    >>> table = new_table("10 unseen seeds", "policy", "ends", "win rate", text=["ends"])
    >>> table.add_row("random", "won 1, truncated 9", "0.100")
    """
    table = PlainTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    first, *others = columns
    table.add_column(first, overflow="fold")
    for column in others:
        if column in text:
            table.add_column(column)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _plain(cell: Any) -> Any:
    return Text(printable(cell)) if isinstance(cell, str) else cell
