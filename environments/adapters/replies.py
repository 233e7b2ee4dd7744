"""Replies with one XML element: read its text, write it. Both take linear time."""

from __future__ import annotations

from environments.replies import without_thinking


def as_element(tag: str, text: object) -> str:
    """Write an element, such as <answer>12</answer>."""
    return f"<{tag}>{text}</{tag}>"


def last_element(tag: str, reply: str) -> str | None:
    """Return the text of the last element with a tag, outside the thinking; None without one.

    >>> last_element("answer", "<answer>1</answer> or <answer> 2 </answer>")
    '2'
    """
    before, closing, _ = without_thinking(reply).rpartition(f"</{tag}>")
    _, opening, text = before.rpartition(f"<{tag}>")
    return text.strip() if opening and closing else None
