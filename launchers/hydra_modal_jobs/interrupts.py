"""Ctrl-C while something must not be left half done: noted, and answered when it can be."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def noted_interrupts() -> Iterator[threading.Event]:
    """Set the event at Ctrl-C, however often, instead of raising `KeyboardInterrupt`.

    If the block ends all the same, it is raised then. If it ends in an error after Ctrl-C, the
    program is about to end, and Ctrl-C has no effect any more.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # signals are for the main thread
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    except BaseException:
        if not pressed.is_set():
            signal.signal(signal.SIGINT, before)
        raise
    signal.signal(signal.SIGINT, before)
    if pressed.is_set():
        raise KeyboardInterrupt


def end_quietly() -> None:
    """Let Ctrl-C have no effect any more, and what still asks Modal end without a traceback.

    For a program that has printed its last line.
    """
    logging.getLogger("asyncio").disabled = True
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Work:
    """A function at work in a thread that ends with the process."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._is_over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the end; return whether it has come."""
        return self._is_over.wait(seconds)

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error
        finally:
            self._is_over.set()
