"""What a person sees while a job runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Phases with a bar each; `note` sets the words beside the bar."""

    def __init__(self) -> None:
        self.console = Console()
        self._plain = not self.console.is_terminal

    def print(self, what: Any) -> None:
        self.console.print(what, highlight=False)

    @contextmanager
    def status(self, words: str) -> Iterator[None]:
        """Show that something of unknown length goes on."""
        if self._plain:
            self.print(words)
            yield
        else:
            with self.console.status(words):
                yield

    @contextmanager
    def phase(self, name: str, *, total: int, unit: str = "") -> Iterator[Callable[..., None]]:
        """A bar of `total`. The value is `advance(count, note="")`."""
        if self._plain:
            yield self._plain_advance(name, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Bars(*columns, console=self.console, speed_estimate_period=60) as bars:
            task = bars.add_task(name, total=total, note="")

            def advance(count: int, note: str | None = None) -> None:
                fields = {} if note is None else {"note": note}
                bars.update(task, advance=count, **fields)

            yield advance

    def _plain_advance(self, name: str, total: int) -> Callable[..., None]:
        """Lines for a log: at each note, else at each fifth of the way."""
        started, done, printed = time.monotonic(), 0, 0

        def advance(count: int, note: str | None = None) -> None:
            nonlocal done, printed
            done += count
            if count and (note is not None or (done - printed) * 5 >= total or done == total):
                printed = done
                seconds = time.monotonic() - started
                left = seconds / done * (total - done)
                words = f" {note}" if note else ""
                self.print(f"{name} {done}/{total}{words} {left:.0f} s left")

        return advance
