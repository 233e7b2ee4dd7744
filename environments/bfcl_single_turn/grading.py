"""The benchmark's verdict on the calls of a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from environments.bfcl_single_turn.official import model_name, official


def grade(
    case: Mapping[str, Any], tool_calls: Sequence[Mapping[str, Any]] | None, content: str | None
) -> bool:
    """Return whether the benchmark counts the reply as right.

    `case` has id, category, question, function, tools and possible_answer. A tool call has a name,
    and arguments as JSON text. Calls are read as of a model with an interface for function calls,
    so `content` is never a call. A reply that makes the checker raise is wrong.
    """
    category = category_of(case)
    decoded = _decoded(tool_calls)
    if "relevance" in category:  # irrelevance too, which is right without a decodable call
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
    """Return the category of a case, from its id if the case does not name it."""
    return str(case.get("category") or case["id"].rsplit("_", 1)[0])


def answers_of(case: Mapping[str, Any]) -> list[dict[str, dict[str, list[Any]]]]:
    """Return the expected calls, each as {name: {argument: accepted values}}."""
    answers = case.get("possible_answer") or []
    return list(answers["ground_truth"] if isinstance(answers, Mapping) else answers)


def language_of(category: str) -> Any:
    """Return the programming language of a category, as the benchmark's enum."""
    languages = official().languages
    if "javascript" in category:
        return languages.JAVASCRIPT
    return languages.JAVA if "java" in category else languages.PYTHON


def writes_dots(case: Mapping[str, Any]) -> bool:
    """Return whether the tools keep the dots in names of functions, which most schemas forbid."""
    return any("." in tool.get("function", tool)["name"] for tool in case.get("tools") or ())


def _decoded(tool_calls: Sequence[Mapping[str, Any]] | None) -> Any:
    """Return {name: arguments} for each call, or None if the arguments cannot be decoded."""
    try:
        return [{call["name"]: json.loads(call["arguments"])} for call in tool_calls or ()]
    except Exception:
        return None
