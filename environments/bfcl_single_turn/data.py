"""The benchmark's cases: loaded once, filtered, and split into training and evaluation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, TypedDict

from environments.bfcl_single_turn.official import official

# No reply is right: an argument is needed that the function does not have, or for which no value
# is accepted; or a list of Java must hold numbers, where the checker reads text alone.
UNWINNABLE = frozenset(
    {
        *("live_multiple_862-181-3", "live_multiple_964-207-0"),
        *("live_simple_106-63-0", "live_simple_112-68-0"),
        *("simple_java_36", "simple_java_65"),
    }
)


class Case(TypedDict):
    """As the benchmark has it, with `tools` as its own converter makes them of the functions."""

    id: str
    category: str
    question: list[list[dict[str, str]]]  # messages of the first turn, which is the only one
    function: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    possible_answer: list[dict[str, dict[str, list[Any]]]] | None


@dataclass(frozen=True)
class Entry:
    """A case kept as JSON: its objects, a million of all cases, would slow garbage collection."""

    id: str
    category: str
    prompt_chars: int  # of the functions and the messages
    drawn: float  # in [0, 1), at random
    text: str

    def case(self) -> Case:
        case = json.loads(self.text)
        (hinted,) = official().add_language_specific_hint_to_function_doc([json.loads(self.text)])
        types, style = official().openai_types, official().openai_style
        case["tools"] = official().convert_to_tool(hinted["function"], types, style)
        found: Case = case
        return found


def category_names(chosen: tuple[str, ...]) -> list[str]:
    """The single-turn categories that are named, each by itself or by its group.

    Raises a `KeyError` for any other name.
    """
    single_turn, found = official().single_turn, set()
    for name in chosen:
        members = [name] if name in single_turn else official().groups[name]
        if not set(members) <= set(single_turn):
            raise KeyError(name)
        found.update(members)
    return [name for name in single_turn if name in found]


@lru_cache
def entries_of(category: str) -> tuple[Entry, ...]:
    loaded = official().load_dataset_entry(category, include_language_specific_hint=False)
    answers: list[Any] = [None] * len(loaded)
    if "relevance" not in category:
        answers = [entry["ground_truth"] for entry in official().load_ground_truth_entry(category)]
    return tuple(map(_entry, loaded, answers, [category] * len(loaded)))


def _entry(loaded: dict[str, Any], answer: Any, category: str) -> Entry:
    (messages,) = loaded["question"]
    case = {**loaded, "category": category, "possible_answer": answer}
    chars = len(json.dumps(loaded["function"])) + sum(len(m["content"]) for m in messages)
    drawn = _drawn(messages[-1]["content"])
    return Entry(loaded["id"], category, prompt_chars=chars, drawn=drawn, text=json.dumps(case))


def _drawn(asked: str) -> float:
    """By what is asked and not by the id: some questions come in several categories."""
    digest = hashlib.sha256(" ".join(asked.lower().split()).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@lru_cache
def split(
    categories: tuple[str, ...],
    *,
    max_prompt_chars: int | None,
    evaluation_share: float,
    keep_unwinnable: bool,
) -> tuple[list[Entry], list[Entry]]:
    """The cases for training and those for evaluation, each shuffled once."""
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    for category in category_names(categories):
        for entry in entries_of(category):
            if entry.id in UNWINNABLE and not keep_unwinnable:
                continue
            if max_prompt_chars is None or entry.prompt_chars <= max_prompt_chars:
                parts[entry.drawn < evaluation_share].append(entry)
    for part in parts:
        Random("bfcl_single_turn").shuffle(part)
    return parts


def conversation(case: Case) -> tuple[str, str]:
    """The system message, empty for none, and the other messages as one."""
    (messages,) = case["question"]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    others = [m for m in messages if m["role"] != "system"]
    if all(m["role"] == "user" for m in others):
        return system, "\n\n".join(m["content"] for m in others)
    return system, "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in others)
