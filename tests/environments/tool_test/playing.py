"""Helpers that play the tool test."""

from __future__ import annotations

from typing import Any

from environments.tool_test import ToolTest
from environments.tool_test.replies import Call, as_reply


def started(*asked: Call, **options: Any) -> ToolTest:
    """Return an environment at the start of a task, in which only exact calls pay by default."""
    weights = {"exact_weight": 1.0, "names_weight": 0.0, "arguments_weight": 0.0}
    env = ToolTest(**{**weights, **options})
    env.reset(0)
    env.asked = asked or env.asked
    return env


def says(*calls: Call) -> str:
    """Return a reply that makes the calls."""
    return as_reply(*calls)


TIMER, LIGHT = Call("set_timer", {"minutes": 5}), Call("switch_light", {"room": "hall", "on": True})
