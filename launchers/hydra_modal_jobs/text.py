"""Text of others, made harmless for a terminal."""

from __future__ import annotations

import re
import sys

_COLOURS = re.compile(r"\x1b\[[\d;:]*m")
# What moves the cursor, sets a title, clears the screen, reorders a line, or cannot be printed:
# control characters but tab and line feed, marks of direction, halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return the text without colours and with each control character shown as its code.

    >>> printable("[red]\x1b[31mbad\x1b[0m \x1b]0;title\x07")
    '[red]bad \\x1b]0;title\\x07'
    """
    text = _COLOURS.sub("", text.replace("\r\n", "\n"))
    return _UNSAFE.sub(lambda unsafe: unsafe[0].encode("unicode_escape").decode(), text)


def print_line(text: str, *, is_error: bool = False) -> None:
    """Print a text that may hold words of others, on standard error if `is_error`."""
    print(printable(text), file=sys.stderr if is_error else sys.stdout, flush=True)
