"""What a person sees of a launch: a live line a job, its logs above them, a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hydra_modal_jobs.plan import duration

_MOST_LINES = 24  # live lines; more jobs than that are counted only
ENDED = ("done", "failed", "stopped", "cancelled")


@dataclass
class Row:
    num: int
    label: str
    gpu: str
    state: str = "queued"
    attempt: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    usd: float = 0.0
    link: str = ""
    began: float | None = None

    def words(self) -> str:
        """Its state, its newest figures and its cost, on one line."""
        parts = [self.state if self.attempt == 1 else f"{self.state} (attempt {self.attempt})"]
        parts += [f"{k} {_figure(v)}" for k, v in self.status.items() if v is not None]
        if self.usd:
            parts.append(f"{self.usd:.2f} USD")
        return "  ".join(parts)


class Screen:
    """Live in a terminal; elsewhere plain lines: logs as they come, and each change of state."""

    def __init__(self, rows: Sequence[Row], console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
        self.rows = {row.num: row for row in rows}
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(self._lines(), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        if self._live is not None:
            self._live.stop()

    def go_on(self) -> None:
        if self._live is not None:
            self._live.start()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def log(self, num: int, line: str) -> None:
        self.console.print(Text.assemble((f"[{num}] ", "dim"), Text.from_ansi(line)))

    def event(self, num: int, words: dict[str, Any]) -> None:
        """Take a supervisor's word of a job."""
        row = self.rows[num]
        before = (row.state, row.attempt)
        row.state, row.attempt, row.usd = words["state"], words["attempt"], words["usd"]
        row.status = words["status"] or row.status
        if (link := words.get("link")) and link != row.link:
            row.link = link
            self.say(f"[{num}] {link}")
        row.began = row.began or time.time()
        if self._live is not None:
            self._live.update(self._lines())
        elif before != (row.state, row.attempt):
            self.say(f"[{num}] {row.words()}")

    def _lines(self) -> Table:
        lines = Table.grid(padding=(0, 2))
        going = [row for row in self.rows.values() if row.state not in ENDED]
        shown = sorted(going, key=lambda row: (row.state == "queued", row.num))[:_MOST_LINES]
        for row in shown:
            since = duration(time.time() - row.began) if row.began else ""
            lines.add_row(f"[dim]{row.num}[/]", Text(row.label[:40]), row.gpu, row.words(), since)
        rest = len(going) - len(shown)
        done = len(self.rows) - len(going)
        if rest or done:
            more = f"{rest} more queued, " if rest else ""
            total = sum(row.usd for row in self.rows.values())
            lines.add_row("", f"{more}{done} of {len(self.rows)} ended", "", f"{total:.2f} USD")
        return lines


def results_table(rows: Sequence[tuple[Row, dict[str, Any]]], *, metric: str) -> Table:
    """All jobs of a launch with their results, in order."""
    paid = any(result.get("usd") for _, result in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column(metric, justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    if paid:
        table.add_column("USD", justify="right", no_wrap=True)
    table.add_column("gpu", no_wrap=True)
    table.add_column("overrides", overflow="fold")
    style = {"failed": "red", "done": "green"}
    for row, result in rows:
        state = result["state"]
        if result.get("reason"):
            state += f" ({result['reason']})"
        cost = [f"{result.get('usd') or 0.0:.2f}"] if paid else []
        value = _figure(result.get("value")) if result["state"] == "done" else "-"
        seconds = duration(result.get("seconds"))
        told = Text(state, style=style.get(result["state"], "yellow"))
        table.add_row(str(row.num), told, value, seconds, *cost, row.gpu, Text(row.label))
    if paid and len(rows) > 1:
        total = sum(result.get("usd") or 0.0 for _, result in rows)
        table.add_section()
        table.add_row("all", "", "", "", f"{total:.2f}", "", "", style="bold")
    return table


def _figure(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:40]
