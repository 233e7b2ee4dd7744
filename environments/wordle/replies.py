"""Replies of Wordle: parse one, check its format, write one. All take linear time."""

from __future__ import annotations

import re

from environments.replies import without_thinking

_MAX_CHARACTERS = 100_000  # a longer reply is not read

_ELEMENT = re.compile(r"<\s*guess\s*>([^<]*)<\s*/\s*guess\s*>", re.IGNORECASE)
_WELL_FORMED = re.compile(r"<guess>[a-z]+</guess>", re.IGNORECASE)
_THOUGHT = "This one may be it."


def parse(reply: str) -> str | None:
    """Return the text of the last guess element outside the thinking, in lower case.

    Returns None without one. Brackets around the word are dropped, because some models have learned
    to write `<guess>[crane]</guess>`.
    """
    if len(reply) > _MAX_CHARACTERS:
        return None
    elements = _ELEMENT.findall(without_thinking(reply))
    return elements[-1].strip().strip("[]").strip().lower() if elements else None


def is_well_formed(reply: str, *, think: bool) -> bool:
    """Return whether a reply is a guess element alone, after a think element if `think`."""
    if len(reply) > _MAX_CHARACTERS:
        return False
    rest = reply.strip()
    if think:
        thought, _, rest = rest.partition("</think>")
        if not thought.startswith("<think>") or "<think>" in thought[1:]:
            return False
    return _WELL_FORMED.fullmatch(rest.strip()) is not None


def as_reply(word: str, *, think: bool) -> str:
    """Write the reply that guesses a word, with a short thought if `think`."""
    guess = f"<guess>{word}</guess>"
    return f"<think>{_THOUGHT}</think>\n{guess}" if think else guess
