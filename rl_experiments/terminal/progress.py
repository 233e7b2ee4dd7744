"""What a person sees while a job runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from rl_experiments import distributed


class Progress:
    """Phases with a bar each; `note` sets the words beside the bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet or not distributed.is_first())
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
    def phase(
        self, name: str, *, total: int, done: int = 0, noted: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A bar of `total`, `done` of which an earlier attempt did: `advance(count, note="")`.

        Where there is no terminal, it prints a line for each fifth, or for each note if `noted`.
        """
        if self._plain:
            yield self._plain_advance(name, total, done, noted)
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
            task = bars.add_task(name, total=total, completed=done, note="")

            def advance(count: int, note: str | None = None) -> None:
                bars.update(task, advance=count)
                if note is not None:
                    bars.update(task, note=note)

            yield advance

    def _plain_advance(self, name: str, total: int, begun: int, noted: bool) -> Callable[..., None]:
        started, done, printed = time.monotonic(), begun, begun

        def advance(count: int, note: str | None = None) -> None:
            nonlocal done, printed
            done += count
            if note is not None if noted else (done - printed) * 5 >= total:
                printed = done
                pace = (time.monotonic() - started) / max(1, done - begun)
                words = f"  {note}" if note else ""
                self.print(f"{name} {done}/{total}{words}  {pace * (total - done):.0f} s left")

        return advance
