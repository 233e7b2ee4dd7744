"""The output of a process, line by line."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import IO

_PROGRESS_BAR_SECONDS = 10.0  # between two states of a progress bar
_MAX_LINE_BYTES = 1 << 16  # a longer line comes in pieces


def read_lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines as they come.

    Of a progress bar, which overwrites its line with a carriage return, only a state now and then.
    """
    rest, shown_at = b"", 0.0
    while chunk := os.read(stream.fileno(), _MAX_LINE_BYTES):
        *parts, rest = re.split(rb"(?<=\n)|(?<=\r)(?!\n)", rest + chunk)
        for part in parts:
            is_bar = part.endswith(b"\r")
            is_recent = time.monotonic() - shown_at < _PROGRESS_BAR_SECONDS
            if is_bar and (part == b"\r" or is_recent):
                continue
            shown_at = time.monotonic() if is_bar else shown_at
            yield part.rstrip(b"\r\n").decode(errors="replace")
        if len(rest) > _MAX_LINE_BYTES:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
