"""The one style of table that every verb prints."""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.table import Table


def new_table(title: str, *columns: str, text: Collection[str] = ()) -> Table:
    """Return an empty table with these columns; fill it with `add_row` and `add_section`.

    The first column holds names, which are folded where space is short. The others hold figures:
    right-aligned and never cut off. Columns that are named in `text` hold words instead.

    >>> table = new_table("10 unseen seeds", "policy", "ends", "win rate", text=["ends"])
    >>> table.add_row("random", "won 1, truncated 9", "0.100")
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    first, *others = columns
    table.add_column(first, overflow="fold")
    for column in others:
        if column in text:
            table.add_column(column)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table
