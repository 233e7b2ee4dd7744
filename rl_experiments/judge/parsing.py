"""What a judge's answer is held to, and how its scores are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl_experiments.config.schema import ResponseFormat

_EXPLANATION = 150  # characters, where the format can hold an answer to it
_MOST_TRIES = 2000  # brackets at which JSON may begin
_NUMBER = re.compile(r"\d*\.?\d+|\d+\.")


class Unreadable(Exception):
    """An answer that does not give each attempt one score."""


def response_format(kind: ResponseFormat, ids: Sequence[str]) -> dict[str, Any]:
    """The fields of a request that hold the answer to its form."""
    if kind is ResponseFormat.none:
        return {}
    if kind is ResponseFormat.json_object:
        return {"response_format": {"type": "json_object"}}
    items: dict[str, Any]
    if kind is ResponseFormat.bounded_schema:
        number = {"type": "number", "minimum": 0, "maximum": 1}
        words = {"type": "string", "maxLength": _EXPLANATION}
        each = [_entry({"const": name}, words, number) for name in ids]
        items = {"prefixItems": each, "items": False, "minItems": len(ids), "maxItems": len(ids)}
    else:  # what every service takes
        name = {"type": "string", "enum": list(ids)}
        items = {"items": _entry(name, {"type": "string"}, {"type": "number"})}
    schema = _object({"scores": {"type": "array", **items}})
    held = {"name": "scores", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": held}}


def read(text: str, ids: Sequence[str]) -> dict[str, float]:
    """The score of each id, from JSON that may be fenced or stand among other words.

    Raises `Unreadable` where an id is missing, there twice or unknown, where a score is no number
    from 0 to 1, and where the text has several answers that differ.
    """
    answers = list(_answers(text.rpartition("</think>")[2]))
    if not answers:
        raise Unreadable("there is no whole JSON object with a list of scores")
    if any(repr(answer) != repr(answers[0]) for answer in answers):
        raise Unreadable("there are several lists of scores, which differ")
    found: dict[str, float] = {}
    faults = []
    for entry in answers[0]:
        name = _id(entry)
        score = _score(entry)
        if name not in ids:
            faults.append(f"id {_quoted(name)} is unknown")
        elif name in found:
            faults.append(f"id {name} is there twice")
        elif score is None:
            faults.append(f"the score of id {name} is no number from 0 to 1")
        found[name] = math.nan if score is None else score
    faults += [f"id {name} is missing" for name in ids if name not in found]
    if faults:
        raise Unreadable("; ".join(faults[:5]))
    return found


def _entry(name: Mapping[str, Any], words: Mapping[str, Any], number: Mapping[str, Any]) -> Any:
    return _object({"id": name, "explanation": words, "score": number})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _answers(text: str) -> Iterator[list[Any]]:
    """The lists of scores in a text."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    position, tries = 0, 0
    while (start := re.compile(r"[{\[]").search(text, position)) and tries < _MOST_TRIES:
        tries += 1
        try:
            value, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            position = start.end()
            continue
        if isinstance(value, dict):
            value = value.get("scores")
        if _is_list_of_scores(value):
            yield value
        else:  # it may hold one
            position = start.end()


def _is_list_of_scores(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(entry, dict) and "score" in entry for entry in value
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _id(entry: Any) -> str:
    """An id may come as a number."""
    name = entry.get("id") if isinstance(entry, dict) else None
    return str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""


def _score(entry: Any) -> float | None:
    """A number from 0 to 1, which may come as a string."""
    score = entry.get("score") if isinstance(entry, dict) else None
    if isinstance(score, str) and _NUMBER.fullmatch(score.strip()):
        score = float(score)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        return None
    return float(score)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 20 else f"{text[:20]}...")
