"""Scripted policies: each looks at the calls asked for and at those made, and writes a reply."""

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
    """Any tools with any arguments of the right types, as few and as many as tasks may have."""
    count = rng.randint(env.min_calls, env.max_calls)
    names = rng.sample(env.names, count)
    if env.one_a_turn and len(env.made) >= count:
        return _DONE
    return _reply(env, [Call(name, CATALOGUE[name].draw(rng)) for name in names])


def random_arguments(env: ToolTest, rng: Random) -> str:
    """The right tools with any arguments of the right types."""
    asked = [call.name for call in env.asked]
    return _following(env, [Call(name, CATALOGUE[name].draw(rng)) for name in asked])


def every_tool(env: ToolTest, rng: Random) -> str:
    """All tools there are, with the right arguments where they are asked for."""
    asked = {call.name: call for call in env.asked}
    drawn = {name: CATALOGUE[name].draw(rng) for name in env.names}
    calls = [Call(name, drawn[name] | {**asked.get(name, Call()).arguments}) for name in env.names]
    return _following(env, calls)


def oracle(env: ToolTest, rng: Random) -> str:
    drawn = [CATALOGUE[call.name].draw(rng) for call in env.asked]
    calls = zip(env.asked, drawn, strict=True)
    return _following(env, [Call(call.name, any_ | {**call.arguments}) for call, any_ in calls])


def _following(env: ToolTest, calls: Sequence[Call]) -> str:
    """All the calls, or the next one of them."""
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
