"""An answer that came in pieces (server-sent events), put together to the completion it is.

Tool calls are assembled here, by id and by index: servers leave one of them out, or give every
call the same index, and send calls whole or in pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl_experiments.inference.api_reply import MalformedReply, arguments_text, text_of
from rl_experiments.inference.api_words import decoded, words_of

_NO_FUNCTION = {"name": "", "arguments": ""}
_LINE_END = re.compile(r"\r\n|\n|\r")


def is_stream(text: str) -> bool:
    """Tell whether a text is a stream of server-sent events."""
    return re.match(r"\s*(data|event|id|retry)?:", text) is not None


def read_stream(text: str) -> Any:
    """Return the completion that a stream of chunks makes, as a server sends one at once.

    Raises `MalformedReply` for a stream that broke off.
    """
    chunks, is_ended = list[Any](), False
    for data in _events(text):
        if data.strip() == "[DONE]":
            is_ended = True
            break
        chunk = decoded(data)
        if not isinstance(chunk, Mapping):
            raise MalformedReply(f"the answer is no completion: {words_of(chunk)}")
        if chunk.get("error") or ("choices" not in chunk and "message" in chunk):
            return {**chunk, "error": chunk.get("error") or chunk["message"]}
        chunks.append(chunk)
    if chunks and not any("choices" in chunk for chunk in chunks):
        return chunks[0]
    choices = [choice for chunk in chunks for choice in _first_choices(chunk)]
    finishes = [c["finish_reason"] for c in choices if c.get("finish_reason")]
    if choices and not finishes and not is_ended:
        raise MalformedReply("the answer broke off", is_completion=True)
    errors = [choice["error"] for choice in choices if choice.get("error")]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    choice = {
        "message": _message([_delta(choice) for choice in choices]),
        "finish_reason": finishes[-1] if finishes else None,
        "error": errors[0] if errors else None,
    }
    return {"choices": [choice] if choices else [], "usage": usages[-1] if usages else None}


def _events(text: str) -> Iterator[str]:
    """Yield the data of each event."""
    lines: list[str] = []
    for line in [*_LINE_END.split(text), ""]:
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines = []


def _first_choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = chunk.get("choices")
    mappings = [c for c in choices if isinstance(c, Mapping)] if isinstance(choices, list) else []
    return [choice for choice in mappings if not choice.get("index")]


def _delta(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    delta = choice.get("delta") or choice.get("message")
    return delta if isinstance(delta, Mapping) else {}


def _message(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    contents = [delta.get("content") for delta in deltas]
    texts = [content if isinstance(content, str) else text_of(content) for content in contents]
    if None in texts:
        return {"content": next(c for c, text in zip(contents, texts, strict=True) if text is None)}
    calls = _CallAssembler()
    for delta in deltas:
        pieces = delta.get("tool_calls")
        if not pieces and isinstance(delta.get("function_call"), Mapping):
            pieces = [{"index": 0, "function": delta["function_call"]}]
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, Mapping):
                calls.add(piece)
    return {"content": "".join(text or "" for text in texts), "tool_calls": calls.calls}


class _CallAssembler:
    """The calls of a message, as their pieces come."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def add(self, piece: Mapping[str, Any]) -> None:
        """Append a piece to the call that it is of; begin a new call where it is of none."""
        function = piece.get("function")
        function = function if isinstance(function, Mapping) else {}
        name = function.get("name") or ""
        call = self._call_of(piece, name)
        if call is None:
            call = {"id": None, "index": piece.get("index"), "function": _NO_FUNCTION.copy()}
            self.calls.append(call)
        call["id"] = call["id"] or piece.get("id")
        known = call["function"]
        if name != known["name"]:  # some servers repeat it in every piece
            known["name"] += name
        arguments = arguments_text(function.get("arguments"))
        if _is_whole(known["arguments"]) and _is_whole(arguments):  # {} at first, or sent again
            known["arguments"] = ""
        known["arguments"] += arguments

    def _call_of(self, piece: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        """Return the call that a piece continues; None where it begins one."""
        call_id, index = piece.get("id"), piece.get("index")
        calls = [call for call in self.calls if index is None or call["index"] == index]
        calls = [call for call in calls if call_id and call["id"] == call_id] or calls
        if not calls:
            return None
        candidate = calls[-1]
        is_other = bool(call_id and candidate["id"] and call_id != candidate["id"])
        if name and is_other:
            return None
        begins = bool(name) or is_other
        return None if begins and _is_whole(candidate["function"]["arguments"]) else candidate


def _is_whole(arguments: str) -> bool:
    """Tell whether the text is a JSON object to its end."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False
