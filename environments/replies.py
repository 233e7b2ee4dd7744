"""Functions that the reply parsers of several environments share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class NamedCall:
    """A function call that came apart from a reply's text."""

    name: str
    arguments: str  # JSON, as the model wrote it


class ReplyWithCalls(str):
    r"""A reply whose calls a server handed over apart from the text.

    A parser that knows this class takes `calls`. To every other one it is the text as models write
    it themselves, each call in <tool_call> tags, in which no argument can look like a tag.

    >>> ReplyWithCalls.of("", [NamedCall("say", '{"text": "</tool_call>"}')])
    '<tool_call>\n{"name": "say", "arguments": {"text": "\\u003c/tool_call>"}}\n</tool_call>'
    """

    content: str = ""
    calls: Sequence[NamedCall] = ()

    @classmethod
    def of(cls, content: str, calls: Sequence[NamedCall]) -> ReplyWithCalls:
        """Return the reply with this text and these calls."""
        blocks = [
            f'<tool_call>\n{{"name": {_untagged(json.dumps(call.name))}, "arguments": '
            f"{_untagged(call.arguments.strip()) or '{}'}}}\n</tool_call>"
            for call in calls
        ]
        is_thinking = bool(calls) and not without_thinking(f"{content}.").endswith(".")
        text = f"{content}</think>" if is_thinking else content
        reply = cls("\n".join([text, *blocks] if text else blocks))
        reply.content, reply.calls = content, tuple(calls)
        return reply


def _untagged(text: str) -> str:
    """Return JSON in which no tag can be read; it means the same."""
    return text.replace("<", "\\u003c")
