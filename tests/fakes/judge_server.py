"""A judge on loopback: an OpenAI-compatible server that scores what it reads in each attempt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.fakes.openai_server import Body

ATTEMPT = re.compile(r'<attempt id="(\d+)">\n(.*?)</attempt>', re.DOTALL)


def attempts(body: Body) -> dict[str, str]:
    """What the judge is shown, by id."""
    return dict(ATTEMPT.findall(body["messages"][1]["content"]))


def entries(body: Body, worth: Callable[[str], float]) -> list[dict[str, Any]]:
    return [
        {"id": name, "explanation": "so it is", "score": worth(text)}
        for name, text in attempts(body).items()
    ]


def judge(worth: Callable[[str], float]) -> Callable[[Body], str]:
    """Scores each attempt by its text."""
    return lambda body: json.dumps({"scores": entries(body, worth)})


def tiles(text: str) -> float:
    """From the outcome of a game of 2048 with the goal 32: the largest tile, then their sum."""
    found = re.search(r"max_value=(\d+); board_value=(\d+)", text)
    if not found or "invalid after" in text:
        return 0.0 if found else 0.5
    return (int(found[1]).bit_length() - 1) / 10 + int(found[2]) / 1000
