"""From a reply to a guess, whatever the reply; all of it in linear time."""

from __future__ import annotations

import re

from environments.replies import without_thinking

MOST_CHARACTERS = 100_000  # of a reply that is read

_ELEMENT = re.compile(r"<\s*guess\s*>([^<]*)<\s*/\s*guess\s*>", re.IGNORECASE)
_WELL_FORMED = re.compile(r"<guess>[a-z]+</guess>", re.IGNORECASE)
_THOUGHT = "This one may be it."


def parse(reply: str) -> str | None:
    """The text of the last guess element outside the thinking, in lower case; None without one.

    Brackets around the word are dropped: `<guess>[crane]</guess>` is how some models were taught.
    """
    if len(reply) > MOST_CHARACTERS:
        return None
    elements = _ELEMENT.findall(without_thinking(reply))
    return elements[-1].strip().strip("[]").strip().lower() if elements else None


def is_well_formed(reply: str, *, think: bool) -> bool:
    """Whether the reply is the guess element, after a think element if asked to, and no more."""
    if len(reply) > MOST_CHARACTERS:
        return False
    rest = reply.strip()
    if think:
        thought, _, rest = rest.partition("</think>")
        if not thought.startswith("<think>") or "<think>" in thought[1:]:
            return False
    return _WELL_FORMED.fullmatch(rest.strip()) is not None


def as_reply(word: str, *, think: bool) -> str:
    guess = f"<guess>{word}</guess>"
    return f"<think>{_THOUGHT}</think>\n{guess}" if think else guess
