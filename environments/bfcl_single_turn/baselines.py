"""Scripted policies for function calls: each reads the case and writes a reply."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from environments.bfcl_single_turn.answers import right_calls
from environments.bfcl_single_turn.replies import as_reply

if TYPE_CHECKING:
    from environments.bfcl_single_turn.env import BfclSingleTurn
    from environments.protocol import ScriptedPolicy

NO_CALL = "None of these functions can do that."


def random(env: BfclSingleTurn, rng: Random) -> str:
    """Call any tool, half of the time with arguments of the right types, otherwise without."""
    tools = [tool["function"] for tool in env.case["tools"]]
    if not tools:
        return as_reply([("call", {})])
    tool = rng.choice(tools)
    given = {}
    if rng.random() < 0.5:
        properties = tool["parameters"]["properties"]
        given = {name: _any_value(schema, rng) for name, schema in properties.items()}
    return as_reply([(tool["name"], given)])


def oracle(env: BfclSingleTurn, _: Random) -> str:
    """Make the calls that the benchmark expects."""
    calls = right_calls(env.case)
    return as_reply(calls) if calls else NO_CALL


def silent(_: BfclSingleTurn, __: Random) -> str:
    """Make no call, which is right where no tool fits."""
    return NO_CALL


def _any_value(schema: dict[str, Any], rng: Random) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    by_type: dict[str, Any] = {
        "integer": rng.randrange(10),
        "number": rng.randrange(10) / 2,
        "boolean": rng.random() < 0.5,
        "array": [],
        "object": {},
    }
    return by_type.get(schema["type"], rng.choice("abcdefgh"))


BASELINES: Mapping[str, ScriptedPolicy] = {"random": random, "oracle": oracle, "silent": silent}
