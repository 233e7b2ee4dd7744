"""Replies of the tool test: parse their calls, write calls. All take linear time on any text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from environments.replies import NamedCall, ReplyWithCalls, without_thinking

_MAX_CHARACTERS = 1 << 17  # a longer reply is not read
_MAX_CALLS = 64  # further calls are not decoded and count as unreadable

_TAG = re.compile(r"<(/?)tool_call>")


@dataclass(frozen=True)
class Call:
    """The name and the arguments of a call; a call that cannot be read has no name."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


_UNREADABLE = Call()


def parse(reply: str) -> list[Call]:
    """Return the calls outside the thinking, in order.

    A call is JSON with a name and arguments, and nothing else, between <tool_call> tags. Any other
    text between the tags becomes a call without a name. Where a server has handed the calls over
    apart from the text, the text is not read.
    """
    if len(reply) > _MAX_CHARACTERS:
        return []
    if isinstance(reply, ReplyWithCalls):
        calls = [_named_call(call) for call in reply.calls[:_MAX_CALLS]]
        return calls + [_UNREADABLE] * len(reply.calls[_MAX_CALLS:])
    _, *rest = _TAG.split(without_thinking(reply))
    calls = []
    opened: str | None = None  # the text after a tag that opens a call
    for slash, text in zip(rest[::2], rest[1::2], strict=True):
        if opened is not None:
            readable = slash and len(calls) < _MAX_CALLS
            calls.append(_call(opened) if readable else _UNREADABLE)
        opened = None if slash else text
    return calls if opened is None else [*calls, _UNREADABLE]


def as_reply(*calls: Call) -> str:
    r"""Write a reply that makes the calls, each as Hermes and Qwen write it.

    >>> as_reply(Call("say", {"text": "hello"}))
    '<tool_call>\n{"name": "say", "arguments": {"text": "hello"}}\n</tool_call>'
    """
    contents = [{"name": call.name, "arguments": call.arguments} for call in calls]
    blocks = [json.dumps(content, ensure_ascii=False) for content in contents]
    return "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)


def _named_call(call: NamedCall) -> Call:
    arguments = call.arguments.strip() or "{}"
    return _call(f'{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}')


def _call(text: str) -> Call:
    try:
        call = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _UNREADABLE
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return _UNREADABLE
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return _UNREADABLE
    return Call(name, arguments)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) < len(pairs):
        raise ValueError("a key occurs twice")
    return decoded


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
