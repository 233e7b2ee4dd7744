"""Recognise Ctrl-C, also where a library turned the KeyboardInterrupt into another error."""

from __future__ import annotations

import signal
from types import FrameType

_was_pressed = False


def watch() -> None:
    """Remember from now on that Ctrl-C was pressed; it still raises KeyboardInterrupt."""
    signal.signal(signal.SIGINT, _on_press)


def caused(error: BaseException) -> bool:
    """Return whether the error is a KeyboardInterrupt or was raised after Ctrl-C was pressed."""
    return isinstance(error, KeyboardInterrupt) or _was_pressed


def _on_press(signal_number: int, frame: FrameType | None) -> None:
    global _was_pressed
    _was_pressed = True
    raise KeyboardInterrupt
