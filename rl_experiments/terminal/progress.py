"""Progress of a job: a live bar in a terminal, one line a message where the output is piped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as LiveBars
from rich.table import Table
from rich.text import Text

from rl_experiments import distributed
from rl_experiments.terminal.text import printable

_SPEED_WINDOW_SECONDS = 60.0  # the live estimate of the time left looks this far back
_PIPED_LINES_PER_PHASE = 5


class Progress:
    """Print messages, tables and the progress of phases; only the first process prints.

    With `quiet` nothing is printed at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet or not distributed.is_first())
        self._is_piped = not self.console.is_terminal

    def print(self, message: str | Table) -> None:
        """Print a table, or a message on a line of its own, however narrow the terminal is."""
        if isinstance(message, str):
            # A piped line must stay whole for grep, and a terminal wraps long lines by itself.
            self.console.print(printable(message), soft_wrap=True, markup=False, highlight=False)
        else:
            self.console.print(message, highlight=False)

    @contextmanager
    def status(self, message: str) -> Iterator[None]:
        """Show the message while something of unknown length goes on."""
        if self._is_piped:
            self.print(message)
            yield
        else:
            with self.console.status(Text(printable(message))):
                yield

    @contextmanager
    def phase(
        self, name: str, *, total: int, done: int = 0, line_per_note: bool = False
    ) -> Iterator[Callable[..., None]]:
        """Show how far a phase of `total` units is, and yield `advance(count, note=None)`.

        `done` units were completed by an earlier attempt; the time left is estimated from the
        others. The note stands beside the bar. Piped output gets five lines a phase, or one for
        each note with `line_per_note`.
        """
        if self._is_piped:
            yield self._piped_phase(name, total, done, line_per_note)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        window = _SPEED_WINDOW_SECONDS
        with LiveBars(*columns, console=self.console, speed_estimate_period=window) as bars:
            bar = bars.add_task(printable(name), total=total, completed=done, note="")

            def advance(count: int, note: str | None = None) -> None:
                bars.update(bar, advance=count)
                if note is not None:
                    bars.update(bar, note=printable(note))

            yield advance

    def _piped_phase(
        self, name: str, total: int, done_before: int, line_per_note: bool
    ) -> Callable[..., None]:
        started = time.monotonic()
        done = printed_at = done_before

        def advance(count: int, note: str | None = None) -> None:
            nonlocal done, printed_at
            done += count
            if line_per_note:
                is_due = note is not None
            else:
                is_due = (done - printed_at) * _PIPED_LINES_PER_PHASE >= total
            if is_due:
                printed_at = done
                seconds_per_unit = (time.monotonic() - started) / max(1, done - done_before)
                seconds_left = seconds_per_unit * (total - done)
                shown_note = f"  {note}" if note else ""
                self.print(f"{name} {done}/{total}{shown_note}  {seconds_left:.0f} s left")

        return advance
