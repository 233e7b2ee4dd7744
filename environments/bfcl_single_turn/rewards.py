"""Partial credit for calls: the share of right arguments, or whether a call is plausible."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from environments.bfcl_single_turn.data import Case, conversation
from environments.bfcl_single_turn.grading import answers_of, language_of, writes_dots
from environments.bfcl_single_turn.official import model_name, official
from environments.bfcl_single_turn.replies import Call

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_WORD = re.compile(r"[^\W_]{3,}")
_MAX_PLAUSIBLE_CALLS = 8  # for cases without an expected number of calls


def partial_credit(case: Case, calls: Sequence[Call]) -> float:
    """Return the partial credit of the calls, from 0 to 1.

    For cases without expected calls it is 1 for no call (irrelevance), or the share of plausible
    calls (relevance).
    """
    if "irrelevance" in case["category"]:
        return float(not calls)
    if "relevance" in case["category"]:
        if not 0 < len(calls) <= _MAX_PLAUSIBLE_CALLS:
            return 0.0
        return sum(is_plausible(case, call) for call in calls) / len(calls)
    return share_of_right_arguments(case, calls)


def share_of_right_arguments(case: Case, calls: Sequence[Call]) -> float:
    """Pair the calls with the expected ones, best first; return the mean share of right arguments.

    Superfluous calls lower the mean. More than twice the expected number of calls earns 0.
    """
    answers = answers_of(case)
    if not calls or len(calls) > 2 * len(answers):
        return 0.0
    pairs = [
        (right_share(case, answer, call), i, j)
        for i, answer in enumerate(answers)
        for j, call in enumerate(calls)
    ]
    total, answered, used = 0.0, set[int](), set[int]()
    for share, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if i not in answered and j not in used:
            total += share
            answered.add(i)
            used.add(j)
    return total / max(len(answers), len(calls))


def right_share(case: Case, answer: dict[str, dict[str, list[Any]]], call: Call) -> float:
    """Return the share of right arguments among those that are given or required, for one pair.

    A right name alone earns nothing.
    """
    ((name, values),) = answer.items()
    function = _function(case, name)
    given = json.loads(call["arguments"])
    if function is None or call["name"] != _called(case, name) or not isinstance(given, dict):
        return 0.0
    needed = {*function["parameters"]["required"]}
    needed |= {parameter for parameter, accepted in values.items() if "" not in accepted}
    right = sum(
        _is_right(case, function, parameter, value, values.get(parameter))
        for parameter, value in given.items()
    )
    count = len(needed | given.keys())
    return right / count if count else 1.0


def _is_right(
    case: Case, function: dict[str, Any], parameter: str, value: Any, accepted: list[Any] | None
) -> bool:
    """Return the official verdict on a call that has only this argument."""
    name, properties = function["name"], function["parameters"]["properties"]
    if parameter not in properties or accepted is None:
        return False
    alone = {"name": name, "parameters": {"properties": properties, "required": [parameter]}}
    dots = writes_dots(case)
    try:
        verdict = official().simple_function_checker(
            alone,
            {_called(case, name): {parameter: value}},
            {name: {parameter: accepted}},
            language_of(case["category"]),
            model_name(dots=dots),
        )
    except Exception:
        return False
    return bool(verdict["valid"])


def _function(case: Case, name: str) -> dict[str, Any] | None:
    return next((f for f in case["function"] if f["name"] == name), None)


def _called(case: Case, name: str) -> str:
    """Return the name under which the tools offer a function."""
    return name if writes_dots(case) else name.replace(".", "_")


def is_plausible(case: Case, call: Call) -> bool:
    """Return whether a call fits a tool's schema and shares a word with the request.

    A call without free text needs no shared word. The benchmark counts any call as relevant, so
    without this check every well-formed call would win.
    """
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case["tools"]}
    schema, given = schemas.get(call["name"]), json.loads(call["arguments"])
    if schema is None or not isinstance(given, dict):
        return False
    properties = schema["properties"]
    if not {*schema.get("required", ())} <= given.keys() <= properties.keys():
        return False
    if not all(_fits(properties[name], value) for name, value in given.items()):
        return False
    texts = [v for k, v in given.items() if isinstance(v, str) and "enum" not in properties[k]]
    request_words = {*_WORD.findall(conversation(case)[1].lower())}
    return not texts or any(not request_words.isdisjoint(_WORD.findall(t.lower())) for t in texts)


def _fits(schema: dict[str, Any], value: Any) -> bool:
    allowed = _JSON_TYPES[schema["type"]]
    if isinstance(value, bool) and bool not in allowed:
        return False
    return isinstance(value, allowed) and value in schema.get("enum", [value])
