"""Make right calls from the possible answers of a case, for the oracle.

Arguments of Java and JavaScript functions become text, because the checker reads expressions there.
"""

from __future__ import annotations

import json
from typing import Any

from environments.bfcl_single_turn.data import Case, conversation
from environments.bfcl_single_turn.grading import answers_of
from environments.bfcl_single_turn.replies import NamedArguments

_JAVA_SUFFIX = {"long": "L", "float": "f"}
_JS_SUFFIX = {"Bigint": "n"}
_PLACEHOLDERS: dict[str, Any] = {
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
}


def right_calls(case: Case) -> list[NamedArguments]:
    """Return the calls that the benchmark expects.

    These are none for irrelevance, and one plausible call for relevance.
    """
    if "irrelevance" in case["category"]:
        return []
    if "relevance" in case["category"]:
        return [_plausible_call(case)]
    return [
        (_offered_name(case, name), _arguments(case, name, values))
        for answer in answers_of(case)
        for name, values in answer.items()
    ]


def _offered_name(case: Case, name: str) -> str:
    """Return the name that the tool of a function has in the prompt."""
    functions = [function["name"] for function in case["function"]]
    offered: str = case["tools"][functions.index(name)]["function"]["name"]
    return offered


def _arguments(case: Case, name: str, values: dict[str, list[Any]]) -> dict[str, Any]:
    """Return one accepted value for each argument that has one."""
    function = next(f for f in case["function"] if f["name"] == name)
    properties = function["parameters"]["properties"]
    chosen = {}
    for parameter, accepted in values.items():
        # Among the accepted values "" means that the argument may be left out.
        needed = parameter in function["parameters"]["required"]
        usable = [value for value in accepted if value != ""] or (accepted if needed else [])
        if usable and parameter in properties:
            chosen[parameter] = _as_argument(case, properties[parameter], usable[0])
    return chosen


def _as_argument(case: Case, schema: dict[str, Any], value: Any) -> Any:
    plain = _without_choices(schema, value)
    if case["category"] == "simple_java":
        return _java(plain, schema)
    if case["category"] == "simple_javascript":
        return _javascript(plain, schema)
    return plain


def _without_choices(schema: dict[str, Any], value: Any) -> Any:
    """Return a value with one choice for each entry of a dictionary.

    In the possible answers an entry holds the list of accepted values; "" means that it may be
    left out.
    """
    if isinstance(value, dict):
        given = {key: [v for v in accepted if v != ""] for key, accepted in value.items()}
        return {key: accepted[0] for key, accepted in given.items() if accepted}
    if isinstance(value, list) and schema.get("items", {}).get("type") in ("dict", "object"):
        return [_without_choices({}, item) for item in value]
    return value


def _java(value: Any, schema: dict[str, Any]) -> str:
    kind = schema["type"]
    if isinstance(value, list):
        inner = schema.get("items", {}).get("type", "any")
        if kind == "Array":
            return f"new Object[]{{{', '.join(_java(v, {'type': inner}) for v in value)}}}"
        quote = '"' if inner == "String" else ""
        items = ", ".join(f"{quote}{_java(v, {'type': inner})}{quote}" for v in value)
        return f"new ArrayList<>(Arrays.asList({items}))"
    if isinstance(value, dict):
        puts = " ".join(f'put("{k}", {json.dumps(v)});' for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return _scalar(value, _JAVA_SUFFIX.get(kind, ""))


def _javascript(value: Any, schema: dict[str, Any]) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return _scalar(value, _JS_SUFFIX.get(schema["type"], ""))


def _scalar(value: Any, suffix: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value}{suffix}"


def _plausible_call(case: Case) -> NamedArguments:
    """Return a call of the first tool, with the request as each argument that is text."""
    tool = case["tools"][0]["function"]
    request, properties = conversation(case)[1], tool["parameters"]["properties"]
    return tool["name"], {
        name: _placeholder(properties[name], request)
        for name in tool["parameters"].get("required", ())
    }


def _placeholder(schema: dict[str, Any], request: str) -> Any:
    return schema["enum"][0] if "enum" in schema else _PLACEHOLDERS.get(schema["type"], request)
