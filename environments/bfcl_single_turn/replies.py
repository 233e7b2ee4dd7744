"""From a reply to tool calls, whatever the reply; only what can be graded quickly is graded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypedDict

from environments.bfcl_single_turn.data import Case
from environments.replies import without_thinking

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"

# Far beyond what any case needs.
_MAX_REPLY, _MAX_ARGUMENTS = 65_536, 8_192  # characters
# The checker reads collections of Java and JavaScript by patterns that can take hours. Within
# these limits they take milliseconds; a run of spaces may be shortened, as no answer has one.
_COLLECTIONS = ("HashMap", "ArrayList", "Array", "array", "dict")
_MAX_COLLECTION, _MAX_OF_A_BRACKET = 300, 8
_SPACES = re.compile(r"(\s\s)\s+")


NamedArguments = tuple[str, dict[str, Any]]  # the name of a function, and its arguments


class Call(TypedDict):
    name: str
    arguments: str  # JSON


@dataclass(frozen=True)
class ParsedReply:
    """`calls` is None where there is none that can be decoded."""

    calls: list[Call] | None
    is_valid: bool = True  # no attempt at a call failed, and something is said
    is_gradable: bool = True


_INVALID = ParsedReply(None, is_valid=False)


def parse(reply: str) -> ParsedReply:
    """The calls of a reply: each in Hermes tags, or all as the JSON array that is the whole reply.

    The latter is what the template of xLAM asks for. One bad call spoils the reply.
    """
    if len(reply) > _MAX_REPLY:
        return ParsedReply(None, is_valid=False, is_gradable=False)
    text = without_thinking(reply).strip()
    if _OPEN in text:
        blocks = [part.split(_CLOSE)[0] for part in text.split(_OPEN)[1:]]
    elif text.startswith(("[", "{")):
        blocks = [text]
    else:
        return ParsedReply(None) if text else _INVALID
    try:
        found = [call for block in blocks for call in _as_list(json.loads(block))]
        calls = [Call(name=c["name"], arguments=json.dumps(c["arguments"])) for c in found]
    except (ValueError, TypeError, LookupError, RecursionError):
        return _INVALID
    named = all(isinstance(call["name"], str) for call in found)
    has_objects = all(isinstance(call["arguments"], dict) for call in found)
    return ParsedReply(calls, is_valid=has_objects) if named else _INVALID


def as_reply(calls: list[NamedArguments]) -> str:
    """Write a reply that makes the calls, each in Hermes tags."""
    blocks = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
    return "\n".join(f"{_OPEN}\n{block}\n{_CLOSE}" for block in blocks)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def within_limits(case: Case, parsed: ParsedReply) -> ParsedReply:
    """The parsed with calls that can be graded quickly, or marked as not gradable."""
    calls = parsed.calls or []
    gradable = sum(len(call["arguments"]) for call in calls) <= _MAX_ARGUMENTS
    if gradable and calls and "java" in case["category"]:
        shortened = [_shortened(case, call) for call in calls]
        gradable = all(_is_quick(case, call) for call in shortened)
        return ParsedReply(shortened, parsed.is_valid, is_gradable=gradable)
    return parsed if gradable else ParsedReply(None, parsed.is_valid, is_gradable=False)


def _collections(case: Case, arguments: Any) -> dict[str, str]:
    """The arguments that the checker reads as collections: those are text in these languages."""
    known = case["function"][0]["parameters"]["properties"]
    return {
        name: value
        for name, value in (arguments.items() if isinstance(arguments, dict) else ())
        if isinstance(value, str) and known.get(name, {}).get("type") in _COLLECTIONS
    }


def _shortened(case: Case, call: Call) -> Call:
    arguments = json.loads(call["arguments"])
    changed = {k: _SPACES.sub(r"\1", v) for k, v in _collections(case, arguments).items()}
    if not changed:
        return call
    return Call(name=call["name"], arguments=json.dumps({**arguments, **changed}))


def _is_quick(case: Case, call: Call) -> bool:
    values = _collections(case, json.loads(call["arguments"])).values()
    return all(
        len(value) <= _MAX_COLLECTION
        and all(value.count(bracket) <= _MAX_OF_A_BRACKET for bracket in "()[]{}<>")
        for value in values
    )
