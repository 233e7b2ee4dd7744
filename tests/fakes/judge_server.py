"""Answers of a judge, for the OpenAI-compatible server of the tests: it scores what it is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.fakes.openai_server import Body

_ATTEMPT = re.compile(r'<attempt id="(\d+)">\n(.*?)</attempt>', re.DOTALL)


def attempts(body: Body) -> dict[str, str]:
    """Return the attempts that a request shows, by id."""
    return dict(_ATTEMPT.findall(body["messages"][1]["content"]))


def entries(body: Body, worth: Callable[[str], float]) -> list[dict[str, Any]]:
    """Return the entry of each attempt in a right answer; `worth` scores an attempt by its text."""
    return [
        {"id": name, "explanation": "so it is", "score": worth(text)}
        for name, text in attempts(body).items()
    ]


def answer_with(worth: Callable[[str], float]) -> Callable[[Body], str]:
    """Return a judge that scores each attempt by its text."""
    return lambda body: json.dumps({"scores": entries(body, worth)})


def tiles(text: str) -> float:
    """Score a game of 2048 with the goal 32 by its largest tile, then by the sum of its tiles."""
    outcome = re.search(r"max_value=(\d+); board_value=(\d+)", text)
    if outcome is None:
        return 0.5
    if "invalid after" in text:
        return 0.0
    return (int(outcome[1]).bit_length() - 1) / 10 + int(outcome[2]) / 1000
