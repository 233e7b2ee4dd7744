"""A reply of a model behind an OpenAI-compatible API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class MalformedReply(Exception):
    """The server answered with something that is not a chat completion."""


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # JSON, as the model wrote it


@dataclass(frozen=True, kw_only=True)
class ApiReply:
    """A model's reply with its cost; `usd` is None where no price is known."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    seconds: float = 0.0


def read_reply(completion: Any, *, seconds: float) -> ApiReply:
    """Read the client library's chat completion; `usd` is set only where the server states it.

    Raises `MalformedReply` for anything else: servers answer many things with status 200.
    """
    try:
        message = completion.choices[0].message
        content = message.content or ""
        calls = tuple(
            ToolCall(str(call.id), str(call.function.name), str(call.function.arguments or ""))
            for call in message.tool_calls or ()
        )
        usage = completion.usage
        tokens = (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage else (0, 0)
        cost = getattr(usage, "cost", None)  # OpenRouter states it
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedReply("the answer is no completion") from error
    if not isinstance(content, str):
        raise MalformedReply("the answer is no completion")
    return ApiReply(
        content=content,
        tool_calls=calls,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        usd=float(cost) if isinstance(cost, int | float) else None,
        seconds=seconds,
    )
