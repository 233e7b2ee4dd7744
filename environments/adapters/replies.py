"""From a reply to its answer or action, whatever the reply, in linear time."""

from __future__ import annotations

from environments.replies import without_thinking


def as_element(tag: str, text: object) -> str:
    return f"<{tag}>{text}</{tag}>"


def last_element(tag: str, reply: str) -> str | None:
    """The text in the last element of that tag outside the thinking; None if there is none.

    >>> last_element("answer", "<answer>1</answer> or <answer> 2 </answer>")
    '2'
    """
    before, closing, _ = without_thinking(reply).rpartition(f"</{tag}>")
    _, opening, text = before.rpartition(f"<{tag}>")
    return text.strip() if opening and closing else None
