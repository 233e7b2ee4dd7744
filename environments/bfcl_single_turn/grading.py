"""The official verdict on the tool calls of a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from environments.bfcl_single_turn.official import model_name, official


def grade(
    case: Mapping[str, Any], tool_calls: Sequence[Mapping[str, Any]] | None, content: str | None
) -> bool:
    """Whether the benchmark counts the reply as right.

    `case` has id, category, question, function, tools and possible_answer; a tool call has name
    and arguments, the latter as JSON text. Read as the benchmark reads a model with an interface
    for function calls, where `content` is never a call; what makes the checker raise is wrong.
    """
    category = category_of(case)
    decoded = _decoded(tool_calls)
    if "relevance" in category:  # irrelevance, too: right without a call that can be decoded
        called = not official().is_empty_output(decoded)
        return called != ("irrelevance" in category)
    if not official().is_function_calling_format_output(decoded):
        return False
    try:
        verdict = official().ast_checker(
            case["function"],
            decoded,
            answers_of(case),
            language_of(category),
            category,
            model_name(dots=writes_dots(case)),
        )
    except Exception:
        return False
    return bool(verdict["valid"])


def category_of(case: Mapping[str, Any]) -> str:
    return str(case.get("category") or case["id"].rsplit("_", 1)[0])


def answers_of(case: Mapping[str, Any]) -> list[dict[str, dict[str, list[Any]]]]:
    """Of each expected call, its name and the values that each argument may have."""
    answers = case.get("possible_answer") or []
    return list(answers["ground_truth"] if isinstance(answers, Mapping) else answers)


def language_of(category: str) -> Any:
    languages = official().languages
    if "javascript" in category:
        return languages.JAVASCRIPT
    return languages.JAVA if "java" in category else languages.PYTHON


def writes_dots(case: Mapping[str, Any]) -> bool:
    """Whether the tools keep the dots of the functions' names; the usual schemas cannot."""
    return any("." in tool.get("function", tool)["name"] for tool in case.get("tools") or ())


def _decoded(tool_calls: Sequence[Mapping[str, Any]] | None) -> Any:
    """A dict {name: arguments} for each call; None where there is none, or decoding fails."""
    try:
        return [{call["name"]: json.loads(call["arguments"])} for call in tool_calls or ()]
    except Exception:
        return None
