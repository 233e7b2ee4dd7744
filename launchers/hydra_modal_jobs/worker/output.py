"""What a process prints, line by line."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import IO

_EVERY = 10.0  # seconds between two states of a progress bar
_LONGEST = 1 << 16  # bytes; what is longer comes in pieces


def lines(stream: IO[bytes]) -> Iterator[str]:
    """Its lines as they come. A bar that draws over itself (`\\r`) is told now and then only."""
    rest, told = b"", 0.0
    while chunk := os.read(stream.fileno(), _LONGEST):
        *parts, rest = re.split(rb"(?<=\n)|(?<=\r)(?!\n)", rest + chunk)
        for part in parts:
            is_bar = part.endswith(b"\r")
            if is_bar and (part == b"\r" or time.monotonic() - told < _EVERY):
                continue
            told = time.monotonic() if is_bar else told
            yield part.rstrip(b"\r\n").decode(errors="replace")
        if len(rest) > _LONGEST:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
