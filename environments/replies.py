"""Functions that the reply parsers of several environments share."""

from __future__ import annotations

import re

_THINK_TAG = re.compile(r"<(/?)think\s*>", re.IGNORECASE)


def without_thinking(reply: str) -> str:
    """Return the reply without its <think> blocks, whether they are closed or not.

    Text before a lone </think> is dropped too: some chat templates open the block in the prompt.

    >>> without_thinking("<think>a</think>b<think>c")
    'b'
    """
    first, *rest = _THINK_TAG.split(reply)
    parts = [text for slash, text in zip(rest[::2], rest[1::2], strict=True) if slash]
    if not rest or rest[0] == "":
        parts.insert(0, first)
    return "".join(parts)
