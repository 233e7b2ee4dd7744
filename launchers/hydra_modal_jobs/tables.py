"""The style of the launcher's tables."""

from __future__ import annotations

from rich import box
from rich.table import Table


def plain_table(title: str | None = None) -> Table:
    """Return an empty table with a line below its head."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
