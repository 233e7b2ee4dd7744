"""The form that a judge's answer must have, and how the scores in it are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl_experiments.config.schema import ResponseFormat

_MAX_EXPLANATION_CHARS = 150  # enforced by the `bounded_schema` format alone
_MAX_JSON_STARTS = 2000  # brackets of an answer at which a JSON value is tried
_JSON_START = re.compile(r"[{\[]")
_NUMBER = re.compile(r"\d*\.?\d+|\d+\.")


class UnreadableAnswer(Exception):
    """An answer that does not give each attempt exactly one score."""


def response_format(kind: ResponseFormat, ids: Sequence[str]) -> dict[str, Any]:
    """Return the request fields that make a server hold the answer to its form."""
    if kind is ResponseFormat.none:
        return {}
    if kind is ResponseFormat.json_object:
        return {"response_format": {"type": "json_object"}}
    items: dict[str, Any]
    if kind is ResponseFormat.bounded_schema:
        score = {"type": "number", "minimum": 0, "maximum": 1}
        explanation = {"type": "string", "maxLength": _MAX_EXPLANATION_CHARS}
        entries = [_entry_schema({"const": name}, explanation, score) for name in ids]
        count = len(ids)
        items = {"prefixItems": entries, "items": False, "minItems": count, "maxItems": count}
    else:  # the part of JSON Schema that every service accepts
        name = {"type": "string", "enum": list(ids)}
        items = {"items": _entry_schema(name, {"type": "string"}, {"type": "number"})}
    schema = _object_schema({"scores": {"type": "array", **items}})
    named = {"name": "scores", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def parse_scores(text: str, ids: Sequence[str]) -> dict[str, float]:
    """Return the score of each id; the JSON may be fenced or stand among other words.

    Raises `UnreadableAnswer` where an id is missing, repeated or unknown, where a score is not a
    number from 0 to 1, and where the text has several lists of scores that differ.
    """
    lists = list(_score_lists(text.rpartition("</think>")[2]))
    if not lists:
        raise UnreadableAnswer("there is no whole JSON object with a list of scores")
    if any(repr(entries) != repr(lists[0]) for entries in lists):
        raise UnreadableAnswer("there are several lists of scores, which differ")
    scores: dict[str, float] = {}
    faults = []  # their words go to the judge, which is asked again
    for entry in lists[0]:
        name = _entry_id(entry)
        score = _entry_score(entry)
        if name not in ids:
            faults.append(f"id {_shorten(name)} is unknown")
        elif name in scores:
            faults.append(f"id {name} is there twice")
        elif score is None:
            faults.append(f"the score of id {name} is no number from 0 to 1")
        scores[name] = math.nan if score is None else score
    faults += [f"id {name} is missing" for name in ids if name not in scores]
    if faults:
        raise UnreadableAnswer("; ".join(faults[:5]))
    return scores


def _entry_schema(
    name: Mapping[str, Any], explanation: Mapping[str, Any], score: Mapping[str, Any]
) -> dict[str, Any]:
    return _object_schema({"id": name, "explanation": explanation, "score": score})


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _score_lists(text: str) -> Iterator[list[Any]]:
    """Yield each list of scores in a text, however deep in other JSON it is."""
    decoder = json.JSONDecoder(object_pairs_hook=_refuse_repeated_keys)
    position, tries = 0, 0
    while (start := _JSON_START.search(text, position)) and tries < _MAX_JSON_STARTS:
        tries += 1
        try:
            value, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            position = start.end()
            continue
        if isinstance(value, dict):
            value = value.get("scores")
        if _is_score_list(value):
            yield value
        else:
            position = start.end()  # a list of scores may be inside of this value


def _is_score_list(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(entry, dict) and "score" in entry for entry in value
    )


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key is there twice")
    return mapping


def _entry_id(entry: Any) -> str:
    """Return the id of an entry as text, for it may come as a number; empty if it has none."""
    name = entry.get("id") if isinstance(entry, dict) else None
    return str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""


def _entry_score(entry: Any) -> float | None:
    """Return the score of an entry, which may come as a string; None unless from 0 to 1."""
    score = entry.get("score") if isinstance(entry, dict) else None
    if isinstance(score, str) and _NUMBER.fullmatch(score.strip()):
        score = float(score)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        return None
    return float(score)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 20 else f"{text[:20]}...")
