"""Replies of 2048: parse one, write one. Every pattern takes linear time on any text."""

from __future__ import annotations

import re
from enum import StrEnum

from environments.game2048.game import DIRECTIONS
from environments.replies import without_thinking


class Parser(StrEnum):
    """How strictly a reply is read.

    The names are in lower case because OmegaConf reads an enum by its names.
    """

    strict = "strict"  # the whole reply is the move element
    lenient = "lenient"  # the last move element outside the thinking counts


# The strict pattern accepts what an XML parser accepts: spaces around the element and at the end of
# its tags, and around its text the spaces that XML allows and `str.strip` removes.
_XML_SPACE = r"[ \t\r\n]*"
_TEXT_SPACE = r"[^\S\x0b\x0c\x1c-\x1f]*"
_STRICT = re.compile(
    rf"{_XML_SPACE}<move{_XML_SPACE}>{_TEXT_SPACE}({'|'.join(DIRECTIONS)}){_TEXT_SPACE}"
    rf"</move{_XML_SPACE}>{_XML_SPACE}"
)
_ELEMENT = re.compile(r"<\s*move\s*>([^<]*)<\s*/\s*move\s*>", re.IGNORECASE)

_ARROWS = {"←": "left", "→": "right", "↑": "up", "↓": "down"}


def parse(reply: str, parser: Parser) -> str | None:
    """Return the direction that a reply names, or None if it cannot be read."""
    if parser is Parser.strict:
        match = _STRICT.fullmatch(reply)
        return match[1] if match else None
    elements = _ELEMENT.findall(without_thinking(reply))
    direction = elements[-1].strip().lower() if elements else None
    return direction if direction in DIRECTIONS else None


def as_reply(direction: str) -> str:
    """Write the reply that moves in a direction.

    >>> as_reply("left")
    '<move>left</move>'
    """
    return f"<move>{direction}</move>"


def direction_from_input(text: str) -> str | None:
    """Return the direction that a person typed: a word, its first letters, or an arrow.

    The keys w, a, s, d do not work, because "d" is down.
    """
    word = text.strip().lower()
    if word in _ARROWS:
        return _ARROWS[word]
    return next((d for d in DIRECTIONS if word and d.startswith(word)), None)
