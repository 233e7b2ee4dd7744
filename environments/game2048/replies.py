"""From a reply to a direction, whatever the reply; every pattern runs in linear time."""

from __future__ import annotations

import re
from enum import StrEnum

from environments.game2048.game import DIRECTIONS
from environments.replies import without_thinking


class Parser(StrEnum):
    """How a reply is read. Lower-case names, because OmegaConf reads an enum by name."""

    strict = "strict"
    lenient = "lenient"


# What an XML parser accepts of an element without attributes: spaces around it, at the end of its
# tags, and in its text those that `str.strip` takes off and XML allows.
_XML_SPACE = r"[ \t\r\n]*"
_TEXT_SPACE = r"[^\S\x0b\x0c\x1c-\x1f]*"
_STRICT = re.compile(
    rf"{_XML_SPACE}<move{_XML_SPACE}>{_TEXT_SPACE}({'|'.join(DIRECTIONS)}){_TEXT_SPACE}"
    rf"</move{_XML_SPACE}>{_XML_SPACE}"
)
_ELEMENT = re.compile(r"<\s*move\s*>([^<]*)<\s*/\s*move\s*>", re.IGNORECASE)

_ARROWS = {"←": "left", "→": "right", "↑": "up", "↓": "down"}


def parse(reply: str, parser: Parser) -> str | None:
    """The direction that a reply names; None if it cannot be read.

    Strict: the whole reply is the element. Lenient: its last move element outside the thinking.
    """
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
    """The direction a person typed: a word, its beginning (l, r, u, d) or an arrow.

    Not w, a, s, d: "d" is down.
    """
    word = text.strip().lower()
    if word in _ARROWS:
        return _ARROWS[word]
    return next((d for d in DIRECTIONS if word and d.startswith(word)), None)
