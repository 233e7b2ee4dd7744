"""The cases of the benchmark: loaded once, filtered, and split into training and evaluation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, TypedDict

from environments.bfcl_single_turn.official import official

# Cases that no reply can win. Either an argument is required that the function does not have or
# that accepts no value, or a list of Java must hold numbers while the checker reads only text.
UNWINNABLE = frozenset(
    {
        *("live_multiple_862-181-3", "live_multiple_964-207-0"),
        *("live_simple_106-63-0", "live_simple_112-68-0"),
        *("simple_java_36", "simple_java_65"),
    }
)


class Case(TypedDict):
    """A case of the benchmark, and the `tools` that the benchmark's converter makes of it."""

    id: str
    category: str
    question: list[list[dict[str, str]]]  # one turn, as a list of messages
    function: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    possible_answer: list[dict[str, dict[str, list[Any]]]] | None


@dataclass(frozen=True)
class Entry:
    """A case as JSON text; as objects, a million of them would slow garbage collection."""

    id: str
    category: str
    prompt_chars: int  # of the functions and the messages
    split_value: float  # in [0, 1), a hash of the request; small values are for evaluation
    text: str  # JSON

    def case(self) -> Case:
        """Return the case as objects, with its tools."""
        case: Case = json.loads(self.text)
        (hinted,) = official().add_language_specific_hint_to_function_doc([json.loads(self.text)])
        types, style = official().openai_types, official().openai_style
        case["tools"] = official().convert_to_tool(hinted["function"], types, style)
        return case


def category_names(chosen: tuple[str, ...]) -> list[str]:
    """Return the single-turn categories that are chosen, by their names or by their groups.

    Raises `KeyError` for any other name.
    """
    single_turn, names = official().single_turn, set()
    for name in chosen:
        members = [name] if name in single_turn else official().groups[name]
        if not set(members) <= set(single_turn):
            raise KeyError(name)
        names.update(members)
    return [name for name in single_turn if name in names]


@lru_cache
def entries_of(category: str) -> tuple[Entry, ...]:
    """Return all cases of a category."""
    loaded = official().load_dataset_entry(category, include_language_specific_hint=False)
    answers: list[Any] = [None] * len(loaded)
    if "relevance" not in category:
        answers = [entry["ground_truth"] for entry in official().load_ground_truth_entry(category)]
    return tuple(map(_entry, loaded, answers, [category] * len(loaded)))


def _entry(loaded: dict[str, Any], answer: Any, category: str) -> Entry:
    (messages,) = loaded["question"]
    case = {**loaded, "category": category, "possible_answer": answer}
    chars = len(json.dumps(loaded["function"])) + sum(len(m["content"]) for m in messages)
    split_value = _split_value(messages[-1]["content"])
    return Entry(
        loaded["id"],
        category,
        prompt_chars=chars,
        split_value=split_value,
        text=json.dumps(case),
    )


def _split_value(request: str) -> float:
    """Return a number in [0, 1) by the request, because some requests have several ids."""
    digest = hashlib.sha256(" ".join(request.lower().split()).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@lru_cache
def split(
    categories: tuple[str, ...],
    *,
    max_prompt_chars: int | None,
    evaluation_share: float,
    keep_unwinnable: bool,
) -> tuple[list[Entry], list[Entry]]:
    """Return the cases for training and those for evaluation, each in the order of episodes."""
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    for category in category_names(categories):
        for entry in entries_of(category):
            if entry.id in UNWINNABLE and not keep_unwinnable:
                continue
            if max_prompt_chars is None or entry.prompt_chars <= max_prompt_chars:
                parts[entry.split_value < evaluation_share].append(entry)
    for part in parts:
        Random("bfcl_single_turn").shuffle(part)
    return parts


def conversation(case: Case) -> tuple[str, str]:
    """Return the system message, or an empty string, and the other messages as one text."""
    (messages,) = case["question"]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    others = [m for m in messages if m["role"] != "system"]
    if all(m["role"] == "user" for m in others):
        return system, "\n\n".join(m["content"] for m in others)
    return system, "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in others)
