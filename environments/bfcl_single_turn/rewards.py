"""The training reward: official verdict, partial credit by argument, and what is plausible."""

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
_MOST_PLAUSIBLE = 8  # calls, where no answer tells how many are wanted


def partial_credit(case: Case, calls: Sequence[Call]) -> float:
    """From 0 to 1. Without an expected answer: no call, or calls that are plausible."""
    if "irrelevance" in case["category"]:
        return float(not calls)
    if "relevance" in case["category"]:
        if not 0 < len(calls) <= _MOST_PLAUSIBLE:
            return 0.0
        return sum(is_plausible(case, call) for call in calls) / len(calls)
    return matched(case, calls)


def matched(case: Case, calls: Sequence[Call]) -> float:
    """The calls paired with the expected ones, best first: the mean share of right arguments.

    Calls beside the expected ones lower it; twice as many come to nothing.
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
    """Right arguments among those that are given or needed; the name alone earns nothing."""
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
    asked = len(needed | given.keys())
    return right / asked if asked else 1.0


def _is_right(
    case: Case, function: dict[str, Any], parameter: str, value: Any, accepted: list[Any] | None
) -> bool:
    """The official verdict on a call of one argument."""
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
    return name if writes_dots(case) else name.replace(".", "_")


def is_plausible(case: Case, call: Call) -> bool:
    """Whether the call fits a tool's schema and, where it has text of its own, the request.

    The benchmark takes any call for relevant, so that without this any well-formed one would win.
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
    asked = {*_WORD.findall(conversation(case)[1].lower())}
    return not texts or any(not asked.isdisjoint(_WORD.findall(t.lower())) for t in texts)


def _fits(schema: dict[str, Any], value: Any) -> bool:
    allowed = _JSON_TYPES[schema["type"]]
    if isinstance(value, bool) and bool not in allowed:
        return False
    return isinstance(value, allowed) and value in schema.get("enum", [value])
