"""Text of a server: its own words about what went wrong, and text that UTF-8 can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rl_experiments.errors import one_line
from rl_experiments.terminal.text import printable

_MAX_CHARACTERS = 600  # of a server's words that are shown
# Where servers put their words, in the order in which they are looked for.
_PLACES = ("error", "message", "detail", "errors", "error_message", "msg", "title", "reason", "raw")
_MARKUP = re.compile(r"<(style|script)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)


def words_of(answer: Any) -> str:
    """Return what an answer (JSON that is parsed, or text) says, as one printable line.

    >>> words_of({"error": {"message": "slow down", "code": 429}})
    'slow down'
    """
    words = one_line(printable(_find_words(answer)))
    return words if len(words) <= _MAX_CHARACTERS else f"{words[:_MAX_CHARACTERS]}..."


def decoded(text: str) -> Any:
    """Return the JSON in a text; the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def well_formed(value: Any) -> Any:
    """Return the value with every half of a surrogate pair in its texts replaced.

    A limit of tokens can cut an emoji in two, and UTF-8 has no such half. Halves that belong
    together, as of two pieces of a stream, become one character.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {well_formed(key): well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [well_formed(item) for item in value]
    return value


def _find_words(answer: Any) -> str:
    if isinstance(answer, str):
        inner = decoded(answer) if answer.lstrip()[:1] in ("{", "[") else answer
        if not isinstance(inner, str):
            return _find_words(inner)
        return _MARKUP.sub(" ", answer) if answer.lstrip().startswith("<") else answer
    if isinstance(answer, Mapping):
        for place in _PLACES:
            if words := _find_words(answer.get(place) or ""):
                # A router adds the words of the server behind it.
                behind = answer.get("metadata")
                raw = _find_words(behind.get("raw") or "") if isinstance(behind, Mapping) else ""
                return f"{words}: {raw}" if raw and raw not in words else words
        return json.dumps(answer, ensure_ascii=False) if answer else ""
    if isinstance(answer, Sequence):
        return "; ".join(filter(None, map(_find_words, answer)))
    return json.dumps(answer)
