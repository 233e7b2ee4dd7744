"""Scripted policies: each reads the calls asked for and those made, and writes a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

from environments.tool_test.replies import Call, as_reply
from environments.tool_test.tools import CATALOGUE

if TYPE_CHECKING:
    from environments.protocol import ScriptedPolicy
    from environments.tool_test.env import ToolTest

_DONE = "Done."


def random(env: ToolTest, rng: Random) -> str:
    """Call any tools with any arguments of the right types, as many as a task may ask for."""
    count = rng.randint(env.min_calls, env.max_calls)
    names = rng.sample(env.names, count)
    if env.one_a_turn and len(env.made) >= count:
        return _DONE
    return _reply(env, [Call(name, CATALOGUE[name].draw(rng)) for name in names])


def random_arguments(env: ToolTest, rng: Random) -> str:
    """Call the right tools with any arguments of the right types."""
    asked = [call.name for call in env.asked]
    return _remaining(env, [Call(name, CATALOGUE[name].draw(rng)) for name in asked])


def every_tool(env: ToolTest, rng: Random) -> str:
    """Call all tools, with the right arguments for those that are asked for."""
    asked = {call.name: call for call in env.asked}
    drawn = {name: CATALOGUE[name].draw(rng) for name in env.names}
    calls = [Call(name, drawn[name] | {**asked.get(name, Call()).arguments}) for name in env.names]
    return _remaining(env, calls)


def oracle(env: ToolTest, rng: Random) -> str:
    """Call the tools asked for with the right arguments."""
    drawn = [CATALOGUE[call.name].draw(rng) for call in env.asked]
    calls = zip(env.asked, drawn, strict=True)
    return _remaining(env, [Call(call.name, any_ | {**call.arguments}) for call, any_ in calls])


def _remaining(env: ToolTest, calls: Sequence[Call]) -> str:
    """Write the calls that are not made yet, or the next one if each turn has one call."""
    left = calls[len(env.made) :]
    return _reply(env, left) if left else _DONE


def _reply(env: ToolTest, calls: Sequence[Call]) -> str:
    return as_reply(*calls[: 1 if env.one_a_turn else None])


BASELINES: Mapping[str, ScriptedPolicy] = {
    "random": random,
    "random_arguments": random_arguments,
    "every_tool": every_tool,
    "oracle": oracle,
}
