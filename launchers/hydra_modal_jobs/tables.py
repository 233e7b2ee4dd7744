"""The style of the launcher's tables."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hydra_modal_jobs.text import printable


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


def plain_table(title: str | None = None) -> PlainTable:
    """Return an empty table with a line below its head."""
    return PlainTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _plain(cell: Any) -> Any:
    return Text(printable(cell)) if isinstance(cell, str) else cell
