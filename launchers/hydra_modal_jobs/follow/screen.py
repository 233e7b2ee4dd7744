"""What the user sees of a launch: a live line for each job, with the jobs' output above them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hydra_modal_jobs.jobs.result import FINAL_STATES
from hydra_modal_jobs.plan import duration
from hydra_modal_jobs.tables import PlainTable
from hydra_modal_jobs.text import printable
from hydra_modal_jobs.worker.events import Update

_MAX_LIVE_LINES = 24  # further jobs are only counted
_MAX_LABEL_CHARACTERS = 40


@dataclass
class Row:
    """What is shown of a job; `begun` is when its first attempt began."""

    num: int
    label: str
    gpu: str
    state: str = "queued"
    attempt: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    usd: float = 0.0
    link: str = ""
    begun: float | None = None

    def summary(self) -> str:
        """Return the state, the newest metrics and the cost on one line."""
        parts = [self.state if self.attempt == 1 else f"{self.state} (attempt {self.attempt})"]
        parts += [f"{k} {format_value(v)}" for k, v in self.status.items() if v is not None]
        if self.usd:
            parts.append(f"{self.usd:.2f} USD")
        return "  ".join(parts)


class Screen:
    """Live lines on a terminal; elsewhere one line for each message, however long.

    With `is_quiet` nothing is shown of the jobs, because they print by themselves.
    """

    def __init__(self, rows: Sequence[Row], *, is_quiet: bool = False) -> None:
        self.console = Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
        self.rows = {row.num: row for row in rows}
        self._is_quiet = is_quiet
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self.console.is_terminal and not self._is_quiet:
            self._live = Live(self._live_lines(), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        """Stop the live lines, so that the user can be asked."""
        if self._live is not None:
            self._live.stop()

    def unpause(self) -> None:
        """Show the live lines again."""
        if self._live is not None:
            self._live.start()

    def message(self, text: str) -> None:
        """Show a message about the launch."""
        self.console.print(printable(text), highlight=False, markup=False)

    def log(self, num: int, line: str) -> None:
        """Show a line of a job's output, after its number."""
        self.console.print(Text.assemble((f"[{num}] ", "dim"), printable(line)))

    def update(self, update: Update) -> None:
        """Take over the state of a job."""
        row = self.rows[update.num]
        before = (row.state, row.attempt)
        row.state, row.attempt, row.usd = update.state, update.attempt, update.usd
        row.status = update.status or row.status
        row.begun = row.begun or time.time()
        if self._is_quiet:
            return
        if update.link and update.link != row.link:
            row.link = update.link
            self.message(f"[{update.num}] {update.link}")
        if self._live is not None:
            self._live.update(self._live_lines())
        elif before != (row.state, row.attempt):
            self.message(f"[{update.num}] {row.summary()}")

    def _live_lines(self) -> Table:
        lines = PlainTable.grid(padding=(0, 2))
        active = [row for row in self.rows.values() if row.state not in FINAL_STATES]
        shown = sorted(active, key=lambda row: (row.state == "queued", row.num))
        for row in shown[:_MAX_LIVE_LINES]:
            since = duration(time.time() - row.begun) if row.begun else ""
            label = row.label[:_MAX_LABEL_CHARACTERS]
            num = Text(str(row.num), style="dim")
            lines.add_row(num, label, row.gpu, row.summary(), since)
        hidden = max(0, len(active) - _MAX_LIVE_LINES)
        ended = len(self.rows) - len(active)
        if hidden or ended:
            more = f"{hidden} more queued, " if hidden else ""
            total = sum(row.usd for row in self.rows.values())
            lines.add_row("", f"{more}{ended} of {len(self.rows)} ended", "", f"{total:.2f} USD")
        return lines


def format_value(value: Any) -> str:
    """Return a value in a few characters."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:40]
