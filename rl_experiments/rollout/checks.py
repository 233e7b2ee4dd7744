"""What an environment returns, converted to plain values or refused by name.

Every episode goes through these checks, so that training, evaluation, audit and play see the same
kinds of values, whatever library an environment uses inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from environments import End, Step

_MAX_SHOWN_CHARACTERS = 60  # of a value in a message


def step(value: object) -> Step:
    """Return a step with plain values. Raises `TypeError` or `ValueError` with what is wrong."""
    if not isinstance(value, Step):
        raise TypeError(f"step returned {_shown(value)}: it must return a Step")
    end = _end(value.end)
    return replace(
        value,
        observation="" if end else text(value.observation, "Step.observation"),
        role=value.role if end else text(value.role, "Step.role"),
        reward=_number(value.reward, "Step.reward"),
        end=end,
        episode_reward=(
            None
            if value.episode_reward is None
            else _number(value.episode_reward, "Step.episode_reward")
        ),
        metrics=_metrics(value.metrics),
    )


def text(value: object, name: str) -> str:
    """Return a text without halves of surrogate pairs, which no tokenizer and no file takes."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {_shown(value)}: it must be text")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def label(value: object, name: str) -> str:
    """Return a text that names a kind; None is the empty text, and a number becomes text."""
    if value is None:
        return ""
    return text(str(value) if isinstance(value, int | float) else value, name)


def tools(value: object) -> list[dict[str, Any]] | None:
    """Return the schemas of the tools, or None without any."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise TypeError(f"tools are {_shown(value)}: they must be a list of schemas, or None")
    for number, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"tools[{number}] must be {{'type': 'function', 'function': {{'name': ..., ...}}}}"
            )
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tools cannot be written as JSON: {error}") from None
    return list(value) or None


def earlier_turns(value: object) -> int | None:
    """Return the number of earlier turns that the policy sees; None means all."""
    is_count = hasattr(value, "__index__") and not isinstance(value, bool)
    if value is not None and (not is_count or int(value) < 0):  # type: ignore[call-overload]
        raise ValueError(
            f"earlier_turns_shown is {_shown(value)}: it must be None or a whole number from 0"
        )
    return value  # type: ignore[return-value]


def _end(value: object) -> End | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in list(End):
        raise ValueError(
            f"Step.end is {_shown(value)}: it must be None, or one of {', '.join(End)}"
        )
    return End(value)


def _metrics(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"Step.metrics are {_shown(value)}: they must be a mapping")
    return {
        text(str(name), "the name of a metric"): _number(item, f"Step.metrics[{name!r}]")
        for name, item in value.items()
    }


def _number(value: object, name: str) -> float:
    """Return a finite number of any library as a float."""
    # Texts have no __float__; numbers and scalars of numpy, torch and decimal have.
    try:
        number = float(value) if hasattr(value, "__float__") else math.nan
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {_shown(value)}: it must be a finite number")
    return number


def _shown(value: object) -> str:
    """Return a value as a short line for a message."""
    shown = " ".join(repr(value).split())
    if len(shown) > _MAX_SHOWN_CHARACTERS:
        shown = f"{shown[:_MAX_SHOWN_CHARACTERS]}..."
    return shown if isinstance(value, str | bool | None | float) else f"{shown} ({_kind(value)})"


def _kind(value: object) -> str:
    return type(value).__name__
