"""A reply of a model behind an OpenAI-compatible API, read from the JSON that the server sent.

It is read by hand: servers deviate from the API in ways that the client library does not take.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl_experiments.inference.api_words import well_formed, words_of

# Parts of `finish_reason`, whose words differ from server to server.
_CUT = re.compile(r"length|max_|token|context_window|incomplete", re.IGNORECASE)
_WITHHELD = re.compile(r"filter|safety|blocklist|prohibited|recitation|refusal", re.IGNORECASE)
_FAILED = re.compile(r"error|abort|cancel|fail|timeout|overload|insufficient|interrupt", re.I)


class MalformedReply(Exception):
    """The server answered with status 200 and something else than a reply of the model.

    `status_code` is the HTTP status that an error inside of the answer states. `is_completion`
    tells an answer of the right API from one of something else, as of a wrong address.
    """

    def __init__(
        self, message: str, *, status_code: int | None = None, is_completion: bool = False
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.is_completion = is_completion


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # JSON, as the model wrote it


@dataclass(frozen=True, kw_only=True)
class ApiReply:
    """A model's reply with its cost; `usd` is None where no price is known.

    Where the server did not state its use of tokens, `prompt_tokens` and `completion_tokens` are
    the most that it may be, and `is_usage_known` is false.
    """

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    is_cut: bool = False  # at a limit of tokens
    is_withheld: bool = False  # by a filter of the server
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_usage_known: bool = True
    usd: float | None = None
    seconds: float = 0.0


def read_reply(
    answer: Any, *, seconds: float, max_prompt_tokens: int = 0, max_completion_tokens: int = 0
) -> ApiReply:
    """Read a chat completion; `usd` is set only where the server states it.

    Raises `MalformedReply` for anything else, and for a reply that an error has ended.
    """
    choice = _choice(answer)
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    _refuse_errors(answer, choice, finish)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise MalformedReply(f"the answer is no completion: {words_of(answer)}", is_completion=True)
    content = text_of(message.get("content"))
    if content is None:
        shown = words_of(message.get("content"))
        raise MalformedReply(
            f"the answer is no completion: its content is {shown}", is_completion=True
        )
    calls = _calls(message)
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    prompt_tokens = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    completion_tokens = _count(usage.get("completion_tokens", usage.get("output_tokens")))
    if completion_tokens is None and not content and not calls:
        completion_tokens = 0 if "completion_tokens" in usage else None
    return ApiReply(
        content=content,
        tool_calls=calls,
        is_cut=bool(_CUT.search(finish)),
        is_withheld=bool(_WITHHELD.search(finish)),
        prompt_tokens=max_prompt_tokens if prompt_tokens is None else prompt_tokens,
        completion_tokens=max_completion_tokens if completion_tokens is None else completion_tokens,
        is_usage_known=prompt_tokens is not None and completion_tokens is not None,
        usd=_stated_usd(usage),
        seconds=seconds,
    )


def text_of(content: Any) -> str | None:
    """Return the text of a message's content, which may come in parts; None if it has none."""
    if content is None:
        return ""
    if isinstance(content, str):
        return str(well_formed(content))
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
        return str(well_formed("".join(text for text in texts if isinstance(text, str))))
    return None


def arguments_text(arguments: Any) -> str:
    """Return the arguments of a call as JSON text; some servers send the object itself."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _choice(answer: Any) -> Mapping[str, Any]:
    """Return the first choice of a completion; empty where an error stands in its place."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        return choices[0]
    if isinstance(answer, Mapping) and answer.get("error"):
        return {}
    is_completion = isinstance(choices, list)
    words = words_of(answer) if answer else "it is empty"
    raise MalformedReply(f"the answer is no completion: {words}", is_completion=is_completion)


def _refuse_errors(answer: Mapping[str, Any], choice: Mapping[str, Any], finish: str) -> None:
    """Raise `MalformedReply` for an answer in which the server states an error of its own."""
    error = answer.get("error") or choice.get("error")
    if not error and not _FAILED.search(finish):
        return
    detail = error if isinstance(error, Mapping) else {}
    codes = [detail.get(key) for key in ("code", "status", "status_code")]
    codes += [answer.get(key) for key in ("code", "status")]
    statuses = [int(str(code)) for code in codes if re.fullmatch(r"[45]\d\d", str(code))]
    words = words_of({"error": error}) if error else ""
    ended = f"the reply ended with finish_reason {finish}" if finish else ""
    message = ": ".join(filter(None, [ended, words]))
    raise MalformedReply(
        message if finish else f"the answer is an error: {message}",
        status_code=statuses[0] if statuses else None,
        is_completion=bool(choice),
    )


def _calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the calls of a message, each with an id that no other has."""
    entries = message.get("tool_calls")
    entries = list(entries) if isinstance(entries, list) else []
    if not entries and isinstance(message.get("function_call"), Mapping):  # of the first API
        entries = [{"function": message["function_call"]}]
    calls: list[ToolCall] = []
    for entry in entries:
        function = entry.get("function") if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise MalformedReply(
                f"the answer has a tool call without a name: {words_of(entry)}", is_completion=True
            )
        call_id = str(well_formed(str(entry.get("id") or "")))
        if not call_id or call_id in (call.id for call in calls):
            call_id = f"call_{len(calls)}{'_' if call_id else ''}{call_id}"
        name = str(well_formed(function["name"]))
        arguments = arguments_text(function.get("arguments"))
        calls.append(ToolCall(call_id, name, str(well_formed(arguments))))
    return tuple(calls)


def _count(tokens: Any) -> int | None:
    """Return a stated number of tokens; None where it is missing or cannot be right."""
    if tokens is None:
        return None
    try:
        count = int(tokens)
    except (TypeError, ValueError, OverflowError):
        return None
    return count if count > 0 and not isinstance(tokens, bool) else None


def _stated_usd(usage: Mapping[str, Any]) -> float | None:
    """Return the price that the server states, as OpenRouter does."""
    cost = usage.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    return float(cost) if math.isfinite(cost) and cost >= 0 else None
