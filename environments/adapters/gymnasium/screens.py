"""Coloured screens as plain text, in which lines below the screen name what is coloured."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\x1b\[([0-9;]{0,20})m")
# The last action, which screens show on some turns only, where it shifts the rows.
_LAST_ACTION = re.compile(r"^ *\(\w+\)\n?", re.MULTILINE)
_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def plain(screen: str) -> str:
    r"""Return the text of a screen and a line for each coloured part; rows and columns start at 1.

    >>> plain("\x1b[41mS\x1b[0mF\nFG\n")
    "SF\nFG\nred 'S' at row 1, column 1"
    """
    lines: list[str] = []
    marks: list[str] = []
    for row, line in enumerate(_LAST_ACTION.sub("", screen).strip("\n").split("\n"), start=1):
        first, *rest = _ESCAPE.split(line)
        shown = first
        for code, text in zip(rest[::2], rest[1::2], strict=True):
            colour = _colour(code)
            if colour and text:
                marks.append(f"{colour} {text!r} at row {row}, column {len(shown) + 1}")
            shown += text
        lines.append(shown)
    return "\n".join([*lines, *marks])


def _colour(code: str) -> str:
    """Return the colour of an escape code such as 41 or 34;1, background or foreground."""
    for number in filter(None, code.split(";")):
        if int(number) // 10 in (3, 4) and int(number) % 10 < 8:
            return _COLOURS[int(number) % 10]
    return ""
