"""Ctrl-C, also where a library that was being imported made another error of it."""

from __future__ import annotations

import signal
from types import FrameType

_presses: list[int] = []


def watch() -> None:
    """Take note of each Ctrl-C beside raising it."""
    signal.signal(signal.SIGINT, _pressed)


def caused(error: BaseException) -> bool:
    """Whether the error is, or came after, a Ctrl-C."""
    return isinstance(error, KeyboardInterrupt) or bool(_presses)


def _pressed(number: int, frame: FrameType | None) -> None:
    _presses.append(number)
    raise KeyboardInterrupt
