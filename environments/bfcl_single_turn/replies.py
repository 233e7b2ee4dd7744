"""Replies with function calls: parse one, limit it to what is graded quickly, write one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from environments.bfcl_single_turn.data import Case
from environments.replies import NamedCall, ReplyWithCalls, without_thinking

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"

# Far beyond what any case needs.
_MAX_REPLY_CHARACTERS = 65_536
_MAX_ARGUMENT_CHARACTERS = 8_192  # of all calls together
# The checker's patterns for collections of Java and JavaScript can take hours. Within these limits
# they take milliseconds. Runs of spaces are shortened, because no right answer has them.
_COLLECTION_TYPES = ("HashMap", "ArrayList", "Array", "array", "dict")
_MAX_COLLECTION_CHARACTERS = 300
_MAX_SAME_BRACKETS = 8
_SPACES = re.compile(r"(\s\s)\s+")

NamedArguments = tuple[str, dict[str, Any]]  # the name of a function, and its arguments


class Call(TypedDict):
    """A function call as the benchmark takes it."""

    name: str
    arguments: str  # JSON text


@dataclass(frozen=True)
class ParsedReply:
    """The calls of a reply; None if the reply has no call that can be decoded."""

    calls: list[Call] | None
    is_valid: bool = True  # the reply is not empty, and every call in it can be decoded
    is_gradable: bool = True  # the checker can grade the calls in milliseconds


_INVALID = ParsedReply(None, is_valid=False)


def parse(reply: str) -> ParsedReply:
    """Return the calls of a reply: each in Hermes tags, or the whole reply as a JSON array.

    The template of xLAM asks for the array. If one call cannot be decoded, the reply is invalid.
    Where a server has handed the calls over apart from the text, the text is not read.
    """
    if len(reply) > _MAX_REPLY_CHARACTERS:
        return ParsedReply(None, is_valid=False, is_gradable=False)
    if isinstance(reply, ReplyWithCalls) and reply.calls:
        return _parse_calls(reply.calls)
    text = without_thinking(reply).strip()
    if _OPEN in text:
        blocks = [part.split(_CLOSE)[0] for part in text.split(_OPEN)[1:]]
    elif text.startswith(("[", "{")):
        blocks = [text]
    else:
        return ParsedReply(None) if text else _INVALID
    try:
        decoded = [call for block in blocks for call in _as_list(json.loads(block))]
        calls = [Call(name=c["name"], arguments=json.dumps(c["arguments"])) for c in decoded]
    except (ValueError, TypeError, LookupError, RecursionError):
        return _INVALID
    named = all(isinstance(call["name"], str) for call in decoded)
    has_objects = all(isinstance(call["arguments"], dict) for call in decoded)
    return ParsedReply(calls, is_valid=has_objects) if named else _INVALID


def _parse_calls(named_calls: Sequence[NamedCall]) -> ParsedReply:
    try:
        arguments = [json.loads(call.arguments.strip() or "{}") for call in named_calls]
    except (ValueError, RecursionError):
        return _INVALID
    calls = [
        Call(name=call.name, arguments=json.dumps(given))
        for call, given in zip(named_calls, arguments, strict=True)
    ]
    return ParsedReply(calls, is_valid=all(isinstance(given, dict) for given in arguments))


def as_reply(calls: list[NamedArguments]) -> str:
    """Write a reply that makes the calls, each in Hermes tags."""
    blocks = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
    return "\n".join(f"{_OPEN}\n{block}\n{_CLOSE}" for block in blocks)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def within_limits(case: Case, parsed: ParsedReply) -> ParsedReply:
    """Return the parsed reply with its runs of spaces shortened, or marked as not gradable."""
    calls = parsed.calls or []
    gradable = sum(len(call["arguments"]) for call in calls) <= _MAX_ARGUMENT_CHARACTERS
    if gradable and calls and "java" in case["category"]:
        shortened = [_shortened(case, call) for call in calls]
        gradable = all(_is_quick(case, call) for call in shortened)
        return ParsedReply(shortened, parsed.is_valid, is_gradable=gradable)
    return parsed if gradable else ParsedReply(None, parsed.is_valid, is_gradable=False)


def _collections(case: Case, arguments: Any) -> dict[str, str]:
    """Return the arguments, each of them text, that the checker reads as collections."""
    known = case["function"][0]["parameters"]["properties"]
    return {
        name: value
        for name, value in (arguments.items() if isinstance(arguments, dict) else ())
        if isinstance(value, str) and known.get(name, {}).get("type") in _COLLECTION_TYPES
    }


def _shortened(case: Case, call: Call) -> Call:
    """Return a call with shorter runs of spaces in its collections."""
    arguments = json.loads(call["arguments"])
    changed = {k: _SPACES.sub(r"\1", v) for k, v in _collections(case, arguments).items()}
    if not changed:
        return call
    return Call(name=call["name"], arguments=json.dumps({**arguments, **changed}))


def _is_quick(case: Case, call: Call) -> bool:
    """Return whether the checker takes milliseconds for the collections of a call."""
    values = _collections(case, json.loads(call["arguments"])).values()
    return all(
        len(value) <= _MAX_COLLECTION_CHARACTERS
        and all(value.count(bracket) <= _MAX_SAME_BRACKETS for bracket in "()[]{}<>")
        for value in values
    )
